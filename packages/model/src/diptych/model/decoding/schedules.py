"""How many cells each step of mask-predict-k predicts."""

from __future__ import annotations

import math

from diptych.model.decoding.paint import mask_predict_counts
from diptych.model.errors import UserError

SCHEDULES = ("linear", "cosine")


def cosine_counts(cells: int, steps: int) -> list[int]:
    """Return cells * cos(pi / 2 * i / k), rounded up, for i = 0 .. k - 1 (MaskGIT, Chang et al. 2022): 64, 60, 46, 25.

    More is predicted again than by the linear schedule, while little is certain.
    """
    shares = (math.cos(math.pi / 2 * step / steps) for step in range(steps))
    # cos(pi / 3) is a little above a half, which is no cell more
    return [math.ceil(round(cells * share, 9)) for share in shares]


def schedule_counts(free: int, steps: int, schedule: str, cells: int) -> list[int]:
    """Return how many of an image's ``free`` cells each step predicts, by the schedule ``linear`` (X-LXMERT 5.2) or
    ``cosine``.

    Raises:
        UserError: fewer steps than one or more than the grid has ``cells``.
    """
    if not 1 <= steps <= cells:
        raise UserError(f"steps must be from 1 to {cells}, the number of cells, is {steps}")
    counts = mask_predict_counts if schedule == "linear" else cosine_counts
    return counts(free, steps)
