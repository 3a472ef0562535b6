"""Multi-head attention as all our transformers have it, with its biases and the cache of a causal one.

Letters in shape comments: n texts or images, q queries, k keys, d size of a head, h hidden size.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diptych.model.devices import on_cpu
from diptych.model.networks.config import TransformerConfig

LAYER_NORM_EPSILON = 1e-12


def scaled_dot_product(
    queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None, dropout: float, fused: bool = False
) -> Tensor:
    """Attend with ``queries`` ``[n, heads, q, d]`` to ``keys`` and ``values`` ``[n, heads, k, d]``.

    ``bias`` is 0 where a key is visible and very low where it is hidden; it broadcasts to ``[n, heads, q, k]``.
    On a CPU two batched products and a softmax beat the fused kernel at our lengths (17 to 85 positions) in
    training; without gradients (``fused``), and on a GPU always, the fused kernel wins.
    """
    if fused or not on_cpu(queries):
        mask = None if bias is None else bias.to(queries.dtype)
        return F.scaled_dot_product_attention(queries, keys, values, mask, dropout)
    scores = torch.matmul(queries * (1 / math.sqrt(queries.shape[-1])), keys.transpose(-1, -2))
    if bias is not None:
        scores += bias
    probabilities = scores.softmax(-1)
    if dropout:
        probabilities = F.dropout(probabilities, dropout)
    return torch.matmul(probabilities, values)


def padding_bias(visible: Tensor) -> Tensor:
    """Turn ``visible`` (bool ``[n, k]``) into an attention bias ``[n, 1, 1, k]``.

    Hidden keys get a finite number, so that a row of them alone is attended to evenly, as in Hugging Face's LXMERT,
    instead of becoming NaN; it is the lowest that every dtype with float32's exponents can hold.
    """
    bias = torch.zeros(visible.shape, device=visible.device)
    return bias.masked_fill(~visible, torch.finfo(torch.bfloat16).min)[:, None, None, :]


def causal_bias(length: int, device: torch.device) -> Tensor:
    """Return the bias ``[length, length]`` that hides later positions."""
    return torch.full((length, length), -math.inf, device=device).triu(1)


class KeyValueCache:
    """Keys and values of the words decoded so far, for one attention: ``[n, heads, length, d]`` each."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.length = 0
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store the keys and values of new positions; return those of all positions so far."""
        if self.keys is None or self.values is None:
            n, heads, _, d = keys.shape
            self.keys, self.values = keys.new_empty(2, n, heads, self.capacity, d).unbind()
        end = self.length + keys.shape[2]
        self.keys[:, :, self.length : end] = keys
        self.values[:, :, self.length : end] = values
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def keep(self, rows: Tensor) -> None:
        """Keep only these rows (int64 ``[m]``)."""
        if self.keys is not None and self.values is not None:
            self.keys, self.values = self.keys[rows], self.values[rows]


def attention_beside(
    queries: Tensor,
    image: tuple[Tensor, Tensor],
    keys: Tensor,
    values: Tensor,
    bias: Tensor | None,
    dropout: float,
    image_bias: Tensor | None = None,
) -> Tensor:
    """Attend with the queries of texts ``[n * c, heads, q, d]``, c of each of n images, to the keys and values of their image
    (``image``, a pair ``[n, heads, v, d]``) and to their own ``[n * c, heads, k, d]``, as to one row: one softmax over both.

    The texts of one image lie side by side as queries, so its keys and values exist once. ``bias``, of the texts' own keys,
    broadcasts to ``[n * c, heads, q, k]``; ``image_bias``, of the image's, to ``[n, heads, c * q, v]``, None where all of it is
    seen.
    """
    visual_keys, visual_values = image
    n, _, cells, d = visual_keys.shape
    if not on_cpu(queries) and queries.shape[0] == n:  # one text each: the fused kernel's case
        if image_bias is not None:
            own_bias = queries.new_zeros(1, 1, 1, keys.shape[2]) if bias is None else bias
            shape = torch.broadcast_shapes(own_bias.shape[:-1], image_bias.shape[:-1])
            bias = torch.cat([part.expand(*shape, -1) for part in (image_bias, own_bias)], -1)
        elif bias is not None:
            bias = F.pad(bias, (cells, 0))
        both = torch.cat([visual_keys, keys], 2), torch.cat([visual_values, values], 2)
        return scaled_dot_product(queries, *both, bias, dropout)
    queries = queries * (1 / math.sqrt(d))
    own = torch.matmul(queries, keys.transpose(-1, -2))
    if bias is not None:
        own += bias
    seen = torch.matmul(side_by_side(queries, n), visual_keys.transpose(-1, -2))
    if image_bias is not None:
        seen += image_bias
    scores = torch.cat([one_by_one(seen, queries.shape[0]), own], -1)
    probabilities = scores.softmax(-1)
    if dropout:
        probabilities = F.dropout(probabilities, dropout)
    of_image, of_text = probabilities.split([cells, keys.shape[2]], -1)
    looked = torch.matmul(side_by_side(of_image, n), visual_values)
    return one_by_one(looked, queries.shape[0]) + torch.matmul(of_text, values)


def side_by_side(rows: Tensor, n: int) -> Tensor:
    """``[n * c, heads, q, w]`` to ``[n, heads, c * q, w]``."""
    if rows.shape[0] == n:
        return rows
    _, heads, q, width = rows.shape
    return rows.view(n, -1, heads, q, width).transpose(1, 2).reshape(n, heads, -1, width)


def one_by_one(rows: Tensor, count: int) -> Tensor:
    """:func:`side_by_side` undone: ``[n, heads, c * q, w]`` to ``[count, heads, q, w]``, ``count`` being n * c."""
    if rows.shape[0] == count:
        return rows
    n, heads, length, width = rows.shape
    c = count // n
    return rows.view(n, heads, c, length // c, width).transpose(1, 2).reshape(count, heads, -1, width)


class Projection(nn.Linear):
    """Queries, keys and values from one matrix, so that a stream which needs all three pays for one product; a
    stream that needs only some of them uses a slice of the matrix."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__(hidden_size, 3 * hidden_size)

    def forward(self, states: Tensor, first: int = 0, last: int = 3) -> Tensor:
        """Project ``[..., h]`` to the parts from ``first`` to before ``last`` of (queries, keys, values):
        ``[..., (last - first) * h]``."""
        if (first, last) == (0, 3):
            return super().forward(states)
        rows = slice(first * self.in_features, last * self.in_features)
        return F.linear(states, self.weight[rows], self.bias[rows])


