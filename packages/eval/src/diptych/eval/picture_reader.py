"""The one reader of pictures: a file's bytes to upright RGB pixels, or one error that says what is wrong.

The packages features and eval do not know each other and read the same pictures, so that each has this file; a test keeps
the two equal to the letter. It imports nothing of either.
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError

MAX_PIXELS = 89_478_485  # where Pillow begins to warn of decompression bombs
ORIENTATION = 0x0112  # EXIF's tag
SIDEWAYS = (5, 6, 7, 8)  # its values that stand the picture on its side
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SAY_ORIENTATION = ("exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp")  # in Pillow's `info`
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_JPEG_SCAN, _JPEG_COMMENT = 0xDA, 0xFE
# APP1 to APP15 without Adobe's (14), which says how colours are stored
_JPEG_METADATA = frozenset((*range(0xE1, 0xF0), _JPEG_COMMENT)) - {0xEE}
_AVIF_EXIF = re.compile(rb"(infe(?:\x02.{7}|\x03.{9}))Exif", re.DOTALL)
_HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
Taken = TypeVar("Taken")


class PictureError(Exception):
    """A picture that cannot be read; the message names no file.

    kind: empty, not_an_image, truncated or too_large. size: width and height as stored, where it is too large and its
    header could be read.
    """

    def __init__(self, kind: str, message: str, size: tuple[int, int] | None = None) -> None:
        super().__init__(message)
        self.kind, self.size = kind, size


def read_pixels(
    content: bytes, formats: tuple[str, ...] | None = None, most_pixels: int = MAX_PIXELS
) -> Image.Image:
    """A file's bytes as RGB, upright.

    Greyscale, palette and CMYK pictures are converted, 16-bit values divided by 257 (rounded down), transparency is laid
    on black, of an animation the first frame is taken. A picture whose metadata are broken is read all the same, turned
    where its orientation can be read.

    formats: Pillow's names of those that are tried; null for all that it knows. most_pixels: what has more is refused
    before it is decoded.

    Raises PictureError whatever a decoder raises, MemoryError alone excepted: that may be the machine's fault.
    """
    return _read(content, upright_rgb, formats, most_pixels)


def upright_size(content: bytes, most_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Width and height of the upright picture, from its header where the format allows. Raises as `read_pixels`."""
    return _read(content, _upright_size, None, most_pixels)


def picture_orientation(content: bytes, most_pixels: int = MAX_PIXELS) -> int:
    """EXIF's orientation of the picture as it is stored, 1 (upright) to 8, from its header. Raises as `read_pixels`."""
    return _read(content, _orientation, None, most_pixels)


def stored_orientation(image: Image.Image) -> int:
    """EXIF's (or XMP's) orientation of a picture that Pillow has opened, 1 to 8; 1 where it cannot be read."""
    try:
        value = int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # noqa: BLE001 - other tags may be impossible, in as many ways as there are cameras
        value = _exif_orientation(image.info.get("exif", b""))
    return value if value in _TURNS else 1


def upright_rgb(image: Image.Image, orientation: int | None = None) -> Image.Image:
    """A picture that Pillow has opened, as `read_pixels` returns it; `orientation`: where it is known, 1 to 8."""
    image.load()  # TIFF turns itself here
    # Not ImageOps.exif_transpose: it writes all tags anew, and fails where one of them is impossible.
    turn = _TURNS.get(stored_orientation(image) if orientation is None else orientation)
    if turn is not None:
        image = image.transpose(turn)
        for name in _SAY_ORIENTATION:  # or it would be turned again by who reads it again
            image.info.pop(name, None)
    return _to_rgb(image)


def _read(
    content: bytes,
    take: Callable[[Image.Image, int | None], Taken],
    formats: tuple[str, ...] | None,
    most_pixels: int,
) -> Taken:
    if not content:
        raise PictureError("empty", "the file is empty")
    try:
        return _opened(content, take, None, formats, most_pixels)
    except PictureError as error:
        bare, exif = _without_metadata(content)
        if error.kind == "too_large" or bare == content:
            raise
        try:
            # AVIF's orientation is not EXIF's but the container's own
            orientation = None if _is_avif(content) else _exif_orientation(exif)
            return _opened(bare, take, orientation, formats, most_pixels)
        except PictureError:
            raise error from None  # it was not the metadata


