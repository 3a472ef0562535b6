"""A transformer that only decodes: the same function with fewer and faster matrix products.

What training cannot have:

* the code head's two linear layers, between which nothing happens, multiplied into one;
* on a CPU the fused attention kernel, which with gradients is slower than its parts;
* on a CPU a second copy of the weights that text reads, rearranged for products of few rows. Those are bound by reading
  the weights: with 4 rows the word head runs 2 to 4 times as fast, with 40 rows a layer 1.3 times; from some hundred rows
  on the ordinary product is the faster one, so both are kept;
* for bfloat16, matrices that are rounded once. Autocast keeps those it has rounded only where they are trained, and
  otherwise rounds all of them again for every pass: writing one caption took longer in bfloat16 than in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from diptych.model.networks.architectures import build_transformer
from diptych.model.networks.attention import Attention, Projection
from diptych.model.networks.unified import UnifiedTransformer

FEW_ROWS = 80


def has_few_rows(states: Tensor, weight: Tensor) -> bool:
    """Whether the second copy is to be used: not under autocast to another dtype than that of ``weight``."""
    wanted = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else states.dtype
    return weight.dtype == wanted and states.numel() <= FEW_ROWS * states.shape[-1]


def has_layout(dtype: torch.dtype) -> bool:
    """Whether oneDNN rearranges weights of this dtype on this processor."""
    if not torch.backends.mkldnn.is_available():
        return False
    bfloat16 = dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return dtype == torch.float32 or bfloat16


def linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    """A linear layer of these, without a copy."""
    with torch.device("meta"):
        layer = nn.Linear(weight.shape[1], weight.shape[0])
    freeze(layer, weight, bias)
    return layer


def freeze(layer: nn.Linear, weight: Tensor, bias: Tensor) -> None:
    """Give the layer these, shared and without gradients."""
    layer.weight, layer.bias = (nn.Parameter(part, requires_grad=False) for part in (weight, bias))


class FewRowsLinear(nn.Linear):
    """A linear layer with a second copy of its weight, in oneDNN's layout, for products of at most 80 rows."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        with torch.device("meta"):
            super().__init__(weight.shape[1], weight.shape[0])
        freeze(self, weight, bias)
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())

    def forward(self, states: Tensor) -> Tensor:
        if not has_few_rows(states, self.weight):
            return super().forward(states)
        states = states.to(self.weight.dtype)
        return torch.ops.mkldnn._linear_pointwise(states, self.packed, self.bias, "none", [], "")


class FewRowsProjection(Projection):
    """:class:`diptych.model.networks.attention.Projection` in the same way: a copy of the queries' rows of the matrix and one
    of the others."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        h = weight.shape[1]
        with torch.device("meta"):
            super().__init__(h)
        freeze(self, weight, bias)
        self.parts = [FewRowsLinear(weight[:h], bias[:h]), FewRowsLinear(weight[h:], bias[h:])]

    def forward(self, states: Tensor, first: int = 0, last: int = 3) -> Tensor:
        if not has_few_rows(states, self.weight):
            return super().forward(states, first, last)
        queries, keys_values = self.parts
        if (first, last) == (0, 1):
            return queries(states)
        if (first, last) == (1, 3):
            return keys_values(states)
        return torch.cat([queries(states), keys_values(states)], -1)


def inference_transformer(model: UnifiedTransformer, dtype: torch.dtype | None = None) -> UnifiedTransformer:
    """Return a transformer for decoding only, made from a trained one, whose later changes it may or may not see.

    Logits differ from those of ``model`` by rounding. Weights are shared with ``model``; the additional copies are of
    matrices that text reads. It stays on the device of ``model``.

    dtype: of matrix products; None is that of ``model``. With another it has copies of all matrices, and is for use under
    autocast to that dtype only (:func:`diptych.model.precision.autocast_context`).
    """
    with torch.device("meta"):
        frozen = build_transformer(model.config)
    frozen.load_state_dict(model.state_dict(), assign=True)
    frozen.eval().requires_grad_(False)
    head = frozen.code_head
    if isinstance(head.features, nn.Linear):
        weight, bias = head.codes.weight, head.codes.bias
        codes = linear(weight @ head.features.weight, weight @ head.features.bias + bias)
        head.features, head.codes = nn.Identity(), codes
    for module in frozen.modules():
        if isinstance(module, Attention):
            module.fused = True
    words = frozen.text_embedding.words.weight
    dtype = dtype or words.dtype
    frozen.word_projection = linear(words, frozen.word_bias)
    for module in frozen.modules():
        if isinstance(module, nn.Linear):
            for part in (module.weight, module.bias):
                part.data = part.data.to(dtype)
    if words.device.type == "cpu" and has_layout(dtype):
        projection = frozen.word_projection
        frozen.word_projection = FewRowsLinear(projection.weight, projection.bias)
        repack(frozen.word_transform)
        for part in frozen.parts_that_text_reads():
            repack(part)
    return frozen


def repack(module: nn.Module) -> None:
    """Replace the linear layers inside ``module``."""
    for name, child in list(module.named_children()):
        if isinstance(child, Projection):
            setattr(module, name, FewRowsProjection(child.weight, child.bias))
        elif isinstance(child, nn.Linear):
            setattr(module, name, FewRowsLinear(child.weight, child.bias))
        else:
            repack(child)
