"""BUTD's captioner as SCST improves it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor

from diptych.model.decoding.butd import BUTDNextWord
from diptych.model.decoding.caption import NextWord
from diptych.model.devices import sent
from diptych.model.networks.butd import BUTD, Seen
from diptych.model.objectives.scst import chosen_loss, counted_words, paid_words
from diptych.model.tokenizer import CaptionTokenizer


@dataclass(frozen=True)
class BUTDPolicy:
    """A :class:`diptych.model.objectives.scst.CaptionPolicy`."""

    model: BUTD
    tokenizer: CaptionTokenizer

    def read(self, features: Tensor) -> Seen:
        return self.model.read(features)

    def next_word(self, images: Seen, length: int) -> NextWord:
        return BUTDNextWord(self.model, images.detach())

    def losses(
        self, images: Seen, ids: Tensor, advantages: Tensor, temperature: float
    ) -> Iterator[Callable[[], Tensor]]:
        """One part: all words of all captions."""

        def all_words() -> Tensor:
            device = advantages.device
            rows, numbers, chosen = counted_words(ids, paid_words(self.tokenizer, ids), device)
            states = self.model.caption_states(sent(ids[:, :-1], device), images).flatten(0, 1)[numbers]
            logits = self.model.logits(states)
            return chosen_loss(logits, chosen, advantages[rows], self.tokenizer, temperature) / len(ids)

        yield all_words
