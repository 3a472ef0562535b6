"""Captions by BUTD, word by word from the state of its LSTMs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from diptych.model.decoding.caption import Captions
from diptych.model.decoding.decode import captions_by
from diptych.model.decoding.options import CaptionOptions
from diptych.model.devices import sent
from diptych.model.errors import UserError
from diptych.model.networks.butd import BUTD, Seen
from diptych.model.tokenizer import CaptionTokenizer


class BUTDNextWord:
    """Words after images that are read (:class:`diptych.model.decoding.caption.NextWord`).

    As long as there are equally many captions of every image, side by side, they share what is read of it.
    """

    def __init__(self, model: BUTD, images: Seen) -> None:
        self.model, self.seen = model, images
        self.state = model.start(len(images), images.vectors)
        self.rows = torch.arange(len(images))  # the image of each caption
        self.read = 0  # words that the state has seen

    def logits(self, ids: Tensor) -> Tensor:
        words = self.model.embed(ids[:, self.read :])
        for place in range(words.shape[1]):
            self.state = self.model.step(words[:, place], self.state, self.seen)
        self.read = ids.shape[1]
        return self.model.logits(self.state[2])

    def keep(self, rows: Tensor) -> None:
        device = self.state.device
        self.state, self.rows = self.state[:, sent(rows, device)], self.rows[rows.cpu()]
        images, counts = self.rows.unique_consecutive(return_counts=True)
        if not (counts == counts[0]).all():
            images = self.rows
        if not images.equal(torch.arange(len(self.seen))):
            self.seen = self.seen.rows(sent(images, device))
            self.rows = torch.arange(len(images)).repeat_interleave(len(rows) // len(images))


@torch.no_grad()
def caption_vectors(
    model: BUTD,
    tokenizer: CaptionTokenizer,
    vectors: Tensor,
    options: CaptionOptions,
    seeds: Sequence[int] | None = None,
) -> Captions:
    """Caption images, vectors float ``[n, k, D]``: ``options.samples`` captions each, side by side, as
    :func:`diptych.model.decoding.decode.caption_images` does. The model should be in eval mode."""
    if len(vectors) == 0:
        raise UserError("there is no image to caption")
    next_word = BUTDNextWord(model, model.read(vectors))
    return captions_by(next_word, tokenizer, len(vectors), options, vectors.device, seeds)
