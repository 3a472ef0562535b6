"""What both trainings leave for the report to show: a row per evaluation and picture."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from pipelines.measuring.samples import repainted_pictures, write_samples
from pipelines.runner.params import Machine
from pipelines.runner.stage import Stage
from pipelines.train_token import sample_contents

MACHINE = Machine(1, 1, "cpu", "float32", 30.0, ".cache/features")


class Val:
    """Two pictures whose bytes say which they are."""

    keys = ("a", "b")

    def image_bytes(self, index: int) -> bytes:
        return b"picture %d" % index


def written(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, *arguments: Any) -> pa.Table:
    monkeypatch.chdir(folder)
    write_samples(Stage(name, 0, MACHINE, {}), *arguments)
    return pq.read_table(f"plots/{name}_samples.parquet")


def test_captions_and_codes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sample = {"image_id": "b", "caption": "a dog", "prompt": "a cat", "codes": [0, 258, 65535], "step": 7}
    contents = sample_contents(Val())  # type: ignore[arg-type]
    table = written("train_token", tmp_path, monkeypatch, [sample], ["caption", "prompt"], contents)
    assert list(zip(table.column_names, table.schema.types, strict=True)) == [
        ("step", pa.int64()), ("image_id", pa.string()), ("caption", pa.string()), ("prompt", pa.string()),
        ("codes", pa.binary()), ("real", pa.binary()),
    ]  # fmt: skip
    row = table.to_pylist()[0]
    assert row == {**sample, "codes": b"\x00\x00\x02\x01\xff\xff", "real": b"picture 1"}


def test_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, painted = torch.randint(0, 256, (2, 3, 5, 4), dtype=torch.uint8).unbind()
    sample = {"step": 3, "image_id": "a", "real": real, "painted": painted}
    table = written("image_generator", tmp_path, monkeypatch, [sample], [], repainted_pictures())
    assert list(zip(table.column_names, table.schema.types, strict=True)) == [
        ("step", pa.int64()), ("image_id", pa.string()), ("real", pa.binary()), ("painted", pa.binary())
    ]  # fmt: skip
    row = table.to_pylist()[0]
    for kind in ("real", "painted"):
        shown = np.array(Image.open(io.BytesIO(row[kind])))
        assert (shown.transpose(2, 0, 1) == sample[kind].numpy()).all()


def test_a_training_without_evaluation_leaves_no_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = written(
        "train_token", tmp_path, monkeypatch, [], ["caption", "prompt"], sample_contents(None)
    )
    assert table.num_rows == 0 and len(table.column_names) == 6
