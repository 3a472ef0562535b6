"""X-LXMERT's pipeline with smoke parameters: it runs from the finished clone, measures, and reruns no more than it must."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
from cluster_clone import on_cluster
from cluster_clone import run as run_stage
from pipeline_clone import Clone
from ray_nodes import cluster_of_nodes
from test_resume import digest, watched_trainings

from diptych.eval.answers.questions import Question
from diptych.features.errors import UserError
from diptych.model.networks.config import read_config
from pipelines.runner import check
from pipelines.runner.stage import run
from pipelines.runner.writing import remove
from pipelines.x_lxmert import fine_tune
from pipelines.x_lxmert.evaluate import MeasuredTask, about_pictures_of
from pipelines.x_lxmert.params import Params
from pipelines.x_lxmert.questions import balanced_to_train

PIPELINE = "pipelines/x_lxmert/dvc.yaml"
TASKS = "x_lxmert.tasks=[gqa,nlvr2]"


@pytest.fixture(scope="module")
def answered(finished_clone: Clone, tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A clone after `make x-lxmert`."""
    clone = finished_clone.copy(tmp_path_factory.mktemp("x_lxmert") / "clone")
    clone.set_params(TASKS)
    ran = clone.repro_of(PIPELINE)
    assert ran[:2] == ["questions", "pretrain"] and ran[-2:] == ["evaluate", "report"]
    assert sorted(ran[2:-2]) == [
        f"fine_tune@{task}-{start}" for task in ("gqa", "nlvr2") for start in ("pretrained", "random")
    ]
    return clone


def test_it_measures_what_it_promises(answered: Clone) -> None:
    figures = json.loads((answered.folder / "metrics/x_lxmert.json").read_text())
    prefixes = ("", "random.", "words_alone.")
    # nobody may be right about what entails others
    may_lack = {f"{prefix}gqa.consistency" for prefix in prefixes}
    for task, names in (("gqa", ("accuracy", "consistency", "validity")), ("nlvr2", ("accuracy", "consistency"))):
        promised = {f"{prefix}{task}.{name}" for prefix in prefixes for name in names}
        assert promised - figures.keys() <= may_lack
        assert all(0 <= figures[name] <= 1 for name in promised & figures.keys())
        gain = figures[f"{task}.accuracy"] - figures[f"random.{task}.accuracy"]
        assert figures[f"gain.{task}.accuracy"] == pytest.approx(gain, abs=2e-6)
    records = {one["name"]: one for one in json.loads((answered.folder / "metrics/x_lxmert_figures.json").read_text())}
    assert records["gain.gqa.accuracy"]["low"] <= records["gain.gqa.accuracy"]["high"]
    rows = pq.read_table(answered.folder / "data/x_lxmert/answers.parquet").to_pylist()
    right = [row["right"] for row in rows if row["task"] == "nlvr2" and row["start"] == "random"]
    assert sum(right) / len(right) == pytest.approx(figures["random.nlvr2.accuracy"], abs=1e-6)
    page = (answered.folder / "ablations/x_lxmert/index.html").read_text()
    assert "GQA" in page and "data:image/" in page and 'src="http' not in page


def test_the_heads_are_those_of_the_task(answered: Clone) -> None:
    models = answered.folder / "models/x_lxmert"
    pretrained = read_config(models / "pretrained/config.json")
    assert pretrained.matching and pretrained.answers and not pretrained.pairs and not pretrained.regresses
    assert pretrained.caption_attention == "prefix"
    statements = read_config(models / "nlvr2_pretrained/config.json")
    assert statements.pairs and statements.answers == 0
    assert json.loads((models / "gqa_random/answers.json").read_text())


def test_a_task_s_parameter_runs_that_task_alone(answered: Clone, tmp_path: Path) -> None:
    clone = answered.copy(tmp_path / "clone")
    assert clone.stale(PIPELINE) == set()
    clone.set_params(TASKS, "x_lxmert.fine_tuning.gqa.training.batch_size=4")
    assert clone.stale(PIPELINE) == {"evaluate", "fine_tune@gqa-pretrained", "fine_tune@gqa-random", "report"}


