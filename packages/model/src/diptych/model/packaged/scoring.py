"""Scoring: how well pictures and captions go together, and the choice among samples."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

from diptych.eval.scorers.clip_score import scores_of_cosines
from diptych.model.decoding.caption import Captions
from diptych.model.decoding.clip_rerank import (
    embed_captions,
    embed_pictures,
    rerank_captions,
    rerank_paintings,
)
from diptych.model.decoding.paint import Paintings
from diptych.model.decoding.rerank import Reranked
from diptych.model.errors import UserError
from diptych.model.packaged.arguments import pairs
from diptych.model.packaged.directory import read_scorer
from diptych.model.packaged.machine import Machine
from diptych.model.packaged.pictures import Pictures, read_batches

if TYPE_CHECKING:
    from diptych.eval.scorers.clip import Clip


def chooses(rerank: bool | None, samples: int | None, made: int) -> bool:
    """Whether the scorer chooses among the samples that are ``made``; unasked, where they are several by the package's own
    options."""
    return samples is None and made > 1 if rerank is None else rerank


class ScoringPart:
    """The package's scorer, loaded at its first use.

    One thread at a time loads and uses it, since open_clip's attention is steered by a setting of the whole
    process.
    """

    def __init__(self, folder: Path | None, machine: Machine) -> None:
        """``folder``: of the scorer; None: the package has none."""
        self.folder, self.machine = folder, machine
        self._loaded: Clip | None = None
        self._lock = threading.RLock()

    @property
    def exists(self) -> bool:
        """Whether the package has a scorer."""
        return self.folder is not None

    def score(self, pictures: Pictures, captions: str | Sequence[str], batch_size: int) -> Tensor:
        """See :meth:`diptych.model.Diptych.score`."""
        items, texts = pairs(pictures, captions)
        scores = [torch.zeros(0)]
        for part, images in read_batches(items, batch_size):
            with self._scorer() as scorer:
                seen = embed_pictures(scorer, fitted(images, scorer))
                cosines = (seen * embed_captions(scorer, texts[part])).sum(-1)
                scores.append(scores_of_cosines(cosines).cpu())
        return torch.cat(scores)

    def best_captions(
        self, captions: Captions, count: int, texts: Sequence[str], images: Sequence[Image.Image]
    ) -> Reranked[Captions]:
        """The caption of each image that the scorer likes best
        (:func:`diptych.model.decoding.clip_rerank.rerank_captions`).

        Raises:
            UserError: the package has no scorer.
        """
        with self._scorer() as scorer:
            return rerank_captions(captions, count, texts, fitted(images, scorer), scorer)

    def best_paintings(
        self, paintings: Paintings, count: int, texts: Sequence[str], draw: Callable[[Tensor], Tensor]
    ) -> Reranked[Paintings]:
        """The painting of each caption that the scorer likes best
        (:func:`diptych.model.decoding.clip_rerank.rerank_paintings`).

        Raises:
            UserError: the package has no scorer.
        """
        with self._scorer() as scorer:
            return rerank_paintings(paintings, count, texts, draw, scorer)

    @contextmanager
    def _scorer(self) -> Iterator[Clip]:
        """The scorer, for one thread at a time."""
        with self._lock:
            if self._loaded is None:
                if self.folder is None:
                    raise UserError("this package has no scorer, so that it cannot rerank or score")
                self._loaded = read_scorer(self.folder, str(self.machine.device))
            with self.machine.inference():
                yield self._loaded


def fitted(images: Sequence[Image.Image], scorer: Clip) -> Tensor:
    """RGB images as the scorer wants them, uint8 ``[n, 3, S, S]``."""
    return torch.stack([scorer.fitted(image) for image in images])
