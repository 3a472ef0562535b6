"""Measure captions and pictures of the test set (UMT 5.1), beside real pictures and reconstructions as ceilings."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diptych.eval.captions import caption_metrics, names_object
from diptych.eval.clip import PROMPT
from diptych.eval.frechet import frechet_distance
from diptych.eval.inspector import Inspector, load_inspector, main_and_second, shares_right
from diptych.eval.retrieval import clip_scores, r_precision
from diptych.features.images import read_image, resize_square, to_uint8_tensor
from diptych.features.manifest import read_manifest
from pipelines.clips import read_clip
from pipelines.params import at_least
from pipelines.stage import Stage, run

if TYPE_CHECKING:
    from torch import Tensor

    from diptych.eval.clip import Clip

KINDS = ("real", "reconstruction", "painted")
COMPOSITIONAL = "compositional"  # the split whose main objects no training picture shows


@dataclass(frozen=True)
class EvaluateParams:
    """image_size: pixels per side at which all kinds are compared; negatives, folds: of R-precision."""

    image_size: int
    batch_size: int
    negatives: int
    folds: int

    def __post_init__(self) -> None:
        at_least(self, 1, "image_size", "batch_size", "negatives", "folds")


def main(stage: Stage, params: EvaluateParams) -> None:
    """Write metrics/evaluate.json, and what is right in each test item to data/evaluation.parquet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    known = read_known()
    rows = with_facts(read_generated("test"), known)
    metrics = measure(stage, params, rows)
    unseen = Path(f"data/generated/{COMPOSITIONAL}.parquet")
    inspector = read_inspector(stage.device)
    if inspector and unseen.is_file():
        metrics |= unseen_figures(params, inspector, with_facts(read_generated(COMPOSITIONAL), known))
    stage.write_metrics("metrics/evaluate.json", metrics)
    schema = pa.schema(
        [("image_id", pa.string()), ("caption_right", pa.bool_()), ("painted_right", pa.bool_())]
    )
    with stage.write("data/evaluation.parquet") as path:
        pq.write_table(pa.Table.from_pylist(rows, schema), path)


def measure(stage: Stage, params: EvaluateParams, rows: list[dict[str, Any]]) -> dict[str, float]:
    """All figures of captions, paintings, reconstructions and real pictures; adds the verdicts on each picture,
    `caption_right` and `painted_right`, to its row (:func:`with_facts`)."""
    inspector = read_inspector(stage.device)
    captioned, painted = those_with("caption", rows), those_with("painted", rows)
    facts = main_facts(captioned)
    for row, fact in zip(captioned, facts, strict=True):
        row["caption_right"] = fact
    metrics = caption_figures(captioned, facts)
    objects = [row["objects"] for row in painted]
    clips = {name: read_clip(Path(f"models/{name}"), stage.device) for name in ("judge", "scorer")}
    prompts = [PROMPT + row["prompt"] for row in painted]
    texts = {name: batched(clip.encode_texts, prompts, params.batch_size) for name, clip in clips.items()}
    metrics["frechet_images"] = len(painted)  # the distances depend on how many there are
    judged: dict[str, Tensor] = {}
    for kind in KINDS:
        images = pictures(painted, kind, params.image_size)
        for name, clip in clips.items():
            encode = partial(encode_pixels, clip, stage.device)
            embeddings = batched(encode, images, params.batch_size)
            if name == "judge":
                judged[kind] = embeddings
                if kind != "real":
                    metrics[f"{kind}.frechet_judge"] = frechet_distance(embeddings, judged["real"])
            precision, _ = r_precision(embeddings, texts[name], stage.seed, params.negatives, params.folds)
            metrics[f"{kind}.r_precision_{name}"] = precision
            metrics[f"{kind}.clip_score_{name}"] = float(clip_scores(embeddings, texts[name]).mean())
        if inspector:
            right = inspector.inspect(images, objects)
            shares = shares_right(right)
            metrics |= {f"{kind}.{name}": shares[name] for name in ("main_object", "second_object")}
            if kind == "painted":
                for row, verdict in zip(painted, right["main_object"].tolist(), strict=True):
                    row["painted_right"] = verdict
    return metrics


