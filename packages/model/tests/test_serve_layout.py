"""The web demo's package, as a reader finds it."""

from __future__ import annotations

from pathlib import Path

from diptych.model import serve


def test_it_says_what_its_files_are() -> None:
    assert serve.__doc__ is not None and serve.__file__ is not None
    listed = {line.split()[0] for line in serve.__doc__.splitlines() if line.startswith("    ")}
    files = {path.name for path in Path(serve.__file__).parent.glob("*.py")} - {"__init__.py"}
    assert listed == files | {"static/"}
