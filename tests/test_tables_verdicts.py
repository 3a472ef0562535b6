"""Verdicts and page of table 1, from synthetic measurements."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from table_measurements import SAMPLERS, TABLE, write_measured

from diptych.eval.answers.questions import Question
from pipelines.runner.params import Machine, ParameterError
from pipelines.runner.stage import Stage
from pipelines.tables import page
from pipelines.tables.answered import write_pictures
from pipelines.tables.item import TableItem
from pipelines.tables.params import TransformerTableParams
from pipelines.tables.verdicts import flat, results_of


def page_item() -> TableItem:
    """The last stage of table 1."""
    machine = Machine(1, 0, "cpu", "float32", 1.0, "features")
    return TableItem(TABLE, Stage("ablations/table1", 0, machine, {}), {}, ())


def section(seeds: Iterable[int]) -> TransformerTableParams:
    return TransformerTableParams(tuple(seeds), None, None, None, None, None, None, None, 1, None)


def made_table(tmp_path: Path, seeds: int) -> dict[str, Any]:
    page.main(page_item(), section(range(seeds)))
    return json.loads((tmp_path / "metrics/table1.json").read_text())


GOOD = {
    "dense": {"painted.clip_score_judge": 0.1, "painted.r_precision_judge": 0.1},
    "discrete": {"caption.cider_d": 0.1},
    "without_sequence": {"caption.cider_d": 0.1, "painted.clip_score_judge": 0.1},
    "without_clip": {"painted.clip_score_judge": 0.1, "painted.r_precision_judge": 0.1},
}


def opposite(gains: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    return {row: {column: -gain for column, gain in columns.items()} for row, columns in gains.items()}


@pytest.mark.parametrize(
    ("gains", "noise", "seeds", "wanted"),
    [
        (GOOD, 0.02, 3, dict.fromkeys(TABLE.claims, "holds")),
        (
            opposite({**GOOD, "without_unified": {"caption.cider_d": 0.1}}),
            0.02,
            3,
            dict.fromkeys(TABLE.claims, "fails"),
        ),
        ({}, 0.6, 3, dict.fromkeys(TABLE.claims, "undecided")),
        (GOOD, 0.02, 1, dict.fromkeys(TABLE.claims, "undecided")),
        # what does not count
        ({**GOOD, "without_clip": GOOD["without_clip"] | {"painted.r_precision_hard_judge": -0.1}}, 0.02, 3, dict.fromkeys(TABLE.claims, "holds")),
        # nothing is lost, so that no interval excludes zero
        ({}, 0.02, 3, {"unified": "holds", "two_level": "undecided", "sequence_level": "undecided", "clip_loss": "undecided"}),
    ],
)  # fmt: skip
def test_claims_have_three_outcomes(
    gains, noise: float, seeds: int, wanted: dict[str, str], tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_measured(gains, seeds, noise)
    figures = made_table(tmp_path, seeds)
    assert {name: figures[f"claim.{name}"] for name in TABLE.claims} == wanted
    assert figures["seeds"] == seeds and figures["without_unified.parameters"] == 2000
    assert "ours.caption.meteor.mean" not in figures
    shown = (tmp_path / "ablations/table1/index.html").read_text()
    lost = gains.get("without_clip", {}).get("painted.r_precision_hard_judge", 0) < 0
    assert not lost or '<span class="verdict fails">' in shown
    assert "no Java" in shown and "a &lt;red&gt; kite" in shown and "http" not in shown
    for verdict in set(wanted.values()):
        assert f'<span class="verdict {verdict}">{verdict}</span>' in shown
    assert ("Likely" in shown or "too few" in shown or "one seed has no interval" in shown) == (
        set(wanted.values()) != {"holds"}
    )


def test_only_like_is_compared_with_like(tmp_path: Path, monkeypatch) -> None:
    """Models of one task see only their pictures; other pictures and other tokens than ours' are refused."""
    monkeypatch.chdir(tmp_path)
    write_measured(GOOD, 3)
    for seed in range(3):
        for model in ("sequence_captions", "sequence_paintings", "sequence_ours", "token_ours"):
            path = Path(f"ablations/measured/{model}-{seed}/pictures.parquet")
            table = pq.read_table(path).to_pylist()
            for number, row in enumerate(table):
                own = "caption." if number < 20 else "painted."  # each picture is captioned or painted for
                row |= {name: None for name in row if "." in name and not name.startswith(own)}
            kept = {"sequence_captions": table[:20], "sequence_paintings": table[20:]}.get(model, table[::-1])
            pq.write_table(pa.Table.from_pylist(kept), path)
    for model in ("dense", "discrete", "features"):
        for seed in range(3):
            shutil.copy(
                f"ablations/measured/sequence_ours-{seed}/pictures.parquet",
                f"ablations/measured/sequence_{model}-{seed}",
            )
    assert made_table(tmp_path, 3)["claim.unified"] == "holds"
    assert "on 20 captioned and 40 painted pictures" in (tmp_path / "ablations/table1/index.html").read_text()

    figures = Path("ablations/measured/sequence_dense-1/figures.json")
    before = figures.read_text()
    records = json.loads(before)
    records[0]["model"], records[2]["model"] = "words", "words"
    figures.write_text(json.dumps(records))
    made_table(tmp_path, 3)
    other = Path("ablations/measured/sequence_ours-1/figures.json")
    other.write_text(
        other.read_text().replace('"name": "caption.bleu_4"', '"name": "caption.bleu_4", "model": "PTB"')
    )
    with pytest.raises(
        ParameterError, match=r"B@4 was measured in different ways \(PTB; words\); remove ablations/measured"
    ):
        made_table(tmp_path, 3)
    figures.write_text(before)
    fewer = Path("ablations/measured/sequence_dense-2/pictures.parquet")
    pq.write_table(pq.read_table(fewer).slice(1), fewer)
    with pytest.raises(
        ParameterError, match="sequence_dense-2 was measured on other pictures than sequence_dense-0"
    ):
        made_table(tmp_path, 3)
    for seed in (0, 1):  # then the row's seeds agree, and not with the other rows
        path = fewer.parents[1] / f"sequence_dense-{seed}/pictures.parquet"
        pq.write_table(pq.read_table(path).slice(1), path)
    with pytest.raises(
        ParameterError, match=r"rows were measured on different pictures \(.*\); remove ablations/measured"
    ):
        made_table(tmp_path, 3)


