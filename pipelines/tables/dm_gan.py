"""A painter in DM-GAN's manner, of one seed: first the encoders that teach it, then the game."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from diptych.features.pictures import ManifestPictures
from diptych.model.baselines import named_painter, save_dm_gan
from diptych.model.networks.dm_gan import DMGAN
from diptych.model.networks.matching import PictureEncoder, TextEncoder
from diptych.model.tokenizer import build_tokenizer
from diptych.model.training.dm_gan import train_dm_gan
from diptych.model.training.matching import train_matching
from pipelines.tables.item import TableItem, run

if TYPE_CHECKING:
    from pipelines.tables.systems import SystemsTableParams

MANIFEST = Path("data/dataset/manifest.parquet")


def main(item: TableItem, section: SystemsTableParams) -> None:
    """Write models/dm_gan-SEED in the table's folder, and the history of both trainings."""
    import torch

    stage, params = item.stage, section.dm_gan
    train = ManifestPictures(MANIFEST, "train")
    captions = [caption for index in range(len(train)) for caption in train.captions(index)]
    tokenizer = build_tokenizer(captions, params.min_count)
    generator_config, matching_config = named_painter(params.network, len(tokenizer))
    torch.manual_seed(stage.seed)
    texts, pictures = TextEncoder(matching_config), PictureEncoder(matching_config)
    generator = DMGAN(generator_config)
    first = train_matching(
        params.matching, texts, pictures, tokenizer, train, stage.checkpoints("matching"), stage.device
    )
    then = train_dm_gan(
        params.training, generator, texts, pictures, tokenizer, train, stage.checkpoints("game"), stage.device
    )
    with stage.write(item.path(f"models/dm_gan-{stage.seed}")) as folder:
        save_dm_gan(folder, generator, texts, matching_config, tokenizer)
    stage.write_history(item.path(f"histories/dm_gan-{stage.seed}.csv"), [*first.history, *then.history])


if __name__ == "__main__":
    run("dm_gan", ("seed",), main)
