"""Answering: what pictures and questions are answered with, what is said of two pictures, and where a question looks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Protocol, TypeVar

from PIL import Image
from torch import Tensor

from diptych.model.answer_table import AnswerTable
from diptych.model.decoding.answer import RankedAnswer, equally_asked, rank_answers
from diptych.model.errors import UserError
from diptych.model.packaged.arguments import listed_captions
from diptych.model.packaged.attention import WordAttention
from diptych.model.packaged.machine import Machine
from diptych.model.packaged.pictures import (
    Picture,
    Pictures,
    check_batch_size,
    listed,
    read_pictures,
)
from diptych.model.tokenizer import CaptionTokenizer

QUESTIONS_AT_ONCE = 256
Item = TypeVar("Item")


class AnswerDecoder(Protocol):
    """What answers; each family has its own. Called in :meth:`diptych.model.packaged.machine.Machine.inference`."""

    @property
    def answers(self) -> bool:
        """Whether it can answer questions about a picture."""

    @property
    def verifies(self) -> bool:
        """Whether it can say if a statement is true of two pictures."""

    def see(self, images: Sequence[Image.Image]) -> list[Tensor]:
        """What is computed once for all questions about n RGB images, one row each."""

    def answer(self, seen: list[Tensor], ids: Tensor) -> Tensor:
        """Logits ``[n * c, A]`` of the answers to questions ids int64 ``[n, c, t]``."""

    def verify(self, left: list[Tensor], right: list[Tensor], ids: Tensor) -> Tensor:
        """Logits ``[n, 2]`` of (false, true) of statements ids int64 ``[n, t]`` about n pairs of images."""

    def question_attention(self, seen: list[Tensor], ids: Tensor) -> list[WordAttention]:
        """Where the words of questions ids int64 ``[n, t]`` look in n images."""


@dataclass(frozen=True)
class Answer:
    """The answer to a question about a picture; ``str(answer)`` is its text.

    Attributes:
        text: the likeliest answer.
        probability: its probability among all answers of the table, in [0, 1].
        ranked: the likeliest answers with their probabilities, likeliest first.
        attention: where the words of the question look, if asked for.
    """

    text: str
    probability: float
    ranked: tuple[RankedAnswer, ...]
    attention: WordAttention | None = None

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Verdict:
    """What is said of a statement about two pictures; true or false as a condition.

    Attributes:
        true: whether it is likelier true than false.
        probability: that it is true, in [0, 1].
    """

    true: bool
    probability: float

    def __bool__(self) -> bool:
        return self.true

    def __str__(self) -> str:
        return "true" if self.true else "false"


class AnsweringPart:
    """Everything that a package answers."""

    def __init__(
        self,
        decoder: AnswerDecoder | None,
        tokenizer: CaptionTokenizer,
        table: AnswerTable | None,
        length: int,
        machine: Machine,
    ) -> None:
        """``decoder``: None where the family answers nothing. ``length``: most tokens of a question, ``[CLS]`` and ``[SEP]`` included."""
        self._decoder, self.tokenizer, self.table = decoder, tokenizer, table
        self.length, self.machine = length, machine

    @property
    def decoder(self) -> AnswerDecoder:
        """What answers. Raises a UserError where the family has nothing that does."""
        if self._decoder is None:
            raise UserError("this package captions and paints only: models of its family answer no questions")
        return self._decoder

    def answer(
        self,
        pictures: Pictures,
        questions: str | Sequence[str],
        most: int,
        return_attention: bool,
        batch_size: int,
    ) -> list[Answer]:
        """See :meth:`diptych.model.Diptych.answer`."""
        self._check_head()
        if most < 1:
            raise UserError(f"most: {most} answers; at least 1")
        check_batch_size(batch_size)
        asked = self._asked(listed(pictures), questions)
        self._check_all([text for _, texts in asked for text in texts])
        return [
            answer
            for batch in equally_asked(asked, batch_size)
            for answer in self._batch(*batch, most, return_attention)
        ]

    def check(self, question: str) -> None:
        """See :meth:`diptych.model.Diptych.check_question`."""
        self._check_head()
        self._check_all(listed_captions(question, "questions"))

    def verify(
        self, pairs: Sequence[tuple[Picture, Picture]], statements: Sequence[str], batch_size: int
    ) -> list[Verdict]:
        """See :meth:`diptych.model.Diptych.verify`."""
        if not self.decoder.verifies:
            raise UserError(
                "this package has no head for pairs of pictures: its model was not fine-tuned on statements"
            )
        if len(pairs) != len(statements):
            raise UserError(
                f"{len(statements)} statements for {len(pairs)} pairs; give one statement for each"
            )
        check_batch_size(batch_size)
        self._check_all(statements, "statement")
        found = []
        for start in range(0, len(pairs), batch_size):
            part = pairs[start : start + batch_size]
            left, right = ([pair[side] for pair in part] for side in (0, 1))
            images = read_pictures([*left, *right], 2 * start)
            ids = self.tokenizer.encode_questions(statements[start : start + batch_size], self.length)
            with self.machine.inference():
                sides = self.decoder.see(images[: len(part)]), self.decoder.see(images[len(part) :])
                logits = self.decoder.verify(*sides, ids.to(self.machine.device))
            for probability in logits.float().softmax(-1)[:, 1].tolist():
                found.append(Verdict(probability > 0.5, probability))
        return found

    def _asked(
        self, pictures: list[Picture], questions: str | Sequence[str]
    ) -> list[tuple[Picture, list[str]]]:
        """Each picture with its questions, in order."""
        texts = listed_captions(questions, "questions")
        if not pictures:
            raise UserError("there is no picture")
        if len(pictures) == 1:
            return [(pictures[0], texts)]
        if isinstance(questions, str):
            return [(picture, texts) for picture in pictures]
        if len(pictures) != len(texts):
            raise UserError(
                f"{len(texts)} questions for {len(pictures)} pictures; give one for each, one for all, or one picture"
            )
        neighbours = groupby(zip(pictures, texts, strict=True), key=lambda pair: id_of(pair[0]))
        groups = [list(group) for _, group in neighbours]
        return [(group[0][0], [text for _, text in group]) for group in groups]

    def _check_head(self) -> None:
        """Raise a UserError unless the package answers questions."""
        if not self.decoder.answers or self.table is None:
            raise UserError(
                "this package has no answer head: its model was trained without questions, so that it captions and paints only"
            )

    def _check_all(self, texts: Sequence[str], what: str = "question") -> None:
        """Raise a UserError about the first question that the model cannot read."""
        for text in texts:
            if not isinstance(text, str):
                raise UserError(f"{what}s have to be text, {text!r:.60} is none")
        for text in dict.fromkeys(texts):  # each once, in their order
            self._check(text, what)

    def _check(self, text: str, what: str) -> None:
        """Raise a UserError unless the model can read a question."""
        if not any(character.isalnum() for character in text):
            raise UserError(f"the {what} {text!r} has no word; write at least one")
        if unknown := self.tokenizer.unknown_words(text):
            raise UserError(
                f"the {what} {text!r:.120} has words that the model has never read: {', '.join(unknown)}; use the words of "
                "its training captions and questions"
            )
        pieces = len(self.tokenizer.pieces([text])[0])
        if pieces > self.length - 2:
            raise UserError(
                f"the {what} {text!r:.60} has {pieces} word pieces, this model reads {self.length - 2}; shorten it"
            )

    def _batch(
        self,
        pictures: list[Picture],
        questions: list[list[str]],
        first: int,
        most: int,
        return_attention: bool,
    ) -> Iterator[Answer]:
        """Answer equally many questions about each of some pictures, the first with the number ``first``."""
        assert self.table is not None
        images = read_pictures(pictures, first)
        count = len(questions[0])
        texts = [text for own in questions for text in own]
        ids = self.tokenizer.encode_questions(texts, self.length).to(self.machine.device)
        ids = ids.view(len(images), count, -1)
        ranked: list[list[list[RankedAnswer]]] = []
        attentions: list[list[WordAttention]] = []
        with self.machine.inference():
            seen = self.decoder.see(images)
            for part in ids.split(max(1, QUESTIONS_AT_ONCE // len(images)), 1):
                logits = self.decoder.answer(seen, part)
                ranked.append(rank_answers(logits, self.table.answers, most))
                if return_attention:
                    each = [states.repeat_interleave(part.shape[1], 0) for states in seen]
                    attentions.append(self.decoder.question_attention(each, part.flatten(0, 1)))
        looks = in_order(attentions, len(images)) if return_attention else [None] * len(texts)
        for own, look in zip(in_order(ranked, len(images)), looks, strict=True):
            yield Answer(own[0].answer, own[0].probability, tuple(own), look)


def two_of(pair: object) -> tuple[Picture, Picture]:
    """A pair of pictures. Raises UserError where it is something else."""
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise UserError("a statement is about two pictures: give (left, right)")
    return pair[0], pair[1]


def id_of(picture: Picture) -> object:
    """What tells pictures apart without reading them: a file's name, or the object itself."""
    return str(picture) if isinstance(picture, str | Path) else id(picture)


def in_order(parts: list[list[Item]], pictures: int) -> list[Item]:
    """Items of parts of all pictures' questions, picture by picture."""
    rows: list[list[Item]] = [[] for _ in range(pictures)]
    for part in parts:
        each = len(part) // pictures
        for number, row in enumerate(rows):
            row += part[number * each : (number + 1) * each]
    return [item for row in rows for item in row]
