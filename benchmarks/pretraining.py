"""X-LXMERT's pretraining step: what its task reads and nothing else, against every head on every position.

`python -m benchmarks.pretraining [--rounds 5] [--threads 2] [--size base]`. Both sides have the same weights, sentences and
masks, so that their losses are the same; they take turns. The figure is the median of the rounds, in
`benchmarks/results/pretraining.json`.

| figure | everything / ours |
| --- | --- |
| pretrain.step | seconds of three steps with their gradients (cells, words, nothing masked), 8 pictures |

"Everything" runs both streams through all layers, then the word head on all words, the code head on all cells, the matching and
the answer head, and picks what the task reads, as the released code does.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.alternate import alternate, median_ratio, seconds
from benchmarks.figures import record
from benchmarks.model import numbered_tokenizer, small
from diptych.model.decoding.caption import encode_images
from diptych.model.networks.config import named_config
from diptych.model.networks.two_streams import UnifiedTransformer
from diptych.model.objectives.pretraining import mask_words, masked_word_loss, matching_loss
from diptych.model.objectives.token import paint_loss, sample_mask
from pipelines.runner.threads import keep_freed_memory

PICTURES, WORDS, LENGTH, ANSWERS = 8, 10, 20, 9500
AIM = 1.5
Losses = dict[str, Callable[[], Tensor]]


class PretrainingStep:
    """One model, a batch, and the three losses on both sides."""

    def __init__(self, size: str, seed: int) -> None:
        torch.manual_seed(seed)
        base = named_config("base")
        config = replace(base if size == "base" else small(base), answers=ANSWERS, matching=True, dropout=0.0)
        self.tokenizer = numbered_tokenizer(config.vocab_size)
        self.model = UnifiedTransformer(config)
        self.codebook = torch.randn(config.codebook_size, config.feature_dim)
        self.codes = torch.randint(config.codebook_size, (PICTURES, config.cells))
        self.ids = torch.full((PICTURES, LENGTH), self.tokenizer.pad)
        self.ids[:, : WORDS + 2] = torch.randint(6, config.vocab_size, (PICTURES, WORDS + 2))
        self.ids[:, 0], self.ids[:, WORDS + 1] = self.tokenizer.cls, self.tokenizer.sep
        self.cells = sample_mask(PICTURES, config.cells)
        self.changed, self.words = mask_words(self.tokenizer, self.ids)
        self.own = torch.arange(PICTURES) % 2 == 0
        self.answers = torch.randint(ANSWERS, (PICTURES,))

    def ours(self) -> Losses:
        """Each task by the project's losses."""
        model, tokenizer, seen = self.model, self.tokenizer, self.codebook[self.codes]

        def words() -> Tensor:
            texts = (part[:, None] for part in (self.changed, self.ids, self.words))
            return masked_word_loss(model, tokenizer, encode_images(model, seen), *texts)

        def nothing() -> Tensor:
            images = encode_images(model, seen)
            matching, states = matching_loss(model, tokenizer, images, self.ids[:, None], self.own[:, None])
            return matching + F.cross_entropy(model.answer_logits(states[self.own]), self.answers[self.own])

        return {
            "cells": lambda: paint_loss(
                model, tokenizer, self.codebook, self.codes, self.ids, self.cells, 0.0
            ),
            "words": words,
            "nothing": nothing,
        }

    def everything(self) -> Losses:
        """Each task out of one pass that computes all."""
        model, seen = self.model, self.codebook[self.codes]

        def run(ids: Tensor, masked: Tensor | None) -> tuple[Tensor, ...]:
            text, visual = model(ids, self.ids != self.tokenizer.pad, seen, masked)
            first = text[:, 0]
            return (
                model.word_logits(text),
                model.code_head(visual),
                model.matching_logits(first),
                model.answer_logits(first),
            )

        def nothing() -> Tensor:
            _, _, matching, answers = run(self.ids, None)
            answered = F.cross_entropy(answers[self.own], self.answers[self.own])
            return F.cross_entropy(matching, self.own.long()) + answered

        return {
            "cells": lambda: F.cross_entropy(
                run(self.ids, self.cells)[1][self.cells], self.codes[self.cells]
            ),
            "words": lambda: F.cross_entropy(run(self.changed, None)[0][self.words], self.ids[self.words]),
            "nothing": nothing,
        }

    def step(self, losses: Losses) -> None:
        """A step of each task with its gradients."""
        for loss in losses.values():
            self.model.zero_grad()
            loss().backward()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--size", choices=("base", "small"), default="base")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(options.threads)
    both = PretrainingStep(options.size, options.seed)
    ours, everything = both.ours(), both.everything()
    with torch.no_grad():
        differ = max(abs(float(ours[name]() - everything[name]())) for name in ours)
    times = alternate(
        {
            "everything": lambda: seconds(lambda: both.step(everything)),
            "ours": lambda: seconds(lambda: both.step(ours)),
        },
        options.rounds,
    )
    ratio = median_ratio(times["everything"], times["ours"])
    print(
        f"pretrain.step: {ratio:.2f} (wanted {AIM}); everything {statistics.median(times['everything']):.2f} s, ours "
        f"{statistics.median(times['ours']):.2f} s, losses differ by {differ:.0e}"
    )
    if options.size == "base":
        record("pretraining", {"pretrain.step": ratio})


if __name__ == "__main__":
    main()
