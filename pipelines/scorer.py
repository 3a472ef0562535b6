"""Train or adopt the scorer: the CLIP that rewards painting in sequence-level training (UMT 4.2.2)."""

from __future__ import annotations

from dataclasses import dataclass

from diptych.eval.scorers.clip import ClipConfig
from diptych.eval.scorers.clip_training import ClipTrainingConfig
from pipelines.measuring.clip_training import training_pictures, write_clip
from pipelines.measuring.clips import PretrainedClip
from pipelines.runner.stage import Stage, run


@dataclass(frozen=True)
class ScorerParams:
    """network: sizes of a CLIP to train, or a pretrained one; training: its schedule, null for a pretrained one."""

    network: ClipConfig | PretrainedClip
    training: ClipTrainingConfig | None


def main(stage: Stage, params: ScorerParams) -> None:
    """Train on pictures and captions of the train split."""
    train = None if isinstance(params.network, PretrainedClip) else training_pictures()
    with stage.write("models/scorer") as folder:
        history = write_clip(
            folder,
            params.network,
            params.training,
            train,
            stage.seed,
            stage.checkpoints(),
            stage.device,
            "scorer",
        )
    stage.write_history("plots/scorer.csv", history)


if __name__ == "__main__":
    run("scorer", ScorerParams, main)
