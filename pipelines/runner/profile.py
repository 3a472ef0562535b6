"""Write params.yaml from a profile of pipelines/conf, as `dvc exp run` does: `python -m pipelines.runner.profile smoke`."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from pipelines.runner.errors import Mends, one_line_errors
from pipelines.runner.params import PARAMS_FILE, ParameterError
from pipelines.runner.writing import writing

CONF = Path(__file__).parents[1] / "conf"


def profiles() -> list[str]:
    """Names of the profiles, from the files in pipelines/conf/profile."""
    return sorted(path.stem for path in (CONF / "profile").glob("*.yaml"))


def write_profile(profile: str, target: Path, overrides: Sequence[str] = (), conf: Path = CONF) -> None:
    """Compose `profile` of `conf` with Hydra overrides ("cluster.k=64") into the parameter file `target`.

    Line breaks within an override, which a long one has in a shell, count as spaces.

    Raises:
        ParameterError: an override is none, or fits no parameter; `target` stays as it is.
    """
    from dvc.utils.hydra import compose_and_dump
    from hydra.errors import HydraException, OverrideParseException
    from omegaconf.errors import OmegaConfBaseException

    conf = conf.absolute()
    # Hydra's grammar knows no line breaks
    changes = [re.sub(r"\s*[\r\n]\s*", " ", override) for override in overrides]
    try:
        with writing(str(target)) as partial:
            compose_and_dump(partial, str(conf), None, "config", str(conf), [f"profile={profile}", *changes])
    except (HydraException, OmegaConfBaseException) as error:
        named = f"{error.override}: " if isinstance(error, OverrideParseException) else ""
        raise ParameterError(f"{profile}: {named}{' '.join(str(error).split())}") from None


def main(arguments: Sequence[str]) -> None:
    """Write ./params.yaml. arguments: a profile, by default toybox, and overrides."""
    name, *changes = arguments or ["toybox"]
    with one_line_errors("profile", Mends("make profile", "close other programs")):
        if name not in profiles():
            raise ParameterError(f"there is no profile {name!r}: choose one of {', '.join(profiles())}")
        write_profile(name, PARAMS_FILE, changes)
    print(f"{PARAMS_FILE} is now the {name} profile")


if __name__ == "__main__":
    main(sys.argv[1:])
