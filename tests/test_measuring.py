"""What `generate` makes of a set and `evaluate` measures of it, on pictures and questions of which the right figures are known."""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from diptych.eval.errors import UserError
from diptych.eval.images.objects import ObjectFinder
from diptych.eval.scorers.clip import ClipConfig, build_clip
from diptych.eval.scorers.inspector import Inspector, InspectorConfig
from diptych.features.detector.network import Detector, DetectorConfig
from diptych.features.manifest import write_manifest
from diptych.features.questions import write_questions
from diptych.model.answer_table import AnswerTable
from diptych.model.decoding.caption import Captions
from diptych.model.decoding.options import CaptionOptions, PaintOptions
from diptych.model.networks.architectures import build_transformer
from diptych.model.networks.config import TransformerConfig
from diptych.model.tokenizer import build_tokenizer
from pipelines.measuring import detection, figures, objects
from pipelines.measuring.answers import QUESTIONS, answers_schema, measured_answers, measured_schema
from pipelines.measuring.clip_training import write_clip
from pipelines.measuring.clips import PretrainedClip, pretrained_name, read_clip
from pipelines.measuring.drawn import Sample
from pipelines.measuring.figures import EvaluateParams, TablePictures, measure
from pipelines.measuring.generate_params import EvaluationSet, GenerateParams
from pipelines.measuring.generation import generate, write_rows
from pipelines.runner.params import Machine
from pipelines.runner.stage import Stage
from pipelines.x_lxmert import evaluate
from pipelines.x_lxmert.evaluate import Judging, answers_of, judged_statements

STAGE = Stage("measured", 3, Machine(1, 1, "cpu", "float32", 30.0, ".cache/features"), {})
TEXTS = ["is there a red kite?", "how many boats are there?", "there is a blue house."]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Shards:
    """Six pictures of random features, 4x4 of 10."""

    def __init__(self) -> None:
        self.keys = [f"p{number}" for number in range(6)]
        self.features = np.random.default_rng(0).standard_normal((6, 16, 10)).astype(np.float16)

    def grid(self, indices: Sequence[int]) -> np.ndarray:
        return self.features[indices]


@pytest.fixture(params=["prefix", "masked"])
def network(request: pytest.FixtureRequest) -> SimpleNamespace:
    """A tiny random transformer with heads for answers and pairs, its tokenizer and shards; `states(text, picture)` is what the heads
    read, by the network alone."""
    torch.manual_seed(0)
    tokenizer, table = build_tokenizer(TEXTS, min_count=1), AnswerTable(["yes", "no", "2", "red", "kite"])
    config = TransformerConfig(
        hidden_size=24, attention_heads=3, intermediate_size=40, vocab_size=len(tokenizer), codebook_size=12, feature_dim=10,
        grid_size=4, cell_positions=False, text_positions=20, dropout=0.0, code_head="linear", initial_std=0.3,
        caption_attention=request.param, language_layers=1, visual_layers=1, cross_layers=2, answers=len(table), pairs=True,
    )  # fmt: skip
    model, shards = build_transformer(config).eval(), Shards()

    @torch.inference_mode()
    def states(text: str, picture: int) -> torch.Tensor:
        ids = tokenizer.encode_questions([text], 20)
        ids = ids[:, : int((ids != tokenizer.pad).sum())]
        features = torch.from_numpy(shards.grid([picture])).float()
        if request.param == "prefix":
            return model.question_states(
                ids, None, model.visual_keys_values(model.encode_visual_prefix(features))
            )
        return model.masked_text_states(
            ids, None, model.encode_visual(features), torch.zeros(1, dtype=torch.long)
        )

    return SimpleNamespace(
        model=model,
        tokenizer=tokenizer,
        table=table,
        shards=shards,
        codebook=torch.randn(12, 10),
        states=states,
    )


