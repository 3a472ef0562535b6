"""Whether what stages write lies where DVC can keep it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipelines.runner.code import PIPELINES
from pipelines.runner.params import ParameterError


def check_places(clone: Path = Path(), pipelines: Sequence[str] = PIPELINES) -> None:
    """Raise ParameterError for a link to outside of the clone that stands above an output, such as `data` or `models`.

    DVC finds it only when the first stage has run ("is outside of git repository"). An output that is a link itself is
    DVC's own way to keep it, and links beside outputs, such as data/coco, are the user's.

    pipelines: patterns of the pipeline files below `clone`.
    """
    root = Path(os.path.realpath(clone))
    for name in sorted(set(_folders_of_outputs(root, pipelines))):
        link = next((place for place in (root / name, *(root / name).parents) if place.is_symlink()), None)
        if link is None or not link.is_relative_to(root):
            continue
        target = Path(os.path.realpath(link))
        if target.is_relative_to(root):
            continue
        shown = link.relative_to(root)
        raise ParameterError(
            f"{shown} is a link to {target}, and DVC keeps nothing outside of the clone: make it a folder "
            f"(rm {shown} && mkdir {shown}), then `make team-cache DIRECTORY={target.parent / 'diptych'}` puts all "
            f"outputs on that disk and links them from here; your own data may stay there, linked from inside of it "
            f"(ln -s {target}/NAME {shown}/)"
        )


def _folders_of_outputs(root: Path, pipelines: Sequence[str]) -> Iterator[str]:
    """Folders above outputs, relative to the clone. Those whose names hold a parameter end before it."""
    from ruamel.yaml import YAML

    for path in sorted(path for pattern in pipelines for path in root.glob(pattern)):
        for stage in YAML(typ="safe").load(path)["stages"].values():
            below = os.path.normpath(path.parent / stage.get("wdir", "."))
            for kind in ("outs", "metrics", "plots"):
                for output in stage.get(kind, []):
                    name = output if isinstance(output, str) else next(iter(output))
                    name = os.path.dirname(name.partition("${")[0])
                    yield os.path.relpath(os.path.join(below, name), root)
