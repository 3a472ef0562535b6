"""What all stages share: how one runs, what it may read besides its own section, how it writes, how its training resumes."""

from __future__ import annotations

import contextlib
import csv
import errno
import functools
import hashlib
import json
import math
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pipelines.runner import code
from pipelines.runner.announcement import announcement
from pipelines.runner.errors import Mends, one_line_errors
from pipelines.runner.items import find_item, listed_values, read_items
from pipelines.runner.memory import GIB, peak_resident
from pipelines.runner.params import Machine, ParameterError, provided_by, read_params, read_section
from pipelines.runner.places import check_places
from pipelines.runner.threads import at_most_given, available_cores, prepare_process
from pipelines.runner.writing import remove, writing

if TYPE_CHECKING:
    from diptych.model.checkpoints import TrainingCheckpoints

T = TypeVar("T")
TRAINING_STORE = Path(".cache/training")
# sha256 of pictures and features that were read, so that no file is hashed again while it stays the same
FILE_FACTS = Path(".cache/files.jsonl")
UNFINISHED_STORE = Path(".cache/unfinished")
# Small files that say everything about a large folder beside or inside them, sha256 sums included.
STANDS_FOR = {
    "data/dataset/images": "data/dataset/scenes.parquet",
    "data/shards": "data/shards/index.json",
}


@dataclass(frozen=True)
class Stage:
    """One run of one stage: what it may read besides its own section, and how it writes.

    params: raw values of what its pipeline file lists as the stage's parameters. item: of a stage that is a matrix, its
    keys and their values; the name is then that of the item, `ablations/token@ours-0`. states: the name under which states
    of trainings are kept, where it is not the stage's own, whose good end removes them.
    """

    name: str
    seed: int
    machine: Machine
    params: Mapping[str, Any]
    pipeline: Path = Path("dvc.yaml")
    item: Mapping[str, str] = field(default_factory=dict)
    states: str | None = None

    @property
    def threads(self) -> int:
        """Threads for tensor work in this process."""
        return available_cores() if self.machine.threads == "auto" else at_most_given(self.machine.threads)

    @property
    def workers(self) -> int:
        """Ray actors for extraction: "auto" takes one for every core, or for every GPU."""
        if self.machine.workers != "auto":
            return self.machine.workers
        if self.device.startswith("cuda"):
            import torch

            return torch.cuda.device_count()
        return available_cores()

    @property
    def device(self) -> str:
        """The torch device of this run, "auto" resolved."""
        if self.machine.device != "auto":
            return self.machine.device
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"

    def write(self, path: str) -> contextlib.AbstractContextManager[Path]:
        """:func:`writing`."""
        return writing(path)

    @contextlib.contextmanager
    def resumable_folder(self, path: str) -> Iterator[Path]:
        """As `write`, for a folder whose writer goes on with what it finds: what an interrupted run has made is kept.

        It grows in `.cache/unfinished/<stage>/<key>`, the key being that of everything the result follows from, and
        moves to `path` when the block ends without an error. What runs with other inputs left there goes then, too.
        """
        final, folder = Path(path), UNFINISHED_STORE / self.name / self._key
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
        final.parent.mkdir(parents=True, exist_ok=True)
        if final.is_dir():  # as in `write`
            remove(final)
        try:
            os.replace(folder, final)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            with self.write(path) as partial:  # `.cache` is on another file system
                shutil.copytree(folder, partial)
        remove(UNFINISHED_STORE / self.name)

    def write_metrics(self, path: str, values: Mapping[str, float | str]) -> None:
        """Flat JSON for `dvc metrics show`: names to numbers or words. JSON has no NaN: a figure about nothing is left out."""
        with self.write(path) as partial:
            rounded = {
                name: value if isinstance(value, str) else round(value, 6)
                for name, value in values.items()
                if isinstance(value, str) or math.isfinite(value)
            }
            partial.write_text(json.dumps(rounded, indent=2) + "\n", encoding="utf-8")

    def write_history(self, path: str, rows: Sequence[Mapping[str, float]]) -> None:
        """A training history as CSV for `dvc plots`: one row per logged step, a column for every name that occurs."""
        names = list(dict.fromkeys(name for row in rows for name in row))
        with self.write(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=names or ["step"])
            writer.writeheader()
            writer.writerows(
                {name: f"{value:.6g}" if isinstance(value, float) else value for name, value in row.items()}
                for row in rows
            )

    def checkpoints(self, part: str = "") -> TrainingCheckpoints:
        """Where a training of this stage keeps its state, so that a run that was stopped goes on.

        DVC removes a stage's outs before it runs, so the state lives beside them, under a key of everything that
        determines the result: other parameters, inputs or code never continue an old training. Gone on success.
        """
        from diptych.model.checkpoints import TrainingCheckpoints

        return TrainingCheckpoints(self.training_folder / part if part else self.training_folder)

    @property
    def training_store(self) -> Path:
        """`.cache/training/<stage>`: the states of trainings of this stage."""
        return TRAINING_STORE / (self.states or self.name)

    @property
    def training_folder(self) -> Path:
        """`.cache/training/<stage>/<key>`."""
        return self.training_store / self._key

    @functools.cached_property
    def _key(self) -> str:
        """Of the inputs as they are when it is first asked for."""
        return _key_of_inputs(self)

    def forget_training(self) -> None:
        """Remove the state of a training that has ended well."""
        if self.training_store.exists():  # hashing the inputs again only where a training left something
            remove(self.training_folder)


