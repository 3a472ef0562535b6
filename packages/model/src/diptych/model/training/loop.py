"""What both training stages share: optimizer, schedule, checkpoints, progress, history."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from diptych.model.errors import UserError

HISTORY_STEPS = 20


class Checkpoints(Protocol):
    """Where a run keeps its state (``diptych.model.checkpoints.TrainingCheckpoints``)."""

    def load(self) -> dict[str, Any] | None:
        """Return the newest state or None."""

    def save(self, state: dict[str, Any]) -> None:
        """Store a state atomically."""


class TrainingShards(Protocol):
    """The part of ``diptych.features.shards.ShardDataset`` that training reads."""

    keys: list[str]

    def __len__(self) -> int:
        """Number of images."""

    def grid(self, indices: Any) -> Any:
        """Grid features, numpy float16 ``[n, 64, D]``."""

    def codes(self, indices: Any) -> Any:
        """Codes, numpy int64 ``[n, 64]``."""

    def captions(self, index: int) -> list[str]:
        """The captions of one image."""


def warmup_cosine(step: int, steps: int, peak: float, warmup_share: float) -> float:
    """Learning rate of ``step``: linear from 0 to ``peak`` over the first share of the steps, then a cosine to 0
    (UMT 5.1)."""
    warmup = max(1, round(steps * warmup_share))
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def fingerprint(model: nn.Module, *parts: object) -> str:
    """Hash what a run starts from: the initial weights and the ``parts`` (settings, data keys, other tensors).

    A checkpoint of a run that started from anything else is not resumed.
    """
    digest = hashlib.sha256()
    for part in (*model.state_dict().values(), *parts):
        if isinstance(part, Tensor):
            digest.update(part.detach().float().cpu().contiguous().numpy())
        else:
            digest.update(repr(part).encode())
    return digest.hexdigest()


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Decay the matrices of linear layers; leave embedding tables, LayerNorm, biases and the mask feature alone.

    (The papers' code decays everything, even what has no gradient in a step; at their learning rates both hardly
    differ.)
    """
    decayed = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear)}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in trained if id(p) in decayed], "weight_decay": weight_decay},
        {"params": [p for p in trained if id(p) not in decayed], "weight_decay": 0.0},
    ]


def run_training(
    model: nn.Module,
    name: str,
    steps: int,
    seed: int,
    step_loss: Callable[[int], tuple[Tensor, dict[str, float | Tensor]]],
    learning_rate: Callable[[int], float],
    weight_decay: float,
    clip_norm: float,
    ema_decay: float,
    started_from: str,
    checkpoints: Checkpoints | None,
    checkpoint_seconds: float,
) -> list[dict[str, float]]:
    """Train ``model`` in place for ``steps`` steps; resume exactly where a checkpoint of the same run stands.

    Everything random in a step must come from torch's global generators, which are seeded with (seed, step) before
    ``step_loss(step)`` returns the loss and the figures to report.

    Args:
        ema_decay: the model ends with the exponential moving average of its weights (0: with its last weights).
        started_from: :func:`fingerprint` of the run.

    Returns:
        One row per 20 steps: step, learning_rate, gradient_norm and the mean of every reported figure.

    Raises:
        UserError: a loss or gradient is not finite.
    """
    optimizer = torch.optim.AdamW(
        parameter_groups(model, weight_decay), lr=0.0, betas=(0.9, 0.999), fused=True
    )
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    averages = [weight.detach().clone() for weight in weights] if ema_decay else []
    history: list[dict[str, float]] = []
    sums: dict[str, list[float]] = {}  # figure: total and count since the last history row
    start = saved_step = 0
    state = checkpoints.load() if checkpoints else None
    if state is not None and state["started_from"] == started_from:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        averages = state["averages"]
        history, sums = state["history"], state["sums"]
        start = saved_step = state["step"]

    model.train()
    saved_at = time.monotonic()
    progress = tqdm(total=steps, initial=start, desc=name, unit="step", mininterval=1)
    for step in range(start, steps):
        torch.manual_seed(seed * 1_000_003 + step)
        rate = learning_rate(step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss, figures = step_loss(step)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(weights, clip_norm)
        if not math.isfinite(norm.item() + loss.item()):
            last = (
                f"the last good checkpoint is of step {saved_step}"
                if saved_step
                else "there is no checkpoint yet"
            )
            raise UserError(
                f"{name}: loss {loss.item()} and gradient norm {norm.item()} at step {step}; {last}; "
                "lower learning_rate or use precision float32"
            )
        optimizer.step()
        optimizer.zero_grad()
        if ema_decay:
            # The average of the first steps must not remember the random start.
            decay = min(ema_decay, (1 + step) / (10 + step))
            with torch.no_grad():
                torch._foreach_lerp_(averages, weights, 1 - decay)

        for key, value in {**figures, "gradient_norm": norm}.items():
            total = sums.setdefault(key, [0.0, 0.0])
            total[0] += float(value)
            total[1] += 1
        progress.update()
        if (step + 1) % HISTORY_STEPS == 0 or step + 1 == steps:
            means = {key: total / count for key, (total, count) in sums.items()}
            history.append({"step": step + 1, "learning_rate": rate, **means})
            sums = {}
            progress.set_postfix({key: f"{value:.3f}" for key, value in means.items()})
        if checkpoints and (time.monotonic() - saved_at > checkpoint_seconds or step + 1 == steps):
            checkpoints.save(
                {
                    "started_from": started_from,
                    "step": step + 1,
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "averages": averages,
                    "history": history,
                    "sums": sums,
                }
            )
            saved_step, saved_at = step + 1, time.monotonic()
    progress.close()
    if ema_decay:
        with torch.no_grad():
            torch._foreach_copy_(weights, averages)
    model.eval()
    return history
