"""What writing and reading of shards agree on: a sample's members in their order, and the index."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from diptych.features.errors import UserError

VERSION = 1
MEMBERS = ("grid.npy", "codes.npy", "json", "jpg")
GRID, CODES, JSON, JPG = range(4)


def read_index(folder: Path) -> dict[str, Any]:
    """The content of index.json. UserError where it is missing, damaged or of another version."""
    path = folder / "index.json"
    try:
        index = json.loads(path.read_text())
        version = index["version"]
    except FileNotFoundError as error:
        raise UserError(f"{path}: no shards there; run `dvc repro shard`") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: damaged ({error!r}); run `dvc repro -f shard`") from error
    if version != VERSION:
        raise UserError(f"{path}: version {version}, this version reads {VERSION}")
    return index
