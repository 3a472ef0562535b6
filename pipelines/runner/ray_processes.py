"""A training stage's processes on a Ray cluster (`machine.ray_address`), through Ray Train.

For DVC the stage is still one process. It waits here, shows what process 0 prints, and starts all of them again from the last
checkpoint when one was lost. All nodes need the project's folder under the same path, which is shared: inputs, checkpoints and
what the stage writes lie in it.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from diptych.model.errors import UserError
from pipelines.runner import stage as stages
from pipelines.runner.errors import Mends, explain
from pipelines.runner.params import Machine, ParameterError
from pipelines.runner.ray_cluster import cluster_devices, enter_project, kind_of
from pipelines.runner.stage import Stage
from pipelines.runner.threads import prepare_process

# what Ray Train keeps of a run, and what process 0 prints
FOLDER = Path(".cache/ray")
# losses of processes in one run; what goes wrong at every start ends there
MOST_LOSSES = 5
# what gloo says in those that are left; nccl's watchdog ends them
PEER_LOST = ("closed by peer", "reset by peer", "Timed out waiting", "Connection refused")
# that a cluster takes to notice a lost node, and that another one may take to come in its place
NOTICE_SECONDS, REPLACEMENT_SECONDS = 5.0, 60.0


@dataclass(frozen=True)
class Work:
    """What each process does: `main` with the stage and its section of params.yaml as `kind`, both by module and name, since the
    module that DVC runs has another name there. arguments: of the command line. folder: the project's."""

    stage: str
    kind: tuple[str, str]
    main: tuple[str, str]
    matrix: tuple[str, ...]
    arguments: tuple[str, ...]
    folder: str
    machine: Machine
    prints: str


def process_count(machine: Machine, device: str, has: int) -> int:
    """`machine.processes`, "auto" resolved: one for each of the GPUs that the cluster `has`, or, where these are cores, for each node.

    Raises ParameterError where the cluster has no room for so many.
    """
    import ray

    if machine.processes == "auto":
        if device == "cuda":
            return has
        return min(has, sum(node["Alive"] and node["Resources"].get("CPU", 0) > 0 for node in ray.nodes()))
    if machine.processes > has:
        raise ParameterError(
            f"params.yaml: machine.processes is {machine.processes}, and the cluster of machine.ray_address has {has} {kind_of(device)}s; use auto"
        )
    return machine.processes


def start_and_wait(
    stage: Stage, name: str, kind: type, main: Callable[[Stage, Any], None], matrix: tuple[str, ...]
) -> None:
    """Run a training stage on the cluster and wait until it has ended well.

    Raises UserError with the message of a process that failed by an error that the user can mend, or where processes are lost
    again and again.
    """
    _find_ray_train()
    device, has = cluster_devices(stage.machine)
    count = process_count(stage.machine, device, has)
    own = stage.name.replace("/", "-").replace("@", "-")
    for left in FOLDER.glob(f"{own}-[0-9]*"):  # by a run that was killed
        shutil.rmtree(left, ignore_errors=True)
    folder = FOLDER / f"{own}-{os.getpid()}"
    folder.mkdir(parents=True)
    work = Work(
        name,
        _place(kind, name),
        _place(main, name),
        matrix,
        tuple(sys.argv[1:]),
        os.getcwd(),
        replace(stage.machine, device=device),
        str(folder.absolute() / "printed"),
    )
    logging.getLogger("ray").setLevel(logging.CRITICAL)  # what goes wrong is said once, below
    try:
        with _shown(Path(work.prints)):
            _run(work, count, device, folder.absolute(), stages.mends_of(name.rpartition("/")[0]))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _find_ray_train() -> None:
    """Let Ray Train be imported, here and in the cluster's processes. Raises UserError where it cannot be."""
    if (folder := Path(sys.prefix) / "ray_train").is_dir() and str(folder) not in sys.path:
        sys.path.append(str(folder))
        given = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = f"{given}{os.pathsep}{folder}" if given else str(folder)
    try:
        import ray.train  # noqa: F401
    except ImportError as error:
        missing = error.__cause__ or error
        raise UserError(
            f"machine.ray_address: trainings on a cluster go through Ray Train, which does not start ({missing}): pip install 'ray[train]', "
            "or set machine.ray_address to null"
        ) from None


