"""Seeing: pictures to features and codes, and codes to pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor

from diptych.model.errors import UserError
from diptych.model.packaged.arguments import code_rows
from diptych.model.packaged.machine import Machine
from diptych.model.packaged.pictures import Pictures, check_batch_size, listed, read_batches
from diptych.model.pixels import to_image, to_uint8


class ImageTokenizer(Protocol):
    """What turns pixels into a grid of codes and back; each family has its own. Called in
    :meth:`diptych.model.packaged.machine.Machine.inference`."""

    @property
    def cells(self) -> int:
        """Cells of the grid."""

    @property
    def grid_size(self) -> int:
        """Cells along a side of the grid."""

    @property
    def image_size(self) -> int:
        """Pixels a side of what is drawn."""

    @property
    def codebook_size(self) -> int:
        """Number of codes, K."""

    def features(self, images: Sequence[Image.Image]) -> Tensor:
        """n RGB images to features float32 ``[n, cells, D]``."""

    def codes(self, images: Sequence[Image.Image]) -> Tensor:
        """n RGB images to codes int64 ``[n, cells]``."""

    def pixels(self, codes: Tensor) -> Tensor:
        """Codes int64 ``[n, cells]``, -1 where a cell has none, to pixels float32 ``[n, 3, S, S]`` in
        -1..1."""


def drawn(tokenizer: ImageTokenizer, codes: Tensor, at_once: int) -> list[Image.Image]:
    """Codes int64 ``[n, cells]`` as n RGB images, drawn ``at_once`` at a time."""
    return [
        to_image(picture)
        for part in codes.split(at_once)
        for picture in to_uint8(tokenizer.pixels(part)).cpu()
    ]


class SeeingPart:
    """Both directions of an image tokenizer, batch by batch, for pictures as people have them."""

    def __init__(self, tokenizer: ImageTokenizer, machine: Machine) -> None:
        self.tokenizer, self.machine = tokenizer, machine

    def features(self, pictures: Pictures, batch_size: int) -> Tensor:
        """See :meth:`diptych.model.Diptych.features`."""
        return self._of_pictures(pictures, batch_size, self.tokenizer.features)

    def codes(self, pictures: Pictures, batch_size: int) -> Tensor:
        """See :meth:`diptych.model.Diptych.codes`."""
        return self._of_pictures(pictures, batch_size, self.tokenizer.codes)

    def draw(self, codes: Tensor | Sequence[Sequence[int]], batch_size: int) -> list[Image.Image]:
        """See :meth:`diptych.model.Diptych.draw`."""
        check_batch_size(batch_size)
        rows = code_rows(codes, self.tokenizer.cells, self.tokenizer.codebook_size, least=-1)
        with self.machine.inference():
            return drawn(self.tokenizer, rows, batch_size)

    def _of_pictures(
        self, pictures: Pictures, batch_size: int, work: Callable[[Sequence[Image.Image]], Tensor]
    ) -> Tensor:
        items = listed(pictures)
        if not items:
            raise UserError("there is no picture")
        results = []
        for _, images in read_batches(items, batch_size):
            with self.machine.inference():
                results.append(work(images).cpu())
        return torch.cat(results)
