"""Measuring on a shared machine: the sides take turns, and the median of the ratios of neighbours counts."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import TypeVar

T = TypeVar("T")


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def alternate(sides: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """Call every side once in each round, in turns; returns what each returned (seconds, rates), round by round."""
    measured: dict[str, list[T]] = {name: [] for name in sides}
    for round_number in range(rounds):
        names = list(sides)
        # every other round backwards, so that a machine that slows down favours nobody
        for name in names if round_number % 2 == 0 else reversed(names):
            measured[name].append(sides[name]())
    return measured


def median_ratio(numerators: list[float], denominators: list[float]) -> float:
    """Median over the rounds of numerator / denominator."""
    return statistics.median(a / b for a, b in zip(numerators, denominators, strict=True))
