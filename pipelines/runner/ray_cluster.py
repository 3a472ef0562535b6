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


def cluster_devices(machine: Machine) -> tuple[str, int]:
    """Connect to the cluster: the device of those who work there, `machine.device` or by "auto" "cuda" where there are GPUs; and how
    many GPUs, or cores, it has for them."""
    room = connect(cluster_of(machine))
    if machine.device.startswith("cuda:"):
        raise ParameterError(
            f"params.yaml: machine.device is {machine.device}, one GPU, but machine.ray_address names a cluster; use cuda or auto"
        )
    device = machine.device
    if device == "auto":
        device = "cuda" if room.get("GPU") else "cpu"
    return device, int(room.get(kind_of(device), 0))


def kind_of(device: str) -> str:
    """What Ray calls a device."""
    return "GPU" if device == "cuda" else "CPU"


def encoders_of(stage: Stage) -> tuple[int, str]:
    """Workers and device of an extraction: this machine's, or on a cluster a worker for each of its GPUs, or cores where there are
    none, unless `machine.workers` says how many."""
    if stage.machine.ray_address is None or stage.machine.workers == 0:
        return stage.workers, stage.device
    device, count = cluster_devices(stage.machine)
    return max(1, count) if stage.machine.workers == "auto" else stage.machine.workers, device