def test_statements_are_judged_as_the_head_for_pairs_says(network: SimpleNamespace) -> None:
    pairs = [(left, right) for left in range(6) for right in range(6) if left != right]

    states = [network.states(TEXTS[2], picture) for picture in range(6)]

    @torch.inference_mode()
    def how_true(left: int, right: int) -> float:
        return float(network.model.pair_logits(states[left], states[right]).softmax(-1)[0, 1].logit())

    with torch.no_grad():  # as many are true as are false
        network.model.pair_head.truth.bias[1] -= float(np.median([how_true(*pair) for pair in pairs]))
    expected = {pair: "true" if how_true(*pair) > 0 else "false" for pair in pairs}
    assert sum(expected[left, right] != expected[right, left] for left, right in pairs) >= 4
    judging = Judging(
        SimpleNamespace(length=20), network.model, network.tokenizer, network.codebook, network.shards,
        device="cpu", precision="float32",
    )  # fmt: skip
    asked = [
        {"question_id": f"{left} {right}", "question": TEXTS[2], "image_ids": [f"p{left}", f"p{right}"]}
        for left, right in pairs
    ]
    judged = judged_statements(STAGE, judging, asked, 7)
    assert judged == {f"{left} {right}": said for (left, right), said in expected.items()}


def test_answers_are_the_likeliest_of_the_answer_head(network: SimpleNamespace) -> None:
    # of no, one and several questions a picture, not in the pictures' order
    asked = [
        {"question_id": f"{number} {picture}", "question": TEXTS[number], "image_ids": [f"p{picture}"]}
        for number, picture in ((0, 4), (1, 4), (0, 0), (0, 2), (1, 0), (1, 5), (2, 4))
    ]
    fine_tuned = network.model, network.tokenizer, network.codebook, network.table
    found = answers_of(STAGE, SimpleNamespace(length=20), fine_tuned, network.shards, asked, 2)
    expected = {}
    for row in asked:
        number, picture = map(int, row["question_id"].split())
        with torch.inference_mode():
            logits = network.model.answer_logits(network.states(TEXTS[number], picture))
        expected[row["question_id"]] = network.table.answers[int(logits.argmax())]
    assert found == expected and len(set(expected.values())) > 1


def question(name: str, split: str, kind: str, text: str, answer: str) -> dict[str, Any]:
    return {
        "question_id": name,
        "split": split,
        "image_ids": [f"picture_{name}"],
        "question": text,
        "answers": [answer] * 10,
        "kind": kind,
    }


# words, kind, what is right, what training says to these words, what is answered (likeliest first), the score
ASKED = [
    ("what color is it?", "color", "red", "blue", ["red", "blue"], 1),
    ("is there a kite?", "yes/no", "no", "no", ["no", "yes"], 1),
    ("how many boats are there?", "number", "3", "2", ["2", "3"], 0),
    ("what is it?", "other", "the sea", "a boat", ["kite", "boat"], 0),
]


def asked_questions() -> list[dict[str, Any]]:
    """The four of the test split, and the same words in train and val, where other answers are right."""
    rows = [question(f"t{n}", "test", kind, text, right) for n, (text, kind, right, *_) in enumerate(ASKED)]
    rows += [
        question(f"r{n}", "train", kind, text, said) for n, (text, kind, _, said, *_) in enumerate(ASKED)
    ]
    rows += [
        question(f"v{copy}{n}", "val", kind, text, right)
        for copy in range(3)
        for n, (text, kind, right, *_) in enumerate(ASKED)
    ]
    return rows


