"""A codebook and codes from their files: codebook.safetensors and codes.parquet."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError
from safetensors.numpy import load_file

from diptych.features.errors import UserError
from diptych.features.grid import CELLS

CODES = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("sha256", pa.string(), nullable=False),
        pa.field("codes", pa.binary(CELLS * 2), nullable=False),
    ]
)


def load_codebook(folder: Path) -> np.ndarray:
    """The centroids, float32 [K, D]."""
    return _load(folder, "centroids")


def load_cluster_sizes(folder: Path) -> np.ndarray:
    """How many of the train split's cells have each code, int64 [K]."""
    return _load(folder, "sizes")


def _load(folder: Path, name: str) -> np.ndarray:
    path = Path(folder) / "codebook.safetensors"
    try:
        tensors = load_file(path)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no codebook there; run `dvc repro cluster`") from error
    except (SafetensorError, OSError) as error:
        from diptych.features.weight_files import (
            why_no_safetensors,  # brings torch, which clustering is without
        )

        raise UserError(
            f"{path}: damaged ({why_no_safetensors(path, error)}); run `dvc repro -f cluster`"
        ) from error
    if name not in tensors:
        raise UserError(f"{path}: no tensor {name!r} in it; run `dvc repro -f cluster`")
    return tensors[name]


def read_codes(folder: Path) -> tuple[list[str], np.ndarray]:
    """Image ids in the features' order and their codes, int64 [n, 64]."""
    path = Path(folder) / "codes.parquet"
    try:
        table = pq.read_table(path)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no codes there; run `dvc repro cluster`") from error
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path}: damaged ({error}); run `dvc repro -f cluster`") from error
    packed = b"".join(table["codes"].to_pylist())
    return table["image_id"].to_pylist(), np.frombuffer(packed, dtype="<u2").reshape(-1, CELLS).astype(
        np.int64
    )
