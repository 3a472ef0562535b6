"""The parameters of stage 2: those in which the released code differs are in every profile, and tables count joint steps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from pipeline_clone import REPOSITORY
from table_measurements import TABLE

from pipelines.runner.params import Machine, ParameterError, provided_by, read_params, read_section
from pipelines.runner.profile import write_profile
from pipelines.tables.sequence import sequence_params
from pipelines.train_sequence import TrainSequenceParams

NAMES = ("joint_tasks", "clip_weight", "gumbel_softmax", "fresh_confidence", "feature_target")


def section(folder: Path, profile: str, *overrides: str) -> TrainSequenceParams:
    """The section train_sequence of a profile."""
    path = folder / "params.yaml"
    write_profile(profile, path, overrides, REPOSITORY / "pipelines/conf")
    params = read_params(path)
    provided = provided_by(read_section(Machine, "machine", params), 0)
    return read_section(TrainSequenceParams, "train_sequence", params, path, provided)


@pytest.mark.parametrize("profile", ["smoke", "toybox", "coco"])
def test_profiles_say_what_they_do_and_follow_the_paper(tmp_path: Path, profile: str) -> None:
    training = section(tmp_path, profile).training
    written = read_params(tmp_path / "params.yaml")["train_sequence"]["training"]
    assert set(NAMES) <= written.keys()
    paper = ((), "each_step", False, "grid")
    assert (
        training.joint_tasks, training.gumbel_softmax, training.fresh_confidence, training.feature_target
    ) == paper  # fmt: skip
    assert training.clip_weight == (1.0 if profile == "coco" else 3.0)


def test_the_released_way_can_be_asked_for_and_wrong_words_are_named(tmp_path: Path) -> None:
    key = "train_sequence.training"
    released = section(
        tmp_path, "coco", f"{key}.joint_tasks=[scst,clip]", f"{key}.clip_weight=250", f"{key}.gumbel_softmax=end",
        f"{key}.fresh_confidence=true", f"{key}.feature_target=codebook",
    ).training  # fmt: skip
    assert released.turns == [("scst", "clip"), ("paint",)] and released.clip_weight == 250
    for change in ("gumbel_softmax=once", "feature_target=dense", "joint_tasks=[scst,write]", "joint_tasks=[scst]"):
        name = change.partition("=")[0]
        with pytest.raises(ParameterError, match=rf"params.yaml: {key}.*{name}"):
            section(tmp_path, "coco", f"{key}.{change}")


def test_rows_of_one_task_take_the_steps_that_train_it(tmp_path: Path) -> None:
    """Of 10 joint steps and 10 of token-level painting captions have 10 and paintings 20."""
    params = section(tmp_path, "coco", "train_sequence.training.joint_tasks=[scst,clip]")
    params = replace(params, training=replace(params.training, evaluation=None))
    of = {row: sequence_params(TABLE, row, params, 20, 0, {}).training for row in ("ours", "captions", "paintings")}
    assert {row: training.steps for row, training in of.items()} == {"ours": 20, "captions": 10, "paintings": 20}
    assert of["captions"].turns == [("scst",)] and of["paintings"].turns == [("clip",), ("paint",)]
    assert of["ours"].turns == [("scst", "clip"), ("paint",)]
