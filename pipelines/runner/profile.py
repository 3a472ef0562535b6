"""Write params.yaml from a profile of pipelines/conf, as `dvc exp run` does: `python -m pipelines.runner.profile smoke`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

CONF = Path(__file__).parents[1] / "conf"


def profiles() -> list[str]:
    """Names of the profiles, from the files in pipelines/conf/profile."""
    return sorted(path.stem for path in (CONF / "profile").glob("*.yaml"))


def write_profile(profile: str, target: Path, overrides: Sequence[str] = (), conf: Path = CONF) -> None:
    """Compose `profile` of `conf` with Hydra overrides ("cluster.k=64") into the parameter file `target`."""
    from dvc.utils.hydra import compose_and_dump

    conf = conf.absolute()
    compose_and_dump(target, str(conf), None, "config", str(conf), [f"profile={profile}", *overrides])


if __name__ == "__main__":
    name, *changes = sys.argv[1:] or ["toybox"]
    if name not in profiles():
        sys.exit(f"there is no profile {name!r}: choose one of {', '.join(profiles())}")
    write_profile(name, Path("params.yaml"), changes)
    print(f"params.yaml is now the {name} profile")
