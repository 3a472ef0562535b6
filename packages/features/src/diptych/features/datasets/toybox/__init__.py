"""Toybox: a procedural world of captioned scenes, small and exact.

Every picture's boxes, classes and colours are known, every network of the pipeline can be trained
on it from scratch on two cores, and nothing needs to be downloaded.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from diptych.features.datasets.toybox.drawing import draw
from diptych.features.datasets.toybox.grammar import GrammarConfig, describe
from diptych.features.datasets.toybox.graph_questions import ask_graph
from diptych.features.datasets.toybox.questions import QuestionsConfig, ask
from diptych.features.datasets.toybox.statements import PAIRS, Statements
from diptych.features.datasets.toybox.world import (
    CLASSES,
    COLORS,
    SCENERIES,
    UNSEEN,
    Scene,
    SceneConfig,
    compose,
)
from diptych.features.errors import UserError
from diptych.features.ranges import check_at_least

__all__ = [
    "CLASSES",
    "COLORS",
    "SCENERIES",
    "UNSEEN",
    "GrammarConfig",
    "QuestionsConfig",
    "SceneConfig",
    "ToyboxConfig",
    "build_graph_questions",
    "build_questions",
    "build_statements",
    "build_toybox",
]

CAPTIONS_PER_IMAGE = 5
# Streams of random numbers: what is drawn for one purpose leaves the others as they are.
_SCENES, _CAPTIONS, _QUESTIONS, _GRAPH_QUESTIONS, _STATEMENTS = range(5)


@dataclass(frozen=True)
class ToyboxConfig:
    """Toybox's size and chances.

    `train`, `val`, `test`, `compositional` and `ablation` count pictures: `compositional` holds main
    objects in pairs of colour and class that no other split shows; `ablation` is more of `test`, for
    what compares models by smaller differences. `image_size` is the side in pixels. `questions` may be null: then
    nothing is asked.
    """

    train: int
    val: int
    test: int
    compositional: int
    ablation: int
    image_size: int
    scenes: SceneConfig
    captions: GrammarConfig
    questions: QuestionsConfig | None = None

    def __post_init__(self) -> None:
        check_at_least(self, 0, *self.splits)
        check_at_least(self, 1, "image_size")
        unknown = set(self.questions.splits if self.questions else ()) - self.splits.keys()
        if unknown:
            raise UserError(f"questions.splits: {min(unknown)!r} is none of {', '.join(self.splits)}")

    @property
    def splits(self) -> dict[str, int]:
        """How many pictures a split has; the order gives splits their numbers in seeds."""
        return {name: getattr(self, name) for name in ("train", "val", "test", "compositional", "ablation")}


def build_toybox(config: ToyboxConfig, seed: int, folder: Path) -> Iterator[dict[str, Any]]:
    """Draw every picture into `folder`/images and yield its manifest row.

    A scene depends on (seed, split, number), its captions on the same and the grammar: another
    grammar leaves the pictures as they are. Files are JPEG (quality 95, full colour resolution).
    """
    (folder / "images").mkdir(parents=True, exist_ok=True)
    bar = tqdm(total=sum(config.splits.values()), unit="picture", desc="toybox", mininterval=1)
    for split, count in config.splits.items():
        for number in range(count):
            scene = _scene(config, seed, split, number)
            caption_rng = _rng(config, seed, split, number, _CAPTIONS)
            encoded = io.BytesIO()
            draw(scene, config.image_size).save(encoded, "JPEG", quality=95, subsampling=0)
            content = encoded.getvalue()
            path = os.path.join("images", f"{_image_id(split, number)}.jpg")
            (folder / path).write_bytes(content)
            yield {
                "image_id": _image_id(split, number),
                "split": split,
                "path": path,
                "width": config.image_size,
                "height": config.image_size,
                "sha256": hashlib.sha256(content).hexdigest(),
                "captions": [
                    describe(scene, caption_rng, config.captions) for _ in range(CAPTIONS_PER_IMAGE)
                ],
                "objects": _objects(scene, config.image_size),
            }
            bar.update()
    bar.close()


def build_questions(config: ToyboxConfig, seed: int) -> Iterator[dict[str, Any]]:
    """Yield the rows of questions in VQA's manner, split by split and picture by picture; none without `questions`.

    What is asked about a picture depends on (seed, split, number), its scene and `questions`, and on no other picture.
    """
    for questions, split, number in _asked_pictures(config):
        rng = _rng(config, seed, split, number, _QUESTIONS)
        asked = ask(_scene(config, seed, split, number), rng, questions, config.scenes)
        image_id = _image_id(split, number)
        for place, question in enumerate(asked):
            question_id = f"{image_id}-{place:02d}"
            yield {"question_id": question_id, "split": split, "image_ids": [image_id], **question}


def build_graph_questions(config: ToyboxConfig, seed: int) -> Iterator[dict[str, Any]]:
    """Yield the rows of questions in GQA's manner; otherwise as build_questions."""
    for questions, split, number in _asked_pictures(config):
        rng = _rng(config, seed, split, number, _GRAPH_QUESTIONS)
        scene = _scene(config, seed, split, number)
        asked = ask_graph(scene, rng, questions.graph_per_picture, questions.colored)
        image_id = _image_id(split, number)
        ids = [f"{image_id}-g{place:02d}" for place in range(len(asked))]
        for question_id, question in zip(ids, asked, strict=True):
            entailed = [ids[place] for place in question.pop("entailed")]
            about = {"question_id": question_id, "split": split, "image_ids": [image_id]}
            yield {**about, **question, "entailed": entailed}


