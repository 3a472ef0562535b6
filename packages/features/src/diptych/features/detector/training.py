"""Training the detector and measuring it (mAP at IoU 0.5, as COCO computes it)."""

from __future__ import annotations

import contextlib
import io
import math
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from diptych.features.detector.network import Detector, DetectorConfig, cell_objects
from diptych.features.errors import UserError
from diptych.features.images import ImageError, read_image
from diptych.features.manifest import resolve_image
from diptych.features.order import batch_indices
from diptych.features.precision import autocast_context

# A damaged picture is left out and reported; more of them than this share are a damaged dataset.
MAX_UNREADABLE_SHARE = 0.01


class Checkpoints(Protocol):
    """Where a training run keeps its state; `save` is atomic."""

    def load(self) -> dict[str, Any] | None: ...

    def save(self, state: dict[str, Any]) -> None: ...


@dataclass(frozen=True)
class DetectorTrainingConfig:
    """`steps` of `batch_size` pictures; AdamW with linear warm-up over 5% and a cosine to zero.

    The weights scale the losses of the grid heads against those of Faster R-CNN (1): colour deserves
    more than class, or the codes lose it.
    """

    steps: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    grid_class_weight: float
    grid_attribute_weight: float
    grid_box_weight: float
    grid_size_weight: float
    precision: str
    checkpoint_seconds: float

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "learning_rate"):
            if getattr(self, name) <= 0:
                raise UserError(f"{name} must be greater than 0, is {getattr(self, name)}")


class SceneDataset:
    """Pictures and detection targets of one split of a scenes table (or manifest).

    Pictures whose objects are unknown (null) are left out and counted on stderr: to learn, or to measure, that nothing is
    there would be wrong.
    """

    def __init__(self, rows: Sequence[dict[str, Any]], table_path: Path, detector: Detector) -> None:
        self.rows = [row for row in rows if row["objects"] is not None]
        if len(self.rows) < len(rows):
            left_out = len(rows) - len(self.rows)
            tqdm.write(
                f"{table_path}: left out {left_out} of {len(rows)} pictures whose objects are unknown",
                file=sys.stderr,
            )
        self.table_path, self.detector = table_path, detector
        self.unreadable: set[str] = set()
        self._label = {name: number + 1 for number, name in enumerate(detector.labels)}
        self._attribute = {name: number for number, name in enumerate(detector.attributes)}

    def __len__(self) -> int:
        return len(self.rows)

    def image(self, index: int) -> Tensor:
        """uint8 [3, S, S], resized to the detector's input size."""
        path = resolve_image(self.table_path, self.rows[index]["path"])
        return self.detector.prepare(read_image(path))

    def target(self, index: int) -> dict[str, Tensor]:
        """Boxes in pixels of the resized picture, labels, attributes and the object of each cell."""
        row, size = self.rows[index], self.detector.config.image_size
        objects = [o for o in row["objects"] if o["label"] in self._label]
        boxes = torch.tensor([o["bbox"] for o in objects], dtype=torch.float32).reshape(-1, 4)
        scale = torch.tensor([size / row["width"], size / row["height"]]).repeat(2)
        boxes = boxes * scale
        labels = torch.tensor([self._label[o["label"]] for o in objects], dtype=torch.int64)
        attributes = torch.tensor(
            [self._attribute.get(o["attributes"][0], -1) if o["attributes"] else -1 for o in objects],
            dtype=torch.int64,
        )
        keep = (boxes[:, 2:] - boxes[:, :2]).min(dim=1).values >= 1 if len(objects) else slice(None)
        boxes, labels, attributes = boxes[keep], labels[keep], attributes[keep]
        return {
            "boxes": boxes,
            "labels": labels,
            "attributes": attributes,
            "cell_object": cell_objects(boxes, labels, size),
        }

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, list[dict[str, Tensor]]]:
        """uint8 [n, 3, S, S] and the targets, without pictures that cannot be read; n may be 0.

        Raises UserError when those are more than MAX_UNREADABLE_SHARE of the split.
        """
        images, targets = [], []
        for index in indices:
            try:
                images.append(self.image(index))
            except ImageError as error:
                self._skip(self.rows[index]["image_id"], error)
                continue
            targets.append(self.target(index))
        size = self.detector.config.image_size
        none = torch.empty(0, 3, size, size, dtype=torch.uint8)
        return torch.stack(images) if images else none, targets

    def _skip(self, image_id: str, error: ImageError) -> None:
        if image_id not in self.unreadable:
            self.unreadable.add(image_id)
            tqdm.write(f"left out: {error}", file=sys.stderr)
        if len(self.unreadable) > MAX_UNREADABLE_SHARE * len(self.rows):
            raise UserError(
                f"{len(self.unreadable)} of {len(self.rows)} images cannot be read; the last: {error}; "
                "replace the files, or take the images out of the annotations"
            ) from error


