"""Pictures of a study: found in folders by name, stored without anything that tells where they come from."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from random import Random

from PIL import Image

from diptych.eval import picture_folders
from diptych.eval.errors import UserError
from diptych.eval.picture_reader import PictureError, read_pixels

LONGEST_SIDE = 1024
_TILES = 6


def find_pictures(folder: Path) -> dict[str, Path]:
    """The pictures of a folder by file name without suffix; what is left out is counted in one line on stderr."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no folder of pictures")
    listed = picture_folders.find_pictures(folder, below=False)
    found: dict[str, Path] = {}
    for path in (folder / file for file in listed.files):
        if path.stem in found:
            raise UserError(
                f"{folder}: two pictures are called {path.stem}: {found[path.stem].name}, {path.name}"
            )
        found[path.stem] = path
    if not found:
        also = f"; {listed.remark}" if listed.remark else ""
        raise UserError(f"{folder}: holds no pictures ({', '.join(sorted(picture_folders.ENDINGS))}){also}")
    if listed.remark:
        print(f"{folder}: {listed.remark}", file=sys.stderr)
    return found


def read_picture(path: Path) -> bytes:
    """A picture as RGB PNG of at most 1024 x 1024 pixels, upright, freshly encoded.

    All systems' pictures get the same format, and what their files say beside the pixels (the generator, its settings,
    a camera) is gone. The pixels are those that the model and the metrics see.
    """
    try:
        return _encoded(read_pixels(path.read_bytes()))
    except (OSError, PictureError, MemoryError) as error:
        raise UserError(
            f"{path}: no readable picture ({error}); replace it or leave its caption out"
        ) from None


def scramble(png: bytes, seed: str) -> bytes:
    """The same picture cut into 6 x 6 tiles that are shuffled and turned over: nobody takes it for real."""
    random = Random(seed)
    with Image.open(io.BytesIO(png)) as opened:
        picture = opened.convert("RGB")
    width, height = max(1, picture.width // _TILES), max(1, picture.height // _TILES)
    corners = [(column * width, row * height) for row in range(_TILES) for column in range(_TILES)]
    tiles = [picture.crop((x, y, x + width, y + height)) for x, y in corners]
    random.shuffle(tiles)
    result = Image.new("RGB", (width * _TILES, height * _TILES))
    for (x, y), tile in zip(corners, tiles, strict=True):
        result.paste(tile.rotate(180), (x, y))
    return _encoded(result)


def _encoded(picture: Image.Image) -> bytes:
    # pixels alone: a converted picture still carries what its file said
    bare = Image.new("RGB", picture.size)
    bare.paste(picture)
    bare.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
    target = io.BytesIO()
    bare.save(target, format="PNG")
    return target.getvalue()
