"""params.yaml: typed, checked before work starts, and composed from the profiles."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
from pipeline_clone import REPOSITORY, Clone

from pipelines.dataset import DatasetParams
from pipelines.runner import check
from pipelines.runner.check import check_params, check_sources, check_splits, stages_with_sections
from pipelines.runner.params import Machine, ParameterError, read_params, read_section
from pipelines.runner.profile import profiles, write_profile

STAGES = stages_with_sections(REPOSITORY / "dvc.yaml")


@dataclass(frozen=True)
class Inner:
    share: float
    names: tuple[str, ...]
    mode: Literal["fast", "exact"] = "fast"


@dataclass(frozen=True)
class Outer:
    steps: int
    inner: Inner
    limit: int | None
    seed: int

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError("steps must be at least 1")


GOOD: dict[str, Any] = {"steps": 3, "inner": {"share": 1, "names": ["a"]}, "limit": None}
FILE = Path("params.yaml")


def read(section: Any) -> Outer:
    return read_section(Outer, "outer", {"outer": section}, FILE, provided={"seed": 7})


def test_a_good_section_becomes_typed() -> None:
    assert read(GOOD) == Outer(3, Inner(1.0, ("a",)), None, 7)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({**GOOD, "stepz": 3}, "params.yaml: outer.stepz: unknown key"),
        ({**GOOD, "steps": "3"}, "params.yaml: outer.steps: expected int, found '3' (str)"),
        ({**GOOD, "steps": 3.5}, "params.yaml: outer.steps: expected int, found 3.5 (float)"),
        ({**GOOD, "steps": True}, "params.yaml: outer.steps: expected int, found True (bool)"),
        ({**GOOD, "steps": 0}, "params.yaml: outer: steps must be at least 1"),
        ({**GOOD, "limit": "all"}, "params.yaml: outer.limit: expected int or null, found 'all' (str)"),
        ({**GOOD, "seed": 1}, "params.yaml: outer.seed: not set here"),
        ({**GOOD, "inner": {"names": ["a"]}}, "params.yaml: outer.inner.share: missing, expected float"),
        (
            {**GOOD, "inner": {"share": 1.0, "names": ["a", 2]}},
            "outer.inner.names[1]: expected str, found 2 (int)",
        ),
        (
            {**GOOD, "inner": {"share": 1.0, "names": [], "mode": "slow"}},
            "outer.inner.mode: expected 'fast' or 'exact'",
        ),
        ({**GOOD, "inner": None}, "params.yaml: outer.inner: expected a section with keys, found nothing"),
    ],
)
def test_what_is_wrong_is_named_with_file_and_key(section: Any, message: str) -> None:
    with pytest.raises(ParameterError) as caught:
        read(section)
    assert message in str(caught.value)


def test_a_missing_section_and_a_broken_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match=r"params.yaml: section 'outer' is missing"):
        read_section(Outer, "outer", {}, FILE)
    broken = tmp_path / "params.yaml"
    with pytest.raises(ParameterError, match="is missing"):
        read_params(broken)
    broken.write_text("seed: [1\nmachine: 2\n")
    with pytest.raises(ParameterError, match=r"params.yaml line \d+: not valid YAML"):
        read_params(broken)


def test_params_yaml_is_the_toybox_profile(tmp_path: Path) -> None:
    composed = tmp_path / "params.yaml"
    write_profile("toybox", composed)
    assert composed.read_text() == (REPOSITORY / "params.yaml").read_text(), (
        "run `make profile PROFILE=toybox`"
    )


@pytest.mark.parametrize("profile", profiles())
def test_every_profile_fits_the_stages(profile: str, tmp_path: Path) -> None:
    composed = tmp_path / "params.yaml"
    write_profile(profile, composed)
    params = read_params(composed)
    check_params(params, STAGES, composed)
    for section, key, value, message in (
        ("generate", "batch_size", 0, "generate: batch_size must be at least 1, is 0"),
        ("extract", "part_size", 0, "extract: part_size must be at least 1, is 0"),
        ("shard", "shard_size", -1, "shard: shard_size must be at least 1, is -1"),
        ("cluster", "source", "data/shards", "cluster: source must be data/features or a file of centroids"),
        ("generatr", "limit", 0, "generatr: unknown section"),
    ):
        wrong = {**params, section: {**params.get(section, {}), key: value}}
        with pytest.raises(ParameterError, match=message):
            check_params(wrong, STAGES, composed)
    with pytest.raises(ParameterError, match="params.yaml: seed must be 0 or more, is -1"):
        check_params({**params, "seed": -1}, STAGES, composed)
    check_splits(params, composed)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("dataset.source", "data/none"),
        ("detector.source", "data/none"),
        ("extract.source", "data/none"),
        ("cluster.source", "data/none"),
        ("image_generator.perceptual_encoder", "data/none"),
        ("scorer.network", {"model_name": "RN50", "checkpoint": "data/none"}),
        ("judge.network", {"model_name": "RN50", "checkpoint": "data/none"}),
        ("train_token.initial", "data/none"),
        ("evaluate.corenlp", "data/none"),
        ("evaluate.inception", "data/none"),
    ],
)
def test_files_of_others_are_looked_for_before_anything_runs(key: str, value: Any) -> None:
    params = read_params(REPOSITORY / "params.yaml")
    check_sources(params, REPOSITORY)
    section, _, name = key.partition(".")
    named = f"{key}.checkpoint" if isinstance(value, dict) else key
    with pytest.raises(ParameterError, match=f"data/none: no such file or folder; .* set {named} in"):
        check_sources({**params, section: {**params[section], name: value}}, REPOSITORY)


def test_a_model_to_start_from_may_be_another_pipelines(tmp_path: Path) -> None:
    params = read_params(REPOSITORY / "params.yaml")
    params["train_token"]["initial"] = "models/x_lxmert/pretrained"
    check_sources(params, REPOSITORY)
    with pytest.raises(ParameterError, match="models/x_lxmert/pretrained"):
        check_sources(params, tmp_path)


def of_coco(splits: tuple[str, ...], karpathy: str | None = None, restval: bool = False) -> dict[str, Any]:
    """The section `dataset` of one's own data, whose sources have these splits."""
    sources = [{"split": split, "images": "a", "captions": "b", "instances": None} for split in splits]
    coco = {"sources": sources, "karpathy": karpathy, "images": "a", "instances": [], "restval": restval, "limit": None}
    return {"source": "data/mine", "toybox": None, "coco": coco}