def run(name: str, kind: type[T], main: Callable[[Stage, T], None], matrix: tuple[str, ...] = ()) -> None:
    """Run stage `name` of dvc.yaml, or `FOLDER/NAME` of pipelines/FOLDER/dvc.yaml: the section of params.yaml that is called
    as the stage or the folder goes to `main`, as `kind`.

    matrix: keys of a stage that is one; the command line has a value for each, as `python -m pipelines.x_lxmert.fine_tune vqa`.
    """
    folder = name.rpartition("/")[0]
    with one_line_errors(" ".join((name, *sys.argv[1 : 1 + len(matrix)])), mends_of(folder)):
        check_places(pipelines=(str(pipeline_of(folder)),))
        stage, params = read_stage(name, kind, matrix)
        prepare_process(stage.threads)
        print(announcement(stage.name, stage.pipeline, read_params()), flush=True)
        main(stage, params)
        stage.write_metrics(f"metrics/stages/{stage.name.replace('@', '_')}.json", cost_so_far())
        stage.forget_training()  # last: the same command goes on from it where a write fails


def read_stage(name: str, kind: type[T], matrix: tuple[str, ...] = ()) -> tuple[Stage, T]:
    """Stage `name` and its section of params.yaml as `kind`, as :func:`run` says. Raises ParameterError where a key or a
    value of the command line is wrong."""
    params = read_params()
    folder = name.rpartition("/")[0]
    machine, seed = read_section(Machine, "machine", params), read_section(int, "seed", params)
    section = read_section(kind, folder or name, params, provided=provided_by(machine, seed))
    if not folder:
        return Stage(name, seed, machine, {key: params[key] for key in ("seed", name)}), section
    values = sys.argv[1:]
    if len(values) != len(matrix):
        raise ParameterError(f"usage: python -m {module_of(name)} {' '.join(matrix).upper()}".rstrip())
    pipeline = pipeline_of(folder)
    command = ["python", "-m", module_of(name)]
    item = find_item(pipeline, command, dict(zip(matrix, values, strict=True)), params)
    listed = listed_values(item, params)
    return Stage(f"{folder}/{item.name}", seed, machine, listed, pipeline, item.values), section


def pipeline_of(folder: str) -> Path:
    """The pipeline file of a folder of pipelines/, or of the repository where it is empty."""
    return Path("pipelines", folder, "dvc.yaml") if folder else Path("dvc.yaml")


def module_of(name: str) -> str:
    """The module that runs a stage."""
    return f"pipelines.{name.replace('/', '.')}"


def mends_of(folder: str) -> Mends | None:
    """What messages about the stages of a folder tell to do; None for the repository's own, whose is the default."""
    if not folder:
        return None
    return Mends(
        f"make {folder.replace('_', '-')}",
        f"lower the batch size in the section {folder} of params.yaml, or close other programs",
    )


def commit() -> str:
    """The commit this run is made from, marked where files were changed since, other than those that a run itself writes."""
    written = [":(top,exclude)metrics", ":(top,exclude,glob)**/dvc.lock"]
    changes = "--porcelain", "--untracked-files=no", "--", ":/", *written
    made_from, changed = (
        subprocess.run(["git", *command], capture_output=True, text=True, check=False).stdout.strip()
        for command in (("describe", "--always"), ("status", *changes))
    )
    return f"{made_from}, with changes" if changed else made_from or "none"


def cost_so_far() -> dict[str, float]:
    """Wall minutes and peak memory of this process and its largest child (GiB) so far."""
    import psutil

    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is bytes on macOS, KiB elsewhere
    own, child = (
        resource.getrusage(who).ru_maxrss * unit for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    own = peak_resident() or own
    # a child's starts at what this process had when it started it: where it is no more, it says nothing about the child
    child = child if child > own else 0
    return {
        "minutes": round((time.time() - psutil.Process().create_time()) / 60, 3),
        "peak_memory_gib": round((own + child) / GIB, 3),
    }


def _key_of_inputs(stage: Stage) -> str:
    """Of the stage's parameters and of every dependency that its pipeline file lists for it."""
    name = stage.name.rpartition("/")[2]
    (item,) = (item for item in read_items(stage.pipeline, read_params()) if item.name == name)
    return key_of([stage.params, stage.machine.precision, stage.device], item.deps)


def key_of(settings: Any, deps: Iterable[str]) -> str:
    """The start of the sha256 over `settings` and the content of `deps`: files, folders, and `code/<stage>.json`."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for dep in deps:
        if dep.startswith(
            f"{code.FOLDER}/"
        ):  # of the code that runs, also where nobody has asked for the stage `code`
            digest.update(f"{dep}\0{json.dumps(code.code_of(dep))}\n".encode())
            continue
        root = Path(STANDS_FOR.get(dep, dep))
        files = (
            sorted(p for p in root.rglob("*") if p.is_file() and p.suffix != ".pyc")
            if root.is_dir()
            else [root]
        )
        for path in files:
            with path.open("rb") as file:
                digest.update(f"{path}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()[:32]
