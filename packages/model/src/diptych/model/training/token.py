"""Token-level training, stage 1 (UMT 4.1.1, 4.2.1, 5.1): captioning and painting in turns."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Protocol

import torch
from torch import Tensor

from diptych.features.order import batch_indices
from diptych.model.errors import UserError
from diptych.model.objectives import caption_loss, paint_loss, sample_mask
from diptych.model.precision import autocast_context
from diptych.model.pretrained import check_codebook
from diptych.model.tokenizer import CaptionTokenizer
from diptych.model.training.data import CaptionTable, grid_features, read_codes
from diptych.model.training.loop import Checkpoints, TrainingShards, fingerprint, run_training, warmup_cosine
from diptych.model.transformer import UnifiedTransformer


@dataclass(frozen=True)
class TokenTrainingConfig:
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
        weight_decay: AdamW's, on the matrices of linear layers [1e-2].
        clip_norm: largest gradient norm [1.0].
        label_smoothing: mass taken from the target, for words and codes [0.2].
        least_masked: smallest share of a painting's cells that is masked; the share is uniform from there to 1 [0].
            The fewer cells are visible, the more a short training learns to read the text instead of them.
        text_drop: share of paintings trained without their text, for classifier-free guidance [0].
        ema_decay: of the moving average of the weights that becomes the model [0: none].
        precision: auto, float32 or bfloat16 [mixed].
        seed: of data order, dropout and masks.
        checkpoint_seconds: wall time between checkpoints.
    """

    steps: int
    caption_share: float
    caption_batch_size: int
    captions_per_image: int
    paint_batch_size: int
    caption_length: int
    learning_rate: float
    warmup_share: float
    weight_decay: float
    clip_norm: float
    label_smoothing: float
    least_masked: float
    text_drop: float
    ema_decay: float
    precision: str
    seed: int
    checkpoint_seconds: float

    def __post_init__(self) -> None:
        for name in ("steps", "caption_batch_size", "captions_per_image", "paint_batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, is {getattr(self, name)}")
        if not 0 <= self.least_masked < 1:
            raise UserError(f"least_masked must be in [0, 1), is {self.least_masked}")


def caption_steps_before(step: int, caption_share: float) -> int:
    """Number of captioning steps among the first ``step`` steps; step s is one if it raises this number."""
    return int(step * caption_share + 1e-9)


def drop_text(tokenizer: CaptionTokenizer, ids: Tensor, probability: float) -> Tensor:
    """Replace whole rows of ids int64 ``[n, t]`` by "no text" with ``probability``."""
    no_text = torch.full_like(ids, tokenizer.pad)
    no_text[:, :2] = tokenizer.no_text(len(ids))
    return torch.where(torch.rand(len(ids), 1) < probability, no_text, ids)


class PaintSettings(Protocol):
    """What token-level painting reads of either stage's config."""

    @property
    def least_masked(self) -> float: ...

    @property
    def text_drop(self) -> float: ...

    @property
    def label_smoothing(self) -> float: ...


def paint_batch_loss(
    config: PaintSettings,
    model: UnifiedTransformer,
    tokenizer: CaptionTokenizer,
    codebook: Tensor,
    train: TrainingShards,
    captions: CaptionTable,
    indices: list[int],
) -> Tensor:
    """Painting loss of one batch: one caption per image, a mask ratio for each, some texts dropped."""
    ids = captions.choose(indices, 1)[0][:, 0]
    ids = drop_text(tokenizer, ids, config.text_drop).to(codebook.device)
    codes = read_codes(train, indices, codebook.device)
    masked = sample_mask(len(codes), codes.shape[1], config.least_masked).to(codebook.device)
    return paint_loss(model, tokenizer, codebook, codes, ids, masked, config.label_smoothing)


def train_token(
    config: TokenTrainingConfig,
    model: UnifiedTransformer,
    tokenizer: CaptionTokenizer,
    codebook: Tensor,
    train: TrainingShards,
    checkpoints: Checkpoints | None,
    device: torch.device | str,
) -> list[dict[str, float]]:
    """Train ``model`` in place on both tasks.

    Two-level features (UMT 3.2): captioning reads the dense grid features, painting reads and predicts codes, shown
    as codebook vectors.

    Args:
        codebook: float32 ``[K, D]``; also sets the model's input statistics.

    Returns:
        History rows: step, learning_rate, caption_loss, paint_loss, gradient_norm.
    """
    check_codebook(model, codebook, "codebook")
    if not 0 <= config.caption_share <= 1:
        raise UserError(f"caption_share must be in [0, 1], not {config.caption_share}")
    device = torch.device(device)
    model.to(device)
    model.set_codebook(codebook)
    codebook = codebook.to(device)
    captions = CaptionTable(train, tokenizer, config.caption_length)

    def step_loss(step: int) -> tuple[Tensor, dict[str, float | Tensor]]:
        before = caption_steps_before(step, config.caption_share)
        with autocast_context(device, config.precision):
            if caption_steps_before(step + 1, config.caption_share) > before:
                indices = batch_indices(len(train), config.caption_batch_size, config.seed, before).tolist()
                ids = captions.choose(indices, config.captions_per_image)[0].to(device)
                features = grid_features(train, indices, device)
                loss = caption_loss(model, tokenizer, features, ids, config.label_smoothing)
                return loss, {"caption_loss": loss.detach()}
            # Another seed than captioning's, so that the two tasks walk the epochs in different orders.
            indices = batch_indices(
                len(train), config.paint_batch_size, config.seed + 1, step - before
            ).tolist()
            loss = paint_batch_loss(config, model, tokenizer, codebook, train, captions, indices)
            return loss, {"paint_loss": loss.detach()}

    settings = {key: value for key, value in asdict(config).items() if key != "checkpoint_seconds"}
    return run_training(
        model,
        name="token-level training",
        steps=config.steps,
        seed=config.seed,
        step_loss=step_loss,
        learning_rate=lambda step: warmup_cosine(
            step, config.steps, config.learning_rate, config.warmup_share
        ),
        weight_decay=config.weight_decay,
        clip_norm=config.clip_norm,
        ema_decay=config.ema_decay,
        started_from=fingerprint(model, model.config, settings, train.keys, captions.texts, codebook),
        checkpoints=checkpoints,
        checkpoint_seconds=config.checkpoint_seconds,
    )
