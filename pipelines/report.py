"""One self-contained page with figures, curves, captions and pictures, and a contact sheet of unpicked pictures."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diptych.eval.captions.cider import CiderD
from diptych.eval.captions.tokens import tokenize
from diptych.eval.report.marks import mark_words
from diptych.eval.report.page import ReportInputs, write_report
from diptych.eval.report.pictures import cell_patches
from diptych.eval.report.sheet import contact_sheet
from diptych.features.codebook import load_cluster_sizes, load_codebook, read_codes
from pipelines.runner.params import at_least, read_params
from pipelines.runner.stage import Stage, commit, run

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

GENERATED = Path("data/generated/test.parquet")
CODEBOOK = Path("data/codebook")
MOST_STEPS = 7  # of a painting that are shown
# a page of its own: the report would otherwise wait for hours of trainings
TABLE1 = {
    "title": "The paper's table 1 in miniature: each claim with its verdict, and the samplers",
    "path": "../ablations/table1/index.html",
    "command": "make table1",
}


@dataclass(frozen=True)
class ReportParams:
    """profile: its name, for the page. captions, pictures: how many to show of each choice: drawn by the seed, the best
    and the worst. steps: how many paintings are shown step by step. clusters: how many codes of each choice: largest,
    smallest and drawn. evaluations: how many of those during training, the last among them.

    targets: the smallest figure wanted by name, "x0.7" for a share of the real pictures' figure; ceilings: what a
    perfect system would reach.
    """

    profile: str
    captions: int
    pictures: int
    steps: int
    clusters: int
    evaluations: int
    targets: dict[str, float | str] | None
    ceilings: dict[str, float] | None

    def __post_init__(self) -> None:
        at_least(self, 1, "captions", "pictures", "evaluations")
        at_least(self, 0, "steps", "clusters")


def main(stage: Stage, params: ReportParams) -> None:
    """Write report/index.html, its contact sheets (what was painted, what was repainted) and metrics/stages.json."""
    costs = {path.stem: read_json(path) for path in stage_files("metrics/stages/*.json")}
    minutes = {f"{name}.{figure}": value for name, cost in costs.items() for figure, value in cost.items()}
    minutes["total.minutes"] = sum(cost["minutes"] for cost in costs.values())
    stage.write_metrics("metrics/stages.json", minutes)

    figures = json.loads(Path("metrics/evaluate_figures.json").read_text(encoding="utf-8"))
    rows = rows_of_test_set()
    painted = [row for row in rows if row["prompt"] is not None]
    captioned = [row for row in rows if row["caption"] is not None]
    add_caption_scores(captioned)
    pictures = galleries(painted, "painted_score", "painted_right", params.pictures, stage.seed)
    captions = galleries(captioned, "caption_score", "caption_right", params.captions, stage.seed + 1)
    shown = {row["row"]: row for choice in (*pictures.values(), *captions.values()) for row in choice}
    contents = read_pictures(sorted(shown))
    for row in (row for choice in (*pictures.values(), *captions.values()) for row in choice):
        row |= contents[row["row"]]
    repainted = generator_samples()
    sizes = load_cluster_sizes(CODEBOOK)
    inputs = ReportInputs(
        title="Diptych",
        profile=params.profile,
        commit=commit(),
        data=f"measured on {len(captioned):,} captions and {len(painted):,} painted pictures",
        parameters=read_params(),
        metrics={
            name: read_json(Path(f"metrics/{name}.json"))
            for name in ("detector", "cluster", "image_generator", "evaluate")
        },
        figures=figures,
        targets=params.targets or {},
        ceilings=params.ceilings or {},
        curves=read_curves(),
        captions=captions,
        pictures=pictures,
        choices={
            "captions": meanings(len(captioned), "CIDEr-D of the caption against its references"),
            "pictures": meanings(len(painted), "CLIPScore of painting and sentence by the judge"),
        },
        painting=step_by_step(pictures["random"][: params.steps]),
        cluster_sizes=sizes.tolist(),
        clusters=clusters(sizes, params.clusters, stage.seed),
        bars=shares_by_class(painted, captioned),
        failures=failures(painted, captioned, figures),
        progress=training_samples(params.evaluations),
        reconstructions=[{**entry, "steps": entry["steps"][-params.evaluations :]} for entry in repainted],
        stages=[{"name": name, **cost} for name, cost in costs.items()],
        further=[TABLE1],
    )
    with stage.write("report") as folder:
        folder.mkdir()
        write_report(inputs, folder / "index.html")
        contact_sheet(pictures["random"], columns=4).save(folder / "contact_sheet.png")
        if repainted:
            last = [{"real": entry["real"], "painted": entry["steps"][-1]["painted"]} for entry in repainted]
            sheet = contact_sheet(last, columns=6, views=("real", "painted"))
            sheet.save(folder / "reconstructions.png")


def rows_of_test_set() -> list[dict[str, Any]]:
    """Captions and prompts of the test set with what is true of their pictures, the marks of their words and the
    verdicts of `evaluate`; `row` is their place in the file. Pictures are not read: there may be tens of thousands."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    from diptych.features.manifest import read_manifest

    rows = pq.read_table(GENERATED, columns=["image_id", "caption", "prompt"])
    manifest = read_manifest(Path("data/dataset/manifest.parquet"))
    labels, colors = vocabulary(manifest)
    columns = ["image_id", "captions", "objects", "width", "height"]
    chosen = manifest.filter(pc.is_in(manifest["image_id"], value_set=rows["image_id"].combine_chunks()))
    known = {row["image_id"]: row for row in chosen.select(columns).to_pylist()}
    verdicts = pq.read_table("data/evaluation.parquet").to_pylist()
    result = []
    for number, (row, verdict) in enumerate(zip(rows.to_pylist(), verdicts, strict=True)):
        facts = known[row["image_id"]]
        row |= verdict | {"row": number, "references": facts["captions"], "objects": facts["objects"]}
        if row["caption"] is not None:
            size = (facts["width"], facts["height"])
            row["marks"] = mark_words(row["caption"], facts["objects"], labels, colors, size)
        result.append(row)
    return result


