"""Pictures of the report: small enough to embed, and mosaics of cells."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

from PIL import Image, ImageDraw

# pixels of the longer side, and bytes that a picture may have as it is
LARGEST, SMALL_FILE = 256, 4096


def data_uri(content: bytes, shrink: bool = True) -> str:
    """A picture file as it is when it is small, else as WebP, its longer side LARGEST pixels at most.

    shrink: False leaves a PNG, JPEG or WebP file of any size as it is.
    """
    with Image.open(io.BytesIO(content)) as file:
        kind = (file.format or "").lower()
        large = shrink and (max(file.size) > LARGEST or len(content) > SMALL_FILE)
        if large or kind not in ("png", "jpeg", "webp"):
            picture = file.convert("RGB")
            picture.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
            buffer = io.BytesIO()
            picture.save(buffer, "WEBP", quality=88, method=4)
            kind, content = "webp", buffer.getvalue()
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def cell_patches(cells: Sequence[tuple[bytes, int]], cells_per_side: int = 8, tile: int = 48) -> bytes:
    """A strip of cells as WebP: each with the cells around it, framed, in a square of `tile` pixels.

    cells: a picture file and the number of its cell, row-major from the top left.
    """
    gap = 4
    strip = Image.new("RGB", (max(1, len(cells)) * (tile + gap) - gap, tile), "white")
    for place, (content, cell) in enumerate(cells):
        picture = Image.open(io.BytesIO(content)).convert("RGB")
        width, height = (length / cells_per_side for length in picture.size)
        row, column = divmod(cell, cells_per_side)
        # outside the picture the strip stays grey
        canvas = Image.new(
            "RGB", (picture.width + 2 * round(width), picture.height + 2 * round(height)), "#e3e5ea"
        )
        canvas.paste(picture, (round(width), round(height)))
        box = (
            round(column * width), round(row * height),
            round(column * width) + round(3 * width), round(row * height) + round(3 * height),
        )  # fmt: skip
        patch = canvas.crop(box).resize((tile, tile), Image.Resampling.BICUBIC)
        third = tile / 3
        ImageDraw.Draw(patch).rectangle((third - 1, third - 1, 2 * third, 2 * third), outline="#ff3b30")
        strip.paste(patch, (place * (tile + gap), 0))
    buffer = io.BytesIO()
    strip.save(buffer, "WEBP", quality=88, method=4)
    return buffer.getvalue()
