"""Table 1: what its rows train, which items it has, and some of them for real."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pipeline_clone import REPOSITORY, Clone
from ruamel.yaml import YAML
from table_measurements import SAMPLERS, TABLE
from waiting import HANG_SECONDS, wait_until

from pipelines.measuring.figures import EvaluateParams, caption_figures, with_mends
from pipelines.runner.items import find_item, read_items
from pipelines.runner.params import Machine, ParameterError, provided_by, read_params, read_section
from pipelines.runner.profile import write_profile
from pipelines.runner.stage import Stage
from pipelines.tables.changes import Changes, read_changes, tasks_of
from pipelines.tables.item import DRIVER_VARIABLE, only_one_in, run
from pipelines.tables.items import SHARED, TableItems, table_items
from pipelines.tables.jobs import rounds
from pipelines.tables.params import TransformerTableParams
from pipelines.tables.sampler import main as sampler_main
from pipelines.tables.sequence import sequence_params, without_answers
from pipelines.tables.table import data_of, read_table, table_names
from pipelines.tables.token import main as token_main
from pipelines.tables.token import token_params
from pipelines.train_sequence import TrainSequenceParams
from pipelines.train_token import TrainTokenParams

MATRICES = YAML(typ="safe").load(REPOSITORY / TABLE.pipeline)["stages"]


@pytest.fixture
def sections(tmp_path: Path) -> tuple[TrainTokenParams, TrainSequenceParams]:
    """train_token and train_sequence of the default profile, and then with the papers' two tasks and their optimizer, as
    every row has them."""
    write_profile("toybox", tmp_path / "params.yaml")
    params = read_params(tmp_path / "params.yaml")
    provided = provided_by(read_section(Machine, "machine", params), 0)
    token = read_section(TrainTokenParams, "train_token", params, provided=provided)
    sequence = read_section(TrainSequenceParams, "train_sequence", params, provided=provided)
    assert token.training.questions and token.training.muon and sequence.training.muon
    ours = token_params(TABLE, "ours", token, None, 0).training
    assert ours.questions is None and ours.muon == sequence_params(TABLE, "ours", sequence, None, 0, {}).training.muon == 0
    token = replace(token, training=replace(token.training, questions=None, muon=0.0))
    return token, replace(sequence, training=replace(without_answers(sequence.training), muon=0.0))


def test_steps_that_answer_are_taken_out_of_the_schedule(tmp_path: Path, sections) -> None:
    training = replace(sections[1].training, steps=16, scst_steps=1, clip_steps=2, paint_steps=2, answer_steps=1)
    assert training.turns == [("scst",), ("clip",), ("clip",), ("paint",), ("paint",), ("answer",)]
    left = without_answers(training)
    assert (left.steps, left.answer_steps) == (14, 0)


# --- rows ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [None, 333])
def test_two_models_of_one_task_cost_what_ours_costs(sections, steps: int | None) -> None:
    token, sequence = sections
    rows = {row: token_params(TABLE, row, token, steps, 7).training for row in ("ours", "captions", "paintings")}
    assert rows["ours"].steps == (steps or token.training.steps)
    assert rows["captions"].steps + rows["paintings"].steps == rows["ours"].steps
    assert rows["captions"].steps == int(rows["ours"].steps * token.training.caption_share)
    assert (rows["captions"].caption_share, rows["paintings"].caption_share) == (1, 0)
    second = {row: sequence_params(TABLE, row, sequence, steps, 7, {}).training for row in rows}
    assert second["captions"].steps + second["paintings"].steps == second["ours"].steps
    assert set(second["captions"].cycle) == {"scst"} and set(second["paintings"].cycle) == {"clip", "paint"}
    assert {config.seed for config in (*rows.values(), *second.values())} == {7}


def test_too_few_steps_for_a_row_are_named(sections) -> None:
    token, sequence = sections
    assert sequence.training.cycle[0] == "scst"
    with pytest.raises(ParameterError, match="table1.sequence_steps 1 leaves no step to row paintings"):
        sequence_params(TABLE, "paintings", sequence, 1, 0, {})
    token = replace(token, training=replace(token.training, steps=1200, caption_share=0.25))
    assert token_params(TABLE, "ours", token, 3, 0).training.steps == 3
    with pytest.raises(
        ParameterError, match=r"table1.token_steps 3 with .*caption_share 0.25 leaves no step to row captions"
    ):
        token_params(TABLE, "captions", token, 3, 0)
    captions_alone = replace(token, training=replace(token.training, caption_share=1.0))
    with pytest.raises(
        ParameterError, match=r"train_token.training.steps 1200 with .* leaves no step to row paintings"
    ):
        token_params(TABLE, "paintings", captions_alone, None, 0)


def test_rows_differ_from_ours_in_one_thing(sections) -> None:
    token, sequence = sections
    of_token = {
        row: token_params(TABLE, row, token, None, token.training.seed) for row in ("ours", "dense", "discrete")
    }
    assert of_token["ours"] == replace(token, training=replace(token.training, evaluation=None))
    assert of_token["ours"].image_features == "two_level"
    for row in ("dense", "discrete"):
        assert of_token[row] == replace(of_token["ours"], image_features=row)
    ours = sequence_params(TABLE, "ours", sequence, None, sequence.training.seed, {})
    assert ours == replace(sequence, training=replace(sequence.training, evaluation=None))
    features = sequence_params(TABLE, "features", sequence, None, sequence.training.seed, {})
    assert features == replace(ours, training=replace(ours.training, painting_loss="features"))
    others = {"scst_batch_size": 3, "sample_temperature": 0.9}
    changed = sequence_params(TABLE, "dense", sequence, None, sequence.training.seed, others)
    assert changed == replace(ours, training=replace(ours.training, **others)), "the same for all rows"
    for row in ("dense", "discrete"):
        assert sequence_params(TABLE, row, sequence, None, sequence.training.seed, {}) == ours


def planned(seeds: list[int], folder: Path) -> TableItems:
    """The items of table 1 with the default profile."""
    write_profile("toybox", folder / "params.yaml")
    return table_items(TABLE, read_params(folder / "params.yaml") | {"table1": {"seeds": seeds}}, seeds)


def test_the_items_are_the_whole_matrix_in_order(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    plan = planned([0, 5], tmp_path)
    wanted = {
        f"{name}@{'-'.join(filter(None, (value, str(seed))))}"
        for name in ("token", "sequence", "features", "measured")
        for value in next((v for k, v in MATRICES[name]["matrix"].items() if k != "seed"), [""])
        for seed in (0, 5)
    }
    items = [item for item in plan.work if item.seed is not None]
    assert {item.name for item in items} == wanted and len(items) == len(wanted)
    assert plan.work[: len(items)] == items and [item.seed for item in items] == sorted(i.seed for i in items)
    for place, item in enumerate(items):
        assert set(plan.needs(item)) <= {earlier.name for earlier in items[:place]}
    samplers = MATRICES["sampler"]["matrix"]["sampler"]
    assert [item.name for item in plan.work[len(items) :]] == [f"sampler@{name}" for name in samplers]
    assert plan.last.name == "table1"
    assert samplers == list(SAMPLERS) == list(data_of("table1").SAMPLERS)
    assert set(TABLE.models) == set(MATRICES["measured"]["matrix"]["model"])
    assert {tasks_of(TABLE, model) for model in TABLE.models} == {"both", "captions", "paintings"}
    assert set(data_of("table1").CHANGES) == {*MATRICES["token"]["matrix"]["row"], "features"}


def test_what_an_item_needs_is_what_it_reads(tmp_path: Path, monkeypatch) -> None:
    """By names that the stages choose for their outs."""
    monkeypatch.chdir(REPOSITORY)
    plan = planned([0, 5], tmp_path)
    needs = {item.name: plan.needs(item) for item in plan.work}
    assert needs.pop("measured@token_ours-5") == ["token@ours-5"]
    assert needs.pop("measured@sequence_features-5") == ["features@5"]
    assert needs["features@0"] == ["token@ours-0"]
    for name, needed in needs.items():
        kind, _, what = name.partition("@")
        if kind == "sequence":
            assert needed == [f"token@{what}"]
        elif kind == "measured" and "features" not in what and "token" not in what:
            assert needed == [f"sequence@{what.removeprefix('sequence_')}"]
    assert all(needs[name] == [] for name in needs if name.startswith(("token", "sampler")))
    assert plan.shared == [
        "code", "dataset", "detector", "cluster", "shard", "image_generator", "scorer", "judge", "train_sequence",
    ]  # fmt: skip
    command = ["python", "-m", "pipelines.tables.sequence", "table1"]
    for row, token in (("features", "ours"), ("dense", "dense")):
        params = read_params(tmp_path / "params.yaml") | {"table1": {"seeds": [0, 5]}}
        started = find_item(TABLE.pipeline, command, {"row": row, "seed": "5"}, params)
        assert only_one_in(started.deps, "ablations/models") == Path(f"ablations/models/token_{token}-5")
    measured = next(item for item in plan.work if item.name == "measured@token_ours-0")
    assert plan.shown(measured) == ["ablations/measured/token_ours-0"], "and not its cost"


SECOND = """
stages:
  compared:
    matrix:
      seed: [0, 5]
    cmd: compare ${item.seed}
    deps:
      - ablations/models/sequence_dense-${item.seed}
    outs:
      - ablations/compared/${item.seed}
  second:
    cmd: show
    deps:
      - ablations/compared
    outs:
      - ablations/second
