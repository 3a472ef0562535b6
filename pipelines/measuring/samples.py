"""Pictures and texts that a training has made at its evaluations, for the report to show."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from diptych.model.pixels import png
from pipelines.runner.stage import Stage


def write_samples(
    stage: Stage,
    samples: Sequence[Mapping[str, Any]],
    texts: Sequence[str],
    contents: Mapping[str, Callable[[Mapping[str, Any]], bytes]],
) -> None:
    """plots/<stage>_samples.parquet: a row per evaluation and picture, with its step and image_id.

    samples: those of a training's record. texts: which of their values are written as text. contents: further columns,
    each with what makes a sample's bytes, such as a picture's file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema(
        {"step": pa.int64(), "image_id": pa.string()}
        | dict.fromkeys(texts, pa.string())
        | dict.fromkeys(contents, pa.binary())
    )
    rows = [{**sample, **{name: content(sample) for name, content in contents.items()}} for sample in samples]
    with stage.write(f"plots/{stage.name}_samples.parquet") as path:
        pq.write_table(pa.Table.from_pylist(rows, schema), path)


def repainted_pictures() -> dict[str, Callable[[Mapping[str, Any]], bytes]]:
    """PNG files of the pictures of a sample of a training that repaints: `real` and `painted`, for :func:`write_samples`."""
    return {
        "real": lambda sample: png(sample["real"]),
        "painted": lambda sample: png(sample["painted"]),
    }