def test_answers_are_measured_by_the_likeliest_one_and_beside_those_of_the_train_split(folder: Path) -> None:
    QUESTIONS.parent.mkdir(parents=True)
    write_questions(asked_questions(), QUESTIONS)
    rows = [
        {
            "question_id": f"t{n}",
            "split": "test",
            "image_id": f"picture_t{n}",
            "answers": said,
            "probabilities": [0.6, 0.4],
        }
        for n, (*_, said, _) in enumerate(ASKED)
    ]
    pq.write_table(pa.Table.from_pylist(rows[::-1], answers_schema()), "answers.parquet")
    found, measured = measured_answers(Path("answers.parquet"), 0)
    assert {figure.name: (figure.value, figure.n) for figure in found} == {
        "answer.accuracy": (0.5, 4),
        "answer.accuracy_color": (1, 1),
        "answer.accuracy_yes_no": (1, 1),
        "answer.accuracy_number": (0, 1),
        "answer.accuracy_other": (0, 1),
        "words_alone.accuracy": (0.25, 4),
        "words_alone.accuracy_color": (0, 1),
        "words_alone.accuracy_yes_no": (1, 1),
        "words_alone.accuracy_number": (0, 1),
        "words_alone.accuracy_other": (0, 1),
    }
    for row, (text, kind, right, _, said, score) in zip(measured, ASKED[::-1], strict=True):
        assert (row["question"], row["kind"], row["references"]) == (text, kind, [right] * 10)
        assert (row["answers"], row["score"]) == (said, score)
    assert pa.Table.from_pylist(measured, measured_schema()).num_rows == 4
    pq.write_table(pa.Table.from_pylist([], answers_schema()), "none.parquet")
    assert measured_answers(Path("none.parquet"), 0) == ([], [])


