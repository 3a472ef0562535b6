"""What codes look like: for every code the patches of training pictures whose features are nearest to its centroid."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from diptych.model.errors import UserError
from diptych.model.weight_files import why_no_safetensors

EXAMPLES_FILE = "examples.safetensors"
GRID = 8
CONTEXT = 1  # cells around the one that is shown


@dataclass(frozen=True)
class Examples:
    """Attributes:
    patches: uint8 ``[K, m, P, P, 3]``, nearest first; black where a code has fewer.
    distances: float32 ``[K, m]`` from the cell's feature to the centroid; infinite where there is no example.
    """

    patches: np.ndarray
    distances: np.ndarray

    def save(self, folder: Path) -> None:
        """Write examples.safetensors into ``folder``."""
        from safetensors.numpy import save_file

        save_file({"patches": self.patches, "distances": self.distances}, folder / EXAMPLES_FILE)


def collect_examples(
    batches: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]],
    picture: Callable[[int], Image.Image],
    centroids: np.ndarray,
    count: int,
    pixels: int,
) -> Examples:
    """Find the nearest cells of every code, at most one from each picture, and cut them out with the cells around them.

    Args:
        batches: (indices of pictures int ``[n]``, grid features float ``[n, 64, D]``, codes int ``[n, 64]``).
        picture: index to RGB image.
        centroids: float32 ``[K, D]``.
        count: examples of a code, m.
        pixels: side of a patch, P; three cells by three cells are resized to it.
    """
    k = len(centroids)
    distances = np.full((k, count), np.inf, np.float32)
    places = np.full((k, count, 2), -1, np.int64)  # picture, cell
    for indices, features, codes in batches:
        gaps = np.linalg.norm(features.astype(np.float32) - centroids[codes], axis=2)  # [n, 64]
        for row, cells, own in zip(indices.tolist(), codes, gaps, strict=True):
            order = np.argsort(own, kind="stable")
            present, first = np.unique(cells[order], return_index=True)
            for code, cell in zip(present.tolist(), order[first].tolist(), strict=True):
                if own[cell] < distances[code, -1]:
                    slot = int(np.searchsorted(distances[code], own[cell], side="right"))
                    distances[code, slot + 1 :] = distances[code, slot:-1].copy()
                    places[code, slot + 1 :] = places[code, slot:-1].copy()
                    distances[code, slot], places[code, slot] = own[cell], (row, cell)
    patches = np.zeros((k, count, pixels, pixels, 3), np.uint8)
    wanted: dict[int, list[tuple[int, int, int]]] = {}
    for code, slot in zip(*np.nonzero(places[..., 0] >= 0), strict=True):
        row, cell = places[code, slot].tolist()
        wanted.setdefault(row, []).append((int(code), int(slot), cell))
    for row, cuts in wanted.items():
        image = picture(row)
        for code, slot, cell in cuts:
            patches[code, slot] = np.asarray(cut_patch(image, cell, pixels))
    return Examples(patches, distances)


def cut_patch(image: Image.Image, cell: int, pixels: int) -> Image.Image:
    """Cut a cell of the 8x8 grid with those around it, resized to ``pixels`` a side; black beyond the picture."""
    row, column = divmod(cell, GRID)
    width, height = image.width / GRID, image.height / GRID
    box = (
        (column - CONTEXT) * width,
        (row - CONTEXT) * height,
        (column + CONTEXT + 1) * width,
        (row + CONTEXT + 1) * height,
    )
    cut = image.crop(tuple(round(edge) for edge in box))  # type: ignore[arg-type]
    return cut.resize((pixels, pixels), Image.Resampling.BICUBIC)


def read_examples(folder: Path, code: int) -> list[Image.Image]:
    """Read the patches of one code, nearest first, without reading those of others.

    Raises:
        UserError: the file is missing or not readable.
    """
    from safetensors import SafetensorError, safe_open

    path = folder / EXAMPLES_FILE
    try:
        with safe_open(path, framework="numpy") as file:
            patches = file.get_slice("patches")[code : code + 1][0]
            distances = file.get_slice("distances")[code : code + 1][0]
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path}: not readable ({why_no_safetensors(path, error)}); copy the package again"
        ) from None
    known = np.isfinite(distances)
    return [Image.fromarray(patch) for patch in patches[known]]
