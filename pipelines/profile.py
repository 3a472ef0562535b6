"""Write params.yaml from a profile of pipelines/conf, as `dvc exp run` does: `python -m pipelines.profile smoke`."""

from __future__ import annotations

import sys
from pathlib import Path

CONF = Path(__file__).parent / "conf"


def profiles() -> list[str]:
    """Names of the profiles, from the files in pipelines/conf/profile."""
    return sorted(path.stem for path in (CONF / "profile").glob("*.yaml"))


def write_profile(profile: str, target: Path, overrides: list[str] | None = None) -> None:
    """Compose `profile` with Hydra overrides ("detector.steps=5") into the parameter file `target`."""
    from dvc.utils.hydra import compose_and_dump

    with_profile = [f"profile={profile}", *(overrides or [])]
    compose_and_dump(target, str(CONF), None, "config", str(CONF), with_profile)


if __name__ == "__main__":
    name, *changes = sys.argv[1:] or ["toybox"]
    if name not in profiles():
        sys.exit(f"there is no profile {name!r}: choose one of {', '.join(profiles())}")
    write_profile(name, Path("params.yaml"), changes)
    print(f"params.yaml is now the {name} profile")
