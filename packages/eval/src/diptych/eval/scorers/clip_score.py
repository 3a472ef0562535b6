"""CLIPScore (Hessel et al. 2021; UMT 5.2), its prompt and scale, for training and for evaluation."""

from __future__ import annotations

from torch import Tensor

PROMPT = "A photo depicts "
"""What comes before a caption when CLIP compares it with a picture: CLIPScore's prompt, and that of UMT's released code.
UMT's text has none."""


def clip_scores(image_embeddings: Tensor, text_embeddings: Tensor) -> Tensor:
    """CLIPScore of pairs: 2.5 max(cos, 0), float32 [n] in 0..2.5; tables show it times 100.

    Both inputs are unit vectors [n, E]; the texts begin with PROMPT.
    """
    return scores_of_cosines((image_embeddings.float() * text_embeddings.float()).sum(-1))


def scores_of_cosines(cosines: Tensor) -> Tensor:
    """CLIPScore of cosines: 2.5 max(cos, 0), float32 of the same shape."""
    return 2.5 * cosines.float().clamp(min=0)
