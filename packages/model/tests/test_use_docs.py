"""Every code block of docs/use.md, and of README.md's section on use, runs, in this process: a new one for each command would import torch each time."""

from __future__ import annotations

import io
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from diptych.model.command import app

REPOSITORY = Path(__file__).resolve().parents[3]


def blocks(text: str) -> list[tuple[str, str]]:
    """(language, code) of the blocks of a page."""
    return re.findall(r"^```(\w+)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


BLOCKS = blocks((REPOSITORY / "docs/use.md").read_text(encoding="utf-8"))
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
IN_README = blocks(README.partition("## Use it\n")[2].partition("\n## ")[0])


@pytest.fixture
def place(package: Path, pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as the page takes it for granted, and we are in it."""
    shutil.copytree(package, tmp_path / "models/package")
    (tmp_path / "photos").mkdir()
    pictures[0].save(tmp_path / "photo.jpg")
    pictures[1].save(tmp_path / "photos/one.jpg")
    pictures[2].save(tmp_path / "photos/two.jpg")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_there_are_blocks() -> None:
    assert [kind for kind, _ in BLOCKS] == ["python", "python", "python", "sh"]


def test_python(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All blocks, one after the other, as a reader would run them."""
    script = place / "use.py"
    script.write_text("\n".join(code for kind, code in [*IN_README, *BLOCKS] if kind == "python"))
    runpy.run_path(str(script))
    made = {path.name for path in place.glob("*.png")}
    assert made == {"kites.png", "reconstruction.png", *(f"kite-{number}.png" for number in range(4))}
    assert len(capsys.readouterr().out.splitlines()) > 10


def test_shell(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Line by line; what stands before a pipe is run by the shell."""
    assert [kind for kind, _ in IN_README] == ["python", "sh"]
    script = "".join(code for kind, code in [*IN_README, *BLOCKS] if kind == "sh")
    for line in script.splitlines():
        *before, command = line.split(" | ")
        words = shlex.split(command, comments=True)
        if words[0] == "export":
            monkeypatch.setenv(*words[1].split("="))
            continue
        assert words[0] == "diptych"
        if before:
            (producer,) = before
            produced = subprocess.run(producer, shell=True, capture_output=True, text=True, check=True)
            monkeypatch.setattr(sys, "stdin", io.StringIO(produced.stdout))
        with pytest.raises(SystemExit) as ended:
            app.main(words[1:])
        assert not ended.value.code, line
    printed = capsys.readouterr().out
    assert printed.count("photos/one.jpg") == 4 and "out-4.png" in printed
    assert (place / "steps-step-3.png").is_file()
