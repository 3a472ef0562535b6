"""Questions as data for training: ids, answers' shares, and the pieces of a step that answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from diptych.model.answer_table import AnswerTable
from diptych.model.decoding.answer import answer_logits
from diptych.model.decoding.caption import encode_images
from diptych.model.devices import Texts, sent
from diptych.model.errors import UserError
from diptych.model.image_features import caption_input
from diptych.model.networks.unified import UnifiedTransformer
from diptych.model.objectives.answers import answer_loss, answer_score_loss
from diptych.model.precision import autocast_context
from diptych.model.tokenizer import CaptionTokenizer
from diptych.model.training.config import check_at_least_one
from diptych.model.training.contracts import Piece
from diptych.model.training.data import on_device
from diptych.model.training.processes import current_processes


@dataclass(frozen=True, kw_only=True)
class QuestionSettings:
    """Question answering as a third task of stage 1 (beyond UMT; X-LXMERT pretrains with it).

    Attributes:
        share: of the captioning steps that also ask about their images, which are seen once for both; spread evenly among
            the others.
        questions_per_image: questions about each of these images.
        length: tokens of a question, ``[CLS]`` and ``[SEP]`` included [20 in X-LXMERT].
        weight: of the loss of answers beside that of captions [1 in X-LXMERT].
    """

    share: float
    questions_per_image: int
    length: int
    weight: float = 1.0

    def __post_init__(self) -> None:
        check_at_least_one(self, "questions_per_image", section="questions.")
        if not 0 < self.share <= 1:
            raise UserError(
                f"questions.share must be in (0, 1], is {self.share}; without the task questions is null"
            )
        if not self.weight > 0:
            raise UserError(f"questions.weight must be above 0, is {self.weight}")


class LeavesOut(Protocol):
    """Questions or statements to train on."""

    left_out: int


def tell_left_out(table: LeavesOut, asked: int, name: str) -> None:
    """Say how many of the questions that are ``asked`` are not trained on, once for all processes."""
    if table.left_out and current_processes().rank == 0:
        print(
            f"{name}: {table.left_out:,} of {asked:,} questions left out: their pictures or answers are not known",
            flush=True,
        )


class QuestionTable:
    """All questions about some images as ids, encoded once, with the shares of their answers.

    Questions of whose answers the answer table knows none are left out, and so are images that then have no question.

    Attributes:
        images: number of each image that has questions, as ``keys`` numbers them.
        left_out: questions that were left out.
    """

    def __init__(
        self,
        rows: Iterable[Mapping[str, Any]],
        keys: Sequence[str],
        tokenizer: CaptionTokenizer,
        table: AnswerTable,
        length: int,
    ) -> None:
        """Take ``rows`` of the contract Questions about one image each; those about images not in ``keys`` are left out.

        Raises:
            UserError: no question is left.
        """
        index_of = {key: index for index, key in enumerate(keys)}
        self.size = len(table)
        self.left_out = 0
        self.texts: list[str] = []
        shares: list[dict[int, float]] = []
        scores: list[dict[int, float]] = []
        of_image: dict[int, list[int]] = {}
        for row in rows:
            image = index_of.get(row["image_ids"][0]) if len(row["image_ids"]) == 1 else None
            known = table.shares(row["answers"]) if image is not None else {}
            if image is None or not known:
                self.left_out += 1
                continue
            of_image.setdefault(image, []).append(len(self.texts))
            self.texts.append(row["question"])
            shares.append(known)
            scores.append(table.scores(row["answers"]))
        if not self.texts:
            raise UserError(
                "no question about the training images has an answer of the answer table; check the questions"
            )
        self.images = sorted(of_image)
        # the last row, without words and answers, stands for the question of an image that has none
        none = torch.full((1, length), tokenizer.pad)
        none[:, :2] = tokenizer.no_text(1)
        self.ids = torch.cat([tokenizer.encode_questions(self.texts, length), none])
        self._of_image = {image: torch.tensor(questions) for image, questions in of_image.items()}
        most = max(map(len, shares))
        self._answers = torch.zeros(len(shares) + 1, most, dtype=torch.long)
        self._shares = torch.zeros(len(shares) + 1, most)
        self._scores = torch.zeros(len(shares) + 1, most)
        for number, known in enumerate(shares):
            self._answers[number, : len(known)] = torch.tensor(list(known))
            self._shares[number, : len(known)] = torch.tensor(list(known.values()))
            self._scores[number, : len(known)] = torch.tensor([scores[number][answer] for answer in known])

    def contents(self) -> tuple[object, ...]:
        """What determines a training on these questions, for :func:`diptych.model.training.state.fingerprint`."""
        return self.images, self.ids, self._answers, self._shares, self._scores

    def of_image(self, image: int) -> Tensor:
        """Return the numbers of the questions about an image, int64 ``[q]``."""
        return self._of_image.get(image, torch.empty(0, dtype=torch.long))

    def choose(self, images: Sequence[int], per_image: int) -> Tensor:
        """Draw questions about each image, different ones while there are enough (torch's global generator): their
        numbers, int64 ``[n, per_image]``. An image without questions gets rows without words and answers."""
        rows = []
        none = torch.tensor([len(self.texts)])
        for image in images:
            questions = self._of_image.get(image, none)
            rows.append(questions[torch.randperm(len(questions))[torch.arange(per_image) % len(questions)]])
        return torch.stack(rows)

    def shares(self, questions: Tensor) -> Tensor:
        """Return the shares of the answers of ``questions`` int64 ``[...]``: float32 ``[..., A]``."""
        return self._dense(questions, self._shares)

    def scores(self, questions: Tensor) -> Tensor:
        """Return what each answer is worth to ``questions`` int64 ``[...]`` by VQA's accuracy: float32 ``[..., A]`` in
        0..1."""
        return self._dense(questions, self._scores)

    def _dense(self, questions: Tensor, values: Tensor) -> Tensor:
        empty = torch.zeros(*questions.shape, self.size)
        return empty.scatter_add(-1, self._answers[questions], values[questions])


def answer_pieces(
    model: UnifiedTransformer,
    tokenizer: CaptionTokenizer,
    codebook: Tensor,
    table: QuestionTable,
    images: list[int],
    per_image: int,
    pieces: list[slice],
    data: list[Tensor],
    precision: str,
    scored: bool = False,
) -> list[Piece]:
    """A step that answers: ``per_image`` questions about each of ``images``, all of which have some; the loss is the mean
    over all of them: :func:`answer_loss`, or if ``scored`` that of fine-tuning, :func:`answer_score_loss`.

    ``pieces`` are this process's rows of the batch, ``data`` the rows of :func:`diptych.model.image_features.caption_rows`
    read for them.
    """
    questions = table.choose(images, per_image)
    targets = table.scores(questions) if scored else table.shares(questions)
    ids, device = table.ids[questions], codebook.device

    def piece(rows: slice, features: Tensor) -> Piece:
        texts, of_texts = Texts.of(ids[rows], tokenizer.pad), targets[rows].flatten(0, 1)

        def loss() -> tuple[Tensor, dict[str, Tensor]]:
            seen = caption_input(model.config, codebook, on_device(features, device))
            with autocast_context(device, precision):
                seen_images = encode_images(model, seen)
                asked, wanted = texts.to(device), sent(of_texts, device)
                if scored:
                    mean = answer_score_loss(answer_logits(model, tokenizer, seen_images, asked), wanted)
                else:
                    mean = answer_loss(model, tokenizer, seen_images, asked, wanted)
            return mean, {"answer_loss": mean.detach()}

        count = questions[rows].numel()
        return Piece(count / questions.numel(), count, loss)

    return [piece(rows, part) for rows, part in zip(pieces, data, strict=True)]
