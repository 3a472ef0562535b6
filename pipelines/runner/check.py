"""Check all parameters and places before the first stage runs: `python -m pipelines.runner.check`, the first step of `make run`.

Each stage checks its own section again; here a slip in the last one is found before the first has run for an hour.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_type_hints

from diptych.eval.captions.java import NotRun, find_java
from diptych.features.datasets.coco import CocoConfig
from diptych.features.datasets.toybox import ToyboxConfig
from diptych.features.errors import UserError
from diptych.features.ray_sockets import check_room_for_sockets
from pipelines.runner.code import NAMED_AS_SOURCE, PIPELINES
from pipelines.runner.items import read_items
from pipelines.runner.params import (
    PARAMS_FILE,
    Machine,
    ParameterError,
    provided_by,
    read_params,
    read_section,
)
from pipelines.runner.places import check_places

SHARED = ("seed", "machine")
MADE_BY_STAGES = ("models/detector", "data/features", *NAMED_AS_SOURCE)


def stages_with_sections(pipeline: Path = Path("dvc.yaml")) -> list[str]:
    """The stages of a pipeline that have a section in params.yaml: all that list parameters."""
    from ruamel.yaml import YAML

    return [name for name, stage in YAML(typ="safe").load(pipeline)["stages"].items() if "params" in stage]


def tables() -> dict[str, Any]:
    """All tables (pipelines/tables/table.py) by their names, which are also those of their sections of params.yaml."""
    data = sorted(Path(__file__).parents[1].glob("tables/*/table.py"))
    modules = {path.parent.name: f"pipelines.tables.{path.parent.name}.table" for path in data}
    return {name: importlib.import_module(module).TABLE for name, module in modules.items()}


def sections_of_systems() -> dict[str, type]:
    """The sections of params.yaml that other systems have, a folder of pipelines/ with a dvc.yaml and params.py each, and
    their types."""
    folders = sorted(path.parent.name for path in Path(__file__).parents[1].glob("*/dvc.yaml"))
    return {name: importlib.import_module(f"pipelines.{name}.params").Params for name in folders}


def check_params(params: Mapping[str, Any], stages: list[str], path: Path = PARAMS_FILE) -> None:
    """Raise ParameterError for the first section that is unknown, missing or wrong."""
    further = {name: table.section for name, table in tables().items()} | sections_of_systems()
    for name in params:
        if name not in (known := (*stages, *SHARED, *further)):
            raise ParameterError(f"{path}: {name}: unknown section (known: {', '.join(known)})")
    machine = read_section(Machine, "machine", params, path)
    seed = read_section(int, "seed", params, path)
    if seed < 0:
        raise ParameterError(f"{path}: seed must be 0 or more, is {seed}")
    provided = provided_by(machine, seed)
    for stage in stages:
        kind = get_type_hints(importlib.import_module(f"pipelines.{stage}").main)["params"]
        read_section(kind, stage, params, path, provided)
    for name, section in further.items():
        read_section(section, name, params, path, provided)


def check_sources(params: Mapping[str, Any], clone: Path = Path()) -> None:
    """Raise ParameterError for the first file or folder from others that is not there and that no stage makes."""
    named = {
        f"{stage}.source": params[stage]["source"] for stage in ("dataset", "detector", "extract", "cluster")
    }
    others = {
        "image_generator.perceptual_encoder": params["image_generator"]["perceptual_encoder"],
        # of a pretrained CLIP
        "scorer.network.checkpoint": params["scorer"]["network"].get("checkpoint"),
        "judge.network.checkpoint": params["judge"]["network"].get("checkpoint"),
        "train_token.initial": params["train_token"]["initial"],
        "evaluate.corenlp": params["evaluate"]["corenlp"],
        "evaluate.inception": params["evaluate"]["inception"],
    }
    for key, source in {**named, **others}.items():
        if source is None or source in MADE_BY_STAGES or (clone / source).exists():
            continue
        if key == "train_token.initial" and _is_made(source, params, clone):
            continue
        raise ParameterError(f"{source}: no such file or folder; put it there or set {key} in {PARAMS_FILE}")


def check_splits(params: Mapping[str, Any], path: Path = PARAMS_FILE) -> None:
    """Raise ParameterError for the first split of generate.sets that the dataset will not have, as far as parameters tell: those
    of a file of Karpathy's are what it says. Else the first stage to miss it would be `generate`, after all trainings."""
    for name, wanted in params["generate"]["sets"].items():
        for kind, sample in wanted.items():
            for split in sample["splits"] if sample else ():
                if not _has_split(params["dataset"], split, path):
                    raise ParameterError(
                        f"{path}: generate.sets.{name}.{kind}.splits: the dataset has no split {split}"
                    )


def _has_split(dataset: Mapping[str, Any], split: str, path: Path) -> bool:
    """Whether the section `dataset` can have pictures of a split."""
    if dataset["toybox"] is not None:
        return read_section(ToyboxConfig, "toybox", dataset, path).splits.get(split, 0) > 0
    coco = read_section(CocoConfig, "coco", dataset, path)
    if coco.karpathy is not None:
        return not (split == "restval" and coco.restval)
    return any(split in source.split.split("/") for source in coco.sources)


def _is_made(path: str, params: Mapping[str, Any], clone: Path) -> bool:
    """Whether a stage of any pipeline makes `path`."""
    files = (file for pattern in PIPELINES for file in clone.glob(pattern))
    return any(item.makes(path) for file in files for item in read_items(file, params))


def check_ray(params: Mapping[str, Any]) -> None:
    """Raise ParameterError where `extract` is to start Ray here and the name of the temporary folder is too long for it."""
    machine = params["machine"]
    wanted = machine["workers"] != 0 and machine.get("ray_address") is None
    if wanted and params["extract"]["source"] in MADE_BY_STAGES:
        try:
            check_room_for_sockets()
        except UserError as error:
            raise ParameterError(str(error)) from None


def check_java(key: str, otherwise: str) -> None:
    """Raise ParameterError where Java does not start, which the parameter `key` wants and with `otherwise` would not."""
    try:
        find_java()
    except NotRun as error:
        raise ParameterError(f"{error}; or set {key} to {otherwise} in {PARAMS_FILE}") from None


def main() -> None:
    """Check ./params.yaml, that what others made is where it says, that the splits which it names will be there, and where outputs
    and Ray's sockets are to lie."""
    try:
        params = read_params()
        check_params(params, stages_with_sections())
        check_sources(params)
        check_splits(params)
        if params["evaluate"]["java"]:
            check_java("evaluate.java", "false")
        check_places()
        check_ray(params)
    except ParameterError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
