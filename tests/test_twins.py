"""features and eval do not know each other, and read pictures and files of weights and count cores alike: each has the
same files."""

from __future__ import annotations

from pathlib import Path

import pytest

PACKAGES = Path(__file__).resolve().parent.parent / "packages"


@pytest.mark.parametrize(
    "name", ["picture_reader.py", "picture_folders.py", "processor.py", "weight_files.py"]
)
def test_both_packages_have_the_same_file(name: str) -> None:
    first, second = (PACKAGES / package / "src/diptych" / package / name for package in ("features", "eval"))
    assert first.read_bytes() == second.read_bytes(), f"change {first} and copy it to {second}"
    assert not any(
        line.lstrip().startswith(("from diptych", "import diptych"))
        for line in first.read_text().splitlines()
    )
