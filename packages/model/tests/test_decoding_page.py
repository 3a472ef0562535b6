"""The Python that docs/decoding.md shows runs."""

from __future__ import annotations

import re
from pathlib import Path

import torch

PAGE = Path(__file__).resolve().parents[3] / "docs/decoding.md"


def test_the_page_runs(tiny):
    torch.manual_seed(0)
    count = len(tiny.features)
    names = {
        "model": tiny.model,
        "tokenizer": tiny.tokenizer,
        "codebook": tiny.codebook,
        "grid_features": tiny.features,
        "seeds": list(range(count)),
        "images": None,
        "cosines": lambda images, ids: torch.rand(len(ids)),
    }
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert len(blocks) == 2
    for block in blocks:
        exec(block, names)  # noqa: S102 - our own page
    assert names["captions"].ids.shape[0] == count and names["best"].ids.shape[0] == count
    assert names["painting"].codes.shape == (1, tiny.config.cells)
