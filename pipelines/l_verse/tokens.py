"""Tokens of every picture by AugVAE-SL, into the feature store and linked from there."""

from __future__ import annotations

from pathlib import Path

from diptych.features.extraction.extract import encode_images
from diptych.features.manifest import read_manifest
from diptych.model.image_tokens import ImageTokenizerLoader
from pipelines.l_verse.params import SCENES, SINGLE_LEVEL, TOKENS, Params
from pipelines.runner.ray_cluster import encoders_of
from pipelines.runner.stage import Stage, run


def main(stage: Stage, params: Params) -> None:
    """Encode what the store does not hold yet; pictures without tokens are listed and counted by kind."""
    loader = ImageTokenizerLoader(str(SINGLE_LEVEL.absolute()))
    store, (workers, device) = Path(stage.machine.feature_store), encoders_of(stage)
    with stage.write(str(TOKENS)) as folder:
        counts = encode_images(
            read_manifest(SCENES), SCENES, loader, store, folder, params.tokens, workers, stage.threads, device,
            "l_verse.tokens", stage.machine.features_at,
        )  # fmt: skip
    print(", ".join(f"{name}: {count}" for name, count in counts.items()))


if __name__ == "__main__":
    run("l_verse/tokens", Params, main)
