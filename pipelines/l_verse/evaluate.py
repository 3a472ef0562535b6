"""Measure L-Verse on the test split as the main pipeline's model is measured: captions, paintings, and pictures drawn again by both
autoencoders (L-Verse's tables 1 to 3)."""

from __future__ import annotations

import math
import shutil

from diptych.eval.figures import Figure, flat_values, table, write_figures
from diptych.model.objectives.perceptual import is_detector
from pipelines.l_verse.params import ALL_LEVELS, FIGURES, GENERATED, Params, tokenized
from pipelines.measuring.figures import COMPOSITIONAL, KINDS, EvaluateParams, measure, with_mends
from pipelines.measuring.verdicts import write_verdicts
from pipelines.runner.stage import UNFINISHED_STORE, Stage, read_stage, run

VERDICTS = "data/l_verse/evaluation.parquet"
COUNTED = 1000  # pictures whose tokens are read at a time


def main(stage: Stage, params: Params) -> None:
    """By the section `evaluate`: write metrics/l_verse.json, its records data/l_verse/figures.json, and what is right in each test item to
    data/l_verse/evaluation.parquet."""
    embeddings = UNFINISHED_STORE / stage.name / "embeddings"
    perceptual, (_, how) = params.autoencoder.perceptual, read_stage("evaluate", EvaluateParams)
    figures, rows = measure(
        stage,
        how,
        GENERATED / "test.parquet",
        GENERATED / f"{COMPOSITIONAL}.parquet",
        embeddings,
        (*KINDS[:-1], ALL_LEVELS, KINDS[-1]),
        perceptual if is_detector(perceptual) else None,
    )
    figures = [*with_mends(figures, how.java, "evaluate.java"), *token_figures()]
    print(table(figures))
    with stage.write(VERDICTS) as path:
        write_verdicts(rows, path)
    with stage.write(str(FIGURES)) as path:
        write_figures(figures, path)
    painted = next(figure.n for figure in figures if figure.name == "painted.clip_score_judge")
    stage.write_metrics("metrics/l_verse.json", {**flat_values(figures), "frechet_images": painted})
    shutil.rmtree(embeddings, ignore_errors=True)


def token_figures() -> list[Figure]:
    """Of the train split's tokens: how many codes are used, and as how many equally frequent ones they are worth (exp of their
    entropy)."""
    import numpy as np

    train = tokenized("train")
    counts = np.zeros(train.codebook_size, np.int64)
    for start in range(0, len(train), COUNTED):
        codes = train.codes(range(start, min(start + COUNTED, len(train))))
        counts += np.bincount(codes.ravel(), minlength=len(counts))
    shares = counts[counts > 0] / counts.sum()
    worth = math.exp(-float((shares * np.log(shares)).sum()))
    return [
        Figure("tokens.used", float((counts > 0).sum()), len(train)),
        Figure("tokens.perplexity", worth, len(train)),
    ]


if __name__ == "__main__":
    run("l_verse/evaluate", Params, main)
