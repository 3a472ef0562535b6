"""One self-contained page with figures, curves, captions and pictures, and a contact sheet of unpicked pictures."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diptych.eval.report import ReportInputs, contact_sheet, write_report
from pipelines.params import read_params
from pipelines.stage import Stage, commit, run


@dataclass(frozen=True)
class ReportParams:
    """profile: its name, for the page; captions, pictures: how many to show, drawn by the seed; evaluations: how many
    of those during token-level training, the last among them and the others evenly before it.

    targets: the smallest figure wanted by name, "x0.7" for a share of the real pictures' figure; ceilings: what a
    perfect system would reach.
    """

    profile: str
    captions: int
    pictures: int
    evaluations: int
    targets: dict[str, float | str] | None
    ceilings: dict[str, float] | None


def main(stage: Stage, params: ReportParams) -> None:
    """Write report/index.html, its contact sheets (what was painted, what was repainted) and metrics/stages.json."""
    costs = {path.stem: read_json(path) for path in stage_files("metrics/stages/*.json")}
    minutes = {f"{name}.{figure}": value for name, cost in costs.items() for figure, value in cost.items()}
    minutes["total.minutes"] = sum(cost["minutes"] for cost in costs.values())
    stage.write_metrics("metrics/stages.json", minutes)

    rows = rows_of_test_set()
    painted = [row for row in rows if row["painted"] is not None]
    captioned = [row for row in rows if row["caption"] is not None]
    pictures = [
        {**painted[index], "main_right": painted[index]["painted_right"]}
        for index in chosen(len(painted), params.pictures, stage.seed)
    ]
    captions = [
        {
            **captioned[index],
            "real_png": captioned[index]["real"],
            "main_right": captioned[index]["caption_right"],
        }
        for index in chosen(len(captioned), params.captions, stage.seed + 1)
    ]
    repainted = generator_samples()
    inputs = ReportInputs(
        title="Diptych",
        profile=params.profile,
        commit=commit(),
        parameters=read_params(),
        metrics={
            name: read_json(Path(f"metrics/{name}.json"))
            for name in ("detector", "cluster", "image_generator", "evaluate")
        },
        targets=params.targets or {},
        ceilings=params.ceilings or {},
        curves=read_curves(),
        captions=captions,
        pictures=pictures,
        progress=training_samples(params.evaluations),
        reconstructions=[{**entry, "steps": entry["steps"][-params.evaluations :]} for entry in repainted],
        stages=[{"name": name, **cost} for name, cost in costs.items()],
    )
    with stage.write("report") as folder:
        folder.mkdir()
        write_report(inputs, folder / "index.html")
        contact_sheet(pictures, columns=4).save(folder / "contact_sheet.png")
        if repainted:
            last = [{"real": entry["real"], "painted": entry["steps"][-1]["painted"]} for entry in repainted]
            sheet = contact_sheet(last, columns=6, views=("real", "painted"))
            sheet.save(folder / "reconstructions.png")


def rows_of_test_set() -> list[dict[str, Any]]:
    """Generated pictures and captions of the test set with their references and the verdicts of `evaluate`."""
    import pyarrow.parquet as pq

    from diptych.features.manifest import read_manifest

    manifest = (
        read_manifest(Path("data/dataset/manifest.parquet")).select(["image_id", "captions"]).to_pylist()
    )
    references = {row["image_id"]: row["captions"] for row in manifest}
    rows = pq.read_table("data/generated/test.parquet").to_pylist()
    verdicts = pq.read_table("data/evaluation.parquet").to_pylist()
    return [
        {**row, **verdict, "references": references[row["image_id"]]}
        for row, verdict in zip(rows, verdicts, strict=True)
    ]


def training_samples(evaluations: int) -> list[dict[str, Any]]:
    """Captions and paintings of the same val pictures during token-level training: an entry per picture."""
    import pyarrow.parquet as pq

    samples = pq.read_table("plots/train_token_samples.parquet").to_pylist()
    steps = sorted({sample["step"] for sample in samples})
    shown = steps[::-1][:: -(-len(steps) // max(1, evaluations)) or 1][:evaluations]
    samples = [sample for sample in samples if sample["step"] in shown]
    entries: dict[str, dict[str, Any]] = {}
    for sample, painted in zip(samples, paintings([sample["codes"] for sample in samples]), strict=True):
        entry = entries.setdefault(
            sample["image_id"], {key: sample[key] for key in ("image_id", "prompt", "real")} | {"steps": []}
        )
        entry["steps"].append({"step": sample["step"], "caption": sample["caption"], "painted": painted})
    return list(entries.values())


def generator_samples() -> list[dict[str, Any]]:
    """The same val pictures repainted during the image generator's training: an entry per picture, steps in order."""
    import pyarrow.parquet as pq

    entries: dict[str, dict[str, Any]] = {}
    for sample in pq.read_table("plots/image_generator_samples.parquet").to_pylist():
        entry = entries.setdefault(
            sample["image_id"], {key: sample[key] for key in ("image_id", "real")} | {"steps": []}
        )
        entry["steps"].append({key: sample[key] for key in ("step", "painted")})
    return list(entries.values())


def paintings(codes: Sequence[bytes]) -> list[bytes]:
    """The pictures, as JPEG, that the image generator makes of codes, 64 little-endian uint16 each."""
    if not codes:
        return []
    import numpy as np
    import torch
    from PIL import Image

    from diptych.features.codebook import load_codebook
    from diptych.model.image_generator import load_image_generator

    generator = load_image_generator(Path("models/image_generator"))
    codebook = load_codebook(Path("data/codebook"))
    files = []
    for row in codes:
        grid = torch.from_numpy(codebook[np.frombuffer(row, "<u2")])
        with torch.inference_mode():
            pixels = (generator(grid[None])[0].permute(1, 2, 0) + 1) * 127.5
        content = io.BytesIO()
        Image.fromarray(pixels.round().to(torch.uint8).numpy()).save(content, "JPEG", quality=92)
        files.append(content.getvalue())
    return files


def chosen(count: int, wanted: int, seed: int) -> list[int]:
    """`wanted` of `count` numbers, drawn by `seed` and nothing else: nobody picks the good ones."""
    import numpy as np

    return np.random.default_rng(seed).permutation(count)[:wanted].tolist()


def stage_files(pattern: str) -> list[Path]:
    """Files of `pattern` that belong to a stage of dvc.yaml, in the order of its stages."""
    from ruamel.yaml import YAML

    listed = YAML(typ="safe").load(Path("dvc.yaml"))["stages"]["report"]["deps"]
    return [Path(dep) for dep in listed if Path(dep).match(pattern)]


def read_json(path: Path) -> Mapping[str, Any]:
    """A metrics file."""
    return json.loads(path.read_text(encoding="utf-8"))


def read_curves() -> dict[str, list[dict[str, float]]]:
    """The training histories by stage; those of the val split (`<stage>_val.csv`) follow their stage's own rows."""
    curves: dict[str, list[dict[str, float]]] = {}
    for path in stage_files("plots/*.csv"):
        curves.setdefault(path.stem.removesuffix("_val"), []).extend(read_history(path))
    return curves


def read_history(path: Path) -> list[dict[str, float]]:
    """A training history, without the cells that are empty."""
    with path.open(newline="", encoding="utf-8") as file:
        return [{name: float(cell) for name, cell in row.items() if cell} for row in csv.DictReader(file)]


if __name__ == "__main__":
    run("report", ReportParams, main)
