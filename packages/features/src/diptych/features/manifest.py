"""The manifest: one Parquet row per image, the contract between a dataset and everything after it.

| column | type | meaning |
| --- | --- | --- |
| image_id | string | unique; letters, digits, `_` and `-`, 80 at most: it names members of shards |
| split | string | train, val, test, ... |
| path | string | absolute, or relative to the manifest's folder |
| width, height | int32 | pixels, as displayed (EXIF orientation applied) |
| sha256 | string | of the file's bytes, hexadecimal |
| captions | list of string | none for an image without |
| objects | list of (bbox, label, attributes) | bbox float32 x0 y0 x1 y1 in pixels; null where unknown |

The *scenes* table is the same without captions: what the visual stages read, so that other captions of
the same images do not reach them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa

from diptych.features.contract_tables import check_columns, read_table, write_table
from diptych.features.errors import UserError

VERSION = b"1"
_VERSION_KEY = b"diptych.manifest"

OBJECT = pa.struct(
    [
        pa.field("bbox", pa.list_(pa.float32())),
        pa.field("label", pa.string()),
        pa.field("attributes", pa.list_(pa.string())),
    ]
)
SCENES = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("path", pa.string(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("sha256", pa.string(), nullable=False),
        pa.field("objects", pa.list_(OBJECT)),
    ],
    metadata={_VERSION_KEY: VERSION},
)
MANIFEST = SCENES.append(pa.field("captions", pa.list_(pa.string()), nullable=False))


def write_manifest(rows: Iterable[dict[str, Any]], path: Path) -> pa.Table:
    """Write rows as a manifest, atomically; the same rows give the same bytes. Returns the table. Errors: see manifest_table."""
    table = manifest_table(rows, path)
    write_table(table, path)
    return table


def manifest_table(rows: Iterable[dict[str, Any]], path: Path) -> pa.Table:
    """Rows as a manifest's table. path: where they are to be written, for messages.

    Raises UserError for a row that lacks a column or has a value of another type, an image_id that occurs
    twice or could not name a shard's member, an object without a label or four finite corners, or no rows at all.
    """
    rows = list(rows)
    if not rows:
        raise UserError(f"{path}: the dataset has no images; look at the dataset section of the parameters")
    seen: set[str] = set()
    for row in rows:
        missing = set(MANIFEST.names) - row.keys()
        if missing:
            raise UserError(f"{path}: image {row.get('image_id')} lacks {', '.join(sorted(missing))}")
        # WebDataset takes what follows the first dot for the kind of a member: "a.1" and "a.2" would be one sample.
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,80}", str(row["image_id"])):
            raise UserError(f"{path}: image_id {row['image_id']!r}: use letters, digits, _ and -, 80 at most")
        if row["image_id"] in seen:
            raise UserError(f"{path}: image_id {row['image_id']} occurs twice; ids must be unique")
        seen.add(row["image_id"])
    table = pa.table([_column(field, rows, path) for field in MANIFEST], schema=MANIFEST)
    _check_objects(table, path)
    return table


def write_scenes(table: pa.Table, path: Path) -> None:
    """Write a manifest's table without its captions."""
    write_table(table.drop_columns(["captions"]), path)


def read_manifest(path: Path) -> pa.Table:
    """Read a manifest or scenes table. Raises UserError when it is missing, foreign or of another version."""
    table = read_table(path, "manifest", _VERSION_KEY, VERSION)
    check_columns(table, MANIFEST if "captions" in table.column_names else SCENES, path)
    return table


def resolve_image(table_path: Path, path: str) -> Path:
    """The file of a row: `path` itself if absolute, else relative to the table's folder."""
    return Path(table_path).parent / path


def split_rows(table: pa.Table, split: str, source: Path) -> list[dict[str, Any]]:
    """The rows of one split as dictionaries. Raises UserError when the split is empty."""
    import pyarrow.compute as pc

    rows = table.filter(pc.equal(table["split"], split)).to_pylist()
    if not rows:
        raise UserError(f"{source}: no image is in the split {split!r}")
    return rows


def _column(field: pa.Field, rows: list[dict[str, Any]], path: Path) -> pa.Array:
    values = [row[field.name] for row in rows]
    try:
        if field.name == "captions" and any(isinstance(value, str) for value in values):
            raise pa.ArrowTypeError("a string instead of a list of strings")
        if not field.nullable and None in values:
            raise pa.ArrowTypeError(f"null for image {rows[values.index(None)]['image_id']}")
        return pa.array(values, field.type)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError, UnicodeEncodeError) as error:
        raise UserError(f"{path}: column {field.name} must be {field.type}: {error}") from error


def _check_objects(table: pa.Table, path: Path) -> None:
    """Networks learn from objects as they stand here."""
    import pyarrow.compute as pc

    objects = pc.list_flatten(table["objects"])
    boxes, labels = pc.struct_field(objects, "bbox"), pc.struct_field(objects, "label")
    corners = pc.list_flatten(boxes)
    whole = pc.all(pc.equal(pc.fill_null(pc.list_value_length(boxes), 0), 4), min_count=0).as_py()
    finite = pc.all(pc.fill_null(pc.is_finite(corners), False), min_count=0).as_py()
    if not whole or not finite or labels.null_count:
        for row, things in zip(table["image_id"].to_pylist(), table["objects"].to_pylist(), strict=True):
            for thing in things or []:
                numbers = thing and thing["bbox"] or []
                if (
                    len(numbers) != 4
                    or not all(n is not None and math.isfinite(n) for n in numbers)
                    or not thing["label"]
                ):
                    raise UserError(
                        f"{path}: image {row} has the object {thing}: a label and four finite corners are needed"
                    )
