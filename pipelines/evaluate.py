"""Measure captions, answers and pictures of the test set (UMT 5.1), beside real pictures and reconstructions as ceilings.

What a stopped run has made of the pictures is kept in `.cache/unfinished/evaluate` until the stage has ended. docs/metrics.md
says what each figure is.
"""

from __future__ import annotations

import shutil

from diptych.eval.figures import flat_values, table, write_figures
from pipelines.measuring.answers import measured_answers, measured_schema
from pipelines.measuring.figures import EMBEDDINGS, GENERATED, EvaluateParams, measure, with_mends
from pipelines.measuring.verdicts import write_verdicts
from pipelines.runner.stage import Stage, run


def main(stage: Stage, params: EvaluateParams) -> None:
    """Write metrics/evaluate.json, its records data/evaluation_figures.json, and what is right in each test item to
    data/evaluation.parquet, in each answer to data/evaluation_answers.parquet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    figures, rows = measure(stage, params, GENERATED / "test.parquet")
    figures = with_mends(figures, params.java, "evaluate.java")
    answers, answered = measured_answers(GENERATED / "test_answers.parquet", stage.seed)
    figures += answers
    print(table(figures))
    with stage.write("data/evaluation.parquet") as path:
        write_verdicts(rows, path)
    with stage.write("data/evaluation_answers.parquet") as path:
        pq.write_table(pa.Table.from_pylist(answered, measured_schema()), path)
    with stage.write("data/evaluation_figures.json") as path:
        write_figures(figures, path)
    painted = next(figure.n for figure in figures if figure.name == "painted.clip_score_judge")
    # the Frechet distances depend on how many pictures there are
    stage.write_metrics("metrics/evaluate.json", {**flat_values(figures), "frechet_images": painted})
    shutil.rmtree(EMBEDDINGS, ignore_errors=True)


if __name__ == "__main__":
    run("evaluate", EvaluateParams, main)
