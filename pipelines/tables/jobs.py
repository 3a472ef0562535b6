"""Runs items of a table side by side, each through `dvc repro`: how many, in which order, how far they are,
and their end."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipelines.runner.groups import run_group, stop
from pipelines.runner.items import Item
from pipelines.runner.memory import memory
from pipelines.runner.params import Machine, ParameterError
from pipelines.runner.threads import CORES_VARIABLE, available_cores
from pipelines.tables.item import DRIVER_VARIABLE, mends
from pipelines.tables.items import TableItems
from pipelines.tables.table import Table

# `dvc repro` takes the repository's lock before the item's command and after it, and without the option gives
# up after 3 seconds: what the command has made would then be made again
DVC = ("dvc", "--wait-for-lock")
# what it says where another one works on the same files; that it does not wait for
BUSY = "is busy, it is being blocked by"
BUSY_TRIES, BUSY_SECONDS = 60, 1.0
# and where a command was killed; a shell adds 128 to the signal's number (126 and 127 are its own: what cannot be run)
KILLED = re.compile(r"failed to run: .*, exited with (-\d+|129|1[3-5]\d)$", re.MULTILINE)
# a training on the default run's data, at its largest; with as much again on a GPU and room for larger
# networks
GIB_PER_JOB, GPU_GIB_PER_JOB = 6, 24


@dataclass
class Job:
    """A running item."""

    item: Item
    slot: int
    process: subprocess.Popen[bytes]
    log: Path
    tries: int
    started: float = field(default_factory=time.monotonic)


def run_shared(table: Table, stages: Sequence[str]) -> None:
    """Bring up to date what all rows share. Raises ParameterError where that fails."""
    if not stages:
        return
    print(f"{table.name}: what all rows share", flush=True)
    if run_group([*DVC, "repro", *stages]):
        raise ParameterError("a stage that all rows share failed, see above")


def rounds(table: Table, items: Sequence[Item], jobs: int, gpus: int) -> list[tuple[list[Item], int]]:
    """What runs one after the other, and how many items of it side by side: where there are GPUs those that
    measure time by themselves, one a GPU, as a GPU's time is that of all who use it."""
    timed = [item for item in items if item.stage in table.timed]
    if not gpus or not timed:
        return [(list(items), jobs)]
    return [([item for item in items if item not in timed], jobs), (timed, min(jobs, gpus))]


def gpu_count(machine: Machine) -> int:
    """GPUs that items may take."""
    if machine.device == "cpu":
        return 0
    import torch

    return 1 if machine.device.startswith("cuda:") else torch.cuda.device_count()


