"""Pictures that were kept or are made for the page: samples of trainings, steps of paintings, cells of codes."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diptych.eval.report.pictures import cell_patches
from diptych.eval.report.sheet import contact_sheet
from diptych.features.codebook.reading import load_codebook, read_codes
from pipelines.measuring.shards import shards_of
from pipelines.reporting.test_set import chosen

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

CODEBOOK = Path("data/codebook")
MOST_STEPS = 7  # of a painting that are shown


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


def repainted_samples(file: Path, evaluations: int) -> list[dict[str, Any]]:
    """The same val pictures repainted at the last evaluations of a training that has written `file`: an entry per picture, steps in
    order."""
    import pyarrow.parquet as pq

    entries: dict[str, dict[str, Any]] = {}
    for sample in pq.read_table(file).to_pylist():
        entry = entries.setdefault(
            sample["image_id"], {key: sample[key] for key in ("image_id", "real")} | {"steps": []}
        )
        entry["steps"].append({key: sample[key] for key in ("step", "painted")})
    return [{**entry, "steps": entry["steps"][-evaluations:]} for entry in entries.values()]


def repainted_sheet(entries: Sequence[Mapping[str, Any]]) -> Image.Image:
    """Real pictures and what the last evaluation made of them, side by side."""
    last = [{"real": entry["real"], "painted": entry["steps"][-1]["painted"]} for entry in entries]
    return contact_sheet(last, columns=6, views=("real", "painted"))


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

    shards = shards_of("train")
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


def paintings(grids: Sequence[np.ndarray]) -> list[bytes]:
    """The pictures, as JPEG, that the image generator makes of codes, integers [64]; cells without a code, -1, are grey."""
    if not grids:
        return []
    import numpy as np
    import torch

    from diptych.model.networks.image_generator import load_image_generator
    from diptych.model.pixels import to_image, to_uint8

    generator = load_image_generator(Path("models/image_generator"))
    codebook = load_codebook(CODEBOOK)
    files = []
    for codes in grids:
        empty = codes < 0
        grid = codebook[np.where(empty, 0, codes.astype(np.int64))]
        grid[empty] = 0
        with torch.inference_mode():
            picture = to_uint8(generator(torch.from_numpy(grid)[None])[0])
            height, width = (length // 8 for length in picture.shape[1:])
            for cell in np.flatnonzero(empty).tolist():
                row, column = divmod(cell, 8)
                picture[:, row * height : (row + 1) * height, column * width : (column + 1) * width] = 200
        content = io.BytesIO()
        to_image(picture).save(content, "JPEG", quality=92)
        files.append(content.getvalue())
    return files
