"""The Ray cluster that `machine.ray_address` names: who works there, and on which device."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diptych.features.ray_cluster import Cluster, connect
from pipelines.runner.params import Machine, ParameterError

if TYPE_CHECKING:
    from pipelines.runner.stage import Stage


def cluster_of(machine: Machine) -> Cluster:
    """The cluster that `machine.ray_address` names."""
    return Cluster(machine.ray_address, "machine.ray_address", "set machine.ray_address to null")


def cluster_device(machine: Machine, room: dict[str, float]) -> str:
    """`machine.device`, "auto" resolved by what a cluster has: "cuda" where it has GPUs."""
    if machine.device == "auto":
        return "cuda" if room.get("GPU") else "cpu"
    if machine.device.startswith("cuda:"):
        raise ParameterError(
            f"params.yaml: machine.device is {machine.device}, one GPU, but machine.ray_address names a cluster; use cuda or auto"
        )
    return machine.device


def encoders_of(stage: Stage) -> tuple[int, str]:
    """Workers and device of an extraction: this machine's, or on a cluster a worker for each of its GPUs, or cores where there are
    none, unless `machine.workers` says how many."""
    if stage.machine.ray_address is None or stage.machine.workers == 0:
        return stage.workers, stage.device
    room = connect(cluster_of(stage.machine))
    device = cluster_device(stage.machine, room)
    if stage.machine.workers != "auto":
        return stage.machine.workers, device
    return max(1, int(room.get("GPU" if device == "cuda" else "CPU", 0))), device
