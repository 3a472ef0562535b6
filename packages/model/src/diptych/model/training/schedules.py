"""Learning rates of the steps of a training."""

from __future__ import annotations

import math
from collections.abc import Callable


def warmup_constant(step: int, steps: int, peak: float, warmup_share: float) -> float:
    """Learning rate of ``step``: linear from 0 to ``peak`` over the first share of the steps, then ``peak``."""
    return peak * min(1.0, (step + 1) / max(1, round(steps * warmup_share)))


def warmup_cosine(step: int, steps: int, peak: float, warmup_share: float) -> float:
    """Learning rate of ``step``: as :func:`warmup_constant` over the first share of the steps, then a cosine to 0
    (UMT 5.1)."""
    warmup = max(1, round(steps * warmup_share))
    if step < warmup:
        return warmup_constant(step, steps, peak, warmup_share)
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def warmup_linear(step: int, steps: int, peak: float, warmup_share: float) -> float:
    """Learning rate of ``step``: as :func:`warmup_constant` over the first share of the steps, then linear to 0 (LXMERT)."""
    warmup = max(1, round(steps * warmup_share))
    if step < warmup:
        return warmup_constant(step, steps, peak, warmup_share)
    return peak * (steps - step) / max(1, steps - warmup)


# what may follow the warm-up, by the names that settings have
SCHEDULES: dict[str, Callable[[int, int, float, float], float]] = {
    "cosine": warmup_cosine,
    "constant": warmup_constant,
}
