"""The trainings behind the paper's table 1 as data: what each does otherwise than ours. `ours` is what params.yaml says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Tasks = Literal["both", "captions", "paintings"]


@dataclass(frozen=True)
class Training:
    """What one row's trainings do otherwise than ours; the defaults are ours.

    image_features: null as in train_token. tasks: those that are trained, each in the steps of ours' schedule that train
    it, so that two models of one task each cost what ours costs. painting_loss: null as in train_sequence. token: the row
    whose stage 1 its stage 2 goes on from.
    """

    image_features: Literal["dense", "discrete"] | None = None
    tasks: Tasks = "both"
    painting_loss: Literal["features"] | None = None
    token: str = "ours"


TRAININGS: dict[str, Training] = {
    "ours": Training(),
    "captions": Training(tasks="captions", token="captions"),
    "paintings": Training(tasks="paintings", token="paintings"),
    "dense": Training(image_features="dense", token="dense"),
    "discrete": Training(image_features="discrete", token="discrete"),
    "features": Training(painting_loss="features"),
}


def tasks_of(model: str) -> Tasks:
    """What a model, `token_ROW` after stage 1 or `sequence_ROW` after stage 2, has been trained for."""
    return TRAININGS[model.partition("_")[2]].tasks
