"""Token-level training, stage 1 (UMT 4.1.1, 4.2.1, 5.1): captioning and painting in turns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from diptych.features.order import batch_indices
from diptych.model.devices import Places, Texts, sent
from diptych.model.errors import UserError
from diptych.model.image_features import caption_input, caption_rows, painting_shows_features
from diptych.model.networks.unified import UnifiedTransformer
from diptych.model.objectives.token import (
    caption_and_answer_losses,
    paint_loss,
    sample_mask,
    sample_positions,
    until,
)
from diptych.model.precision import autocast_context
from diptych.model.pretrained import check_codebook
from diptych.model.tokenizer import CaptionTokenizer
from diptych.model.training.config import (
    LoopConfig,
    MaskSettings,
    check_at_least_one,
    check_masking,
    check_share,
)
from diptych.model.training.contracts import Checkpoints, Piece, Record
from diptych.model.training.data import CaptionTable, TrainingShards, on_device, read_rows
from diptych.model.training.loop import run_training
from diptych.model.training.processes import current_processes
from diptych.model.training.questions import QuestionSettings, QuestionTable
from diptych.model.training.schedules import warmup_cosine
from diptych.model.training.state import fingerprint
from diptych.model.training.token_evaluation import EvaluationConfig, TokenEvaluation


@dataclass(frozen=True, kw_only=True)
class TokenTrainingConfig(LoopConfig):
    """Settings of token-level training; the paper's (UMT 5.1) in brackets.

    Attributes:
        steps: steps of both tasks together [200,000].
        caption_share: share of the steps that train captioning; they are spread evenly among the others [0.5].
        caption_batch_size: images in a captioning step [256].
        captions_per_image: captions of each of these images, sharing one visual pass [1].
        paint_batch_size: images, each with one caption, in a painting step [256].
        caption_length: tokens of a caption, ``[CLS]`` and ``[SEP]`` included [17 words].
        learning_rate: peak [5e-5]; linear warm-up, then cosine to 0.
        warmup_share: share of the steps that warm up [0.05].
        label_smoothing: mass taken from the target, for words and codes [0.2].
        least_masked: smallest share of a painting's cells that is masked; the share is uniform from there to 1 [0].
            The fewer cells are visible, the more a short training learns to read the text instead of them.
        all_masked: share of paintings with all cells masked, where decoding begins [0]. Nearly always some cell shows the
            scenery, and a short training copies it from there instead of reading it.
        text_drop: share of paintings trained without their text, for classifier-free guidance [0].
        questions: question answering as a third task; None: the papers' two tasks.
        evaluation: what is measured and shown on the val split meanwhile; None: nothing.
        weight_decay [1e-2], clip_norm [1.0], ema_decay [0], accumulation, precision [mixed], seed, checkpoint_seconds:
            as in :class:`diptych.model.training.config.LoopConfig`.
    """

    caption_share: float
    caption_batch_size: int
    captions_per_image: int
    paint_batch_size: int
    caption_length: int
    warmup_share: float
    label_smoothing: float
    least_masked: float
    text_drop: float
    all_masked: float = 0.0
    questions: QuestionSettings | None = None
    evaluation: EvaluationConfig | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least_one(self, "caption_batch_size", "captions_per_image", "paint_batch_size")
        check_share(self, "caption_share")
        check_masking(self)


def task_steps_before(step: int, share: float) -> int:
    """Number of a task's steps among the first ``step`` steps; step s is one if it raises this number."""
    return int(step * share + 1e-9)


class TurnSettings(Protocol):
    """What says which steps caption, and which images a step takes."""

    @property
    def caption_share(self) -> float: ...

    @property
    def caption_batch_size(self) -> int: ...

    @property
    def paint_batch_size(self) -> int: ...

    @property
    def seed(self) -> int: ...


