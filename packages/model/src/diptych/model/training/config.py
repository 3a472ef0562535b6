"""Settings that all trainings share; each training adds its own."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Protocol

from diptych.model.errors import UserError
from diptych.model.training.schedules import SCHEDULES


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """What :func:`run_training` reads of a training's settings; each training adds its own.

    Attributes:
        steps: steps of the whole run.
        learning_rate: the peak, or all there is where it is constant.
        weight_decay: on the matrices of linear layers and the kernels of convolutions.
        muon: :class:`diptych.model.training.muon.Muon` moves the matrices of a transformer's layers, at so many times the
            learning rate. 0: AdamW moves everything [the papers].
        clip_norm: largest gradient norm that AdamW sees; Muon minds no norm.
        ema_decay: of the moving average of the weights that becomes the model (0: its last weights).
        accumulation: pieces a step's batch is cut into, to run one after the other in less memory. The gradient is that
            of the whole batch up to rounding; only dropout and the noise of sampled paintings are drawn anew.
        precision: auto, float32 or bfloat16.
        seed: of data order, dropout, masks and noise.
        checkpoint_seconds: wall time between checkpoints; the only setting that does not determine the result.
    """

    steps: int
    learning_rate: float
    weight_decay: float = 0.0
    muon: float = 0.0
    clip_norm: float
    ema_decay: float
    accumulation: int = 1
    precision: str
    seed: int
    checkpoint_seconds: float

    def __post_init__(self) -> None:
        check_at_least_one(self, "steps", "accumulation")
        if self.muon < 0:
            raise UserError(f"muon must be at least 0, is {self.muon}")

    def determining(self) -> dict[str, Any]:
        """All settings that determine the result, for :func:`fingerprint`."""
        return {name: value for name, value in asdict(self).items() if name != "checkpoint_seconds"}


@dataclass(frozen=True, kw_only=True)
class WatchConfig:
    """What is measured while a training runs.

    Attributes:
        every: steps between two evaluations; there is one more after the last step.
        images: val images that are measured, at most all; drawn by the seed.
    """

    every: int
    images: int

    def __post_init__(self) -> None:
        check_at_least_one(self, "every", "images", section="evaluation.")


@dataclass(frozen=True, kw_only=True)
class SampleConfig(WatchConfig):
    """What is measured and shown while a training runs.

    Attributes:
        samples: how many of the images are shown.
        every, images: as in :class:`WatchConfig`.
    """

    samples: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.samples <= self.images:
            raise UserError(f"evaluation.samples must be from 0 to images ({self.images}), is {self.samples}")


def check_share(settings: object, *names: str) -> None:
    """Raise a UserError where one of the ``settings`` is no share."""
    for name in names:
        if not 0 <= getattr(settings, name) <= 1:
            raise UserError(f"{name} must be in [0, 1], is {getattr(settings, name)}")


class MaskSettings(Protocol):
    """Settings of uniform masks: the least share of a picture's cells that is masked, and the share of pictures with all masked."""

    @property
    def least_masked(self) -> float: ...

    @property
    def all_masked(self) -> float: ...


def check_schedule(schedule: str) -> None:
    """Raise a UserError where it is none of :data:`diptych.model.training.schedules.SCHEDULES`."""
    if schedule not in SCHEDULES:
        raise UserError(f"schedule must be one of {', '.join(SCHEDULES)}, is {schedule!r}")


def check_masking(config: MaskSettings) -> None:
    """Raise a UserError where shares of masked cells or pictures are not such."""
    if not 0 <= config.least_masked < 1:
        raise UserError(f"least_masked must be in [0, 1), is {config.least_masked}")
    check_share(config, "all_masked")


def check_at_least_one(settings: object, *names: str, section: str = "") -> None:
    """Raise a UserError where one of the ``settings`` of a ``section`` is below 1."""
    for name in names:
        if getattr(settings, name) < 1:
            raise UserError(f"{section}{name} must be at least 1, is {getattr(settings, name)}")
