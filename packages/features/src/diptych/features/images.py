"""Reading images: every usual kind becomes upright RGB, everything else a clear error."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from diptych.features.errors import UserError

MAX_PIXELS = 89_478_485  # where Pillow begins to warn of decompression bombs
_ORIENTATION = 0x0112  # EXIF; values 5 to 8 stand the picture on its side


class ImageError(UserError):
    """An image that cannot be used; `kind` is missing, unreadable, empty, not_an_image, truncated or too_large."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind

    def __reduce__(self) -> tuple[type[ImageError], tuple[str, str]]:
        # An exception is unpickled from its `args`; ours crosses from worker processes with its kind.
        return ImageError, (self.kind, str(self))


def read_image(source: Path | bytes, name: str | None = None) -> Image.Image:
    """Read a file or its bytes as RGB, upright (EXIF orientation applied).

    Greyscale, palette and CMYK images are converted, 16-bit values divided by 257, transparency is laid on
    black, of an animation the first frame is taken. Raises ImageError that names the file (or `name`) and the
    problem; more than MAX_PIXELS are refused before they are decoded.
    """
    with _opened(source, name) as image:
        image.load()
        return upright_rgb(image)


def upright_rgb(image: Image.Image) -> Image.Image:
    """A picture that Pillow has opened, as `read_image` returns it."""
    return _to_rgb(ImageOps.exif_transpose(image))


def image_size(source: Path | bytes, name: str | None = None) -> tuple[int, int]:
    """Width and height of the upright image, from its header where the format allows. Errors: see read_image."""
    with _opened(source, name) as image:
        width, height = image.size
        return (height, width) if image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8) else (width, height)


def image_orientation(source: Path | bytes, name: str | None = None) -> int:
    """EXIF's orientation of the stored picture, 1 (upright) to 8, from its header. Errors: see read_image."""
    with _opened(source, name) as image:
        value = image.getexif().get(_ORIENTATION, 1)
        return value if isinstance(value, int) and 1 <= value <= 8 else 1


@contextmanager
def _opened(source: Path | bytes, name: str | None) -> Iterator[Image.Image]:
    """The image before its pixels are decoded; what goes wrong with it inside the block becomes an ImageError."""
    name = name or (str(source) if isinstance(source, Path) else "image")
    try:
        content = source.read_bytes() if isinstance(source, Path) else source
    except (FileNotFoundError, IsADirectoryError) as error:
        raise ImageError("missing", f"{name}: no such image file") from error
    except OSError as error:
        raise ImageError("unreadable", f"{name}: cannot be read ({error.strerror})") from error
    if not content:
        raise ImageError("empty", f"{name}: the file is empty")
    try:
        with Image.open(io.BytesIO(content)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ImageError(
                    "too_large", f"{name}: {image.width} x {image.height} is over {MAX_PIXELS} pixels"
                )
            yield image
    except Image.DecompressionBombError as error:
        raise ImageError("too_large", f"{name}: {error}") from error
    except UnidentifiedImageError as error:
        raise ImageError("not_an_image", f"{name}: not an image that can be read") from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise ImageError("truncated", f"{name}: the image is damaged ({error})") from error


def resize_square(image: Image.Image, size: int) -> Image.Image:
    """Resize to `size` x `size` pixels (bicubic, antialiased); the picture itself where it fits."""
    return image if image.size == (size, size) else image.resize((size, size), Image.Resampling.BICUBIC)


def to_uint8_tensor(image: Image.Image) -> Tensor:
    """RGB image -> uint8 [3, H, W]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        # PIL clips 16-bit values to 255 where they should be scaled.
        values = np.asarray(image, dtype=np.float64)
        # 32-bit and float files do not say what white is; 16-bit ones do.
        top = 65535 if image.mode.startswith("I;16") or values.max() > 255 else 255
        return Image.fromarray((values * 255 / top).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        return Image.alpha_composite(black, image).convert("RGB")
    return image.convert("RGB")
