"""Reading and writing the Parquet tables that are contracts: each names its version in the schema's metadata."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from diptych.features.errors import UserError
from diptych.features.files import atomic_path


def read_table(path: Path, name: str, version_key: bytes, version: bytes) -> pa.Table:
    """Read a table whose contract has this ``name``. Raises UserError when it is missing, foreign or of another version."""
    try:
        table = pq.read_table(path)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; `dvc repro dataset` makes it") from error
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path}: not a readable Parquet file ({error}); run `dvc repro dataset`") from error
    found = (table.schema.metadata or {}).get(version_key)
    if found != version:
        said = found.decode() if found else "none"
        raise UserError(f"{path}: {name} version {said}, this version of diptych reads {version.decode()}")
    return table


def check_columns(table: pa.Table, fields: Iterable[pa.Field], path: Path) -> None:
    """Raise UserError unless the table read from ``path`` has these columns and types."""
    for field in fields:
        if field.name not in table.column_names or table.schema.field(field.name).type != field.type:
            raise UserError(f"{path}: column {field.name} is missing or not of type {field.type}")


def write_table(table: pa.Table, path: Path) -> None:
    """Write a table, atomically; the same table gives the same bytes."""
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")
