"""The paper's table 1 as data: its rows here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TableRow:
    """A row of the table: its name in the paper, and the models of each seed that caption and that paint for it."""

    title: str
    captions: str
    paintings: str

    @property
    def models(self) -> list[str]:
        """One model, or two."""
        return list(dict.fromkeys((self.captions, self.paintings)))


TABLE: dict[str, TableRow] = {
    "ours": TableRow("Ours", "sequence_ours", "sequence_ours"),
    "without_unified": TableRow("w/o unified architecture", "sequence_captions", "sequence_paintings"),
    "dense": TableRow("Dense feature", "sequence_dense", "sequence_dense"),
    "discrete": TableRow("Discrete feature", "sequence_discrete", "sequence_discrete"),
    "without_sequence": TableRow("w/o sequence-level training", "token_ours", "token_ours"),
    "without_clip": TableRow("w/o CLIP-based loss", "sequence_features", "sequence_features"),
}


def models() -> list[str]:
    """All models that the table shows."""
    return list(dict.fromkeys(model for row in TABLE.values() for model in row.models))
