"""How a code is taken from its distribution."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from diptych.model.decoding.noise import sample_from
from diptych.model.decoding.options import PaintOptions
from diptych.model.decoding.words import likeliest


@dataclass(frozen=True)
class CodeSampling:
    """How codes are taken from a distribution.

    Attributes:
        temperature: 0 takes the likeliest, above 0 draws from softmax(logits / temperature).
        top_k, top_p: draws are from what :func:`diptych.model.decoding.words.likeliest` leaves.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0

    @classmethod
    def of(cls, options: PaintOptions) -> CodeSampling:
        """What a painting's options say of it."""
        return cls(options.temperature, options.top_k, options.top_p)

    def take(self, logits: Tensor, noise: Tensor | None) -> Tensor:
        """Return one code for each distribution ``[..., K]``, drawn by uniform ``noise`` ``[...]`` where codes are drawn."""
        if self.temperature == 0 or noise is None:
            return logits.argmax(-1)
        choices = likeliest((logits / self.temperature).log_softmax(-1), self.top_k, self.top_p)
        return sample_from(choices, noise)


LIKELIEST = CodeSampling()
