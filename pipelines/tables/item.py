"""Runs one item of a matrix of pipelines/tables/dvc.yaml, as pipelines/runner/stage.py runs a stage.

Like that module it decides how an item runs, not what it computes, and no stage lists it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.generate import Sample
from pipelines.runner import stage as stages
from pipelines.runner.params import Machine, ParameterError, at_least, read_params, read_section
from pipelines.runner.stage import UNFINISHED_STORE, Stage

PIPELINE = Path("pipelines/tables/dvc.yaml")
OUTPUTS = "ablations"
# what networks made of pictures, shared by all items: real pictures and reconstructions are the same for all models
EMBEDDINGS = UNFINISHED_STORE / "ablations" / "embeddings"
# what a message tells to do, where a stage's own would say `dvc repro`
MENDS = stages.Mends(
    "make table1", "run fewer items side by side (`make table1 JOBS=1`), or close other programs"
)
# the process that runs the items: its number, in their environment
DRIVER_VARIABLE = "DIPTYCH_TABLE1_DRIVER"


@dataclass(frozen=True)
class Table1Params:
    """The section table1 of params.yaml.

    seeds: of initial weights, data order and sampling of both stages; a training of every row for each.

    token_steps, sequence_steps: of ours in stage 1 and 2; null: those of train_token and train_sequence. pictures: that are
    captioned, and of which a caption is painted; null: those of generate.sets.test. guidance: of all paintings, samplers'
    included; null: that of generate.paint. examples: painted captions that the page shows. java: in the place of
    `evaluate.java`, METEOR being a column of the table; null: where Java starts.
    """

    seeds: tuple[int, ...]
    token_steps: int | None
    sequence_steps: int | None
    pictures: Sample | None
    guidance: float | None
    examples: int
    java: bool | None

    def __post_init__(self) -> None:
        at_least(self, 1, "token_steps", "sequence_steps", "examples")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise ValueError(
                f"seeds must be different whole numbers from 0 on, at least one, are {list(self.seeds)}"
            )


def run(definition: str, keys: tuple[str, ...], main: Callable[[Stage, Table1Params], None]) -> None:
    """Run `python -m pipelines.tables.<definition> VALUE ...`, a value of the item for each of its `keys`.

    The stage that `main` gets has the item's seed where it has one, else the pipeline's. What it cost is an output too:
    ablations/costs/<item>.json.
    """
    values = sys.argv[1:]
    shown = "-".join(values)
    if DRIVER_VARIABLE in os.environ:
        # another driver must not meet this item at the same checkpoints
        stages.end_when(has_ended(int(os.environ[DRIVER_VARIABLE])))
    with stages.one_line_errors(f"{definition} {shown}".strip(), MENDS):
        if len(values) != len(keys):
            raise ParameterError(
                f"usage: python -m pipelines.tables.{definition} {' '.join(keys).upper()}"
            )
        stage = read_item(definition, dict(zip(keys, values, strict=True)))
        stages.prepare_process(stage.threads)
        main(stage, read_section(Table1Params, "table1", read_params()))
        if stage.training_store.exists():
            stages.remove(stage.training_folder)
        stage.write_metrics(
            f"{OUTPUTS}/costs/{'_'.join(filter(None, (definition, shown)))}.json", stages.cost_so_far()
        )


def has_ended(number: int) -> Callable[[], bool]:
    """Ask whether the process that has this number now has ended. One that nobody waits for has, though it is still listed;
    and another process that gets its number later is not it."""
    import psutil

    try:
        process = psutil.Process(number)
    except psutil.NoSuchProcess:
        return lambda: True

    def ended() -> bool:
        try:
            return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    return ended


def read_item(definition: str, item: Mapping[str, str]) -> Stage:
    """One item as a stage. Raises ParameterError where a value, such as the name of a row, or the parameter file is wrong."""
    from ruamel.yaml import YAML

    params = read_params()
    seed = read_section(int, "seed", params)
    if "seed" in item:
        if not item["seed"].isdigit():
            raise ParameterError(f"seed must be a whole number from 0 on, is {item['seed']!r}")
        seed = int(item["seed"])
    described = YAML(typ="safe").load(PIPELINE)["stages"][definition]
    for key, known in described.get("matrix", {}).items():
        if isinstance(known, list) and item[key] not in known:
            raise ParameterError(f"{item[key]}: no such {key} (known: {', '.join(known)})")
    return Stage(
        f"ablations/{definition}@{'-'.join(item.values())}",
        seed,
        read_section(Machine, "machine", params),
        {key: value_of(params, key) for key in described.get("params", [])},
        PIPELINE,
        item,
    )


def value_of(params: Mapping[str, Any], key: str) -> Any:
    """The value of `section.key`. Raises ParameterError where there is none."""
    value: Any = params
    for name in key.split("."):
        if not isinstance(value, Mapping) or name not in value:
            raise ParameterError(f"params.yaml: {key} is missing: `make profile PROFILE=toybox` restores it")
        value = value[name]
    return value
