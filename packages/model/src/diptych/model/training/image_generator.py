"""Training of the image generator on the codes of real images (X-LXMERT sections 4.2, 5.3, D.4 and D.5).

Reconstruction and perceptual loss. The adversarial terms of D.5 (hinge, AC-GAN, discriminator feature
matching) join the dictionary of `_losses` under their own names and weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from diptych.features.order import batch_indices
from diptych.model.errors import UserError
from diptych.model.image_generator import ImageGenerator
from diptych.model.precision import autocast_context
from diptych.model.training.loop import (
    Checkpoints,
    LoopConfig,
    Piece,
    fingerprint,
    run_training,
    warmup_cosine,
)
from diptych.model.training.processes import current_processes


class ImageShards(Protocol):
    """The part of `diptych.features.shards.ShardDataset` that this training reads."""

    keys: list[str]

    def __len__(self) -> int:
        """Number of images."""

    def codes(self, indices: Any) -> Any:
        """Codes, numpy int64 [n, 64]."""

    def images(self, indices: Any, size: int) -> Tensor:
        """Images, uint8 [n, 3, size, size]."""

    def meta(self, index: int) -> dict[str, Any]:
        """The json of one image: width, height, objects, ..."""


class PyramidDetector(Protocol):
    """The perceptual encoder E of X-LXMERT D.5: the detector, or any frozen network with a `pyramid`."""

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """images: float [n, 3, S, S] in 0..1 -> feature maps [n, C_k, H_k, W_k]."""
        ...


@dataclass(frozen=True, kw_only=True)
class ImageGeneratorTrainingConfig(LoopConfig):
    """How the image generator is trained.

    seed: of data order and noise. steps, batch_size: length of the run (paper: 60 epochs at 96).
    learning_rate: the peak; linear warm-up over `warmup_share` of the steps, then cosine to zero. The
        optimizer is AdamW with (0.9, 0.999): D.4's Adam with (0, 0.999) suits the adversarial game, but
        without an opponent momentum converges faster.
    reconstruction: "l1" or "huber" (D.5's Huber on pixels in -1..1, quadratic within 0.1).
    reconstruction_weight, perceptual_weight: weights of the two losses (D.5: 0 and 10).
    object_weight: pixels inside an object's box count 1 + object_weight times as much in the reconstruction
        loss; 0 for all alike. A box over the whole image (scenery) does not count.
    weight_decay, clip_norm, ema_decay, accumulation, precision, checkpoint_seconds: as in
        `diptych.model.training.loop.LoopConfig`.
    """

    batch_size: int
    warmup_share: float
    reconstruction: str
    reconstruction_weight: float
    perceptual_weight: float
    object_weight: float

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_at_least_one("batch_size")
        if self.reconstruction not in ("l1", "huber"):
            raise UserError(f"reconstruction must be l1 or huber, is {self.reconstruction!r}")


class ImageGeneratorSteps:
    """The steps of this training (`diptych.model.training.loop.Steps`)."""

    def __init__(
        self,
        config: ImageGeneratorTrainingConfig,
        generator: ImageGenerator,
        codebook: Tensor,
        train: ImageShards,
        detector: PyramidDetector | None,
    ) -> None:
        self.config, self.generator, self.codebook = config, generator, codebook
        self.train, self.detector = train, detector
        self.rows = current_processes().own_pieces(config.batch_size, config.accumulation)
        self.weights = {
            "reconstruction": config.reconstruction_weight,
            "perceptual": config.perceptual_weight,
        }

    def read(self, step: int) -> list[tuple[Tensor, Tensor, Tensor | None]]:
        """Codes int64 [n, 64], pictures uint8 [n, 3, S, S] and weights of their pixels, for each piece."""
        config, size = self.config, self.generator.config.image_size
        indices = batch_indices(len(self.train), config.batch_size, config.seed, step).tolist()
        parts = []
        for rows in self.rows:
            codes = torch.from_numpy(self.train.codes(indices[rows]))
            images = self.train.images(indices[rows], size)
            emphasis = None
            if config.object_weight > 0:
                samples = [self.train.meta(index) for index in indices[rows]]
                emphasis = object_emphasis(samples, size, config.object_weight)
            parts.append((codes, images, emphasis))
        return parts

    def pieces(self, step: int, data: list[tuple[Tensor, Tensor, Tensor | None]]) -> list[Piece]:
        """The batch's loss is the mean over images."""
        return [self._piece(*part) for part in data]

    def _piece(self, codes: Tensor, images: Tensor, emphasis: Tensor | None) -> Piece:
        device = self.codebook.device

        def loss() -> tuple[Tensor, dict[str, Tensor]]:
            grid = self.codebook[codes.to(device)]  # [n, 64, D]
            real = images.to(device).float().div_(127.5).sub_(1)  # [n, 3, S, S], -1..1
            real = real.contiguous(memory_format=torch.channels_last)
            weights = None if emphasis is None else emphasis.to(device)
            with autocast_context(device, self.config.precision):
                losses = _losses(self.config, self.generator(grid), real, weights, self.detector)
            total = torch.stack([self.weights[name] * value for name, value in losses.items()]).sum()
            return total, {
                "loss": total.detach(),
                **{name: value.detach() for name, value in losses.items()},
            }

        return Piece(len(codes) / self.config.batch_size, len(codes), loss)


def train_image_generator(
    config: ImageGeneratorTrainingConfig,
    generator: ImageGenerator,
    codebook: Tensor,
    train: ImageShards,
    detector: PyramidDetector | None,
    checkpoints: Checkpoints | None = None,
    device: torch.device | str = "cpu",
) -> list[dict[str, float]]:
    """Trains `generator` in place to repaint the images of `train` from their codes; leaves it in eval mode.

    codebook: float [K, D]. detector: the frozen perceptual encoder, or None without perceptual loss.

    Everything random follows from (seed, step), so that a run that goes on from a checkpoint equals an
    undisturbed one. Returns a history row every 20 steps: step, learning_rate, gradient_norm, loss and each
    loss term (unweighted). Raises UserError if the loss is not finite, if there are fewer images than in a
    batch, or if the codebook does not fit the generator.
    """
    if len(train) < config.batch_size:
        raise UserError(
            f"image_generator: batch_size {config.batch_size} is larger than the {len(train)} training images"
        )
    if codebook.shape[1] != generator.config.feature_dim:
        raise UserError(
            f"image_generator: feature_dim is {generator.config.feature_dim}, but the codebook's vectors have "
            f"{codebook.shape[1]} numbers; set feature_dim to the detector's"
        )
    device = torch.device(device)
    codebook = codebook.to(device, torch.float32)
    generator.fit_input(codebook)
    generator.to(device, memory_format=torch.channels_last)
    if isinstance(detector, nn.Module):
        detector.to(device).eval().requires_grad_(False)
    return run_training(
        generator,
        "image generator",
        config,
        ImageGeneratorSteps(config, generator, codebook, train, detector),
        learning_rate=partial(
            warmup_cosine, steps=config.steps, peak=config.learning_rate, warmup_share=config.warmup_share
        ),
        started_from=fingerprint(
            generator, config.determining(), asdict(generator.config), codebook, train.keys
        ),
        checkpoints=checkpoints,
    ).history


def _losses(
    config: ImageGeneratorTrainingConfig,
    painted: Tensor,
    real: Tensor,
    emphasis: Tensor | None,
    detector: PyramidDetector | None,
) -> dict[str, Tensor]:
    """The loss terms by name, unweighted; painted and real float [n, 3, S, S] in -1..1."""
    if config.reconstruction == "l1":
        difference = functional.l1_loss(painted, real, reduction="none")
    else:
        difference = functional.huber_loss(painted, real, reduction="none", delta=0.1) / 0.1
    losses = {"reconstruction": (difference if emphasis is None else difference * emphasis).mean()}
    if detector is not None and config.perceptual_weight > 0:
        losses["perceptual"] = perceptual_loss(detector, painted, real)
    return losses


def perceptual_loss(detector: PyramidDetector, painted: Tensor, real: Tensor) -> Tensor:
    """X-LXMERT D.5, equation 5: Huber distance of the detector's feature maps, mean per map, summed over
    maps.

    painted and real: float [n, 3, S, S] in -1..1; the gradient flows to `painted` only.
    """
    with torch.no_grad():
        targets = detector.pyramid((real + 1) / 2)
    found = detector.pyramid((painted + 1) / 2)
    return torch.stack(
        [functional.huber_loss(a.float(), b.float()) for a, b in zip(found, targets, strict=True)]
    ).sum()


def object_emphasis(samples: Sequence[dict[str, Any]], image_size: int, object_weight: float) -> Tensor:
    """Weights float [n, 1, S, S] with mean 1 per image: 1 + object_weight inside objects' boxes against 1
    outside.

    samples: as in the shards' json, with "width" and "height" in pixels and "objects" (bbox in those pixels).
    Small objects would otherwise be a few per cent of the loss.
    """
    emphasis = torch.ones(len(samples), 1, image_size, image_size)
    for sample, weights in zip(samples, emphasis, strict=True):
        scale_x, scale_y = image_size / sample["width"], image_size / sample["height"]
        for thing in sample["objects"] or []:
            x0, y0, x1, y1 = (float(value) for value in thing["bbox"])
            if (x1 - x0) * (y1 - y0) >= 0.99 * sample["width"] * sample["height"]:
                continue
            rows = slice(math.floor(y0 * scale_y), math.ceil(y1 * scale_y))
            columns = slice(math.floor(x0 * scale_x), math.ceil(x1 * scale_x))
            weights[:, rows, columns] = 1 + object_weight
    return emphasis / emphasis.mean(dim=(2, 3), keepdim=True)
