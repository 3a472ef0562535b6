"""Sections of params.yaml that tables have: what all of them share, and what those of the transformer do."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diptych.features.ranges import check_at_least
from pipelines.measuring.drawn import Sample
from pipelines.runner.check import check_java
from pipelines.runner.items import read_items
from pipelines.runner.params import Machine, ParameterError, provided_by, read_section

if TYPE_CHECKING:
    from pipelines.x_lxmert.params import Params

STAGE_2 = ("scst_steps", "scst_batch_size", "sample_temperature")


@dataclass(frozen=True)
class TableParams:
    """What the section of every table has. seeds: of initial weights, data order and sampling of all
    trainings; a training of every row for each."""

    seeds: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise ValueError(
                f"seeds must be different whole numbers from 0 on, at least one, are {list(self.seeds)}"
            )

    @property
    def conditions(self) -> str:
        """Under which the table was measured: how the page's list of them goes on."""
        return ""

    def check(self, name: str, pipeline: Path, params: Mapping[str, Any]) -> None:
        """Raise ParameterError, before hours of training, for what only an item at their end would miss.

        name, pipeline: the table's and its dvc.yaml. params: all of params.yaml.
        """


@dataclass(frozen=True)
class PretrainingTableParams(TableParams):
    """The section of a table whose rows are pretrainings of x_lxmert, some of them fine-tuned.

    pretraining: what all pretrainings have otherwise than x_lxmert.pretraining.training says; fine_tuning: likewise, by task.
    generator_steps: of the image generator that reads features; null: those of image_generator. pictures: of which a caption is
    painted; null: those of generate.sets.test. examples: painted captions that the page shows.
    """

    pretraining: dict[str, Any]
    fine_tuning: dict[str, dict[str, Any]]
    generator_steps: int | None
    pictures: Sample | None
    examples: int

    def __post_init__(self) -> None:
        check_at_least(self, 1, "generator_steps", "examples")
        super().__post_init__()

    def trainings(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """The section x_lxmert of `params`, raw, with the trainings of this table."""
        section = copy.deepcopy(dict(params["x_lxmert"]))
        section["pretraining"]["training"] |= self.pretraining
        for task, changes in self.fine_tuning.items():
            if task in section["fine_tuning"]:
                section["fine_tuning"][task]["training"] |= changes
        return section

    def check(self, name: str, pipeline: Path, params: Mapping[str, Any]) -> None:
        """The trainings' settings are some, and every task that the table fine-tunes on has data."""
        from pipelines.x_lxmert.params import TASKS

        if unknown := sorted(set(self.fine_tuning) - set(TASKS)):
            raise ParameterError(
                f"params.yaml: {name}.fine_tuning.{unknown[0]}: no such task (known: {', '.join(TASKS)})"
            )
        x_lxmert_params(self, name, params)
        wanted = {item.values["task"] for item in read_items(pipeline, params) if "task" in item.values}
        section = params["x_lxmert"]
        if missing := sorted(wanted - (set(section["tasks"]) & set(section["fine_tuning"]))):
            raise ParameterError(
                f"params.yaml: {name} fine-tunes on {', '.join(missing)}: give it in x_lxmert.tasks, x_lxmert.fine_tuning "
                "and x_lxmert.questions (docs/x-lxmert.md)"
            )


def x_lxmert_params(
    section: PretrainingTableParams, name: str, params: Mapping[str, Any], seed: int = 0
) -> Params:
    """The section x_lxmert of `params` as a table trains, with a seed. Raises ParameterError for what is wrong there, and names the
    table's section where that is the table's doing."""
    from pipelines.x_lxmert.params import Params  # brings torch, which a table's other parameters do without

    provided = provided_by(read_section(Machine, "machine", params), seed)
    read_section(Params, "x_lxmert", params, provided=provided)
    changed = {**params, "x_lxmert": section.trainings(params)}
    try:
        return read_section(Params, "x_lxmert", changed, provided=provided)
    except ParameterError as error:
        raise ParameterError(f"{error} (so says the section {name})") from None


@dataclass(frozen=True)
class TransformerTableParams(TableParams):
    """The section of a table whose rows are trainings of the transformer in one stage or two.

    token_steps, sequence_steps: of ours in stage 1 and 2; null: those of train_token and train_sequence. scst_steps,
    scst_batch_size, sample_temperature: of all rows' stage 2, whose optimizer may be another than the default's; null: those of
    train_sequence.
    pictures: that are captioned, and of which a caption is painted; null: those of generate.sets.test.
    guidance: of all paintings, samplers' included; null: that of generate.paint. examples: painted captions
    that the page shows. java: in the place of `evaluate.java`, METEOR being a column of the table; null:
    where Java starts.
    """

    token_steps: int | None
    sequence_steps: int | None
    scst_steps: int | None
    scst_batch_size: int | None
    sample_temperature: float | None
    pictures: Sample | None
    guidance: float | None
    examples: int
    java: bool | None

    def __post_init__(self) -> None:
        check_at_least(self, 1, "token_steps", "sequence_steps", "scst_steps", "scst_batch_size", "examples")
        super().__post_init__()

    def check(self, name: str, pipeline: Path, params: Mapping[str, Any]) -> None:
        """Java starts, where METEOR is wanted."""
        if self.java:
            check_java(f"{name}.java", "null")

    @property
    def stage_2(self) -> dict[str, Any]:
        """What of train_sequence.training is another for all rows."""
        values = {name: getattr(self, name) for name in STAGE_2}
        return {name: value for name, value in values.items() if value is not None}

    @property
    def conditions(self) -> str:
        return "" if self.guidance is None else f", guidance {self.guidance:g}"