class MultiHead(nn.Module):
    """The matrices of multi-head attention: states to queries, keys and values of every head, and back."""

    def __init__(self, hidden_size: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.projection = Projection(hidden_size)
        self.output = nn.Linear(hidden_size, hidden_size)

    @property
    def dropping(self) -> float:
        """The chance with which an attention probability is dropped now."""
        return self.dropout if self.training else 0.0

    def joined(self, mixed: Tensor) -> Tensor:
        """output(mixed), ``[n, length, h]``, of the heads' mixed values ``[n, heads, length, d]``, some of it dropped."""
        return F.dropout(self.output(mixed.transpose(1, 2).flatten(2)), self.dropping, self.training)

    def project(self, states: Tensor, first: int = 0, last: int = 3) -> tuple[Tensor, ...]:
        """Project ``[n, length, h]`` to some of (queries, keys, values): a tuple of ``[n, heads, length, d]``."""
        n, length, h = states.shape
        projected = self.projection(states, first, last)
        return (
            projected.view(n, length, last - first, self.heads, h // self.heads)
            .permute(2, 0, 3, 1, 4)
            .unbind()
        )


class Attention(MultiHead):
    """Multi-head attention, output projection, dropout, residual and LayerNorm (post-norm)."""

    fused = False  # see scaled_dot_product

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config.hidden_size, config.attention_heads, config.dropout)
        self.norm = nn.LayerNorm(config.hidden_size, eps=LAYER_NORM_EPSILON)

    def queries(self, states: Tensor) -> Tensor:
        return self.project(states, 0, 1)[0]

    def keys_values(self, states: Tensor) -> tuple[Tensor, Tensor]:
        keys, values = self.project(states, 1, 3)
        return keys, values

    def attend(
        self, states: Tensor, queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None = None
    ) -> Tensor:
        """Return LayerNorm(states + output(attention)), ``[n, length, h]``."""
        return self.added(states, scaled_dot_product(queries, keys, values, bias, self.dropping, self.fused))

    def added(self, states: Tensor, mixed: Tensor) -> Tensor:
        """LayerNorm(states + output(mixed)), ``[n, length, h]``, of mixed values ``[n, heads, length, d]``."""
        return self.norm(states + self.joined(mixed))

    def beside(
        self,
        states: Tensor,
        image: tuple[Tensor, Tensor],
        bias: Tensor | None = None,
        cache: KeyValueCache | None = None,
        rows: Tensor | None = None,
    ) -> Tensor:
        """Attention of texts ``[n * c, t, h]`` over themselves, cached positions before them included, and over their image,
        whose keys and values are given (:func:`attention_beside`). With ``rows`` ``[n * c, p, h]`` only at these of them."""
        if rows is None:
            rows = states
            queries, keys, values = self.project(states)
        else:
            queries, (keys, values) = self.queries(rows), self.keys_values(states)
        if cache is not None:
            keys, values = cache.append(keys, values)
        return self.added(rows, attention_beside(queries, image, keys, values, bias, self.dropping))

    def forward(
        self, states: Tensor, bias: Tensor | None = None, cache: KeyValueCache | None = None
    ) -> Tensor:
        """Self-attention over ``[n, length, h]``, and over the cached positions before them if there is a cache."""
        queries, keys, values = self.project(states)
        if cache is not None:
            keys, values = cache.append(keys, values)
        return self.attend(states, queries, keys, values, bias)


def attention_scores(attention: Attention, states: Tensor, keys: Tensor) -> Tensor:
    """Return the scores before the softmax of ``states`` ``[n, t, h]`` and ``keys`` ``[n, heads, k, d]``: float32
    ``[n, heads, t, k]``."""
    return scores_of(attention.queries(states), keys)


def scores_of(queries: Tensor, keys: Tensor) -> Tensor:
    """Return the scores before the softmax of queries ``[n, heads, t, d]`` and keys ``[n, heads, k, d]``: float32
    ``[n, heads, t, k]``."""
    with torch.autocast(queries.device.type, enabled=False):  # which would round both again
        return queries.float() @ keys.float().transpose(-1, -2) / math.sqrt(queries.shape[-1])


def attention_weights(attention: Attention, states: Tensor, keys: Tensor) -> Tensor:
    """Return what ``states`` ``[n, t, h]`` attend to among ``keys`` ``[n, heads, k, d]``, mean over heads: float32 ``[n, t, k]``,
    every row of which sums to 1."""
    return attention_scores(attention, states, keys).softmax(-1).mean(1)


def share_of_cells(seen: Tensor, own: Tensor) -> Tensor:
    """Of scores of cells ``[n, heads, t, v]`` and words ``[n, heads, t, k]`` what the attention, mean over heads, gives to the
    cells, in shares of all it gives to cells: float32 ``[n, t, v]``."""
    shares = torch.cat([seen, own], -1).log_softmax(-1)[..., : seen.shape[-1]]
    return shares.logsumexp(1).softmax(-1)  # not 0 / 0 where the words take all
