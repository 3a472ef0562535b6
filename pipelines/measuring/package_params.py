"""Parameters that packages of all families have; alone, so that who reads them does not run what makes packages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class CommonPackageParams:
    """title: of the model card. data: on it, what the model was trained on, in a sentence. limits: on it, what the model
    cannot do. weights: how matrices of the transformer, and of an image generator, are stored. scorer: pack it, for reranking and
    scores."""

    title: str
    data: str
    limits: tuple[str, ...]
    weights: Literal["float32", "bfloat16", "int8"]
    scorer: bool
