"""Caption pictures, answer the questions about them, and paint one reference caption of each of the same or of others (UMT 3.1; X-LXMERT 5.2)."""

from __future__ import annotations

from pipelines.measuring.generate_params import GenerateParams
from pipelines.measuring.generation import (
    IMAGE_GENERATOR,
    TRANSFORMER,
    generate,
    pictures_of,
    write_answers,
    write_rows,
)
from pipelines.measuring.models import read_unified
from pipelines.measuring.shards import shards_of
from pipelines.runner.stage import Stage, run


def main(stage: Stage, params: GenerateParams) -> None:
    """Write data/generated/<set>.parquet, a row per picture, split by split in the order of the shards.

    What a picture is not in the set for is null: `caption`, or `prompt`, `codes`, `steps`, `painted` and
    `reconstruction`. `steps` are the codes after each step of painting, little-endian int32 [k, 64], -1 where a cell has
    none yet; the last ones are `codes`.

    data/generated/<set>_answers.parquet has a row per question (pipelines/measuring/answers.py).
    """
    with stage.write("data/generated") as folder:
        folder.mkdir()
        model = read_unified(TRANSFORMER, IMAGE_GENERATOR, stage.device)
        for name, wanted in params.sets.items():
            shards, to_caption, to_paint = pictures_of(wanted, stage.seed, shards_of)
            print(f"{name}: {len(to_caption)} pictures to caption, {len(to_paint)} to paint")
            write_rows(
                folder / f"{name}.parquet", generate(stage, params, shards, to_caption, to_paint, model)
            )
            write_answers(stage, params, name, folder / f"{name}_answers.parquet")


if __name__ == "__main__":
    run("generate", GenerateParams, main)
