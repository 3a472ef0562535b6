"""Sequence-level training, stage 2 (UMT 4.1.2, 4.2.2, 5.1): SCST captions, CLIP-loss painting, token-level painting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from diptych.features.order import batch_indices
from diptych.model.decoding.caption import decode_captions
from diptych.model.errors import UserError
from diptych.model.objectives import Scorer, clip_loss, relaxed_painting, sampled_log_probabilities, scst_loss
from diptych.model.precision import autocast_context
from diptych.model.pretrained import check_codebook
from diptych.model.tokenizer import CaptionTokenizer
from diptych.model.training.data import CaptionTable, grid_features
from diptych.model.training.loop import Checkpoints, TrainingShards, fingerprint, run_training
from diptych.model.training.token import paint_batch_loss
from diptych.model.transformer import UnifiedTransformer


class CaptionReward(Protocol):
    """CIDEr-D on token ids (``diptych.eval.captions.CiderDReward``)."""

    def reward(self, image_indices: Sequence[int], candidates: Sequence[Sequence[int]]) -> np.ndarray:
        """Score candidate captions of images: float32 ``[n]``."""


@dataclass(frozen=True)
class SequenceTrainingConfig:
    """Settings of sequence-level training; the paper's (UMT 5.1) in brackets.

    Attributes:
        steps: steps of all tasks together [300,000].
        scst_steps, clip_steps, paint_steps: how many steps of each task a cycle has, in this order [1, 1, 1].
        scst_batch_size, clip_batch_size, paint_batch_size: images, or captions to paint, in a step [160].
        caption_length: tokens of a caption, ``[CLS]`` and ``[SEP]`` included [17 words].
        learning_rate: constant [1e-6].
        weight_decay, clip_norm, label_smoothing, least_masked, text_drop, ema_decay, precision, seed, checkpoint_seconds: as in
            :class:`diptych.model.training.token.TokenTrainingConfig`.
        sample_temperature: of the captions that SCST samples and of the policy it improves [1].
        mask_predict_steps: k of CLIP-loss painting [4].
        guidance: classifier-free guidance in CLIP-loss painting [1: none].
        gumbel_temperature: of the relaxed codes [1].
    """

    steps: int
    scst_steps: int
    clip_steps: int
    paint_steps: int
    scst_batch_size: int
    clip_batch_size: int
    paint_batch_size: int
    caption_length: int
    learning_rate: float
    weight_decay: float
    clip_norm: float
    label_smoothing: float
    least_masked: float
    text_drop: float
    ema_decay: float
    sample_temperature: float
    mask_predict_steps: int
    guidance: float
    gumbel_temperature: float
    precision: str
    seed: int
    checkpoint_seconds: float

    def __post_init__(self) -> None:
        for name in ("steps", "scst_batch_size", "clip_batch_size", "paint_batch_size", "mask_predict_steps"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, is {getattr(self, name)}")
        if not 0 <= self.least_masked < 1:
            raise UserError(f"least_masked must be in [0, 1), is {self.least_masked}")


def reference_words(tokenizer: CaptionTokenizer, train: TrainingShards, length: int) -> list[list[list[int]]]:
    """Return the training captions as word ids, per image, as :class:`CiderDReward` takes its references."""
    table = CaptionTable(train, tokenizer, length)
    return [[tokenizer.words(row) for row in ids] for ids in table.ids]


def scst_batch_loss(
    config: SequenceTrainingConfig,
    model: UnifiedTransformer,
    tokenizer: CaptionTokenizer,
    features: Tensor,
    indices: list[int],
    reward: CaptionReward,
) -> tuple[Tensor, dict[str, float | Tensor]]:
    """SCST loss of one caption per image, and the mean rewards.

    Sampling and scoring both run without dropout, so the scored policy is the one that was sampled. Both captions
    are decoded without gradients through the cache; one pass then scores the sampled words with gradients.
    """
    model.eval()
    with torch.no_grad(), autocast_context(features.device, config.precision):
        prefix = model.encode_visual_prefix(features)
        greedy = decode_captions(model, tokenizer, prefix, config.caption_length).ids
        seeds = torch.randint(2**62, (len(indices),)).tolist()
        sampled = decode_captions(
            model, tokenizer, prefix, config.caption_length, config.sample_temperature, seeds
        ).ids
    rewards, baselines = (
        torch.from_numpy(
            np.asarray(reward.reward(indices, [tokenizer.words(row) for row in ids.cpu()]), dtype=np.float32)
        ).to(features.device)
        for ids in (sampled, greedy)
    )
    with autocast_context(features.device, config.precision):
        prefix = model.encode_visual_prefix(features)
        log_probabilities, words = sampled_log_probabilities(
            model, tokenizer, prefix, sampled, config.sample_temperature
        )
    model.train()
    loss = scst_loss(log_probabilities, words, rewards, baselines)
    return loss, {"scst_reward": rewards.mean(), "greedy_reward": baselines.mean()}


def clip_batch_loss(
    config: SequenceTrainingConfig,
    model: UnifiedTransformer,
    tokenizer: CaptionTokenizer,
    codebook: Tensor,
    ids: Tensor,
    texts: Sequence[str],
    generator: nn.Module,
    scorer: Scorer,
) -> Tensor:
    """CLIP loss of painted captions: ids int64 ``[n, t]`` and the same captions as text."""
    with autocast_context(codebook.device, config.precision):
        vectors = relaxed_painting(
            model,
            tokenizer,
            codebook,
            ids,
            config.mask_predict_steps,
            config.guidance,
            config.gumbel_temperature,
        )
        return clip_loss(vectors, texts, generator, scorer)


def train_sequence(
    config: SequenceTrainingConfig,
    model: UnifiedTransformer,
    tokenizer: CaptionTokenizer,
    codebook: Tensor,
    train: TrainingShards,
    reward: CaptionReward,
    generator: nn.Module,
    scorer: Scorer,
    checkpoints: Checkpoints | None,
    device: torch.device | str,
) -> list[dict[str, float]]:
    """Train ``model`` in place; the image generator and the scorer are frozen and put in eval mode.

    Args:
        codebook: float32 ``[K, D]``.
        reward: built on :func:`reference_words` of the same ``train``.

    Returns:
        History rows: step, learning_rate, scst_reward, greedy_reward (CIDEr-D of sampled and greedy training
        captions), clip_loss, paint_loss, gradient_norm.
    """
    check_codebook(model, codebook, "codebook")
    cycle = ["scst"] * config.scst_steps + ["clip"] * config.clip_steps + ["paint"] * config.paint_steps
    if not cycle:
        raise UserError("scst_steps, clip_steps and paint_steps are all 0; at least one task must train")
    device = torch.device(device)
    model.to(device)
    codebook = codebook.to(device)
    captions = CaptionTable(train, tokenizer, config.caption_length)
    for module in (generator, scorer):
        if isinstance(module, nn.Module):
            module.to(device).eval().requires_grad_(False)

    def step_loss(step: int) -> tuple[Tensor, dict[str, float | Tensor]]:
        task = cycle[step % len(cycle)]
        task_step = step // len(cycle) * cycle.count(task) + cycle[: step % len(cycle)].count(task)
        if task == "scst":
            indices = batch_indices(len(train), config.scst_batch_size, config.seed, task_step).tolist()
            features = grid_features(train, indices, device)
            return scst_batch_loss(config, model, tokenizer, features, indices, reward)
        if task == "clip":
            indices = batch_indices(len(train), config.clip_batch_size, config.seed + 1, task_step).tolist()
            ids, texts = captions.choose(indices, 1)
            loss = clip_batch_loss(
                config, model, tokenizer, codebook, ids[:, 0].to(device), texts, generator, scorer
            )
            return loss, {"clip_loss": loss.detach()}
        indices = batch_indices(len(train), config.paint_batch_size, config.seed + 2, task_step).tolist()
        with autocast_context(device, config.precision):
            loss = paint_batch_loss(config, model, tokenizer, codebook, train, captions, indices)
        return loss, {"paint_loss": loss.detach()}

    settings = {key: value for key, value in asdict(config).items() if key != "checkpoint_seconds"}
    judges = [m.state_dict() for m in (generator, scorer) if isinstance(m, nn.Module)]
    frozen = [tensor for state in judges for tensor in state.values()]
    return run_training(
        model,
        name="sequence-level training",
        steps=config.steps,
        seed=config.seed,
        step_loss=step_loss,
        learning_rate=lambda step: config.learning_rate,
        weight_decay=config.weight_decay,
        clip_norm=config.clip_norm,
        ema_decay=config.ema_decay,
        started_from=fingerprint(
            model, model.config, settings, train.keys, captions.texts, codebook, *frozen
        ),
        checkpoints=checkpoints,
        checkpoint_seconds=config.checkpoint_seconds,
    )
