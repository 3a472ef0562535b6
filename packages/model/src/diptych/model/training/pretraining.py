"""X-LXMERT's pretraining (X-LXMERT 5.1, C.5): each step masks cells, words or nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from diptych.features.order import batch_indices
from diptych.model.decoding.caption import encode_images
from diptych.model.devices import Places, Texts, sent
from diptych.model.errors import UserError
from diptych.model.networks.unified import UnifiedTransformer
from diptych.model.objectives.pretraining import (
    MASKED_SHARE,
    bernoulli_mask,
    counted_words,
    feature_regression_loss,
    mask_words,
    masked_word_loss,
    matching_loss,
)
from diptych.model.objectives.token import paint_loss, sample_mask
from diptych.model.precision import autocast_context
from diptych.model.pretrained import check_codebook
from diptych.model.tokenizer import CaptionTokenizer
from diptych.model.training.config import LoopConfig, check_at_least_one, check_masking, check_share
from diptych.model.training.contracts import Checkpoints, Piece, Record
from diptych.model.training.data import TrainingShards, on_device, read_rows
from diptych.model.training.loop import run_training
from diptych.model.training.processes import current_processes
from diptych.model.training.questions import QuestionTable
from diptych.model.training.schedules import warmup_linear
from diptych.model.training.sentences import SentenceTable
from diptych.model.training.state import fingerprint

Masked = Literal["cells", "words", "nothing"]


@dataclass(frozen=True, kw_only=True)
class PretrainingConfig(LoopConfig):
    """Settings of pretraining; the paper's (X-LXMERT 5.3, C.5) in brackets.

    Attributes:
        steps: of all tasks together; each masks cells, words or nothing, drawn with equal chances.
        batch_size: images in a step [920].
        sentences_per_image: sentences of each where words are masked, or nothing [1]. By ``prefix`` attention a picture is
            seen once for all of them.
        text_length: tokens of a sentence, ``[CLS]`` and ``[SEP]`` included [20].
        learning_rate: peak [1e-5]; linear warm-up, then linear to 0.
        warmup_share: share of the steps that warm up [0.05].
        discrete: masked cells are predicted as codes (CCC), and pictures seen as codebook vectors [true]. Without, as
            LXMERT: grid features are seen, regressed (MVFR) and, with object classes, classified (MOC).
        cells_share: share of the steps that mask cells; as many of the others mask words as nothing [1/3]. A short training
            learns to paint last.
        uniform_masking: masks of cells with a ratio drawn from (0, 1] [true]; without, each cell with a chance of 15%.
        least_masked, all_masked: of uniform masks, as in
            :class:`diptych.model.training.token.TokenTrainingConfig` [0, 0].
        masked_words: share of the words that are predicted where words are masked [0.15]. The texts of a small world are
            short, and a picture says more of their words.
        captions_only: masked cells are predicted from captions only, never from questions [true: "data alignment"].
        weight_decay [1e-2], clip_norm [1.0], ema_decay [0], accumulation, precision, seed, checkpoint_seconds: as in
            :class:`diptych.model.training.config.LoopConfig`.
    """

    batch_size: int
    text_length: int
    warmup_share: float
    discrete: bool = True
    uniform_masking: bool = True
    masked_words: float = MASKED_SHARE
    sentences_per_image: int = 1
    captions_only: bool = True
    cells_share: float = 1 / 3
    least_masked: float = 0.0
    all_masked: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least_one(self, "batch_size", "sentences_per_image")
        check_share(self, "warmup_share", "cells_share")
        check_masking(self)
        if not 0 < self.masked_words <= 1:
            raise UserError(f"masked_words must be in (0, 1], is {self.masked_words}")


def masked_in(step: int, seed: int, cells_share: float) -> Masked:
    """What ``step`` masks; a function of the three numbers, so that reading ahead knows it."""
    drawn = np.random.default_rng((seed, step)).random()
    if drawn < cells_share:
        return "cells"
    return "words" if drawn < (1 + cells_share) / 2 else "nothing"


class PretrainingSteps:
    """The steps of pretraining (:class:`diptych.model.training.contracts.Steps`).

    A step computes what its task reads and nothing else: the visual half of the last layer where cells are masked, the text
    half where words are, the state of [CLS] alone where nothing is; heads at chosen places only.
    """

    def __init__(
        self,
        config: PretrainingConfig,
        model: UnifiedTransformer,
        tokenizer: CaptionTokenizer,
        codebook: Tensor,
        train: TrainingShards,
        questions: QuestionTable | None,
        objects: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.config, self.model, self.tokenizer = config, model, tokenizer
        self.codebook, self.train, self.objects = codebook, train, objects
        self.sentences = SentenceTable(train, tokenizer, config.text_length, questions)
        self.rows = current_processes().own_pieces(config.batch_size, config.accumulation)

    def plan(self, step: int) -> tuple[Masked, list[int]]:
        """Return what ``step`` masks, and the images of its batch; all tasks walk the epochs together."""
        config = self.config
        images = batch_indices(len(self.train), config.batch_size, config.seed, step).tolist()
        return masked_in(step, config.seed, config.cells_share), images

    def read(self, step: int) -> list[Tensor]:
        """Read the codes of each of this process's pieces, without ``discrete`` their grid features."""
        indices, device = self.plan(step)[1], self.codebook.device
        return read_rows(
            self.train.codes if self.config.discrete else self.train.grid, indices, self.rows, device
        )

    def pieces(self, step: int, data: list[Tensor]) -> list[Piece]:
        """Draw sentences and masks."""
        masked, indices = self.plan(step)
        if masked == "cells":
            return self.cell_pieces(indices, data)
        return self.word_pieces(indices, data) if masked == "words" else self.matching_pieces(indices, data)

    def seen(self, rows: Tensor) -> Tensor:
        """What the network sees of pictures: float32 ``[n, cells, D]``."""
        rows = on_device(rows, self.codebook.device)
        return self.codebook[rows] if self.config.discrete else rows

    def cell_pieces(self, indices: list[int], data: list[Tensor]) -> list[Piece]:
        """CCC, or MVFR and MOC; the mean over the masked cells of the whole batch."""
        config, cells, device = self.config, self.model.config.cells, self.codebook.device
        ids = self.sentences.choose(indices, captions_only=config.captions_only).ids
        masked = (
            sample_mask(len(indices), cells, config.least_masked, config.all_masked)
            if config.uniform_masking
            else bernoulli_mask(len(indices), cells)
        )

        def piece(rows: slice, part: Tensor) -> Piece:
            own = Texts.of(ids[rows], self.tokenizer.pad), Places.of(masked[rows])

            def loss() -> tuple[Tensor, dict[str, Tensor]]:
                texts, hidden = (places.to(device) for places in own)
                with autocast_context(device, config.precision):
                    if config.discrete:
                        codes = on_device(part, device)
                        mean = paint_loss(
                            self.model, self.tokenizer, self.codebook, codes, texts, hidden, 0.0
                        )
                        return mean, {"code_loss": mean.detach()}
                    regression, classes = feature_regression_loss(
                        self.model, self.tokenizer, self.seen(part), texts, hidden, self.objects
                    )
                return regression + classes, {
                    "feature_loss": regression.detach(),
                    "object_loss": classes.detach(),
                }

            return Piece(int(masked[rows].sum()) / int(masked.sum()), len(part), loss)

        return [piece(rows, part) for rows, part in zip(self.rows, data, strict=True)]

    def word_pieces(self, indices: list[int], data: list[Tensor]) -> list[Piece]:
        """MLM; the mean over the chosen words of the whole batch."""
        config, device = self.config, self.codebook.device
        ids = self.sentences.choose(indices, per_image=config.sentences_per_image).ids
        changed, chosen = mask_words(self.tokenizer, ids, config.masked_words)
        texts = [part.unflatten(0, (len(indices), -1)) for part in (changed, ids, chosen)]
        count = max(1, int(chosen.sum()))

        def piece(rows: slice, part: Tensor) -> Piece:
            seen, targets, words = counted_words(self.tokenizer, *(tensor[rows] for tensor in texts))

            def loss() -> tuple[Tensor, dict[str, Tensor]]:
                with autocast_context(device, config.precision):
                    images = encode_images(self.model, self.seen(part))
                    own = sent(seen, device), sent(targets, device), words.to(device)
                    mean = masked_word_loss(self.model, self.tokenizer, images, *own)
                return mean, {"word_loss": mean.detach()}

            return Piece(int(texts[2][rows].sum()) / count, len(part) * config.sentences_per_image, loss)

        return [piece(rows, part) for rows, part in zip(self.rows, data, strict=True)]

    def matching_pieces(self, indices: list[int], data: list[Tensor]) -> list[Piece]:
        """ITM, and QA where the sentence is a question about the picture: the mean over all texts and that over the
        questions are added (X-LXMERT C.5)."""
        config, device, per_image = self.config, self.codebook.device, self.config.sentences_per_image
        chosen = self.sentences.choose(indices, per_image=per_image)
        other = self.sentences.choose_any(len(chosen.ids))
        own = torch.rand(len(chosen.ids)) < 0.5
        ids = torch.where(own[:, None], chosen.ids, other).unflatten(0, (len(indices), -1))
        asked = own & chosen.shares.any(1)
        own, asked, shares = (part.unflatten(0, (len(indices), -1)) for part in (own, asked, chosen.shares))
        count = int(asked.sum())

        def piece(rows: slice, part: Tensor) -> Piece:
            share = len(part) / len(indices)
            # the loss of answers is a mean over other items than that of matching, whose share the piece has
            weight = int(asked[rows].sum()) / max(1, count) / share
            texts = Texts.of(ids[rows], self.tokenizer.pad)
            questions, wanted = asked[rows].flatten().nonzero()[:, 0], shares[rows][asked[rows]]

            def loss() -> tuple[Tensor, dict[str, Tensor]]:
                with autocast_context(device, config.precision):
                    images = encode_images(self.model, self.seen(part))
                    matching, states = matching_loss(
                        self.model, self.tokenizer, images, texts.to(device), sent(own[rows], device)
                    )
                    reported = {"matching_loss": matching.detach()}
                    if not count:
                        return matching, reported
                    # also where this piece asks nothing: all processes' steps have gradients of the same weights
                    logits = self.model.answer_logits(states[sent(questions, device)]).float()
                    reduction = "mean" if weight else "sum"
                    answers = weight * F.cross_entropy(logits, sent(wanted, device), reduction=reduction)
                return matching + answers, {**reported, "answer_loss": answers.detach()}

            return Piece(share, len(part) * per_image, loss)

        return [piece(rows, part) for rows, part in zip(self.rows, data, strict=True)]


