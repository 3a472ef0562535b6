"""What the extraction tests share: a small dataset, a detector slow enough to be interrupted, runs in processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image
from waiting import HANG_SECONDS, HOLD, PATIENT_RAY, RAY_ENVIRONMENT, wait_for_hold

from diptych.features.extraction.extract import ExtractConfig, extract_features
from diptych.features.files import sha256_of
from diptych.features.manifest import read_manifest, write_manifest

CONFIG = ExtractConfig(
    batch_size=8,
    part_size=10,
    max_failed_share=0.1,
    retry_failed=False,
    backend="torchvision",
    ray_address=None,
    precision="float32",
)
# Features are float16 and sums differ in their last bits with the size of a batch: a step of float16 and a little.
TOLERANCE = {"atol": 2e-3, "rtol": 2e-3}

_RUN = """
import json, sys
from pathlib import Path
from diptych.features.errors import UserError
from diptych.features.extraction.extract import ExtractConfig, extract_features
from diptych.features.manifest import read_manifest
settings = json.loads(sys.argv[1])
if settings["hold"] is not None:
    from diptych.features.store import FeatureStore
    append, stored = FeatureStore.append, []
    def append_when_told(*arguments):
        if len(stored) == settings["hold"]:
            HOLD
        stored.append(append(*arguments))
        return stored[-1]
    FeatureStore.append = append_when_told
if settings["workers"]:
    exec(settings["patient"])
manifest = Path(settings["manifest"])
try:
    counts = extract_features(
        read_manifest(manifest), manifest, Path(settings["detector"]), Path(settings["store"]), Path(settings["out"]),
        ExtractConfig(**settings["config"]), settings["workers"], settings["workers"] or 1, "cpu",
    )
except UserError as error:
    sys.exit(f"UserError: {error}")
print(json.dumps(counts))
""".replace("HOLD", HOLD)


def make_dataset(folder: Path, count: int, name: str = "image") -> Path:
    """Random pictures of a few sizes with a manifest. The pictures of a number are the same in every dataset."""
    rows = []
    (folder / "images").mkdir(parents=True)
    for number in range(count):
        rng = np.random.default_rng(number)
        height, width = ((40, 60), (60, 40), (50, 50))[number % 3]
        path = folder / "images" / f"{name}-{number}.png"
        Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8)).save(path)
        rows.append(manifest_row(path, f"{name}-{number:03d}", width, height))
    write_manifest(rows, folder / "manifest.parquet")
    return folder / "manifest.parquet"


def manifest_row(path: Path, image_id: str, width: int = 8, height: int = 8) -> dict[str, Any]:
    return {
        "image_id": image_id, "split": "train", "path": str(path), "width": width, "height": height,
        "sha256": sha256_of(path), "captions": ["a kite ."], "objects": None,
    }  # fmt: skip


def extract(
    manifest: Path, detector: Path, store: Path, out: Path, workers: int = 0, **changes: Any
) -> dict[str, int]:
    """Extract in this process."""
    config = ExtractConfig(**{**vars(CONFIG), **changes})
    return extract_features(
        read_manifest(manifest), manifest, detector, store, out, config, workers, 1, "cpu"
    )


def start(
    manifest: Path,
    detector: Path,
    store: Path,
    out: Path,
    workers: int = 0,
    prefix: tuple[str, ...] = (),
    hold: int | None = None,
    **changes: Any,
) -> subprocess.Popen[str]:
    """The same in a process of its own, which prints the counts as JSON.

    hold: so many parts it stores and waits before the next one; `start` returns when it waits, and `counts_of` lets it go on.
    """
    settings = {
        "manifest": str(manifest), "detector": str(detector), "store": str(store), "out": str(out),
        "config": {**vars(CONFIG), **changes}, "workers": workers,
        "hold": hold,
        "patient": PATIENT_RAY,
    }  # fmt: skip
    process = subprocess.Popen(
        [*prefix, sys.executable, "-c", _RUN, json.dumps(settings)],
        env={**os.environ, **RAY_ENVIRONMENT},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    if hold is not None:
        wait_for_hold(process)
    return process


def counts_of(process: subprocess.Popen[str]) -> dict[str, int]:
    """Wait for a run that should succeed."""
    out, err = process.communicate(timeout=HANG_SECONDS)
    assert process.returncode == 0, err[-3000:]
    return json.loads(out.splitlines()[-1])


def stored(store: Path) -> dict[str, np.ndarray]:
    """All rows of a store with one key by sha256, float16 [64 * D]. No image may be there twice, no part half-written."""
    (folder,) = store.iterdir()
    rows: dict[str, np.ndarray] = {}
    for part in folder.glob("part-*.parquet"):
        for row in pq.read_table(part).to_pylist():
            assert row["sha256"] not in rows, f"{row['image_id']} was extracted twice"
            rows[row["sha256"]] = np.frombuffer(row["features"], "<f2")
    assert not list(folder.glob("*.damaged"))
    return rows


def assert_same_rows(store: Path, expected: Path) -> None:
    """Row by row equal within the stated tolerance."""
    rows, wanted = stored(store), stored(expected)
    assert rows.keys() == wanted.keys()
    for sha256, features in wanted.items():
        np.testing.assert_allclose(rows[sha256].astype(np.float32), features.astype(np.float32), **TOLERANCE)
