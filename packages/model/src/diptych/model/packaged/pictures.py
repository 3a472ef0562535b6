"""Pictures as people have them: paths, bytes, Pillow's images, arrays, tensors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diptych.features.errors import UserError as FeaturesError
from diptych.features.images import MAX_PIXELS, read_image, upright_rgb
from diptych.model.errors import UserError

Picture: TypeAlias = "str | Path | bytes | Image.Image | np.ndarray | Tensor"
Pictures: TypeAlias = "Picture | Iterable[Picture]"


def listed(pictures: Pictures) -> list[Picture]:
    """One picture or several as a list; an array ``[n, H, W, 3]`` or a tensor ``[n, 3, H, W]`` is n of them."""
    if isinstance(pictures, str | Path | bytes | Image.Image):
        return [pictures]
    if isinstance(pictures, np.ndarray | Tensor) and pictures.ndim < 4:
        return [pictures]
    return list(pictures)


def read_picture(picture: Picture, number: int = 0) -> Image.Image:
    """Return a picture as RGB, upright; ``number`` names it in messages where it has no file.

    Files and their bytes are read by :func:`diptych.features.images.read_image`. Arrays are uint8, or float in 0..1,
    ``[H, W]`` or ``[H, W, 1, 3 or 4]``; tensors are channels first, ``[1, 3 or 4, H, W]``.

    Raises:
        UserError: it is missing, damaged, too large or of a wrong shape or type.
    """
    name = f"picture {number}"
    try:
        if isinstance(picture, str | Path):
            return read_image(Path(picture))
        if isinstance(picture, bytes):
            return read_image(picture, name)
        if isinstance(picture, Image.Image):
            if picture.width * picture.height > MAX_PIXELS:
                raise UserError(
                    f"{name}: {picture.width} x {picture.height} is over {MAX_PIXELS} pixels; make it smaller"
                )
            return upright_rgb(picture)
    except FeaturesError as error:
        raise UserError(str(error)) from None
    except UserError:
        raise
    except MemoryError:
        named = picture if isinstance(picture, str | Path) else name
        raise UserError(f"{named}: does not fit into memory; make it smaller") from None
    except Exception as error:  # noqa: BLE001 - Pillow decodes late, its decoders raise what they like
        raise UserError(f"{name}: the image is damaged ({error})") from None
    if isinstance(picture, Tensor):
        return upright_rgb(from_array(channels_last(picture).cpu().numpy(), name))
    if isinstance(picture, np.ndarray):
        return upright_rgb(from_array(picture, name))
    raise UserError(
        f"{name}: {type(picture).__name__} is no picture; give a path, bytes, a Pillow image, an array or a tensor"
    )


def read_pictures(items: Sequence[Picture], first: int = 0) -> list[Image.Image]:
    """Read pictures (:func:`read_picture`), of which the first has the number ``first`` in messages."""
    return [read_picture(item, number) for number, item in enumerate(items, first)]


def check_batch_size(size: int) -> None:
    """Raise a UserError unless something can be worked on ``size`` at a time."""
    if size < 1:
        raise UserError(f"batch_size: {size} at a time; at least 1")


def read_batches(items: Sequence[Picture], size: int) -> Iterator[tuple[slice, list[Image.Image]]]:
    """Read pictures ``size`` at a time, none before it is its turn: the place of each batch, and its images."""
    check_batch_size(size)
    for start in range(0, len(items), size):
        part = slice(start, start + size)
        yield part, read_pictures(items[part], start)


def channels_last(picture: Tensor) -> Tensor:
    """``[C, H, W]`` as ``[H, W, C]``; others as they are."""
    picture = picture.detach()
    if picture.dtype == torch.bfloat16:
        picture = picture.float()
    return picture.permute(1, 2, 0) if picture.ndim == 3 else picture


def from_array(array: np.ndarray[Any, Any], name: str) -> Image.Image:
    """Make an image of uint8 values, or of floats in 0..1."""
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)) or 0 in array.shape:
        raise UserError(
            f"{name}: an array of shape {list(array.shape)}; arrays are [H, W, 3] (or [H, W], [H, W, 4]), tensors "
            "[3, H, W]"
        )
    if np.issubdtype(array.dtype, np.floating):
        if not np.isfinite(array).all() or array.min() < 0 or array.max() > 1:
            raise UserError(f"{name}: floats have to be in 0..1; divide by 255, or give uint8")
        array = (array * 255).round().astype(np.uint8)
    elif array.dtype == np.bool_ or array.dtype != np.uint8:
        raise UserError(f"{name}: values of type {array.dtype}; give uint8, or floats in 0..1")
    return Image.fromarray(np.ascontiguousarray(array))
