"""All measurements of the features half: `make bench`, or `python -m benchmarks.features`.

The medians of the ratios go to benchmarks/results/features.json.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from benchmarks import features_data, features_extract
from benchmarks.figures import record


def main() -> None:
    """Measure everything; a few minutes on two cores with nothing else to do."""
    with tempfile.TemporaryDirectory() as scratch:
        ratios = features_extract.measure(Path(scratch), images=2000, rounds=5, memory_images=(2000, 20000))
    ratios |= features_data.measure()
    for name, value in ratios.items():
        print(f"{name}: {value:.3f}")
    record("features", {name: round(value, 3) for name, value in ratios.items()})


if __name__ == "__main__":
    main()
