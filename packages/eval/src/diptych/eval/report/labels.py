"""How names and values of figures read."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

VIEWS = ("real", "reconstruction", "painted")
_VIEW_NAMES = {"real": "Real pictures", "reconstruction": "Reconstructions", "painted": "Painted pictures"}

# How names of metrics read in a table. What is not listed keeps its name.
_LABELS = {
    "map50": "Detector mAP at IoU 0.5",
    "caption.cider_d": "Caption CIDEr-D",
    "caption.bleu_1": "Caption BLEU-1",
    "caption.bleu_2": "Caption BLEU-2",
    "caption.bleu_3": "Caption BLEU-3",
    "caption.bleu_4": "Caption BLEU-4",
    "caption.meteor": "Caption METEOR",
    "caption.rouge_l": "Caption ROUGE-L",
    "caption.spice": "Caption SPICE",
    "caption.main_fact": "Captions that name the main object with its colour",
    "caption.main_fact_unseen": "The same, pairs of class and colour unseen in training",
    "caption.length_mean": "Words per caption, mean",
    "caption.length_deviation": "Words per caption, standard deviation",
    "caption.vocabulary": "Different words, count",
    "caption.unique": "Different captions, share",
    "caption.div_1": "Div-1: different words per word",
    "caption.div_2": "Div-2: different pairs of words per pair",
    "caption.repeated_words": "Words that repeat one of their caption",
    "caption.novel": "Captions that no training picture has",
    "answer.accuracy": "Answers, VQA accuracy",
    "words_alone.accuracy": "Answers from the question alone, VQA accuracy",
    "fid": "FID",
    "fid_pytorch": "FID as by pytorch-fid",
    "inception_score": "Inception Score",
    "main_object": "Main object: class and colour right",
    "main_object_unseen": "Main object, pairs of class and colour unseen in training",
    "second_object": "Second object: class and colour right",
    "second_object_said": "The same, where the sentence names it",
    "main_class": "Main object: class right",
    "main_color": "Main object: colour right",
    "second_class": "Second object: class right",
    "second_color": "Second object: colour right",
}
# Names that end with the kind of question, or with the network that measures.
_PATTERNS = (
    (r"answer\.accuracy_(\w+)", "Answers, VQA accuracy, {0}"),
    (r"words_alone\.accuracy_(\w+)", "Answers from the question alone, VQA accuracy, {0}"),
    (r"r_precision_hard_(nouns|verbs|colors|numbers)_(\w+)", "R-precision-hard, {0}, by the {1}"),
    (r"r_precision_hard_(\w+)", "R-precision-hard by the {0}"),
    (r"r_precision_(\w+)", "R-precision by the {0}"),
    (r"clip_score_(\w+)", "CLIPScore by the {0}"),
    (r"frechet_(\w+)_blur_(\d+)", "Fréchet distance, blurred by {1} px, by the {0}"),
    (r"frechet_(\w+)", "Fréchet distance to the real pictures, by the {0}"),
    (r"fid_blur_(\d+)", "FID, blurred by {0} px"),
    (r"fid_pytorch_blur_(\d+)", "FID as by pytorch-fid, blurred by {0} px"),
)
# Known not to be fractions: shown as plain numbers. (`counts_right` and `counts_said` are shares.)
_PLAIN = re.compile(
    r"cider|loss|fid|inception|frechet|distance|count(?!s_)|length|vocabulary|steps|minutes|seconds|gib|images|"
    r"learning_rate|perplexity"
)


def label(metric: str) -> str:
    """A metric's name for a reader: "caption.cider_d" is "Caption CIDEr-D"; a name of no pattern stays."""
    if metric in _LABELS:
        return _LABELS[metric]
    view, _, rest = metric.partition(".")
    if view in VIEWS and rest:
        inner = label(rest)
        # names of metrics keep their capital
        first = inner[0].lower() if inner.startswith(("Main", "Second")) else inner[0]
        return f"{_VIEW_NAMES[view]} · {first}{inner[1:]}"
    for pattern, text in _PATTERNS:
        if found := re.fullmatch(pattern, metric):
            return text.format(*(group.replace("color", "colour") for group in found.groups()))
    return metric


def shown(name: str, value: Any) -> str:
    """A metric as a reader expects it: fractions in percent, CLIPScore times 100, CIDEr-D as it is."""
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if math.isnan(value):
        return "–"
    if "clip_score" in name:
        return f"{value * 100:.1f}"
    if isinstance(value, int) or "vocabulary" in name:
        return f"{value:,.0f}"
    # kinds of questions are part of accuracies' names: "answer.accuracy_count" is no count
    if ("accuracy" not in name and _PLAIN.search(name)) or not 0 <= value <= 1:
        return f"{value:.3g}" if abs(value) < 1 else f"{value:,.2f}"
    return f"{value * 100:.1f} %"


def bounds(name: str, low: float | None, high: float | None) -> str:
    """An interval as a reader expects it, in the unit of :func:`shown`; empty where there is none."""
    if low is None or high is None:
        return ""
    first, last = shown(name, float(low)), shown(name, float(high))
    return f"{first.removesuffix(' %')} to {last.removesuffix(' %')}"


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings as one, keys joined by dots."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update({f"{key}.{inner}": leaf for inner, leaf in flatten(value).items()})
        else:
            flat[str(key)] = value
    return flat
