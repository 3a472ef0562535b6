"""The whole pipeline with smoke parameters: it runs, promises its figures, and reruns no more than it must."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from pipeline_clone import REPOSITORY, Clone
from ruamel.yaml import YAML

from diptych.model import Diptych
from pipelines.commands.seeds import link_inputs, summary
from pipelines.runner.params import read_params

# a clone for seed 1, as `make seeds` sets it up, without its run
SET_UP = """
from pathlib import Path
from pipelines.commands.seeds import CLONES, committed_code, set_up
from pipelines.runner.params import read_params
set_up(CLONES / "1", committed_code(), 1, read_params())
"""
STAGES = list(YAML(typ="safe").load(REPOSITORY / "dvc.yaml")["stages"])
PROMISED = [
    "caption.cider_d", "caption.bleu_4", "caption.rouge_l", "caption.div_1", "caption.novel", "caption.main_fact", "caption.main_fact_unseen", "painted.main_object_unseen",
    "answer.accuracy", "answer.accuracy_place", "words_alone.accuracy", "words_alone.accuracy_place",
    *(
        f"{kind}.{name}"
        for kind in ("real", "reconstruction", "painted")
        for name in (
            "r_precision_judge", "r_precision_scorer", "clip_score_judge", "clip_score_scorer", "main_object", "second_object",
            "second_object_said",
            "r_precision_hard_judge", "r_precision_hard_nouns_judge", "objects_found", "counts_right",
        )
    ),
]  # fmt: skip


def read(clone: Clone, name: str) -> dict[str, float]:
    return json.loads((clone.folder / "metrics" / f"{name}.json").read_text())


def test_every_stage_writes_what_it_promises(finished_clone: Clone) -> None:
    assert "map50" in read(finished_clone, "detector")
    figures = read(finished_clone, "evaluate")
    assert [name for name in PROMISED if name not in figures] == []
    for name, value in figures.items():
        unbounded = any(part in name for part in ("cider", "clip_score", "frechet", "length", "vocabulary"))
        assert value >= 0 and (unbounded or value <= 1), (name, value)
    records = {record["name"]: record for record in json.loads((finished_clone.folder / "data/evaluation_figures.json").read_text())}
    for name, value in figures.items():
        if name != "frechet_images":
            assert records[name]["value"] is not None and abs(records[name]["value"] - value) < 1e-6
    assert [
        record["name"] for record in records.values() if record["value"] is None and not record["reason"]
    ] == []
    assert (
        records["caption.meteor"]["value"] is None and "evaluate.java" in records["caption.meteor"]["reason"]
    )
    costs = read(finished_clone, "stages")
    for stage in STAGES:
        if stage not in ("code", "report"):
            assert costs[f"{stage}.minutes"] > 0
            assert 0 < costs[f"{stage}.peak_memory_gib"] < 8
    page = (finished_clone.folder / "report/index.html").read_text()
    assert "data:image/" in page and "src=\"http" not in page and "href=\"http" not in page  # fmt: skip
    assert 'href="../ablations/table1/index.html"' in page and "make table1" in page
    assert (finished_clone.folder / "report/contact_sheet.png").stat().st_size > 10_000
    assert list((finished_clone.folder / ".cache/training").rglob("*.pt")) == []
    shown = finished_clone.run("dvc", "metrics", "show", "--json")
    assert shown.returncode == 0 and "painted.main_object" in shown.stdout


def test_nothing_changed_runs_nothing(finished_clone: Clone) -> None:
    assert finished_clone.repro() == []


def test_what_changes_no_result_runs_no_stage(finished_clone: Clone, tmp_path: Path) -> None:
    """A comment, a docstring and another layout, in code that nearly all stages run and in Toybox's own."""
    clone = finished_clone.copy(tmp_path / "clone")
    for name in (
        "packages/features/src/diptych/features/datasets/toybox/world.py",
        "packages/features/src/diptych/features/detector/training.py",
        "packages/model/src/diptych/model/networks/two_streams.py",
        "pipelines/train_token.py",
    ):
        path = clone.folder / name
        text = re.sub(r'^""".*?"""', '"""Other words."""', path.read_text(), count=1, flags=re.DOTALL)
        path.write_text(f"{text}\n# a remark\n".replace(" = ", "  =  "))
    assert clone.repro() == ["code"]


