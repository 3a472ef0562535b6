"""Answers of a packaged model: one question about one picture, and many about one at once.

`python -m benchmarks.answering [--model models/package] [--rounds 5] [--threads 1]`, after `make run`. The figures are medians
of the rounds, in `benchmarks/results/answering.json`.

| figure | |
| --- | --- |
| answer.seconds | of one question about one picture, from the bytes of its file, the detector's time included |
| answer.together | seconds of 100 questions about one picture asked one by one / asked at once, where it is seen once |
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

import pyarrow.parquet as pq
import torch

from benchmarks.alternate import alternate, median_ratio, seconds
from benchmarks.figures import record
from diptych.features.shards.reading import ShardDataset
from diptych.model import Diptych
from pipelines.measuring.answers import QUESTIONS
from pipelines.runner.errors import one_line_errors
from pipelines.runner.threads import keep_freed_memory

AIM_SECONDS, TOGETHER = 0.1, 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="models/package")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    keep_freed_memory()
    d = Diptych.from_pretrained(options.model, device="cpu")
    if not d.can_answer:
        sys.exit(
            f"{options.model} does not answer: train it with train_token.training.questions, or name another by --model"
        )
    torch.set_num_threads(options.threads)
    test = ShardDataset(Path("data/shards"), "test")
    picture = test.image_bytes(0)
    rows = pq.read_table(QUESTIONS, columns=["split", "question"]).to_pylist()
    questions = list(dict.fromkeys(row["question"] for row in rows if row["split"] == "test"))[:TOGETHER]
    assert [one.text for one in d.answer(picture, questions)] == [
        d.answer(picture, q)[0].text for q in questions
    ]
    times = alternate(
        {
            "one": lambda: seconds(lambda: d.answer(picture, questions[0])),
            "one by one": lambda: seconds(lambda: [d.answer(picture, question) for question in questions]),
            "at once": lambda: seconds(lambda: d.answer(picture, questions)),
        },
        options.rounds,
    )
    one = statistics.median(times["one"])
    together = median_ratio(times["one by one"], times["at once"])
    print(f"answer.seconds: {one:.3f} (wanted: below {AIM_SECONDS}), {options.threads} threads")
    print(f"answer.together: {together:.1f}, {len(questions)} questions")
    record("answering", {"answer.seconds": one, "answer.together": together})


if __name__ == "__main__":
    with one_line_errors("benchmarks.answering"):
        main()
