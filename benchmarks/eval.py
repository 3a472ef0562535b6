"""Caption metrics against the libraries that the papers' code uses, both sides in turns.

`python -m benchmarks.eval [--rounds 15]` writes `benchmarks/results/eval.json`.

| figure | ratio of |
| --- | --- |
| cider.vs_pycocoevalcap | `Cider().compute_score` / `CiderDReward.reward`, 160 captions with 5 references each |
| cider.batch_vs_pycocoevalcap | the same with document frequencies of the batch, prepared anew at each call |

The reward's references are prepared once, as for a training; `compute_score` has no such preparation.
"""

from __future__ import annotations

import argparse
import statistics

import numpy as np
from pycocoevalcap.cider.cider import Cider

from benchmarks.alternate import alternate, median_ratio, seconds
from benchmarks.figures import record
from diptych.eval.captions.cider import CiderDReward

PICTURES, REFERENCES, VOCABULARY = 160, 5, 2000
AIMS = {"cider.vs_pycocoevalcap": 20, "cider.batch_vs_pycocoevalcap": None}


def captions(generator: np.random.Generator, count: int) -> list[list[int]]:
    """Captions of COCO's length with words as unequally frequent as in a language (Zipf)."""
    lengths = generator.normal(10.5, 2.4, count).round().clip(6, 20).astype(int)
    return [(generator.zipf(1.3, length) % VOCABULARY).tolist() for length in lengths]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    generator = np.random.default_rng(0)
    references = [captions(generator, REFERENCES) for _ in range(PICTURES)]
    candidates = captions(generator, PICTURES)
    truth = {
        index: [" ".join(map(str, words)) for words in several] for index, several in enumerate(references)
    }
    results = {index: [" ".join(map(str, words))] for index, words in enumerate(candidates)}
    corpus, batch = CiderDReward(references), CiderDReward(references, "batch")
    pictures = range(PICTURES)
    difference = np.abs(corpus.reward(pictures, candidates) - Cider().compute_score(truth, results)[1]).max()
    times = alternate(
        {
            "pycocoevalcap": lambda: seconds(lambda: Cider().compute_score(truth, results)),
            "corpus": lambda: seconds(lambda: corpus.reward(pictures, candidates)),
            "batch": lambda: seconds(lambda: batch.reward(pictures, candidates)),
        },
        rounds,
    )
    figures = {
        "cider.vs_pycocoevalcap": median_ratio(times["pycocoevalcap"], times["corpus"]),
        "cider.batch_vs_pycocoevalcap": median_ratio(times["pycocoevalcap"], times["batch"]),
    }
    print(f"largest difference {difference:.1e}")
    print("| figure | median | aim |\n| --- | --- | --- |")
    for name, value in figures.items():
        print(f"| {name} | {value:.1f} | {AIMS[name] or ''} |")
    print({name: f"{1000 * statistics.median(measured):.1f} ms" for name, measured in times.items()})
    record("eval", figures)


if __name__ == "__main__":
    main()
