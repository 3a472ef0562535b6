"""Finding the file of an image, also where its name is spelled otherwise than on this disk."""

from __future__ import annotations

import os
import stat
import sys
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote

from diptych.features.datasets.coco.annotations import ListedImage
from diptych.features.errors import UserError


def find_files(images: Sequence[ListedImage]) -> list[os.stat_result]:
    """What the file system says of each image's file; sets `path` where it is spelled otherwise there.

    Windows' separators, %20 for a blank, letters' case, composed or decomposed accents, and the folders of an absolute
    path on another machine may differ, if one file fits. Raises one UserError for all that are missing, and one for a
    name that two files fit, or a file that two names fit.
    """
    found, missing, respelled = [], [], []
    folders: dict[Path, dict[str, list[str]]] = {}
    for image in images:
        status = _status(image)
        if status is None:
            if image.folder not in folders:
                folders[image.folder] = _spellings(image.folder)
            if name := _elsewhere(image, folders[image.folder]):
                image.path = image.folder / name
                respelled.append(image)
                status = _status(image)
        if status is None:
            missing.append(image)
        else:
            found.append(status)
    if missing:
        mend = "complete the image folder or remove these images from the annotations"
        if len(missing) == len(images):
            mend = "give the folder that the annotations are of: the same split and year"
        raise UserError(
            f"{missing[0].origin}: {len(missing)} of {len(images)} images are missing on disk, the first is "
            f"{missing[0].image_id}, {missing[0].path}; {mend}. {missing[0].name!r} was looked for below "
            f"{missing[0].folder}, also in other spellings (case, accents, %20, \\)"
        )
    if respelled:
        _check_taken(images, respelled)
        first = respelled[0]
        print(
            f"coco: {len(respelled)} file names are spelled otherwise on disk; the first is {first.name!r}, read as "
            f"{first.path}",
            file=sys.stderr,
        )
    return found


def _status(image: ListedImage) -> os.stat_result | None:
    try:
        status = image.path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if "\\" in image.name or len(image.name) > 255:  # too long for a name here
            return None
        raise UserError(
            f"{image.origin}: image {image.image_id} is {image.path}, which cannot be read ({error.strerror}); "
            "mend the file or remove the image from the annotations"
        ) from error
    return status if stat.S_ISREG(status.st_mode) else None


def _spellings(folder: Path) -> dict[str, list[str]]:
    """All files below the folder, by their names without what may differ."""
    names: dict[str, list[str]] = {}
    for place, _, files in os.walk(folder):
        for file in files:
            name = os.path.relpath(os.path.join(place, file), folder)
            names.setdefault(_spelling(name), []).append(name)
    return names


def _spelling(name: str) -> str:
    name = unicodedata.normalize("NFC", unquote(name.replace("\\", "/"))).casefold()
    # once more: what casefold makes of some letters is not composed
    return unicodedata.normalize("NFC", os.path.normpath(name))


def _elsewhere(image: ListedImage, names: dict[str, list[str]]) -> str | None:
    name = _spelling(image.name)
    absolute = name.startswith("/") or name[1:2] == ":"
    parts = name.split("/")
    # a path of another machine: the longest end of it that is here
    for start in range(1 if absolute else 0, len(parts) if absolute else 1):
        found = sorted(names.get("/".join(parts[start:]), []))
        if len(found) > 1:
            raise UserError(
                f"{image.origin}: image {image.image_id} is called {image.name!r}, and {len(found)} files of "
                f"{image.folder} could be it: {found[0]} and {found[1]}; rename one, or write the exact name"
            )
        if found:
            return found[0]
    return None


def _check_taken(images: Sequence[ListedImage], respelled: Sequence[ListedImage]) -> None:
    """No file may be two images' because of how it is spelled."""
    of_path: dict[Path, list[ListedImage]] = {image.path: [] for image in respelled}
    for image in images:
        if image.path in of_path:
            of_path[image.path].append(image)
    for path, several in of_path.items():
        if len(several) > 1:
            raise UserError(
                f"{several[0].origin}: images {several[0].image_id} ({several[0].name!r}) and {several[1].image_id} "
                f"({several[1].name!r}) would both be {path}; write the exact names"
            )
