"""The table of systems: which items there are, what its claims say, and its items for real."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from pipeline_clone import REPOSITORY, Clone
from table_measurements import write_equal

from pipelines.runner.items import read_items
from pipelines.runner.params import Machine, ParameterError, provided_by, read_params, read_section
from pipelines.runner.profile import write_profile
from pipelines.tables import (
    answered,
    answers,
    butd,
    compared,
    dm_gan,
    fine_tuned,
    ours,
    page,
    pretrained,
    regions,
)
from pipelines.tables.fine_tuned import fine_tuning
from pipelines.tables.item import run
from pipelines.tables.items import table_items
from pipelines.tables.table import data_of, read_table, table_names
from pipelines.tables.verdicts import results_of
from pipelines.train_token import TrainTokenParams

TABLE = read_table("table2")
DATA = data_of("table2")


def test_the_items_make_what_the_page_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    write_profile("toybox", tmp_path / "params.yaml")
    plan = table_items(TABLE, read_params(tmp_path / "params.yaml"), [0, 1, 2])
    made = {out for item in plan.work for out in item.outs if "table2/measured/" in out}
    assert made == {f"ablations/table2/measured/{model}-{seed}" for model in TABLE.models for seed in range(3)}
    needs = {item.name: set(plan.needs(item)) for item in plan.work}
    # X-LXMERT is pretrained by its own table, once for both
    assert needs["fine_tuned@captions-1"] == needs["x_lxmert_vqa@1"] == {"pretrained@ours-1"}
    assert needs["compared_ft@paintings-2"] == {"fine_tuned@paintings-2", "pretrained@ours-2"}
    assert needs["butd_grid@0"] == set() and needs["butd_regions@0"] == {"regions"} and needs["answers@0"] == {"ours@0"}
    assert needs["compared_butd_regions@2"] == {"butd_regions@2", "regions"}
    names = [item.name for item in plan.work]
    assert all(names.index(need) < names.index(name) for name in names for need in needs[name])
    assert {"pipelines/l_verse/dvc.yaml:tokens", "pipelines/x_lxmert/dvc.yaml:questions", "judge"} <= set(plan.shared)
    assert not {"train_token", "generate"} & set(plan.shared), "nothing of the default run's own transformer"
    assert set(DATA.SYSTEMS) == {item.values.get("system") or item.command.split()[4] for item in plan.work if "compared" in item.stage}


def test_every_claim_is_about_rows_and_columns_that_are_there() -> None:
    for claim in TABLE.claims.values():
        for comparison in claim.comparisons:
            kind = comparison.column.partition(".")[0]
            assert comparison.column in TABLE.columns
            assert kind in TABLE.rows[comparison.row].models and kind in TABLE.rows[comparison.of].models
    assert TABLE.paper is not None and set(TABLE.paper.rows) < set(TABLE.rows)


def test_claims_hold_and_fail_in_their_own_direction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def verdicts(name: str, better: dict[str, dict[str, float]]) -> dict[str, str]:
        """Of synthetic measurements, in which all rows are equal but for what a model is `better` by in a column."""
        folder = tmp_path / name
        write_equal(TABLE, folder, better)
        monkeypatch.chdir(folder)
        results = results_of(TABLE, (0, 1, 2))
        assert results.rows["x_lxmert_ft"].parameters == 2000 and results.rows["ours"].parameters == 1000
        return results.verdicts

    gain = dict.fromkeys((DATA.CIDER_D, DATA.CLIP_SCORE, DATA.EASY, DATA.FRECHET), 0.1)
    assert verdicts("holds", {"ours": gain}) == dict.fromkeys(TABLE.claims, "holds")
    one = verdicts("one", {"ours": gain, "ft_captions": {DATA.CIDER_D: 0.2}, "butd_regions": {DATA.CIDER_D: 0.105}})
    assert one == {"ours_over_ft": "fails", "ours_over_gan": "holds", "unified_over_butd": "holds"}


def test_x_lxmert_ft_has_the_steps_that_ours_has_for_a_direction(tmp_path: Path) -> None:
    write_profile("toybox", tmp_path / "params.yaml")
    params = read_params(tmp_path / "params.yaml")
    provided = provided_by(read_section(Machine, "machine", params), 0)
    token = read_section(TrainTokenParams, "train_token", params, provided=provided)
    captions, paintings = (fine_tuning(token, direction, 3) for direction in fine_tuned.DIRECTIONS)
    assert captions.training.steps + paintings.training.steps == token.training.steps
    assert (captions.training.caption_share, paintings.training.caption_share) == (1.0, 0.0)
    assert captions.image_features == "discrete" and captions.training.seed == 3 and captions.training.questions is None


@pytest.mark.parametrize("name", table_names())
def test_every_item_writes_the_cost_file_that_it_declares(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    table = read_table(name)
    items = read_items(table.pipeline, read_params())
    wrong = {
        item.name
        for item in items
        if f"{table.folder}/costs/{item.name.replace('@', '_')}.json" not in item.outs
        and item.name != name
    }
    assert not wrong


def test_what_the_rows_lack_is_said_before_anything_is_trained(tmp_path: Path) -> None:
    write_profile("coco", tmp_path / "params.yaml")
    params = read_params(tmp_path / "params.yaml")
    provided = provided_by(read_section(Machine, "machine", params), 0)
    section = replace(read_section(TABLE.section, "table2", params, provided=provided), java=False)
    with pytest.raises(ParameterError, match=r"BUTD's regions need a detector.*need train_token.training.questions"):
        section.check("table2", TABLE.pipeline, params)
    params = read_params(REPOSITORY / "params.yaml")
    params["train_token"]["architecture"] = "single_stream"
    section = replace(read_section(TABLE.section, "table2", params, provided=provided), java=False)
    with pytest.raises(ParameterError, match="X-LXMERT-FT starts from its pretraining: .* two_streams"):
        section.check("table2", TABLE.pipeline, params)
    params = read_params(REPOSITORY / "params.yaml")
    section = replace(read_section(TABLE.section, "table2", params, provided=provided), seeds=(0, 9))
    with pytest.raises(ParameterError, match=r"seeds \[9\] are not among table_x_lxmert.seeds"):
        section.check("table2", TABLE.pipeline, params)


def test_a_wrong_section_is_named(tmp_path: Path) -> None:
    params = read_params(REPOSITORY / "params.yaml")
    provided = provided_by(read_section(Machine, "machine", params), 0)
    params["table2"]["butd"]["words"]["objective"] = "scst"
    with pytest.raises(ParameterError, match="table2.butd: words.objective is words, sequence.objective is scst"):
        read_section(TABLE.section, "table2", params, provided=provided)


def test_systems_are_trained_measured_and_compared(
    finished_clone: Clone, tmp_path: Path, run_here, module_here, request: pytest.FixtureRequest
) -> None:
    """All but L-Verse, whose item tests/test_l_verse.py runs; a copy of ours stands in for it here."""
    clone = finished_clone.copy(tmp_path / "clone")
    clone.set_params("machine.workers=0")  # regions; Ray extracts elsewhere
    done = module_here(clone.folder, "pipelines.x_lxmert.questions")
    assert done.status == 0, done.stderr[-2000:]
    outputs = clone.folder / TABLE.folder

    def do(module, keys: tuple[str, ...], *values: str, table: str = TABLE.name) -> None:
        name = module.__name__.rpartition(".")[2]
        ended = run_here(clone.folder, partial(run, name, keys, module.main), table, *values)
        assert ended.status == 0, ended.stderr[-3000:]

    do(pretrained, ("row", "seed"), "ours", "0", table="table_x_lxmert")
    do(regions, ())
    assert np.frombuffer(pq.read_table(next((outputs / "regions").glob("part-*"))).column("features")[0].as_py(), "<f2").size % 4 == 0
    do(ours, ("seed",), "0")
    for direction in fine_tuned.DIRECTIONS:
        do(fine_tuned, ("direction", "seed"), direction, "0")
    for features in ("grid", "regions"):
        do(butd, ("features", "seed"), features, "0")
    do(dm_gan, ("seed",), "0")
    measured = outputs / "measured"
    for system in DATA.SYSTEMS:
        if system != "l_verse":
            do(compared, ("system", "seed"), system, "0")
        if system == "ours":  # what the others cost is measured without a process for each
            request.getfixturevalue("costs_here")
    do(answers, ("model", "seed"), "ours", "0")
    do(answered, ("row", "task", "seed"), "x_lxmert", "vqa", "0")

    figures = {
        folder.name: {one["name"]: one["value"] for one in json.loads((folder / "figures.json").read_text())}
        for folder in measured.iterdir()
    }
    for task in ("caption", "painted"):
        costs = {name: figures["ours-0"][f"{task}.{name}"] for name in ("minutes", "milliseconds", "megabytes")}
        assert all(value > 0 for value in costs.values()), costs
    # what a system does not do is not measured of it
    assert not any(name.startswith("painted") for name in figures["butd_grid-0"])
    assert not any(name.startswith("caption") for name in figures["dm_gan-0"])
    assert not any(name.startswith("reconstruction") for name in figures["dm_gan-0"])
    assert figures["ft_captions-0"]["caption.minutes"] > figures["x_lxmert-0"]["caption.minutes"], "pretraining counts for both"
    assert figures["ours_vqa-0"]["vqa.accuracy"] is not None and figures["x_lxmert_vqa-0"]["vqa.accuracy"] is not None

    shutil.copytree(measured / "ours-0", measured / "l_verse-0")
    for folder in list(measured.iterdir()):
        shutil.copytree(folder, folder.with_name(folder.name.replace("-0", "-1")))
    do(page, ())
    found = json.loads((clone.folder / "metrics/table2.json").read_text())
    assert set(found) >= {f"claim.{name}" for name in TABLE.claims}
    assert "dm_gan.caption.cider_d.mean" not in found and "dm_gan.painted.minutes.mean" in found
    study = clone.run("python", "-m", "pipelines.tables.study", "table2", "study.db", "--questions", "semantics", "--items", "2")
    assert study.returncode == 0, study.stderr
    assert "6 of 6 captions have a picture of every system" in study.stdout
    missing = clone.run("python", "-m", "pipelines.tables.study", "table2", "study.db", "--training-seed", "7")
    assert missing.returncode and "seed 7 has not run" in missing.stderr and "Traceback" not in missing.stderr
    text = (clone.folder / TABLE.page).read_text()
    assert "X-LXMERT-FT" in text and "training to paint, minutes" in text
