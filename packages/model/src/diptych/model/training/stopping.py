"""Ending a training whose figures fall, and keeping the weights from before the fall."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from diptych.model.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Stopping:
    """When to stop. Higher is better for the watched figures.

    Attributes:
        watched: names of figures of the evaluations.
        tolerance: share of its best value so far that a figure may lose before it counts as fallen, in [0, 1).
        patience: evaluations in turn with a fallen figure that end the training.
    """

    watched: tuple[str, ...]
    tolerance: float
    patience: int

    def __post_init__(self) -> None:
        if not 0 <= self.tolerance < 1:
            raise UserError(f"stopping.tolerance must be in [0, 1), is {self.tolerance}")
        if self.patience < 1:
            raise UserError(f"stopping.patience must be at least 1, is {self.patience}")

    def fallen(self, evaluations: Sequence[Mapping[str, float]]) -> list[str]:
        """Return what has fallen in the last of ``evaluations``: "name from its best value to this".

        What is not finite has fallen, and is the best of nothing. Raises UserError for a watched figure that is not there.
        """
        last = evaluations[-1]
        if unknown := [name for name in self.watched if name not in last]:
            known = ", ".join(name for name in last if name != "step")
            raise UserError(
                f"stopping.watched: {', '.join(unknown)} cannot be measured here; known are {known}"
            )
        fallen = []
        for name in self.watched:
            best = max((row[name] for row in evaluations if math.isfinite(row[name])), default=math.nan)
            if not math.isfinite(last[name]) or last[name] < best - self.tolerance * abs(best):
                fallen.append(f"{name} from {best:.4g} to {last[name]:.4g}")
        return fallen

    def ends(self, evaluations: Sequence[Mapping[str, float]]) -> bool:
        """Whether each of the last ``patience`` evaluations had fallen."""
        count = len(evaluations)
        return count >= self.patience and all(
            self.fallen(evaluations[: count - back]) for back in range(self.patience)
        )
