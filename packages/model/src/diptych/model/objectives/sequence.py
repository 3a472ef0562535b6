"""Losses of whole pictures, for painting at sequence level (UMT 4.2.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from diptych.eval.scorers.clip_score import PROMPT
from diptych.model.decoding.paint import PaintText, mask_predict_counts
from diptych.model.devices import Places, Texts
from diptych.model.networks.unified import UnifiedTransformer
from diptych.model.pixels import to_unit_range
from diptych.model.tokenizer import CaptionTokenizer

# Where painting takes its soft samples: :func:`relaxed_painting`.
GumbelSoftmax = Literal["each_step", "end"]


class Scorer(Protocol):
    """A CLIP (``diptych.eval.scorers.clip.Clip``)."""

    def encode_images(self, images: Tensor) -> Tensor:
        """Float ``[n, 3, H, W]`` in 0..1 to unit vectors ``[n, E]``, differentiable."""

    def encode_texts(self, texts: list[str]) -> Tensor:
        """n strings to unit vectors ``[n, E]``."""


def relaxed_painting(
    model: UnifiedTransformer,
    tokenizer: CaptionTokenizer,
    codebook: Tensor,
    ids: Tensor | Texts,
    steps: int,
    guidance: float,
    temperature: float,
    straight_through: bool = False,
    sample_temperature: float = 1.0,
    recompute: bool = True,
    gumbel_softmax: GumbelSoftmax = "each_step",
    fresh_confidence: bool = False,
) -> Tensor:
    """Paint by mask-predict-k with Gumbel-softmax codes (UMT 4.2.2): codebook vectors ``[n, cells, D]``.

    A cell's vector is the expected codebook vector under its soft sample
    softmax((logits / sample_temperature + Gumbel noise) / temperature), which carries the gradient, or with
    ``straight_through`` that of the sample's largest entry, a draw from softmax(logits / sample_temperature), with the
    soft sample's gradient. The logits are those of the step that last predicted the cell. The paper does not say where
    samples are taken; ``gumbel_softmax`` does:

    - ``each_step``: each step samples its masked cells, and the next steps see the codes that it drew.
    - ``end``: each step writes the likeliest codes, as greedy decoding does, and the finished painting is sampled once:
      the released code's way.

    Confidence is as in :func:`diptych.model.decoding.paint.mask_predict`, there ``decisions.fresh_confidence``. No gradient
    flows through the codes that one step shows the next.

    Memory: with ``recompute`` a step keeps its inputs and is run again for its gradient, so that one step's graph is in
    memory instead of those of all k. Uses torch's global generator.
    """
    text = PaintText(model, tokenizer, ids, guidance)
    n, cells, device = len(text.text), model.config.cells, codebook.device
    codes = torch.zeros(n, cells, dtype=torch.int64, device=device)
    confidences = torch.zeros(n, cells, device=device)
    sampling = gumbel_softmax == "each_step"
    # of each cell what its last step gave: a vector, or logits that are sampled in the end
    width = codebook.shape[1] if sampling else model.config.codebook_size
    written = torch.zeros(n, cells, width, device=device, dtype=codebook.dtype if sampling else None)
    everywhere = torch.arange(cells, device=device).expand(n, cells)

    def sample(logits: Tensor) -> tuple[Tensor, Tensor]:
        """Codebook vectors [n, p, D] with gradient and drawn codes [n, p] of logits [n, p, K]."""
        gumbel = -torch.empty_like(logits).exponential_().clamp(min=1e-20).log()
        relaxed = ((logits / sample_temperature + gumbel) / temperature).softmax(-1)
        drawn = relaxed.detach().argmax(-1)
        expected = relaxed.to(codebook.dtype) @ codebook
        if straight_through:
            expected = codebook[drawn] + expected - expected.detach()
        return expected, drawn

    def predict(
        features: Tensor, masked: Places, positions: Tensor, rank_all: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What is written at the positions, [n, p, D] or [n, p, K], with gradient; without, the codes [n, p] and the
        log-probabilities [n, p] of these codes, or [n, cells] of the likeliest codes of all cells."""
        logits = text.logits(features, masked, everywhere if rank_all else positions)
        distributions = logits.detach().log_softmax(-1)
        if rank_all:
            logits = logits.gather(1, positions[..., None].expand(-1, -1, logits.shape[-1]))
        if sampling:
            vectors, chosen = sample(logits)
        else:
            vectors, chosen = logits, logits.detach().argmax(-1)
        if rank_all:
            return vectors, chosen, distributions.amax(-1)
        return vectors, chosen, distributions.gather(-1, chosen[..., None])[..., 0]

    for step, count in enumerate(mask_predict_counts(cells, steps)):
        if step == 0:
            # all cells hold the mask feature, in every image: encode one image, unless dropout makes them differ
            positions = everywhere
            differing = n if model.training and model.config.dropout else 1
            features = torch.zeros(differing, cells, codebook.shape[1], device=device, dtype=codebook.dtype)
            masked = Places.all(differing, cells, device)
        else:
            masked, positions = Places.split(confidences.argsort(dim=1, stable=True), count)
            features = codebook[codes]
        rank_all = fresh_confidence and step < steps - 1  # after the last step nobody ranks
        if recompute:
            part, chosen, chances = checkpoint(
                predict, features, masked, positions, rank_all, use_reentrant=False
            )
        else:
            part, chosen, chances = predict(features, masked, positions, rank_all)
        written = written.scatter(1, positions[..., None].expand_as(part), part.to(written.dtype))
        codes = codes.scatter(1, positions, chosen)
        confidences = chances if rank_all else confidences.scatter(1, positions, chances)
    return written if sampling else sample(written)[0].to(codebook.dtype)


def clip_loss(vectors: Tensor, captions: Sequence[str], generator: nn.Module, scorer: Scorer) -> Tensor:
    """CLIP-based image loss (UMT equation 4): the mean of -max(cos(image, "A photo depicts " + caption), 0).

    UMT's text has no prompt: it is the released code's, and CLIPScore's (Hessel et al. 2021). The released code's loss is
    250 times this one, that is 100 times CLIPScore.

    Args:
        vectors: ``[n, cells, D]`` from :func:`relaxed_painting`.
        generator: vectors to images ``[n, 3, S, S]`` in -1..1. It and the scorer should be frozen, in eval mode.
    """
    images = to_unit_range(generator(vectors))
    with torch.no_grad():
        texts = scorer.encode_texts([PROMPT + caption for caption in captions])
    cosines = (scorer.encode_images(images) * texts).sum(-1)
    return -cosines.clamp(min=0).mean()


def feature_loss(vectors: Tensor, target: Tensor, codebook: Tensor) -> Tensor:
    """Mean squared error of painted vectors to the real picture's, both ``[n, cells, D]``: what UMT 5.3 puts in the place
    of the CLIP-based loss ("w/o CLIP-based loss").

    In units of the codebook's variance, so that its size does not depend on the detector's.

    Args:
        target: the picture's grid features (UMT: "grid feature similarity"), or the codebook vectors of its codes.
    """
    deviations = codebook - codebook.mean(0)
    return F.mse_loss(vectors.float(), target.float()) / deviations.square().mean()
