"""Settings of BiART's training; alone, so that who reads them, such as what trains its image tokenizer, does not run it."""

from __future__ import annotations

from dataclasses import dataclass

from diptych.model.errors import UserError
from diptych.model.training.config import LoopConfig, check_at_least_one, check_share


@dataclass(frozen=True, kw_only=True)
class BiARTTrainingConfig(LoopConfig):
    """Settings of BiART's training; the paper's in brackets, where it has them (its appendix B is not at hand).

    Attributes:
        steps: of both orders together.
        caption_share: share of the steps from image to text, spread evenly among the others [0.5: they alternate].
        caption_batch_size: images in such a step.
        captions_per_image: captions of each of these images, which is read once for all [1].
        paint_batch_size: images, each with one caption, in a step from text to image.
        caption_length: tokens of a caption, ``[CLS]`` and ``[SEP]`` included [64].
        reference_weight: of the loss of the reference beside that of what is generated [1]; 0: it is not computed.
        label_smoothing: as of token-level training [0].
        text_drop: share of paintings trained without their text, for classifier-free guidance [0].
        code_drop: share of the painted codes that those after them do not see [0]: where pictures are few, a painter learns them by
            heart from the codes before, and seldom reads the text.
        code_spread: how far the target of a painted code is shared by codes alike
            (:meth:`diptych.model.objectives.near_codes.NearCodes.of`), in the place of label smoothing [0: not at all].
        learning_rate: peak; linear warm-up, then cosine to 0.
        warmup_share: share of the steps that warm up.
        weight_decay, muon, clip_norm, ema_decay, accumulation, precision, seed, checkpoint_seconds: as in
            :class:`diptych.model.training.config.LoopConfig`.
    """

    caption_share: float
    caption_batch_size: int
    captions_per_image: int
    paint_batch_size: int
    caption_length: int
    reference_weight: float = 1.0
    label_smoothing: float = 0.0
    text_drop: float = 0.0
    code_drop: float = 0.0
    code_spread: float = 0.0
    warmup_share: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least_one(self, "caption_batch_size", "captions_per_image", "paint_batch_size")
        check_share(self, "caption_share", "warmup_share", "label_smoothing", "text_drop", "code_drop")
        for name in ("reference_weight", "code_spread"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} must be at least 0, is {getattr(self, name)}")
