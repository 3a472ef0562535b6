"""What is right and what went wrong, counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def main_object(row: Mapping[str, Any]) -> tuple[str, str] | None:
    """Class and colour of a picture's main object; None where no object has attributes."""
    things = [thing for thing in row["objects"] or [] if thing["attributes"]]
    return (things[0]["label"], things[0]["attributes"][0]) if things else None


def shares_by_class(
    painted: Sequence[Mapping[str, Any]], captioned: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """How often the main object of each class, and of each colour, is right; nothing for data without attributes."""
    asked = {
        "painted, class right": (painted, "painted_class_right"),
        "painted, colour right": (painted, "painted_color_right"),
        "caption names both": (captioned, "caption_right"),
    }
    tables = []
    for part, title in enumerate(("Main object by class", "Main object by colour")):
        counts: dict[str, dict[str, Counter[bool]]] = {}
        for name, (rows, column) in asked.items():
            for row in rows:
                thing = main_object(row)
                if thing is not None and row[column] is not None:
                    counts.setdefault(thing[part], {}).setdefault(name, Counter())[row[column]] += 1
        groups = [
            {"label": label, "bars": [share_bar(name, counted) for name, counted in counts[label].items()]}
            for label in sorted(counts)
        ]
        if groups:
            note = "Paintings are read by the inspector, captions word by word."
            tables.append({"title": title, "note": note, "groups": groups})
    return tables


def share_bar(name: str, counted: Counter[bool]) -> dict[str, Any]:
    """A share with Wilson's 95% interval."""
    count = counted.total()
    share, z = counted[True] / count, 1.96
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * (share * (1 - share) / count + z * z / (4 * count * count)) ** 0.5
    low, high = max(0.0, middle - half), min(1.0, middle + half)
    return {"label": name, "share": share, "low": low, "high": high, "n": count}


def lost_pictures(stored: Path) -> list[str]:
    """Why pictures are missing in a folder of features or tokens that the feature store has linked."""
    import pyarrow.parquet as pq

    return pq.read_table(stored / "failures.parquet", columns=["kind"])["kind"].to_pylist()


def failures(
    painted: Sequence[Mapping[str, Any]],
    captioned: Sequence[Mapping[str, Any]],
    figures: Sequence[Mapping[str, Any]],
    lost: Sequence[str],
    pictures: int,
) -> list[dict[str, Any]]:
    """What went wrong, counted by kind: pictures that could not be read, paintings, captions, figures. lost: kinds of the
    first, of all `pictures`."""
    found: list[tuple[str, int, int, str]] = [
        (f"picture left out: {kind}", count, pictures, "not extracted; its captions are not used")
        for kind, count in Counter(lost).most_common()
    ] or [("picture left out", 0, pictures, "every picture was read and has its features")]
    judged = [row for row in painted if row["painted_right"] is not None]
    if judged:
        wrong_class = sum(not row["painted_class_right"] for row in judged)
        wrong_color = sum(row["painted_class_right"] and not row["painted_color_right"] for row in judged)
        found += [
            ("painting: class wrong", wrong_class, len(judged), "main object, by the inspector"),
            ("painting: colour wrong", wrong_color, len(judged), "its class is right"),
        ]
    known = [row for row in captioned if any(mark.right is not None for mark in row["marks"])]
    if known:
        for kind, note in (
            ("object", "names a class that the picture does not show"),
            ("color", "gives an object a colour that it does not have"),
            ("count", "counts wrong"),
            ("place", "says a wrong place or direction"),
        ):
            wrong = sum(
                any(mark.kind == kind and mark.right is False for mark in row["marks"]) for row in known
            )
            found.append((f"caption: {kind.replace('color', 'colour')} wrong", wrong, len(known), note))
        unnamed = [row for row in known if row["caption_right"] is not None]
        missing = sum(not row["caption_right"] for row in unnamed)
        if unnamed:
            found.append(("caption: main object missing", missing, len(unnamed), "not named with its colour"))
    unmeasured = sum(record["value"] is None for record in figures)
    found.append(("figure not run", unmeasured, len(figures), "reasons are under Figures"))
    return [{"kind": kind, "count": count, "of": of, "note": note} for kind, count, of, note in found]
