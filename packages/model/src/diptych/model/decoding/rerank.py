"""The best of several samples of each item, by any scorer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Generic, TypeVar

from torch import Tensor

from diptych.model.decoding.caption import Captions
from diptych.model.decoding.paint import Paintings
from diptych.model.errors import UserError

Samples = TypeVar("Samples", Captions, Paintings)


@dataclass(frozen=True)
class Reranked(Generic[Samples]):
    """What :func:`rerank` chose.

    Attributes:
        best: one sample of each item.
        chosen: int64 ``[n]``, which one.
        scores: float ``[n, samples]``, of all.
    """

    best: Samples
    chosen: Tensor
    scores: Tensor

    @property
    def best_scores(self) -> Tensor:
        """Float ``[n]``, of the chosen ones."""
        return self.scores.gather(1, self.chosen[:, None])[:, 0]


def rerank(samples: Samples, count: int, scorer: Callable[[Samples], Tensor]) -> Reranked[Samples]:
    """Pick the sample with the highest score of each item; of equal ones, the first.

    Args:
        samples: of n items, ``count`` rows each, side by side
            (:func:`diptych.model.decoding.decode.caption_images`,
            :func:`~diptych.model.decoding.decode.paint_captions`).
        scorer: gives all samples a score each, float ``[n * count]``, higher for better: for example the
            cosine that a CLIP finds between caption and image (:mod:`diptych.model.decoding.clip_rerank`).

    Raises:
        UserError: the scores are not one number per sample.
    """
    rows = len(next(iter(vars(samples).values())))
    scores = scorer(samples)
    if scores.shape != (rows,):
        raise UserError(f"the scorer has to give {rows} scores, one per sample, gave {list(scores.shape)}")
    if scores.isnan().any():
        raise UserError(
            f"the scorer gave no number for sample {int(scores.isnan().nonzero()[0])}; mend the scorer"
        )
    scores = scores.view(-1, count)
    chosen = scores.argsort(dim=1, descending=True, stable=True)[:, 0]
    picked = chosen + chosen.new_tensor(range(len(chosen))) * count
    parts = {field.name: getattr(samples, field.name) for field in fields(samples)}
    best = replace(samples, **{name: None if part is None else part[picked] for name, part in parts.items()})
    return Reranked(best, chosen, scores)
