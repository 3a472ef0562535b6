"""Pictures and captions of one split, straight from a manifest and the image files: for what needs neither features nor codes, and
with the codes of a store."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from diptych.features.errors import UserError
from diptych.features.images import (
    ImageError,
    as_jpeg,
    read_content,
    read_image,
    square_pictures,
)
from diptych.features.manifest import read_manifest, resolve_image
from diptych.features.processor import usable_cores
from diptych.features.store import FeatureReader


class ManifestPictures:
    """Samples of one split in any order, as `diptych.features.shards.reading.ShardDataset` has them but for features and codes.

    table: a manifest, or scenes, which have no captions. Nothing is decoded before it is asked for.
    Raises UserError when the table is missing or the split is empty.
    """

    def __init__(self, table: Path, split: str) -> None:
        self.table_path, self.split = Path(table), split
        rows = read_manifest(self.table_path)
        self._rows = rows.filter(pc.equal(rows["split"], split))
        if not len(self._rows):
            raise UserError(f"{table}: no image is in the split {split!r}")
        self.keys: list[str] = self._rows["image_id"].to_pylist()

    def __len__(self) -> int:
        return len(self.keys)

    def only(self, keys: Collection[str]) -> None:
        """Leave out all pictures but these."""
        kept = [index for index, key in enumerate(self.keys) if key in keys]
        self._rows = self._rows.take(pa.array(kept, pa.int64()))
        self.keys = [self.keys[index] for index in kept]

    def unreadable(self, indices: Sequence[int]) -> dict[str, str]:
        """Read each of these pictures once; ids of those that are missing, damaged or others than the table describes, and why."""

        def problem(index: int) -> ImageError | None:
            file = self._file(index)
            try:
                read_image(read_content(file, self._rows["sha256"][index].as_py()), str(file))
            except ImageError as error:
                return error
            return None

        with ThreadPoolExecutor(usable_cores()) as pool:
            found = pool.map(problem, indices)
            bar = tqdm(found, total=len(indices), desc=f"reading {self.split}", unit="image", mininterval=1)
            return {
                self.keys[index]: str(error)
                for index, error in zip(indices, bar, strict=True)
                if error is not None
            }

    def leave_out(self, unreadable: Mapping[str, str], most: float, key: str) -> None:
        """Leave out pictures by id, with the reasons why.

        most: the share of all that may be so; key: of the parameter that says it, for the message.
        Raises UserError where more are, or none is left.
        """
        if len(unreadable) > most * len(self) or len(unreadable) == len(self):
            raise UserError(
                f"{len(unreadable)} of {len(self)} images of the split {self.split} cannot be read, and {key} is {most:g}; the "
                f"first: {next(iter(unreadable.values()))}. Mend the images or raise the share"
            )
        if unreadable:
            self.only({key for key in self.keys if key not in unreadable})

    def meta(self, index: int) -> dict[str, Any]:
        """`image_id, split, objects, width, height`, and `captions` where the table has them."""
        row = self._rows.slice(index, 1).to_pylist()[0]
        return {name: value for name, value in row.items() if name not in ("path", "sha256")}

    def captions(self, index: int) -> list[str]:
        """The reference captions of a sample."""
        return self._rows["captions"][index].as_py()

    def image_bytes(self, index: int) -> bytes:
        """The image as an encoded JPEG."""
        file = self._file(index)
        return as_jpeg(file.read_bytes(), str(file))

    def images(self, indices: Sequence[int] | np.ndarray, size: int) -> Tensor:
        """Decoded images, uint8 [n, 3, size, size]; others than square ones are squeezed.

        Raises UserError where one is missing or damaged."""

        def read(index: int) -> Image.Image:
            try:
                return read_image(self._file(index))
            except ImageError as error:
                raise UserError(f"{error}; mend or remove it, then run `dvc repro dataset`") from None

        return square_pictures(read, indices, size)

    def _file(self, index: int) -> Path:
        return resolve_image(self.table_path, self._rows["path"][int(index)].as_py())


class StoredPictures(ManifestPictures):
    """Those pictures of a split that have a row in a folder that the store has linked.

    made_by: what a user runs to make that folder, for messages.
    """

    def __init__(self, table: Path, split: str, folder: Path, made_by: str) -> None:
        super().__init__(table, split)
        self._reader = FeatureReader(folder, made_by)
        self._places = {key: place for place, key in enumerate(self._reader.image_ids())}
        self.only(self._places.keys())

    def stored(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """The rows, [n, *shape] in the store's dtype."""
        return self._reader.rows([self._places[self.keys[index]] for index in indices])


class TokenizedPictures(StoredPictures):
    """Pictures with codes."""

    @property
    def image_tokenizer(self) -> str:
        """The hash of what made them."""
        return self._reader.meta["image_tokenizer"]

    @property
    def codebook_size(self) -> int:
        """K."""
        return self._reader.meta["codebook_size"]

    def codes(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Codes, int64 [n, cells]."""
        return self.stored(indices).astype(np.int64)


class DescribedPictures(StoredPictures):
    """Pictures with vectors that describe them: of the grid's cells, or of a detector's regions."""

    @property
    def feature_dim(self) -> int:
        """D."""
        return self._reader.feature_dim

    def grid(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Vectors, float16 [n, k, D]."""
        return self.stored(indices)