def test_a_difference_is_the_row_minus_ours(tmp_path: Path, monkeypatch) -> None:
    """In the figure's own direction, with Student's interval over three seeds where it is a figure of all pictures."""
    monkeypatch.chdir(tmp_path)
    write_measured({"dense": {"caption.cider_d": 0.1}}, 3, noise=0.0)
    name = "painted.frechet_judge"
    for model, values in (("sequence_ours", (1.0, 1.1, 1.3)), ("sequence_dense", (0.9, 0.9, 1.0))):
        for seed, value in enumerate(values):
            path = Path(f"ablations/measured/{model}-{seed}/figures.json")
            records = json.loads(path.read_text())
            next(record for record in records if record["name"] == name)["value"] = value
            path.write_text(json.dumps(records))
    figures = flat(results_of(TABLE, (0, 1, 2)))
    half = 4.302653 * 0.1 / 3**0.5  # of gaps -0.1, -0.2 and -0.3, whose deviation is 0.1
    assert {key: figures[f"dense.{name}.{key}"] for key in ("mean", "std", "difference", "low", "high")} == pytest.approx(
        {"mean": 2.8 / 3, "std": 0.1 / 3**0.5, "difference": -0.2, "low": -0.2 - half, "high": -0.2 + half}, abs=1e-6
    )
    assert figures[f"ours.{name}.std"] == pytest.approx(0.1527525, abs=1e-6)
    assert f"ours.{name}.difference" not in figures
    gap = {key: figures[f"dense.caption.cider_d.{key}"] for key in ("difference", "low", "high")}
    assert gap == pytest.approx(dict.fromkeys(gap, -0.1), abs=1e-6), "without noise all pictures and seeds agree"


def test_pictures_and_sentences_have_the_mean_of_their_questions(tmp_path: Path) -> None:
    """Pairs of one sentence are one unit, whatever their pictures."""
    path = tmp_path / "pictures.parquet"
    statements = [
        Question(name, ("true",), image_ids=pair)
        for name, pair in (("test-1-0-0", ("a", "b")), ("test-1-1-0", ("c", "d")), ("test-1-0-1", ("a", "b")))
    ]
    write_pictures(path, "nlvr2.accuracy", statements, {"test-1-0-0": 1.0, "test-1-1-0": 0.0, "test-1-0-1": 1.0})
    assert pq.read_table(path).to_pydict() == {"image_id": ["test-1--0", "test-1--1"], "nlvr2.accuracy": [0.5, 1.0]}
    questions = [Question(name, ("red",), image_ids=(picture,)) for name, picture in (("1", "a"), ("2", "b"), ("3", "a"), ("4", "c"))]
    write_pictures(path, "vqa.accuracy", questions, {"1": 1.0, "2": 0.6, "3": 0.5})
    assert pq.read_table(path).to_pydict() == {"image_id": ["a", "b"], "vqa.accuracy": [0.75, 0.6]}


def test_samplers_that_have_not_run_are_left_out_and_named(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_measured({}, 1, 0.02)
    made_table(tmp_path, 1)
    assert "Not run: " not in sampler_note(tmp_path)
    Path("ablations/samplers/rows.json").unlink()
    made_table(tmp_path, 1)
    assert "Not run: top left to bottom right; `make table1` runs them." in sampler_note(tmp_path)
    figures = json.loads((tmp_path / "metrics/samplers.json").read_text())
    assert len(figures) == len(SAMPLERS) - 1 and "samplers.rows.painted.seconds" not in figures


def sampler_note(folder: Path) -> str:
    """What the page says about its table of samplers."""
    shown = (folder / "ablations/table1/index.html").read_text()
    return shown[shown.index("Samplers, as in") :].partition("<table")[0]


def test_unfinished_seeds_are_left_out_and_none_is_an_error(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ParameterError, match=r"no seed of \[0\] has all its rows: run `make table1`"):
        made_table(tmp_path, 1)
    write_measured({}, 2)
    shutil.rmtree("ablations/measured/token_ours-1")
    page.main(page_item(), section((0, 1)))
    assert json.loads(Path("metrics/table1.json").read_text())["seeds"] == 1
    assert "seeds 1 are not finished" in Path("ablations/table1/index.html").read_text()
