"""Captions and paintings of the test splits by L-Verse, of several samples the best (L-Verse 3.6), and real pictures drawn again by
both autoencoders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from diptych.features.images import square_pictures
from diptych.model.networks.aug_vae import load_aug_vae
from diptych.model.pixels import from_uint8, to_uint8
from diptych.model.pretrained import load_biart
from pipelines.l_verse.params import ALL_LEVELS, BIART, GENERATED, MULTI_LEVEL, Params, tokenized
from pipelines.measuring.generation import generate, picture, pictures_of, write_rows
from pipelines.measuring.models import LVerseModel
from pipelines.runner.stage import Stage, run

if TYPE_CHECKING:
    from torch import Tensor

    from diptych.features.pictures import TokenizedPictures
    from diptych.model.networks.aug_vae import AugVAE


def main(stage: Stage, params: Params) -> None:
    """Write data/l_verse/generated/<set>.parquet, as the stage `generate` of the main pipeline does; `steps` are null, since tokens are
    painted one after the other, and a further column has what AugVAE-ML makes of the real pictures."""
    with stage.write(str(GENERATED)) as folder:
        folder.mkdir(parents=True)
        model = BothAutoencoders(*load_biart(BIART, stage.device), load_aug_vae(MULTI_LEVEL, stage.device))
        for name, wanted in params.generate.sets.items():
            pictures, to_caption, to_paint = pictures_of(wanted, stage.seed, tokenized)
            print(f"{name}: {len(to_caption)} pictures to caption, {len(to_paint)} to paint")
            rows = generate(stage, params.generate, pictures, to_caption, to_paint, model)
            write_rows(folder / f"{name}.parquet", rows, [ALL_LEVELS])


@dataclass(frozen=True)
class BothAutoencoders(LVerseModel):
    """L-Verse's model beside AugVAE-ML, whose reconstructions are compared."""

    multi_level: AugVAE

    def repaint(self, dataset: TokenizedPictures, indices: Sequence[int]) -> dict[str, Tensor]:
        """By the single level from the codes of pictures, by all levels from the pictures."""
        import torch

        real = square_pictures(
            lambda row: picture(dataset, indices[row]),
            range(len(indices)),
            self.multi_level.config.image_size,
        )
        pixels = from_uint8(real, self.multi_level.quantizer.embedding.device)
        with torch.autocast(pixels.device.type, enabled=False):
            drawn = to_uint8(self.multi_level(pixels).pixels.float().cpu())
        return super().repaint(dataset, indices) | {ALL_LEVELS: drawn}


if __name__ == "__main__":
    run("l_verse/generate", Params, main)