def default_jobs(machine: Machine, gpus: int, items: int) -> int:
    """One item a core; or one a GPU where there are several, and on a single one as many as have four cores
    each. As far as memory goes."""
    cores, fitting = available_cores(), int(memory()[1] // GIB_PER_JOB)
    if gpus > 1:
        wanted = gpus
    elif gpus:
        import torch

        free, _ = torch.cuda.mem_get_info(machine.device if machine.device.startswith("cuda:") else 0)
        wanted = min(cores // 4, int(free / 2**30 // GPU_GIB_PER_JOB))
    else:
        wanted = cores
    return max(1, min(items, fitting, wanted))


def run_items(table: Table, plan: TableItems, items: Sequence[Item], jobs: int, gpus: int) -> None:
    """Run some items of a plan, `jobs` of them side by side, each with its share of the cores and, where
    there are GPUs, one of them.

    What failed keeps what needs it from running, and nothing else. Raises ParameterError with one message at
    the end, if any did.
    """
    logs(table).mkdir(parents=True, exist_ok=True)
    waiting, running, cores = list(items), dict[int, Job](), available_cores()
    names = {item.name for item in items}
    needs = {item.name: [name for name in plan.needs(item) if name in names] for item in items}
    done: set[str] = set()
    failed: dict[str, str] = {}
    progress = Progress(table, items, jobs)
    try:
        while waiting or running:
            for item in [each for each in waiting if failed.keys() & set(needs[each.name])]:
                waiting.remove(item)
                failed[item.name] = f"not run: it needs {' and '.join(needs[item.name])}"
            for slot in [number for number in range(jobs) if number not in running]:
                ready = [item for item in waiting if set(needs[item.name]) <= done]
                if ready:
                    waiting.remove(ready[0])
                    running[slot] = start(table, ready[0], slot, jobs, gpus, cores)
            time.sleep(0.1)
            for slot, job in list(running.items()):
                status = job.process.poll()
                if status is None:
                    continue
                del running[slot]
                log = job.log.read_text(encoding="utf-8", errors="replace")
                if status and BUSY in log and job.tries < BUSY_TRIES:
                    time.sleep(BUSY_SECONDS)
                    running[slot] = start(table, job.item, slot, jobs, gpus, cores, job.tries + 1)
                elif status:
                    failed[job.item.name] = f"{one_line(log, table)} (all of it: {job.log})"
                    progress.finished(job, "FAILED", failed[job.item.name])
                else:
                    done.add(job.item.name)
                    progress.finished(job, "done" if "Running stage" in log else "was up to date")
    finally:
        stop([job.process for job in running.values()])
    if failed:
        first = next(iter(failed.items()))
        others = f"; and {len(failed) - 1} more, see above" if len(failed) > 1 else ""
        raise_failed(table, f"{first[0]}: {first[1]}{others}", failed)


def raise_failed(table: Table, message: str, failed: Mapping[str, str]) -> None:
    """End with one message; what could not run for it is listed before."""
    for name, reason in failed.items():
        if reason.startswith("not run"):
            print(f"{table.name}: {name} {reason}", file=sys.stderr)
    raise ParameterError(f"{message}. The results of the others stay; `{table.command}` goes on")


def logs(table: Table) -> Path:
    """The folder of what items said."""
    return Path(".cache") / table.folder / "logs"


def one_line(log: str, table: Table) -> str:
    """What went wrong, from the text of an item's log: the line that stands alone, before DVC's own. A killed
    command says nothing, and its last line is a progress bar."""
    if killed := KILLED.search(log):
        number = abs(int(killed[1])) % 128
        return f"killed by signal {number}; where memory ran out, {mends(table.name).memory}"
    lines = [line.strip() for line in log.splitlines()]
    said = [line for line in lines if line and not line.startswith(("Running stage", ">", "Updating lock"))]
    own = [line for line in said if not line.startswith(("ERROR: failed to reproduce", "WARNING"))]
    busy = [line for line in own if BUSY in line or line.startswith("(PID ")]
    return " ".join(busy[:2]) if busy else own[-1] if own else "it said nothing"


def start(table: Table, item: Item, slot: int, jobs: int, gpus: int, cores: int, tries: int = 0) -> Job:
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
    log = logs(table) / f"{item.name}.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*DVC, "repro", "--single-item", item.target],
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    return Job(item, slot, process, log, tries)


class Progress:
    """A line for every item that ends: how many are done, and about how long the rest takes."""

    def __init__(self, table: Table, items: Sequence[Item], jobs: int) -> None:
        self.weights = {item.name: table.weights.get(item.stage, 1.0) for item in items}
        self.total, self.count = len(items), 0
        self.rest = sum(self.weights.values())
        self.jobs = jobs
        self.weight = self.seconds = 0.0  # of items that ran

    def finished(self, job: Job, how: str, detail: str = "") -> None:
        """Say so."""
        seconds, weight = time.monotonic() - job.started, self.weights[job.item.name]
        self.count += 1
        self.rest -= weight
        if how == "done":
            self.weight, self.seconds = self.weight + weight, self.seconds + seconds
        left = ""
        if self.weight and self.count < self.total:
            minutes = self.rest * self.seconds / self.weight / self.jobs / 60
            left = f"; about {minutes:.0f} min left"
        print(
            f"[{self.count}/{self.total}] {job.item.name} {how} in {seconds / 60:.1f} min{left}"
            f"{': ' + detail if detail else ''}",
            flush=True,
        )
