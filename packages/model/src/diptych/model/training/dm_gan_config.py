"""Settings of DM-GAN's two trainings; alone, so that who reads them does not run them."""

from __future__ import annotations

from dataclasses import dataclass

from diptych.model.errors import UserError
from diptych.model.training.config import LoopConfig, check_at_least_one, check_share


@dataclass(frozen=True, kw_only=True)
class MatchingTrainingConfig(LoopConfig):
    """Settings of this training; AttnGAN's in brackets.

    Attributes:
        batch_size: pictures, each with one caption; a text is told from the others of its batch [48].
        caption_length: tokens of a caption, ``[CLS]`` and ``[SEP]`` included.
        learning_rate: peak; linear warm-up, then cosine to 0 [2e-4, falling by epochs].
        warmup_share: share of the steps that warm up.
        weight_decay, clip_norm [0.25], ema_decay, precision, seed, checkpoint_seconds: as in
            :class:`diptych.model.training.config.LoopConfig`; accumulation is 1.
    """

    batch_size: int
    caption_length: int
    warmup_share: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least_one(self, "batch_size")
        check_share(self, "warmup_share")


@dataclass(frozen=True, kw_only=True)
class DMGANTrainingConfig(LoopConfig):
    """Settings of this training; the paper's in brackets.

    Attributes:
        batch_size: pictures, each with one caption [10].
        caption_length: tokens of a caption, ``[CLS]`` and ``[SEP]`` included.
        discriminator_channels: of each discriminator's first stage [32].
        learning_rate: of the generator, constant [2e-4].
        discriminator_learning_rate: likewise [2e-4].
        betas: of both networks' Adam [0.5, 0.999].
        condition_weight: of the distance of the condition's distribution from the standard normal [1].
        matching_weight: of the loss of matching [5; COCO: 50].
        weight_decay, clip_norm, ema_decay [0.999], precision, seed, checkpoint_seconds: as in
            :class:`diptych.model.training.config.LoopConfig`; accumulation is 1.
    """

    batch_size: int
    caption_length: int
    discriminator_channels: int
    discriminator_learning_rate: float
    betas: tuple[float, float] = (0.5, 0.999)
    condition_weight: float = 1.0
    matching_weight: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least_one(self, "discriminator_channels")
        if self.batch_size < 2:
            raise UserError(
                f"batch_size must be at least 2, as texts are told from others; is {self.batch_size}"
            )
        for name in ("condition_weight", "matching_weight"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} must be at least 0, is {getattr(self, name)}")
