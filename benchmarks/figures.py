"""Figures of the benchmarks, in `benchmarks/results/*.json`: one object a file, shared by several benchmarks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def record(name: str, figures: Mapping[str, Any], results: Path = RESULTS) -> None:
    """Set `figures` in `results/<name>.json`; what other benchmarks wrote there stays."""
    path = results / f"{name}.json"
    earlier = json.loads(path.read_text()) if path.is_file() else {}
    path.parent.mkdir(exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps({**earlier, **figures}, indent=2) + "\n")
    unfinished.replace(path)