"""


@pytest.mark.parametrize("folder", ["ablations", "ablations/second"])
def test_tables_share_trainings(folder: str, tmp_path: Path, monkeypatch) -> None:
    others = ["token@dense-5", "sequence@dense-5"]
    second = replace(TABLE, name="second", folder=folder)
    for path, text in (
        (SHARED, "stages: {}"),
        (TABLE.pipeline, (REPOSITORY / TABLE.pipeline).read_text()),
        (second.pipeline, SECOND),
    ):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pipelines.tables.items.table_names", lambda: ["second", "table1"])
    write_profile("toybox", tmp_path / "params.yaml")
    params = read_params() | {"table1": {"seeds": [0, 5]}}
    plan = table_items(second, params, [5])
    assert [item.name for item in plan.work] == [*others, "compared@5"]
    assert {item.pipeline for item in plan.work[:-1]} <= {TABLE.pipeline}
    assert plan.needs(plan.work[-1]) == others[-1:]
    shown = [item.name for item in table_items(TABLE, params, [5]).work]
    assert "compared@5" not in shown and "token@ours-5" in shown


def test_samplers_are_timed_alone_on_a_gpu(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    work = planned([0], tmp_path).work
    items, samplers = (
        [item for item in work if (item.stage == "sampler") == timed] for timed in (False, True)
    )
    assert len(samplers) == len(SAMPLERS)
    assert rounds(TABLE, work, 2, 0) == [([*items, *samplers], 2)]
    assert rounds(TABLE, work, 4, 1) == [(items, 4), (samplers, 1)]
    assert rounds(TABLE, work, 2, 4) == [(items, 2), (samplers, 2)]


@pytest.mark.parametrize("seeds", [(), (1, 1), (-1,)])
def test_wrong_seeds_are_named(seeds) -> None:
    with pytest.raises(ValueError, match="seeds must be different whole numbers"):
        TransformerTableParams(seeds, None, None, None, None, None, None, None, 1, None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"taks": "captions"}, r"tables/table1/table.py: CHANGES.captions.taks: unknown key \(known here: image_features"),
        ({"tasks": "caption"}, r"CHANGES.captions.tasks: expected 'both' or 'captions' or 'paintings', found 'caption'"),
        (None, r"CHANGES.captions: expected a section with keys"),
    ],
)  # fmt: skip
def test_wrong_changes_are_named_with_row_and_key(changes, message: str, monkeypatch) -> None:
    monkeypatch.setitem(data_of("table1").CHANGES, "captions", changes)
    with pytest.raises(ParameterError, match=message):
        read_changes(TABLE, "captions")
    assert read_changes(TABLE, "ours") == Changes()
    with pytest.raises(ParameterError, match=r"CHANGES has no our \(known: ours, captions"):
        read_changes(TABLE, "our")


def test_dvc_reads_the_changes_that_python_reads() -> None:
    """It takes literals alone."""
    from dvc.utils.serialize import load_py

    read = load_py(str(REPOSITORY / TABLE.data))
    for name in ("CHANGES", "SAMPLERS"):
        assert read[name] == getattr(data_of("table1"), name)


def test_a_tables_outputs_are_its_own() -> None:
    """In its folder, or named after it."""
    for name in table_names():
        table = read_table(name)
        assert table.folder.split("/")[0] == "ablations"
        seeds = {"seeds": [0, 1]}
        params = read_params(REPOSITORY / "params.yaml")
        for item in read_items(REPOSITORY / table.pipeline, params | {name: params[name] | seeds}):
            allowed = (f"{table.folder}/", f"ablations/{name}/", table.metrics)
            samplers = () if table.samplers is None else (table.samplers.metrics,)
            assert all(out.startswith((*allowed, *samplers)) for out in item.outs), item.name
        assert (REPOSITORY / table.data).is_file()


# --- real items -------------------------------------------------------------------------------------------------------


@pytest.fixture
def run_item(module_here) -> Callable[..., str]:
    """Runs an item of table 1; what it says on stderr, progress bars included."""

    def run(clone: Clone, kind: str, *values: str) -> str:
        done = module_here(clone.folder, f"pipelines.tables.{kind}", "table1", *values)
        assert done.status == 0, done.stderr[-3000:]
        return done.stderr

    return run


def digest(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_an_unknown_row_is_named(clone: Clone, run_here) -> None:
    for name, matrix, main, arguments, message in (
        (
            "token",
            ("row", "seed"),
            token_main,
            ("our", "0"),
            "token our-0: our: no such row (known: ours, captions, paintings, dense, discrete)",
        ),
        (
            "sampler",
            ("sampler",),
            sampler_main,
            ("mask_predict",),
            "sampler mask_predict: mask_predict: no such sampler (known: mask_predict_1,",
        ),
    ):
        done = run_here(clone.folder, partial(run, name, matrix, main), "table1", *arguments)
        assert done.status == 1 and message in done.stderr and "Traceback" not in done.stderr


def test_a_row_is_trained_measured_and_compared(finished_clone: Clone, tmp_path: Path, run_item) -> None:
    """Both stages and the measurement of ours, its first stage for two seeds; stand-ins for all else that a table reads are
    copies, equal to ours."""
    clone = finished_clone.copy(tmp_path / "clone")
    outputs = clone.folder / "ablations"
    for seed in ("0", "1"):
        run_item(clone, "token", "ours", seed)
    run_item(clone, "sequence", "ours", "0")
    run_item(clone, "measured", "sequence_ours", "0")
    for model in TABLE.models:
        for seed in ("0", "1"):
            if (model, seed) != ("sequence_ours", "0"):
                shutil.copytree(outputs / "measured/sequence_ours-0", outputs / f"measured/{model}-{seed}")
    ours = digest(outputs / "models/token_ours-0")
    assert ours != digest(outputs / "models/token_ours-1")
    for model in ("token_ours-0", "sequence_ours-0"):
        config = json.loads((outputs / "models" / model / "config.json").read_text())
        assert config["answers"] == 0, "the papers' tables have two tasks"
    run_item(clone, "sampler", "mask_predict_1")
    for name in SAMPLERS:
        if name != "mask_predict_1":
            shutil.copy(outputs / "samplers/mask_predict_1.json", outputs / f"samplers/{name}.json")
    run_item(clone, "page")
    figures = json.loads((clone.folder / "metrics/table1.json").read_text())
    measured = json.loads((clone.folder / "metrics/evaluate.json").read_text())
    records = json.loads((outputs / "measured/sequence_ours-0/figures.json").read_text())
    names = {r["name"] for r in records if r["value"] is not None}
    assert "caption.cider_d" in names and not any(name.startswith("answer.") for name in names)
    assert names <= set(measured), "measured by the same code as the pipeline's own model"
    assert figures["dense.caption.cider_d.difference"] == 0 == figures["dense.caption.cider_d.low"]
    assert figures["claim.unified"] in ("holds", "undecided")
    samplers = json.loads((clone.folder / "metrics/samplers.json").read_text())
    assert samplers["samplers.mask_predict_1.painted.seconds"] > 0
    assert clone.stale() == set(), "the pipeline knows nothing of it"
    assert list((clone.folder / ".cache/training").rglob("*.pt")) == []
    clone.set_params("table1.pictures={splits: [test, ablation], limit: 36}")
    run_item(clone, "measured", "sequence_ours", "0")
    pictures = pq.read_table(outputs / "measured/sequence_ours-0/pictures.parquet")
    assert len(pictures) == 36 and pictures["caption.cider_d"].null_count == 0
    assert {name.split("-")[0] for name in pictures["image_id"].to_pylist()} == {"test", "ablation"}


@pytest.mark.slow  # test_tables_driver.py kills drivers, test_resume.py trainings
def test_a_row_ends_with_its_driver_and_goes_on(finished_clone: Clone, tmp_path: Path, run_item) -> None:
    clones = [finished_clone.copy(tmp_path / name) for name in ("undisturbed", "killed")]
    for clone in clones:
        clone.set_params("table1.token_steps=16", "machine.checkpoint_seconds=0")
    run_item(clones[0], "token", "dense", "1")
    driving = subprocess.Popen(["sleep", "36000"])
    command = clones[1].command("python", "-m", "pipelines.tables.token", "table1", "dense", "1")
    command["env"] = {**command["env"], DRIVER_VARIABLE: str(driving.pid)}
    store = clones[1].folder / ".cache/training/ablations/token@dense-1"
    with clones[1].held_trainings(saves=5):
        process = subprocess.Popen(**command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_until(lambda: list(store.rglob("held")), process)
        driving.kill()  # and nobody waits for it yet
        assert process.wait(HANG_SECONDS) == 1
    driving.wait()
    begins = re.search(r"(\d+)/16", run_item(clones[1], "token", "dense", "1"))
    assert begins and int(begins[1]) >= 5, "it goes on from a checkpoint"
    ends = [digest(clone.folder / "ablations/models/token_dense-1") for clone in clones]
    assert ends[0] == ends[1] and list(store.rglob("*.pt")) == []


@pytest.mark.parametrize(
    ("java", "mend"), [(None, "default-jre-headless"), (False, "set table1.java in params.yaml")]
)
def test_the_reason_without_meteor_says_what_mends_it(java, mend: str, monkeypatch) -> None:
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", "")
    machine = Machine(1, 0, "cpu", "float32", 1.0, "features")
    params = EvaluateParams(64, 8, 1, 1, "toybox", java, None, None)
    figures = caption_figures(
        Stage("evaluate", 0, machine, {}),
        params,
        [{"image_id": "a", "caption": "a red kite ."}],
        {"a": {"captions": ["a red kite ."]}},
        pa.table({"split": ["train"], "captions": [["a blue kite ."]]}),
    )
    mended = with_mends(figures, java, "table1.java")
    reasons = {figure.name: figure.reason or "" for figure in mended if figure.value is None}
    assert mend in reasons["caption.meteor"]
    assert ("params.yaml" in reasons["caption.meteor"]) == (java is False)
    assert "set table1.java and evaluate.corenlp in params.yaml" in reasons["caption.spice"]