@pytest.mark.parametrize(
    ("dataset", "absent"),
    [
        (None, {"compositional": 0}),
        (of_coco(("train", "val/test")), {"restval": None, "compositional": None}),
        (of_coco(("train", "mine")), {"test": None, "val": None}),
        # a file of Karpathy's may have any split, but restval goes to train where it is asked to
        (of_coco((), "a.json", True), {"restval": None}),
    ],
)
def test_splits_that_the_data_lack_are_named_before_anything_runs(
    dataset: dict[str, Any] | None, absent: dict[str, int | None]
) -> None:
    params = read_params(REPOSITORY / "params.yaml")
    check_splits(params)
    if dataset is None:
        params["dataset"]["toybox"] |= absent
    else:
        params["dataset"] = dataset

    def named(split: str) -> dict[str, Any]:
        """Parameters that caption what every dataset here has, and paint a split."""
        sets = {"mine": {"caption": {"splits": ["train"], "limit": None}, "paint": {"splits": ["train", split], "limit": 5}}}
        return {**params, "generate": {**params["generate"], "sets": sets}}

    check_splits(named("train"))
    for split in absent:
        with pytest.raises(ParameterError, match=rf"params.yaml: generate.sets.mine.paint.splits: the dataset has no split {split}$"):
            check_splits(named(split))