def _run(work: Work, wanted: int, device: str, folder: Path, mends: Mends | None) -> None:
    """Start as many processes as are wanted, as often as some are lost."""
    from ray.exceptions import RayError
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError

    from diptych.model.training.processes import TIMEOUT

    gpu, count, losses = device == "cuda", wanted, 0
    while True:
        trainer = TorchTrainer(
            _work,
            train_loop_config={"work": work},
            scaling_config=ScalingConfig(
                num_workers=count,
                use_gpu=gpu,
                resources_per_worker={"CPU": 1, **({"GPU": 1} if gpu else {})},
                # GPUs of one node are near each other; cores of one node take each other's memory's speed
                placement_strategy="PACK" if gpu else "SPREAD",
            ),
            torch_config=TorchConfig("nccl" if gpu else "gloo", timeout_s=int(TIMEOUT.total_seconds())),
            # by itself Ray Train would wait without end for a place that is not there
            run_config=RunConfig(
                name=f"run-{losses}",
                storage_path=str(folder),
                failure_config=FailureConfig(controller_failure_limit=0),
            ),
        )
        try:
            with _interruptible():
                trainer.fit()
            return
        except WorkerGroupError as error:
            reason = _reason(error.worker_failures, str(error))
        # what watches over the processes has a place on some node, too
        except (TrainingFailedError, RayError) as error:
            reason = f"Ray Train was lost ({_in_one_line(getattr(error, 'controller_failure', error))})"
        losses += 1
        go_on = f"`{mends.command if mends else 'dvc repro'}` goes on from the last checkpoint"
        if losses == MOST_LOSSES:
            raise UserError(
                f"processes were lost {losses} times, the last time: {reason}; look at `ray status` and at the nodes' memory, then {go_on}"
            )
        print(
            f"{reason}; from the last checkpoint on ({losses} of at most {MOST_LOSSES - 1} times)",
            file=sys.stderr,
            flush=True,
        )
        time.sleep(NOTICE_SECONDS)
        count = _room(wanted, kind_of(device), go_on)


def _room(wanted: int, kind: str, go_on: str) -> int:
    """For how many of the wanted processes the cluster still has a device of a kind. A node that was lost may be replaced soon. Raises
    UserError where there is none left."""
    import ray

    end = time.monotonic() + REPLACEMENT_SECONDS
    while (left := int(ray.cluster_resources().get(kind, 0))) < wanted and time.monotonic() < end:
        time.sleep(1.0)
    if not left:
        raise UserError(f"machine.ray_address: the cluster has no {kind} left; when it has, {go_on}")
    if left < wanted:
        print(f"the cluster has room for {left} of {wanted} processes", file=sys.stderr, flush=True)
    return min(wanted, left)


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Let Ctrl-C be what it is elsewhere. Ray Train takes the signal, ends its run and then this process, with a status as if all were
    well, and leaves its handler."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as end:
        if end.code in (0, 1):
            raise KeyboardInterrupt from None
        raise
    finally:
        signal.signal(signal.SIGINT, before)


def _reason(failures: dict[int, Exception], said: str) -> str:
    """Why processes were lost. said: all that is known, with tracebacks. Raises what ends the run at once: UserError for a user's slip,
    RuntimeError for a defect."""
    from ray.exceptions import RayError
    from ray.train.v2._internal.exceptions import RayTrainError

    # these are Ray's words on a process that is no more; all else is what the work itself raised
    raised = {
        rank: failure
        for rank, failure in failures.items()
        if not isinstance(failure, (RayError, RayTrainError))
    }
    for cause in raised.values():
        if isinstance(cause, UserError):
            raise UserError(str(cause)) from None
    if lost := failures.keys() - raised.keys():
        return f"process {min(lost)} was lost"
    for rank, cause in sorted(raised.items()):
        if not any(sign in str(cause) for sign in PEER_LOST):
            raise RuntimeError(f"process {rank} failed:\n{said}") from cause
    return "a process was lost"


def _in_one_line(error: BaseException) -> str:
    """What an error says, in one line; of another process's, its last one, where the traceback ends."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[-1] if "Traceback" in str(error) else lines[0]


def _work(config: dict[str, Work]) -> None:
    """What a process of the cluster does."""
    work, rank = config["work"], int(os.environ["RANK"])
    enter_project(work.folder)
    sys.argv = [stages.module_of(work.stage), *work.arguments]
    kind, main = (getattr(importlib.import_module(module), name) for module, name in (work.kind, work.main))
    with _printed(Path(work.prints)) if rank == 0 else contextlib.nullcontext():
        try:
            stage, params = stages.read_stage(work.stage, kind, work.matrix)
            stage = replace(stage, machine=work.machine)
            prepare_process(max(1, stage.threads // int(os.environ["LOCAL_WORLD_SIZE"])))
            main(stage, params)
            if rank == 0:
                stage.forget_training()
        except Exception as error:
            message = explain(error, work.stage, stages.mends_of(work.stage.rpartition("/")[0]))
            if message is None:
                raise
            raise UserError(message) from None


def _place(thing: Any, stage: str) -> tuple[str, str]:
    """Module and name, by which another process finds a function or class."""
    if thing.__module__ != "__main__":
        return thing.__module__, thing.__qualname__
    run = sys.modules["__main__"].__spec__
    return stages.module_of(stage) if run is None else run.name, thing.__qualname__


@contextlib.contextmanager
def _printed(path: Path) -> Iterator[None]:
    """Append to a file what this process prints."""
    with (
        path.open("a", encoding="utf-8", buffering=1) as file,
        contextlib.redirect_stdout(file),
        contextlib.redirect_stderr(file),
    ):
        yield


@contextlib.contextmanager
def _shown(path: Path) -> Iterator[None]:
    """Show what is appended to a file, as it comes."""
    path.touch()
    ended = threading.Event()

    def show() -> None:
        with path.open("rb") as file:
            while True:
                # asked before reading, so that nothing that was written before the end is left
                last = ended.is_set()
                if new := file.read():
                    sys.stderr.write(new.decode("utf-8", errors="replace"))
                    sys.stderr.flush()
                elif last:
                    return
                else:
                    ended.wait(0.5)

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
