"""Training of the image generator on the codes of real images (X-LXMERT sections 4.2, 5.3, D.4 and D.5).

First reconstruction and perceptual loss alone, the warm start; then the adversarial game is played beside
them, in which a discriminator learns along: hinge loss, AC-GAN over the codes, and feature matching.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from diptych.features.order import batch_indices, epoch_order
from diptych.model.devices import sent
from diptych.model.errors import UserError
from diptych.model.networks.discriminator import Discriminator
from diptych.model.networks.image_generator import ImageGenerator, ImageGeneratorConfig
from diptych.model.objectives.perceptual import PyramidEncoder, perceptual_loss
from diptych.model.pixels import from_uint8, to_uint8
from diptych.model.precision import convolution_context
from diptych.model.training.config import LoopConfig, SampleConfig, check_at_least_one, check_schedule
from diptych.model.training.contracts import Checkpoints, Piece, Record
from diptych.model.training.game import (
    GameConfig,
    check_game,
    collapse,
    is_on,
    opponent_of,
    painter_rate,
    play,
    weighted_sum,
)
from diptych.model.training.loop import run_training
from diptych.model.training.processes import current_processes
from diptych.model.training.state import fingerprint

EVALUATION_BATCH = 32


class ImageShards(Protocol):
    """The part of `diptych.features.shards.reading.ShardDataset` that this training reads."""

    keys: list[str]

    def __len__(self) -> int:
        """Number of images."""

    def codes(self, indices: Any) -> Any:
        """Codes, numpy int64 [n, 64]."""

    def grid(self, indices: Any) -> Any:
        """Grid features, numpy float16 [n, 64, D]."""

    def images(self, indices: Any, size: int) -> Tensor:
        """Images, uint8 [n, 3, size, size]."""

    def meta(self, index: int) -> dict[str, Any]:
        """The json of one image: width, height, objects, ..."""


@dataclass(frozen=True, kw_only=True)
class ImageGeneratorTrainingConfig(LoopConfig):
    """How the image generator is trained.

    seed: of data order and noise. steps, batch_size: length of the run (paper: 60 epochs at 96).
    learning_rate: the generator's peak (paper: 4e-4); linear warm-up over `warmup_share` of the steps.
    schedule: what follows, "cosine" to zero or "constant" (D.4 names no decay); the discriminator's rate likewise,
        from the start of the game and without warm-up.
    betas: of both Adams. Paper: (0, 0.999). Reconstruction alone converges faster with momentum.
    reconstruction: "l1" or "huber" (D.5's Huber on pixels in -1..1, quadratic within 0.1).
    reconstruction_weight, perceptual_weight: weights of the two losses (D.5: 0 and 10).
    perceptual_shift: pixels by which both pictures move at random before the perceptual encoder, which keeps its
        strides from painting a grid (paper: 0; 3 suits a stride of 4).
    object_weight: pixels inside an object's box count 1 + object_weight times as much in the reconstruction
        loss; 0 for all alike. A box over the whole image (scenery) does not count.
    game: the adversarial game, or None for reconstruction and perceptual loss alone.
    evaluation: what is measured meanwhile, on val pictures, and shown; or None.
    precision: "float32", "bfloat16" or "auto", as `arithmetic` takes them.
    weight_decay, clip_norm, ema_decay, accumulation, checkpoint_seconds: as in
        `diptych.model.training.config.LoopConfig`; clip_norm holds for each network, the average is the generator's.
        Spectral norms advance once with every piece of a step.
    """

    batch_size: int
    warmup_share: float
    schedule: str = "cosine"
    betas: tuple[float, float] = (0.9, 0.999)
    reconstruction: str
    reconstruction_weight: float
    perceptual_weight: float
    perceptual_shift: int = 0
    object_weight: float
    game: GameConfig | None = None
    evaluation: SampleConfig | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least_one(self, "batch_size")
        if self.reconstruction not in ("l1", "huber"):
            raise UserError(f"reconstruction must be l1 or huber, is {self.reconstruction!r}")
        check_schedule(self.schedule)
        check_game(self.game, self.steps)
        if self.perceptual_shift < 0:
            raise UserError(f"perceptual_shift must be at least 0, is {self.perceptual_shift}")

    def determining(self) -> dict[str, Any]:
        """All settings that determine the result."""
        return {name: value for name, value in super().determining().items() if name != "evaluation"}

    def generator_rate(self, step: int) -> float:
        """Learning rate of the generator in `step`."""
        return painter_rate(self.game, self.schedule, step, self.steps, self.learning_rate, self.warmup_share)

    def arithmetic(self, device: torch.device) -> AbstractContextManager:
        """The autocast context of a step. In bfloat16 a CPU would gain a tenth, as convolutions by Winograd's algorithm are float32,
        and leave a mottle inside objects."""
        return convolution_context(device, self.precision)


@dataclass(frozen=True)
class Batch:
    """Codes int64 [n, 64], where they are read grid features float16 [n, 64, D], pictures uint8 [n, 3, S, S] and weights of their
    pixels [n, 1, S, S] or None."""

    codes: Tensor
    features: Tensor | None
    images: Tensor
    emphasis: Tensor | None

    def on(self, device: torch.device, codebook: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Codebook vectors or features [n, 64, D], pictures float [n, 3, S, S] in -1..1 and weights, on `device`."""
        return (
            codebook[sent(self.codes, device)]
            if self.features is None
            else sent(self.features, device).float(),
            from_uint8(self.images, device),
            None if self.emphasis is None else sent(self.emphasis, device),
        )


def read_batch(
    generator: ImageGeneratorConfig, shards: ImageShards, indices: Sequence[int], object_weight: float
) -> Batch:
    """The images `indices` as `generator` reads and paints them."""
    emphasis, features, size = None, None, generator.image_size
    if object_weight > 0:
        emphasis = object_emphasis([shards.meta(index) for index in indices], size, object_weight)
    if generator.reads == "features":
        features = torch.from_numpy(shards.grid(indices))
    codes = torch.from_numpy(shards.codes(indices))
    return Batch(codes, features, shards.images(indices, size), emphasis)


class ImageGeneratorSteps:
    """The steps of this training (`diptych.model.training.contracts.Steps`)."""

    def __init__(
        self,
        config: ImageGeneratorTrainingConfig,
        generator: ImageGenerator,
        codebook: Tensor,
        train: ImageShards,
        encoder: PyramidEncoder | None,
        discriminator: Discriminator | None,
    ) -> None:
        self.config, self.generator, self.codebook = config, generator, codebook
        self.train, self.encoder, self.discriminator = train, encoder, discriminator
        self.rows = current_processes().own_pieces(config.batch_size, config.accumulation)

    def read(self, step: int) -> list[Batch]:
        """The pieces of a step."""
        config = self.config
        indices = batch_indices(len(self.train), config.batch_size, config.seed, step).tolist()
        wanted = self.generator.config
        return [read_batch(wanted, self.train, indices[rows], config.object_weight) for rows in self.rows]

    def pieces(self, step: int, data: list[Batch]) -> list[Piece]:
        """The batch's loss is the mean over images."""
        playing = is_on(self.config.game, step)
        return [self._piece(batch, playing) for batch in data]

    def _piece(self, batch: Batch, playing: bool) -> Piece:
        config, device = self.config, self.codebook.device

        def loss() -> tuple[Tensor, dict[str, Tensor]]:
            grid, real, emphasis = batch.on(device, self.codebook)
            with config.arithmetic(device):
                painted = self.generator(grid)
                shift = config.perceptual_shift
                losses = reconstruction_losses(config, painted, real, emphasis, self.encoder, shift)
                total = weighted_sum(losses, reconstruction_weights(config))
                figures = losses
                if playing:
                    assert self.discriminator is not None and config.game is not None
                    codes = sent(batch.codes, device)
                    judged, players = play(config.game, self.discriminator, painted, real, codes)
                    total = total + players[0]
                    figures = {**figures, **judged}
            figures = {"loss": total, **figures}
            if playing:
                total = total + players[1]
            return total, {name: value.detach() for name, value in figures.items()}

        return Piece(len(batch.codes) / config.batch_size, len(batch.codes), loss)


def reconstruction_weights(config: ImageGeneratorTrainingConfig) -> dict[str, float]:
    """Weights of what `reconstruction_losses` returns."""
    return {"reconstruction": config.reconstruction_weight, "perceptual": config.perceptual_weight}


def reconstruction_losses(
    config: ImageGeneratorTrainingConfig,
    painted: Tensor,
    real: Tensor,
    emphasis: Tensor | None,
    encoder: PyramidEncoder | None,
    shift: int = 0,
) -> dict[str, Tensor]:
    """The terms that compare each picture with its own, by name, unweighted; painted and real float [n, 3, S, S] in
    -1..1."""
    if config.reconstruction == "l1":
        difference = functional.l1_loss(painted, real, reduction="none")
    else:
        difference = functional.huber_loss(painted, real, reduction="none", delta=0.1) / 0.1
    losses = {"reconstruction": (difference if emphasis is None else difference * emphasis).mean()}
    if encoder is not None and config.perceptual_weight > 0:
        losses["perceptual"] = perceptual_loss(encoder, painted, real, shift)
    return losses


class ImageGeneratorEvaluation:
    """Losses of fixed val pictures (`diptych.model.training.contracts.Evaluation`), and some of them repainted."""

    def __init__(
        self,
        config: ImageGeneratorTrainingConfig,
        evaluation: SampleConfig,
        generator: ImageGenerator,
        codebook: Tensor,
        val: ImageShards,
        encoder: PyramidEncoder | None,
    ) -> None:
        self.config, self.generator, self.codebook, self.encoder = config, generator, codebook, encoder
        self.every, self.at_start, self.samples = evaluation.every, False, evaluation.samples
        indices = epoch_order(len(val), config.seed, 0)[: evaluation.images].tolist()
        self.keys = [val.keys[index] for index in indices]
        self.batches = [
            read_batch(generator.config, val, indices[start : start + EVALUATION_BATCH], config.object_weight)
            for start in range(0, len(indices), EVALUATION_BATCH)
        ]

    @torch.no_grad()
    def evaluate(self) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Return `val_reconstruction` and `val_perceptual`, and the samples: `image_id`, `real` and `painted`, uint8
        [3, S, S]."""
        sums: dict[str, float] = {}
        samples: list[dict[str, Any]] = []
        for batch in self.batches:
            grid, real, emphasis = batch.on(self.codebook.device, self.codebook)
            with self.config.arithmetic(self.codebook.device):
                painted = self.generator(grid)
                losses = reconstruction_losses(self.config, painted, real, emphasis, self.encoder)
            for name, value in losses.items():
                sums[name] = sums.get(name, 0.0) + value.item() * len(real) / len(self.keys)
            for image, own in zip(painted, batch.images, strict=True):
                if len(samples) < self.samples:
                    key = self.keys[len(samples)]
                    samples.append({"image_id": key, "real": own.clone(), "painted": to_uint8(image).cpu()})
        return {f"val_{name}": value for name, value in sums.items()}, samples


def train_image_generator(
    config: ImageGeneratorTrainingConfig,
    generator: ImageGenerator,
    codebook: Tensor,
    train: ImageShards,
    encoder: PyramidEncoder | None,
    checkpoints: Checkpoints | None = None,
    device: torch.device | str = "cpu",
    val: ImageShards | None = None,
) -> Record:
    """Trains `generator` in place to repaint the images of `train` from their codes or features; leaves it in eval mode.

    codebook: float [K, D]. encoder: the frozen perceptual encoder, or None without perceptual loss.
    val: the images that `config.evaluation` is about.

    Everything random follows from (seed, step), so that a run that goes on from a checkpoint equals an
    undisturbed one. The history's losses are unweighted, but for `loss`, the generator's; those of the game begin with
    it. Raises UserError if a loss is not finite, if the game collapses (see `collapse`), if there are fewer images
    than in a batch, or if the codebook does not fit the generator.
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
    if isinstance(encoder, nn.Module):
        encoder.to(device).eval().requires_grad_(False)
    discriminator, opponent = None, None
    if config.game is not None:
        torch.manual_seed(config.seed)
        size = generator.config.image_size
        discriminator = Discriminator(config.game.discriminator, size, codebook.cpu())
        opponent = opponent_of(
            config.game, discriminator, device, config.schedule, config.steps, config.betas
        )
    evaluation = None
    if config.evaluation is not None and val is not None:
        evaluation = ImageGeneratorEvaluation(config, config.evaluation, generator, codebook, val, encoder)
    return run_training(
        generator,
        "image generator",
        config,
        ImageGeneratorSteps(config, generator, codebook, train, encoder, discriminator),
        learning_rate=config.generator_rate,
        started_from=fingerprint(
            generator, config.determining(), asdict(generator.config), codebook, train.keys
        ),
        checkpoints=checkpoints,
        evaluation=evaluation,
        opponent=opponent,
        betas=config.betas,
        failure=collapse,
    )


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