def unseen_figures(
    params: EvaluateParams, inspector: Inspector, rows: list[dict[str, Any]]
) -> dict[str, float]:
    """Main objects named and painted where no training picture showed such a pair of class and colour."""
    metrics = {"caption.main_fact_unseen": mean(main_facts(those_with("caption", rows)))}
    painted = those_with("painted", rows)
    objects = [row["objects"] for row in painted]
    for kind in KINDS:
        images = pictures(painted, kind, params.image_size)
        metrics[f"{kind}.main_object_unseen"] = inspector.accuracy(images, objects)["main_object"]
    return metrics


def read_inspector(device: str) -> Inspector | None:
    """The inspector; None for data without attributes, for which the judge stage leaves an empty folder."""
    folder = Path("models/inspector")
    return load_inspector(folder, device) if any(folder.iterdir()) else None


def read_known() -> dict[str, dict[str, Any]]:
    """The manifest's rows by image id."""
    return {row["image_id"]: row for row in read_manifest(Path("data/dataset/manifest.parquet")).to_pylist()}


def read_generated(name: str) -> list[dict[str, Any]]:
    """What `generate` wrote for a set, a row per picture."""
    import pyarrow.parquet as pq

    return pq.read_table(f"data/generated/{name}.parquet").to_pylist()


def with_facts(rows: list[dict[str, Any]], known: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of `generate` with their pictures' true `captions` and `objects`."""
    return [{**row, **{key: known[row["image_id"]][key] for key in ("captions", "objects")}} for row in rows]


def those_with(column: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of the pictures that were captioned (`caption`), or painted (`painted`)."""
    return [row for row in rows if row[column] is not None]


def main_facts(rows: list[dict[str, Any]]) -> list[bool | None]:
    """Whether each caption names its picture's main object with its colour; None where no colour is known."""
    things = [main_and_second(row["objects"] or []) for row in rows]
    return [
        names_object(row["caption"], *several[0]) if several else None
        for row, several in zip(rows, things, strict=True)
    ]


def caption_figures(rows: list[dict[str, Any]], facts: list[bool | None]) -> dict[str, float]:
    """CIDEr-D, BLEU, and the share of captions that name the main object with its colour."""
    predictions = {row["image_id"]: row["caption"] for row in rows}
    figures = caption_metrics(predictions, {row["image_id"]: row["captions"] for row in rows})
    return {f"caption.{name}": value for name, value in {**figures, "main_fact": mean(facts)}.items()}


def mean(facts: list[bool | None]) -> float:
    """The share of what is known that is true; NaN where nothing is known."""
    known = [fact for fact in facts if fact is not None]
    return sum(known) / len(known) if known else math.nan


def pictures(rows: list[dict[str, Any]], kind: str, size: int) -> Tensor:
    """The rows' images of a kind, uint8 [n, 3, size, size]."""
    import torch

    images = (resize_square(read_image(row[kind], f"{row['image_id']} ({kind})"), size) for row in rows)
    return torch.stack([to_uint8_tensor(image) for image in images])


def encode_pixels(clip: Clip, device: str, images: Tensor) -> Tensor:
    """Embeddings of uint8 pictures."""
    return clip.encode_images(images.to(device).float() / 255)


def batched(encode: Callable[[Any], Tensor], items: Any, size: int) -> Tensor:
    """`encode` over slices of `items`, gathered on the CPU: all at once would not fit."""
    import torch

    with torch.inference_mode():
        return torch.cat([encode(items[start : start + size]).cpu() for start in range(0, len(items), size)])


if __name__ == "__main__":
    run("evaluate", EvaluateParams, main)
