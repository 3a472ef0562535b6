"""`make table1`: all trainings of the paper's table 1 side by side, then the table (docs/ablations.md).

    python -m pipelines.tables [--seeds 0 1] [--jobs 2]

Every item is a stage of pipelines/tables/dvc.yaml and runs through `dvc repro`; this only says which at what time. What is
done is not done again, and a stopped training goes on from its checkpoint. Logs: .cache/ablations/logs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipelines.runner.check import check_java
from pipelines.runner.params import Machine, ParameterError, read_params, read_section
from pipelines.runner.stage import CORES_VARIABLE, available_cores, one_line_errors, remove
from pipelines.tables.item import DRIVER_VARIABLE, EMBEDDINGS, MENDS, OUTPUTS, PIPELINE, Table1Params
from pipelines.tables.table import SAMPLER_TITLES, models
from pipelines.tables.trainings import TRAININGS

NAME = "table1"
# the last for the samplers, which paint with the pipeline's own model
SHARED = ("shard", "image_generator", "scorer", "judge", "detector", "train_sequence")
LOGS = Path(".cache/ablations/logs")
# `dvc repro` takes the repository's lock before the item's command and after it, and without the option gives up after 3 seconds:
# what the command has made would then be made again
DVC = ("dvc", "--wait-for-lock")
# what it says where another one works on the same files; that it does not wait for
BUSY = "is busy, it is being blocked by"
BUSY_TRIES, BUSY_SECONDS = 60, 1.0
# and where a command was killed; a shell adds 128 to the signal's number
KILLED = re.compile(r"failed to run: .*, exited with (-\d+|1[2-5]\d)$", re.MULTILINE)
STOP_SECONDS = 20.0
# a training on the default run's data, at its largest; with as much again on a GPU and room for larger networks
GIB_PER_JOB, GPU_GIB_PER_JOB = 6, 24
# how long items take compared with each other, until some have run
WEIGHTS = {"token": 6.0, "sequence": 3.0, "features": 3.0, "measured": 1.0, "sampler": 1.0}


@dataclass(frozen=True)
class Item:
    """A stage of the pipeline file, such as `token@ours-0`, and those that have to be up to date before."""

    name: str
    needs: tuple[str, ...] = ()

    @property
    def weight(self) -> float:
        return WEIGHTS.get(self.name.partition("@")[0], 1.0)


@dataclass
class Job:
    """A running item."""

    item: Item
    slot: int
    process: subprocess.Popen[bytes]
    log: Path
    tries: int
    started: float = field(default_factory=time.monotonic)


def main() -> None:
    """Read what is wanted, then run it."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.tables", description="The paper's table 1.")
    parser.add_argument("--seeds", type=int, nargs="+", help="of table1.seeds in params.yaml; default: all")
    parser.add_argument("--jobs", type=int, help="items side by side; default: one a core, or by GPUs")
    arguments = parser.parse_args()
    with one_line_errors(NAME, MENDS):
        if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:  # nohup ignores it
            signal.signal(signal.SIGHUP, lambda *_: sys.exit(129))
        params = read_params()
        table, machine = (
            read_section(Table1Params, "table1", params),
            read_section(Machine, "machine", params),
        )
        if table.java:  # before hours of training, though only the measurements would miss it
            check_java("table1.java", "null")
        seeds = list(dict.fromkeys(arguments.seeds or table.seeds))
        unknown = sorted(set(seeds) - set(table.seeds))
        if unknown:
            raise ParameterError(
                f"--seeds: {unknown} are not among table1.seeds of params.yaml; add them there"
            )
        if arguments.jobs is not None and arguments.jobs < 1:
            raise ParameterError(f"--jobs must be at least 1, is {arguments.jobs}")
        run_shared()
        items, gpus = work(seeds), gpu_count(machine)
        jobs = arguments.jobs or default_jobs(machine, gpus, len(items))
        for part, side_by_side in rounds(items, jobs, gpus):
            run_items(part, side_by_side, gpus, available_cores())
        for seed in sorted(set(table.seeds) - set(seeds)):
            leave_out_if_stale(seed)
        run_items([Item("table1")], 1, gpus, available_cores())
        remove(EMBEDDINGS)
        print(f"{NAME}: metrics/table1.json, {OUTPUTS}/table1/index.html")


