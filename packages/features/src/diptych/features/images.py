"""Reading images: every usual kind becomes upright RGB, everything else a clear error."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from PIL import Image

from diptych.features.errors import UserError
from diptych.features.picture_reader import (
    MAX_PIXELS,
    PictureError,
    picture_orientation,
    read_pixels,
    stored_orientation,
    upright_rgb,
    upright_size,
)
from diptych.features.processor import usable_cores

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "MAX_PIXELS", "ImageError", "as_jpeg", "image_orientation", "image_size", "is_upright_jpeg", "read_content", "read_file",
    "read_image", "resize_square", "square_pictures", "to_uint8_tensor", "upright_rgb",
]  # fmt: skip
Taken = TypeVar("Taken")
# Pixels of a batch from which on several threads decode it.
MANY_PIXELS = 2**22


class ImageError(UserError):
    """An image that cannot be used; `kind` is missing, unreadable, changed, empty, not_an_image, truncated or too_large."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind

    def __reduce__(self) -> tuple[type[ImageError], tuple[str, str]]:
        # An exception is unpickled from its `args`; ours crosses from worker processes with its kind.
        return ImageError, (self.kind, str(self))


def read_image(source: Path | bytes, name: str | None = None) -> Image.Image:
    """Read a file or its bytes as RGB, upright; how: see `diptych.features.picture_reader.read_pixels`.

    Raises ImageError that names the file (or `name`) and the problem, whatever a decoder raises; more than MAX_PIXELS
    are refused before they are decoded.
    """
    return _named(source, name, read_pixels)


def image_size(source: Path | bytes, name: str | None = None) -> tuple[int, int]:
    """Width and height of the upright image, from its header where the format allows. Errors: see read_image."""
    return _named(source, name, upright_size)


def read_file(file: Path) -> bytes:
    """The bytes of an image file. Raises ImageError where there are none."""
    return _named(file, None, bytes)


def read_content(file: Path, sha256: str) -> bytes:
    """The bytes of an image file. Raises ImageError where there are none, or others than the manifest describes."""
    content = read_file(file)
    if hashlib.sha256(content).hexdigest() != sha256:
        # what is made of it would be found under another picture's key, by everybody who shares a store
        raise ImageError("changed", f"{file}: the file changed since `dvc repro dataset` described it")
    return content


def as_jpeg(content: bytes, name: str) -> bytes:
    """The image file's own bytes if it is an upright RGB JPEG, else the image encoded as one (quality 95)."""
    if is_upright_jpeg(content):
        return content
    buffer = io.BytesIO()
    read_image(content, name).save(buffer, "JPEG", quality=95, subsampling=0)
    return buffer.getvalue()


def is_upright_jpeg(content: bytes) -> bool:
    """Whether these bytes are an RGB JPEG that needs no turning, and whose metadata trip nobody up."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            return image.format == "JPEG" and image.mode == "RGB" and stored_orientation(image) == 1
    except Exception:  # noqa: BLE001 - see picture_reader: what a decoder raises has no end
        return False


def image_orientation(source: Path | bytes, name: str | None = None) -> int:
    """EXIF's orientation of the stored picture, 1 (upright) to 8, from its header. Errors: see read_image."""
    return _named(source, name, picture_orientation)


def _named(source: Path | bytes, name: str | None, read: Callable[[bytes], Taken]) -> Taken:
    """`read` of a file or its bytes; what goes wrong becomes an ImageError with its name."""
    name = name or (str(source) if isinstance(source, Path) else "image")
    try:
        content = source.read_bytes() if isinstance(source, Path) else source
    except (FileNotFoundError, IsADirectoryError) as error:
        raise ImageError("missing", f"{name}: no such image file") from error
    except OSError as error:
        raise ImageError("unreadable", f"{name}: cannot be read ({error.strerror})") from error
    except ValueError as error:  # no file's name holds a zero byte
        raise ImageError("missing", f"{name!r}: no such image file") from error
    try:
        return read(content)
    except PictureError as error:
        raise ImageError(error.kind, f"{name}: {error}") from error


def resize_square(image: Image.Image, size: int) -> Image.Image:
    """Resize to `size` x `size` pixels (bicubic, antialiased); the picture itself where it fits."""
    return image if image.size == (size, size) else image.resize((size, size), Image.Resampling.BICUBIC)


def to_uint8_tensor(image: Image.Image) -> Tensor:
    """RGB image -> uint8 [3, H, W]."""
    import torch  # where it is used: a manifest of pictures needs none

    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def square_pictures(
    read: Callable[[int], Image.Image], indices: Sequence[int] | np.ndarray, size: int
) -> Tensor:
    """RGB images, uint8 [n, 3, size, size]; others than square ones are squeezed."""
    import torch

    def decode(index: int) -> Tensor:
        return to_uint8_tensor(resize_square(read(index), size))

    if len(indices) * size * size < MANY_PIXELS:
        return torch.stack([decode(index) for index in indices])
    with ThreadPoolExecutor(usable_cores()) as pool:
        return torch.stack(list(pool.map(decode, indices)))
