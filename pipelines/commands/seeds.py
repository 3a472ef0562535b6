"""The whole run again with other seeds, each in a clone of its own: how much of a figure is the seed's?

`python -m pipelines.commands.seeds [--seeds 0 1 2]` is no stage: for each seed it runs `dvc repro` in the clone
`.cache/seeds/SEED`, with this folder's params.yaml and code, then writes metrics/seeds.json: mean and standard deviation of every
figure of `evaluate` and of the minutes. The clones share this one's DVC cache and feature store, so what ran here already with a
seed is not run again. Stopped, the same command goes on where it stood; each clone keeps its own report.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.runner.code import PIPELINES, SOURCES
from pipelines.runner.errors import Mends, one_line_errors
from pipelines.runner.groups import run_group
from pipelines.runner.items import read_items, within
from pipelines.runner.params import PARAMS_FILE, ParameterError, check_seeds, read_params
from pipelines.runner.writing import writing

NAME = "seeds"
CLONES = Path(".cache/seeds")
RESULT = Path("metrics/seeds.json")
PIPELINE = Path("dvc.yaml")
CODE = ("dvc.yaml", "pipelines", "packages")
# those that the README shows
SHOWN = (
    "caption.cider_d",
    "caption.main_fact",
    "answer.accuracy",
    "painted.main_object",
    "painted.second_object",
    "painted.second_object_said",
    "painted.r_precision_judge",
    "painted.frechet_judge",
    "painted.counts_said",
    "painted.counts_right",
    "total.minutes",
)


def main() -> None:
    """Run the seeds one after the other, then write what they gave."""
    parser = argparse.ArgumentParser(description="Repeat the whole run with other seeds.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    seeds = list(dict.fromkeys(parser.parse_args().seeds))
    mends = Mends("make seeds", "lower the batch sizes in params.yaml, or close other programs")
    with one_line_errors(NAME, mends):
        check_seeds(seeds)
        params = read_params()
        commit = committed_code()
        made: dict[int, dict[str, float]] = {}
        for place, seed in enumerate(seeds, 1):
            folder = CLONES / str(seed)
            print(f"seed {seed}, {place} of {len(seeds)}: dvc repro in {folder}", flush=True)
            set_up(folder, commit, seed, params)
            run(folder, seed)
            made[seed] = figures(folder)
        together = summary(made)
        with writing(str(RESULT)) as path:
            path.write_text(json.dumps(together, indent=2) + "\n", encoding="utf-8")
        print(table(made, together))


def committed_code() -> str:
    """The commit that the clones run. Raises ParameterError where code was changed since."""
    # DVC's records of what ran here are no code
    changed = git("status", "--porcelain", "--", *CODE, ":(exclude,glob)**/dvc.lock")
    if changed:
        name = changed.splitlines()[0][3:]
        raise ParameterError(
            f"{name} is not committed: commit it, since each seed runs in a clone of this one"
        )
    return git("rev-parse", "HEAD")


def set_up(folder: Path, commit: str, seed: int, params: Mapping[str, Any]) -> None:
    """A clone at `commit` whose params.yaml differs from this one's in its seed alone."""
    from ruamel.yaml import YAML

    if not folder.is_dir():
        with writing(str(folder)) as path:
            git("clone", "--quiet", "--no-checkout", ".", str(path))
    git("fetch", "--quiet", str(Path.cwd()), commit, folder=folder)
    git("checkout", "--quiet", "--force", "--detach", commit, folder=folder)
    dvc = str(Path(sys.executable).with_name("dvc"))
    cache = told(dvc, "cache", "dir")
    told(dvc, "cache", "dir", "--quiet", "--local", cache, folder=folder)
    link_inputs(folder, params)
    yaml = YAML()
    written = yaml.load(PARAMS_FILE)
    written["seed"] = seed
    written["machine"]["feature_store"] = str(Path(written["machine"]["feature_store"]).resolve())
    with writing(str(folder / PARAMS_FILE)) as path:
        yaml.dump(written, path)


