"""The best of several captions or paintings by the cosine that a CLIP finds between caption and picture.

Apart from :mod:`diptych.model.decoding.rerank`, which takes any scorer: the rest of decoding needs no other
part of Diptych, this needs diptych-eval.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from diptych.eval.scorers.clip_score import PROMPT
from diptych.model.decoding.caption import Captions
from diptych.model.decoding.paint import Paintings
from diptych.model.decoding.rerank import Reranked, rerank
from diptych.model.pixels import to_unit_range

if TYPE_CHECKING:
    from diptych.eval.scorers.clip import Clip

DRAWN_AT_ONCE = 128


def embed_captions(clip: Clip, captions: Sequence[str]) -> Tensor:
    """Unit vectors float32 ``[n, E]`` of n captions, each after the released code's prompt, CLIPScore's."""
    return clip.encode_texts([PROMPT + caption for caption in captions])


def embed_pictures(clip: Clip, pictures: Tensor) -> Tensor:
    """Unit vectors float32 ``[n, E]`` of pictures uint8 ``[n, 3, H, W]``, best of ``clip.image_size`` pixels
    a side."""
    return clip.encode_images(pictures.to(clip.mean.device).float() / 255)


def rerank_captions(
    captions: Captions, count: int, texts: Sequence[str], pictures: Tensor, clip: Clip
) -> Reranked[Captions]:
    """Pick the caption of each picture that the CLIP likes best.

    Args:
        captions: of n pictures, ``count`` each, side by side; ``texts`` has their words, n * ``count``.
        pictures: uint8 ``[n, 3, H, W]`` (:func:`embed_pictures`).
    """
    seen = embed_pictures(clip, pictures).repeat_interleave(count, 0)
    return rerank(captions, count, lambda _: (seen * embed_captions(clip, texts)).sum(-1))


def rerank_paintings(
    paintings: Paintings, count: int, texts: Sequence[str], draw: Callable[[Tensor], Tensor], clip: Clip
) -> Reranked[Paintings]:
    """Pick the painting of each caption that the CLIP likes best.

    Args:
        paintings: of n captions, ``count`` each, side by side; ``texts`` has the captions, n.
        draw: codes int64 ``[m, cells]`` to pixels float32 ``[m, 3, S, S]`` in -1..1.
    """
    asked = embed_captions(clip, texts).repeat_interleave(count, 0)

    def cosines(painted: Paintings) -> Tensor:
        parts = painted.codes.split(DRAWN_AT_ONCE)  # 64 samples of a batch would not fit a GPU
        seen = torch.cat([clip.encode_images(to_unit_range(draw(codes))) for codes in parts])
        return (seen * asked).sum(-1)

    return rerank(paintings, count, cosines)
