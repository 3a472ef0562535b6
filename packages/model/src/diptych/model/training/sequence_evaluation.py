"""What is measured while sequence-level training runs: rewards on the val split, beside figures that nothing optimises.

A reward that rises while the others fall is being exploited; the curves show it, and ``stopping`` ends the training. The
judge is not among them: it neither trains nor selects.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from diptych.eval.scorers.clip_score import PROMPT, clip_scores
from diptych.features.order import epoch_order
from diptych.model.decoding.caption import decode_captions, encode_images
from diptych.model.decoding.paint import paint_codes
from diptych.model.errors import UserError
from diptych.model.image_features import caption_input, caption_rows
from diptych.model.networks.unified import UnifiedTransformer
from diptych.model.objectives.sequence import Scorer
from diptych.model.pixels import to_unit_range
from diptych.model.precision import autocast_context
from diptych.model.tokenizer import CaptionTokenizer
from diptych.model.training.config import WatchConfig, check_at_least_one
from diptych.model.training.data import CaptionTable, TrainingShards, on_device
from diptych.model.training.stopping import Stopping

BATCH_SIZE = 50

# Painted pictures float [n, 3, S, S] in 0..1 and the numbers of the val images whose captions they show, to figures.
Inspect = Callable[[Tensor, list[int]], dict[str, float]]


class ValReward(Protocol):
    """CIDEr-D against the val captions (``diptych.eval.captions.cider.CiderDReward``)."""

    def reward(self, image_indices: Any, candidates: Any) -> Any:
        """Score candidate captions of images: float32 ``[n]``."""


class Settings(Protocol):
    """What an evaluation reads of the training's config."""

    @property
    def caption_length(self) -> int: ...

    @property
    def precision(self) -> str: ...

    @property
    def seed(self) -> int: ...


@dataclass(frozen=True, kw_only=True)
class SequenceEvaluationConfig(WatchConfig):
    """Evaluation during sequence-level training, before the first step too.

    Attributes:
        images: val images that are captioned and whose first captions are painted.
        mask_predict_steps, guidance: how they are painted; the training may paint in fewer steps and without guidance.
        stopping: when falling figures end the training; None: never. It may watch ``val_cider_d`` and what the caller
            inspects paintings for, not ``val_clip_score``, which training raises anyway.
        every: as in :class:`diptych.model.training.config.WatchConfig`.
    """

    mask_predict_steps: int
    guidance: float
    stopping: Stopping | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least_one(self, "mask_predict_steps", section="evaluation.")
        if self.stopping and "val_clip_score" in self.stopping.watched:
            raise UserError(
                "evaluation.stopping.watched: val_clip_score is what the training raises; leave it out"
            )


class SequenceEvaluation:
    """Greedy captions and paintings of fixed val images (:class:`diptych.model.training.contracts.Evaluation`).

    ``inspect`` gives figures of paintings that no training optimises, such as what a detector finds in them.
    """

    def __init__(
        self,
        config: SequenceEvaluationConfig,
        training: Settings,
        model: UnifiedTransformer,
        tokenizer: CaptionTokenizer,
        codebook: Tensor,
        val: TrainingShards,
        reward: ValReward,
        generator: nn.Module,
        scorer: Scorer,
        inspect: Inspect | None = None,
    ) -> None:
        self.config, self.training = config, training
        self.every, self.at_start = config.every, True
        self.model, self.tokenizer, self.codebook = model, tokenizer, codebook
        self.reward, self.generator, self.scorer, self.inspect = reward, generator, scorer, inspect
        self.images = epoch_order(len(val), training.seed, 0)[: config.images].tolist()
        captions = CaptionTable(val, tokenizer, training.caption_length, self.images)
        self.prompts = torch.stack([ids[0] for ids in captions.ids])
        self.texts = [texts[0] for texts in captions.texts]
        self.seen = torch.from_numpy(caption_rows(model.config, val)(self.images))
        known = {"val_cider_d"}
        if config.stopping and inspect is None and not set(config.stopping.watched) <= known:
            raise UserError(
                f"evaluation.stopping.watched: {', '.join(sorted(set(config.stopping.watched) - known))} cannot be "
                f"measured here; leave it out. Known are {', '.join(sorted(known))}"
            )

    @torch.no_grad()
    def evaluate(self) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Return ``val_cider_d`` of greedy captions, ``val_clip_score`` of paintings by the scorer (2.5 max(cos, 0)) and
        what ``inspect`` finds; no samples."""
        device = self.codebook.device
        captions: list[list[int]] = []
        pictures: list[Tensor] = []
        scores: list[Tensor] = []
        for start in range(0, len(self.images), BATCH_SIZE):
            rows = slice(start, start + BATCH_SIZE)
            prompts = self.prompts[rows].to(device)
            seen = caption_input(self.model.config, self.codebook, on_device(self.seen[rows], device))
            with autocast_context(device, self.training.precision):
                images = encode_images(self.model, seen)
                length = self.training.caption_length
                written = decode_captions(self.model, self.tokenizer, images, length).ids
                codes = paint_codes(
                    self.model,
                    self.tokenizer,
                    self.codebook,
                    prompts,
                    self.config.mask_predict_steps,
                    self.config.guidance,
                ).codes
                painted = to_unit_range(self.generator(self.codebook[codes]).float())
                texts = self.scorer.encode_texts([PROMPT + text for text in self.texts[rows]])
                matches = clip_scores(self.scorer.encode_images(painted), texts)
            captions += [self.tokenizer.words(row) for row in written.cpu()]
            pictures.append(painted.cpu())
            scores.append(matches.cpu())
        figures = {
            "val_cider_d": float(self.reward.reward(self.images, captions).mean()),
            "val_clip_score": float(torch.cat(scores).mean()),
        }
        if self.inspect is not None:
            figures |= self.inspect(torch.cat(pictures), self.images)
        return figures, []
