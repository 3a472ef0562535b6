"""Pictures that strangers send: bounded before they are decoded, in formats whose decoders are in wide use."""

from __future__ import annotations

import base64
import io

from PIL import Image, UnidentifiedImageError

from diptych.features.images import upright_rgb

# Pillow knows many more, some of which start other programs (EPS) or are seldom looked after.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "AVIF")


class UploadError(Exception):
    """A picture that is not taken; ``status`` is HTTP's."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def read_upload(content: bytes, most_pixels: int) -> Image.Image:
    """Decode an uploaded picture: RGB, upright.

    Raises:
        UploadError: it is no picture, damaged, or has more than ``most_pixels``, which its header tells before any
            pixel is decoded.
    """
    if not content:
        raise UploadError(422, "the picture is empty: send a picture file as the request's body")
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            if image.width * image.height > most_pixels:
                raise UploadError(
                    413,
                    f"the picture has {image.width} x {image.height} pixels, at most {most_pixels:,} are taken; "
                    "make it smaller",
                )
            image.load()
            return upright_rgb(image)
    except Image.DecompressionBombError:
        raise UploadError(
            413, f"the picture has too many pixels, at most {most_pixels:,} are taken"
        ) from None
    except UnidentifiedImageError:
        raise UploadError(
            415, "this is not a picture that can be read; send JPEG, PNG, WebP, GIF, BMP or AVIF"
        ) from None
    except (OSError, SyntaxError, ValueError, EOFError, MemoryError):
        raise UploadError(422, "the picture is damaged or incomplete; send it again") from None


def data_url(image: Image.Image) -> str:
    """A picture as ``data:image/png;base64,...``."""
    content = io.BytesIO()
    image.save(content, "PNG")
    return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode("ascii")
