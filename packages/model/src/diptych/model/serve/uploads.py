"""Pictures that strangers send: bounded before they are decoded, in formats whose decoders are in wide use."""

from __future__ import annotations

import base64
import io

from PIL import Image

from diptych.features.picture_reader import PictureError, read_pixels

# Pillow knows many more, some of which start other programs (EPS) or are seldom looked after.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "AVIF")

# kinds of PictureError, but for too_large: HTTP's status and what to do
REFUSALS = {
    "empty": (422, "the picture is empty: send a picture file as the request's body"),
    "not_an_image": (415, "this is not a picture that can be read; send JPEG, PNG, WebP, GIF, BMP or AVIF"),
    "truncated": (422, "the picture is damaged or incomplete; send it again"),
}


class UploadError(Exception):
    """A picture that is not taken; ``status`` is HTTP's."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def read_upload(content: bytes, most_pixels: int) -> Image.Image:
    """Decode an uploaded picture: RGB, upright.

    Raises:
        UploadError: it is no picture, damaged in whatever way, or has more than ``most_pixels``, which its header tells before any
            pixel is decoded.
    """
    try:
        return read_pixels(content, FORMATS, most_pixels)
    except PictureError as error:
        if error.kind == "too_large":
            raise UploadError(413, _too_large(error.size, most_pixels)) from None
        raise UploadError(*REFUSALS[error.kind]) from None
    except MemoryError:
        raise UploadError(*REFUSALS["truncated"]) from None


def _too_large(size: tuple[int, int] | None, most_pixels: int) -> str:
    if size is None:
        return f"the picture has too many pixels, at most {most_pixels:,} are taken"
    return f"the picture has {size[0]} x {size[1]} pixels, at most {most_pixels:,} are taken; make it smaller"


def data_url(image: Image.Image) -> str:
    """A picture as ``data:image/png;base64,...``."""
    content = io.BytesIO()
    image.save(content, "PNG")
    return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode("ascii")