def vocabulary(manifest: pa.Table) -> tuple[set[str], set[str]]:
    """All classes and all attributes of the manifest's objects."""
    import pyarrow.compute as pc

    things = pc.list_flatten(manifest["objects"])
    labels = pc.unique(pc.struct_field(things, "label"))
    attributes = pc.unique(pc.list_flatten(pc.struct_field(things, "attributes")))
    return set(labels.to_pylist()), set(attributes.to_pylist())


def read_pictures(rows: Sequence[int]) -> dict[int, dict[str, Any]]:
    """`real`, `reconstruction`, `painted` and `steps` of some rows of the test set, by row, a row group at a time."""
    import pyarrow.parquet as pq

    file = pq.ParquetFile(GENERATED)
    found: dict[int, dict[str, Any]] = {}
    start = 0
    for group in range(file.num_row_groups):
        stop = start + file.metadata.row_group(group).num_rows
        wanted = [row for row in rows if start <= row < stop]
        if wanted:
            table = file.read_row_group(group, columns=["real", "reconstruction", "painted", "steps"])
            chosen = table.take([row - start for row in wanted]).to_pylist()
            found |= dict(zip(wanted, chosen, strict=True))
        start = stop
    return found


def add_caption_scores(rows: Sequence[dict[str, Any]]) -> None:
    """`caption_score`: CIDEr-D against the row's references; document frequencies are those of all rows."""
    references = [[tokenize(text) for text in row["references"]] for row in rows]
    scores: Sequence[float] = (
        CiderD(references).score([tokenize(row["caption"]) for row in rows])[1].tolist() if rows else []
    )
    for row, score in zip(rows, scores, strict=True):
        row["caption_score"] = score


def galleries(
    rows: Sequence[Mapping[str, Any]], score: str, right: str, wanted: int, seed: int
) -> dict[str, list[dict[str, Any]]]:
    """`wanted` rows drawn by the seed, those with the highest and those with the lowest score, as copies."""
    ranked = sorted((row for row in rows if row[score] is not None), key=lambda row: row[score], reverse=True)
    choices = {
        "random": [rows[index] for index in chosen(len(rows), wanted, seed)],
        "best": ranked[:wanted],
        "worst": ranked[::-1][:wanted],
    }
    return {
        name: [{**row, "score": row[score], "right": row[right]} for row in several]
        for name, several in choices.items()
    }