@pytest.mark.slow  # test_resume.py kills the same loop
def test_a_killed_pretraining_goes_on(
    answered: Clone, tmp_path: Path, module_here, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And ends as the undisturbed one did."""
    clone = answered.copy(tmp_path / "clone")
    clone.set_params(TASKS, "machine.checkpoint_seconds=0", "machine.processes=1")
    model = clone.folder / "models/x_lxmert/pretrained/model.safetensors"
    command = ("python", "-m", "pipelines.x_lxmert.pretrain")
    undisturbed = model.read_bytes()
    clone.kill_held(clone.folder / ".cache/training/x_lxmert/pretrain", *command)
    assert model.read_bytes() == undisturbed
    remove(model)  # so that what is compared is what the resumed run wrote
    went_on = watched_trainings(monkeypatch)
    done = module_here(clone.folder, command[-1])
    assert done.status == 0, done.stderr[-2000:]
    assert went_on(), "it began anew"
    assert model.read_bytes() == undisturbed


@pytest.mark.slow
def test_a_cluster_answers_the_same(answered: Clone, tmp_path: Path) -> None:
    """Questions and statements."""
    outs = ["data/x_lxmert/answers.parquet", "metrics/x_lxmert.json"]
    undisturbed = digest(answered, outs)
    with cluster_of_nodes(2) as cluster:
        clone = on_cluster(answered, tmp_path / "clone", cluster, outs, 1, TASKS)
        run_stage(clone, "x_lxmert.evaluate")
    assert digest(clone, outs) == undisturbed


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("x_lxmert.tasks=[vqa,puzzles]", "params.yaml: x_lxmert.tasks"),
        ("x_lxmert.fine_tuning.nlvr2.answers={min_count: 1}", "fine_tuning.nlvr2.answers: null for nlvr2"),
        ("x_lxmert.starts=[random]", "of starts at least pretrained"),
        ("x_lxmert.questions.toybox=null", "give one of toybox and files"),
        ("x_lxmert.pretraining.training.batch_size=0", "batch_size must be at least 1"),
    ],
)
def test_a_slip_is_one_line(clone: Clone, override: str, message: str, run_here) -> None:
    clone.set_params(override)
    done = run_here(clone.folder, check.main)
    assert done.status == 1 and message in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_an_unknown_item_is_one_line(clone: Clone, run_here) -> None:
    command = partial(run, "x_lxmert/fine_tune", Params, fine_tune.main, ("task", "start"))
    done = run_here(clone.folder, command, "vqa", "scratch")
    assert done.status == 1 and "scratch: no such start (known: pretrained, random)" in done.stderr
    assert "Traceback" not in done.stderr


def test_questions_about_pictures_without_features_are_left_out_and_told(capsys: pytest.CaptureFixture[str]) -> None:
    """Such as pictures that could not be read."""
    shards = SimpleNamespace(keys=["a", "b"], folder="data/shards")
    rows = [{"image_ids": ["a"]}, {"image_ids": ["a", "c"]}, {"image_ids": ["b", "a"]}]
    assert about_pictures_of(shards, rows, "nlvr2") == [rows[0], rows[2]]
    assert "nlvr2: 1 of 3 questions are about pictures without features" in capsys.readouterr().out
    with pytest.raises(UserError, match="no question of the split test is about a picture of data/shards"):
        about_pictures_of(shards, rows[1:2], "nlvr2")
    # VQA's accuracy is of several people's answers; one that has one, such as Visual Genome's, would end the measuring
    answered = [{"image_ids": ["a"], "answers": answers} for answers in (["red"] * 10, ["red"], [])]
    assert about_pictures_of(shards, answered, "vqa") == answered[:1]
    assert "vqa: 2 of 3 questions have fewer than two answers, left out" in capsys.readouterr().out


def test_gqa_s_answers_are_measured_as_they_are_written() -> None:
    """A model says what VQA's normalisation leaves of them."""
    training = [{"answers": [answer]} for answer in ("t shirt", "t-shirt", "t-shirt", "none")]
    questions = [Question("1", ("t-shirt",), image_ids=("a",)), Question("2", ("none",), image_ids=("b",))]
    measured = MeasuredTask("gqa", questions, 0, training)
    assert measured.add({"1": "t shirt", "2": "0"}, "") == {"1": 1.0, "2": 1.0}


def test_the_gain_on_statements_is_drawn_by_sentences() -> None:
    """Its four pairs are not independent."""
    questions = [
        Question(f"test-1-{pair}-{sentence}", (truth,), image_ids=(f"{pair}l", f"{pair}r"))
        for sentence in range(2) for pair, truth in enumerate(("true", "true", "false", "false"))
    ]  # fmt: skip
    measured = MeasuredTask("nlvr2", questions, 0)
    for prefix in ("", "random."):
        measured.add({one.question_id: "true" for one in questions}, prefix)
    (gain,) = measured.gains()
    assert gain.value == 0 and "interval over 2 sentences" in gain.detail


def test_unbalanced_questions_are_not_trained_on() -> None:
    rows = [
        {"split": split, "balanced": balanced} for split in ("train", "test") for balanced in (True, False, None)
    ]
    assert list(balanced_to_train(rows)) == [rows[0], rows[2], *rows[3:]]
