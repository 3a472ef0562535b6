"""What README and docs show exists: links, paths, commands, and Python that runs.

Tests beside the packages run what is shown of their commands (test_use_docs.py, test_study.py, test_command.py).
"""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.runner.profile import write_profile

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
# What the pipeline makes and what users bring, which no clone has.
MADE = (
    "data/",
    "models/",
    "metrics/",
    "plots/",
    "report/",
    "ablations/",
    "comparison/",
    ".cache/",
    ".venv/",
    "annotations/",
)
# Rows of README's table of figures, by how they begin, and the figures of metrics/evaluate.json that they show.
MEASURED = {
    "captions: CIDEr-D": ("caption.cider_d",),
    "captions that name the main object": ("caption.main_fact",),
    "answers right, by VQA's accuracy": ("answer.accuracy",),
    "main object right": ("real.main_object", "painted.main_object"),
    "second object right": ("real.second_object", "painted.second_object"),
    "the same, where the sentence names it": ("real.second_object_said", "painted.second_object_said"),
    "R-precision by the judge": ("real.r_precision_judge", "painted.r_precision_judge"),
    "Fréchet distance": ("painted.frechet_judge",),
    "objects there as often": ("real.counts_said", "painted.counts_said"),
    "the same for the whole scene": ("real.counts_right", "painted.counts_right"),
}
THEIRS = {"image_generator/src/trainer.py"}  # what X-LXMERT's repository lacks
OURS = ("diptych", "diptych-eval", "diptych-study")
SHELL_TOOLS = {
    "apt-get",
    "cat",
    "cd",
    "chgrp",
    "chmod",
    "cp",
    "curl",
    "df",
    "docker",
    "du",
    "export",
    "find",
    "getfacl",
    "git",
    "groupadd",
    "install",
    "ln",
    "ls",
    "mkdir",
    "pip",
    "rm",
    "rsync",
    "setfacl",
    "ssh",
    "sudo",
    "usermod",
}


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a language on a page."""
    return re.findall(
        rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )


def commands(page: Path) -> list[list[str]]:
    """The words of every command that a page's shell blocks show."""
    lines = [line for block in blocks(page, "sh") for line in joined(block).splitlines()]
    found = []
    for line in lines:
        for part in re.split(r"\s(?:&&|\|)\s", line):
            words = shlex.split(part, comments=True)
            while words and re.fullmatch(r"\w+=.*", words[0], re.DOTALL):
                words = words[1:]  # an environment variable before the command
            if words:
                found.append(words)
    return found


def joined(block: str) -> str:
    """A shell block with its continued lines and quoted line breaks on one line each."""
    block = block.replace("\\\n", " ")
    return re.sub(r'"[^"]*"', lambda quoted: quoted.group().replace("\n", " "), block)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    relative = [target for target in targets if "://" not in target]
    assert [target for target in relative if not (page.parent / target).exists()] == []