def build_statements(config: ToyboxConfig, seed: int) -> Iterator[dict[str, Any]]:
    """Yield the rows of statements in NLVR2's manner, PAIRS in a row for each statement; none without `questions`.

    Ids are NLVR2's identifiers, split-group-pair-statement. Pairs are chosen among all pictures of a split.
    """
    questions = config.questions
    if questions is None or not questions.statements_per_picture:
        return
    for split in questions.splits:
        count = config.splits[split]
        statements = Statements(
            [_scene(config, seed, split, number) for number in range(count)], questions.colored
        )
        for group in range(round(count * questions.statements_per_picture / PAIRS)):
            rng = _rng(config, seed, split, group, _STATEMENTS)
            for pair, statement in enumerate(statements.group(rng)):
                image_ids = [_image_id(split, number) for number in statement.pop("pictures")]
                about = {"question_id": f"{split}-{group}-{pair}-0", "split": split, "image_ids": image_ids}
                yield {**about, **statement}


def _asked_pictures(config: ToyboxConfig) -> Iterator[tuple[QuestionsConfig, str, int]]:
    if config.questions is not None:
        for split in config.questions.splits:
            for number in range(config.splits[split]):
                yield config.questions, split, number


def _scene(config: ToyboxConfig, seed: int, split: str, number: int) -> Scene:
    return compose(_rng(config, seed, split, number, _SCENES), config.scenes, unseen=split == "compositional")


def _rng(config: ToyboxConfig, seed: int, split: str, number: int, stream: int) -> np.random.Generator:
    return np.random.default_rng((seed, list(config.splits).index(split), number, stream))


def _image_id(split: str, number: int) -> str:
    return f"{split}-{number:06d}"


def _objects(scene, size: int) -> list[dict[str, Any]]:
    """Main object, second, third, the main object's equals, and last the scenery as a whole.

    The scenery is an object as "sky" and "grass" are in Visual Genome: the detector learns it, and
    grid features then tell sea from sand where nothing else is.
    """
    scale = size / 64
    objects = [
        {"bbox": [value * scale for value in thing.box], "label": thing.label, "attributes": [thing.color]}
        for thing in scene.things
    ]
    whole = {"bbox": [0.0, 0.0, float(size), float(size)], "label": scene.scenery, "attributes": []}
    return [*objects, whole]
