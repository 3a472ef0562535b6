"""Image-text matching of words with regions and of sentences with pictures (AttnGAN's DAMSM, Xu et al. 2018, equations 7 to 14)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from diptych.model.networks.matching import EncodedTexts

# AttnGAN's gammas: how sharply a word looks at regions, how much the words that fit best count, how sharply pairs are told apart
WORD_SHARPNESS, RELEVANCE_SHARPNESS, MATCH_SHARPNESS = 5.0, 5.0, 10.0


def matching_losses(texts: EncodedTexts, regions: Tensor, pictures: Tensor) -> dict[str, Tensor]:
    """Cross-entropy of which text of the batch belongs to which picture, in both directions: ``words``, by words and regions, and
    ``sentence``, by sentences and whole pictures.

    Args:
        texts: n of them, the i-th about the i-th picture.
        regions: ``[n, r, D]``; pictures: ``[n, D]``.
    """
    with torch.autocast(pictures.device.type, enabled=False):  # scores are multiplied by 5 and 10
        by_words = MATCH_SHARPNESS * word_scores(texts, regions)
        sentences = texts.sentence.float()[:, None]
        by_sentence = MATCH_SHARPNESS * F.cosine_similarity(sentences, pictures.float()[None], dim=-1)
    own = torch.arange(len(pictures), device=pictures.device)
    return {
        name: F.cross_entropy(scores, own) + F.cross_entropy(scores.mT, own)
        for name, scores in (("words", by_words), ("sentence", by_sentence))
    }


def word_scores(texts: EncodedTexts, regions: Tensor) -> Tensor:
    """How well each of n texts fits each of m pictures, by what its words find there: float32 ``[n, m]`` (equations 7 to 10)."""
    words, visible = texts.words.float(), texts.visible
    regions = regions.float()
    similarity = torch.einsum("ntd,mrd->nmtr", words, regions)
    hidden = ~visible[:, None, :, None]
    similarity = similarity.masked_fill(hidden, float("-inf")).softmax(2)  # over the words of the text (8)
    looks = (WORD_SHARPNESS * similarity).softmax(-1)  # over regions (9)
    found = torch.einsum("nmtr,mrd->nmtd", looks, regions)
    relevance = F.cosine_similarity(found, words[:, None], dim=-1)  # [n, m, t]
    relevance = (RELEVANCE_SHARPNESS * relevance).masked_fill(~visible[:, None], float("-inf"))
    return relevance.logsumexp(-1) / RELEVANCE_SHARPNESS  # (10)
