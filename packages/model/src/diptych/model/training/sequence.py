"""Sequence-level training, stage 2 (UMT 4.1.2, 4.2.2, 5.1): SCST captions, CLIP-loss painting, token-level painting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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
from diptych.model.training.data import CaptionTable, on_device, read_rows
from diptych.model.training.loop import (
    Checkpoints,
    LoopConfig,
    Piece,
    TrainingShards,
    fingerprint,
    run_training,
)
from diptych.model.training.processes import current_processes
from diptych.model.training.token import check_data, paint_pieces
from diptych.model.transformer import UnifiedTransformer


class CaptionReward(Protocol):
    """CIDEr-D on token ids (``diptych.eval.captions.CiderDReward``)."""

    def reward(self, image_indices: Sequence[int], candidates: Sequence[Sequence[int]]) -> np.ndarray:
        """Score candidate captions of images: float32 ``[n]``."""


@dataclass(frozen=True, kw_only=True)
class SequenceTrainingConfig(LoopConfig):
    """Settings of sequence-level training; the paper's (UMT 5.1) in brackets.

    Attributes:
        steps: steps of all tasks together [300,000].
        scst_steps, clip_steps, paint_steps: how many steps of each task a cycle has, in this order [1, 1, 1].
        scst_batch_size, clip_batch_size, paint_batch_size: images, or captions to paint, in a step [160].
        caption_length: tokens of a caption, ``[CLS]`` and ``[SEP]`` included [17 words].
        learning_rate: constant [1e-6].
        label_smoothing, least_masked, text_drop: as in :class:`diptych.model.training.token.TokenTrainingConfig`.
        sample_temperature: of the captions that SCST samples and of the policy it improves [1].
        mask_predict_steps: k of CLIP-loss painting [4].
        guidance: classifier-free guidance in CLIP-loss painting [1: none].
        gumbel_temperature: of the relaxed codes [1].
        weight_decay, clip_norm, ema_decay, accumulation, precision, seed, checkpoint_seconds: as in
            :class:`diptych.model.training.loop.LoopConfig`.
    """

    scst_steps: int
    clip_steps: int
    paint_steps: int
    scst_batch_size: int
    clip_batch_size: int
    paint_batch_size: int
    caption_length: int
    label_smoothing: float
    least_masked: float
    text_drop: float
    sample_temperature: float
    mask_predict_steps: int
    guidance: float
    gumbel_temperature: float

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_at_least_one(
            "scst_batch_size", "clip_batch_size", "paint_batch_size", "mask_predict_steps"
        )
        if not 0 <= self.least_masked < 1:
            raise UserError(f"least_masked must be in [0, 1), is {self.least_masked}")
        if not self.cycle:
            raise UserError("scst_steps, clip_steps and paint_steps are all 0; at least one task must train")

    @property
    def cycle(self) -> list[str]:
        """The tasks of consecutive steps: ``scst``, ``clip``, ``paint``."""
        return ["scst"] * self.scst_steps + ["clip"] * self.clip_steps + ["paint"] * self.paint_steps


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
    seeds: list[int],
    reward: CaptionReward,
) -> tuple[Tensor, dict[str, Tensor]]:
    """SCST loss of one caption per image, sampled by its seed, and the mean rewards.

    Sampling and scoring both run without dropout, so the scored policy is the one that was sampled. Both captions
    are decoded without gradients through the cache; one pass then scores the sampled words with gradients.
    """
    model.eval()
    with torch.no_grad(), autocast_context(features.device, config.precision):
        prefix = model.encode_visual_prefix(features)
        greedy = decode_captions(model, tokenizer, prefix, config.caption_length).ids
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


class SequenceSteps:
    """The steps of sequence-level training (:class:`diptych.model.training.loop.Steps`): SCST, CLIP loss and
    token-level painting in turns."""

    def __init__(
        self,
        config: SequenceTrainingConfig,
        model: UnifiedTransformer,
        tokenizer: CaptionTokenizer,
        codebook: Tensor,
        train: TrainingShards,
        reward: CaptionReward,
        generator: nn.Module,
        scorer: Scorer,
    ) -> None:
        self.config, self.model, self.tokenizer = config, model, tokenizer
        self.codebook, self.train = codebook, train
        self.reward, self.generator, self.scorer = reward, generator, scorer
        self.captions = CaptionTable(train, tokenizer, config.caption_length)
        self.cycle = config.cycle
        self.batch_sizes = {
            "scst": config.scst_batch_size, "clip": config.clip_batch_size, "paint": config.paint_batch_size
        }  # fmt: skip
        self.rows = {
            task: current_processes().own_pieces(self.batch_sizes[task], config.accumulation)
            for task in dict.fromkeys(self.cycle)
        }

    def plan(self, step: int) -> tuple[str, list[int]]:
        """Return the task of ``step`` and the images of its batch."""
        rounds, place = divmod(step, len(self.cycle))
        task = self.cycle[place]
        task_step = rounds * self.cycle.count(task) + self.cycle[:place].count(task)
        # Each task walks the epochs in an order of its own.
        seed = self.config.seed + list(self.batch_sizes).index(task)
        return task, batch_indices(len(self.train), self.batch_sizes[task], seed, task_step).tolist()

    def read(self, step: int) -> list[Tensor]:
        """Read grid features for SCST, codes for painting, nothing for the CLIP loss."""
        task, indices = self.plan(step)
        if task == "clip":
            return []
        read = self.train.grid if task == "scst" else self.train.codes
        return read_rows(read, indices, self.rows[task], self.codebook.device)

    def pieces(self, step: int, data: list[Tensor]) -> list[Piece]:
        """Draw captions, masks and the seeds of sampled captions."""
        task, indices = self.plan(step)
        if task == "scst":
            return self.scst_pieces(indices, data)
        if task == "clip":
            return self.clip_pieces(indices)
        return paint_pieces(
            self.config,
            self.model,
            self.tokenizer,
            self.codebook,
            self.captions,
            indices,
            self.rows["paint"],
            data,
        )

    def scst_pieces(self, indices: list[int], features: list[Tensor]) -> list[Piece]:
        """An SCST step; its loss is the mean over captions."""
        seeds = torch.randint(2**62, (len(indices),)).tolist()

        def piece(rows: slice, features: Tensor) -> Piece:
            def loss() -> tuple[Tensor, dict[str, Tensor]]:
                grid = on_device(features, self.codebook.device)
                return scst_batch_loss(
                    self.config, self.model, self.tokenizer, grid, indices[rows], seeds[rows], self.reward
                )

            return Piece(len(features) / len(indices), len(features), loss)

        return [piece(rows, part) for rows, part in zip(self.rows["scst"], features, strict=True)]

    def clip_pieces(self, indices: list[int]) -> list[Piece]:
        """A CLIP-loss step; its loss is the mean over captions."""
        ids, texts = self.captions.choose(indices, 1)

        def piece(rows: slice) -> Piece:
            def loss() -> tuple[Tensor, dict[str, Tensor]]:
                mean = clip_batch_loss(
                    self.config,
                    self.model,
                    self.tokenizer,
                    self.codebook,
                    ids[rows, 0].to(self.codebook.device),
                    texts[rows],
                    self.generator,
                    self.scorer,
                )
                return mean, {"clip_loss": mean.detach()}

            return Piece(len(texts[rows]) / len(texts), len(texts[rows]), loss)

        return [piece(rows) for rows in self.rows["clip"]]


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
    check_data(model, train, config.caption_length)
    model.to(device)
    codebook = codebook.to(device)
    for module in (generator, scorer):
        if isinstance(module, nn.Module):
            module.to(device).eval().requires_grad_(False)
    steps = SequenceSteps(config, model, tokenizer, codebook, train, reward, generator, scorer)
    judges = [m.state_dict() for m in (generator, scorer) if isinstance(m, nn.Module)]
    frozen = [tensor for state in judges for tensor in state.values()]
    return run_training(
        model,
        "sequence-level training",
        config,
        steps,
        learning_rate=lambda step: config.learning_rate,
        started_from=fingerprint(
            model, model.config, config.determining(), train.keys, steps.captions.texts, codebook, *frozen
        ),
        checkpoints=checkpoints,
    ).history