def test_changes_reach_those_that_read_them(finished_clone: Clone, tmp_path: Path) -> None:
    """Code its stage, and a parameter of an evaluation no training: only what shows the figures, the package's card and the report."""
    clone = finished_clone.copy(tmp_path / "clone")
    path = clone.folder / "packages/eval/src/diptych/eval/captions/facts.py"
    path.write_text(f"{path.read_text()}\nCHANGED = 1\n")
    assert clone.repro("code") == ["code"]
    assert clone.stale() == {"evaluate", "report"}, "package waits for figures, and runs where these are others"
    clone.set_params("evaluate.negatives=8")
    assert clone.stale() == {"evaluate", "package", "report"}


def test_the_package_does_what_the_pipeline_did(finished_clone: Clone, tmp_path: Path, module_here) -> None:
    """Captions and paints the test set as `generate` did, unasked; its programs agree, and its card has the figures."""
    package = finished_clone.folder / "models/package"
    # in float32, as "auto" is bfloat16 on some processors, where near ties are many
    exact = finished_clone.copy(tmp_path / "clone")
    exact.set_params("machine.precision=float32")
    made = module_here(exact.folder, "pipelines.generate")
    assert made.status == 0, made.stderr[-3000:]
    data = exact.folder / "data"
    all_rows = pq.read_table(data / "generated/test.parquet").to_pylist()
    answered = pq.read_table(data / "generated/test_answers.parquet").to_pylist()[:24]
    questions = pq.read_table(data / "dataset/questions/vqa.parquet").to_pylist()
    asked = {row["question_id"]: row["question"] for row in questions}
    real = {row["image_id"]: row["real"] for row in all_rows}
    rows, seeds = all_rows[:8], list(range(8))

    d = Diptych.from_pretrained(package, device="cpu", precision="float32")
    captions = d.caption([row["real"] for row in rows], seed=seeds)
    paintings = d.paint([row["prompt"] for row in rows], seed=seeds)
    texts = [asked[row["question_id"]] for row in answered]
    answers = d.answer([real[row["image_id"]] for row in answered], texts)
    # a near tie may fall otherwise in a batch of another size
    assert sum(one.text == row["caption"] for one, row in zip(captions, rows, strict=True)) >= 7
    painted = [one.codes.numpy().astype("<u2").tobytes() for one in paintings]
    assert sum(codes == row["codes"] for codes, row in zip(painted, rows, strict=True)) >= 7
    right = [one.text == row["answers"][0] for one, row in zip(answers, answered, strict=True)]
    assert len(right) == 24 and sum(right) >= 23
    assert max(len(d.examples(code)) for code in range(d.codebook_size)) == 2
    figures = read(finished_clone, "package")
    assert figures["export.captions"] == 1 and figures["export.cells"] > 0.999
    assert {path.name for path in (package / "exported").iterdir()} == {
        "captioner.pt2", "image_generator.pt2", "painter.pt2",
    }  # fmt: skip
    card = (package / "README.md").read_text()
    assert "| answers: VQA's accuracy |" in card
    assert "| CLIPScore by the judge, painted captions |" in card and '"guidance": 2.0' in card
    commit = finished_clone.run("git", "rev-parse", "--short", "HEAD").stdout.strip()
    assert commit in card


def test_another_k_extracts_nothing(finished_clone: Clone, tmp_path: Path) -> None:
    clone = finished_clone.copy(tmp_path / "clone")
    clone.set_params("cluster.k=24")
    assert clone.stale() == {"cluster", "package"}, "whose card shows it"
    reached = set(clone.repro("--dry", "--force", "--downstream", "cluster"))
    assert {"cluster", "shard", "image_generator", "train_token"} <= reached
    assert not reached & {"dataset", "detector", "extract", "scorer", "judge"}, "nor does it train who judges anew"


def test_other_texts_do_not_reach_who_sees_pictures(finished_clone: Clone, tmp_path: Path) -> None:
    """Another grammar reaches who reads captions, and other questions who asks them."""
    clone = finished_clone.copy(tmp_path / "clone")
    clone.set_params("dataset.toybox.captions.where=0.5")
    assert clone.repro("dataset") == ["dataset"]
    stale = clone.stale()
    assert "shard" in stale and not stale & {"detector", "extract", "cluster"}
    clone = finished_clone.copy(tmp_path / "questions")
    clone.set_params("dataset.toybox.questions.per_picture=6")
    assert clone.repro("dataset") == ["dataset"]
    stale = clone.stale()
    assert "train_token" in stale and not stale & {"detector", "extract", "shard", "scorer", "judge"}


