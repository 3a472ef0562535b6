"""Paintings: the codes of an image from a caption by mask-predict-k (X-LXMERT 5.2; UMT 4.2.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diptych.model.decoding.noise import sample_from, uniform_noise
from diptych.model.tokenizer import CaptionTokenizer
from diptych.model.transformer import UnifiedTransformer


@dataclass(frozen=True)
class Paintings:
    """Painted codes.

    Attributes:
        codes: int64 ``[n, cells]``, row-major from the top left.
        steps: int64 ``[n, k, cells]``, the codes after each step, if asked for.
    """

    codes: Tensor
    steps: Tensor | None


def mask_predict_counts(cells: int, steps: int) -> list[int]:
    """Return how many cells each step predicts: cells * (k - i) / k for i = 0 .. k - 1 (64, 48, 32, 16)."""
    return [cells * (steps - step) // steps for step in range(steps)]


class PaintText:
    """The encoded text of a batch of paintings: it and, for guidance, "no text"; used by all steps.

    ``ids`` int64 ``[n, t]`` are encoded captions; with ``guidance`` 1 only they count, otherwise logits are
    unconditional + guidance * (conditional - unconditional) (classifier-free guidance).
    """

    def __init__(
        self, model: UnifiedTransformer, tokenizer: CaptionTokenizer, ids: Tensor, guidance: float = 1.0
    ) -> None:
        visible = ids != tokenizer.pad
        ids = ids[:, : int(visible.sum(1).max())]
        self.model = model
        self.guidance = guidance
        self.text, self.bias = model.encode_text(ids, ids != tokenizer.pad)
        if guidance != 1:
            no_text = tokenizer.no_text(1).to(ids.device)
            text, self.empty_bias = model.encode_text(no_text, torch.ones_like(no_text, dtype=torch.bool))
            self.empty_text = text.expand(len(ids), -1, -1)

    def logits(self, features: Tensor, masked: Tensor, positions: Tensor) -> Tensor:
        """Return guided logits float32 ``[n, p, K]`` at cells ``positions`` (int64 ``[n, p]``) of features
        ``[n, cells, D]``, hidden where ``masked`` (bool ``[n, cells]``)."""
        visual = self.model.encode_visual(features, masked)
        visual = visual.expand(len(self.text), -1, -1)
        logits = self.model.paint_logits(self.text, self.bias, visual, positions).float()
        if self.guidance != 1:
            empty = self.model.paint_logits(self.empty_text, self.empty_bias, visual, positions).float()
            logits = empty + self.guidance * (logits - empty)
        return logits


@torch.no_grad()
def paint_codes(
    model: UnifiedTransformer,
    tokenizer: CaptionTokenizer,
    codebook: Tensor,
    ids: Tensor,
    steps: int = 4,
    guidance: float = 1.0,
    temperature: float = 0.0,
    confidence_noise: float = 0.0,
    seeds: Sequence[int] | None = None,
    keep_steps: bool = False,
) -> Paintings:
    """Paint one image per caption.

    Every cell starts masked. Each step predicts its masked cells, then masks again the least confident ones, as
    many as the next step predicts. The confidence of a cell is the probability that its code had in the (guided,
    temperature 1) distribution it was taken from: that of the step that wrote it, as in Mask-Predict (Ghazvininejad
    et al. 2019). The reference implementation instead compares fresh probabilities of the likeliest code of every
    cell, which is not the probability of a code that is kept.

    Args:
        codebook: float ``[K, D]``, the centroids that written cells show.
        ids: int64 ``[n, t]`` from ``tokenizer.encode``.
        steps: k of mask-predict-k.
        guidance: scale of classifier-free guidance; 1 is none.
        temperature: 0 takes the likeliest code, above 0 samples from softmax(logits / temperature).
        confidence_noise: scale of Gumbel noise added to log-confidences, falling linearly to 0 at the last step.
        seeds: one whole number >= 0 per caption, needed for either noise; the same seed gives a caption the same
            painting in every batch.
        keep_steps: also return the codes after each step.

    The model should be in eval mode.
    """
    noisy = temperature > 0 or confidence_noise > 0
    if noisy and (seeds is None or len(seeds) != len(ids)):
        raise ValueError("sampling needs one seed per caption")
    n, cells, device = len(ids), model.config.cells, ids.device
    text = PaintText(model, tokenizer, ids, guidance)
    noise = uniform_noise(seeds or [], 2, steps, cells, device=device) if noisy else None
    codes = torch.zeros(n, cells, dtype=torch.int64, device=device)
    confidences = torch.zeros(n, cells, device=device)
    history = []
    counts = mask_predict_counts(cells, steps)
    for step, count in enumerate(counts):
        if step == 0:  # all cells hold the mask feature, in every image: encode one image
            positions = torch.arange(cells, device=device).expand(n, cells)
            features = torch.zeros(1, cells, codebook.shape[1], device=device)
            masked = torch.ones(1, cells, dtype=torch.bool, device=device)
        else:
            ranking = confidences
            if noise is not None and confidence_noise > 0:
                gumbel = -(-noise[:, 1, step].clamp(min=1e-12).log()).log()
                ranking = confidences + confidence_noise * (1 - step / steps) * gumbel
            positions = ranking.argsort(dim=1, stable=True)[:, :count].sort(1).values
            features = codebook[codes]
            masked = torch.zeros_like(codes, dtype=torch.bool).scatter_(1, positions, True)
        logits = text.logits(features, masked, positions)
        if noise is not None and temperature > 0:
            choices = (logits / temperature).log_softmax(-1)
            chosen = sample_from(choices, noise[:, 0, step].gather(1, positions))
        else:
            chosen = logits.argmax(-1)
        codes.scatter_(1, positions, chosen)
        confidences.scatter_(1, positions, logits.log_softmax(-1).gather(-1, chosen[..., None])[..., 0])
        history.append(codes.clone())
    return Paintings(codes, torch.stack(history, 1) if keep_steps else None)
