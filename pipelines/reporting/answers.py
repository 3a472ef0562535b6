"""Questions about pictures of the test set with the answers that were given, and a choice of them to show."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipelines.measuring.shards import shards_of
from pipelines.reporting.test_set import chosen

ANSWERED = Path("data/evaluation_answers.parquet")


def answer_galleries(wanted: int, seed: int) -> tuple[dict[str, list[dict[str, Any]]], int]:
    """`wanted` answered questions drawn by the seed, and as many of those that are answered wrongly, each with its picture
    as `real`; and how many questions there are. Empty where none was asked."""
    import pyarrow.parquet as pq

    rows = pq.read_table(ANSWERED).to_pylist()
    if not rows:
        return {}, 0
    wrong = [row for row in rows if row["score"] < 0.5]
    choices = {"random": drawn(rows, wanted, seed), "wrong": drawn(wrong, wanted, seed)}
    shards = {split: shards_of(split) for split in {row["split"] for row in rows}}
    place = {split: {key: number for number, key in enumerate(own.keys)} for split, own in shards.items()}
    for several in choices.values():
        for row in several:
            split = row["split"]
            row["real"] = shards[split].image_bytes(place[split][row["image_id"]])
            counts = Counter(row["references"]).most_common()
            row["references"] = ", ".join(
                f"{answer} ({count})" if count > 1 else answer for answer, count in counts
            )
    return {name: several for name, several in choices.items() if several}, len(rows)


def drawn(rows: Sequence[dict[str, Any]], wanted: int, seed: int) -> list[dict[str, Any]]:
    """Copies of `wanted` rows, drawn by the seed."""
    return [dict(rows[index]) for index in chosen(len(rows), wanted, seed)]
