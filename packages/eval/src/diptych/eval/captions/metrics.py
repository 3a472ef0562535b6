"""The caption metrics of the paper's tables that need no Java, and statistics of a set of captions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

from diptych.eval.errors import UserError

from .cider import CiderD
from .tokens import tokenize


def caption_metrics(
    predictions: Mapping[str, str], references: Mapping[str, Sequence[str]]
) -> dict[str, float]:
    """CIDEr-D and BLEU-1 to BLEU-4 of one caption per picture.

    Keys are picture ids; references without a prediction are left out. Returns {"cider_d", "bleu_1",
    ..., "bleu_4"}: CIDEr-D as pycocoevalcap gives it (1.0 is the papers' 100%; document frequencies
    from these references), BLEU as fractions 0..1. Raises UserError for a prediction without reference.
    """
    if not predictions:
        raise UserError("there are no captions to measure; run the stage that generates them")
    for image_id in predictions:
        if not references.get(image_id):
            raise UserError(f"picture '{image_id}' has a generated caption but no reference caption")
    candidates = [tokenize(caption) for caption in predictions.values()]
    compared = [[tokenize(caption) for caption in references[image_id]] for image_id in predictions]
    mean, _ = CiderD(compared).score(candidates)
    return {"cider_d": mean, **_bleu(candidates, compared)}


def _bleu(candidates: list[list[str]], references: list[list[list[str]]]) -> dict[str, float]:
    # Only this module of pycocoevalcap is imported: its tokenizer, METEOR and SPICE start Java.
    from pycocoevalcap.bleu.bleu import Bleu

    truth = {number: [" ".join(words) for words in several] for number, several in enumerate(references)}
    results = {number: [" ".join(words)] for number, words in enumerate(candidates)}
    scores, _ = Bleu(4).compute_score(truth, results, verbose=0)
    return {f"bleu_{order}": float(score) for order, score in enumerate(scores, 1)}


def caption_statistics(captions: Sequence[str]) -> dict[str, float]:
    """How long and how varied captions are.

    Words per caption ("length_mean", "length_deviation"), different words ("vocabulary"), the share of
    different captions ("unique") and of different words and pairs of words among all ("distinct_1",
    "distinct_2").
    """
    words = [tokenize(caption) for caption in captions]
    singles = Counter(word for caption in words for word in caption)
    pairs = Counter(pair for caption in words for pair in pairwise(caption))
    lengths = [len(caption) for caption in words] or [0]
    return {
        "length_mean": float(np.mean(lengths)),
        "length_deviation": float(np.std(lengths)),
        "vocabulary": float(len(singles)),
        "unique": len({tuple(caption) for caption in words}) / max(1, len(words)),
        "distinct_1": len(singles) / max(1, singles.total()),
        "distinct_2": len(pairs) / max(1, pairs.total()),
    }
