"""Fine-tuning on questions about one picture (VQA, GQA) and on statements about two (NLVR2), as LXMERT does."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from diptych.features.order import batch_indices
from diptych.model.decoding.answer import statement_logits
from diptych.model.decoding.caption import encode_images
from diptych.model.devices import Texts, sent
from diptych.model.errors import UserError
from diptych.model.image_features import caption_input, caption_rows
from diptych.model.networks.unified import UnifiedTransformer
from diptych.model.precision import autocast_context
from diptych.model.pretrained import check_codebook
from diptych.model.tokenizer import CaptionTokenizer
from diptych.model.training.config import LoopConfig, check_at_least_one, check_share
from diptych.model.training.contracts import Checkpoints, Piece, Record, Steps
from diptych.model.training.data import TrainingShards, on_device, read_rows
from diptych.model.training.loop import run_training
from diptych.model.training.processes import current_processes
from diptych.model.training.questions import QuestionTable, answer_pieces
from diptych.model.training.schedules import warmup_linear
from diptych.model.training.state import fingerprint

TRUTH = {"true": 1, "false": 0}


@dataclass(frozen=True, kw_only=True)
class FineTuningConfig(LoopConfig):
    """Settings of fine-tuning; LXMERT's, which X-LXMERT takes (its section 5.3), in brackets.

    Attributes:
        batch_size: images in a step, for statements pairs of them [32].
        questions_per_image: questions about each of these images, which share its visual layers [1].
        learning_rate: peak [5e-5; GQA: 1e-5]; linear warm-up, then linear to 0.
        warmup_share: share of the steps that warm up [0.1].
        weight_decay, clip_norm, ema_decay, accumulation, precision, seed, checkpoint_seconds: as in
            :class:`diptych.model.training.config.LoopConfig`.
    """

    batch_size: int
    questions_per_image: int = 1
    warmup_share: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least_one(self, "batch_size", "questions_per_image")
        check_share(self, "warmup_share")


class StatementTable:
    """Statements about two images as ids, encoded once; those about images that are not there are left out.

    Attributes:
        pairs: int64 ``[s, 2]``, numbers of the left and the right image.
        ids: int64 ``[s, t]``.
        true: bool ``[s]``.
        left_out: statements that were left out.
    """

    def __init__(
        self, rows: Iterable[Mapping[str, Any]], keys: Sequence[str], tokenizer: CaptionTokenizer, length: int
    ) -> None:
        """Take ``rows`` of the contract Questions with two images and the answer "true" or "false" each.

        Raises:
            UserError: an answer is neither, or no statement is left.
        """
        index_of = {key: index for index, key in enumerate(keys)}
        texts, pairs, true = [], [], []
        self.left_out = 0
        for row in rows:
            places = [index_of.get(image) for image in row["image_ids"]]
            if len(places) != 2 or None in places:
                self.left_out += 1
                continue
            said = [TRUTH.get(answer.lower()) for answer in row["answers"]]
            if len(said) != 1 or said[0] is None:
                raise UserError(
                    f"statement {row.get('question_id')}: its answers are {row['answers']}, not one true or false"
                )
            texts.append(row["question"])
            pairs.append(places)
            true.append(bool(said[0]))
        if not texts:
            raise UserError("no statement is about two of the training images; check the questions")
        self.pairs, self.true = torch.tensor(pairs), torch.tensor(true)
        self.ids = tokenizer.encode_questions(texts, length)


class QuestionSteps:
    """Steps on questions about one image; the loss is LXMERT's, the mean over the questions of the batch."""

    def __init__(
        self,
        config: FineTuningConfig,
        model: UnifiedTransformer,
        tokenizer: CaptionTokenizer,
        codebook: Tensor,
        train: TrainingShards,
        questions: QuestionTable,
    ) -> None:
        self.config, self.model, self.tokenizer = config, model, tokenizer
        self.codebook, self.train, self.questions = codebook, train, questions
        self.rows = current_processes().own_pieces(config.batch_size, config.accumulation)

    def plan(self, step: int) -> list[int]:
        """Return the images of the batch; an epoch is every image that has questions once."""
        images = self.questions.images
        chosen = batch_indices(len(images), self.config.batch_size, self.config.seed, step)
        return [images[index] for index in chosen.tolist()]

    def read(self, step: int) -> list[Tensor]:
        """Read what captioning sees of each of this process's pieces: by default dense grid features, also after a
        pretraining that saw codebook vectors, as X-LXMERT."""
        return read_rows(
            caption_rows(self.model.config, self.train), self.plan(step), self.rows, self.codebook.device
        )

    def pieces(self, step: int, data: list[Tensor]) -> list[Piece]:
        """Draw questions."""
        config = self.config
        return answer_pieces(
            self.model,
            self.tokenizer,
            self.codebook,
            self.questions,
            self.plan(step),
            config.questions_per_image,
            self.rows,
            data,
            config.precision,
            scored=True,
        )


