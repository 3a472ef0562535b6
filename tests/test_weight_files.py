"""The one text that two packages have, since they do not know each other."""

from __future__ import annotations

from pathlib import Path

PACKAGES = Path(__file__).parent.parent / "packages"


def test_both_packages_recognise_files_of_weights_alike() -> None:
    texts = [
        (PACKAGES / name / "src/diptych" / name / "weight_files.py").read_text(encoding="utf-8")
        for name in ("features", "eval")
    ]
    assert texts[0] == texts[1]
    assert not any(line.startswith(("from diptych", "import diptych")) for line in texts[0].splitlines())