def plan_turn(config: TurnSettings, count: int, step: int) -> tuple[bool, list[int]]:
    """Return whether ``step`` captions, otherwise it paints, and the images of its batch, of ``count``."""
    before = task_steps_before(step, config.caption_share)
    if task_steps_before(step + 1, config.caption_share) > before:
        return True, batch_indices(count, config.caption_batch_size, config.seed, before).tolist()
    # Another seed than captioning's, so that the two tasks walk the epochs in different orders.
    return False, batch_indices(count, config.paint_batch_size, config.seed + 1, step - before).tolist()


def drop_text(tokenizer: CaptionTokenizer, ids: Tensor, probability: float) -> Tensor:
    """Replace whole rows of ids int64 ``[n, t]`` by "no text" with ``probability``."""
    no_text = torch.full_like(ids, tokenizer.pad)
    no_text[:, :2] = tokenizer.no_text(len(ids))
    return torch.where(torch.rand(len(ids), 1) < probability, no_text, ids)


class PaintSettings(MaskSettings, Protocol):
    """What token-level painting reads of either stage's config."""

    @property
    def text_drop(self) -> float: ...

    @property
    def label_smoothing(self) -> float: ...

    @property
    def precision(self) -> str: ...


def paint_pieces(
    config: PaintSettings,
    model: UnifiedTransformer,
    tokenizer: CaptionTokenizer,
    codebook: Tensor,
    captions: CaptionTable,
    indices: list[int],
    pieces: list[slice],
    data: list[Tensor],
    batch_loss: Callable[..., Tensor] = paint_loss,
) -> list[Piece]:
    """A painting step: one caption for each of the images ``indices``, a mask ratio for each, some texts dropped.

    ``pieces`` are this process's rows of the batch, ``data`` what :func:`read_to_paint` has read of them. The loss is the mean over the masked cells of the whole batch; ``batch_loss`` is :func:`paint_loss` or, compiled, the
    same function.
    """
    ids = captions.choose(indices, 1)[0][:, 0]
    ids = drop_text(tokenizer, ids, config.text_drop)
    masked = sample_mask(len(indices), model.config.cells, config.least_masked, config.all_masked)
    device = codebook.device

    def piece(rows: slice, codes: Tensor, *features: Tensor) -> Piece:
        own = Texts.of(ids[rows], tokenizer.pad), Places.of(masked[rows])

        def loss() -> tuple[Tensor, dict[str, Tensor]]:
            targets, texts, hidden = on_device(codes, device), *(part.to(device) for part in own)
            shown = [on_device(part, device) for part in features]
            with autocast_context(device, config.precision):
                mean = batch_loss(
                    model, tokenizer, codebook, targets, texts, hidden, config.label_smoothing, *shown
                )
            return mean, {"paint_loss": mean.detach()}

        return Piece(int(masked[rows].sum()) / int(masked.sum()), len(codes), loss)

    codes, features = data[: len(pieces)], data[len(pieces) :]
    return [
        piece(rows, *parts)
        for rows, *parts in zip(pieces, codes, *([features] if features else []), strict=True)
    ]


def read_to_paint(
    model: UnifiedTransformer,
    train: TrainingShards,
    indices: list[int],
    pieces: list[slice],
    device: torch.device,
) -> list[Tensor]:
    """Read the codes of each of ``pieces`` and, where visible cells show them, after all codes the grid features."""
    data = read_rows(train.codes, indices, pieces, device)
    if painting_shows_features(model.config):
        data += read_rows(train.grid, indices, pieces, device)
    return data


