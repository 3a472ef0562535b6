"""What is right in each test item, as the report reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def write_verdicts(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """A row per picture, of what `pipelines.measuring.figures.measure` returns."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema(
        [
            ("image_id", pa.string()),
            ("caption_right", pa.bool_()),
            ("painted_right", pa.bool_()),
            ("painted_class_right", pa.bool_()),
            ("painted_color_right", pa.bool_()),
            ("painted_score", pa.float32()),
        ]
    )
    pq.write_table(pa.Table.from_pylist([dict(row) for row in rows], schema), path)