def test_words_alone_learn_from_the_train_split_in_x_lxmert_too(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = evaluate.questions_file("vqa")
    for path in (file, evaluate.ANSWERED, evaluate.FIGURES):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_questions(asked_questions(), file)
    said = {f"t{n}": answers[0] for n, (*_, answers, _) in enumerate(ASKED)}
    model = SimpleNamespace(config=SimpleNamespace(answers=1))
    keys = [f"picture_{name}" for name in said]
    monkeypatch.setattr(
        evaluate, "shards_of", lambda split: {"test": SimpleNamespace(keys=keys, folder=".")}[split]
    )
    monkeypatch.setattr(evaluate, "load_transformer", lambda *_: (model, None, None))
    monkeypatch.setattr(evaluate, "load_answer_table", lambda *_: AnswerTable(["yes"]))
    monkeypatch.setattr(evaluate, "answers_of", lambda *_: said)
    params = SimpleNamespace(tasks=("vqa",), starts=("pretrained",), fine_tuning={"vqa": None}, batch_size=2)
    evaluate.main(STAGE, params)
    values = json.loads(Path("metrics/x_lxmert.json").read_text())
    assert (values["vqa.accuracy"], values["words_alone.vqa.accuracy"]) == (0.5, 0.25)
    rows = pq.read_table(evaluate.ANSWERED).to_pylist()
    assert [(row["question_id"], row["answer"], row["right"]) for row in rows] == [
        (f"t{n}", answers[0], score) for n, (*_, answers, score) in enumerate(ASKED)
    ]


class Dataset:
    """Four pictures that are their own names, with one, two and three captions."""

    def __init__(self, split: str) -> None:
        self.keys = [f"{split}{number}" for number in range(4)]

    def image_bytes(self, index: int) -> bytes:
        return self.keys[index].encode()

    def captions(self, index: int) -> list[str]:
        return [f"kite {self.keys[index]} {number}" for number in range(1 + index % 3)]


class Model:
    """Its captions are seeds, its paintings as light as their number among the prompts; it keeps what it was asked."""

    def __init__(self) -> None:
        self.tokenizer = build_tokenizer(
            [f"a kite {n} {split}." for n in range(10) for split in "ab"], min_count=1
        )
        self.asked: list[tuple[list[str], list[str], list[int]]] = []

    def captions(
        self, dataset: Dataset, indices: list[int], options: CaptionOptions, seeds: list[int]
    ) -> Captions:
        ids = self.tokenizer.encode([f"kite {seed}" for seed in seeds], options.length)
        return Captions(ids, torch.zeros(ids.shape))

    def paint(
        self, prompts: list[str], ids: torch.Tensor, options: PaintOptions, seeds: list[int], scorer: None
    ) -> tuple[torch.Tensor, list[dict[str, Any]]]:
        self.asked.append((prompts, [self.tokenizer.decode(row) for row in ids], seeds))
        pictures = torch.arange(len(prompts), dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 2, 2)
        return pictures, [{"codes": prompt.encode()} for prompt in prompts]

    def repaint(self, dataset: Dataset, indices: list[int]) -> dict[str, torch.Tensor]:
        pictures = torch.tensor(indices, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 2, 2)
        return {"reconstruction": pictures + 100}


def lightness(content: bytes) -> int:
    return int(np.asarray(Image.open(io.BytesIO(content))).max())


def test_a_set_is_made_of_each_pictures_own_captions_and_seed() -> None:
    every = Sample(("a", "b"), None)
    params = GenerateParams(
        {"test": EvaluationSet(every, every)}, 2, CaptionOptions(length=20), PaintOptions()
    )
    model, datasets = Model(), {split: Dataset(split) for split in "ab"}
    to_paint = {"a1", "a2", "a3", "b2", "b3"}
    rows = [
        row
        for batch in generate(STAGE, params, datasets, {"a0", "a3", "b2"}, to_paint, model)
        for row in batch
    ]
    assert [row["image_id"] for row in rows] == ["a0", "a1", "a2", "a3", "b2", "b3"]
    assert [row["real"].decode() for row in rows] == [row["image_id"] for row in rows]
    # a seed for each picture, whatever its batch: the run's own, and the number in the split
    seeds = {number: 3_000_009 + number for number in range(4)}
    assert {row["image_id"]: row["caption"] for row in rows if "caption" in row} == {
        "a0": f"kite {seeds[0]}.",
        "a3": f"kite {seeds[3]}.",
        "b2": f"kite {seeds[2]}.",
    }
    # captions take turns
    prompts = {"a1": "kite a1 1", "a2": "kite a2 2", "a3": "kite a3 0", "b2": "kite b2 2", "b3": "kite b3 0"}
    painted = {row["image_id"]: row for row in rows if "prompt" in row}
    assert {name: row["prompt"] for name, row in painted.items()} == prompts
    assert all(row["codes"] == prompts[name].encode() for name, row in painted.items())
    batches = [["a1"], ["a2", "a3"], ["b2", "b3"]]
    assert model.asked == [
        (
            [prompts[name] for name in batch],
            [f"{prompts[name]}." for name in batch],
            [seeds[int(name[1])] for name in batch],
        )
        for batch in batches
    ]
    assert {name: lightness(row["painted"]) for name, row in painted.items()} == {
        name: place for batch in batches for place, name in enumerate(batch)
    }
    assert {name: lightness(row["reconstruction"]) for name, row in painted.items()} == {
        name: 100 + int(name[1]) for name in painted
    }


def test_a_tables_pictures_are_read_from_their_row_groups(tmp_path: Path) -> None:
    rows = [{"image_id": f"p{n}", "painted": b"painted %d" % n, "real": b"real %d" % n} for n in range(7)]
    path = tmp_path / "generated.parquet"
    write_rows(path, [rows[:3], rows[3:4], rows[4:]])
    chosen = [1, 2, 3, 5, 6]
    made = TablePictures(path, "painted", chosen)
    for pictures in (made, pickle.loads(pickle.dumps(made))):
        assert pictures.names == ["p1", "p2", "p3", "p5", "p6"]
        for index in (4, 0, 2, 1, 3, 0):  # there and back again
            assert pictures.content(index) == b"painted %d" % chosen[index]


def thing(label: str, *attributes: str) -> dict[str, Any]:
    return {"bbox": [0.0, 0.0, 8.0, 8.0], "label": label, "attributes": list(attributes)}


KITE, BOAT, HOUSE, SEA = thing("kite", "red"), thing("boat", "blue"), thing("house", "green"), thing("sea")
SHOWN = {
    "p0": [SEA, KITE, BOAT],
    "p1": [HOUSE],
    "p2": [KITE, HOUSE],
    "p3": [BOAT, KITE],
    "p4": [HOUSE, BOAT],
}
# captioned, painted from; of the third, nobody painted; of the last, nobody wrote
WRITTEN = {
    "p0": ("a red kite.", "a red kite above a blue boat."),
    "p1": ("a blue house.", "a green house."),
    "p4": ("a green house.", None),
    "p2": ("two red kites.", "a red kite."),
    "p3": (None, "a blue boat below a red kite."),
}
PAINTED = ["p0", "p1", "p2", "p3"]
CLASSES, COLORS = ("boat", "house", "kite"), ("blue", "green", "red")
# class and colour of the main and of the second object, as the inspector reads each picture
RIGHT = [(2, 2, 0, 0), (1, 1, 0, 0), (2, 2, 1, 1), (0, 0, 2, 2)]
READ = {
    "real": RIGHT,
    "reconstruction": [RIGHT[0], RIGHT[1], RIGHT[2], (0, 0, 2, 1)],
    # main: right, colour wrong, right, class wrong; second: right, there is none, wrong, right
    "painted": [RIGHT[0], (1, 0, 0, 0), (2, 2, 1, 2), (2, 0, 2, 2)],
}
# labels and attributes that the detector finds in each painting
FOUND = [
    [("kite", "red"), ("boat", "red")],
    [("house", "green"), ("house", "green")],
    [("boat", None)],
    [("kite", "red"), ("boat", "blue")],
]


def shade(kind: str, number: int) -> int:
    """How light a picture is, which tells what it is to those who look at it."""
    return 8 * (1 + 10 * list(READ).index(kind) + number)


def file_of(kind: str, number: int) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (16, 16), (shade(kind, number),) * 3).save(content, "PNG")
    return content.getvalue()


