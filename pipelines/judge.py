"""Train the two networks that only `evaluate` sees: the judge (another CLIP) and the inspector (a plain CNN)."""

from __future__ import annotations

import dataclasses
import multiprocessing
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass

from diptych.eval.scorers.clip import ClipConfig
from diptych.eval.scorers.clip_training import ClipTrainingConfig
from diptych.eval.scorers.inspector import (
    InspectorConfig,
    build_inspector,
    save_inspector,
    train_inspector,
)
from diptych.eval.scorers.training import PictureTrainingConfig
from diptych.features.pictures import ManifestPictures
from pipelines.measuring.clip_training import training_pictures, write_clip
from pipelines.measuring.clips import PretrainedClip
from pipelines.runner.stage import Stage, run
from pipelines.runner.threads import prepare_process

JUDGE_SEED = 1  # added to the seed: the judge must not be the scorer once more


@dataclass(frozen=True)
class InspectorParams:
    """network: its sizes; training: its schedule."""

    network: InspectorConfig
    training: PictureTrainingConfig


@dataclass(frozen=True)
class JudgeParams:
    """network, training: as of the scorer, but another architecture.

    inspector: the CNN for class and colour; null for data whose objects have no attributes.
    """

    network: ClipConfig | PretrainedClip
    training: ClipTrainingConfig | None
    inspector: InspectorParams | None


def main(stage: Stage, params: JudgeParams) -> None:
    """Train both on the train split, each in a process of its own with half of the threads.

    Small steps gain little from a second thread: two processes of one thread are faster than one process of two.
    """
    trained = params.inspector is not None or not isinstance(params.network, PretrainedClip)
    train = training_pictures() if trained else None
    parts = (write_judge, write_inspector)
    if stage.threads < len(parts):
        for part in parts:
            part(stage, params, train)
        return
    context = multiprocessing.get_context("spawn")
    threads = stage.threads // len(parts)
    with ProcessPoolExecutor(len(parts), context, initializer=prepare_process, initargs=(threads,)) as pool:
        running = [pool.submit(part, stage, params, train) for part in parts]
        try:
            for finished in as_completed(running):
                finished.result()
        except BaseException:
            # The pool would wait for the other training to end before it lets the error out.
            for child in multiprocessing.active_children():
                child.terminate()
            raise


def write_judge(stage: Stage, params: JudgeParams, train: ManifestPictures | None) -> None:
    """The second CLIP: another architecture and another seed than the scorer's."""
    seed = stage.seed + JUDGE_SEED
    training = dataclasses.replace(params.training, seed=seed) if params.training else None
    with stage.write("models/judge") as folder:
        history = write_clip(
            folder,
            params.network,
            training,
            train,
            seed,
            stage.checkpoints("clip"),
            stage.device,
            "judge",
        )
    stage.write_history("plots/judge.csv", history)


def write_inspector(stage: Stage, params: JudgeParams, train: ManifestPictures | None) -> None:
    """The CNN; it sees real pictures only."""
    history: list[dict[str, float]] = []
    with stage.write("models/inspector") as folder:
        folder.mkdir()
        if params.inspector is not None:
            assert train is not None
            objects = [train.meta(index)["objects"] for index in range(len(train))]
            network, training = params.inspector.network, params.inspector.training
            inspector = build_inspector(network, objects, stage.seed)
            history = train_inspector(
                training,
                inspector,
                lambda indices: train.images(indices, network.image_size),
                objects,
                stage.checkpoints("inspector"),
                stage.device,
            )
            save_inspector(inspector, folder)
    stage.write_history("plots/inspector.csv", history)


if __name__ == "__main__":
    run("judge", JudgeParams, main)
