"""What a stage says when it starts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipelines.runner.announcement import announcement

PIPELINE = "stages:\n  shard: {desc: Shards that training reads, cmd: python}\n  report: {cmd: python}\n"


def write(path: Path, figures: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(figures))


@pytest.fixture
def say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("dvc.yaml").write_text(PIPELINE)
    return lambda name, profile="toybox": announcement(name, Path("dvc.yaml"), {"report": {"profile": profile}})


def test_minutes_are_the_last_run_s_as_fast_as_this_one(say) -> None:
    assert say("shard") == "shard: Shards that training reads", "no run is known"
    last = {"profile": "toybox", "dataset.minutes": 2.0, "shard.minutes": 3.0, "report.minutes": 0.09}
    write(Path("metrics/stages.json"), last)
    assert say("shard") == "shard: Shards that training reads; about 3 minutes"
    assert say("shard", "smoke") == "shard: Shards that training reads", "another profile takes other times"
    assert say("report") == "report; about 10 seconds"
    write(Path("metrics/stages/dataset.json"), {"minutes": 4.0, "peak_memory_gib": 1.0})
    write(Path("metrics/stages/elsewhere.json"), {"minutes": 100.0})
    assert say("shard").endswith("about 6 minutes"), "this machine takes twice as long"
    write(Path("metrics/stages/dataset.json"), {"minutes": 0.7})
    assert say("shard").endswith("about 1 minute")


@pytest.mark.parametrize("damaged", ["", "[1]", '{"profile": "toybox", "shard.minutes": "long"}'])
def test_a_damaged_file_says_nothing(say, damaged: str) -> None:
    write(Path("metrics/stages.json"), {})
    Path("metrics/stages.json").write_text(damaged)
    assert say("shard") == "shard: Shards that training reads"


def test_an_item_of_a_matrix_is_described_as_its_stage(say) -> None:
    matrix = "stages:\n  shard: {desc: Shards that training reads, cmd: python, matrix: {task: [vqa], start: [random]}}\n"
    Path("folder.yaml").write_text(matrix)
    write(Path("metrics/stages.json"), {"profile": "toybox", "shard.minutes": 3.0})
    line = announcement("x_lxmert/shard@vqa-random", Path("folder.yaml"), {"report": {"profile": "toybox"}})
    assert line == "x_lxmert/shard@vqa-random: Shards that training reads"