class TokenSteps:
    """The steps of token-level training (:class:`diptych.model.training.contracts.Steps`); what either task sees of pictures
    is the rule of :mod:`diptych.model.image_features`."""

    def __init__(
        self,
        config: TokenTrainingConfig,
        model: UnifiedTransformer,
        tokenizer: CaptionTokenizer,
        codebook: Tensor,
        train: TrainingShards,
        questions: QuestionTable | None = None,
        compiled: bool = False,
    ) -> None:
        self.config, self.model, self.tokenizer = config, model, tokenizer
        self.codebook, self.train, self.questions = codebook, train, questions
        self.captions = CaptionTable(train, tokenizer, config.caption_length)
        self.seen_losses: Callable[..., tuple[Tensor, Tensor]] = caption_and_answer_losses
        self.paint_loss: Callable[..., Tensor] = paint_loss
        if compiled:  # dynamic, because texts are cut to the longest one of their batch
            self.seen_losses = torch.compile(caption_and_answer_losses, dynamic=True)
            self.paint_loss = torch.compile(paint_loss, dynamic=True)
        own_pieces = current_processes().own_pieces
        self.caption_rows = own_pieces(config.caption_batch_size, config.accumulation)
        self.paint_rows = own_pieces(config.paint_batch_size, config.accumulation)

    def plan(self, step: int) -> tuple[bool, list[int]]:
        """Return whether ``step`` trains captioning, and the images of its batch."""
        return plan_turn(self.config, len(self.train), step)

    def asks(self, step: int) -> bool:
        """Return whether ``step``, one of captioning, also asks questions."""
        if self.config.questions is None:
            return False
        before = task_steps_before(step, self.config.caption_share)
        asked = (task_steps_before(number, self.config.questions.share) for number in (before, before + 1))
        return next(asked) < next(asked)

    def read(self, step: int) -> list[Tensor]:
        """Read grid features, codes or both of this process's pieces."""
        captioning, indices = self.plan(step)
        device = self.codebook.device
        if captioning:
            return read_rows(caption_rows(self.model.config, self.train), indices, self.caption_rows, device)
        return read_to_paint(self.model, self.train, indices, self.paint_rows, device)

    def pieces(self, step: int, data: list[Tensor]) -> list[Piece]:
        """Draw captions, questions and masks."""
        captioning, indices = self.plan(step)
        if captioning:
            return self.caption_pieces(indices, data, self.asks(step))
        return paint_pieces(
            self.config,
            self.model,
            self.tokenizer,
            self.codebook,
            self.captions,
            indices,
            self.paint_rows,
            data,
            self.paint_loss,
        )

    def caption_pieces(self, indices: list[int], features: list[Tensor], asking: bool) -> list[Piece]:
        """A captioning step by the model's ``caption_attention``. ``prefix`` trains all words of the chosen captions,
        ``masked`` one of each; the loss is the mean over the trained words of the whole batch. ``asking`` adds the mean
        loss of questions about the same images."""
        config, device = self.config, self.codebook.device
        ids = self.captions.choose(indices, config.captions_per_image)[0]  # [n, c, t]
        masked = self.model.config.caption_attention == "masked"
        positions = sample_positions(self.tokenizer, ids) if masked else None  # [n, c]
        words = (
            (ids[..., 1:] != self.tokenizer.pad).sum((1, 2)) if positions is None else ids.new_ones(len(ids))
        )
        questions = shares = asked = None
        if asking and config.questions and self.questions:
            chosen = self.questions.choose(indices, config.questions.questions_per_image)
            questions, shares = self.questions.ids[chosen], self.questions.shares(chosen)
            asked = shares.any(-1).sum(1)  # [n]
        tokenizer = self.tokenizer

        def piece(rows: slice, features: Tensor) -> Piece:
            share, samples = int(words[rows].sum()) / int(words.sum()), ids[rows].shape[:2].numel()
            # the loss of answers is a mean over other items than that of words, whose share the piece has
            weight = 0.0
            if asked is not None:
                weight = int(asked[rows].sum()) / max(1, int(asked.sum())) / share
                samples += int(asked[rows].sum())
            places = None if positions is None else positions[rows]
            texts = (
                Texts.of(ids[rows], tokenizer.pad) if places is None else until(tokenizer, ids[rows], places)
            )
            about = None if questions is None else Texts.of(questions[rows], tokenizer.pad)
            wanted = None if shares is None else shares[rows].flatten(0, 1)

            def loss() -> tuple[Tensor, dict[str, Tensor]]:
                seen = caption_input(self.model.config, self.codebook, on_device(features, device))
                with autocast_context(device, config.precision):
                    captions, answers = self.seen_losses(
                        self.model,
                        tokenizer,
                        seen,
                        texts.to(device),
                        None if places is None else sent(places, device),
                        config.label_smoothing,
                        None if about is None else about.to(device),
                        None if wanted is None else sent(wanted, device),
                    )
                reported = {"caption_loss": captions.detach()}
                if asked is None or config.questions is None:
                    return captions, reported
                reported["answer_loss"] = weight * answers.detach()
                return captions + config.questions.weight * weight * answers, reported

            return Piece(share, samples, loss)

        return [piece(rows, part) for rows, part in zip(self.caption_rows, features, strict=True)]


