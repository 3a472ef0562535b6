"""All measurements of the features half: `make bench`, or `python -m benchmarks.features`.

Writes the medians of the ratios to benchmarks/results/features.json.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from benchmarks import features_data, features_extract

RESULTS = Path(__file__).parent / "results" / "features.json"


def main() -> None:
    """Measure everything; a few minutes on two cores with nothing else to do."""
    with tempfile.TemporaryDirectory() as scratch:
        ratios = features_extract.measure(Path(scratch), images=2000, rounds=5, memory_images=(2000, 20000))
    ratios |= features_data.measure()
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({name: round(value, 3) for name, value in ratios.items()}, indent=2) + "\n")
    print(RESULTS.read_text())


if __name__ == "__main__":
    main()
