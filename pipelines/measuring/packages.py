"""What packages of all families have alike: scorer, card, and how large they are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from diptych.model.packaged.card import CardFacts, FamilyFacts, model_card
from diptych.model.packaged.directory import Common
from pipelines.measuring.clips import pretrained_name, read_clip
from pipelines.measuring.package_params import CommonPackageParams

SCORER = Path("models/scorer")


def common_parts(params: CommonPackageParams, facts: CardFacts, family: FamilyFacts) -> Common:
    """What packages of all families are made of besides the model."""
    return Common(
        scorer=read_clip(SCORER, "cpu") if params.scorer else None,
        scorer_name=pretrained_name(SCORER),
        weights=params.weights,
        origin={"title": params.title, "commit": facts.commit},
        card=model_card(facts, family),
    )


def with_intervals(figures: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """What `evaluate` has measured as text by name: the value, its 95% interval where there is one, and of how many."""
    texts = {}
    for figure in figures:
        if figure["value"] is None:
            continue
        texts[figure["name"]] = f"{figure['value']:.3f}"
        if figure["low"] is not None:
            texts[figure["name"]] += f" ({figure['low']:.3f} to {figure['high']:.3f})"
        texts[figure["name"]] += f", n = {figure['n']:,}"
    return texts


def megabytes(folder: Path, pattern: str) -> float:
    """Size of the files below a folder, in millions of bytes."""
    return sum(path.stat().st_size for path in folder.rglob(pattern) if path.is_file()) / 1e6
