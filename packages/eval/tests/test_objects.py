"""Semantic accuracy by a detector that is a plain function."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from diptych.eval.captions.facts import said_counts
from diptych.eval.figures import flat_values
from diptych.eval.images.embeddings import EmbedSettings, FolderPictures, embed
from diptych.eval.images.objects import FoundObject, ObjectFinder, object_figures


def find(images: Tensor) -> list[list[FoundObject]]:
    """A red picture shows two red kites and a boat, any other picture nothing."""
    kites: list[FoundObject] = [("kite", "red"), ("kite", "red"), ("boat", None)]
    return [kites if image[0].float().mean() > 128 else [] for image in images]


FINDER = ObjectFinder("a rule", "1", ("boat", "kite"), ("blue", "red"), find)


def thing(label: str, *attributes: str) -> dict:
    return {"label": label, "attributes": list(attributes)}


def figures(*wanted: list[dict]) -> dict[str, float]:
    red = FINDER.encoder().encode(torch.full((len(wanted), 3, 4, 4), 255, dtype=torch.uint8)).numpy()
    return flat_values(object_figures("x", red, wanted, FINDER, seed=0))


def test_shares_are_of_what_should_be_there() -> None:
    right = figures([thing("kite", "red"), thing("kite", "red"), thing("boat")])
    assert right == {"x.objects_found": 1, "x.attributes_found": 1, "x.counts_right": 1}
    wrong = figures([thing("kite", "blue"), thing("boat", "blue"), thing("boat", "red")])
    assert wrong == {"x.objects_found": 1, "x.attributes_found": 0, "x.counts_right": 0}
    half = figures([thing("kite", "red"), thing("kite", "blue")], [thing("boat")])
    assert half == {"x.objects_found": 1, "x.attributes_found": 0.5, "x.counts_right": 1}
    assert figures([thing("house", "green")]) == {}


def test_counts_are_those_of_the_sentences() -> None:
    """In each picture the rule finds two kites and a boat."""
    wanted = [[thing("kite", "red"), thing("boat", "blue")]] * 4
    found = FINDER.encoder().encode(torch.full((4, 3, 4, 4), 255, dtype=torch.uint8)).numpy()
    sentences = ["two kites and a boat", "a kite and a boat", "three kites", "a tree"]
    said = [said_counts(sentence, FINDER.labels) for sentence in sentences]
    figure = object_figures("x", found, wanted, FINDER, 0, said)[-1]
    assert (figure.name, figure.value, figure.n) == ("x.counts_said", pytest.approx((1 + 0.5 + 0) / 3), 3)
    # a boat that never has an attribute is scenery, where kites have some
    scenery = object_figures("x", found[:2], [[thing("kite", "red"), thing("boat")]] * 2, FINDER, 0, said[:2])
    assert scenery[-1].value == pytest.approx(0.5)
    nothing = object_figures("x", found[:1], wanted[:1], FINDER, 0, said[3:])[-1]
    assert nothing.value is None and "no sentence says how many" in nothing.reason


def test_found_objects_are_streamed_with_the_embeddings(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    for name, colour in (("a", (255, 0, 0)), ("b", (0, 0, 255)), ("c", (255, 0, 0))):
        Image.new("RGB", (20, 20), colour).save(tmp_path / "pictures" / f"{name}.png")
    pictures = FolderPictures(tmp_path / "pictures")
    rows = embed(pictures, [FINDER.encoder()], EmbedSettings(image_size=8), tmp_path / "store").rows(
        "objects"
    )
    assert rows.shape == (3, 6) and rows.sum(1).tolist() == [3, 0, 3]
    found = object_figures("x", rows, [[thing("kite", "red")]] * 3, FINDER, seed=0)
    assert {f.name: f.value for f in found} == {
        "x.objects_found": pytest.approx(2 / 3), "x.attributes_found": pytest.approx(2 / 3), "x.counts_right": 0,
    }  # fmt: skip
    assert found[0].model == "a rule" and np.isfinite(found[0].low)