def _opened(
    content: bytes,
    take: Callable[[Image.Image, int | None], Taken],
    orientation: int | None,
    formats: tuple[str, ...] | None,
    most_pixels: int,
) -> Taken:
    try:
        with Image.open(io.BytesIO(content), formats=formats) as image:
            width, height = image.size
            if width * height > most_pixels:
                message = f"{width} x {height} is over {most_pixels} pixels"
                raise PictureError("too_large", message, (width, height))
            return take(image, orientation)
    except (PictureError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise PictureError("too_large", str(error)) from error
    except UnidentifiedImageError as error:
        raise PictureError("not_an_image", f"not an image that can be read{_known_as(content)}") from error
    except Exception as error:  # decoders raise struct.error, zlib.error, RuntimeError, ...
        # AVIF's decoder cannot tell a torn file from one that is none; the others have their words for damage.
        if isinstance(error, (OSError, SyntaxError, ValueError, EOFError)) and not _is_avif(content):
            raise PictureError("truncated", f"the image is damaged ({error})") from error
        raise PictureError("not_an_image", f"not an image that can be read ({error})") from error


def _orientation(image: Image.Image, orientation: int | None) -> int:
    return stored_orientation(image) if orientation is None else orientation


def _upright_size(image: Image.Image, orientation: int | None) -> tuple[int, int]:
    width, height = image.size
    turned = stored_orientation(image) if orientation is None else orientation
    if getattr(image, "tag_v2", {}).get(ORIENTATION) in SIDEWAYS:  # of TIFF, Pillow gives the upright size
        return width, height
    return (height, width) if turned in SIDEWAYS else (width, height)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        # PIL clips 16-bit values to 255 where they should be scaled.
        values = np.nan_to_num(np.asarray(image, dtype=np.float64), nan=0.0)
        # 32-bit and float files do not say what white is; 16-bit ones do.
        top = 65535 if image.mode.startswith("I;16") or values.max() > 255 else 255
        return Image.fromarray((values * 255 / top).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        return Image.alpha_composite(black, image).convert("RGB")
    return image.convert("RGB")


def _without_metadata(content: bytes) -> tuple[bytes, bytes]:
    """The file without what is not needed for its pixels, and the EXIF that it had. What is damaged stays damaged: from
    the first part that does not fit into the file, all is as it was. Of other formats the file itself."""
    if content.startswith(_PNG):
        return _bare_png(content)
    if content.startswith(b"\xff\xd8"):
        return _bare_jpeg(content)
    if _is_avif(content):
        return _AVIF_EXIF.sub(rb"\1free", content), b""
    return content, b""


def _bare_png(content: bytes) -> tuple[bytes, bytes]:
    kept, exif, place = [_PNG], b"", len(_PNG)
    while place + 12 <= len(content):
        (length,) = struct.unpack_from(">L", content, place)
        kind, end = content[place + 4 : place + 8], place + 12 + length
        if end > len(content):
            break
        if kind == b"eXIf":
            exif = content[place + 8 : end - 4]
        # a letter in lower case begins the names of what a reader may pass over
        if kind in _PNG_PIXELS or not kind[:1].islower():
            kept.append(content[place:end])
        place = end
    return b"".join((*kept, content[place:])), exif


def _bare_jpeg(content: bytes) -> tuple[bytes, bytes]:
    kept, exif, place = [content[:2]], b"", 2
    while place + 4 <= len(content) and content[place] == 0xFF and content[place + 1] != _JPEG_SCAN:
        marker, (length,) = content[place + 1], struct.unpack_from(">H", content, place + 2)
        end = place + 2 + length
        if length < 2 or end > len(content):
            break
        segment = content[place + 4 : end]
        if marker not in _JPEG_METADATA:
            kept.append(content[place:end])
        elif marker == 0xE1 and segment.startswith(b"Exif\0\0") and not exif:
            exif = segment
        place = end
    return b"".join((*kept, content[place:])), exif


def _exif_orientation(exif: bytes) -> int:
    """The orientation that the first directory of an EXIF block gives, whatever its other tags are like; or 1."""
    block = re.sub(rb"^(Exif\x00\x00){1,2}", b"", exif)
    order = {b"II": "<", b"MM": ">"}.get(block[:2])
    if order is None:
        return 1
    try:
        (directory,) = struct.unpack_from(f"{order}L", block, 4)
        (count,) = struct.unpack_from(f"{order}H", block, directory)
        for entry in range(directory + 2, directory + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(f"{order}HH", block, entry)
            if tag == ORIENTATION:
                letter = {1: "B", 3: "H", 4: "L"}.get(kind, "H")
                (value,) = struct.unpack_from(f"{order}{letter}", block, entry + 8)
                return value if value in _TURNS else 1
    except struct.error:  # the block is shorter than it says
        pass
    return 1


def _is_avif(content: bytes) -> bool:
    return content[4:12] in (b"ftypavif", b"ftypavis")


def _known_as(content: bytes) -> str:
    """What a file is that Pillow cannot identify, and what helps."""
    if content[4:8] == b"ftyp" and content[8:12] in _HEIC:
        return " (HEIC: convert it to JPEG or PNG)"
    return ""
