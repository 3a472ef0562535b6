"""Caption metrics: tokenisation, CIDEr-D, BLEU, named objects and statistics."""

from __future__ import annotations

from .cider import CiderD, CiderDReward
from .facts import names_object
from .metrics import caption_metrics, caption_statistics
from .tokens import tokenize

__all__ = ["CiderD", "CiderDReward", "caption_metrics", "caption_statistics", "names_object", "tokenize"]