@pytest.mark.parametrize(
    ("dataset", "splits"),
    [(of_coco(("train", "val/test")), ("val", "test")), (of_coco((), "a.json"), ("restval", "any"))],
)
def test_splits_that_the_data_may_have_pass(dataset: dict[str, Any], splits: tuple[str, ...]) -> None:
    sets = {"test": {"caption": {"splits": splits, "limit": None}, "paint": {"splits": splits, "limit": None}, "answer": None}}
    check_splits({"dataset": dataset, "generate": {"sets": sets}})


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("evaluate.java=true", "Java was not found.*; or set evaluate.java to false in params.yaml"),
        ("generate.sets.test.paint.splits=[restval]", "generate.sets.test.paint.splits: the dataset has no split restval"),
    ],
)
def test_a_run_ends_at_its_start(
    override: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_here
) -> None:
    """Where parameters want what is not there."""
    write_profile("smoke", tmp_path / "params.yaml", [override])
    shutil.copy(REPOSITORY / "dvc.yaml", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("JAVA_HOME", "")
    done = run_here(tmp_path, check.main)
    assert done.status == 1 and re.search(message, done.stderr) and done.stderr.count("\n") == 1, done.stderr


def test_params_that_are_a_folder_are_named(tmp_path: Path, run_here) -> None:
    (tmp_path / "params.yaml").mkdir()
    done = run_here(tmp_path, check.main)
    assert done.status == 1 and done.stderr == "params.yaml cannot be read: Is a directory\n"


@pytest.mark.parametrize("device", ["auto", "cpu", "mps", "cuda", "cuda:10"])
def test_devices_of_torch_are_known(device: str) -> None:
    assert Machine(1, 1, device, "float32", 30.0, ".cache/features").device == device


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("checkpoint_seconds", float("nan")), ("checkpoint_seconds", -5.0), ("feature_store", ""), ("ray_address", ""),
        ("shards", ""), ("shards_cache", ""), ("features_at", ""),
    ],
)  # fmt: skip
def test_a_machine_without_a_place_or_time_is_refused(key: str, value: object) -> None:
    known = {
        "threads": 1, "workers": 1, "device": "cpu", "precision": "float32", "checkpoint_seconds": 30.0,
        "feature_store": ".cache/features",
    }  # fmt: skip
    with pytest.raises(ValueError, match=f"^{key} (must be 0 or more|is empty)"):
        Machine(**(known | {key: value}))


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda1", "CPU", ""])
def test_other_devices_are_refused(device: str) -> None:
    with pytest.raises(ValueError, match=f"device must be auto, cpu, mps, cuda or cuda:N, is {device}"):
        Machine(1, 1, device, "float32", 30.0, ".cache/features")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("report.targets", {"cider_d": 1.0}, "report: targets: 'cider_d' is no name of a figure"),
        ("report.targets", {"evaluate.painted.main_object": "0.7"}, "report: targets: .* is '0.7'; write a number or"),
        (
            "generate.sets",
            {"test": {"caption": {"splits": [], "limit": None}, "paint": {"splits": ["test"], "limit": None}}},
            "generate.sets.test.caption: splits: name at least one",
        ),
    ],
)
def test_what_would_end_a_run_at_its_end_is_found_before(key: str, value: Any, message: str) -> None:
    params = read_params(REPOSITORY / "params.yaml")
    section, _, name = key.partition(".")
    with pytest.raises(ParameterError, match=message):
        check_params({**params, section: {**params[section], name: value}}, STAGES)


@pytest.mark.parametrize("profile", profiles())
def test_the_judge_is_not_the_scorer(profile: str, tmp_path: Path) -> None:
    write_profile(profile, tmp_path / "params.yaml")
    params = read_params(tmp_path / "params.yaml")
    assert params["scorer"]["network"] != params["judge"]["network"]


def test_a_stage_says_what_is_wrong_in_one_line(clone: Clone, module_here) -> None:
    params = (clone.folder / "params.yaml").read_text()
    assert "negatives:" in params
    (clone.folder / "params.yaml").write_text(params.replace("negatives:", "negativs:"))
    done = module_here(clone.folder, "pipelines.evaluate")
    assert done.status == 1
    assert "Traceback" not in done.stderr
    assert (
        done.stderr.strip()
        .splitlines()[-1]
        .startswith("evaluate: params.yaml: evaluate.negativs: unknown key")
    )


def test_a_stage_without_its_input_says_how_to_make_it(clone: Clone, module_here) -> None:
    done = module_here(clone.folder, "pipelines.detector")
    assert done.status == 1
    assert "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert "data/dataset/scenes.parquet" in last and "dvc repro" in last


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"karpathy": "annotations/k.json"}, "coco.karpathy is annotations/k.json"),
        ({"images": "data/coco2"}, "coco.images is data/coco2"),
        ({"instances": ["data/coco/../boxes.json"]}, r"coco.instances\[0\] is data/coco/../boxes.json"),
        (
            {"questions": {"vqa": [{"form": "vqa", "questions": "data/coco/q.json", "annotations": "a.json"}]}},
            r"coco.questions.vqa\[0\].annotations is a.json",
        ),
        ({"karpathy": None}, r"coco.sources\[0\].captions is c.json"),
    ],
)
def test_all_that_the_dataset_reads_lies_below_its_source(change: dict[str, Any], named: str) -> None:
    source = {"split": "train", "images": "data/coco", "captions": "c.json", "instances": None}
    coco = {
        "karpathy": "data/coco/k.json", "images": "data/coco", "instances": ["data/coco/boxes.json"], "restval": False,
        "limit": None, "sources": [source],
    }  # fmt: skip
    section = {"source": "data/coco", "toybox": None, "coco": coco}
    read_section(DatasetParams, "dataset", {"dataset": section}, FILE)
    with pytest.raises(ParameterError, match=f"params.yaml: dataset: {named}, which is not below dataset.source, data/coco"):
        read_section(DatasetParams, "dataset", {"dataset": {**section, "coco": {**coco, **change}}}, FILE)
