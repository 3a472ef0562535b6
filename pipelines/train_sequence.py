"""Sequence-level training, stage 2: SCST on CIDEr-D for captions, CLIP loss for painting (UMT 4.1.2 and 4.2.2)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from diptych.eval.captions import CiderDReward
from diptych.features.shards import ShardDataset
from diptych.model.image_generator import load_image_generator
from diptych.model.pretrained import load_transformer, save_transformer
from diptych.model.training.sequence import SequenceTrainingConfig, reference_words, train_sequence
from pipelines.clips import read_clip
from pipelines.stage import Stage, run


@dataclass(frozen=True)
class TrainSequenceParams:
    """training: the schedule and the weights of the losses."""

    training: SequenceTrainingConfig


def main(stage: Stage, params: TrainSequenceParams) -> None:
    """Go on from the token-level model; image generator and scorer stay as they are."""
    train = ShardDataset(Path("data/shards"), "train")
    model, tokenizer, codebook = load_transformer(Path("models/token"), stage.device)
    references = reference_words(tokenizer, train, params.training.caption_length)
    history = train_sequence(
        params.training,
        model,
        tokenizer,
        codebook,
        train,
        CiderDReward(references),
        load_image_generator(Path("models/image_generator"), stage.device),
        read_clip(Path("models/scorer"), stage.device),
        stage.checkpoints(),
        stage.device,
    )
    with stage.write("models/sequence") as folder:
        save_transformer(folder, model, tokenizer, codebook)
    stage.write_history("plots/train_sequence.csv", history)


if __name__ == "__main__":
    run("train_sequence", TrainSequenceParams, main)