def run_shared() -> None:
    """Bring up to date what all rows share. Raises ParameterError where that fails."""
    print(f"{NAME}: what all rows share", flush=True)
    process = subprocess.Popen([*DVC, "repro", *SHARED], start_new_session=True)
    try:
        status = process.wait()
    finally:
        stop([process])
    if status:
        raise ParameterError("a stage that all rows share failed, see above")


def leave_out_if_stale(seed: int) -> None:
    """Remove the measurements of a seed that is not to run now, where anything behind them has changed: a table has rows of one
    making only. DVC removes them, too, before it makes them again. Raises ParameterError where DVC cannot say."""
    folders = [Path(OUTPUTS) / "measured" / f"{model}-{seed}" for model in models()]
    if not all(folder.is_dir() for folder in folders):
        return
    targets = [f"{PIPELINE}:measured@{folder.name}" for folder in folders]
    asked = [*DVC, "status", "--json", "--with-deps", *targets]
    done = subprocess.run(asked, check=False, capture_output=True, text=True)
    if done.returncode:
        raise ParameterError(f"dvc status of seed {seed}: {one_line(done.stderr)}")
    if json.loads(done.stdout):
        print(f"{NAME}: seed {seed} is left out: what its rows are made of has changed", flush=True)
        for folder in folders:
            remove(folder)


def one_line(log: str) -> str:
    """What went wrong, from the text of an item's log: the line that stands alone, before DVC's own. A killed command says
    nothing, and its last line is a progress bar."""
    if killed := KILLED.search(log):
        return f"killed by signal {abs(int(killed[1])) % 128}; where memory ran out, {MENDS.memory}"
    lines = [line.strip() for line in log.splitlines()]
    said = [line for line in lines if line and not line.startswith(("Running stage", ">", "Updating lock"))]
    own = [line for line in said if not line.startswith(("ERROR: failed to reproduce", "WARNING"))]
    busy = [line for line in own if BUSY in line or line.startswith("(PID ")]
    return " ".join(busy[:2]) if busy else own[-1] if own else "it said nothing"


def work(seeds: Sequence[int]) -> list[Item]:
    """All items of these seeds, each after those that it needs; seed by seed, so that the first ones are whole early."""
    items: list[Item] = []
    for seed in seeds:
        tokens = [name for name, training in TRAININGS.items() if training.token == name]
        items += [Item(f"token@{row}-{seed}") for row in tokens]
        made_by = {f"token_{row}": f"token@{row}-{seed}" for row in tokens}
        for row, training in TRAININGS.items():
            name = f"sequence@{row}-{seed}" if training.token == row else f"{row}@{seed}"
            items.append(Item(name, (f"token@{training.token}-{seed}",)))
            made_by[f"sequence_{row}"] = name
        items += [Item(f"measured@{model}-{seed}", (made_by[model],)) for model in models()]
    return items


def samplers() -> list[Item]:
    """One item for each sampler."""
    return [Item(f"sampler@{name}") for name in SAMPLER_TITLES]


def rounds(items: list[Item], jobs: int, gpus: int) -> list[tuple[list[Item], int]]:
    """What runs one after the other, and how many items of it side by side: where there are GPUs the samplers by
    themselves, one a GPU, as they are timed, and a GPU's time is that of all who use it."""
    if gpus:
        return [(items, jobs), (samplers(), min(jobs, gpus))]
    return [([*items, *samplers()], jobs)]


def gpu_count(machine: Machine) -> int:
    """GPUs that items may take."""
    if machine.device == "cpu":
        return 0
    import torch

    return 1 if machine.device.startswith("cuda:") else torch.cuda.device_count()