def link_inputs(folder: Path, params: Mapping[str, Any]) -> None:
    """What was put into data/ beside the outputs, such as data/coco, and what parameters name that no stage of the pipeline makes,
    such as a model to start from, stand in the clone as links."""
    outs = {
        path: [out for item in read_items(path, params) for out in item.outs]
        for pattern in PIPELINES
        for path in sorted(Path().glob(pattern))
    }
    own, every = outs[PIPELINE], [out for of_pipeline in outs.values() for out in of_pipeline]
    put = [path for path in Path("data").glob("*") if not (path.name.startswith(".") or touches(path, every))]
    named = [path for path in named_paths(params) if path.exists() and not touches(path, own)]
    for path in (*put, *named):
        link = folder / path
        if not link.exists() and not link.is_symlink():
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path.resolve())


def touches(path: Path, outs: Sequence[str]) -> bool:
    """Whether `path` is one of the outputs, lies in one, or has one in it."""
    name = path.as_posix()
    return any(within(out, name) or within(name, out) for out in outs)


def named_paths(value: Any) -> Iterator[Path]:
    """The texts anywhere in parameters that could be paths below this folder."""
    if isinstance(value, Mapping | list):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from named_paths(each)
    elif isinstance(value, str) and "/" in value and not Path(value).is_absolute():
        yield Path(value)


def run(folder: Path, seed: int) -> None:
    """`dvc repro` with the clone's own modules. Raises ParameterError where a stage fails, which has said why."""
    sources = [str(folder.resolve() / source) for source in SOURCES]
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(sources),
    }
    dvc = str(Path(sys.executable).with_name("dvc"))
    if run_group([dvc, "repro"], folder, environment):
        raise ParameterError(
            f"seed {seed}: a stage in {folder} did not end: after its mend, `make seeds` goes on"
        )


def figures(folder: Path) -> dict[str, float]:
    """What `evaluate` measured, and the minutes of all stages."""
    measured = json.loads((folder / "metrics/evaluate.json").read_text(encoding="utf-8"))
    minutes = json.loads((folder / "metrics/stages.json").read_text(encoding="utf-8"))
    return measured | {"total.minutes": minutes["total.minutes"]}


def summary(made: Mapping[int, Mapping[str, float]]) -> dict[str, Any]:
    """The figures that every seed has: NAME, the mean, and NAME_std, the standard deviation."""
    common = [name for name in next(iter(made.values())) if all(name in each for each in made.values())]
    result: dict[str, Any] = {"seeds": len(made)}
    for name in common:
        values = [each[name] for each in made.values()]
        result[name] = round(statistics.mean(values), 6)
        result[f"{name}_std"] = round(statistics.stdev(values), 6) if len(values) > 1 else 0.0
    return result


def table(made: Mapping[int, Mapping[str, float]], means: Mapping[str, float]) -> str:
    """The figures that the README shows, a column for each seed."""
    lines = [
        f"| figure | mean | deviation | {' | '.join(f'seed {seed}' for seed in made)} |",
        f"| --- |{' --- |' * (len(made) + 2)}",
    ]
    for name in SHOWN:
        if name in means:
            cells = (
                f"{value:.3f}"
                for value in (means[name], means[f"{name}_std"], *(m[name] for m in made.values()))
            )
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def git(*arguments: str, folder: Path = Path()) -> str:
    """What git prints. Raises ParameterError with its last line where it fails."""
    return told("git", *arguments, folder=folder)


def told(*command: str, folder: Path = Path()) -> str:
    """What a command prints. Raises ParameterError with its last line where it fails."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        name = f"{Path(command[0]).name} {command[1]}"
        raise ParameterError(f"{name}: {(done.stderr.strip().splitlines() or ['failed'])[-1]}")
    return done.stdout.rstrip("\n")


if __name__ == "__main__":
    main()
