"""BiART, L-Verse's transformer (L-Verse 3.4): text to image and image to text, word by word and code by code.

A GPT (minGPT's layers: norms before, GELU, learned positions) whose input says of every token, by a segment embedding, whether it is a
reference or is to be generated. The reference comes first. So one set of weights writes both ways::

    [SOC] a red kite .  [SEP] | [SOI] c0 c1 ... c62      text, then the codes: c0 from [SOI], c1 from c0, ...
    [SOI] c0 c1 ... c63       | [SOC] a red kite .       codes, then the words: "a" from [SOC], ...

Nothing that is generated is seen by the reference, so it is read once (:meth:`BiART.read_text`, :meth:`BiART.read_image`) for all
texts or paintings that follow it. Text and codes have a vocabulary and a head each: the same as one softmax over both in which the
other's entries are impossible. [SOC] is the tokenizer's ``[CLS]``. Padding, which stands between a short text and its image, is hidden.

Letters in shape comments: n references, c texts or images of each, t words, v cells, h width, d width of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diptych.model.errors import UserError
from diptych.model.networks.attention import (
    KeyValueCache,
    MultiHead,
    attention_beside,
    causal_bias,
    padding_bias,
    scaled_dot_product,
    scores_of,
    share_of_cells,
)
from diptych.model.networks.config_files import CONFIG_FOLDER, check_fields, read_config_file
from diptych.model.networks.layers import initialise

SIZES = ("smoke", "toybox", "base")
REFERENCE, GENERATED = 0, 1


@dataclass(frozen=True)
class BiARTConfig:
    """Shape of a :class:`BiART`; the paper's (L-Verse 3.5) in brackets. It says 500 M parameters and no depth or width: `base` has 24
    layers of 1,280, 622 million numbers with its vocabularies.

    Attributes:
        layers, width, heads: of the transformer; heads divide width.
        vocab_size: word pieces [49,808].
        text_length: most tokens of a text [64].
        codebook_size: codes, K [8,192].
        grid_size: cells along a side of the grid [32].
        cell_positions: a cell's position is the sum of a learned row and a learned column; else each has one of its own.
        dropout: of embeddings, sublayers and attention.
        initial_std: of the initial weights [0.02].
    """

    layers: int
    width: int
    heads: int
    vocab_size: int
    text_length: int
    codebook_size: int
    grid_size: int
    cell_positions: bool
    dropout: float
    initial_std: float

    def __post_init__(self) -> None:
        check_fields(self, "BiART config")
        if self.width % self.heads:
            raise UserError(f"BiART config: heads ({self.heads}) must divide width ({self.width})")

    @property
    def cells(self) -> int:
        """Cells of the grid."""
        return self.grid_size**2


def named_config(name: str, **sizes: Any) -> BiARTConfig:
    """The size ``name`` of ``configs/`` (smoke, toybox, base) for a vocabulary and an image tokenizer: ``vocab_size``,
    ``codebook_size``, ``grid_size``.

    Raises:
        UserError: an unknown name or key.
    """
    if name not in SIZES:
        raise UserError(f"no BiART is named {name!r}; use one of {', '.join(SIZES)}")
    return read_config(CONFIG_FOLDER / f"biart_{name}.json", **sizes)


def read_config(file: Path, **changes: Any) -> BiARTConfig:
    """The config in the JSON ``file``, with ``changes``; a UserError that names the file, or the key, that is missing or wrong."""
    return read_config_file(BiARTConfig, file, "BiART", **changes)


@dataclass(frozen=True)
class Reference:
    """n references, read.

    Attributes:
        keys_values: of each layer a pair ``[n, heads, length, d]``.
        bias: ``[n, 1, 1, length]``, very low at padding; None where there is none.
    """

    keys_values: list[tuple[Tensor, Tensor]]
    bias: Tensor | None

    def __len__(self) -> int:
        """n."""
        return len(self.keys_values[0][0])

    def rows(self, rows: slice | Tensor) -> Reference:
        """Some of them."""
        return Reference(
            [(keys[rows], values[rows]) for keys, values in self.keys_values],
            None if self.bias is None else self.bias[rows],
        )


class Block(nn.Module):
    """Norm, attention and residual; norm, feed-forward and residual (pre-norm, as GPT-2)."""

    def __init__(self, config: BiARTConfig) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.width)
        self.attention = MultiHead(config.width, config.heads, config.dropout)
        self.feed_forward_norm = nn.LayerNorm(config.width)
        self.inner = nn.Linear(config.width, 4 * config.width)
        self.outer = nn.Linear(4 * config.width, config.width)
        self.dropout = config.dropout

    def forward(
        self,
        states: Tensor,
        bias: Tensor | None,
        reference: tuple[Tensor, Tensor] | None = None,
        reference_bias: Tensor | None = None,
        cache: KeyValueCache | None = None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """States ``[n * c, length, h]`` over themselves, what ``cache`` has of them, and the keys and values of n references.
        Returns new states and their own keys and values."""
        attention = self.attention
        queries, keys, values = attention.project(self.attention_norm(states))
        if cache is not None:
            keys, values = cache.append(keys, values)
        if reference is None:
            mixed = scaled_dot_product(queries, keys, values, bias, attention.dropping)
        else:
            mixed = attention_beside(
                queries, reference, keys, values, bias, attention.dropping, reference_bias
            )
        states = states + attention.joined(mixed)
        hidden = self.outer(F.gelu(self.inner(self.feed_forward_norm(states))))
        return states + F.dropout(hidden, self.dropout, self.training), (keys, values)


class BiART(nn.Module):
    """Words and codes to the states that say what comes next (L-Verse 3.4)."""

    def __init__(self, config: BiARTConfig) -> None:
        super().__init__()
        self.config = config
        self.words = nn.Embedding(config.vocab_size, config.width)
        self.codes = nn.Embedding(
            config.codebook_size + 1, config.width
        )  # the last is [SOI], and what stands for a hidden code
        self.segments = nn.Embedding(2, config.width)
        self.word_positions = nn.Embedding(config.text_length, config.width)
        if config.cell_positions:
            self.rows, self.columns = (nn.Embedding(config.grid_size, config.width) for _ in range(2))
        else:
            self.cells = nn.Embedding(config.cells, config.width)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.word_head = nn.Linear(config.width, config.vocab_size)
        self.code_head = nn.Linear(config.width, config.codebook_size)
        initialise(self, config.initial_std)

    # What stands in the sequence

    def text_tokens(self, ids: Tensor, segment: int, start: int = 0) -> Tensor:
        """Words int64 ``[m, t]`` from the position ``start`` on, as ``[m, t, h]``.

        Raises:
            UserError: they are more than the text positions.
        """
        end = start + ids.shape[1]
        if end > self.config.text_length:
            raise UserError(
                f"a text of {end} tokens, but this transformer has {self.config.text_length} text positions; use a shorter "
                "caption length"
            )
        offsets = self.word_positions.weight[start:end] + self.segments.weight[segment]
        return F.dropout(self.words(ids) + offsets, self.config.dropout, self.training)

    def image_tokens(self, codes: Tensor, segment: int) -> Tensor:
        """[SOI] and codes int64 ``[m, k]``, the first k of an image, as ``[m, 1 + k, h]``; ``codebook_size`` in the place of a code is one
        that is hidden."""
        image_start = codes.new_full((len(codes), 1), self.config.codebook_size)
        first = self.codes(image_start) + self.segments.weight[segment]
        tokens = self.codes(codes) + self.cell_positions()[: codes.shape[1]] + self.segments.weight[segment]
        return F.dropout(torch.cat([first, tokens], 1), self.config.dropout, self.training)

    def code_token(self, codes: Tensor, cell: int) -> Tensor:
        """The code int64 ``[m]`` that was just generated in ``cell``, as ``[m, 1, h]``."""
        position = self.cell_positions()[cell] + self.segments.weight[GENERATED]
        return (self.codes(codes) + position)[:, None]

    def cell_positions(self) -> Tensor:
        """Of all cells, row-major, ``[cells, h]``."""
        if self.config.cell_positions:
            return (self.rows.weight[:, None] + self.columns.weight).flatten(0, 1)
        return self.cells.weight

    # Reading and writing

    def read(self, tokens: Tensor, visible: Tensor | None = None) -> tuple[Tensor, Reference]:
        """References ``[n, length, h]``, from left to right; ``visible`` bool ``[n, length]`` is false at padding; None: there is
        none. Returns their states ``[n, length, h]`` too."""
        hidden = None if visible is None else padding_bias(visible)
        bias = causal_bias(tokens.shape[1], tokens.device)
        if hidden is not None:
            bias = bias + hidden
        keys_values = []
        for layer in self.layers:
            tokens, own = layer(tokens, bias)
            keys_values.append(own)
        return self.norm(tokens), Reference(keys_values, hidden)

    def read_text(self, ids: Tensor, visible: Tensor | None) -> tuple[Tensor, Reference]:
        """Texts int64 ``[n, t]``, whose words ``visible`` (bool ``[n, t]``; None: all) names."""
        return self.read(self.text_tokens(ids, REFERENCE), visible)

    def read_image(self, codes: Tensor) -> tuple[Tensor, Reference]:
        """Codes int64 ``[n, cells]``, row-major from the top left."""
        return self.read(self.image_tokens(codes, REFERENCE))

    def write(
        self, tokens: Tensor, reference: Reference, caches: Sequence[KeyValueCache] | None = None
    ) -> Tensor:
        """States ``[n * c, length, h]`` of what is generated, c of each of n references side by side: what has been written, or
        with ``caches`` the newest of it."""
        length, before = tokens.shape[1], caches[0].length if caches else 0
        bias = None
        if length > 1:
            bias = causal_bias(before + length, tokens.device)[before:]
        for place, layer in enumerate(self.layers):
            tokens, _ = layer(
                tokens, bias, reference.keys_values[place], reference.bias, caches[place] if caches else None
            )
        return self.norm(tokens)

    def attention_to_image(self, ids: Tensor, image: Reference) -> Tensor:
        """What words int64 ``[n, t]`` of an image each attend to among its cells: float32 ``[n, t, v]``, mean over the heads of each
        layer, then over the layers; shares of what they give to cells, as of
        :meth:`diptych.model.networks.unified.UnifiedTransformer.prefix_attention`."""
        tokens, bias = self.text_tokens(ids, GENERATED), causal_bias(ids.shape[1], ids.device)
        total = torch.zeros((), device=ids.device)
        for layer, (image_keys, image_values) in zip(self.layers, image.keys_values, strict=True):
            queries, keys, _ = layer.attention.project(layer.attention_norm(tokens))
            own, seen = scores_of(queries, keys) + bias, scores_of(queries, image_keys)
            total = total + share_of_cells(
                seen[..., 1:], torch.cat([seen[..., :1], own], -1)
            )  # [SOI] is no cell
            tokens, _ = layer(tokens, bias, (image_keys, image_values))
        return total / len(self.layers)

    def caches(self, capacity: int) -> list[KeyValueCache]:
        """For :meth:`write`, of at most ``capacity`` tokens."""
        return [KeyValueCache(capacity) for _ in self.layers]