def vocabulary(rows: Sequence[dict[str, Any]]) -> tuple[list[str], list[str]]:
    """Sorted object labels and (first) attributes that occur in the rows."""
    objects = [o for row in rows for o in row["objects"] or []]
    labels = sorted({o["label"] for o in objects})
    return labels, sorted({o["attributes"][0] for o in objects if o["attributes"]})


def train_detector(
    architecture: DetectorConfig,
    config: DetectorTrainingConfig,
    rows: Sequence[dict[str, Any]],
    table_path: Path,
    seed: int,
    device: str,
    checkpoints: Checkpoints | None = None,
) -> tuple[Detector, list[dict[str, float]]]:
    """Train on the rows of the train split; returns the detector and its loss curve.

    Step s uses randomness seeded with (seed, s) only: a run that was killed goes on from its
    checkpoint to the same weights. Raises UserError when no row has objects or the loss is not finite.
    """
    labels, attributes = vocabulary(rows)
    if not labels:
        raise UserError(
            f"{table_path}: no image of the train split has objects; the detector needs boxes to learn from"
        )
    torch.manual_seed(seed)
    detector = (
        Detector(architecture, labels, attributes).to(device, memory_format=torch.channels_last).train()
    )
    data = SceneDataset(rows, table_path, detector)
    decay = [p for p in detector.parameters() if p.ndim > 1]
    rest = [p for p in detector.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": config.weight_decay}, {"params": rest, "weight_decay": 0.0}],
        lr=config.learning_rate,
        fused=True,
    )
    first = 0
    history: list[dict[str, float]] = []
    if checkpoints and (state := checkpoints.load()):
        detector.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first, history = state["step"], state["history"]
    weights = {
        "grid_class": config.grid_class_weight,
        "grid_attribute": config.grid_attribute_weight,
        "grid_box": config.grid_box_weight,
        "grid_size": config.grid_size_weight,
    }
    saved = time.monotonic()
    bar = tqdm(total=config.steps, initial=first, unit="step", desc="detector", mininterval=1)
    for step, (images, targets) in enumerate(_prefetch(data, config, seed, first), start=first):
        torch.manual_seed(seed * 1_000_003 + step)
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * _schedule(step, config.steps)
        images = images.to(device, memory_format=torch.channels_last).float() / 255
        targets = [{name: value.to(device) for name, value in target.items()} for target in targets]
        with autocast_context(device, config.precision):
            losses = detector.losses(images, targets)
        loss = sum(weights.get(name, 1.0) * value for name, value in losses.items())
        if not math.isfinite(value := loss.item()):
            raise UserError(
                f"detector: the loss is {value} at step {step}; lower detector.training.learning_rate"
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(detector.parameters(), 5.0)
        optimizer.step()
        if step % 20 == 0 or step == config.steps - 1:
            history.append({"step": step, "loss": value, **{k: v.item() for k, v in losses.items()}})
            bar.set_postfix(loss=f"{value:.3f}", refresh=False)
        bar.update()
        if checkpoints and time.monotonic() - saved > config.checkpoint_seconds:
            checkpoints.save(
                {
                    "model": detector.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "step": step + 1,
                    "history": history,
                }
            )
            saved = time.monotonic()
    bar.close()
    return detector.eval().requires_grad_(False), history


def _prefetch(
    data: SceneDataset, config: DetectorTrainingConfig, seed: int, first: int
) -> Iterator[tuple[Tensor, list[dict[str, Tensor]]]]:
    """Batches from step `first` on, one read ahead while the network works."""
    with ThreadPoolExecutor(1) as pool:

        def batch(indices: list[int]) -> tuple[Tensor, list[dict[str, Tensor]]]:
            images, targets = data.batch(indices)
            while not targets:  # the next pictures instead: `data` raises before it has none
                indices = [(index + 1) % len(data) for index in indices]
                images, targets = data.batch(indices)
            return images, targets

        def read(step: int) -> Future[tuple[Tensor, list[dict[str, Tensor]]]]:
            indices = batch_indices(len(data), config.batch_size, seed, step)
            return pool.submit(batch, indices.tolist())

        following = read(first)
        for step in range(first, config.steps):
            current = following
            if step + 1 < config.steps:
                following = read(step + 1)
            yield current.result()


def _schedule(step: int, steps: int) -> float:
    warmup = max(1, round(steps * 0.05))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


@torch.inference_mode()
def average_precision(
    detector: Detector,
    rows: Sequence[dict[str, Any]],
    table_path: Path,
    device: str,
    batch_size: int = 50,
) -> dict[str, float]:
    """COCO's mAP at IoU 0.5 over all classes on `rows`, and the share of objects whose
    attribute is read right from their true box (`attribute_accuracy`). A figure about nothing is left out; stderr says so."""
    data = SceneDataset(rows, table_path, detector)
    truth: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    right = total = 0
    for start in tqdm(range(0, len(data), batch_size), desc="mAP", unit="batch", mininterval=1):
        images, targets = data.batch(range(start, min(start + batch_size, len(data))))
        if not targets:
            continue
        images = images.to(device).float() / 255
        for offset, (target, detection) in enumerate(zip(targets, detector.detect(images), strict=True)):
            truth += [
                _annotation(start + offset, box, label)
                for box, label in zip(target["boxes"], target["labels"], strict=True)
            ]
            found += [
                _annotation(start + offset, box, label) | {"score": float(score)}
                for box, label, score in zip(
                    detection["boxes"], detection["labels"], detection["scores"], strict=True
                )
            ]
        known = [target["attributes"] >= 0 for target in targets]
        boxes = [target["boxes"][keep].to(device) for target, keep in zip(targets, known, strict=True)]
        expected = torch.cat(
            [target["attributes"][keep] for target, keep in zip(targets, known, strict=True)]
        )
        right += int((_attributes(detector, images, boxes).cpu() == expected).sum())
        total += len(expected)
    metrics: dict[str, float] = {}
    if truth:
        metrics["map50"] = _coco_map50(truth, found, len(data), len(detector.labels))
    else:
        tqdm.write(f"{table_path}: no mAP: no picture has an object that the detector knows", file=sys.stderr)
    if total:
        metrics["attribute_accuracy"] = right / total
    return metrics


def _attributes(detector: Detector, images: Tensor, boxes: list[Tensor]) -> Tensor:
    levels, shapes = detector._levels(images)
    x = detector.heads.box_head(detector.heads.box_roi_pool(levels, boxes, shapes))
    return detector.heads.box_predictor.attributes(x).argmax(1)


def _annotation(image: int, box: Tensor, label: Tensor) -> dict[str, Any]:
    x0, y0, x1, y1 = box.tolist()
    return {"image_id": image, "category_id": int(label), "bbox": [x0, y0, x1 - x0, y1 - y0]}


def _coco_map50(truth: list[dict], found: list[dict], images: int, classes: int) -> float:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    if not found:
        return 0.0
    with contextlib.redirect_stdout(io.StringIO()):
        reference = COCO()
        reference.dataset = {
            "images": [{"id": i} for i in range(images)],
            "categories": [{"id": i + 1} for i in range(classes)],
            "annotations": [
                a | {"id": i + 1, "iscrowd": 0, "area": a["bbox"][2] * a["bbox"][3]}
                for i, a in enumerate(truth)
            ],
        }
        reference.createIndex()
        evaluation = COCOeval(reference, reference.loadRes(found), "bbox")
        evaluation.params.iouThrs = np.array([0.5])
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][0, :, :, 0, -1]
    return float(precision[precision > -1].mean())
