"""Settings of BUTD's training; alone, so that who reads them does not run it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from diptych.model.errors import UserError
from diptych.model.training.config import LoopConfig, check_at_least_one, check_share


@dataclass(frozen=True, kw_only=True)
class BUTDTrainingConfig(LoopConfig):
    """Settings of either stage; those of the first alone, and those of SCST alone, do nothing in the other.

    Attributes:
        steps: of this stage.
        objective: ``words``, the cross-entropy of each word after those before it, or ``scst``.
        batch_size: images in a step.
        captions_per_image: captions of each image that the first stage trains on, or that SCST samples [5: all; SCST: 1].
        caption_length: tokens of a caption, ``[CLS]`` and ``[SEP]`` included.
        label_smoothing: of the first stage [0].
        sample_temperature: of the captions that SCST samples [1].
        baseline: of a sample's reward, as of :class:`diptych.model.training.sequence.SequenceTrainingConfig` [greedy].
        learning_rate: peak; linear warm-up, then cosine to 0.
        warmup_share: share of the steps that warm up.
        weight_decay, clip_norm, ema_decay, accumulation, precision, seed, checkpoint_seconds: as in
            :class:`diptych.model.training.config.LoopConfig`.
    """

    objective: Literal["words", "scst"]
    batch_size: int
    captions_per_image: int
    caption_length: int
    label_smoothing: float = 0.0
    sample_temperature: float = 1.0
    baseline: Literal["greedy", "mean"] = "greedy"
    warmup_share: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least_one(self, "batch_size", "captions_per_image")
        check_share(self, "warmup_share", "label_smoothing")
        if not self.sample_temperature > 0:
            raise UserError(f"sample_temperature must be above 0, is {self.sample_temperature}")
        if self.objective == "scst" and self.baseline == "mean" and self.captions_per_image < 2:
            raise UserError(
                "baseline mean is that of an image's other samples: set captions_per_image to 2 or more"
            )

    # what SCST reads (diptych.model.training.scst.ScstSettings)

    @property
    def samples_per_image(self) -> int:
        """Captions that SCST samples of each image."""
        return self.captions_per_image

    scst_vision, scst_weight = True, 1.0
