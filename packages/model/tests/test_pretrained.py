"""The model directory and the checkpoints' files."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from diptych.model.checkpoints import TrainingCheckpoints
from diptych.model.errors import UserError
from diptych.model.precision import resolve_precision
from diptych.model.pretrained import load_transformer, save_transformer


@pytest.fixture
def folder(tiny, tmp_path):
    save_transformer(tmp_path / "model", tiny.model, tiny.tokenizer, tiny.codebook)
    return tmp_path / "model"


def test_round_trip(tiny, folder):
    model, tokenizer, codebook = load_transformer(folder)
    assert codebook.equal(tiny.codebook) and not model.training
    assert tokenizer.encode(tiny.texts, 12).equal(tiny.ids)
    visible = tiny.ids != tokenizer.pad
    for one, other in zip(
        model(tiny.ids, visible, tiny.features), tiny.model(tiny.ids, visible, tiny.features), strict=True
    ):
        assert one.equal(other)
    assert not list(folder.glob("*.pt")) and not list(folder.glob("*.bin"))


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("[" * 100_000, "config.json: not valid JSON"),
        ('{"intermediate_size": ' + "9" * 30 + "}", "intermediate_size must be a whole number from 1 to 2147483647"),
    ],
)
def test_an_absurd_config_is_one_line(folder, written: str, message: str):
    file = folder / "config.json"
    text = written if written.startswith("[") else json.dumps(json.loads(file.read_text()) | json.loads(written))
    file.write_text(text)
    with pytest.raises(UserError, match=message):
        load_transformer(folder)


def test_missing_file_is_named(folder):
    (folder / "codebook.safetensors").unlink()
    with pytest.raises(UserError, match="codebook.safetensors"):
        load_transformer(folder)


def test_truncated_weights_are_named(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])
    with pytest.raises(UserError, match="model.safetensors"):
        load_transformer(folder)


def test_codebook_of_another_size_is_named(folder):
    save_file({"centroids": torch.zeros(11, 10)}, folder / "codebook.safetensors")
    with pytest.raises(UserError, match=r"\(11, 10\).*\(12, 10\)"):
        load_transformer(folder)


def test_config_of_another_size_is_named(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 41}))
    with pytest.raises(UserError, match="does not fit config.json"):
        load_transformer(folder)
    (folder / "config.json").write_text(json.dumps({**config, "colour": 1}))
    with pytest.raises(UserError, match="unknown keys.*colour"):
        load_transformer(folder)


def test_checkpoints_keep_the_last_two(tmp_path):
    checkpoints = TrainingCheckpoints(tmp_path / "run")
    assert checkpoints.load() is None
    for step in range(4):
        checkpoints.save({"step": step, "weights": torch.full((3,), float(step))})
    assert checkpoints.load()["step"] == 3
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "checkpoint-00000003.pt",
        "checkpoint-00000004.pt",
    ]


def test_unknown_precision_is_named():
    assert resolve_precision("cpu", "float32") is torch.float32
    with pytest.raises(UserError, match="float16"):
        resolve_precision("cpu", "float16")


def test_forward_pass_imports_nothing_heavy():
    """Loading and both decoders need torch, numpy, transformers, safetensors: no other part of Diptych."""
    code = (
        "import sys, diptych.model.pretrained, diptych.model.decoding.caption, diptych.model.decoding.paint\n"
        "heavy = {'ray', 'faiss', 'pyarrow', 'open_clip', 'torchvision', 'matplotlib', 'webdataset'}\n"
        "print(sorted((heavy | {'diptych.features', 'diptych.eval'}) & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
