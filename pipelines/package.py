"""The packaged model: one directory to caption and paint with, to ship and to put on the Hub."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from diptych.features.codebook.reading import load_codebook
from diptych.features.images import read_image
from diptych.features.ranges import check_at_least
from diptych.model.decoding.options import AnswerOptions, CaptionOptions, PaintOptions
from diptych.model.networks.image_generator import load_image_generator
from diptych.model.packaged.card import CardFacts, unified_facts
from diptych.model.packaged.directory import EXPORTED, write_package, write_sums
from diptych.model.packaged.examples import Examples, collect_examples
from diptych.model.packaged.export import export_programs
from diptych.model.pretrained import load_transformer
from pipelines.measuring.package_params import CommonPackageParams
from pipelines.measuring.packages import common_parts, megabytes, with_intervals
from pipelines.measuring.shards import shards_of
from pipelines.runner.params import read_params
from pipelines.runner.stage import Stage, commit, run

if TYPE_CHECKING:
    import numpy as np

TRANSFORMER, GENERATOR, DETECTOR = (
    Path("models") / name for name in ("sequence", "image_generator", "detector")
)
CODEBOOK = Path("data/codebook")
FIGURES = Path("data/evaluation_figures.json")
OUT = "models/package"
COMPARED = 16  # pictures and captions on which exported programs are compared
# What made the model, section by section, as the card shows it: dvc.yaml lists them for this stage.
SECTIONS = (
    "seed", "dataset", "detector", "extract", "cluster", "shard", "image_generator", "scorer", "judge",
    "train_token", "train_sequence", "generate", "evaluate", "package",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class PackageParams(CommonPackageParams):
    """examples: patches of training pictures for each code, of example_pixels a side; 0 for none. export: also as programs
    of torch.export. The rest as of CommonPackageParams.
    """

    examples: int
    example_pixels: int
    export: Literal["none", "torch_export"]

    def __post_init__(self) -> None:
        check_at_least(self, 0, "examples")
        check_at_least(self, 8, "example_pixels")


def main(stage: Stage, params: PackageParams) -> None:
    """Write models/package and metrics/package.json."""
    raw = read_params()
    captioning, painting, answering = options(raw["generate"])
    facts = CardFacts(
        title=params.title,
        data=params.data,
        pictures={split: len(shards_of(split)) for split in ("train", "val", "test")},
        figures=with_intervals(json.loads(FIGURES.read_text(encoding="utf-8"))),
        limits=params.limits,
        commit=commit(),
        parameters={name: raw[name] for name in SECTIONS},
        captioning=captioning,
        painting=painting,
        weights=params.weights,
        exported=params.export != "none",
    )
    with stage.write(OUT) as folder:
        write_package(
            folder,
            transformer=TRANSFORMER,
            image_generator=GENERATOR,
            detector=DETECTOR,
            captioning=captioning,
            painting=painting,
            answering=answering,
            examples=examples(params) if params.examples else None,
            common=common_parts(params, facts, unified_facts(TRANSFORMER, GENERATOR)),
        )
        metrics = {"weights_megabytes": megabytes(folder, "*.safetensors")}
        if params.export == "torch_export":
            agreement = export(folder, captioning, painting)
            metrics |= {f"export.{name}": value for name, value in agreement.items()}
            write_sums(folder)
        metrics["megabytes"] = megabytes(folder, "*")
    stage.write_metrics("metrics/package.json", metrics)


def options(generate: Mapping[str, Any]) -> tuple[CaptionOptions, PaintOptions, AnswerOptions]:
    """How the test set was captioned, painted and asked; so the figures on the card are those of the package's defaults."""
    return (
        CaptionOptions(**generate["caption"]),
        PaintOptions(**generate["paint"]),
        AnswerOptions(**generate["answer"]),
    )


def examples(params: PackageParams) -> Examples:
    """Patches of the training pictures nearest to each centroid."""
    from tqdm import tqdm

    train = shards_of("train")

    def batches(size: int = 256) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        import numpy as np

        for start in tqdm(range(0, len(train), size), desc="examples", unit="batch", mininterval=1):
            indices = np.arange(start, min(start + size, len(train)))
            yield indices, train.grid(indices), train.codes(indices)

    return collect_examples(
        batches(),
        lambda index: read_image(train.image_bytes(index), train.keys[index]),
        load_codebook(CODEBOOK),
        params.examples,
        params.example_pixels,
    )


def export(folder: Path, captioning: CaptionOptions, painting: PaintOptions) -> dict[str, float]:
    """Export what the package holds, that is, with its weights as they are stored; compared on test pictures."""
    import torch

    test = shards_of("test")
    chosen = list(range(min(COMPARED, len(test))))
    model, tokenizer, codebook = load_transformer(folder)
    return export_programs(
        folder / EXPORTED,
        model,
        tokenizer,
        codebook,
        load_image_generator(folder / "image_generator"),
        captioning,
        painting,
        torch.from_numpy(test.grid(chosen)).float(),
        [test.captions(index)[0] for index in chosen],
    )


if __name__ == "__main__":
    run("package", PackageParams, main)
