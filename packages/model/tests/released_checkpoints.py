"""Checkpoints of the released implementations at a tiny size: ``data/*_names.txt`` are the names and shapes that the released
code itself gives them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from diptych.model.command import app
from diptych.model.importers.checkpoint import Imported
from diptych.model.networks.config import TransformerConfig

DATA = Path(__file__).parent / "data"
CONFIG = TransformerConfig(
    hidden_size=24,
    attention_heads=3,
    intermediate_size=40,
    language_layers=1,
    visual_layers=1,
    cross_layers=1,
    vocab_size=50,
    codebook_size=12,
    feature_dim=10,
    grid_size=4,
    cell_positions=False,
    text_positions=20,
    dropout=0.1,
    code_head="features",
    initial_std=0.02,
    caption_attention="masked",
)


def checkpoint(file: str) -> dict[str, torch.Tensor]:
    """Random tensors of the names and shapes in ``data/file``, tied as the released code ties them."""
    torch.manual_seed(0)
    tensors = {}
    for line in (DATA / file).read_text().splitlines():
        name, *shape = line.split()
        tensors[name] = torch.randn(*map(int, shape))
    tie(tensors, "word_embeddings.weight", "predictions.decoder.weight")
    if file.startswith("x_lxmert"):
        tie(tensors, "vis_emb.weight", "out_cluster.weight")
    return tensors


def tie(tensors: dict[str, torch.Tensor], source: str, target: str) -> None:
    """Make the tensors whose names end so one tensor."""
    first, second = (next(name for name in tensors if name.endswith(end)) for end in (source, target))
    tensors[second] = tensors[first]


def assert_used_or_listed(imported: Imported, tensors: dict[str, torch.Tensor]) -> None:
    """Every tensor is used or listed once."""
    report = imported.report
    assert sorted([*report.used, *report.unused]) == sorted(tensors)
    assert len(set(report.used)) == len(report.used)


def assert_complete(imported: Imported, tensors: dict[str, torch.Tensor]) -> None:
    """Every tensor is used or listed once, none of ours starts at random, and some are where they belong."""
    assert_used_or_listed(imported, tensors)
    assert not imported.report.initialised
    words = next(tensor for name, tensor in tensors.items() if name.endswith("word_embeddings.weight"))
    assert imported.model.text_embedding.words.weight.equal(words)
    query = next(
        tensor
        for name, tensor in tensors.items()
        if name.endswith("x_layers.0.lang_self_att.self.key.weight")
    )
    assert imported.model.cross_layers[0].text_attention.projection.weight[24:48].equal(query)


def run_import(arguments: list[str]) -> int:
    """Run ``diptych import-checkpoint`` with ``[FORMAT, SOURCE, OUT, options...]``; returns its status."""
    form, *rest = arguments
    with pytest.raises(SystemExit) as ended:
        app.main(["import-checkpoint", "--format", form, *rest])
    return int(ended.value.code or 0)
