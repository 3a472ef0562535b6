"""What writing and reading of shards agree on: a sample's members in their order, and the index."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from diptych.features.addresses import Elsewhere, is_address
from diptych.features.errors import UserError

VERSION = 1
MEMBERS = ("grid.npy", "codes.npy", "json", "jpg")
GRID, CODES, JSON, JPG = range(4)


def read_index(folder: Path | str) -> dict[str, Any]:
    """The content of index.json in a folder or at an address. UserError where it is missing, damaged or of another version."""
    if is_address(folder):
        path, mend = f"{folder}/index.json", "write the shards there again"
        content = Elsewhere(str(folder)).read("index.json").decode("utf-8", "replace")
    else:
        path, mend = str(Path(folder) / "index.json"), "run `dvc repro -f shard`"
        try:
            content = Path(path).read_text()
        except FileNotFoundError as error:
            raise UserError(f"{path}: no shards there; run `dvc repro shard`") from error
    try:
        index = json.loads(content)
        version = index["version"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: damaged ({error!r}); {mend}") from error
    if version != VERSION:
        raise UserError(f"{path}: version {version}, this version reads {VERSION}")
    return index
