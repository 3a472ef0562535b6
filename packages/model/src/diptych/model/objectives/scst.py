"""Self-critical sequence training of captions (Rennie et al. 2017; UMT 4.1.2), of any captioner."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from diptych.model.decoding.caption import NextWord, encode_images, next_word_of, word_log_probabilities
from diptych.model.devices import sent
from diptych.model.networks.unified import UnifiedTransformer
from diptych.model.objectives.token import hidden_words, until
from diptych.model.tokenizer import CaptionTokenizer

# Words of a caption that one pass of ``masked`` attention scores: more take more memory, fewer run over the gradients of
# all weights more often.
WORDS_PER_PASS = 4


class CaptionPolicy(Protocol):
    """A captioner as SCST sees it."""

    def read(self, features: Tensor) -> Any:
        """What it makes of n images ``[n, cells, D]`` before the first word, with gradient where that is enabled."""

    def next_word(self, images: Any, length: int) -> NextWord:
        """Write captions of at most ``length`` tokens of what it has read, without gradient."""

    def losses(
        self, images: Any, ids: Tensor, advantages: Tensor, temperature: float
    ) -> Iterator[Callable[[], Tensor]]:
        """The self-critical loss, whose gradient estimates that of UMT equation 2: the mean over sampled captions of
        -advantage * the sum of their words' log-probabilities.

        It comes in parts whose sum it is; call backward on each before the next is asked for, so that only one graph is in
        memory.

        Args:
            images: what :meth:`read` gave.
            ids: int64 ``[n * c, t]``, c captions of each image side by side, on the CPU, where their words are counted.
            advantages: float ``[n * c]``, the reward minus its baseline.
            temperature: of the policy, softmax(logits / temperature).
        """


def paid_words(tokenizer: CaptionTokenizer, ids: Tensor) -> Tensor:
    """Return which of ``ids[:, 1:]`` the policy wrote, bool ``[n, t - 1]``: the words up to and including the full stop."""
    return (ids[:, 1:] != tokenizer.pad) & (ids[:, 1:] != tokenizer.sep)


def counted_words(ids: Tensor, words: Tensor, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Of each of the ``words`` (bool ``[n, t - 1]``, of ``ids[:, 1:]``) the caption, its number row * (t - 1) + place and its id, int64
    ``[m]`` on ``device`` each, from both on the CPU."""
    rows, places = words.nonzero(as_tuple=True)
    numbers = rows * words.shape[1] + places
    return sent(rows, device), sent(numbers, device), sent(ids[:, 1:][words], device)


def chosen_loss(
    logits: Tensor, chosen: Tensor, advantages: Tensor, tokenizer: CaptionTokenizer, temperature: float
) -> Tensor:
    """The sum of -advantage * log-probability of m words: logits ``[m, V]``, the words int64 ``[m]`` and the advantages ``[m]`` of
    their captions."""
    choices = word_log_probabilities(logits, tokenizer, temperature)
    return -(advantages * choices.gather(-1, chosen[:, None])[:, 0]).sum()


@dataclass(frozen=True)
class UnifiedPolicy:
    """The unified transformer, by either attention scheme; images are their visual states
    (:func:`diptych.model.decoding.caption.encode_images`)."""

    model: UnifiedTransformer
    tokenizer: CaptionTokenizer

    def read(self, features: Tensor) -> list[Tensor]:
        return encode_images(self.model, features)

    def next_word(self, images: list[Tensor], length: int) -> NextWord:
        return next_word_of(self.model, self.tokenizer, [states.detach() for states in images], length)

    def losses(
        self, images: list[Tensor], ids: Tensor, advantages: Tensor, temperature: float
    ) -> Iterator[Callable[[], Tensor]]:
        """``prefix`` attention has one part: all words of all captions in one pass. By ``masked`` attention every word is a pass
        of its own through language and cross-modality layers, because each sees another text and shows the visual stream another
        text: as many as the longest caption has words, no fewer (:data:`WORDS_PER_PASS` words of a caption go side by side). The
        visual layers, which no word reaches, run once, before; their gradient is the last part, whose value is 0. From images
        without gradient the visual layers stay as they are.
        """
        model, tokenizer, device = self.model, self.tokenizer, advantages.device
        words, count = paid_words(tokenizer, ids), len(ids)

        def part(rows: Tensor, logits: Tensor, chosen: Tensor) -> Tensor:
            return chosen_loss(logits, chosen, advantages[rows], tokenizer, temperature) / count

        if model.config.caption_attention == "prefix":

            def all_words() -> Tensor:
                rows, numbers, chosen = counted_words(ids, words, device)
                states = model.caption_states(sent(ids[:, :-1], device), model.visual_keys_values(images))
                return part(rows, model.word_logits(states.flatten(0, 1)[numbers]), chosen)

            yield all_words
            return

        (visual,) = images
        leaf = visual.detach().requires_grad_(visual.requires_grad)
        image_of = torch.arange(count) // (count // len(visual))
        longest = int(words.sum(1).max())
        for first in range(0, longest, WORDS_PER_PASS):
            rows, offsets = words[:, first : first + WORDS_PER_PASS].nonzero(as_tuple=True)
            positions = 1 + first + offsets

            def some_words(rows: Tensor = rows, positions: Tensor = positions) -> Tensor:
                texts = until(tokenizer, ids[rows], positions).ids
                shown, own, texts, places = (
                    sent(numbers, device) for numbers in (image_of[rows], rows, texts, positions)
                )
                return part(own, *hidden_words(model, tokenizer, leaf[shown], texts, places))

            yield some_words
        gradient = leaf.grad
        if gradient is not None:
            yield lambda: ((visual - visual.detach()) * gradient).sum()
