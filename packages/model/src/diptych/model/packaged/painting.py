"""Painting: what a call may ask for, cells that are painted already, paintings and their steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypedDict

import torch
from PIL import Image
from torch import Tensor

from diptych.eval.scorers.clip_score import scores_of_cosines
from diptych.model.decoding.options import PaintOptions, with_changes
from diptych.model.decoding.paint import FixedCells, Paintings
from diptych.model.errors import UserError
from diptych.model.packaged.arguments import (
    cell_mask,
    code_rows,
    listed_captions,
    seed_list,
    whole_numbers,
)
from diptych.model.packaged.machine import Machine
from diptych.model.packaged.pictures import check_batch_size
from diptych.model.packaged.scoring import ScoringPart, chooses
from diptych.model.packaged.seeing import ImageTokenizer, drawn

SAMPLING_TEMPERATURE = 1.0  # of several paintings of a caption, where nobody asks for another


class PaintChanges(TypedDict, total=False):
    """Options of :class:`diptych.model.decoding.options.PaintOptions` that a call may change."""

    method: Literal["mask_predict", "rows", "random", "easiest", "gibbs"]
    steps: int
    schedule: Literal["linear", "cosine"]
    extra_steps: int
    sweeps: int
    cells_at_once: int
    guidance: float
    temperature: float
    top_k: int | None
    top_p: float
    confidence_noise: float


@dataclass(frozen=True)
class PaintingStep:
    """A painting after one step: the picture, and codes int64 ``[cells]``, -1 where a cell has none yet (such a
    cell is shown as the mean of the codebook)."""

    image: Image.Image
    codes: Tensor


@dataclass(frozen=True)
class Painting:
    """One painting of a caption.

    Attributes:
        caption: what was painted.
        image: RGB, ``image_size`` pixels a side.
        codes: int64 ``[cells]``, row-major from the top left.
        seed: of its caption; with the same options it gives the same painting.
        sample: its number among the paintings of the caption.
        steps: the painting after each step, the last included, if asked for.
        score: CLIPScore with the caption, from 0 to 2.5; only of paintings that were reranked.
    """

    caption: str
    image: Image.Image
    codes: Tensor
    seed: int
    sample: int
    steps: tuple[PaintingStep, ...] = ()
    score: float | None = None


class PaintDecoder(Protocol):
    """What paints captions; each family has its own. Called in
    :meth:`diptych.model.packaged.machine.Machine.inference`."""

    def paint(
        self,
        captions: list[str],
        options: PaintOptions,
        seeds: Sequence[int],
        given: FixedCells | None,
        keep_steps: bool,
    ) -> Paintings:
        """``options.samples`` paintings of each caption, side by side; one seed per caption.

        Raises:
            UserError: a caption has no known word, or an option does not fit.
        """

    def step_count(self, options: PaintOptions) -> int:
        """Steps that a painting by these options has, at most: of a part that is there already fewer are needed."""


class PaintingPart:
    """Paintings of captions, batch by batch."""

    def __init__(
        self,
        decoder: PaintDecoder,
        image_tokenizer: ImageTokenizer,
        options: PaintOptions,
        scoring: ScoringPart,
        machine: Machine,
    ) -> None:
        """``options``: of whoever gives none."""
        self.decoder, self.image_tokenizer, self.options = decoder, image_tokenizer, options
        self.scoring, self.machine = scoring, machine

    def paintings(
        self,
        captions: str | Sequence[str],
        samples: int | None,
        rerank: bool | None,
        seed: int | Sequence[int] | None,
        return_steps: bool,
        codes: Tensor | Sequence[int] | None,
        locked: Sequence[int] | Tensor | None,
        repaint: Sequence[int] | Tensor | None,
        batch_size: int,
        changes: PaintChanges,
    ) -> list[Painting]:
        """See :meth:`diptych.model.Diptych.paint`."""
        check_batch_size(batch_size)
        texts = listed_captions(captions)
        options = self.changed(samples, changes)
        rerank = chooses(rerank, samples, options.samples)
        seeds = seed_list(seed, len(texts))
        given = self._given_cells(codes, locked, repaint)
        found: list[Painting] = []
        step = max(1, batch_size // options.samples)
        for start in range(0, len(texts), step):
            part = slice(start, start + step)
            found += self._batch(texts[part], options, seeds[part], given, rerank, return_steps, batch_size)
        return found

    def changed(self, samples: int | None, changes: PaintChanges) -> PaintOptions:
        """The package's options with those of a call; several samples need chance, and are given it. Without chance the
        package's own number of samples is 1, unless the call asks for several.

        Raises:
            UserError: a change is no option, or not one of the method.
        """
        wanted = dict(changes)
        draws = wanted.get("method") == "gibbs" or {"top_k", "top_p"} & wanted.keys()
        if draws and "temperature" not in wanted and self.options.temperature == 0:
            wanted["temperature"] = SAMPLING_TEMPERATURE
        chance = with_changes(self.options, {**wanted, "samples": 1}).is_random
        if samples is not None:
            wanted["samples"] = samples
            if samples > 1 and not chance and "temperature" not in wanted:
                wanted["temperature"] = SAMPLING_TEMPERATURE
        elif not chance:
            wanted["samples"] = 1  # the package's several would all be the same
        return with_changes(self.options, wanted)

    def _given_cells(
        self,
        codes: Tensor | Sequence[int] | None,
        locked: Sequence[int] | Tensor | None,
        repaint: Sequence[int] | Tensor | None,
    ) -> FixedCells | None:
        """The cells that are there already, ``[1, cells]``; None: no painting was given."""
        if codes is None and locked is None and repaint is None:
            return None
        if codes is None or (locked is None) == (repaint is None):
            raise UserError(
                "locked cells: give the codes of a painting together with either `locked` or `repaint`"
            )
        tokenizer = self.image_tokenizer
        rows = code_rows(whole_numbers(codes, "codes")[None], tokenizer.cells, tokenizer.codebook_size)
        if repaint is None:
            fixed = cell_mask(locked, tokenizer.cells, "locked")
        else:
            fixed = ~cell_mask(repaint, tokenizer.cells, "repaint")
        device = self.machine.device
        return FixedCells(rows.to(device), fixed[None].to(device))

    def _batch(
        self,
        texts: list[str],
        options: PaintOptions,
        seeds: list[int],
        given: FixedCells | None,
        rerank: bool,
        return_steps: bool,
        at_once: int,
    ) -> list[Painting]:
        """Paint some captions; their pictures are drawn ``at_once`` at a time."""
        count = options.samples
        if given is not None:
            given = FixedCells(given.codes.expand(len(texts), -1), given.fixed.expand(len(texts), -1))
        with self.machine.inference():
            painted = self.decoder.paint(texts, options, seeds, given, return_steps)
        numbers, scores = list(range(count)) * len(texts), None
        each = count
        if rerank:
            best = self.scoring.best_paintings(
                painted, count, texts, lambda codes: self._pixels(codes, at_once)
            )
            painted, numbers, each = best.best, best.chosen.tolist(), 1
            scores = scores_of_cosines(best.best_scores).tolist()
        with self.machine.inference():
            images = drawn(self.image_tokenizer, painted.codes, at_once)
            steps: list[tuple[PaintingStep, ...]] = [()] * len(images)
            if painted.steps is not None:
                for row, history in enumerate(painted.steps):
                    pictures = drawn(self.image_tokenizer, history, at_once)
                    with torch.inference_mode(False):  # tensors that may be changed outside
                        codes = history.cpu().clone()
                    steps[row] = tuple(
                        PaintingStep(image, own) for image, own in zip(pictures, codes, strict=True)
                    )
        codes = painted.codes.cpu()
        return [
            Painting(
                texts[row // each],
                image,
                codes[row].clone(),
                seeds[row // each],
                numbers[row],
                steps[row],
                scores[row] if scores else None,
            )
            for row, image in enumerate(images)
        ]

    def _pixels(self, codes: Tensor, at_once: int) -> Tensor:
        """Codes int64 ``[n, cells]`` to pixels float32 ``[n, 3, S, S]`` in -1..1, drawn ``at_once`` at a time."""
        return torch.cat([self.image_tokenizer.pixels(part) for part in codes.split(at_once)])
