"""All checks in turn, a line each, as they come."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pipelines.commands.doctor.clone import (
    check_git,
    check_leftovers,
    check_locks,
    check_params,
    check_places,
    profile_of,
)
from pipelines.commands.doctor.finding import Finding, guarded, ok, one_line, problem
from pipelines.commands.doctor.installation import check_packages, check_python, check_ray, check_torch
from pipelines.commands.doctor.machine import (
    check_encoding,
    check_gpu,
    check_java,
    check_memory,
    check_processor,
    find_gpus,
)
from pipelines.commands.doctor.storage import (
    check_links,
    check_remote,
    check_shared_folder,
    check_space,
    space_needed,
)


def examine(clone: Path) -> Iterable[tuple[str, Finding]]:
    """Run all checks on this machine and `clone`; (name, finding) as they come."""
    yield "python", check_python()
    yield "packages", guarded(lambda: check_packages(clone))
    yield "torch", guarded(check_torch)
    yield "parameters", guarded(lambda: check_params(clone))
    params = _read_leniently(clone)
    machine = _section(params, "machine")
    threads, workers, device = (machine.get(key, "auto") for key in ("threads", "workers", "device"))

    def processor() -> Finding:
        from diptych.features.processor import cpu_quota, seen_cores
        from pipelines.runner.threads import at_most_given

        return check_processor(threads, at_most_given(seen_cores()), cpu_quota())

    yield "processor", guarded(processor)

    def machine_memory() -> Finding:
        from pipelines.runner.memory import memory

        return check_memory(profile_of(params), *memory())

    yield "memory", guarded(machine_memory)
    yield "gpu", guarded(lambda: check_gpu(str(device), *find_gpus()))
    yield "ray", guarded(lambda: check_ray(workers, machine.get("ray_address")))
    yield "java", guarded(lambda: check_java(_section(params, "evaluate").get("java") is True))
    yield "encoding", check_encoding()
    yield "git", guarded(lambda: check_git(clone))
    yield "places", guarded(lambda: check_places(clone))

    try:
        from pipelines.commands.team_cache import open_repository

        repo = open_repository(clone)
    except Exception as error:  # noqa: BLE001  (without DVC there is nothing more to examine)
        yield "dvc", problem(one_line(error))
        return
    cache, settings, core = Path(repo.cache.legacy.path), repo.config["cache"], repo.config["core"]
    store = clone / str(machine.get("feature_store", ".cache/features"))
    remote = core.get("remote")
    version = importlib.metadata.version("dvc")
    repo.close()
    shared = settings.get("shared") == "group"
    yield "dvc", ok(f"{version}, cache in {cache}{', shared with a group' if shared else ''}")
    yield "cache", guarded(lambda: check_shared_folder(cache, shared))
    types = list(repo.cache.local.cache_types)
    links = guarded(lambda: check_links(clone, cache, types))
    yield "links", links
    yield "feature store", guarded(lambda: check_shared_folder(store, store.is_symlink()))
    yield "remote", guarded(lambda: check_remote(remote, repo.config["remote"].get(remote, {}).get("url")))
    linked = links.level == "ok" and types[0] != "copy"
    yield "disk", guarded(lambda: check_space(space_needed(params, clone, cache, store, linked)))
    yield "leftovers", guarded(lambda: check_leftovers(clone))
    yield "locks", guarded(lambda: check_locks(clone, bool(core.get("hardlink_lock"))))


def _read_leniently(clone: Path) -> Mapping[str, Any]:
    """params.yaml as far as it can be read: what is wrong with it is another check's finding."""
    try:
        from ruamel.yaml import YAML

        params = YAML(typ="safe").load(clone / "params.yaml")
    except Exception:  # noqa: BLE001
        return {}
    return params if isinstance(params, dict) else {}


def _section(params: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A section, empty where it is missing or none."""
    section = params.get(name)
    return section if isinstance(section, dict) else {}


def main() -> None:
    """Print a line for every check of this folder's clone; status 1 where something prevents a run."""
    problems = 0
    for name, finding in examine(Path.cwd()):
        problems += finding.level == "problem"
        print(f"{finding.level:<8} {name:<14} {finding.text}", flush=True)
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