def test_the_index_has_every_page_once() -> None:
    text = (REPOSITORY / "docs/README.md").read_text(encoding="utf-8")
    listed = re.findall(r"^- \[[\w-]+\.md\]\(([\w-]+\.md)\): ", text, re.MULTILINE)
    pages = [page.name for page in PAGES if page.parent.name == "docs" and page.name != "README.md"]
    assert sorted(listed) == sorted(pages)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_paths_exist(page: Path) -> None:
    """Files of the repository, by their whole path or the end of it."""
    named = re.findall(r"`([\w./-]+/[\w.-]+\.(?:py|yaml|md|json|toml|j2))`", page.read_text(encoding="utf-8"))
    paths = [path for path in named if not path.startswith(MADE) and path not in THEIRS]
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    files = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout.split()
    assert [path for path in paths if not any(f"/{file}".endswith(f"/{path}") for file in files)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_exist(page: Path) -> None:
    targets = re.findall(r"^([\w-]+):", (REPOSITORY / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    unknown = []
    for words in commands(page):
        program, *rest = words
        if program == "make":
            known = {word for word in rest if "=" not in word and not word.startswith("-")} <= set(targets)
        elif program in ("python", "torchrun") and "-m" in rest:
            known = importlib.util.find_spec(rest[rest.index("-m") + 1]) is not None
        else:
            known = program in {"dvc", *OURS, *SHELL_TOOLS}
        if not known:
            unknown.append(" ".join(words))
    assert unknown == []


def test_dvc_has_the_commands_that_are_shown() -> None:
    shown = {words[1] for page in PAGES for words in commands(page) if words[0] == "dvc"}
    answer = subprocess.run(
        [sys.executable, "-m", "dvc", "--help"], capture_output=True, text=True, check=True
    )
    assert shown and shown <= set(re.findall(r"[\w-]+", answer.stdout))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_is_python(page: Path) -> None:
    for block in blocks(page, "python"):
        compile(block, page.name, "exec")


def test_tests_that_are_named_exist() -> None:
    files = [*(REPOSITORY / "tests").glob("test_*.py"), *(REPOSITORY / "packages").glob("*/tests/test_*.py")]
    written = "\n".join(file.read_text(encoding="utf-8") for file in files)
    defined = set(re.findall(r"^ *(?:async )?def (test_\w+)\(", written, re.MULTILINE))
    named = {name for page in PAGES for name in re.findall(r"`(test_\w+)`", page.read_text(encoding="utf-8"))}
    assert named and named - defined == set()


def rows(page: Path, below: str) -> list[list[str]]:
    """The cells of the first table of a page below some text, without its two lines of titles."""
    _, _, text = page.read_text(encoding="utf-8").partition(below)
    (table,) = re.findall(r"^(?:\|.*\n)+", text, re.MULTILINE)[:1]
    return [[cell.strip() for cell in line.strip("|\n ").split("|")] for line in table.splitlines()[2:]]


def committed(name: str, folder: Path) -> dict[str, float]:
    """A committed file of figures, whatever a run here has written over it. Skips where what is committed is not the default run,
    as in a team's clone."""

    def text_of(path: str) -> str:
        command = ["git", "show", f"HEAD:{path}"]
        return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout

    write_profile("toybox", folder / "params.yaml")
    if text_of("params.yaml") != (folder / "params.yaml").read_text(encoding="utf-8"):
        pytest.skip("params.yaml is committed with other parameters than the default run's")
    return json.loads(text_of(name))


def as_shown(value: float, shown: str) -> str:
    """A figure with as many decimals as are shown of it."""
    return f"{value:.{len(shown.partition('.')[2])}f}"


def test_the_readme_shows_what_was_measured(tmp_path: Path) -> None:
    figures = committed("metrics/evaluate.json", tmp_path)
    table = rows(REPOSITORY / "README.md", "## What to expect")
    assert len(table) == len(MEASURED)
    for (title, cell), (beginning, names) in zip(table, MEASURED.items(), strict=True):
        assert title.startswith(beginning)
        shown = cell.split(" / ")
        assert shown == [as_shown(figures[name], text) for name, text in zip(names, shown, strict=True)], title
    (alone,) = re.findall(r"from the question alone: ([\d.]+)", table[2][0])
    assert alone == as_shown(figures["words_alone.accuracy"], alone)


def test_the_minutes_are_those_that_were_measured(tmp_path: Path) -> None:
    """But of `report`, which writes the file."""
    costs = committed("metrics/stages.json", tmp_path)
    page = REPOSITORY / "docs/pipeline.md"
    shown = {name.strip("`"): minutes for name, _, minutes in rows(page, "## What runs")}
    measured = {name.partition(".")[0] for name in costs if name.endswith(".minutes")} - {"total"}
    assert shown.keys() == {*measured, "report"}
    for stage in measured:
        assert shown[stage] == as_shown(costs[f"{stage}.minutes"], shown[stage]), stage
    (total,) = re.findall(r"but for `report`: (\d+) in all", page.read_text(encoding="utf-8"))
    assert total == as_shown(costs["total.minutes"], total)


def test_the_house_names_every_objective() -> None:
    (row,) = [cells for cells in rows(REPOSITORY / "docs/house.md", "`evaluate.inception`)") if cells[0] == "a loss"]
    folder = REPOSITORY / "packages/model/src/diptych/model/objectives"
    assert [file.name for file in folder.glob("[!_]*.py") if f"`{file.name}`" not in row[1]] == []
