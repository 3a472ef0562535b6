"""Stages on a Ray cluster of several nodes on this machine: they give what they give without one, bit for bit, and whatever is killed
meanwhile changes nothing.

| test | what it kills |
| --- | --- |
| test_a_training_outlives_a_node | a node of a training: its raylet, SIGKILL |
| test_a_training_outlives_a_process | a process of a training, as the system does where memory runs out |
| test_ctrl_c_ends_a_training_as_anywhere | a training, by its user |
| test_generation_outlives_a_node | a node while pictures are captioned and painted |
| test_a_killed_head | the whole cluster: then another one goes on |
"""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from cluster_clone import on_cluster, run
from pipeline_clone import REPOSITORY, Clone
from ray_nodes import add_node, cluster_of_nodes, kill_node
from test_resume import CASES, digest
from waiting import HANG_SECONDS

from diptych.model.errors import UserError
from pipelines.runner.params import Machine, read_params, read_section
from pipelines.runner.ray_processes import _find_ray_train, _reason
from pipelines.runner.spread import spread
from pipelines.runner.stage import Stage

TRAINED = CASES["train_token"]
GENERATED = ["data/generated"]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Of two nodes, which no test kills."""
    with cluster_of_nodes(2) as cluster:
        yield cluster


def test_a_process_s_own_error_is_told_from_a_lost_process() -> None:
    """By the classes of the Ray that is installed, which hand failures over."""
    _find_ray_train()
    from ray.exceptions import ActorDiedError
    from ray.train.v2._internal.exceptions import UserExceptionWithTraceback, WorkerHealthCheckFailedError
    from ray.train.v2._internal.execution.worker_group.poll import WorkerGroupPollStatus, WorkerStatus

    def reason(*failures: Exception) -> str:
        statuses = {rank: WorkerStatus(False, failure) for rank, failure in enumerate(failures)}
        error = WorkerGroupPollStatus(statuses).get_worker_group_error()
        return _reason(error.worker_failures, str(error))

    def raised(error: Exception) -> Exception:
        return UserExceptionWithTraceback(error, traceback_str=f"Traceback ...: {error}")

    lost, peer = WorkerHealthCheckFailedError("no answer", ActorDiedError()), raised(RuntimeError("Connection closed by peer"))
    assert reason(peer, lost) == "process 1 was lost" and reason(peer, peer) == "a process was lost"
    with pytest.raises(UserError, match="^mend this$"):
        reason(peer, raised(UserError("mend this")))
    with pytest.raises(RuntimeError, match=r"(?s)process 1 failed.*Traceback \.\.\.: a defect"):
        reason(peer, raised(ValueError("a defect")))


OUTS = {
    "cluster": CASES["cluster"],
    "train_token": TRAINED,
    "generate": GENERATED,
    "evaluate": ["metrics/evaluate.json", "data/evaluation_figures.json"],
}


@pytest.mark.parametrize(
    "stages", [("generate",), pytest.param(("cluster", "train_token", "evaluate"), marks=pytest.mark.slow)]
)
def test_stages_give_the_same_on_a_cluster(
    stages: tuple[str, ...], finished_clone: Clone, cluster: Any, tmp_path: Path
) -> None:
    outs = [out for stage in stages for out in OUTS[stage]]
    undisturbed = digest(finished_clone, outs)
    clone = on_cluster(finished_clone, tmp_path / "clone", cluster, outs, processes=1)
    for stage in stages:
        run(clone, stage)
    assert digest(clone, outs) == undisturbed
    assert list((clone.folder / ".cache").glob("ray/*")) == []


@pytest.mark.slow
def test_two_processes_share_a_step_as_on_one_machine(
    two_processes: dict[str, str], finished_clone: Clone, cluster: Any, tmp_path: Path
) -> None:
    clone = on_cluster(finished_clone, tmp_path / "clone", cluster, TRAINED, processes=2)
    run(clone, "train_token")
    assert digest(clone, TRAINED) == two_processes


@pytest.mark.slow
def test_what_a_user_does_wrong_is_one_line(finished_clone: Clone, cluster: Any, tmp_path: Path) -> None:
    clone = on_cluster(finished_clone, tmp_path / "clone", cluster, [], processes=3)
    said = clone.run("python", "-m", "pipelines.train_token")
    assert said.returncode == 1 and "Traceback" not in said.stderr
    assert said.stderr.strip().endswith(
        "train_token: params.yaml: machine.processes is 3, and the cluster of machine.ray_address has 2 CPUs; use auto"
    )
    clone.set_params(f"machine.ray_address='{cluster.address}'", "train_token.training.paint_batch_size=1", "machine.processes=2")
    said = clone.run("python", "-m", "pipelines.train_token")
    assert said.returncode == 1 and "Traceback" not in said.stderr
    assert "a batch of 1 cannot be cut into 2 pieces" in said.stderr.strip().splitlines()[-1]


@pytest.fixture(scope="module")
def two_processes(finished_clone: Clone, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What an undisturbed training by two processes of one machine writes."""
    clone = finished_clone.copy(tmp_path_factory.mktemp("two") / "clone")
    clone.set_params("machine.processes=2", "machine.threads=2")
    run(clone, "train_token")
    return digest(clone, TRAINED)


