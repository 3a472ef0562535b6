"""Does a detector find in a picture what the picture should show? Objects, their attributes, their number."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diptych.eval.figures import Figure, mean_figure, not_run
from diptych.eval.images.embeddings import Encoder

FoundObject = tuple[str, str | None]
"""Label, and attribute where the detector names one."""

FindObjects = Callable[[Tensor], Sequence[Sequence[FoundObject]]]
"""Any detector: pictures uint8 [n, 3, S, S] to the objects of each, in any order."""


@dataclass(frozen=True)
class ObjectFinder:
    """A detector and the labels and attributes that it knows. key: everything that determines what it finds."""

    model: str
    key: str
    labels: tuple[str, ...]
    attributes: tuple[str, ...]
    find: FindObjects

    def encoder(self, name: str = "objects") -> Encoder:
        """What is found as an embedding, so that it is streamed and kept with the others: how many objects there are of
        each label and attribute, [labels x (attributes + 1)], the last column without attribute."""
        columns = len(self.attributes) + 1

        def encode(images: Tensor) -> Tensor:
            counts = torch.zeros(len(images), len(self.labels), columns)
            for row, several in zip(counts, self.find(images), strict=True):
                for label, attribute in several:
                    column = self.attributes.index(attribute) if attribute is not None else columns - 1
                    row[self.labels.index(label), column] += 1
            return counts.flatten(1)

        key = f"objects {self.labels} {self.attributes} {self.key}"
        return Encoder(name, self.model, key, len(self.labels) * columns, encode)


def object_figures(
    kind: str,
    found: np.ndarray,
    wanted: Sequence[Sequence[Mapping[str, Any]]],
    finder: ObjectFinder,
    seed: int,
    said: Sequence[Mapping[str, int]] | None = None,
    **facts: Any,
) -> list[Figure]:
    """Semantic accuracy of pictures: the means over pictures of these shares, 0..1.

    `KIND.objects_found`: of a picture's different labels those that are found at all. `KIND.attributes_found`: of its
    different labels with attributes those that are found together. `KIND.counts_right`: of its different labels those
    that are found exactly as often as they are there. With `said`, what each picture's sentence numbers
    (:func:`diptych.eval.captions.facts.said_counts` of `finder.labels`), `KIND.counts_said`: of those labels the ones that are
    found exactly as often as it says.

    found: rows of `ObjectFinder.encoder` [n, width]. wanted: for each picture the objects that are there, with "label" and
    "attributes", as in COCO-like manifests; labels and attributes that the finder does not know are left out, and so are
    pictures without any.
    """
    counts = found.reshape(len(found), len(finder.labels), -1)
    shares: dict[str, list[float]] = {"objects_found": [], "attributes_found": [], "counts_right": []}
    lacking = dict.fromkeys(shares, "no picture has an object that the detector knows")
    if said is not None:
        shares["counts_said"] = []
        lacking["counts_said"] = "no sentence says how many there are of an object that the detector knows"
        described = {o["label"] for objects in wanted for o in objects or () if o["attributes"]}
        for row, counted in zip(counts, said, strict=True):
            # Where objects have attributes, what has none is scenery: a field is there once, or said to be.
            numbers = {label: n for label, n in counted.items() if not described or label in described}
            if numbers:
                right = [row[finder.labels.index(label)].sum() == n for label, n in numbers.items()]
                shares["counts_said"].append(float(np.mean(right)))
    for row, objects in zip(counts, wanted, strict=True):
        truth = np.zeros_like(row)
        for thing in objects or ():
            if thing["label"] not in finder.labels:
                continue
            label = finder.labels.index(thing["label"])
            known = [name for name in thing["attributes"] or () if name in finder.attributes]
            truth[label, finder.attributes.index(known[0]) if known else -1] += 1
        labels = truth.sum(1) > 0
        if labels.any():
            shares["objects_found"].append(float((row.sum(1) > 0)[labels].mean()))
            shares["counts_right"].append(float((row.sum(1) == truth.sum(1))[labels].mean()))
        pairs = truth[:, :-1] > 0
        if pairs.any():
            shares["attributes_found"].append(float((row[:, :-1] > 0)[pairs].mean()))
    return [
        mean_figure(f"{kind}.{name}", values, seed, model=finder.model, **facts)
        if values
        else not_run(f"{kind}.{name}", lacking[name])
        for name, values in shares.items()
    ]
