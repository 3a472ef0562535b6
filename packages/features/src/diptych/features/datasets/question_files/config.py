"""Which question files are read, and as what."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Form = Literal["vqa", "gqa", "visual_genome", "nlvr2", "lxmert", "plain"]


@dataclass(frozen=True)
class QuestionSource:
    """One question file.

    form: vqa (VQA v2's questions, with `annotations` where answers are known), gqa (a file of questions by id, with
    `choices` where validity is to be measured), visual_genome (question_answers.json), nlvr2 (a statement a line),
    lxmert (its aligned sentences and labels, or its files for fine-tuning), plain (a list of {image, question,
    answers or answer, id, split, kind}; of these only image and question are needed).
    split: of all its questions; null takes a row's own, else the one that its picture has in the manifest.
    missing_share: of its questions may be about pictures that are not there; they are left out and told.
    """

    form: Form
    questions: Path
    annotations: Path | None = None
    choices: Path | None = None
    split: str | None = None
    missing_share: float = 0.01

    def __post_init__(self) -> None:
        if self.annotations is not None and self.form != "vqa":
            raise ValueError(f"annotations belong to the form vqa, not to {self.form}; set it to null")
        if self.choices is not None and self.form != "gqa":
            raise ValueError(f"choices belong to the form gqa, not to {self.form}; set it to null")
        if not 0 <= self.missing_share <= 1:
            raise ValueError(f"missing_share is a share between 0 and 1, is {self.missing_share}")


@dataclass(frozen=True)
class QuestionFilesConfig:
    """Files of each of the three tables of questions; none leaves a table empty."""

    vqa: list[QuestionSource] = field(default_factory=list)
    gqa: list[QuestionSource] = field(default_factory=list)
    nlvr2: list[QuestionSource] = field(default_factory=list)
