"""Captions and paintings of the test splits by L-Verse, of several samples the best (L-Verse 3.6), and real pictures drawn again by
both autoencoders."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from diptych.features.images import read_image, square_pictures
from diptych.model.networks.aug_vae import load_aug_vae
from diptych.model.pixels import from_uint8, png, to_uint8
from pipelines.l_verse.params import ALL_LEVELS, BIART, GENERATED, MULTI_LEVEL, Params, tokenized
from pipelines.measuring.generation import generate, pictures_of, write_rows
from pipelines.measuring.models import read_l_verse
from pipelines.runner.stage import Stage, run

if TYPE_CHECKING:
    from diptych.model.networks.aug_vae import AugVAE


def main(stage: Stage, params: Params) -> None:
    """Write data/l_verse/generated/<set>.parquet, as the stage `generate` of the main pipeline does; `steps` are null, since tokens are
    painted one after the other, and a further column has what AugVAE-ML makes of the real pictures."""
    with stage.write(str(GENERATED)) as folder:
        folder.mkdir(parents=True)
        model, multi_level = read_l_verse(BIART, stage.device), load_aug_vae(MULTI_LEVEL, stage.device)
        for name, wanted in params.generate.sets.items():
            pictures, to_caption, to_paint = pictures_of(wanted, stage.seed, tokenized)
            print(f"{name}: {len(to_caption)} pictures to caption, {len(to_paint)} to paint")
            rows = generate(stage, params.generate, pictures, to_caption, to_paint, model)
            write_rows(folder / f"{name}.parquet", with_all_levels(rows, multi_level), [ALL_LEVELS])


def with_all_levels(batches: Iterable[list[dict[str, Any]]], model: AugVAE) -> Iterator[list[dict[str, Any]]]:
    """Add what a multi-level autoencoder makes of the real pictures to the rows of those that are painted."""
    import torch

    device = model.quantizer.embedding.device
    for rows in batches:
        painted = [row for row in rows if "prompt" in row]
        if painted:
            real = square_pictures(
                lambda index, painted=painted: read_image(painted[index]["real"]),  # type: ignore[misc]
                range(len(painted)),
                model.config.image_size,
            )
            with torch.inference_mode():
                drawn = to_uint8(model(from_uint8(real, device)).pixels.float().cpu())
            for row, picture in zip(painted, drawn, strict=True):
                row[ALL_LEVELS] = png(picture)
        yield rows


if __name__ == "__main__":
    run("l_verse/generate", Params, main)
