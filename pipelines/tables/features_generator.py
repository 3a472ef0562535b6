"""An image generator that reads grid features instead of codebook vectors, for rows that regress features (X-LXMERT 4.2): trained
as `image_generator` is, one for all rows and seeds."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from diptych.model.networks.image_generator import save_image_generator
from pipelines import image_generator
from pipelines.image_generator import ImageGeneratorParams
from pipelines.runner.stage import read_stage
from pipelines.tables.item import TableItem, run

if TYPE_CHECKING:
    from pipelines.tables.params import PretrainingTableParams


def main(item: TableItem, section: PretrainingTableParams) -> None:
    """Write generators/features in the table's folder, and the training's history."""
    _, params = read_stage("image_generator", ImageGeneratorParams)
    steps = section.generator_steps or params.training.steps
    training = replace(params.training, steps=steps, evaluation=None)
    generator, record = image_generator.train(
        item.stage, replace(params, training=training), item.stage.device, reads="features"
    )
    with item.stage.write(item.path("generators/features")) as folder:
        save_image_generator(folder, generator)
    item.stage.write_history(item.path("histories/features_generator.csv"), record.history)


if __name__ == "__main__":
    run("features_generator", (), main)
