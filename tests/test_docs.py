"""What README and docs show exists: links, paths, commands, and Python that runs.

Tests beside the packages run what is shown of their commands (test_use_docs.py, test_study.py, test_command.py).
"""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

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