def pretrain(
    config: PretrainingConfig,
    model: UnifiedTransformer,
    tokenizer: CaptionTokenizer,
    codebook: Tensor,
    train: TrainingShards,
    questions: QuestionTable | None,
    checkpoints: Checkpoints | None,
    device: torch.device | str,
    objects: Callable[[Tensor], Tensor] | None = None,
) -> Record:
    """Pretrain ``model`` in place, alone or as one of several processes
    (:func:`diptych.model.training.processes.joined_processes`).

    Args:
        model: one that knows the codebook and has a matching head; an answer head where there are ``questions``; without
            ``discrete`` a head that regresses features. Its config's ``caption_attention`` says how sentences are read:
            ``masked`` as LXMERT, where cells see words, too, or ``prefix``, where each picture is seen once for all its
            sentences (beyond the papers). Cells are predicted from what both streams see of each other either way.
        codebook: float32 ``[K, D]``.
        questions: about the images of ``train``; None: captions alone are read, and no answer is learned.
        objects: as in :func:`diptych.model.objectives.pretraining.feature_regression_loss`.

    Returns:
        History rows: step, learning_rate, code_loss (or feature_loss and object_loss), word_loss, matching_loss, answer_loss,
        gradient_norm.
    """
    check_codebook(model, codebook, "codebook")
    model.to(device)
    codebook = codebook.to(device)
    steps = PretrainingSteps(config, model, tokenizer, codebook, train, questions, objects)
    return run_training(
        model,
        "pretraining",
        config,
        steps,
        learning_rate=lambda step: warmup_linear(
            step, config.steps, config.learning_rate, config.warmup_share
        ),
        started_from=fingerprint(
            model, model.config, config.determining(), train.keys, *steps.sentences.contents(), codebook
        ),
        checkpoints=checkpoints,
    )
