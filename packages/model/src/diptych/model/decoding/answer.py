"""Answers: what a picture and a question are to the answer head (X-LXMERT 3; LXMERT's question answering)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TypeVar

from torch import Tensor

from diptych.model.devices import Texts
from diptych.model.networks.unified import UnifiedTransformer
from diptych.model.tokenizer import CaptionTokenizer

Subject = TypeVar("Subject")
Question = TypeVar("Question")


@dataclass(frozen=True)
class RankedAnswer:
    """An answer of the answer table and its probability among all of them, in [0, 1]."""

    answer: str
    probability: float


def question_states(
    model: UnifiedTransformer, tokenizer: CaptionTokenizer, images: list[Tensor], ids: Tensor | Texts
) -> Tensor:
    """Return what the heads read of questions about pictures: the states of [CLS], float ``[n * c, h]``.

    Args:
        images: the n pictures (:func:`diptych.model.decoding.caption.encode_images`), seen once for all their questions.
        ids: int64 ``[n, c, t]``, c questions about each, or statements. As Texts they have been cut before, so that a GPU is not
            waited for.
    """
    ids = Texts.of(ids, tokenizer.pad).ids
    n, c, _ = ids.shape
    ids = ids.flatten(0, 1)
    visible = ids != tokenizer.pad
    if model.config.caption_attention == "prefix":
        return model.question_states(ids, visible, model.visual_keys_values(images))
    visual = images[0].repeat_interleave(c, 0) if c > 1 else images[0]
    return model.masked_text_states(ids, visible, visual, ids.new_zeros(n * c))


def answer_logits(
    model: UnifiedTransformer, tokenizer: CaptionTokenizer, images: list[Tensor], ids: Tensor | Texts
) -> Tensor:
    """Logits ``[n * c, A]`` of the answers to questions ids int64 ``[n, c, t]``, c about each of n images
    (:func:`diptych.model.decoding.caption.encode_images`)."""
    return model.answer_logits(question_states(model, tokenizer, images, ids))


def statement_logits(
    model: UnifiedTransformer, tokenizer: CaptionTokenizer, images: list[Tensor], ids: Tensor | Texts
) -> Tensor:
    """Logits ``[n, 2]`` of (false, true) of statements ids int64 ``[n, t]``, the first about the first two of 2 n images, left
    and right, and so on (LXMERT's NLVR2: a pass with either image)."""
    texts = Texts.of(ids, tokenizer.pad)
    # the words are counted for losses, and no loss is of a statement's
    twice = replace(texts, ids=texts.ids.repeat_interleave(2, 0)[:, None])
    states = question_states(model, tokenizer, images, twice)
    return model.pair_logits(states[::2], states[1::2])


def equally_asked(
    asked: Iterable[tuple[Subject, list[Question]]], size: int
) -> Iterator[tuple[list[Subject], list[list[Question]], int]]:
    """Neighbouring pictures with equally many questions, ``size`` at a time, as :func:`answer_logits` takes them, and the
    number of the first among all. Pictures without questions are passed over."""
    number = 0
    for count, group in groupby(asked, key=lambda pair: len(pair[1])):
        rows = list(group)
        for start in range(0, len(rows) if count else 0, size):
            part = rows[start : start + size]
            yield [picture for picture, _ in part], [own for _, own in part], number + start
        number += len(rows)


def rank_answers(logits: Tensor, answers: Sequence[str], most: int) -> list[list[RankedAnswer]]:
    """Return the ``most`` likeliest of ``answers`` by logits ``[m, A]``, likeliest first, for each row; equal ones in the
    table's order."""
    probabilities, order = logits.float().softmax(-1).sort(dim=-1, descending=True, stable=True)
    return [
        [RankedAnswer(answers[index], probability) for index, probability in zip(*pair, strict=True)]
        for pair in zip(order[:, :most].tolist(), probabilities[:, :most].tolist(), strict=True)
    ]
