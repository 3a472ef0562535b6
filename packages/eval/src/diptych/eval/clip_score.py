"""CLIPScore: the papers' prompt and scale (UMT 5.1), for training and for evaluation."""

from __future__ import annotations

from torch import Tensor

PROMPT = "A photo depicts "
"""What UMT (section 5.1) puts before a caption when CLIP compares it with a picture."""


def clip_scores(image_embeddings: Tensor, text_embeddings: Tensor) -> Tensor:
    """CLIPScore of pairs: 2.5 max(cos, 0), float32 [n] in 0..2.5; tables show it times 100.

    Both inputs are unit vectors [n, E]; the texts begin with PROMPT.
    """
    return 2.5 * (image_embeddings.float() * text_embeddings.float()).sum(-1).clamp(min=0)
