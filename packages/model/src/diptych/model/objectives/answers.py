"""Losses of question answering (X-LXMERT C.3; LXMERT's fine-tuning)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from diptych.model.decoding.answer import question_states
from diptych.model.decoding.caption import encode_images
from diptych.model.networks.two_streams import UnifiedTransformer
from diptych.model.tokenizer import CaptionTokenizer


def answer_logits(
    model: UnifiedTransformer, tokenizer: CaptionTokenizer, features: Tensor, ids: Tensor
) -> Tensor:
    """Logits ``[n * c, A]`` of the answers to questions ids int64 ``[n, c, t]``, c about each picture of features float
    ``[n, cells, D]``."""
    return model.answer_logits(question_states(model, tokenizer, encode_images(model, features), ids))


def answer_loss(
    model: UnifiedTransformer, tokenizer: CaptionTokenizer, features: Tensor, ids: Tensor, shares: Tensor
) -> Tensor:
    """Cross-entropy of the answers that people gave: in the mean what a label drawn among them gives, as pretraining draws
    one (X-LXMERT C.3), without the noise of drawing.

    Args:
        features: float ``[n, cells, D]`` of :func:`diptych.model.image_features.caption_input`.
        ids: int64 ``[n, c, t]``, c questions about each picture.
        shares: float ``[n * c, A]``, each answer's share of a question's answers. Rows add up to 1.
    """
    return F.cross_entropy(answer_logits(model, tokenizer, features, ids).float(), shares)


def answer_score_loss(logits: Tensor, scores: Tensor) -> Tensor:
    """LXMERT's loss in fine-tuning: binary cross-entropy of each answer's score, summed over the answer table.

    Args:
        logits, scores: float ``[m, A]``; scores in [0, 1], those of VQA's accuracy.
    """
    return F.binary_cross_entropy_with_logits(logits.float(), scores) * logits.shape[-1]
