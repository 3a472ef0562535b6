"""What the papers leave open and their code decides in its own way.

:data:`PAPER` is the default everywhere; :data:`REFERENCE` reproduces the tokens, codes and losses of the released code
(generate-it, X-LXMERT). Its other habits need no switch here; ``docs/decisions.md`` lists them all.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Decisions:
    """Choices that change a result.

    Attributes:
        special_words: captions may contain special tokens such as [UNK]; otherwise no decoder writes them.
        padding_is_target: the ``masked`` scheme also trains the first [PAD] after [SEP], and not only the tokens that
            make up a caption (UMT equation 1).
        shared_masks: all paintings of a training batch hide the same cells, a whole number of them that is uniform
            from a tenth to all; otherwise each has a ratio and cells of its own (X-LXMERT 5.1).
        fresh_confidence: mask-predict ranks all cells by the probability of the code that the last step finds
            likeliest for them, even where that code was not written; otherwise a cell keeps the probability with which
            its code was written (Mask-Predict, Ghazvininejad et al. 2019).
    """

    special_words: bool
    padding_is_target: bool
    shared_masks: bool
    fresh_confidence: bool


PAPER = Decisions(special_words=False, padding_is_target=False, shared_masks=False, fresh_confidence=False)
REFERENCE = Decisions(special_words=True, padding_is_target=True, shared_masks=True, fresh_confidence=True)