def test_other_machine_settings_run_nothing(finished_clone: Clone, tmp_path: Path) -> None:
    clone = finished_clone.copy(tmp_path / "clone")
    clone.set_params("machine.threads=1", "machine.checkpoint_seconds=5")
    assert clone.repro() == []


def test_a_seed_that_ran_here_is_not_run_again(finished_clone: Clone, tmp_path: Path) -> None:
    clone = finished_clone.copy(tmp_path / "clone")
    (clone.folder / "data/mine").mkdir()
    (clone.folder / "data/x_lxmert").mkdir()  # another pipeline's output
    (clone.folder / "pipelines/x_lxmert/dvc.lock").write_text("schema: '2.0'\n")
    done = clone.run("python", "-m", "pipelines.commands.seeds", "--seeds", "0")
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.findall(r"^Running stage '(\w+)'", done.stdout, re.MULTILINE) == []
    own = Clone(clone.folder / ".cache/seeds/0")
    assert (own.folder / "report/index.html").is_file() and (own.folder / "data/mine").is_symlink()
    assert not (own.folder / "data/x_lxmert").exists()
    figures = read(clone, "seeds")
    assert figures["seeds"] == 1 and figures["caption.cider_d_std"] == 0
    assert figures["caption.cider_d"] == read(clone, "evaluate")["caption.cider_d"]
    assert "| caption.cider_d |" in done.stdout
    # another seed is the same run from its first stage on, and an edit that is not committed would not be in it
    (clone.folder / "pipelines/dataset.py").open("a").write("# edited\n")
    done = clone.run("python", "-m", "pipelines.commands.seeds", "--seeds", "1")
    assert done.returncode == 1 and "pipelines/dataset.py is not committed" in done.stderr
    clone.run("git", "checkout", "pipelines/dataset.py")
    clone.run("python", "-c", SET_UP)
    other = Clone(clone.folder / ".cache/seeds/1")
    assert "dataset" in other.stale()


def test_what_parameters_name_and_no_stage_makes_is_linked(clone: Clone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(clone.folder)
    (clone.folder / "models/x_lxmert/pretrained").mkdir(parents=True)
    params = read_params()
    params["train_token"]["initial"] = "models/x_lxmert/pretrained"
    link_inputs(Path("seed"), params)
    assert [path.name for path in Path("seed").rglob("*")] == ["models", "x_lxmert", "pretrained"]
    assert Path("seed/models/x_lxmert/pretrained").resolve() == clone.folder / "models/x_lxmert/pretrained"


def test_figures_of_seeds_become_means_and_deviations() -> None:
    made = {0: {"a": 1.0, "b": 2.0}, 3: {"a": 3.0, "b": 2.0, "of_one": 1.0}}
    assert summary(made) == {"seeds": 2, "a": 2.0, "a_std": pytest.approx(2**0.5, abs=1e-6), "b": 2.0, "b_std": 0.0}


def test_training_stages_are_compared_on_what_a_run_leaves(finished_clone: Clone, tmp_path: Path, module_here) -> None:
    """A seed, and another added later, for which the first is not trained again."""
    clone = finished_clone.copy(tmp_path / "clone")
    begun = []
    for seeds in (("1",), ("1", "0")):
        done = module_here(clone.folder, "pipelines.commands.compare_training_stages", "--seeds", *seeds)
        assert done.status == 0, done.stderr[-3000:]
        begun.append(done.stdout.count("sequence-level training, step 0:"))
    assert begun == [1, 0], "seed 0 is the pipeline's own run"
    figures = read(clone, "compare_training_stages")
    stage_2 = read(clone, "evaluate")
    for name in ("caption.cider_d", "painted.clip_score_judge", "painted.clip_score_scorer"):
        assert figures[f"{name}.sequence"] > 0 and figures[f"{name}.sequence_std"] >= 0
        # seed 0 is the pipeline's own run, so that the mean is near it
        assert abs(figures[f"{name}.sequence"] - stage_2[name]) < 0.5 * stage_2[name] + 0.1
    assert clone.repro() == []
