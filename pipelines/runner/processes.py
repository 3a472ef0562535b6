"""A training stage on several processes of one machine (`machine.processes`), which for DVC is still one process. Those of a
cluster (`machine.ray_address`) are pipelines/runner/ray_processes.py's.

The process that DVC starts becomes torchrun's agent: it starts `python -m pipelines.<stage>` once for every process,
waits, and speaks for all of them with one exit status and one message. Among those, number 0 writes what the stage
writes. `torchrun --nproc_per_node=2 -m pipelines.train_token` does the same by hand, without metrics/stages/.

The number of processes decides the last bits of what is computed, and the noise of some trainings, so the stages that it runs list it as a dependency.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from diptych.model.errors import UserError
from pipelines.runner import ray_processes
from pipelines.runner import stage as stages
from pipelines.runner.errors import Mends, explain
from pipelines.runner.memory import memory
from pipelines.runner.params import ParameterError
from pipelines.runner.stage import Stage
from pipelines.runner.threads import end_with_parent, prepare_process

T = TypeVar("T")
# more than one, as layers are small: a second thread waits for the first most of the time, while a second process has half of
# every batch to itself
PROCESSES_ON_CPU = 2
GIB_PER_PROCESS = 4


def run(name: str, kind: type[T], main: Callable[[Stage, T], None], matrix: tuple[str, ...] = ()) -> None:
    """As `pipelines.runner.stage.run`, on as many processes as `machine.processes` says, here or where `machine.ray_address` does."""
    if "RANK" in os.environ:  # torchrun has started this process
        _run_one_of_several(name, kind, main, matrix)
        return

    def share(stage: Stage, params: T) -> None:
        if stage.machine.ray_address is not None:
            ray_processes.start_and_wait(stage, name, kind, main, matrix)
            return
        count = process_count(stage)
        if count == 1:
            main(stage, params)
        else:
            _start_and_wait(name, count)

    stages.run(name, kind, share, matrix)


def process_count(stage: Stage) -> int:
    """`machine.processes`, "auto" resolved: one for each GPU, one where a GPU is named, and PROCESSES_ON_CPU on a CPU, as far
    as there are threads and memory for so many."""
    wanted, device = stage.machine.processes, stage.device
    if wanted == "auto" and device == "cpu":
        # the machine's or container's memory, not what happens to be free, so that a run can be repeated to the last bit
        room = int(memory()[0] / GIB_PER_PROCESS)
        return max(1, min(PROCESSES_ON_CPU, stage.threads, room))
    if wanted == 1 or (wanted == "auto" and device != "cuda"):
        return 1
    if device.startswith("cuda:"):
        raise ParameterError(
            f"params.yaml: machine.processes is {wanted}, but machine.device is {device}, one GPU; use cuda or auto"
        )
    if device != "cuda":
        return int(wanted)
    import torch

    return torch.cuda.device_count() if wanted == "auto" else int(wanted)


@contextlib.contextmanager
def training_device(stage: Stage) -> Iterator[str]:
    """The device that this process trains on; inside the block it has joined the others, if there are any."""
    if "RANK" not in os.environ:
        yield stage.device
        return
    from diptych.model.training.processes import joined_processes

    with joined_processes(stage.device) as device:
        yield device


def _run_one_of_several(
    name: str, kind: type[T], main: Callable[[Stage, T], None], matrix: tuple[str, ...]
) -> None:
    """Run `main` in a process that torchrun has started; leave the error message to the process that waits."""
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C reaches all processes; one of them says so
    end_with_parent()
    try:
        stage, params = stages.read_stage(name, kind, matrix)
        prepare_process(max(1, stage.threads // int(os.environ["LOCAL_WORLD_SIZE"])))
        main(stage, params)
    except Exception as error:  # noqa: BLE001 - the process that waits raises it
        message = explain(error, name, stages.mends_of(name.rpartition("/")[0]))
        get_error_handler().record_exception(error if message is None else UserError(message))
        if "TORCHELASTIC_ERROR_FILE" not in os.environ:
            traceback.print_exc()
        os._exit(1)  # not to wait for other processes that wait for this one


def _start_and_wait(name: str, count: int) -> None:
    """Start `count` processes of stage `name` and wait until all have ended well or one has not.

    Raises UserError with the message of the first that failed by an error that the user can mend, or was killed.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.disable(logging.CRITICAL)  # of the agent: what goes wrong is said once, below
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=f"{name.replace('/', '-')}-{os.getpid()}",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.2,
    )
    try:
        elastic_launch(config, sys.executable)("-m", stages.module_of(name), *sys.argv[1:])
    except SignalException as error:
        if error.sigval == signal.SIGINT:
            raise KeyboardInterrupt from None
        sys.exit(128 + error.sigval)
    except ChildFailedError as error:
        raise _failure(error.failures, stages.mends_of(name.rpartition("/")[0])) from None


def _failure(failures: dict[int, Any], mends: Mends | None = None) -> Exception:
    """The error that says why the processes of these ranks failed: a user's slip, a signal, or a defect."""
    for _, failure in sorted(failures.items()):
        said = failure.error_file_data["message"]
        if isinstance(said, dict) and said["message"].startswith("UserError: "):
            return UserError(said["message"].removeprefix("UserError: "))
    ended = {rank: failure for rank, failure in failures.items() if failure.exitcode < 0}
    if ended:
        # SIGTERM last: by it torchrun itself ends those that are left when one has failed
        rank = min(ended, key=lambda rank: (ended[rank].exitcode == -signal.SIGTERM, rank))
        return UserError(
            f"process {rank} was ended by {ended[rank].signal_name()} (SIGKILL is also what the system sends when memory "
            f"runs out); `{mends.command if mends else 'dvc repro'}` goes on from the last checkpoint"
        )
    rank, failure = min(failures.items())
    said = failure.error_file_data["message"]
    stack = said["extraInfo"]["py_callstack"] if isinstance(said, dict) else f"exit status {failure.exitcode}"
    return RuntimeError(f"process {rank} failed:\n{stack}")
