"""Parameters of captioning and painting a set of pictures; alone, so that who reads them does not run what does."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from diptych.features.ranges import check_at_least
from diptych.model.decoding.options import AnswerOptions, CaptionOptions, PaintOptions
from pipelines.measuring.drawn import Sample


@dataclass(frozen=True)
class EvaluationSet:
    """The pictures to caption, and those whose captions are painted; they may be others (UMT 5.1). answer: those whose
    questions are answered; null: none."""

    caption: Sample
    paint: Sample
    answer: Sample | None = None


@dataclass(frozen=True)
class GenerateParams:
    """sets: a file each, by name; `evaluate` measures "test". batch_size: pictures at a time. Of several samples of a
    picture the one that the scorer likes best is kept."""

    sets: dict[str, EvaluationSet]
    batch_size: int
    caption: CaptionOptions
    paint: PaintOptions
    answer: AnswerOptions = field(default_factory=AnswerOptions)

    def __post_init__(self) -> None:
        check_at_least(self, 1, "batch_size")
        if "test" not in self.sets:
            raise ValueError("sets: one has to be named test, which is what evaluate measures")
        for name in self.sets:
            if not re.fullmatch(r"[A-Za-z0-9_]+", name):
                raise ValueError(f"sets.{name}: a name has letters, digits and _: it becomes a file's name")
