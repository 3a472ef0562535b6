"""Captioning: what a call may ask for, captions, and where their words look."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypedDict

from PIL import Image
from torch import Tensor

from diptych.eval.scorers.clip_score import scores_of_cosines
from diptych.model.decoding.caption import Captions
from diptych.model.decoding.options import CaptionOptions, with_changes
from diptych.model.packaged.arguments import pairs, seed_list
from diptych.model.packaged.attention import WordAttention
from diptych.model.packaged.machine import Machine
from diptych.model.packaged.pictures import Pictures, listed, read_batches
from diptych.model.packaged.scoring import ScoringPart, chooses
from diptych.model.tokenizer import CaptionTokenizer


class CaptionChanges(TypedDict, total=False):
    """Options of :class:`diptych.model.decoding.options.CaptionOptions` that a call may change."""

    length: int
    method: Literal["greedy", "sample", "beam"]
    start: str
    no_repeat: int
    temperature: float
    top_k: int | None
    top_p: float
    beams: int
    groups: int
    diversity: float
    length_power: float


@dataclass(frozen=True)
class Caption:
    """One caption of a picture; ``str(caption)`` is its text.

    Attributes:
        text: ``a red kite over the sea.``
        log_probability: of its words, under the distribution they were taken from.
        sample: its number among the captions of the picture.
        score: CLIPScore with the picture, from 0 to 2.5; only of captions that were reranked.
        attention: where each word looks, if asked for.
    """

    text: str
    log_probability: float
    sample: int
    score: float | None = None
    attention: WordAttention | None = None

    def __str__(self) -> str:
        return self.text


class CaptionDecoder(Protocol):
    """What captions images; each family has its own. Called in
    :meth:`diptych.model.packaged.machine.Machine.inference`."""

    def see(self, images: Sequence[Image.Image]) -> Tensor:
        """n RGB images to what the methods below read of them, float32 ``[n, ...]``."""

    def write(self, seen: Tensor, options: CaptionOptions, seeds: Sequence[int]) -> Captions:
        """``options.samples`` captions of each image, side by side; one seed per image."""

    def attention(self, seen: Tensor, ids: Tensor) -> list[WordAttention]:
        """Where the words of captions int64 ``[n * c, t]`` look, c of each image side by side."""


class CaptioningPart:
    """Captions of pictures, batch by batch."""

    def __init__(
        self,
        decoder: CaptionDecoder,
        tokenizer: CaptionTokenizer,
        options: CaptionOptions,
        scoring: ScoringPart,
        machine: Machine,
    ) -> None:
        """``options``: of whoever gives none."""
        self.decoder, self.tokenizer, self.options = decoder, tokenizer, options
        self.scoring, self.machine = scoring, machine

    def captions(
        self,
        pictures: Pictures,
        samples: int | None,
        rerank: bool | None,
        seed: int | Sequence[int] | None,
        return_attention: bool,
        batch_size: int,
        changes: CaptionChanges,
    ) -> list[Caption]:
        """See :meth:`diptych.model.Diptych.caption`."""
        items = listed(pictures)
        options = self.changed(samples, changes)
        rerank = chooses(rerank, samples, options.samples)
        seeds = seed_list(seed, len(items))
        found: list[Caption] = []
        for part, images in read_batches(items, batch_size):
            found += self._batch(images, options, seeds[part], rerank, return_attention)
        return found

    def attention(
        self, pictures: Pictures, captions: str | Sequence[str], batch_size: int
    ) -> list[WordAttention]:
        """See :meth:`diptych.model.Diptych.attention`."""
        items, texts = pairs(pictures, captions)
        ids = self.tokenizer.encode(texts, self.options.length).to(self.machine.device)
        found: list[WordAttention] = []
        for part, images in read_batches(items, batch_size):
            with self.machine.inference():
                found += self.decoder.attention(self.decoder.see(images), ids[part])
        return found

    def changed(self, samples: int | None, changes: CaptionChanges) -> CaptionOptions:
        """The package's options with those of a call, which may imply the method.

        Raises:
            UserError: a change is no option, or not one of the method.
        """
        wanted = dict(changes)
        if "method" not in wanted:
            if {"temperature", "top_k", "top_p"} & wanted.keys():
                wanted["method"] = "sample"
            elif {"beams", "groups", "diversity", "length_power"} & wanted.keys():
                wanted["method"] = "beam"
            elif (samples or 1) > 1 and self.options.method == "greedy":
                wanted["method"] = "sample"
        if samples is not None:
            wanted["samples"] = samples
        return with_changes(self.options, wanted)

    def _batch(
        self,
        images: list[Image.Image],
        options: CaptionOptions,
        seeds: list[int],
        rerank: bool,
        return_attention: bool,
    ) -> list[Caption]:
        count = options.samples
        with self.machine.inference():
            seen = self.decoder.see(images)
            written = self.decoder.write(seen, options, seeds)
        numbers, scores = list(range(count)) * len(images), None
        texts = [self.tokenizer.decode(ids) for ids in written.ids]
        if rerank:
            best = self.scoring.best_captions(written, count, texts, images)
            written, numbers = best.best, best.chosen.tolist()
            texts = [texts[row * count + number] for row, number in enumerate(numbers)]
            scores = scores_of_cosines(best.best_scores).tolist()
        attentions: list[WordAttention] | None = None
        if return_attention:
            with self.machine.inference():
                attentions = self.decoder.attention(seen, written.ids)
        sums = written.log_probabilities.double().sum(1).tolist()
        return [
            Caption(
                text,
                sums[row],
                numbers[row],
                scores[row] if scores else None,
                attentions[row] if attentions else None,
            )
            for row, text in enumerate(texts)
        ]