class StatementSteps:
    """Steps on statements about two images, a pass with each; cross-entropy of true and false."""

    def __init__(
        self,
        config: FineTuningConfig,
        model: UnifiedTransformer,
        tokenizer: CaptionTokenizer,
        codebook: Tensor,
        train: TrainingShards,
        statements: StatementTable,
    ) -> None:
        self.config, self.model, self.tokenizer = config, model, tokenizer
        self.codebook, self.train, self.statements = codebook, train, statements
        self.rows = current_processes().own_pieces(config.batch_size, config.accumulation)

    def plan(self, step: int) -> Tensor:
        """Return the statements of the batch, int64 ``[n]``; an epoch is every statement once."""
        count = len(self.statements.true)
        return torch.from_numpy(batch_indices(count, self.config.batch_size, self.config.seed, step))

    def read(self, step: int) -> list[Tensor]:
        """Read the left and the right images of each of this process's pieces, side by side: ``[2 n, ...]``."""
        pairs = self.statements.pairs[self.plan(step)]
        read, device = caption_rows(self.model.config, self.train), self.codebook.device
        return [
            read_rows(read, pairs[rows].flatten().tolist(), [slice(None)], device)[0] for rows in self.rows
        ]

    def pieces(self, step: int, data: list[Tensor]) -> list[Piece]:
        """Each statement is read with either image."""
        config, device, chosen = self.config, self.codebook.device, self.plan(step)
        ids, true = self.statements.ids[chosen], self.statements.true[chosen].long()

        def piece(rows: slice, part: Tensor) -> Piece:
            texts = Texts.of(ids[rows], self.tokenizer.pad)

            def loss() -> tuple[Tensor, dict[str, Tensor]]:
                seen = caption_input(self.model.config, self.codebook, on_device(part, device))
                with autocast_context(device, config.precision):
                    images = encode_images(self.model, seen)
                    logits = statement_logits(self.model, self.tokenizer, images, texts.to(device))
                mean = F.cross_entropy(logits.float(), sent(true[rows], device))
                return mean, {"statement_loss": mean.detach()}

            return Piece(len(true[rows]) / len(true), len(true[rows]), loss)

        return [piece(rows, part) for rows, part in zip(self.rows, data, strict=True)]


def fine_tune(
    config: FineTuningConfig,
    model: UnifiedTransformer,
    tokenizer: CaptionTokenizer,
    codebook: Tensor,
    train: TrainingShards,
    asked: QuestionTable | StatementTable,
    checkpoints: Checkpoints | None,
    device: torch.device | str,
) -> Record:
    """Fine-tune ``model`` in place, alone or as one of several processes
    (:func:`diptych.model.training.processes.joined_processes`).

    Args:
        model: one with the head of the task (:func:`diptych.model.training.initial.with_heads`).
        codebook: float32 ``[K, D]``.
        asked: about the images of ``train``.

    Returns:
        History rows: step, learning_rate, answer_loss or statement_loss, gradient_norm.
    """
    check_codebook(model, codebook, "codebook")
    model.to(device)
    codebook = codebook.to(device)
    steps: Steps
    if isinstance(asked, QuestionTable):
        steps, contents = QuestionSteps(config, model, tokenizer, codebook, train, asked), asked.contents()
    else:
        steps = StatementSteps(config, model, tokenizer, codebook, train, asked)
        contents = asked.pairs, asked.ids, asked.true
    return run_training(
        model,
        "fine-tuning",
        config,
        steps,
        learning_rate=lambda step: warmup_linear(
            step, config.steps, config.learning_rate, config.warmup_share
        ),
        started_from=fingerprint(model, model.config, config.determining(), train.keys, codebook, *contents),
        checkpoints=checkpoints,
    )
