"""Seeds of a table that ran elsewhere: their files, and the table that takes them."""

from __future__ import annotations

import copy
import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from pipeline_clone import REPOSITORY
from table_measurements import TABLE, write_measured
from test_tables_verdicts import GOOD, made_table

from pipelines.runner.params import read_params
from pipelines.tables.__main__ import main as driver
from pipelines.tables.items import SHARED, TableItems, table_items
from pipelines.tables.kept import forget_taken, keep, kept_file, take_kept
from pipelines.tables.measurements import elsewhere, measured_seeds, measured_where, ran_here
from pipelines.tables.table import read_table, table_names

PARAMS = read_params(REPOSITORY / "params.yaml")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with all pipeline files and parameters."""
    pipelines = [SHARED, *(read_table(name).pipeline for name in table_names())]
    for pipeline in (*pipelines, Path("pipelines/x_lxmert/dvc.yaml"), Path("params.yaml")):
        (tmp_path / pipeline).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / pipeline, tmp_path / pipeline)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@functools.cache
def planned(seed: int) -> TableItems:
    return table_items(TABLE, PARAMS, [seed])


def moved(seeds: tuple[int, ...]) -> None:
    """Keep these seeds, and have nothing else of them."""
    for seed in seeds:
        keep(TABLE, planned(seed), seed, PARAMS)
        for path in TABLE.measured.glob(f"*-{seed}"):
            shutil.rmtree(path)


def test_a_table_is_the_same_wherever_its_seeds_ran(folder: Path) -> None:
    write_measured(GOOD, 3)
    wanted = made_table(folder, 3)
    page = Path("ablations/table1/index.html")
    assert "ran elsewhere" not in page.read_text()
    moved((0, 2))
    assert made_table(folder, 3)["seeds"] == 1
    for seed in (0, 2):
        take_kept(TABLE, planned(seed), seed, PARAMS)
        assert not ran_here(TABLE, seed)
    assert measured_seeds(TABLE, (0, 1, 2)) == [0, 1, 2]
    assert made_table(folder, 3) == wanted
    shown = page.read_text()
    for seed in (0, 2):
        assert f"Seed {seed} ran elsewhere: {measured_where(TABLE, seed)}." in shown
    assert "Seed 1 ran elsewhere" not in shown
    assert "painted by the models of seed 1." in shown, "the others' paintings are not here"
    assert kept_file(TABLE, 0).stat().st_size < 100_000

    # without any seed of this clone the page has no pictures
    moved((1,))
    take_kept(TABLE, planned(1), 1, PARAMS)
    assert made_table(folder, 3) == wanted
    assert "Paintings side by side" not in page.read_text()
    forget_taken(TABLE)
    assert not elsewhere(TABLE, 0).exists() and kept_file(TABLE, 0).exists()


def test_a_file_keeps_what_the_columns_need_and_no_more() -> None:
    write_measured(GOOD, 1)
    keep(TABLE, planned(0), 0, PARAMS)
    rows = pq.read_table(kept_file(TABLE, 0))
    needed = {name for column, what in TABLE.columns.items() for name in (column, *what.parts)}
    assert set(rows.column_names) <= {"model", "image_id", *needed}
    assert len(rows) == 60 * len(TABLE.models)
    params = json.loads(rows.schema.metadata[b"params"])
    # the items' own, and those of all stages behind them
    assert {
        "detector.training.steps",
        "cluster.k",
        "train_token.training.steps",
        "table1.token_steps",
    } <= set(params)
    assert not any(key.startswith(("table2", "l_verse", "report", "table1.seeds")) for key in params)


def test_seeds_measured_with_other_parameters_are_left_out_and_the_parameter_is_named(capsys) -> None:
    write_measured(GOOD, 2)
    moved((1,))
    other = copy.deepcopy(PARAMS)
    other["cluster"]["k"] += 1
    take_kept(TABLE, planned(1), 1, other)
    said = capsys.readouterr().out
    assert f"table1: {kept_file(TABLE, 1)} is left out: it was measured with another cluster.k\n" in said
    assert measured_seeds(TABLE, (0, 1)) == [0]
    # what no item reads makes no difference
    other = copy.deepcopy(PARAMS)
    other["table2"]["study"] += 1
    other["table1"]["seeds"] = [0, 1]
    take_kept(TABLE, planned(1), 1, other)
    assert capsys.readouterr().out == "" and measured_seeds(TABLE, (0, 1)) == [0, 1]
    take_kept(TABLE, planned(3), 3, PARAMS)  # there is no file of it
    assert measured_seeds(TABLE, (0, 1, 3)) == [0, 1]


STATUS = "#!/bin/sh\ncase \"$*\" in *status*-1) echo '%s';; *status*) echo '{}';; esac\n"


@pytest.fixture
def dvc(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Stands in for DVC, whose status of seed 1 is what is said."""

    def say(status: str) -> None:
        (folder / "bin").mkdir(exist_ok=True)
        (folder / "bin/dvc").write_text(STATUS % status)
        (folder / "bin/dvc").chmod(0o755)

    monkeypatch.setenv("PATH", f"{folder / 'bin'}:/usr/bin:/bin")
    return say


def test_a_seed_that_is_stale_does_not_come_back_by_its_file(folder: Path, run_here, dvc) -> None:
    write_measured(GOOD, 3)
    for seed in (0, 1, 2):
        keep(TABLE, planned(seed), seed, PARAMS)
    dvc('{"measured": [{"changed deps": {}}]}')
    for _ in range(2):
        done = run_here(folder, driver, "table1", "--seeds", "0")
        assert done.status == 0 and measured_seeds(TABLE, (0, 1, 2)) == [0, 2]
        assert not kept_file(TABLE, 1).exists()


@pytest.mark.parametrize("content", [b"version https://git-lfs.github.com/spec/v1\n", b"", b"PAR1 half of it"])
def test_a_damaged_file_is_left_out(content: bytes, capsys) -> None:
    write_measured(GOOD, 2)
    moved((1,))
    kept_file(TABLE, 1).write_bytes(content)
    take_kept(TABLE, planned(1), 1, PARAMS)
    assert f"{kept_file(TABLE, 1)} is left out: it is damaged" in capsys.readouterr().out
    assert measured_seeds(TABLE, (0, 1)) == [0]


def test_the_driver_keeps_what_it_ran_and_takes_what_it_did_not(folder: Path, run_here, dvc) -> None:
    dvc("{}")
    write_measured(GOOD, 3)
    moved((1, 2))
    assert run_here(folder, driver, "table1", "--seeds", "0").status == 0
    assert kept_file(TABLE, 0).is_file() and measured_seeds(TABLE, (0, 1, 2)) == [0, 1, 2]
    assert not elsewhere(TABLE, 0).exists()
    # a seed is taken from its file as that is now
    kept_file(TABLE, 2).unlink()
    assert run_here(folder, driver, "table1", "--seeds", "0").status == 0
    assert measured_seeds(TABLE, (0, 1, 2)) == [0, 1]
