"""Tiny stand-ins for what the transformer trains on."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from diptych.model.config import TransformerConfig
from diptych.model.tokenizer import build_tokenizer
from diptych.model.transformer import UnifiedTransformer

CAPTIONS = [
    ["a red kite floats.", "a kite that is red."],
    ["two blue boats rest on the sea.", "some boats of blue."],
    ["a green house stands alone.", "one green house."],
]


class FakeShards:
    """The methods of ShardDataset that training uses, over arrays in memory."""

    def __init__(self, images: int, codebook_size: int, feature_dim: int, cells: int) -> None:
        random = np.random.default_rng(0)
        self.keys = [f"{index:06d}" for index in range(images)]
        self._grid = random.standard_normal((images, cells, feature_dim)).astype(np.float16)
        self._codes = random.integers(0, codebook_size, (images, cells))

    def __len__(self) -> int:
        return len(self.keys)

    def grid(self, indices):
        return self._grid[indices]

    def codes(self, indices):
        return self._codes[indices]

    def captions(self, index: int) -> list[str]:
        return CAPTIONS[index % len(CAPTIONS)]


class FakeGenerator(nn.Module):
    """16 vectors of 10 to an image of 4x4 pixels in -1..1."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(10, 3)

    def forward(self, grid):
        return self.layer(grid).transpose(1, 2).reshape(-1, 3, 4, 4).tanh()


class FakeScorer(nn.Module):
    """A linear image encoder whose cosine to the constant text is usually positive; it remembers the texts."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(48, 6)
        nn.init.constant_(self.layer.bias, 0.2)
        self.texts: list[str] = []

    def encode_images(self, images):
        assert images.min() >= 0 and images.max() <= 1
        return nn.functional.normalize(self.layer(images.flatten(1)), dim=-1)

    def encode_texts(self, texts):
        self.texts = texts
        return nn.functional.normalize(torch.ones(len(texts), 6), dim=-1)


@pytest.fixture
def tiny() -> SimpleNamespace:
    """A tiny seeded transformer with tokenizer, codebook and shards; 4x4 grid, 12 codes, features of 10."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer([text for texts in CAPTIONS for text in texts], min_count=1)
    config = TransformerConfig(
        hidden_size=24,
        attention_heads=3,
        intermediate_size=40,
        language_layers=1,
        visual_layers=1,
        cross_layers=2,
        vocab_size=len(tokenizer),
        codebook_size=12,
        feature_dim=10,
        grid_size=4,
        cell_positions=False,
        text_positions=20,
        dropout=0.0,
        code_head="linear",
        initial_std=0.1,
        caption_attention="prefix",
    )
    codebook = torch.randn(12, 10) * 3 + 1
    model = UnifiedTransformer(config).eval()
    model.set_codebook(codebook)
    texts = [texts[0] for texts in CAPTIONS]
    return SimpleNamespace(
        config=config,
        model=model,
        tokenizer=tokenizer,
        codebook=codebook,
        train=FakeShards(6, 12, 10, 16),
        texts=texts,
        ids=tokenizer.encode(texts, 12),
        features=torch.randn(3, 16, 10) * 3 + 1,
        generator=FakeGenerator(),
        scorer=FakeScorer(),
    )
