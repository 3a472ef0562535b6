"""The heads on the pooled state of [CLS] that a checkpoint of LXMERT's family has: matching, answers, pairs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from diptych.model.answer_table import ANSWERS_FILE, AnswerTable
from diptych.model.errors import UserError
from diptych.model.importers.answer_lists import read_answer_list
from diptych.model.importers.names import ANSWER_HEAD, MATCHING_HEAD, PAIR_HEAD, WORDS
from diptych.model.networks.config import TransformerConfig


@dataclass(frozen=True)
class FoundHeads:
    """Heads of a checkpoint that can be used.

    Attributes:
        matching: whether there is one; its index 1 is "match" in all of the family, as here.
        pairs: whether there is one; its index 1 is "true", as here.
        table: the answers of the answer head; None without such a head, or without a table for it.
    """

    matching: bool
    pairs: bool
    table: AnswerTable | None

    def on(self, config: TransformerConfig, regresses: bool = False) -> TransformerConfig:
        """Return ``config`` with these heads, with one that ``regresses`` features, and no others."""
        answers = len(self.table) if self.table else 0
        return replace(
            config,
            answers=answers,
            matching=self.matching,
            pairs=self.pairs,
            regresses=regresses,
            object_classes=0,
        )


def find_heads(path: Path, tensors: dict[str, tuple[str, Tensor]], answers: Path | None) -> FoundHeads:
    """Tell the heads by their tensors (common names, :func:`name_fine_tuned_head`).

    Args:
        path: of the checkpoint; in a directory the ``answers.json`` of ours is found.
        answers: the file that lists the answers of its answer head
            (:func:`diptych.model.importers.answer_lists.read_answer_list`). Without it the head is left out: nobody knows what
            its rows mean.

    Raises:
        UserError: the file does not fit the head, or there is no such head.
    """
    last = tensors.get(f"{ANSWER_HEAD}.3.weight")
    if answers is None and last and (path / ANSWERS_FILE).is_file():
        answers = path / ANSWERS_FILE
    if answers is not None and last is None:
        raise UserError(f"{path}: no answer head in it for the answers of {answers}; import it without them")
    table = read_answer_list(answers, last[1].shape[0]) if answers and last else None
    return FoundHeads(f"{MATCHING_HEAD}.weight" in tensors, f"{PAIR_HEAD}.0.weight" in tensors, table)


def name_fine_tuned_head(path: Path, tensors: dict[str, tuple[str, Tensor]]) -> dict[str, tuple[str, Tensor]]:
    """Give the head of a fine-tuned LXMERT its common name. All tasks call theirs ``logit_fc``: that of VQA and GQA reads
    one pooled state and is an answer head, that of NLVR2 reads two and stays.

    Raises:
        UserError: there is another answer head beside it.
    """
    first, words = tensors.get(f"{PAIR_HEAD}.0.weight"), tensors.get(WORDS)
    if first is None or words is None or first[1].shape[-1] != words[1].shape[-1]:
        return tensors
    own = f"{PAIR_HEAD}."
    other = next((name for name in tensors if name.startswith(f"{ANSWER_HEAD}.")), None)
    if other:
        raise UserError(
            f"{path}: two answer heads, {first[0]} and {tensors[other][0]}; remove the one that was not trained"
        )
    return {
        f"{ANSWER_HEAD}.{name.removeprefix(own)}" if name.startswith(own) else name: tensor
        for name, tensor in tensors.items()
    }
