"""The caption metrics of the papers' tables (UMT 5.1) behind one function."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from diptych.eval.captions.cider import CiderD
from diptych.eval.captions.java import Meteor, NotRun, find_corenlp, find_java, ptb_tokenize, spice_scores
from diptych.eval.captions.statistics import statistics_figures
from diptych.eval.captions.tokens import tokenize
from diptych.eval.errors import UserError
from diptych.eval.figures import (
    RESAMPLES,
    Figure,
    mean_figure,
    not_run,
    ratio_figure,
    sha256_of_json,
)

JavaUse = Literal["auto", "needed", "never"]
PTB_TOKENS, OWN_TOKENS = "PTB tokenizer (Stanford CoreNLP 3.4.1)", "Diptych's tokens (no Java)"
ORDERS = 4  # of BLEU
# as pycocoevalcap: without them a caption set without any match would divide by zero
_TINY, _SMALL = 1e-15, 1e-9


def measure_captions(
    predictions: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    java: JavaUse = "auto",
    corenlp: Path | None = None,
    spice: bool = True,
    training: Sequence[str] | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
    each: dict[str, dict[str, float]] | None = None,
) -> list[Figure]:
    """bleu_1 .. bleu_4, meteor, rouge_l, cider_d, spice and statistics of one caption per picture.

    Keys are picture ids; references without a prediction are left out. All values are fractions, 1.0 being the papers'
    100 (cider_d 0..10); document frequencies of CIDEr-D are those of these references. training: captions that
    `novel` compares with.

    java: "auto" uses Java where it starts. Without it METEOR and SPICE are not run, and everything else counts
    words by `tokenize`, which the figures' `model` says. "never" does not look for it, "needed" raises
    UserError without it. corenlp: the folder with SPICE's jars, where a missing one is an error; without it
    :func:`find_corenlp` looks for them. spice: False does not look.

    each: a dict that takes the values of single pictures, by figure and picture id, of the figures that are means of them:
    rouge_l, cider_d and spice; NaN where there is none.

    Raises UserError where there is no prediction, and for a prediction without reference.
    """
    if not predictions:
        raise UserError("there are no captions to measure; give at least one prediction")
    for image_id in predictions:
        if not references.get(image_id):
            raise UserError(f"picture '{image_id}' has a predicted caption but no reference caption")
    compared = {image_id: list(references[image_id]) for image_id in predictions}
    runtime, missing = _runtime(java)
    texts = [
        *predictions.values(),
        *(text for several in compared.values() for text in several),
        *(training or ()),
    ]
    try:
        words = ptb_tokenize(runtime, texts) if runtime else [tokenize(text) for text in texts]
    except NotRun as error:
        if java == "needed":
            raise UserError(str(error)) from None
        runtime, missing, words = None, str(error), [tokenize(text) for text in texts]
    remaining = iter(words)
    candidates = [next(remaining) for _ in predictions]
    truth = [[next(remaining) for _ in several] for several in compared.values()]
    facts: dict[str, Any] = {
        "model": PTB_TOKENS if runtime else OWN_TOKENS,
        "reference_sha256": sha256_of_json(compared),
        "resamples": resamples,
    }
    lines = [" ".join(caption) for caption in candidates]
    reference_lines = [[" ".join(caption) for caption in several] for several in truth]
    figures = _bleu(lines, reference_lines, seed, facts)
    figures.append(_meteor(runtime, missing, lines, reference_lines, seed, facts))
    rouge = np.array(_rouge(lines, reference_lines))
    cider, figure = _cider_d(lines, reference_lines, seed, facts)
    figures += [mean_figure("rouge_l", rouge, seed, scale=100, **facts), figure]
    single = {"rouge_l": rouge, "cider_d": cider}
    if each is not None:
        each |= {
            name: dict(zip(predictions, values.tolist(), strict=True)) for name, values in single.items()
        }
    spoken = dict(zip(predictions, lines, strict=True)), dict(zip(predictions, reference_lines, strict=True))
    if spice:
        figures.append(_spice(runtime, missing, corenlp, *spoken, seed, facts, each))
    else:
        figures.append(not_run("spice", "SPICE is turned off", len(candidates)))
    if java == "needed":
        for figure in figures:
            if figure.value is None and (
                figure.name == "meteor" or (figure.name == "spice" and spice and corenlp)
            ):
                raise UserError(f"{figure.name}: {figure.reason}")
    known = None if training is None else remaining
    figures += statistics_figures(candidates, seed, known, **facts)
    if training is None:
        figures.append(not_run("novel", "needs the training captions", len(candidates)))
    return figures


def _runtime(java: JavaUse) -> tuple[str | None, str]:
    """The java executable, or None and why."""
    if java == "never":
        return None, "Java is turned off"
    try:
        return find_java(), ""
    except NotRun as error:
        if java == "needed":
            raise UserError(str(error)) from None
        return None, str(error)


def bleu_statistics(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """Counts float64 [n, 10] of captions as lines of words: the words of the caption and of the reference closest in
    length, then the n-grams that the references hold too, and all n-grams, for n = 1 .. 4."""
    # pycocoevalcap.bleu.bleu, which averages, is not needed: counts add up
    from pycocoevalcap.bleu.bleu_scorer import BleuScorer

    scorer = BleuScorer(n=ORDERS)
    for candidate, several in zip(candidates, references, strict=True):
        scorer += (candidate, list(several))
    rows = []
    for counts in scorer.ctest:
        length = counts["testlen"]
        closest = min(counts["reflen"], key=lambda size: (abs(size - length), size))
        rows.append([length, closest, *counts["correct"], *counts["guess"]])
    return np.array(rows, np.float64)


def bleu(counts: np.ndarray) -> np.ndarray:
    """BLEU-1 .. BLEU-4 float64 [m, 4] of sums or means of counts [m, 10] (Papineni et al. 2002)."""
    length, closest = counts[:, :1], counts[:, 1:2]
    correct, guess = counts[:, 2 : 2 + ORDERS], counts[:, 2 + ORDERS :]
    precision = np.cumsum(np.log((correct + _TINY) / (guess + _SMALL)), 1) / np.arange(1, ORDERS + 1)
    ratio = (length + _TINY) / (closest + _SMALL)
    return np.exp(precision + np.where(ratio < 1, 1 - 1 / ratio, 0))


def _bleu(
    candidates: list[str], references: list[list[str]], seed: int, facts: dict[str, Any]
) -> list[Figure]:
    counts = bleu_statistics(candidates, references)

    def of_order(order: int) -> Callable[[np.ndarray], np.ndarray]:
        return lambda means: bleu(means * len(counts))[:, order - 1]

    return [
        ratio_figure(f"bleu_{order}", counts, of_order(order), seed, scale=100, **facts)
        for order in range(1, ORDERS + 1)
    ]


def _cider_d(
    candidates: list[str], references: list[list[str]], seed: int, facts: dict[str, Any]
) -> tuple[np.ndarray, Figure]:
    """CIDEr-D of each caption, and their mean; NaN and no value where the references do not tell pictures apart.

    Lines are split at every white space, as pycocoevalcap splits them for CIDEr-D and BLEU: a PTB word with a no-break
    space in it ("22 3/4") is two here, and one for ROUGE-L.
    """
    name, count = "cider_d", len(candidates)
    metric = CiderD([[line.split() for line in several] for several in references])
    if metric.missing:
        known = {key: facts[key] for key in ("model", "reference_sha256")}
        return np.full(count, math.nan), Figure(name, None, count, reason=metric.missing, **known)
    values = metric.score([line.split() for line in candidates])[1]
    return values, mean_figure(name, values, seed, scale=100, **facts)


def _rouge(candidates: list[str], references: list[list[str]]) -> list[float]:
    """ROUGE-L of each caption."""
    from pycocoevalcap.rouge.rouge import Rouge

    metric = Rouge()
    return [metric.calc_score([line], several) for line, several in zip(candidates, references, strict=True)]


def _meteor(
    java: str | None,
    missing: str,
    candidates: list[str],
    references: list[list[str]],
    seed: int,
    facts: dict[str, Any],
) -> Figure:
    """METEOR of all captions together, from the sums of their counts, as COCO's evaluation takes it."""
    if java is None:
        return not_run("meteor", missing, len(candidates))
    try:
        with Meteor(java) as meteor:
            rows = np.stack([meteor.statistics(*pair) for pair in zip(candidates, references, strict=True)])
            # the program adds counts up as whole numbers and so do we; a resample's sums are as whole
            return ratio_figure(
                "meteor",
                rows,
                lambda means: np.array([meteor.score(np.round(row * len(rows), 6)) for row in means]),
                seed, scale=100, **facts,
            )  # fmt: skip
    except NotRun as error:
        return not_run("meteor", str(error), len(candidates))


def _spice(
    java: str | None,
    missing: str,
    corenlp: Path | None,
    predictions: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    seed: int,
    facts: dict[str, Any],
    each: dict[str, dict[str, float]] | None,
) -> Figure:
    """SPICE of lines of PTB words, as COCO's evaluation gives them to it."""
    if java is None:
        return not_run("spice", missing, len(predictions))
    try:
        jars = find_corenlp(corenlp)
    except NotRun as error:
        if corenlp is not None:
            raise UserError(str(error)) from None
        return not_run("spice", str(error), len(predictions))
    try:
        scores = spice_scores(java, jars, predictions, references)
    except NotRun as error:
        return not_run("spice", str(error), len(predictions))
    values = [score for score in scores.values() if not math.isnan(score)]
    if each is not None:
        each["spice"] = dict(scores)
    return mean_figure(
        "spice", values, seed, scale=100, **{**facts, "model": "SPICE 1.0, Stanford CoreNLP 3.6.0"}
    )