def check_data(model: UnifiedTransformer, train: TrainingShards, caption_length: int) -> None:
    """Raise a UserError where grid features or captions are not of the size that ``model`` was built for."""
    if len(train):
        shape, expected = tuple(train.grid([0]).shape[1:]), (model.config.cells, model.config.feature_dim)
        if shape != expected:
            raise UserError(
                f"image {train.keys[0]}: grid features of {shape} cells and numbers, but the transformer was built for "
                f"{expected}; extract them anew, or train another transformer"
            )
    check_caption_length(caption_length, model.config.text_positions)


def check_caption_length(caption_length: int, positions: int) -> None:
    """Raise a UserError unless captions have room for a word, and a transformer has ``positions`` for them."""
    if not 3 <= caption_length <= positions:
        raise UserError(
            f"caption_length must be from 3 to the transformer's {positions} text positions, is {caption_length}"
        )


def train_token(
    config: TokenTrainingConfig,
    model: UnifiedTransformer,
    tokenizer: CaptionTokenizer,
    codebook: Tensor,
    train: TrainingShards,
    checkpoints: Checkpoints | None,
    device: torch.device | str,
    val: TrainingShards | None = None,
    compiled: bool = False,
    questions: QuestionTable | None = None,
    val_questions: QuestionTable | None = None,
) -> Record:
    """Train ``model`` in place on its tasks, alone or as one of several processes
    (:func:`diptych.model.training.processes.joined_processes`).

    Args:
        model: one that knows the codebook (:meth:`UnifiedTransformer.set_codebook`).
        codebook: float32 ``[K, D]``.
        val: what ``config.evaluation`` measures and shows.
        compiled: run all losses through torch.compile: minutes at the start, results that differ by rounding. On CPUs it
            gains nothing.
        questions: about the images of ``train``, needed where ``config.questions`` are; ``val_questions`` about those of
            ``val`` in the same way.

    Returns:
        History rows: step, learning_rate, caption_loss, paint_loss, answer_loss, gradient_norm; and what
        :class:`diptych.model.training.token_evaluation.TokenEvaluation` measured and made.
    """
    check_codebook(model, codebook, "codebook")
    check_data(model, train, config.caption_length)
    model.to(device)
    codebook = codebook.to(device)
    if config.questions is None:
        questions = val_questions = None
    elif questions is None:
        raise ValueError("the task of answering needs questions")
    steps = TokenSteps(config, model, tokenizer, codebook, train, questions, compiled)
    evaluation = None
    if config.evaluation is not None:
        if val is None:
            raise ValueError("evaluation needs val")
        evaluation = TokenEvaluation(
            config.evaluation, config, model, tokenizer, codebook, val, val_questions
        )
    return run_training(
        model,
        "token-level training",
        config,
        steps,
        learning_rate=lambda step: warmup_cosine(
            step, config.steps, config.learning_rate, config.warmup_share
        ),
        started_from=fingerprint(
            model,
            model.config,
            config.determining(),
            compiled,
            train.keys,
            steps.captions.texts,
            codebook,
            *(questions.contents() if questions else ()),
        ),
        checkpoints=checkpoints,
        evaluation=evaluation,
    )
