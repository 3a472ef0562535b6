"""How captions are written and paintings painted: plain data with checked values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeVar

from diptych.model.errors import UserError

LEAST_TEMPERATURE = 1e-6  # above 0
MOST_LENGTH_POWER = 100.0


@dataclass(frozen=True, kw_only=True)
class CaptionOptions:
    """How captions are written. ``docs/decoding.md`` says when to use what.

    Attributes:
        length: tokens in a row, ``[CLS]`` and ``[SEP]`` included (UMT 5.1: 17 tokens; the released code counts [CLS] among them); at least 3.
        method: ``greedy`` takes the likeliest word, ``sample`` draws it, ``beam`` searches the likeliest caption.
        start: the words that every caption starts with, such as "A" or "What" (X-LXMERT 7.3).
        no_repeat: size of the word sequences that may not occur twice in a caption; 0: all may.
        temperature: of ``sample``; above 0.
        top_k: ``sample`` draws from so many of the likeliest words; null: from all.
        top_p: ``sample`` draws from the likeliest words that together have this share of the probability; in (0, 1].
        beams: unfinished captions that ``beam`` continues at a time.
        groups: of beams, which ``beam`` keeps apart by ``diversity``; divides ``beams``.
        diversity: cost of a word for each beam of an earlier group that has just taken it, in log-probability.
        length_power: ``beam`` ranks captions by the sum of log-probabilities / length ** length_power; at least 0.
        samples: captions per image: draws of ``sample``, or the best ones that ``beam`` found.
    """

    length: int
    method: Literal["greedy", "sample", "beam"] = "greedy"
    start: str = ""
    no_repeat: int = 0
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    beams: int = 5
    groups: int = 1
    diversity: float = 0.0
    length_power: float = 1.0
    samples: int = 1

    def __post_init__(self) -> None:
        right_kinds(self)
        one_of(self, "method", ("greedy", "sample", "beam"))
        for name in ("temperature", "top_k", "top_p"):
            only_for(self, name, ("sample",))
        for name in ("beams", "groups", "diversity", "length_power"):
            only_for(self, name, ("beam",))
        only_for(self, "samples", ("sample", "beam"))
        at_least(self, {"length": 3, "no_repeat": 0, "beams": 1, "groups": 1, "samples": 1})
        at_least(self, {"diversity": 0, "length_power": 0})
        if self.length_power > MOST_LENGTH_POWER:
            raise UserError(f"length_power must be at most {MOST_LENGTH_POWER}, is {self.length_power}")
        above_zero(self, "temperature")
        check_temperature(self)
        check_filters(self)
        if self.beams % self.groups:
            raise UserError(f"groups ({self.groups}) must divide beams ({self.beams})")
        if (self.groups > 1) != (self.diversity > 0):
            raise UserError(
                f"groups above 1 and diversity above 0 go together: groups is {self.groups}, diversity {self.diversity}"
            )
        if self.method == "beam" and self.samples > self.beams:
            raise UserError(f"samples ({self.samples}) must be at most beams ({self.beams})")


@dataclass(frozen=True, kw_only=True)
class AnswerOptions:
    """How questions are read.

    Attributes:
        length: most tokens of a question or statement, ``[CLS]`` and ``[SEP]`` included (20 in X-LXMERT); at least 3.
    """

    length: int = 20

    def __post_init__(self) -> None:
        right_kinds(self)
        at_least(self, {"length": 3})


@dataclass(frozen=True, kw_only=True)
class PaintOptions:
    """How paintings are painted. ``docs/decoding.md`` says when to use what.

    Attributes:
        method: ``mask_predict``: all cells at first, then the least certain ones again, for some steps; ``rows``: one
            cell after the other from the top left to the bottom right; ``random``: in random order; ``easiest``: always
            the most certain one; ``gibbs``: sampled in random order, sweep after sweep.
        steps: k of mask-predict-k; from 1 to the number of cells.
        schedule: how many cells the steps of ``mask_predict`` predict, ``linear`` (X-LXMERT 5.2) or ``cosine``.
        extra_steps: cells that ``random`` paints once more after all are painted.
        sweeps: how often ``gibbs`` goes through all cells.
        cells_at_once: cells that a step of ``gibbs`` samples.
        guidance: scale of classifier-free guidance; 1 is none.
        temperature: 0 takes the likeliest code, above 0 samples from softmax(logits / temperature); ``gibbs`` samples.
        top_k: of codes that are sampled, so many of the likeliest are left; null: all.
        top_p: then the likeliest that together have this share of the probability; in (0, 1].
        confidence_noise: scale of Gumbel noise on the log-confidences by which ``mask_predict`` and ``easiest`` choose
            cells, falling linearly.
        samples: paintings per caption.
    """

    method: Literal["mask_predict", "rows", "random", "easiest", "gibbs"] = "mask_predict"
    steps: int = 4
    schedule: Literal["linear", "cosine"] = "linear"
    extra_steps: int = 0
    sweeps: int = 1
    cells_at_once: int = 1
    guidance: float = 1.0
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0
    confidence_noise: float = 0.0
    samples: int = 1

    def __post_init__(self) -> None:
        right_kinds(self)
        one_of(self, "method", ("mask_predict", "rows", "random", "easiest", "gibbs"))
        one_of(self, "schedule", ("linear", "cosine"))
        for name in ("steps", "schedule"):
            only_for(self, name, ("mask_predict",))
        only_for(self, "extra_steps", ("random",))
        for name in ("sweeps", "cells_at_once"):
            only_for(self, name, ("gibbs",))
        only_for(self, "confidence_noise", ("mask_predict", "easiest"))
        at_least(self, {"steps": 1, "extra_steps": 0, "sweeps": 1, "cells_at_once": 1, "samples": 1})
        at_least(self, {"temperature": 0, "confidence_noise": 0})
        check_temperature(self)
        check_filters(self)
        if self.temperature == 0 and (self.top_k, self.top_p) != (None, 1.0):
            raise UserError(
                "top_k and top_p are of codes that are sampled: temperature must be above 0, is 0"
            )
        if self.method == "gibbs" and self.temperature == 0:
            raise UserError("method gibbs samples: temperature must be above 0, is 0")
        if self.samples > 1 and not self.is_random:
            raise UserError(
                f"samples is {self.samples}, but method {self.method} paints the same every time; "
                "set temperature above 0"
            )

    @property
    def is_random(self) -> bool:
        """Whether paintings depend on a seed."""
        return self.temperature > 0 or self.confidence_noise > 0 or self.method in ("random", "gibbs")


COMMON_TO_METHODS = {
    CaptionOptions: ("length", "start", "no_repeat"),
    PaintOptions: ("guidance", "temperature", "top_k", "top_p"),
}
Options = TypeVar("Options", CaptionOptions, PaintOptions)


def with_changes(options: Options, changes: Mapping[str, Any]) -> Options:
    """Return ``options`` with ``changes``; with another ``method`` only what all methods have stays of them.

    Raises:
        UserError: a change is no option, or not one of the method.
    """
    known = {field.name for field in fields(options)}
    if unknown := sorted(changes.keys() - known):
        raise UserError(f"{unknown[0]}: no such option (known: {', '.join(sorted(known))})")
    kept = known
    if changes.get("method", options.method) != options.method:
        kept = set(COMMON_TO_METHODS[type(options)])
    return type(options)(**{**{name: getattr(options, name) for name in kept}, **changes})


def right_kinds(options: Any) -> None:
    """Whole numbers, finite numbers and strings, as the fields' types say (those of parameter files are checked before,
    those of callers are not)."""
    for field in fields(options):
        kind, value = str(field.type), getattr(options, field.name)
        if isinstance(value, bool):
            right = False
        elif kind.startswith("int"):
            right = isinstance(value, int) or (value is None and kind.endswith("None"))
        elif kind == "float":
            right = isinstance(value, int | float) and math.isfinite(value)
        else:
            right = isinstance(value, str)
        if not right:
            whole = "a whole number" if kind.startswith("int") else "a string"
            raise UserError(
                f"{field.name} must be {'a finite number' if kind == 'float' else whole}, is {value!r}"
            )


def one_of(options: Any, name: str, choices: tuple[str, ...]) -> None:
    if getattr(options, name) not in choices:
        raise UserError(f"{name} must be one of {', '.join(choices)}, is {getattr(options, name)!r}")


def at_least(options: Any, least: Mapping[str, float]) -> None:
    for name, number in least.items():
        value = getattr(options, name)
        if value is not None and not value >= number:  # not `<`: NaN is wrong too
            raise UserError(f"{name} must be at least {number}, is {value}")


def above_zero(options: Any, *names: str) -> None:
    for name in names:
        if not getattr(options, name) > 0:
            raise UserError(f"{name} must be above 0, is {getattr(options, name)}")


def check_temperature(options: CaptionOptions | PaintOptions) -> None:
    """Raise a UserError where logits divided by the temperature would be no float32 numbers any more."""
    if 0 < options.temperature < LEAST_TEMPERATURE:
        raise UserError(f"temperature must be at least {LEAST_TEMPERATURE:g}, is {options.temperature}")


def check_filters(options: CaptionOptions | PaintOptions) -> None:
    """Raise a UserError where top_k or top_p leaves nothing or more than all."""
    at_least(options, {"top_k": 1})
    above_zero(options, "top_p")
    if options.top_p > 1:
        raise UserError(f"top_p must be in (0, 1], is {options.top_p}")


def only_for(options: Any, name: str, methods: tuple[str, ...]) -> None:
    """A value that the method would not use is a mistake, unless it is the default."""
    default = next(field.default for field in fields(options) if field.name == name)
    if getattr(options, name) != default and options.method not in methods:
        raise UserError(
            f"{name} belongs to method {' or '.join(methods)}, method is {options.method}; leave {name} out"
        )
