"""What the model cards of all families tell, and how large packages are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def with_intervals(figures: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """What `evaluate` has measured as text by name: the value, its 95% interval where there is one, and of how many."""
    texts = {}
    for figure in figures:
        if figure["value"] is None:
            continue
        texts[figure["name"]] = f"{figure['value']:.3f}"
        if figure["low"] is not None:
            texts[figure["name"]] += f" ({figure['low']:.3f} to {figure['high']:.3f})"
        texts[figure["name"]] += f", n = {figure['n']:,}"
    return texts


def megabytes(folder: Path, pattern: str) -> float:
    """Size of the files below a folder, in millions of bytes."""
    return sum(path.stat().st_size for path in folder.rglob(pattern) if path.is_file()) / 1e6