def meanings(count: int, score: str) -> dict[str, str]:
    """What the choices of a gallery are."""
    return {
        "random": f"Drawn from all {count:,} by the seed; nobody picked them. The number is the {score}.",
        "best": f"Of all {count:,} those with the highest {score}.",
        "worst": f"Of all {count:,} those with the lowest {score}.",
    }


def step_by_step(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The codes that `generate` kept of each step of painting, as pictures."""
    import numpy as np

    entries = []
    for row in rows:
        history = np.frombuffer(row["steps"], "<i4").reshape(-1, 64)
        count = min(len(history), MOST_STEPS)
        places = np.unique(np.linspace(0, len(history) - 1, count).round().astype(int)).tolist()
        steps, before = [], None
        for place, painted in zip(places, paintings([history[place] for place in places]), strict=True):
            codes = history[place]
            changed: list[int] = [] if before is None else np.flatnonzero(codes != before).tolist()
            steps.append({"name": f"step {place + 1}", "painted": painted, "changed": changed})
            before = codes
        entries.append({"prompt": row["prompt"], "real": row["real"], "steps": steps})
    return entries


def clusters(sizes: np.ndarray, wanted: int, seed: int) -> dict[str, list[dict[str, Any]]]:
    """Cells of the largest, the smallest and of drawn codes, as they look in training pictures."""
    import numpy as np

    from diptych.features.shards import ShardDataset

    shards = ShardDataset(Path("data/shards"), "train")
    place = {key: number for number, key in enumerate(shards.keys)}
    ids, codes = read_codes(CODEBOOK)
    train = [number for number, key in enumerate(ids) if key in place]
    codes = codes[train]
    ranked = [code for code in np.argsort(-sizes, kind="stable").tolist() if sizes[code] > 0]
    drawn = chosen(len(ranked), wanted, seed)
    choices = {
        "Largest clusters": ranked[:wanted],
        "Smallest clusters": ranked[::-1][:wanted],
        "Clusters drawn by the seed": [ranked[index] for index in drawn],
    }
    generator = np.random.default_rng(seed)

    def patches(code: int) -> bytes:
        rows, cells = np.nonzero(codes == code)
        some = generator.permutation(len(rows))[:6]
        return cell_patches(
            [(shards.image_bytes(place[ids[train[rows[one]]]]), int(cells[one])) for one in some.tolist()]
        )

    return {
        name: [{"code": code, "cells": int(sizes[code]), "patches": patches(code)} for code in several]
        for name, several in choices.items()
    }


def main_object(row: Mapping[str, Any]) -> tuple[str, str] | None:
    """Class and colour of a picture's main object; None where no object has attributes."""
    things = [thing for thing in row["objects"] or [] if thing["attributes"]]
    return (things[0]["label"], things[0]["attributes"][0]) if things else None


def shares_by_class(
    painted: Sequence[Mapping[str, Any]], captioned: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """How often the main object of each class, and of each colour, is right; nothing for data without attributes."""
    asked = {
        "painted, class right": (painted, "painted_class_right"),
        "painted, colour right": (painted, "painted_color_right"),
        "caption names both": (captioned, "caption_right"),
    }
    tables = []
    for part, title in enumerate(("Main object by class", "Main object by colour")):
        counts: dict[str, dict[str, Counter[bool]]] = {}
        for name, (rows, column) in asked.items():
            for row in rows:
                thing = main_object(row)
                if thing is not None and row[column] is not None:
                    counts.setdefault(thing[part], {}).setdefault(name, Counter())[row[column]] += 1
        groups = [
            {"label": label, "bars": [share_bar(name, counted) for name, counted in counts[label].items()]}
            for label in sorted(counts)
        ]
        if groups:
            note = "Paintings are read by the inspector, captions word by word."
            tables.append({"title": title, "note": note, "groups": groups})
    return tables


def share_bar(name: str, counted: Counter[bool]) -> dict[str, Any]:
    """A share with Wilson's 95% interval."""
    count = counted.total()
    share, z = counted[True] / count, 1.96
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * (share * (1 - share) / count + z * z / (4 * count * count)) ** 0.5
    low, high = max(0.0, middle - half), min(1.0, middle + half)
    return {"label": name, "share": share, "low": low, "high": high, "n": count}


def failures(
    painted: Sequence[Mapping[str, Any]],
    captioned: Sequence[Mapping[str, Any]],
    figures: Sequence[Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """What went wrong, counted by kind: pictures that could not be read, paintings, captions, figures."""
    import pyarrow.parquet as pq

    lost = pq.read_table("data/features/failures.parquet", columns=["kind"])["kind"].to_pylist()
    pictures = pq.read_metadata(CODEBOOK / "codes.parquet").num_rows + len(lost)
    found: list[tuple[str, int, int, str]] = [
        (f"picture left out: {kind}", count, pictures, "not extracted; its captions are not used")
        for kind, count in Counter(lost).most_common()
    ] or [("picture left out", 0, pictures, "every picture was read and has its features")]
    judged = [row for row in painted if row["painted_right"] is not None]
    if judged:
        wrong_class = sum(not row["painted_class_right"] for row in judged)
        wrong_color = sum(row["painted_class_right"] and not row["painted_color_right"] for row in judged)
        found += [
            ("painting: class wrong", wrong_class, len(judged), "main object, by the inspector"),
            ("painting: colour wrong", wrong_color, len(judged), "its class is right"),
        ]
    known = [row for row in captioned if any(mark.right is not None for mark in row["marks"])]
    if known:
        for kind, note in (
            ("object", "names a class that the picture does not show"),
            ("color", "gives an object a colour that it does not have"),
            ("count", "counts wrong"),
            ("place", "says a wrong place or direction"),
        ):
            wrong = sum(
                any(mark.kind == kind and mark.right is False for mark in row["marks"]) for row in known
            )
            found.append((f"caption: {kind.replace('color', 'colour')} wrong", wrong, len(known), note))
        unnamed = [row for row in known if row["caption_right"] is not None]
        missing = sum(not row["caption_right"] for row in unnamed)
        if unnamed:
            found.append(("caption: main object missing", missing, len(unnamed), "not named with its colour"))
    unmeasured = sum(record["value"] is None for record in figures)
    found.append(("figure not run", unmeasured, len(figures), "reasons are under Figures"))
    return [{"kind": kind, "count": count, "of": of, "note": note} for kind, count, of, note in found]


def training_samples(evaluations: int) -> list[dict[str, Any]]:
    """Captions and paintings of the same val pictures during token-level training: an entry per picture."""
    import numpy as np
    import pyarrow.parquet as pq

    samples = pq.read_table("plots/train_token_samples.parquet").to_pylist()
    steps = sorted({sample["step"] for sample in samples})
    shown = steps[::-1][:: -(-len(steps) // max(1, evaluations)) or 1][:evaluations]
    samples = [sample for sample in samples if sample["step"] in shown]
    entries: dict[str, dict[str, Any]] = {}
    pictures = paintings([np.frombuffer(sample["codes"], "<u2") for sample in samples])
    for sample, painted in zip(samples, pictures, strict=True):
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


def paintings(grids: Sequence[np.ndarray]) -> list[bytes]:
    """The pictures, as JPEG, that the image generator makes of codes, integers [64]; cells without a code, -1, are grey."""
    if not grids:
        return []
    import numpy as np
    import torch
    from PIL import Image

    from diptych.model.networks.image_generator import load_image_generator

    generator = load_image_generator(Path("models/image_generator"))
    codebook = load_codebook(CODEBOOK)
    files = []
    for codes in grids:
        empty = codes < 0
        grid = codebook[np.where(empty, 0, codes.astype(np.int64))]
        grid[empty] = 0
        with torch.inference_mode():
            pixels = (generator(torch.from_numpy(grid)[None])[0].permute(1, 2, 0) + 1) * 127.5
        picture = pixels.round().clamp(0, 255).to(torch.uint8).numpy()
        height, width = (length // 8 for length in picture.shape[:2])
        for cell in np.flatnonzero(empty).tolist():
            row, column = divmod(cell, 8)
            picture[row * height : (row + 1) * height, column * width : (column + 1) * width] = 200
        content = io.BytesIO()
        Image.fromarray(picture).save(content, "JPEG", quality=92)
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
