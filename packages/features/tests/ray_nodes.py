"""A Ray cluster of several nodes on this machine."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from waiting import HANG_SECONDS, RAY_ENVIRONMENT, be_patient_with_ray

MEMORY = {"object_store_memory": 100 * 2**20}


@contextmanager
def cluster_of_nodes(count: int = 0) -> Iterator[Any]:
    """A head without CPUs and so many nodes with one each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_health_check_period_ms", "500")
        # a killed node refuses the check at once, while a slow one may take its time
        for name, value in RAY_ENVIRONMENT.items():
            patch.setenv(name, value)
        patch.setenv("RAY_health_check_failure_threshold", "3")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        from ray._private import services
        from ray.cluster_utils import Cluster

        patch.setattr(services, "get_node", services.get_node)  # afterwards it is as before
        be_patient_with_ray()
        cluster = Cluster(initialize_head=True, head_node_args={"wait": False, "num_cpus": 0, **MEMORY})
        try:
            for _ in range(count):
                add_node(cluster)
            cluster.wait_for_nodes(timeout=HANG_SECONDS)
            yield cluster
        finally:
            cluster.shutdown()


def add_node(cluster: Any) -> None:
    """A further node, which need not be there yet: the last of `cluster.nodes`. It has an address of its own, so that the process that
    uses the cluster is the head's, and not lost with a node that is killed."""
    cluster.nodes = [*getattr(cluster, "nodes", []), None]
    address = f"127.0.0.{len(cluster.nodes) + 1}"
    cluster.nodes[-1] = cluster.add_node(wait=False, num_cpus=1, node_ip_address=address, **MEMORY)


def kill_node(node: Any) -> None:
    """SIGKILL its raylet; its workers end with it."""
    raylet = next(process for kind, (process, *_) in node.all_processes.items() if kind == "raylet").process
    os.kill(raylet.pid, signal.SIGKILL)