@pytest.mark.slow
def test_a_training_outlives_a_node(
    two_processes: dict[str, str], finished_clone: Clone, tmp_path: Path
) -> None:
    def kill(cluster: Any) -> None:
        kill_node(cluster.nodes[0])
        add_node(cluster)

    assert "was lost" in disturbed(kill, two_processes, finished_clone, tmp_path)


@pytest.mark.slow
def test_a_training_outlives_a_process(
    two_processes: dict[str, str], finished_clone: Clone, tmp_path: Path
) -> None:
    assert "was lost" in disturbed(lambda _: workers()[0].kill(), two_processes, finished_clone, tmp_path)


@pytest.mark.slow
def test_ctrl_c_ends_a_training_as_anywhere(
    two_processes: dict[str, str], finished_clone: Clone, cluster: Any, tmp_path: Path
) -> None:
    clone = on_cluster(
        finished_clone, tmp_path / "clone", cluster, TRAINED, 2, "machine.checkpoint_seconds=0"
    )
    store, log = clone.folder / ".cache/training/train_token", tmp_path / "said"
    with log.open("w") as said:
        process = clone.start_held(3, store, "python", "-m", "pipelines.train_token", said=said)
    process.send_signal(signal.SIGINT)
    assert process.wait(HANG_SECONDS) == 130
    assert "train_token: interrupted: the same command goes on" in log.read_text() and "Traceback" not in log.read_text()
    assert list((clone.folder / ".cache").glob("ray/*")) == []
    run(clone, "train_token")
    assert digest(clone, TRAINED) == two_processes


def workers() -> list[psutil.Process]:
    """Ray names its actors' processes after their class and method."""
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if process.info["cmdline"] and process.info["cmdline"][0].startswith("ray::RayTrainWorker")
    ]


def disturbed(
    kill: Callable[[Any], None], undisturbed: dict[str, str], finished: Clone, folder: Path
) -> str:
    """A training by two processes that stops after three checkpoints and waits for what `kill` does; it has to go on by itself to
    what an undisturbed one writes. What it says."""
    with cluster_of_nodes(2) as cluster:
        clone = on_cluster(finished, folder / "clone", cluster, TRAINED, 2, "machine.checkpoint_seconds=0")
        store = clone.folder / ".cache/training/train_token"
        log = folder / "said"
        with log.open("w") as said:
            process = clone.start_held(3, store, "python", "-m", "pipelines.train_token", said=said)
        kill(cluster)
        try:
            assert process.wait(HANG_SECONDS) == 0, log.read_text()  # Ray's own words on the lost node come last
        finally:
            process.kill()
        assert digest(clone, TRAINED) == undisturbed
        return log.read_text()


@pytest.mark.slow
def test_generation_outlives_a_node(finished_clone: Clone, tmp_path: Path) -> None:
    with cluster_of_nodes(2) as cluster:
        clone = on_cluster(
            finished_clone, tmp_path / "clone", cluster, GENERATED, "auto", "generate.batch_size=4"
        )
        plain = finished_clone.copy(tmp_path / "plain")
        plain.set_params("generate.batch_size=4")
        run(plain, "generate")
        undisturbed = digest(plain, GENERATED)
        process = subprocess.Popen(
            **clone.command("python", "-m", "pipelines.generate"), stderr=subprocess.PIPE, text=True
        )
        seen = ""
        while "1/" not in seen and process.poll() is None:
            seen += process.stderr.read(1)
        kill_node(cluster.nodes[0])
        _, rest = process.communicate(timeout=HANG_SECONDS)
        assert process.returncode == 0, rest[-3000:]
    assert digest(clone, GENERATED) == undisturbed


@pytest.mark.slow
def test_a_killed_head(two_processes: dict[str, str], finished_clone: Clone, tmp_path: Path) -> None:
    with cluster_of_nodes(2) as cluster:
        clone = on_cluster(
            finished_clone, tmp_path / "clone", cluster, TRAINED, 2, "machine.checkpoint_seconds=0"
        )
        store = clone.folder / ".cache/training/train_token"
        process = clone.start_held(3, store, "python", "-m", "pipelines.train_token")
    assert process.wait(HANG_SECONDS) != 0
    assert list(store.rglob("*.pt"))
    with cluster_of_nodes(2) as cluster:
        clone.set_params(f"machine.ray_address='{cluster.address}'", "machine.processes=2")
        run(clone, "train_token")
    assert digest(clone, TRAINED) == two_processes


@pytest.mark.slow
def test_pieces_come_in_order_and_a_deadly_one_is_named(cluster: Any) -> None:
    class Deadly:
        """Work that doubles numbers, and ends its process at 7. (Inside, or workers would look for this module.)"""

        def on(self, device: str) -> Callable[[int], int]:
            import os

            return lambda number: os._exit(1) if number == 7 else 2 * number

    machine = read_section(Machine, "machine", read_params(REPOSITORY / "params.yaml"))
    machine = replace(machine, ray_address=cluster.address)
    stage = Stage("generate", 0, machine, {})
    assert list(spread(stage, Deadly(), range(7))) == [0, 2, 4, 6, 8, 10, 12]
    with pytest.raises(UserError, match=r"^generate: 3 workers died on piece 8 of 9, the last: .*lower the batch size"):
        list(spread(stage, Deadly(), range(9)))
