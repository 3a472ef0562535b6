"""The clone: git, parameters, what killed runs left, locks."""

from __future__ import annotations

import fcntl
import itertools
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.commands.doctor.finding import Finding, note, ok, one_line, problem, together
from pipelines.commands.doctor.storage import spelled_size, used_bytes


def check_git(clone: Path) -> Finding:
    """git is there and this is a clone."""
    if shutil.which("git") is None:
        return problem("missing, DVC needs it: apt-get install git")
    done = subprocess.run(
        ["git", "rev-parse", "--show-toplevel"], cwd=clone, capture_output=True, text=True, check=False
    )
    if done.returncode:
        return problem(
            f"{clone} cannot be used as a clone ({one_line(done.stderr)}): git clone, not an archive"
        )
    if not (clone / ".dvc/config").exists():
        return problem(f"{clone}/.dvc/config is missing: git checkout .dvc")
    return ok(f"clone in {done.stdout.strip()}")


def check_params(clone: Path) -> Finding:
    """params.yaml is right, section by section, the files of others are where it says, and the dataset will have its splits."""
    from pipelines.runner.check import check_params as check_sections
    from pipelines.runner.check import check_sources, check_splits, stages_with_sections
    from pipelines.runner.params import ParameterError, read_params

    try:
        params = read_params(clone / "params.yaml")
        check_sections(params, stages_with_sections(clone / "dvc.yaml"), clone / "params.yaml")
        check_sources(params, clone)
        check_splits(params, clone / "params.yaml")
    except ParameterError as error:
        return problem(str(error))
    return ok(f"params.yaml is right (profile {profile_of(params)})")


def check_places(clone: Path) -> Finding:
    """No link leads what stages write out of the clone."""
    from pipelines.runner.params import ParameterError
    from pipelines.runner.places import check_places as check_links_above_outputs

    try:
        check_links_above_outputs(clone)
    except ParameterError as error:
        return problem(str(error))
    return ok("outputs lie in this clone")


def profile_of(params: Mapping[str, Any]) -> str | None:
    """The name of the profile that params.yaml was written from."""
    return (params.get("report") or {}).get("profile")


def check_leftovers(clone: Path) -> Finding:
    """What killed runs left: half-written outputs, and states that the stages go on from."""
    found = sorted(clone.glob(".partial-*"))
    for name in ("data", "models", "plots", "report", "metrics", "ablations", "code", "comparison"):
        for parent, folders, files in os.walk(clone / name):
            found += [Path(parent, entry) for entry in (*folders, *files) if entry.startswith(".partial-")]
            folders[:] = [folder for folder in folders if not folder.startswith(".partial-")]
    states = {
        path: _run_of(path.relative_to(store))
        for store in (clone / ".cache/training", clone / ".cache/unfinished")
        for path in store.rglob("*")
        if path.is_file()
    }
    findings = []
    if found:
        names = " ".join(str(path.relative_to(clone)) for path in found)
        findings.append(
            note(f"a killed stage left {spelled_size(sum(map(used_bytes, found)))}: rm -r {names}")
        )
    if states:
        runs: dict[str, list[str]] = {}
        for run in sorted(set(states.values())):
            runs.setdefault(_command_of(run), []).append(run)
        mends = "; ".join(f"{', '.join(of_one)} with `{command}`" for command, of_one in runs.items())
        findings.append(
            note(
                f"stopped runs ({spelled_size(sum(map(used_bytes, states)))}) go on where parameters, inputs and code are those "
                f"again: {mends}; to forget them: rm -r .cache/training .cache/unfinished"
            )
        )
    return together(findings or [ok("none")])


def _run_of(file: Path) -> str:
    """What kept `file`, a path below .cache/training or .cache/unfinished: a stage, an item, or a table's folder, such as
    `train_token`, `x_lxmert/pretrain` or `ablations/table2/biart@1`. Below these lie folders named by a key (runner/stage.py)
    and embeddings."""
    return "/".join(
        itertools.takewhile(
            lambda part: part != "embeddings" and not re.fullmatch("[0-9a-f]{32}", part), file.parent.parts
        )
    )


def _command_of(run: str) -> str:
    """The command by which a run goes on, of those that :func:`_run_of` names."""
    from pipelines.runner.check import tables
    from pipelines.runner.items import within
    from pipelines.runner.stage import mends_of

    # a table's folder may lie in another's
    holding = [table for table in tables().values() if within(run, table.folder)]
    if holding:
        return str(max(holding, key=lambda table: len(table.folder)).command)
    if Path(__file__).parents[1].joinpath(f"{run}.py").is_file():  # a comparison of trainings
        return f"python -m pipelines.commands.{run}"
    mends = mends_of(run.rpartition("/")[0])
    return mends.command if mends else "dvc repro"


def check_locks(clone: Path, hardlink_lock: bool = False) -> Finding:
    """Nothing but a living DVC command locks this clone."""
    from pipelines.commands.team_cache import TeamCacheError, running_commands

    temporary = clone / ".dvc/tmp"
    try:
        commands = running_commands(clone)
    except TeamCacheError as error:
        return problem(str(error))
    findings = []
    for command in commands:
        said = f"{temporary}/rwlock: `{command.text}` (process {command.pid})"
        if command.alive:
            findings.append(note(f"{said} is at work: another `dvc repro` here waits for it or is refused"))
        elif command.alive is None:
            findings.append(
                problem(
                    f"{said} is gone, and its number is another program's, which DVC waits for: rm {temporary}/rwlock"
                )
            )
        else:
            findings.append(note(f"{said} was killed; the next DVC command clears that up"))
    if hardlink_lock and (dead := _dead_hardlink_lock(temporary / "lock")):
        findings.append(
            problem(f"{temporary}/lock is held by process {dead}, which is gone: rm {temporary}/lock")
        )
    elif not findings and not hardlink_lock and _is_locked(temporary / "lock"):
        findings.append(note(f"{temporary}/lock: a DVC command is at work in this clone"))
    return together(findings or [ok("none")])


def _is_locked(path: Path) -> bool:
    """Whether a living process holds the lock file (the system lets go of it when a process dies)."""
    try:
        with path.open("r") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def _dead_hardlink_lock(path: Path) -> int | None:
    """The process of this host that holds a lock of core.hardlink_lock (`...|host|process|number`) and is gone."""
    import psutil

    try:
        *_, host, pid, _number = path.read_text().strip().split("|")
        return int(pid) if host == socket.gethostname() and not psutil.pid_exists(int(pid)) else None
    except (OSError, ValueError):
        return None
