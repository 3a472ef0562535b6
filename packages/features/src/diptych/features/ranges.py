"""Ranges of parameters, for the `__post_init__` of what holds them: one line that names the parameter."""

from __future__ import annotations


def check_at_least(config: object, least: float, *names: str) -> None:
    """Raise ValueError where a field of `config`, or one of its numbers where it holds several, is below `least`; null passes."""
    for name in names:
        value = getattr(config, name)
        numbers = value if isinstance(value, (list, tuple)) else [] if value is None else [value]
        if not all(number >= least for number in numbers):  # not `<`: NaN is wrong too
            raise ValueError(f"{name} must be at least {least}, is {value}")


def check_shares(config: object, *names: str) -> None:
    """Raise ValueError where a field of `config` is not between 0 and 1."""
    for name in names:
        if not 0 <= getattr(config, name) <= 1:
            raise ValueError(f"{name} is a share between 0 and 1, is {getattr(config, name)}")