def default_jobs(machine: Machine, gpus: int, items: int) -> int:
    """One item a core; or one a GPU where there are several, and on a single one as many as have four cores each. As far as memory
    goes."""
    import psutil

    cores, fitting = available_cores(), int(psutil.virtual_memory().available / 2**30 // GIB_PER_JOB)
    if gpus > 1:
        wanted = gpus
    elif gpus:
        import torch

        free, _ = torch.cuda.mem_get_info(machine.device if machine.device.startswith("cuda:") else 0)
        wanted = min(cores // 4, int(free / 2**30 // GPU_GIB_PER_JOB))
    else:
        wanted = cores
    return max(1, min(items, fitting, wanted))


def run_items(items: Sequence[Item], jobs: int, gpus: int, cores: int) -> None:
    """Run items, `jobs` of them side by side, each with its share of the cores and, where there are GPUs, one of them.

    What failed keeps what needs it from running, and nothing else. Raises ParameterError with one message at the end, if any did.
    """
    LOGS.mkdir(parents=True, exist_ok=True)
    waiting, running = list(items), dict[int, Job]()
    names = {item.name for item in items}
    done: set[str] = set()
    failed: dict[str, str] = {}
    progress = Progress(items, jobs)
    try:
        while waiting or running:
            for item in [each for each in waiting if failed.keys() & set(each.needs)]:
                waiting.remove(item)
                failed[item.name] = f"not run: it needs {' and '.join(item.needs)}"
            for slot in [number for number in range(jobs) if number not in running]:
                ready = [item for item in waiting if set(item.needs) & names <= done]
                if ready:
                    waiting.remove(ready[0])
                    running[slot] = start(ready[0], slot, jobs, gpus, cores)
            time.sleep(0.1)
            for slot, job in list(running.items()):
                status = job.process.poll()
                if status is None:
                    continue
                del running[slot]
                log = job.log.read_text(encoding="utf-8", errors="replace")
                if status and BUSY in log and job.tries < BUSY_TRIES:
                    time.sleep(BUSY_SECONDS)
                    running[slot] = start(job.item, slot, jobs, gpus, cores, job.tries + 1)
                elif status:
                    failed[job.item.name] = f"{one_line(log)} (all of it: {job.log})"
                    progress.finished(job, "FAILED", failed[job.item.name])
                else:
                    done.add(job.item.name)
                    progress.finished(job, "done" if "Running stage" in log else "was up to date")
    finally:
        stop([job.process for job in running.values()])
    if failed:
        first = next(iter(failed.items()))
        others = f"; and {len(failed) - 1} more, see above" if len(failed) > 1 else ""
        raise_failed(f"{first[0]}: {first[1]}{others}", failed)


def raise_failed(message: str, failed: Mapping[str, str]) -> None:
    """End with one message; what could not run for it is listed before."""
    for name, reason in failed.items():
        if reason.startswith("not run"):
            print(f"{NAME}: {name} {reason}", file=sys.stderr)
    raise ParameterError(f"{message}. The results of the others stay; `make table1` goes on")


def start(item: Item, slot: int, jobs: int, gpus: int, cores: int, tries: int = 0) -> Job:
    """Start an item in a process group of its own, so that Ctrl-C reaches it from here only."""
    environment = {
        **os.environ,
        CORES_VARIABLE: str(max(1, cores // jobs)),
        DRIVER_VARIABLE: str(os.getpid()),
        "PYTHONUNBUFFERED": "1",
    }
    if gpus > 1:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus)))).split(",")
        environment["CUDA_VISIBLE_DEVICES"] = visible[slot % len(visible)]
    log = LOGS / f"{item.name}.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*DVC, "repro", "--single-item", f"{PIPELINE}:{item.name}"],
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    return Job(item, slot, process, log, tries)


def stop(processes: Collection[subprocess.Popen[bytes]]) -> None:
    """End those process groups that still run, as Ctrl-C would: trainings have their checkpoints."""
    for number in (signal.SIGINT, signal.SIGKILL):
        for process in processes:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, number)
        end = time.monotonic() + STOP_SECONDS
        while time.monotonic() < end and any(process.poll() is None for process in processes):
            time.sleep(0.1)


class Progress:
    """A line for every item that ends: how many are done, and about how long the rest takes."""

    def __init__(self, items: Sequence[Item], jobs: int) -> None:
        self.total, self.count = len(items), 0
        self.rest = sum(item.weight for item in items)
        self.jobs = jobs
        self.weight = self.seconds = 0.0  # of items that ran

    def finished(self, job: Job, how: str, detail: str = "") -> None:
        """Say so."""
        seconds = time.monotonic() - job.started
        self.count += 1
        self.rest -= job.item.weight
        if how == "done":
            self.weight, self.seconds = self.weight + job.item.weight, self.seconds + seconds
        left = ""
        if self.weight and self.count < self.total:
            minutes = self.rest * self.seconds / self.weight / self.jobs / 60
            left = f"; about {minutes:.0f} min left"
        print(
            f"[{self.count}/{self.total}] {job.item.name} {how} in {seconds / 60:.1f} min{left}"
            f"{': ' + detail if detail else ''}",
            flush=True,
        )


if __name__ == "__main__":
    main()
