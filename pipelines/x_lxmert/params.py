"""The section `x_lxmert` of params.yaml, and where its stages read and write."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from diptych.features.datasets.question_files import QuestionFilesConfig
from diptych.features.datasets.toybox import QuestionsConfig
from diptych.features.questions import questions_of, read_questions
from diptych.features.ranges import check_at_least
from diptych.model.training.fine_tuning import FineTuningConfig
from diptych.model.training.pretraining import PretrainingConfig
from pipelines.train_token import AnswersParams, TokenizerParams

CODEBOOK = Path("data/codebook")
PRETRAINED = Path("models/x_lxmert/pretrained")
ANSWERED = Path("data/x_lxmert/answers.parquet")
FIGURES = Path("metrics/x_lxmert_figures.json")

Task = Literal["vqa", "gqa", "nlvr2"]
Start = Literal["pretrained", "random"]
TASKS: tuple[Task, ...] = ("vqa", "gqa", "nlvr2")


@dataclass(frozen=True)
class QuestionsParams:
    """toybox: what is asked about the pictures that `dataset.toybox` draws; files: of questions about pictures that are there
    (docs/questions.md). One of them is null."""

    toybox: QuestionsConfig | None
    files: QuestionFilesConfig | None

    def __post_init__(self) -> None:
        if (self.toybox is None) == (self.files is None):
            raise ValueError("give one of toybox and files, and null for the other")


@dataclass(frozen=True)
class PretrainParams:
    """attention: masked, LXMERT's, or prefix, by which one pass sees the picture for all its sentences (docs/attention.md).
    questions: the tables that pretraining asks from; answers: its answer table; training: its schedule.

    Without `training.discrete`, which is LXMERT's, the detector says what the objects of masked cells are.
    """

    attention: Literal["masked", "prefix"]
    questions: tuple[Literal["vqa", "gqa"], ...]
    answers: AnswersParams
    training: PretrainingConfig


@dataclass(frozen=True)
class FineTuneParams:
    """attention: as of the pretraining. length: tokens of a question, [CLS] and [SEP] included. answers: the answer
    table; null for statements, which are true or false. training: the schedule."""

    attention: Literal["masked", "prefix"]
    length: int
    answers: AnswersParams | None
    training: FineTuningConfig

    def __post_init__(self) -> None:
        check_at_least(self, 3, "length")


@dataclass(frozen=True)
class Params:
    """tasks: what is fine-tuned and measured. starts: from what, the pretrained weights and, to compare with, random ones.

    network: a named size of diptych.model. architecture: two_streams, X-LXMERT's, or single_stream, X-UNITER's. tokenizer: of the vocabulary, from captions, questions and statements.
    fine_tuning: by task. batch_size: pictures at a time when answers are measured. examples: questions of each task on the
    page.
    """

    tasks: tuple[Task, ...]
    starts: tuple[Start, ...]
    network: str
    architecture: Literal["two_streams", "single_stream"]
    tokenizer: TokenizerParams
    questions: QuestionsParams
    pretraining: PretrainParams
    fine_tuning: dict[str, FineTuneParams]
    batch_size: int
    examples: int

    def __post_init__(self) -> None:
        check_at_least(self, 1, "batch_size")
        check_at_least(self, 0, "examples")
        if not self.tasks or "pretrained" not in self.starts:
            raise ValueError("give at least one of tasks, and of starts at least pretrained")
        for name in self.fine_tuning:
            if name not in TASKS:
                raise ValueError(f"fine_tuning.{name}: no such task (known: {', '.join(TASKS)})")
        for task in self.tasks:
            if task not in self.fine_tuning:
                raise ValueError(f"fine_tuning.{task}: missing, since tasks has {task}")
            if (self.fine_tuning[task].answers is None) != (task == "nlvr2"):
                raise ValueError(
                    f"fine_tuning.{task}.answers: null for nlvr2, whose statements are true or false, and for no other"
                )


def questions_file(task: str) -> Path:
    """The table that the stage `questions` writes for a task."""
    return Path(f"data/x_lxmert/questions/{task}.parquet")


def model_folder(task: str, start: str) -> Path:
    """The model directory that is fine-tuned for a task."""
    return Path(f"models/x_lxmert/{task}_{start}")


def questions_in(task: str, split: str) -> list[dict[str, Any]]:
    """The rows of a task's table in a split. Raises UserError where there are none."""
    file = questions_file(task)
    return questions_of(read_questions(file), [split], file)
