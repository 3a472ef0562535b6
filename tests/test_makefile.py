"""What `make` would run, as it says itself."""

from __future__ import annotations

import os
import shlex
import subprocess

import pytest
from pipeline_clone import REPOSITORY

from pipelines.runner.code import PIPELINES
from pipelines.runner.items import read_items, within
from pipelines.runner.params import read_params


def dry_run(*arguments: str) -> list[str]:
    """The commands of a target, of which the last ones are its own: before them `.venv` may be set up."""
    # within `make test` the variables of that make would be this one's
    ours = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MFLAGS", "SEEDS", "JOBS")}
    done = subprocess.run(
        ["make", "--dry-run", "--no-print-directory", *arguments],
        cwd=REPOSITORY, env=ours, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_run_checks_before_it_runs() -> None:
    commands = dry_run("run")
    assert commands[-3:-1] == ["python -m pipelines.runner.check", "dvc repro"]
    assert commands[-1] == f'echo "Report: {REPOSITORY}/report/index.html"'
    assert dry_run() == commands, "it is what `make` alone does"


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ((), "python -m pipelines.tables table_x_lxmert"),
        (("SEEDS=0 1", "JOBS=2"), "python -m pipelines.tables table_x_lxmert --seeds 0 1 --jobs 2"),
    ],
)
def test_a_table_is_a_target_and_takes_seeds_and_jobs(arguments: tuple[str, ...], wanted: str) -> None:
    check, table = dry_run("table-x-lxmert", *arguments)[-2:]
    assert (check, shlex.split(table)) == ("python -m pipelines.runner.check", shlex.split(wanted))


def test_clean_removes_all_outputs_and_nothing_that_was_costly() -> None:
    """Metrics in metrics/ are committed; DVC's cache, extracted features and the user's own data stay."""
    (command,) = dry_run("clean")
    assert command.startswith("rm -rf ")
    listed = subprocess.run(
        ["bash", "-c", command.replace("rm -rf", r"printf '%s\n'", 1)], capture_output=True, text=True, check=True
    )
    removed = listed.stdout.split()
    params = read_params(REPOSITORY / "params.yaml")
    outs = {
        out
        for pattern in PIPELINES for pipeline in REPOSITORY.glob(pattern) for item in read_items(pipeline, params) for out in item.outs
    }  # fmt: skip
    committed = {out for out in outs if out.startswith("metrics/") and out.count("/") == 1 and out.endswith(".json")}
    assert {out for out in outs if not any(within(out, folder) for folder in removed)} == committed
    for kept in (".dvc/cache", ".cache/features", "data/coco", "data/pretrained", "metrics/evaluate.json", "params.yaml"):
        assert not any(within(kept, folder) or within(folder, kept) for folder in removed), kept
