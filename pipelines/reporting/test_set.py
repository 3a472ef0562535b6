"""Captions and paintings of the test set, with what is true of their pictures, and a choice of them to show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diptych.eval.captions.cider import CiderD
from diptych.eval.captions.tokens import tokenize
from diptych.eval.report.marks import mark_words

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class TestSet:
    """captioned, painted: rows of :func:`rows_of_test_set`. captions, pictures: galleries of them by choice, with their pictures."""

    __test__ = False  # pytest

    captioned: list[dict[str, Any]]
    painted: list[dict[str, Any]]
    captions: dict[str, list[dict[str, Any]]]
    pictures: dict[str, list[dict[str, Any]]]

    @property
    def data(self) -> str:
        """What was measured, in words."""
        return f"measured on {len(self.captioned):,} captions and {len(self.painted):,} painted pictures"

    @property
    def choices(self) -> dict[str, dict[str, str]]:
        """What the choices of the galleries mean."""
        return {
            "captions": meanings(len(self.captioned), "CIDEr-D of the caption against its references"),
            "pictures": meanings(len(self.painted), "CLIPScore of painting and sentence by the judge"),
        }


def read_test_set(captions: int, pictures: int, seed: int, generated: Path, verdicts: Path) -> TestSet:
    """The test set that a stage has generated and another measured. captions, pictures: how many of each choice: drawn by the seed,
    the best and the worst."""
    rows = rows_of_test_set(generated, verdicts)
    painted = [row for row in rows if row["prompt"] is not None]
    captioned = [row for row in rows if row["caption"] is not None]
    add_caption_scores(captioned)
    of_pictures = galleries(painted, "painted_score", "painted_right", pictures, seed)
    of_captions = galleries(captioned, "caption_score", "caption_right", captions, seed + 1)
    shown = [row for choice in (*of_pictures.values(), *of_captions.values()) for row in choice]
    contents = read_pictures(sorted({row["row"] for row in shown}), generated)
    for row in shown:
        row |= contents[row["row"]]
    return TestSet(captioned, painted, of_captions, of_pictures)


def rows_of_test_set(generated: Path, verdicts: Path) -> list[dict[str, Any]]:
    """Captions and prompts of the test set with what is true of their pictures, the marks of their words and the
    verdicts of `evaluate`; `row` is their place in the file. Pictures are not read: there may be tens of thousands."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    from diptych.features.manifest import read_manifest

    rows = pq.read_table(generated, columns=["image_id", "caption", "prompt"])
    manifest = read_manifest(Path("data/dataset/manifest.parquet"))
    labels, colors = vocabulary(manifest)
    columns = ["image_id", "captions", "objects", "width", "height"]
    chosen = manifest.filter(pc.is_in(manifest["image_id"], value_set=rows["image_id"].combine_chunks()))
    known = {row["image_id"]: row for row in chosen.select(columns).to_pylist()}
    judged = pq.read_table(verdicts).to_pylist()
    result = []
    for number, (row, verdict) in enumerate(zip(rows.to_pylist(), judged, strict=True)):
        facts = known[row["image_id"]]
        row |= verdict | {"row": number, "references": facts["captions"], "objects": facts["objects"]}
        if row["caption"] is not None:
            size = (facts["width"], facts["height"])
            row["marks"] = mark_words(row["caption"], facts["objects"], labels, colors, size)
        result.append(row)
    return result


def vocabulary(manifest: pa.Table) -> tuple[set[str], set[str]]:
    """All classes and all attributes of the manifest's objects."""
    import pyarrow.compute as pc

    things = pc.list_flatten(manifest["objects"])
    labels = pc.unique(pc.struct_field(things, "label"))
    attributes = pc.unique(pc.list_flatten(pc.struct_field(things, "attributes")))
    return set(labels.to_pylist()), set(attributes.to_pylist())


def read_pictures(rows: Sequence[int], generated: Path) -> dict[int, dict[str, Any]]:
    """`real`, `reconstruction`, `painted` and `steps` of some rows of the test set, by row, a row group at a time."""
    import pyarrow.parquet as pq

    file = pq.ParquetFile(generated)
    found: dict[int, dict[str, Any]] = {}
    start = 0
    for group in range(file.num_row_groups):
        stop = start + file.metadata.row_group(group).num_rows
        wanted = [row for row in rows if start <= row < stop]
        if wanted:
            table = file.read_row_group(group, columns=["real", "reconstruction", "painted", "steps"])
            chosen = table.take([row - start for row in wanted]).to_pylist()
            found |= dict(zip(wanted, chosen, strict=True))
        start = stop
    return found


def add_caption_scores(rows: Sequence[dict[str, Any]]) -> None:
    """`caption_score`: CIDEr-D against the row's references; document frequencies are those of all rows. None where they
    do not tell the rows apart."""
    references = [[tokenize(text) for text in row["references"]] for row in rows]
    scores: Sequence[float | None] = []
    if rows:
        metric = CiderD(references)
        values = metric.score([tokenize(row["caption"]) for row in rows])[1]
        scores = [None] * len(rows) if metric.missing else values.tolist()
    for row, score in zip(rows, scores, strict=True):
        row["caption_score"] = score


def galleries(
    rows: Sequence[Mapping[str, Any]], score: str, right: str, wanted: int, seed: int
) -> dict[str, list[dict[str, Any]]]:
    """`wanted` rows drawn by the seed, those with the highest and those with the lowest score, as copies."""
    ranked = sorted((row for row in rows if row[score] is not None), key=lambda row: row[score], reverse=True)
    choices = {
        "random": [rows[index] for index in chosen(len(rows), wanted, seed)],
        "best": ranked[:wanted],
        "worst": ranked[::-1][:wanted],
    }
    return {
        name: [{**row, "score": row[score], "right": row[right]} for row in several]
        for name, several in choices.items()
    }


def meanings(count: int, score: str) -> dict[str, str]:
    """What the choices of a gallery are."""
    return {
        "random": f"Drawn from all {count:,} by the seed; nobody picked them. The number is the {score}.",
        "best": f"Of all {count:,} those with the highest {score}.",
        "worst": f"Of all {count:,} those with the lowest {score}.",
    }


def chosen(count: int, wanted: int, seed: int) -> list[int]:
    """`wanted` of `count` numbers, drawn by `seed` and nothing else: nobody picks the good ones."""
    import numpy as np

    return np.random.default_rng(seed).permutation(count)[:wanted].tolist()
