"""`make table1` and the like: all trainings of a table side by side, then the table (docs/ablations.md).

    python -m pipelines.tables TABLE [--seeds 0 1] [--jobs 2]

Every item is a stage of the table's dvc.yaml and runs through `dvc repro`; this only says which at what time.
What is done is not done again, and a stopped training goes on from its checkpoint. Logs:
.cache/ablations/logs.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from pipelines.runner.errors import one_line_errors
from pipelines.runner.params import Machine, ParameterError, provided_by, read_params, read_section
from pipelines.runner.writing import remove
from pipelines.tables.item import embeddings, mends
from pipelines.tables.items import TableItems, table_items
from pipelines.tables.jobs import DVC, default_jobs, gpu_count, one_line, rounds, run_items, run_shared
from pipelines.tables.kept import forget_taken, keep, kept_file, take_kept
from pipelines.tables.measurements import ran_here
from pipelines.tables.table import Table, read_table


def main() -> None:
    """Read what is wanted, then run it."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.tables", description="A paper's table.")
    parser.add_argument("table", help="a folder of pipelines/tables, such as table1")
    parser.add_argument("--seeds", type=int, nargs="+", help="of the table's in params.yaml; default: all")
    parser.add_argument("--jobs", type=int, help="items side by side; default: one a core, or by GPUs")
    arguments = parser.parse_args()
    with one_line_errors(arguments.table, mends(arguments.table)):
        if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:  # nohup ignores it
            signal.signal(signal.SIGHUP, lambda *_: sys.exit(129))
        table, params = read_table(arguments.table), read_params()
        machine = read_section(Machine, "machine", params)
        section = read_section(table.section, table.name, params, provided=provided_by(machine, 0))
        section.check(table.name, table.pipeline, params)
        seeds = chosen_seeds(table, section.seeds, arguments.seeds)
        if arguments.jobs is not None and arguments.jobs < 1:
            raise ParameterError(f"--jobs must be at least 1, is {arguments.jobs}")
        plan = table_items(table, params, seeds)
        run_shared(table, plan.shared)
        gpus = gpu_count(machine)
        jobs = arguments.jobs or default_jobs(machine, gpus, len(plan.work))
        for items, side_by_side in rounds(table, plan.work, jobs, gpus):
            run_items(table, plan, items, side_by_side, gpus)
        others = [seed for seed in sorted(section.seeds) if seed not in seeds]
        forget_taken(table)
        for seed in others:
            of_seed = table_items(table, params, [seed])
            leave_out_if_stale(table, of_seed, seed)
            if not ran_here(table, seed):
                take_kept(table, of_seed, seed, params)
        for seed in seeds:
            if ran_here(table, seed):
                keep(table, plan, seed, params)
        run_items(table, plan, [plan.last], 1, gpus)
        remove(embeddings(table))
        print(f"{table.name}: {table.metrics}, {table.page}")


def chosen_seeds(table: Table, known: Sequence[int], wanted: Sequence[int] | None) -> list[int]:
    """The wanted ones, each once; None: all. Raises ParameterError for an unknown one."""
    seeds = list(dict.fromkeys(wanted or known))
    if unknown := sorted(set(seeds) - set(known)):
        raise ParameterError(
            f"--seeds: {unknown} are not among {table.name}.seeds of params.yaml; add them there"
        )
    return seeds


def leave_out_if_stale(table: Table, plan: TableItems, seed: int) -> None:
    """Remove the measurements of a seed that is not to run now, and the file of them, where anything behind them has
    changed: a table has rows of one making only. DVC removes them, too, before it makes them again. Raises
    ParameterError where DVC cannot say."""
    measured = [item for item in plan.work if item.seed == seed and plan.shown(item)]
    paths = [path for item in measured for path in map(Path, plan.shown(item)) if path.exists()]
    if not paths:
        return
    asked = [*DVC, "status", "--json", "--with-deps", *(item.target for item in measured)]
    done = subprocess.run(asked, check=False, capture_output=True, text=True)
    if done.returncode:
        raise ParameterError(f"dvc status of seed {seed}: {one_line(done.stderr, table)}")
    # `code`, which is up to date since the shared stages ran, reads the folder of the pipelines' lock files, and items write these
    changed = {name for name in json.loads(done.stdout) if name.rpartition(":")[2] != "code"}
    if changed:
        print(f"{table.name}: seed {seed} is left out: what its rows are made of has changed", flush=True)
        file = kept_file(table, seed)
        if file.is_file():
            print(f"{table.name}: {file} is removed: measured anew elsewhere, put it there again", flush=True)
        for path in (*paths, file):
            remove(path)


if __name__ == "__main__":
    main()
