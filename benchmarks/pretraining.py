"""X-LXMERT's pretraining step: what its task reads, and a picture once, against every head on every position and no shared work.

`python -m benchmarks.pretraining [--rounds 5] [--threads 2] [--size base]`. Both sides have the same weights, sentences and
masks, so that their losses are the same; they take turns. Figures are medians of the rounds, in
`benchmarks/results/pretraining.json`.

| figure | everything / ours |
| --- | --- |
| pretrain.step | seconds of three steps with their gradients (cells, words, nothing masked) as `make x-lxmert` takes them: 4 pictures, 8 sentences of each, `prefix` attention |
| pretrain.step_masked | the same by LXMERT's `masked` attention: 8 pictures, one sentence of each |

"Everything" runs both streams through all layers for each sentence, then the word head on all words, the code head on all cells,
the matching and the answer head, and picks what the task reads, as the released code does.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.alternate import alternate, median_ratio, seconds
from benchmarks.figures import record
from benchmarks.model import numbered_tokenizer, small
from diptych.model.decoding.caption import encode_images
from diptych.model.networks.architectures import build_transformer
from diptych.model.networks.config import named_config
from diptych.model.objectives.pretraining import mask_words, masked_word_loss, matching_loss
from diptych.model.objectives.token import paint_loss, sample_mask
from pipelines.runner.threads import keep_freed_memory

WORDS, LENGTH, ANSWERS = 10, 20, 9500
AIM = 1.5
# figure: attention, pictures, sentences of each
STEPS: dict[str, tuple[Literal["prefix", "masked"], int, int]] = {
    "pretrain.step": ("prefix", 4, 8),
    "pretrain.step_masked": ("masked", 8, 1),
}
Losses = dict[str, Callable[[], Tensor]]


class PretrainingStep:
    """One model, a batch of ``pictures`` with ``sentences`` of each, and the three losses on both sides."""

    def __init__(
        self, size: str, attention: Literal["prefix", "masked"], pictures: int, sentences: int, seed: int
    ) -> None:
        torch.manual_seed(seed)
        base = named_config("base")
        self.config = replace(
            base if size == "base" else small(base),
            caption_attention=attention,
            answers=ANSWERS,
            matching=True,
            dropout=0.0,
        )
        self.tokenizer = numbered_tokenizer(self.config.vocab_size)
        self.model = build_transformer(self.config)
        self.codebook = torch.randn(self.config.codebook_size, self.config.feature_dim)
        self.codes = torch.randint(self.config.codebook_size, (pictures, self.config.cells))
        self.sentences = sentences
        self.ids = torch.full((pictures * sentences, LENGTH), self.tokenizer.pad)
        self.ids[:, : WORDS + 2] = torch.randint(6, self.config.vocab_size, (len(self.ids), WORDS + 2))
        self.ids[:, 0], self.ids[:, WORDS + 1] = self.tokenizer.cls, self.tokenizer.sep
        self.cells = sample_mask(pictures, self.config.cells)
        self.changed, self.words = mask_words(self.tokenizer, self.ids)
        self.own = torch.arange(len(self.ids)) % 2 == 0
        self.answers = torch.randint(ANSWERS, (len(self.ids),))

    def ours(self) -> Losses:
        """Each task by the project's losses; cells are predicted from one sentence of each picture."""
        model, tokenizer, seen = self.model, self.tokenizer, self.codebook[self.codes]

        def of_pictures(part: Tensor) -> Tensor:
            return part.unflatten(0, (-1, self.sentences))

        def words() -> Tensor:
            texts = map(of_pictures, (self.changed, self.ids, self.words))
            return masked_word_loss(model, tokenizer, encode_images(model, seen), *texts)

        def nothing() -> Tensor:
            images, texts = encode_images(model, seen), of_pictures(self.ids)
            matching, states = matching_loss(model, tokenizer, images, texts, of_pictures(self.own))
            return matching + F.cross_entropy(model.answer_logits(states[self.own]), self.answers[self.own])

        ids = self.ids[:: self.sentences]
        return {
            "cells": lambda: paint_loss(model, tokenizer, self.codebook, self.codes, ids, self.cells, 0.0),
            "words": words,
            "nothing": nothing,
        }

    def heads(self, text: Tensor, visual: Tensor) -> tuple[Tensor, ...]:
        """Every head everywhere: words ``[n, t, V]``, codes ``[n, v, K]``, matching ``[n, 2]``, answers ``[n, A]``."""
        model, first = self.model, text[:, 0]
        return (
            model.word_logits(text),
            model.code_head(visual),
            model.matching_logits(first),
            model.answer_logits(first),
        )

    def read(self, ids: Tensor) -> tuple[Tensor, ...]:
        """All sentences, each with a picture of its own, through all layers of both streams and all heads."""
        model, visible = self.model, self.ids != self.tokenizer.pad
        seen = self.codebook[self.codes].repeat_interleave(self.sentences, 0)
        if self.config.caption_attention == "masked":
            return self.heads(*model(ids, visible, seen))
        text, bias = model.encode_text(ids, visible)
        visual = model.encode_visual(seen)
        for layer in model.cross_layers:
            text = layer.text_from_visual(text, bias, layer.cross_attention.keys_values(visual))
            visual = layer.visual_alone(visual)
        return self.heads(text, visual)

    def everything(self) -> Losses:
        """Each task out of one pass that computes all."""
        model, own = self.model, self.own

        def cells() -> Tensor:
            ids = self.ids[:: self.sentences]
            states = model(ids, ids != self.tokenizer.pad, self.codebook[self.codes], self.cells)
            return F.cross_entropy(self.heads(*states)[1][self.cells], self.codes[self.cells])

        def nothing() -> Tensor:
            _, _, matching, answers = self.read(self.ids)
            return F.cross_entropy(matching, own.long()) + F.cross_entropy(answers[own], self.answers[own])

        return {
            "cells": cells,
            "words": lambda: F.cross_entropy(self.read(self.changed)[0][self.words], self.ids[self.words]),
            "nothing": nothing,
        }

    def step(self, losses: Losses) -> None:
        """A step of each task with its gradients."""
        for loss in losses.values():
            self.model.zero_grad()
            loss().backward()


def measure(name: str, options: argparse.Namespace) -> float:
    """Print both sides of a figure and return their ratio."""
    both = PretrainingStep(options.size, *STEPS[name], options.seed)
    ours, everything = both.ours(), both.everything()
    with torch.no_grad():
        differ = max(abs(float(ours[task]() - everything[task]())) for task in ours)
    times = alternate(
        {
            "everything": lambda: seconds(lambda: both.step(everything)),
            "ours": lambda: seconds(lambda: both.step(ours)),
        },
        options.rounds,
    )
    ratio = median_ratio(times["everything"], times["ours"])
    print(
        f"{name}: {ratio:.2f} (wanted {AIM}); everything {statistics.median(times['everything']):.2f} s, ours "
        f"{statistics.median(times['ours']):.2f} s, losses differ by {differ:.0e}"
    )
    return ratio


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--size", choices=("base", "small"), default="base")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(options.threads)
    ratios = {name: measure(name, options) for name in STEPS}
    if options.size == "base":
        record("pretraining", ratios)


if __name__ == "__main__":
    main()
