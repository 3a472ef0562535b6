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
from diptych.model.training.loop import Checkpoints, fingerprint, run_training, warmup_cosine


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


@dataclass(frozen=True)
class ImageGeneratorTrainingConfig:
    """How the image generator is trained.

    seed: of data order and noise. steps, batch_size: length of the run (paper: 60 epochs at 96).
    learning_rate: the peak; linear warm-up over `warmup_share` of the steps, then cosine to zero. The
        optimizer is AdamW with (0.9, 0.999): D.4's Adam with (0, 0.999) suits the adversarial game, but
        without an opponent momentum converges faster.
    clip_norm: largest gradient norm.
    reconstruction: "l1" or "huber" (D.5's Huber on pixels in -1..1, quadratic within 0.1).
    reconstruction_weight, perceptual_weight: weights of the two losses (D.5: 0 and 10).
    object_weight: pixels inside an object's box count 1 + object_weight times as much in the reconstruction
        loss; 0 for all alike. A box over the whole image (scenery) does not count.
    ema_decay: decay of the averaged weights that are returned; 0 returns the last weights.
    precision: "auto", "float32" or "bfloat16" (autocast).
    checkpoint_seconds: wall time between checkpoints.
    """

    seed: int
    steps: int
    batch_size: int
    learning_rate: float
    warmup_share: float
    clip_norm: float
    reconstruction: str
    reconstruction_weight: float
    perceptual_weight: float
    object_weight: float
    ema_decay: float
    precision: str
    checkpoint_seconds: float

    def __post_init__(self) -> None:
        if self.reconstruction not in ("l1", "huber"):
            raise UserError(
                f"image_generator: reconstruction must be l1 or huber; got {self.reconstruction!r}"
            )
        for name in ("steps", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"image_generator: {name} must be at least 1; got {getattr(self, name)}")


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
    image_size = generator.config.image_size
    codebook = codebook.to(device, torch.float32)
    generator.fit_input(codebook)
    generator.to(device, memory_format=torch.channels_last)
    if isinstance(detector, nn.Module):
        detector.to(device).eval().requires_grad_(False)
    weights = {"reconstruction": config.reconstruction_weight, "perceptual": config.perceptual_weight}

    def step_loss(step: int) -> tuple[Tensor, dict[str, float | Tensor]]:
        indices = batch_indices(len(train), config.batch_size, config.seed, step).tolist()
        grid = codebook[torch.from_numpy(train.codes(indices)).to(device)]  # [n, 64, D]
        real = train.images(indices, image_size).to(device).float().div_(127.5).sub_(1)  # [n, 3, S, S], -1..1
        real = real.contiguous(memory_format=torch.channels_last)
        emphasis = None
        if config.object_weight > 0:
            samples = [train.meta(index) for index in indices]
            emphasis = object_emphasis(samples, image_size, config.object_weight).to(device)
        with autocast_context(device, config.precision):
            losses = _losses(config, generator(grid), real, emphasis, detector)
        loss = torch.stack([weights[name] * value for name, value in losses.items()]).sum()
        return loss, {"loss": loss.detach(), **{name: value.detach() for name, value in losses.items()}}

    # A checkpoint of other settings, data or codes is not resumed; how often one is written is no setting.
    settings = {name: value for name, value in asdict(config).items() if name != "checkpoint_seconds"}
    return run_training(
        generator,
        "image generator",
        config.steps,
        config.seed,
        step_loss,
        learning_rate=partial(
            warmup_cosine, steps=config.steps, peak=config.learning_rate, warmup_share=config.warmup_share
        ),
        weight_decay=0.0,
        clip_norm=config.clip_norm,
        ema_decay=config.ema_decay,
        started_from=fingerprint(generator, settings, asdict(generator.config), codebook, train.keys),
        checkpoints=checkpoints,
        checkpoint_seconds=config.checkpoint_seconds,
    )


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
