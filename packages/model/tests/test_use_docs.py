"""Every code block of docs/use.md, and of README.md's section on use, runs, in this process: a new one for each command would import torch each time."""

from __future__ import annotations

import io
import json
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


def blocks(text: str, mark: str = "") -> list[tuple[str, str]]:
    """(language, code) of the blocks of a page that have this mark behind their language."""
    return re.findall(rf"^```(\w+){mark}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


USE = (REPOSITORY / "docs/use.md").read_text(encoding="utf-8")
BLOCKS, ABOUT_ANSWERS, ABOUT_PACKAGES = blocks(USE), blocks(USE, " answers"), blocks(USE, " package")
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
    assert [kind for kind, _ in ABOUT_ANSWERS] == ["python", "sh"]
    assert [kind for kind, _ in ABOUT_PACKAGES] == ["python"]


def test_python(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All blocks, one after the other, as a reader would run them."""
    script = place / "use.py"
    script.write_text("\n".join(code for kind, code in BLOCKS if kind == "python"))
    runpy.run_path(str(script))
    made = {path.name for path in place.glob("*.png")}
    assert made == {"kites.png", "reconstruction.png", "drawn.png", *(f"kite-{number}.png" for number in range(4))}
    assert len(capsys.readouterr().out.splitlines()) > 10


def test_shell(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Line by line; what stands before a pipe is run by the shell."""
    run_lines("".join(code for kind, code in BLOCKS if kind == "sh"), monkeypatch)
    printed = capsys.readouterr().out
    assert printed.count("photos/one.jpg") == 3
    assert (place / "steps-step-3.png").is_file()


def test_what_the_readme_shows(
    place: Path,
    answering_package: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With a package that captions, paints and answers, as the default run leaves it."""
    shutil.rmtree(place / "models/package")
    shutil.copytree(answering_package, place / "models/package")
    (_, code), (_, script) = IN_README
    (place / "readme.py").write_text(code)
    runpy.run_path(str(place / "readme.py"))
    run_lines(script, monkeypatch)
    printed = capsys.readouterr().out
    assert printed.count("photos/one.jpg") == 1 and "out-4.png" in printed
    assert {path.name for path in place.glob("*.png")} == {"kites.png", *(f"out-{n}.png" for n in range(1, 5))}


def run_lines(script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run lines of a shell, each to a status of 0."""
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


def test_answers(
    place: Path,
    answering_package: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The blocks on questions, with a package that answers them."""
    (_, code), (_, script) = ABOUT_ANSWERS
    monkeypatch.setenv("DIPTYCH_MODEL", str(answering_package))
    (place / "questions.txt").write_text("is there a red kite?\nhow many boats are there?\n")
    rows = [{"question_id": 7, "image": "one.jpg", "question": "what color is the house?"}]
    (place / "questions.json").write_text(json.dumps(rows))
    opened = f"from diptych.model import Diptych\nd = Diptych.from_pretrained({str(answering_package)!r})\n"
    (place / "answers.py").write_text(f'{opened}pictures = ["photo.jpg", "photos/one.jpg"]\n{code}')
    runpy.run_path(str(place / "answers.py"))
    assert len(capsys.readouterr().out.splitlines()) == 4
    run_lines(script, monkeypatch)
    printed = capsys.readouterr().out
    assert printed.count("photos/one.jpg") == 6 and '"question_id": 7' in printed
    assert printed.splitlines()[-1] in ("true", "false")


def test_a_package_of_parts(
    place: Path, parts, answering_package: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The block that packages a fine-tuned transformer, with the parts where `make run` and `make x-lxmert` leave them."""
    fine_tuned = answering_package.parent / "transformer"
    for made, folder in (
        (fine_tuned, "x_lxmert/gqa_pretrained"),
        (parts.image_generator, "image_generator"),
        (parts.detector, "detector"),
    ):
        shutil.copytree(made, place / "models" / folder)
    ((_, code),) = ABOUT_PACKAGES
    (place / "packaged.py").write_text(code)
    runpy.run_path(str(place / "packaged.py"))
    assert (place / "models/gqa_package/SHA256SUMS").is_file()
    assert len(capsys.readouterr().out.splitlines()) == 1
