"""The Ray cluster that `machine.ray_address` names: who works there, and on which device."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

from diptych.features.errors import UserError
from diptych.features.ray_cluster import Cluster, connect
from pipelines.runner.params import Machine, ParameterError

if TYPE_CHECKING:
    from pipelines.runner.stage import Stage


def cluster_of(machine: Machine) -> Cluster:
    """The cluster that `machine.ray_address` names."""
    return Cluster(machine.ray_address, "machine.ray_address", "set machine.ray_address to null")


def cluster_devices(machine: Machine) -> tuple[str, int]:
    """Connect to the cluster: the device of those who work there, `machine.device` or by "auto" "cuda" where there are GPUs; and how
    many GPUs, or cores, it has for them. Raises ParameterError where it has none."""
    room = connect(cluster_of(machine))
    if machine.device.startswith("cuda:"):
        raise ParameterError(
            f"params.yaml: machine.device is {machine.device}, one GPU, but machine.ray_address names a cluster; use cuda or auto"
        )
    device = machine.device
    if device == "auto":
        device = "cuda" if room.get("GPU") else "cpu"
    # a GPU's worker takes a core, too
    count = int(min(room.get(kind_of(device), 0), room.get("CPU", 0)))
    if not count:
        raise ParameterError(
            f"params.yaml: machine.device is {machine.device}, and the cluster of machine.ray_address has {room.get('GPU', 0):g} GPUs and "
            f"{room.get('CPU', 0):g} CPUs; use auto or cpu, or start nodes that have some"
        )
    return device, count


def enter_project(folder: str) -> None:
    """Go to the project's folder, in a process on some node. Raises UserError where it is not there."""
    try:
        os.chdir(folder)
    except OSError as error:
        raise UserError(
            f"machine.ray_address: the node {socket.gethostname()} has no {folder} ({error.strerror}); all nodes need the project's folder "
            "under the same path"
        ) from None


def kind_of(device: str) -> str:
    """What Ray calls a device."""
    return "GPU" if device == "cuda" else "CPU"


def encoders_of(stage: Stage) -> tuple[int, str]:
    """Workers and device of an extraction: this machine's, or on a cluster a worker for each of its GPUs, or cores where there are
    none, unless `machine.workers` says how many."""
    if stage.machine.ray_address is None or stage.machine.workers == 0:
        return stage.workers, stage.device
    device, count = cluster_devices(stage.machine)
    return count if stage.machine.workers == "auto" else stage.machine.workers, device
