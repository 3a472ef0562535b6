"""Losses of question answering (X-LXMERT C.5; LXMERT's fine-tuning)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from diptych.model.decoding.answer import answer_logits
from diptych.model.devices import Texts
from diptych.model.networks.unified import UnifiedTransformer
from diptych.model.tokenizer import CaptionTokenizer


def answer_loss(
    model: UnifiedTransformer,
    tokenizer: CaptionTokenizer,
    images: list[Tensor],
    ids: Tensor | Texts,
    shares: Tensor,
) -> Tensor:
    """Cross-entropy of the answers that people gave: in the mean what a label drawn among them gives, as pretraining draws
    one (the released code), without the noise of drawing.

    Args:
        images, ids: as of :func:`answer_logits`.
        shares: float ``[n * c, A]``, each answer's share of a question's answers. Rows add up to 1; those of zeros, which
            stand where an image has no question, do not count.
    """
    logits = answer_logits(model, tokenizer, images, ids).float()
    total = F.cross_entropy(logits, shares, reduction="sum")
    return total / shares.any(1).sum().clamp(min=1)


def answer_score_loss(logits: Tensor, scores: Tensor) -> Tensor:
    """LXMERT's loss in fine-tuning: binary cross-entropy of each answer's score, summed over the answer table.

    Args:
        logits, scores: float ``[m, A]``; scores in [0, 1], those of VQA's accuracy.
    """
    return F.binary_cross_entropy_with_logits(logits.float(), scores) * logits.shape[-1]
