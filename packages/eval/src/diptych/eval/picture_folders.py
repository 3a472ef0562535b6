"""Which files of a folder are pictures, and what is left out: one rule for every command.

The packages features and eval do not know each other and look into the same folders, so that each has this file; a test
keeps the two equal to the letter. It imports nothing of either.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

ENDINGS = frozenset(
    (
        ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".avif", ".gif", ".bmp", ".dib", ".tif",
        ".tiff", ".jp2", ".ppm", ".pgm", ".pbm", ".pnm",
    )
)  # fmt: skip
MACOS_COPIES = "__MACOSX"  # what macOS puts into archives beside the files
_NAMED = 8  # endings that the line names


@dataclass
class Pictures:
    """files: of a folder, as their paths below it, sorted. left_out: how many of which kind are not among them."""

    files: list[Path] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)

    @property
    def remark(self) -> str:
        """What was left out, in one line, such as "left out 12 .heic, 1 .txt"; empty where nothing was."""
        if not self.left_out:
            return ""
        kinds = sorted(self.left_out.items(), key=lambda item: (-item[1], item[0]))
        named = ", ".join(f"{count} {kind}" for kind, count in kinds[:_NAMED])
        more = sum(count for _, count in kinds[_NAMED:])
        line = f"left out {named}" + (f", {more} others" if more else "")
        if self.left_out.keys() & {".heic", ".heif"}:
            line += " (HEIC cannot be read: convert it to JPEG or PNG)"
        return line


def find_pictures(folder: Path, below: bool = True) -> Pictures:
    """The pictures of a folder by their endings, upper or lower case.

    below: also those of its subfolders. A linked subfolder is entered once, after all that are no links, and never where
    it holds `folder` itself or was entered before. Left out and counted: other endings, hidden pictures (.name), what is
    no file, folders that may not be read, and without `below` all folders. Passed over without a count: macOS's
    companions (._name, __MACOSX), and hidden files that are no pictures.

    A broken link of a picture's name is a picture: one that will be reported as missing.
    """
    found = Pictures()
    root = folder.resolve()
    entered = {_identity(parent) for parent in (root, *root.parents)}
    waiting = [Path()]
    links: list[Path] = []
    while waiting or links:
        if not waiting:  # all folders that are no links have been entered
            link = links.pop(0)
            if (identity := _identity(folder / link)) in entered:
                continue
            entered.add(identity)
            waiting.append(link)
        current = waiting.pop()
        try:
            with os.scandir(folder / current) as entries:
                names = sorted(entries, key=lambda entry: entry.name)
        except OSError:
            found.left_out["unreadable folders"] += 1
            continue
        for entry in names:
            _sort_in(entry, current / entry.name, found, waiting, links, entered, below)
    found.files.sort()
    return found


def _sort_in(
    entry: os.DirEntry[str],
    path: Path,
    found: Pictures,
    waiting: list[Path],
    links: list[Path],
    entered: set[tuple[int, int]],
    below: bool,
) -> None:
    if entry.name.startswith("._") or entry.name == MACOS_COPIES:
        return
    if os.path.isdir(entry.path):  # unlike entry.is_dir, it bears links that lead to themselves
        if not below:
            found.left_out["folders"] += 1
        elif entry.is_symlink():
            links.append(path)
        elif (identity := _identity(Path(entry.path))) not in entered:
            entered.add(identity)
            waiting.append(path)
        return
    ending = os.path.splitext(entry.name)[1].lower()
    if entry.name.startswith("."):
        if ending in ENDINGS or entry.name.lower() in ENDINGS:
            found.left_out["hidden"] += 1
    elif ending not in ENDINGS:
        found.left_out[ending if ending.strip(".") else "without ending"] += 1
    elif os.path.isfile(entry.path) or not os.path.exists(entry.path):
        found.files.append(path)
    else:
        found.left_out["no files"] += 1


def _identity(folder: Path) -> tuple[int, int]:
    """What a folder is, by whatever path; (0, 0) where it cannot be asked."""
    try:
        status = folder.stat()
    except OSError:
        return 0, 0
    return status.st_dev, status.st_ino