class Reader(Inspector):
    """Reads in each picture what READ says."""

    def answers(self, images: torch.Tensor) -> torch.Tensor:
        known = {shade(kind, number): row for kind, rows in READ.items() for number, row in enumerate(rows)}
        return torch.tensor([known[int(image[0, 0, 0])] for image in images])


def find(images: torch.Tensor) -> list[list[tuple[str, str | None]]]:
    shades = {shade("painted", number): found for number, found in enumerate(FOUND)}
    return [shades.get(int(image[0, 0, 0]), []) for image in images]


@pytest.fixture
def measured(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, Any], dict[str, dict]]:
    """The figures' records by name, and the rows by picture, of a table of two row groups."""
    facts = {"width": 8, "height": 8, "sha256": "0" * 64, "path": "none"}
    figures.MANIFEST.parent.mkdir(parents=True)
    write_manifest(
        [
            {
                "image_id": name,
                "split": "test",
                "captions": [f"a picture of {name}."],
                "objects": several,
                **facts,
            }
            for name, several in SHOWN.items()
        ],
        figures.MANIFEST,
    )
    rows = []
    for name, (caption, prompt) in WRITTEN.items():
        pictures = {kind: file_of(kind, PAINTED.index(name)) for kind in READ} if prompt else {}
        rows.append({"image_id": name, "caption": caption, "prompt": prompt, **pictures})
    write_rows(folder / "generated.parquet", [rows[:2], rows[2:]])
    write_rows(folder / "unseen.parquet", [rows[1:2], rows[3:4]])
    torch.manual_seed(0)
    inspector = Reader(InspectorConfig(16, (4, 4)), CLASSES, COLORS).eval()
    config = ClipConfig(4, 16, 1, 8, 2, 8, 8, 1, 2, 20, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    clip = build_clip(config, [[prompt] for _, prompt in WRITTEN.values() if prompt], 0).eval()
    finder = ObjectFinder("known", "known", CLASSES, COLORS, find)
    monkeypatch.setattr(figures, "read_inspector", lambda device: inspector)
    monkeypatch.setattr(figures, "read_clip", lambda path, device: clip)
    monkeypatch.setattr(figures, "load_detector", lambda path, device: path)
    monkeypatch.setattr(figures, "object_finder", lambda path: finder)
    own = figures.image_settings
    # no Frechet distances of blurred pictures, and no intervals of those that are left
    monkeypatch.setattr(
        figures, "image_settings", lambda *given: replace(own(*given), blur_radii=(), frechet_resamples=0)
    )
    params = EvaluateParams(16, 3, 1, 1, "toybox", False, None, None)
    found, rows = measure(
        STAGE, params, folder / "generated.parquet", folder / "unseen.parquet", folder / "embeddings"
    )
    return {figure.name: figure for figure in found}, {row["image_id"]: row for row in rows}


def test_figures_of_known_pictures_are_exact(measured: tuple[dict[str, Any], dict[str, dict]]) -> None:
    found, rows = measured
    inspected = ("main_object", "second_object", "second_object_said")
    assert {
        kind: [(found[f"{kind}.{name}"].value, found[f"{kind}.{name}"].n) for name in inspected]
        for kind in READ
    } == {
        "real": [(1, 4), (1, 3), (1, 2)],
        "reconstruction": [(1, 4), (pytest.approx(2 / 3), 3), (0.5, 2)],
        "painted": [(0.5, 4), (pytest.approx(2 / 3), 3), (1, 2)],
    }
    # of the captions of p0, p1, p4 and p2 the second is wrong
    assert (found["caption.main_fact"].value, found["caption.main_fact"].n) == (0.75, 4)
    assert (found["caption.main_fact_unseen"].value, found["caption.main_fact_unseen"].n) == (0.5, 2)
    assert (found["painted.main_object_unseen"].value, found["painted.main_object_unseen"].n) == (0.5, 2)
    assert found["real.main_object_unseen"].value == 1
    # labels 2 of 2, 1 of 1, 0 of 2, 2 of 2; with their attributes 1 of 2, 1 of 1, 0 of 2, 2 of 2
    assert found["painted.objects_found"].value == 0.75
    assert found["painted.attributes_found"].value == pytest.approx((0.5 + 1 + 0 + 1) / 4)
    # twice the house that is there once, and said to be
    assert found["painted.counts_right"].value == found["painted.counts_said"].value == pytest.approx(0.5)
    assert found["real.objects_found"].value == 0
    verdicts = ("painted_right", "painted_class_right", "painted_color_right")
    assert {name: tuple(rows[name][verdict] for verdict in verdicts) for name in PAINTED} == {
        "p0": (True, True, True),
        "p1": (False, True, False),
        "p2": (True, True, True),
        "p3": (False, False, True),
    }
    assert {name: row.get("caption_right") for name, row in rows.items()} == {
        "p0": True,
        "p1": False,
        "p4": True,
        "p2": True,
        "p3": None,
    }
    scores = [rows[name]["painted.clip_score_judge"] for name in PAINTED]
    assert [rows[name]["painted_score"] for name in PAINTED] == scores
    assert found["painted.clip_score_judge"].value == pytest.approx(np.mean(scores))
    assert not {"painted_right", "painted_score"} & rows["p4"].keys()


def tiny_detector(attributes: list[str]) -> Detector:
    return Detector(DetectorConfig(16, (4, 4, 4, 4), 4, 6), ["boat", "kite"], attributes).eval()


def test_objects_are_found_from_half_sure_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def detections(*found: tuple[int, float]) -> dict[str, torch.Tensor]:
        return {
            "boxes": torch.tensor([[number, 0.0, number + 1, 1] for number in range(len(found))]).reshape(
                -1, 4
            ),
            "labels": torch.tensor([label for label, _ in found], dtype=torch.int64),
            "scores": torch.tensor([score for _, score in found]),
        }

    def read(_: Detector, images: torch.Tensor, boxes: list[torch.Tensor]) -> tuple[None, torch.Tensor]:
        """The attribute tells which box of its picture it was read of."""
        return None, torch.cat(boxes)[:, 0].long()

    detected = [
        detections((2, 0.9), (1, 0.4), (1, 0.5)),
        detections(),
        detections((2, 0.49)),
        detections((1, 1.0)),
    ]
    colors = ["blue", "green", "red"]
    detector = tiny_detector(colors)
    monkeypatch.setattr(detector, "detect", lambda images: detected)
    monkeypatch.setattr(objects, "read_boxes", read)
    images = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    finder = objects.object_finder(detector)
    assert (finder.labels, finder.attributes) == (("boat", "kite"), tuple(colors))
    assert finder.find(images) == [[("kite", "blue"), ("boat", "red")], [], [], [("boat", "blue")]]
    plain = tiny_detector([])
    monkeypatch.setattr(plain, "detect", lambda images: detected)
    assert objects.object_finder(plain).find(images)[0] == [("kite", None), ("boat", None)]
    assert objects.object_finder(object()) is None


def test_main_objects_need_class_and_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    detector = tiny_detector(["blue", "red"])

    def read(
        _: Detector, images: torch.Tensor, boxes: list[torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A picture's class is its first channel, the colour its second, the left edge of the main object's box its third."""
        assert torch.cat(boxes)[:, 0].tolist() == images[:, 2, 0, 0].tolist()
        return images[:, 0, 0, 0].long(), images[:, 1, 0, 0].long()

    monkeypatch.setattr(detection, "prepared", lambda _, images: images)
    monkeypatch.setattr(detection, "read_boxes", read)
    monkeypatch.setattr(detection, "BATCH_SIZE", 3)
    # a red kite each, in pictures of 8 pixels for a detector of 16; classes from 1, colours from 0
    samples = [
        {"width": 8, "height": 8, "objects": [SEA, {**KITE, "bbox": [float(n), 0.0, 8.0, 8.0]}]}
        for n in range(5)
    ]
    seen = [(2, 1), (2, 0), (1, 1), (1, 0), (2, 0)]
    images = torch.tensor([(label, color, 2 * n) for n, (label, color) in enumerate(seen)])[:, :, None, None]
    assert detection.has_main_objects(detector, samples)
    shares = detection.main_object_shares(detector, images, samples)
    assert shares == pytest.approx({"main_class": 0.6, "main_color": 0.4, "main_object": 0.2})
    assert not detection.has_main_objects(detector, [*samples, {**samples[0], "objects": [SEA]}])
    assert not detection.has_main_objects(object(), samples)


def test_a_pretrained_clip_is_read_while_its_weights_are_the_same(folder: Path) -> None:
    import open_clip

    name, tower = (
        "tiny-measuring",
        {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    )
    words = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    (folder / "configs").mkdir()
    described = {"embed_dim": 16, "vision_cfg": tower, "text_cfg": words}
    (folder / f"configs/{name}.json").write_text(json.dumps(described))
    open_clip.add_model_config(folder / "configs")
    torch.manual_seed(5)
    model = open_clip.create_model(name, pretrained=None).eval()
    weights = {key: tensor.contiguous() for key, tensor in model.state_dict().items()}
    save_file(weights, "weights.safetensors")
    judge, network = Path("models/judge"), PretrainedClip(name, "weights.safetensors")
    judge.parent.mkdir()
    assert write_clip(judge, network, None, None, 0, None, "cpu", "judge") == []
    assert pretrained_name(judge) == name
    read = read_clip(judge, "cpu").model.state_dict()
    assert all(torch.equal(read[key], tensor) for key, tensor in weights.items())
    weights["logit_scale"] = weights["logit_scale"] + 1
    save_file(weights, "weights.safetensors")
    with pytest.raises(UserError, match=r"weights\.safetensors: not the weights.*dvc repro -f judge"):
        read_clip(judge, "cpu")
    with pytest.raises(UserError, match=r"missing\.pt"):
        write_clip(
            Path("models/scorer"), PretrainedClip(name, "missing.pt"), None, None, 0, None, "cpu", "scorer"
        )
    assert not Path("models/scorer").exists()
