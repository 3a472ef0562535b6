"""Sentences for pretraining: the captions of a picture and the questions about it, drawn alike (X-LXMERT C.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diptych.model.tokenizer import CaptionTokenizer
from diptych.model.training.data import CaptionTable, TrainingShards
from diptych.model.training.questions import QuestionTable


@dataclass(frozen=True)
class Sentences:
    """n sentences.

    Attributes:
        ids: int64 ``[n, t]``.
        shares: float32 ``[n, A]``, the shares of the answers where a sentence is a question; zeros where it is a caption.
            A is 0 where there are no questions at all.
    """

    ids: Tensor
    shares: Tensor


class SentenceTable:
    """All captions and questions of some images; a sentence is numbered in the order images, captions, questions."""

    def __init__(
        self,
        shards: TrainingShards,
        tokenizer: CaptionTokenizer,
        length: int,
        questions: QuestionTable | None,
    ) -> None:
        """``questions``: encoded to the same ``length``, numbered by the same images."""
        self.captions = CaptionTable(shards, tokenizer, length)
        self.questions = questions
        self._of_image = [
            questions.of_image(image) if questions else torch.empty(0, dtype=torch.long)
            for image in range(len(shards))
        ]
        counts = [
            len(captions) + len(own) for captions, own in zip(self.captions.ids, self._of_image, strict=True)
        ]
        self._ends = torch.tensor(counts).cumsum(0)

    def contents(self) -> tuple[object, ...]:
        """What determines a training on these sentences, for :func:`diptych.model.training.state.fingerprint`."""
        return self.captions.texts, *(self.questions.contents() if self.questions else ())

    def choose(self, images: Sequence[int], captions_only: bool = False, per_image: int = 1) -> Sentences:
        """Draw sentences of each image (torch's global generator), independently, those of an image in turn; with
        ``captions_only`` of its captions."""
        images = [image for image in images for _ in range(per_image)]
        numbers = []
        for image in images:
            count = len(self.captions.ids[image])
            if not captions_only:
                count += len(self._of_image[image])
            numbers.append(int(torch.randint(count, ())))
        return self._sentences(list(images), numbers)

    def choose_any(self, n: int) -> Tensor:
        """Draw n sentences from all of them (torch's global generator): ids int64 ``[n, t]``."""
        numbers = torch.randint(int(self._ends[-1]), (n,))
        images = torch.searchsorted(self._ends, numbers, right=True)
        starts = torch.where(images > 0, self._ends[images - 1], 0)
        return self._sentences(images.tolist(), (numbers - starts).tolist()).ids

    def _sentences(self, images: list[int], numbers: list[int]) -> Sentences:
        """The sentences of these numbers among those of these images."""
        rows, asked = [], []
        none = len(self.questions.texts) if self.questions else 0
        for image, number in zip(images, numbers, strict=True):
            captions, own = self.captions.ids[image], self._of_image[image]
            if number < len(captions):
                rows.append(captions[number])
                asked.append(none)
            else:
                assert self.questions is not None
                question = int(own[number - len(captions)])
                rows.append(self.questions.ids[question])
                asked.append(question)
        shares = self.questions.shares(torch.tensor(asked)) if self.questions else torch.zeros(len(rows), 0)
        return Sentences(torch.stack(rows), shares)
