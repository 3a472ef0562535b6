"""The training loop that the scorer, the judge and the inspector share, and how it resumes exactly."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from diptych.eval.errors import UserError
from diptych.eval.optimizers import Optimizers
from diptych.eval.precision import PRECISIONS

ImageReader = Callable[[np.ndarray], Tensor]
"""Takes indices int64 [n] and returns pictures uint8 [n, 3, H, W]."""

_HISTORY_EVERY = 20


class Checkpoints(Protocol):
    """Where a training loop keeps its state between two runs; `save` must be atomic."""

    def load(self) -> dict | None: ...

    def save(self, state: dict) -> None: ...


@dataclass(frozen=True)
class TrainingConfig:
    """Schedule of AdamW and Muon with linear warm-up and cosine decay to zero.

    steps, warmup_steps: optimizer steps. batch_size: pictures per step. learning_rate: at its peak.
    weight_decay: on matrices and kernels only. gradient_clip: largest gradient norm. muon: the rate of Muon in learning
    rates (:class:`diptych.eval.optimizers.Optimizers`); 0: AdamW alone.
    precision: "auto", "float32" or "bfloat16". checkpoint_seconds: wall time between checkpoints.
    """

    steps: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    warmup_steps: int
    gradient_clip: float
    seed: int
    precision: str
    checkpoint_seconds: float
    muon: float = 0.0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "learning_rate", "gradient_clip"):
            if getattr(self, name) <= 0:
                raise UserError(f"{name}: must be greater than 0, got {getattr(self, name)}")
        if not self.muon >= 0:
            raise UserError(f"muon: must be at least 0, got {self.muon}")
        if self.precision not in PRECISIONS:
            raise UserError(
                f"precision: '{self.precision}' is unknown; choose one of {', '.join(PRECISIONS)}"
            )

    def rate_at(self, step: int) -> float:
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        share = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * share))


@dataclass(frozen=True, kw_only=True)
class PictureTrainingConfig(TrainingConfig):
    """A schedule and how real pictures are spoilt, so that blurred, grainy, painted ones are read fairly.

    shift_pixels: pictures move by up to so many pixels; they are never flipped, because captions say left and right.
    brightness: a factor of 1 +- this. blur: share of pictures (0..1) that are blurred, each by its own strength, a
    3x3 mean at most. noise: largest standard deviation of added noise (pixels 0..1), drawn for each picture.
    """

    shift_pixels: int
    brightness: float = 0.0
    blur: float = 0.0
    noise: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shift_pixels < 0 or self.noise < 0:
            raise UserError("shift_pixels and noise must be at least 0")
        if not (0 <= self.brightness < 1 and 0 <= self.blur <= 1):
            raise UserError(
                f"brightness and blur must be within 0..1, are {self.brightness:g} and {self.blur:g}"
            )


def batch_indices(count: int, batch_size: int, seed: int, step: int) -> np.ndarray:
    """Indices int64 [min(batch_size, count)] of a step: epochs are permutations, the last part is dropped."""
    batch_size = min(batch_size, count)
    epoch, batch = divmod(step, count // batch_size)
    order = np.random.default_rng((seed, epoch)).permutation(count)
    return order[batch * batch_size : (batch + 1) * batch_size]


def train(
    description: str,
    network: nn.Module,
    config: TrainingConfig,
    loss_at: Callable[[int, np.random.Generator], dict[str, Tensor]],
    checkpoints: Checkpoints | None,
    ends: Iterable[nn.Module | nn.Parameter],
) -> list[dict[str, float]]:
    """Train in place and return history rows (step, learning_rate and the named losses); freeze at the end.

    `loss_at(step, generator)` returns named losses; "loss" is minimised. All randomness of a step
    comes from (seed, step), so a run that was interrupted ends with the same weights as one that was
    not. `ends`: what :class:`diptych.eval.optimizers.Optimizers` leaves to AdamW. Raises UserError when the loss is not finite.
    """
    network.requires_grad_(True).train()
    optimizers = Optimizers(network, ends, config.weight_decay, config.muon, betas=(0.9, 0.98))

    start, history = 0, []
    state = checkpoints.load() if checkpoints else None
    if state is not None:
        network.load_state_dict(state["model"])
        optimizers.load_state_dict(state["optimizers"])
        start, history = state["step"], list(state["history"])

    def save(step: int) -> None:
        if checkpoints:
            checkpoints.save(
                {
                    "model": network.state_dict(),
                    "optimizers": optimizers.state_dict(),
                    "step": step,
                    "history": history,
                }
            )

    saved_step, saved_at = start, time.monotonic()
    bar = tqdm(total=config.steps, initial=start, unit="step", desc=description, mininterval=1)
    for step in range(start, config.steps):
        torch.manual_seed(config.seed * 1_000_003 + step)
        rate = config.rate_at(step)
        losses = loss_at(step, np.random.default_rng((config.seed, step, 1)))
        value = losses["loss"].item()
        if not math.isfinite(value):
            raise UserError(
                f"{description}: the loss is {value} at step {step}; the last good checkpoint is of step {saved_step}. "
                "Lower learning_rate or set precision to float32."
            )
        losses["loss"].backward()
        nn.utils.clip_grad_norm_(network.parameters(), config.gradient_clip)
        optimizers.step(rate)
        bar.update()
        if step % _HISTORY_EVERY == 0 or step == config.steps - 1:
            row: dict[str, Any] = {name: float(loss.detach()) for name, loss in losses.items()}
            history.append({"step": step, **row, "learning_rate": rate})
            bar.set_postfix(loss=f"{value:.3f}", refresh=False)
        if time.monotonic() - saved_at >= config.checkpoint_seconds:
            save(step + 1)
            saved_step, saved_at = step + 1, time.monotonic()
    bar.close()
    if saved_step < config.steps:
        save(config.steps)
    network.eval().requires_grad_(False)
    return history


def spoilt(images: Tensor, config: PictureTrainingConfig, generator: np.random.Generator) -> Tensor:
    """Float pictures [n, 3, H, W] in 0..1, each shifted, dimmed or brightened, blurred and noisy in its own way."""
    count, device = len(images), images.device

    def per_picture(low: float, high: float) -> Tensor:
        return torch.from_numpy(generator.uniform(low, high, (count, 1, 1, 1)).astype(np.float32)).to(device)

    images = shifted(images, config.shift_pixels, generator)
    if config.brightness:
        images = images * per_picture(1 - config.brightness, 1 + config.brightness)
    if config.blur:
        padded = functional.pad(images, (1,) * 4, mode="replicate")
        strength = per_picture(0, 1) * (per_picture(0, 1) < config.blur)
        images = images.lerp(functional.avg_pool2d(padded, 3, stride=1), strength)
    if config.noise:
        images = images + torch.randn_like(images) * per_picture(0, config.noise)
    return images.clamp(0, 1)


def shifted(images: Tensor, pixels: int, generator: np.random.Generator) -> Tensor:
    """Float pictures [n, 3, H, W], each moved by up to `pixels` either way; edges repeat."""
    if not pixels:
        return images
    height, width = images.shape[-2:]
    padded = functional.pad(images, (pixels,) * 4, mode="replicate")
    offsets = generator.integers(0, 2 * pixels + 1, size=(len(images), 2))
    moved = [
        picture[:, y : y + height, x : x + width] for picture, (y, x) in zip(padded, offsets, strict=True)
    ]
    return torch.stack(moved)
