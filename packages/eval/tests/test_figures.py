"""Figures: their bootstrap intervals, their JSON and their table."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from diptych.eval.figures import (
    Figure,
    flat_values,
    interval,
    mean_figure,
    not_run,
    ratio_figure,
    resampled_means,
    sha256_of_json,
    table,
    write_figures,
)


def test_the_interval_of_a_mean_is_that_of_the_normal_law() -> None:
    values = np.random.default_rng(0).normal(3, 2, 4000)
    figure = mean_figure("x", values, seed=0)
    error = 1.96 * values.std() / np.sqrt(len(values))
    assert figure.value == pytest.approx(values.mean()) and figure.n == 4000
    assert figure.low == pytest.approx(values.mean() - error, abs=0.1 * error)
    assert figure.high == pytest.approx(values.mean() + error, abs=0.1 * error)


def test_intervals_hold_the_truth_in_nineteen_of_twenty_samples() -> None:
    generator = np.random.default_rng(1)
    held = 0
    for sample in range(200):
        figure = mean_figure("x", generator.random(150) < 0.3, seed=sample, resamples=300)
        assert figure.low is not None and figure.high is not None
        held += figure.low <= 0.3 <= figure.high
    assert 0.90 < held / 200 < 0.99


def test_resamples_repeat_by_seed_and_are_of_the_same_size_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(0).random((50, 3))
    whole = resampled_means(rows, 4, 40)
    np.testing.assert_array_equal(whole, resampled_means(rows, 4, 40))
    assert not np.array_equal(whole, resampled_means(rows, 5, 40))
    monkeypatch.setattr("diptych.eval.figures._CHUNK", 130)
    np.testing.assert_allclose(resampled_means(rows, 4, 40), whole)
    assert interval(whole[:, 0])[0] < rows[:, 0].mean() < interval(whole[:, 0])[1]


def test_a_ratio_and_a_centred_interval() -> None:
    rows = np.array([[1.0, 4], [2, 2], [0, 5], [3, 9]])
    figure = ratio_figure("x", rows, lambda means: means[:, 0] / means[:, 1], seed=0)
    assert figure.value == pytest.approx(6 / 20) and 0 <= figure.low < 0.3 < figure.high <= 1
    shifted = ratio_figure("x", rows, lambda m: m[:, 0] + 10 * (m[:, 0] != 1.5), seed=0, centred=True)
    assert shifted.value == 1.5 and shifted.low < 1.5 < shifted.high


def test_json_and_table(tmp_path: Path) -> None:
    figures = [
        Figure("clip_score", 0.772, 30, 0.7, 0.8, scale=100, seed=1),
        Figure("fid", 29.9, 30, deviation=0.5),
        Figure("broken", float("nan"), 3),
        not_run("meteor", "Java was not found; install it"),
        not_run("spice", "Java was not found; install it"),
    ]
    write_figures(figures, tmp_path / "figures.json")
    records = json.loads((tmp_path / "figures.json").read_text())
    assert [record["value"] for record in records] == [0.772, 29.9, None, None, None]
    assert records[0]["low"] == 0.7 and records[3]["reason"].startswith("Java was not found")
    assert [path.name for path in tmp_path.iterdir()] == ["figures.json"]
    assert flat_values(figures) == {"clip_score": 0.772, "fid": 29.9}
    text = table(figures)
    assert "77.2" in text and "29.9000 (sd 0.5000)" in text
    assert "not run: meteor, spice: Java was not found; install it" in text


def test_a_failed_write_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "figures.json"
    write_figures([Figure("x", 1.0, 1)], path)
    before = path.read_bytes()

    def full(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space"):
        write_figures([Figure("x", 2.0, 1)], path)
    assert path.read_bytes() == before and [each.name for each in tmp_path.iterdir()] == ["figures.json"]


def test_the_hash_is_of_content() -> None:
    assert sha256_of_json({"a": 1, "b": ["ü"]}) == sha256_of_json({"b": ["ü"], "a": 1})
    assert sha256_of_json(["a"]) != sha256_of_json(["b"])


def test_an_empty_figure_is_not_run() -> None:
    assert mean_figure("x", [], seed=0).reason is not None
