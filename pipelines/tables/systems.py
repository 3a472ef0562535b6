"""The section of a table that compares systems (UMT, table 2): ours, X-LXMERT, L-Verse, and those that only caption or only paint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diptych.features.ranges import check_at_least
from diptych.model.training.butd_config import BUTDTrainingConfig
from diptych.model.training.dm_gan_config import DMGANTrainingConfig, MatchingTrainingConfig
from pipelines.measuring.drawn import Sample
from pipelines.runner.check import check_java
from pipelines.runner.params import ParameterError
from pipelines.tables.params import TableParams


@dataclass(frozen=True)
class BUTDParams:
    """network: a named size of diptych.model (base, toybox, smoke). min_count: of the words of its vocabulary. words, sequence: the
    two trainings."""

    network: str
    min_count: int
    words: BUTDTrainingConfig
    sequence: BUTDTrainingConfig

    def __post_init__(self) -> None:
        check_at_least(self, 1, "min_count")
        if (self.words.objective, self.sequence.objective) != ("words", "scst"):
            raise ValueError("words.objective is words, sequence.objective is scst")


@dataclass(frozen=True)
class DMGANParams:
    """network, min_count: as BUTD's. matching: of the encoders. training: of the game."""

    network: str
    min_count: int
    matching: MatchingTrainingConfig
    training: DMGANTrainingConfig

    def __post_init__(self) -> None:
        check_at_least(self, 1, "min_count")


@dataclass(frozen=True)
class SystemsTableParams(TableParams):
    """The section of a table of systems.

    butd, dm_gan: the trainings of these. regions: of a picture, which BUTD reads beside the grid. pictures: that are captioned, and of
    which a caption is painted; null: those of generate.sets.test. examples: painted captions that the page shows. study: paintings that
    are kept of each system, for people to compare. java: in the place
    of `evaluate.java`, METEOR being a column of the table; null: where Java starts.
    """

    butd: BUTDParams
    dm_gan: DMGANParams
    regions: int
    pictures: Sample | None
    examples: int
    study: int
    java: bool | None

    def __post_init__(self) -> None:
        check_at_least(self, 1, "regions", "examples", "study")
        super().__post_init__()

    def check(self, name: str, pipeline: Path, params: Mapping[str, Any]) -> None:
        """What the rows start from is there: Java, where METEOR is wanted, answers, regions, and X-LXMERT's pretraining."""
        if self.java:
            check_java(f"{name}.java", "null")
        missing = []
        if params["detector"]["training"] is None:
            missing.append("BUTD's regions need a detector that this pipeline trains (detector.training)")
        if params["train_token"]["training"].get("questions") is None:
            missing.append("answers of ours need train_token.training.questions")
        if "vqa" not in set(params["x_lxmert"]["tasks"]) & set(params["x_lxmert"]["fine_tuning"]):
            missing.append("answers of X-LXMERT need vqa in x_lxmert.tasks and x_lxmert.fine_tuning")
        started, own = params["x_lxmert"], params["train_token"]
        if (own["network"], own["architecture"]) != (started["network"], "two_streams"):
            missing.append(
                "X-LXMERT-FT starts from its pretraining: train_token.network must be x_lxmert.network, and train_token.architecture "
                "two_streams"
            )
        if others := sorted(set(self.seeds) - set(params["table_x_lxmert"]["seeds"])):
            missing.append(
                f"seeds {others} are not among table_x_lxmert.seeds, which X-LXMERT is pretrained with"
            )
        if missing:
            raise ParameterError(f"params.yaml: {name}: {'; '.join(missing)} (docs/choose.md)")
