"""L-Verse's packaged model: one directory to caption and paint with, used as that of the main pipeline."""

from __future__ import annotations

import json

from diptych.model.packaged.card import CardFacts, l_verse_facts
from diptych.model.packaged.directory import write_l_verse_package
from pipelines.l_verse.params import BIART, FIGURES, MADE_BY, Params, tokenized
from pipelines.measuring.packages import common_parts, megabytes, with_intervals
from pipelines.runner.params import read_params
from pipelines.runner.stage import Stage, commit, run

OUT = "models/l_verse/package"
# What made the model, section by section, as the card shows it: dvc.yaml lists them for this stage.
SECTIONS = ("seed", "dataset", "detector", "scorer", "judge", "l_verse", "evaluate")


def main(stage: Stage, params: Params) -> None:
    """Write models/l_verse/package and metrics/l_verse_package.json."""
    raw, wanted = read_params(), params.package
    facts = CardFacts(
        title=wanted.title,
        data=wanted.data,
        pictures={split: len(tokenized(split)) for split in ("train", "val", "test")},
        figures=with_intervals(json.loads(FIGURES.read_text(encoding="utf-8"))),
        limits=wanted.limits,
        commit=commit(),
        parameters={name: raw[name] for name in SECTIONS},
        captioning=params.generate.caption,
        painting=params.generate.paint,
        weights=wanted.weights,
        command=MADE_BY,
    )
    with stage.write(OUT) as folder:
        write_l_verse_package(
            folder,
            model_folder=BIART,
            captioning=params.generate.caption,
            painting=params.generate.paint,
            common=common_parts(wanted, facts, l_verse_facts(BIART)),
        )
        megabytes_of = {
            "weights_megabytes": megabytes(folder, "*.safetensors"),
            "megabytes": megabytes(folder, "*"),
        }
    stage.write_metrics("metrics/l_verse_package.json", megabytes_of)


if __name__ == "__main__":
    run("l_verse/package", Params, main)
