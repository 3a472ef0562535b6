"""Train the image generator: an 8x8 grid of codebook vectors becomes pixels (X-LXMERT 4.2)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from diptych.features.codebook import load_codebook
from diptych.features.detector import load_detector
from diptych.features.shards import ShardDataset
from diptych.model.image_generator import ImageGenerator, named_config, save_image_generator
from diptych.model.training.image_generator import ImageGeneratorTrainingConfig, train_image_generator
from pipelines.stage import Stage, run


@dataclass(frozen=True)
class ImageGeneratorParams:
    """network: a named size of diptych.model (toybox, smoke, base); training: its schedule and losses."""

    network: str
    training: ImageGeneratorTrainingConfig


def main(stage: Stage, params: ImageGeneratorParams) -> None:
    """Train on codes and pictures of the train split; the detector's feature maps are the perceptual loss."""
    import torch

    codebook = torch.from_numpy(load_codebook(Path("data/codebook")))
    config = dataclasses.replace(named_config(params.network), feature_dim=codebook.shape[1])
    torch.manual_seed(stage.seed)
    generator = ImageGenerator(config)
    history = train_image_generator(
        params.training,
        generator,
        codebook,
        ShardDataset(Path("data/shards"), "train"),
        load_detector(Path("models/detector"), stage.device),
        stage.checkpoints(),
        stage.device,
    )
    with stage.write("models/image_generator") as folder:
        save_image_generator(folder, generator)
    stage.write_history("plots/image_generator.csv", history)


if __name__ == "__main__":
    run("image_generator", ImageGeneratorParams, main)
