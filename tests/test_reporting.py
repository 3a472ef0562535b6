"""What the report's pages show: which rows are chosen, what is counted, and in which order steps stand."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from diptych.eval.report.marks import Mark
from diptych.model.networks import image_generator
from pipelines.reporting import answers, pictures
from pipelines.reporting.failures import failures, lost_pictures, main_object, share_bar, shares_by_class
from pipelines.reporting.histories import read_history
from pipelines.reporting.test_set import TestSet, add_caption_scores, chosen, galleries, read_pictures


def write(path: str, rows: list[dict[str, Any]]) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def painted_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A painting of codes is the codes, in letters."""
    monkeypatch.setattr(pictures, "paintings", lambda grids: [repr(grid.tolist()).encode() for grid in grids])


@pytest.mark.parametrize(
    ("right", "count", "low", "high"),
    # Newcombe, Statistics in Medicine 17 (1998), table I, method 3
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_a_share_has_wilsons_interval(right: int, count: int, low: float, high: float) -> None:
    bar = share_bar("colour", Counter({True: right, False: count - right}))
    assert (bar["label"], bar["share"], bar["n"]) == ("colour", right / count, count)
    assert (bar["low"], bar["high"]) == (pytest.approx(low, abs=6e-5), pytest.approx(high, abs=6e-5))


def thing(label: str, *attributes: str) -> dict[str, Any]:
    return {"label": label, "attributes": list(attributes)}


def test_the_main_object_is_the_first_with_an_attribute() -> None:
    assert main_object({"objects": [thing("sea"), thing("kite", "red"), thing("boat", "blue")]}) == (
        "kite",
        "red",
    )
    assert main_object({"objects": [thing("sea")]}) is main_object({"objects": None}) is None


def test_shares_are_of_each_class_and_colour() -> None:
    objects = {
        "kite": [thing("sea"), thing("kite", "red")],
        "boat": [thing("boat", "red")],
        "sea": [thing("sea")],
    }

    def painted(name: str, label: bool | None, color: bool | None) -> dict[str, Any]:
        return {"objects": objects[name], "painted_class_right": label, "painted_color_right": color}

    rows = [
        painted("kite", True, False),
        painted("kite", True, True),
        painted("boat", False, True),
        painted("boat", None, None),
        painted("sea", True, True),
    ]
    captioned = [{"objects": objects["boat"], "caption_right": False}]
    by_class, by_color = shares_by_class(rows, captioned)
    assert [
        (group["label"], [(bar["label"], bar["share"], bar["n"]) for bar in group["bars"]])
        for group in by_class["groups"]
    ] == [
        (
            "boat",
            [("painted, class right", 0, 1), ("painted, colour right", 1, 1), ("caption names both", 0, 1)],
        ),
        ("kite", [("painted, class right", 1, 2), ("painted, colour right", 0.5, 2)]),
    ]
    (red,) = by_color["groups"]
    assert red["label"] == "red"
    assert [(bar["share"], bar["n"]) for bar in red["bars"]] == [(2 / 3, 3), (2 / 3, 3), (0, 1)]
    assert shares_by_class([painted("sea", True, True)], []) == []


def test_what_went_wrong_is_counted() -> None:
    def painting(right: bool | None, label: bool, color: bool) -> dict[str, Any]:
        return {"painted_right": right, "painted_class_right": label, "painted_color_right": color}

    painted = [
        painting(True, True, True),
        painting(False, True, False),
        painting(False, False, False),
        painting(False, False, True),
        painting(None, False, False),
    ]

    def caption(right: bool | None, *marks: Mark) -> dict[str, Any]:
        return {"caption_right": right, "marks": [Mark("a"), *marks]}

    captioned = [
        caption(
            True, Mark("kite", True, "object"), Mark("boat", False, "object"), Mark("sea", False, "object")
        ),
        caption(False, Mark("red", False, "color"), Mark("left", False, "place")),
        caption(None, Mark("two", False, "count"), Mark("red", False, "color")),
        caption(False),  # of which nothing is known
    ]
    figures = [{"value": 0.5}, {"value": None}]
    found = failures(painted, captioned, figures, ["damaged", "small", "damaged"], 50)
    assert [(row["kind"], row["count"], row["of"]) for row in found] == [
        ("picture left out: damaged", 2, 50),
        ("picture left out: small", 1, 50),
        ("painting: class wrong", 2, 4),
        ("painting: colour wrong", 1, 4),
        ("caption: object wrong", 1, 3),
        ("caption: colour wrong", 2, 3),
        ("caption: count wrong", 1, 3),
        ("caption: place wrong", 1, 3),
        ("caption: main object missing", 1, 2),
        ("figure not run", 1, 2),
    ]
    nothing = failures([], [], [{"value": 0.0}], [], 50)
    assert [(row["kind"], row["count"], row["of"]) for row in nothing] == [
        ("picture left out", 0, 50),
        ("figure not run", 0, 1),
    ]


def test_lost_pictures_and_histories_are_read(folder: Path) -> None:
    write(
        "stored/failures.parquet", [{"image_id": "a", "kind": "damaged"}, {"image_id": "b", "kind": "small"}]
    )
    assert lost_pictures(Path("stored")) == ["damaged", "small"]
    Path("history.csv").write_text("step,loss,score\n0,1.5,\n10,,0.25\n")
    assert read_history(Path("history.csv")) == [{"step": 0, "loss": 1.5}, {"step": 10, "score": 0.25}]


def test_galleries_show_the_drawn_the_best_and_the_worst() -> None:
    scores = {"a": 0.5, "b": None, "c": 2.0, "d": 1.0, "e": 0.1}
    rows = [{"image_id": name, "score_of": score, "is_right": name < "c"} for name, score in scores.items()]
    found = galleries(rows, "score_of", "is_right", 2, 3)
    shown = {
        name: [(row["image_id"], row["score"], row["right"]) for row in found[name]]
        for name in ("best", "worst")
    }
    assert shown == {
        "best": [("c", 2.0, False), ("d", 1.0, False)],
        "worst": [("e", 0.1, False), ("a", 0.5, True)],
    }
    drawn = [row["image_id"] for row in found["random"]]
    assert drawn == ["abcde"[index] for index in chosen(5, 2, 3)] and len(set(drawn)) == 2
    assert len({tuple(chosen(5, 2, seed)) for seed in range(9)}) > 1
    found["best"][0]["real"] = b"read for the page"
    assert "real" not in rows[2]


def test_a_test_set_says_what_its_numbers_are() -> None:
    test_set = TestSet([{}] * 3, [{}] * 1234, {}, {})
    assert test_set.data == "measured on 3 captions and 1,234 painted pictures"
    assert {name: list(texts) for name, texts in test_set.choices.items()} == {
        "captions": ["random", "best", "worst"],
        "pictures": ["random", "best", "worst"],
    }
    assert "highest CIDEr-D" in test_set.choices["captions"]["best"]
    assert "lowest CLIPScore" in test_set.choices["pictures"]["worst"]


def test_caption_scores_are_cider_d_of_the_rows_own_references() -> None:
    rows = [
        {"caption": "a red kite.", "references": ["a red kite."]},
        {"caption": "a red kite.", "references": ["two blue boats."]},
        {"caption": "a house.", "references": ["a green house on the sea."]},
    ]
    add_caption_scores(rows)
    # none of its words but "." is in the second's references, and what all have counts for nothing
    assert rows[0]["caption_score"] > rows[2]["caption_score"] > rows[1]["caption_score"] == 0
    alone = [{"caption": "a red kite.", "references": ["a red kite."]}]
    add_caption_scores(alone)
    assert alone[0]["caption_score"] is None
    add_caption_scores([])


def test_pictures_are_read_by_row_from_their_groups(folder: Path) -> None:
    columns = ("real", "reconstruction", "painted", "steps")
    rows = [{"image_id": str(n), **{name: f"{name} {n}".encode() for name in columns}} for n in range(5)]
    pq.write_table(pa.Table.from_pylist(rows), "generated.parquet", row_group_size=2)
    found = read_pictures([1, 2, 4], Path("generated.parquet"))
    assert found == {n: {name: rows[n][name] for name in columns} for n in (1, 2, 4)}


def test_samples_of_a_training_end_with_its_last_evaluation(folder: Path, painted_codes: None) -> None:
    rows = [
        {
            "step": step,
            "image_id": name,
            "caption": f"{name} at {step}",
            "prompt": f"a {name}.",
            "real": name.encode(),
            "codes": np.array([step, 1], "<u2").tobytes(),
        }
        for step in (10, 20, 30, 40, 50)
        for name in ("kite", "boat")
    ]
    write("plots/train_token_samples.parquet", rows)
    found = pictures.training_samples(2)
    assert [(entry["image_id"], entry["prompt"], entry["real"]) for entry in found] == [
        ("kite", "a kite.", b"kite"),
        ("boat", "a boat.", b"boat"),
    ]
    # evenly, from the last one backwards
    assert found[1]["steps"] == [
        {"step": 20, "caption": "boat at 20", "painted": b"[20, 1]"},
        {"step": 50, "caption": "boat at 50", "painted": b"[50, 1]"},
    ]
    every = [[step["step"] for step in pictures.training_samples(most)[0]["steps"]] for most in (1, 3, 9)]
    assert every == [[50], [10, 30, 50], [10, 20, 30, 40, 50]]


def test_repainted_samples_are_the_last_evaluations(folder: Path) -> None:
    rows = [
        {"step": step, "image_id": name, "real": name.encode(), "painted": f"{name} {step}".encode()}
        for step in (1, 2, 3)
        for name in ("kite", "boat")
    ]
    write("samples.parquet", rows)
    found = pictures.repainted_samples(Path("samples.parquet"), 2)
    assert [entry["image_id"] for entry in found] == ["kite", "boat"]
    assert found[0]["real"] == b"kite"
    assert found[0]["steps"] == [{"step": 2, "painted": b"kite 2"}, {"step": 3, "painted": b"kite 3"}]


def test_steps_of_a_painting_tell_which_cells_changed(painted_codes: None) -> None:
    history = np.full((9, 64), -1, "<i4")
    for step in range(9):
        history[step:, step] = step
    row = {"prompt": "a kite.", "real": b"real", "steps": history.tobytes(), "caption": None}
    (entry,) = pictures.step_by_step([row])
    assert (entry["prompt"], entry["real"]) == ("a kite.", b"real")
    steps = entry["steps"]
    # seven of nine, the first and the last among them
    assert [step["name"] for step in steps] == [f"step {n}" for n in (1, 2, 4, 5, 6, 8, 9)]
    assert [step["changed"] for step in steps] == [[], [1], [2, 3], [4], [5], [6, 7], [8]]
    assert steps[-1]["painted"] == repr(history[8].tolist()).encode()


def test_cells_without_a_code_are_grey(monkeypatch: pytest.MonkeyPatch) -> None:
    def generator(grid: torch.Tensor) -> torch.Tensor:
        """Each cell as light as its vector says, 8 x 8 pixels."""
        cells = grid[..., 0].reshape(-1, 1, 8, 8).expand(-1, 3, -1, -1)
        return cells.repeat_interleave(8, -2).repeat_interleave(8, -1)

    monkeypatch.setattr(image_generator, "load_image_generator", lambda _: generator)
    monkeypatch.setattr(pictures, "load_codebook", lambda _: np.array([[-1.0], [0.0]], np.float32))
    codes = np.zeros(64, np.int64)
    codes[[3, 10]] = 1, -1
    (content,) = pictures.paintings([codes])
    shades = np.asarray(Image.open(io.BytesIO(content)).convert("L"))[4::8, 4::8].astype(int).flatten()
    expected = np.array([0, 128, 200])[codes]
    assert shades == pytest.approx(expected, abs=3)
    assert pictures.paintings([]) == []


def test_clusters_are_the_largest_the_smallest_and_drawn_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = np.zeros((3, 64), np.int64)
    codes[0, 5] = codes[2, 7] = 1
    codes[1, :9] = 2
    train = SimpleNamespace(keys=["x", "z"], image_bytes=lambda place: f"picture {place}".encode())
    monkeypatch.setattr(pictures, "shards_of", lambda split: {"train": train}[split])
    monkeypatch.setattr(pictures, "read_codes", lambda _: (["x", "val", "z"], codes))
    monkeypatch.setattr(pictures, "cell_patches", lambda cells: repr(sorted(cells)).encode())
    sizes = np.array([126, 2, 0, 40])  # of the train split; code 3 is of a picture that the shards lack
    found = pictures.clusters(sizes, 2, 4)
    numbers = {name: [(one["code"], one["cells"]) for one in several] for name, several in found.items()}
    assert numbers["Largest clusters"] == [(0, 126), (3, 40)]
    assert numbers["Smallest clusters"] == [(1, 2), (3, 40)]
    assert numbers["Clusters drawn by the seed"] == [[(0, 126), (3, 40), (1, 2)][n] for n in chosen(3, 2, 4)]
    assert found["Smallest clusters"][0]["patches"] == repr([(b"picture 0", 5), (b"picture 1", 7)]).encode()


def test_galleries_of_answers_show_drawn_ones_and_wrong_ones(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = {"q0": 1.0, "q1": 0.3, "q2": 0.5, "q3": 0.0}
    rows = [
        {
            "question_id": name,
            "split": "test" if number else "compositional",
            "image_id": f"p{number}",
            "score": score,
            "references": ["red", "blue", "red"] if number else ["yes"],
        }
        for number, (name, score) in enumerate(scores.items())
    ]
    shards = {
        "test": SimpleNamespace(keys=["p3", "p2", "p1"], image_bytes=lambda place: f"test {place}".encode()),
        "compositional": SimpleNamespace(keys=["p0"], image_bytes=lambda place: f"other {place}".encode()),
    }
    monkeypatch.setattr(answers, "shards_of", shards.__getitem__)
    write(str(answers.ANSWERED), rows)
    found, count = answers.answer_galleries(3, 1)
    assert count == 4 and [row["question_id"] for row in found["random"]] == [
        f"q{n}" for n in chosen(4, 3, 1)
    ]
    wrong = {row["question_id"]: row for row in found["wrong"]}
    assert set(wrong) == {"q1", "q3"}
    assert (wrong["q1"]["real"], wrong["q3"]["real"]) == (b"test 2", b"test 0")
    assert wrong["q1"]["references"] == "red (2), blue"
    every, _ = answers.answer_galleries(4, 1)
    (first,) = [row for row in every["random"] if row["question_id"] == "q0"]
    assert (first["real"], first["references"]) == (b"other 0", "yes")
    write(str(answers.ANSWERED), [row for row in rows if row["score"] >= 0.5])
    assert set(answers.answer_galleries(3, 1)[0]) == {"random"}
    pq.write_table(pa.Table.from_pylist(rows).slice(0, 0), answers.ANSWERED)
    assert answers.answer_galleries(3, 1) == ({}, 0)
