"""Objects laid into their pictures as these are read: upright, inside, and of the size that they were drawn on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diptych.features.datasets.bad_rows import BadRow, BadRows
from diptych.features.datasets.coco.annotations import LeftOut, ListedImage
from diptych.features.datasets.coco.boxes import fit_box, turn_box
from diptych.features.errors import UserError

_UNCLEAR = (
    "whose picture has an EXIF orientation, and no size that says whether its boxes were drawn on the stored or the "
    "upright picture (save such pictures upright, without orientation)"
)


class PlacedObjects:
    """Objects of pictures as manifests hold them; collects what does not fit, for `check` after the last picture."""

    def __init__(self, left_out: LeftOut) -> None:
        self.left_out = left_out
        self._bad: dict[Path, BadRows] = {}
        self._wrong: list[tuple[ListedImage, tuple[int, int]]] = []
        self._images = 0

    def of(self, image: ListedImage, size: tuple[int, int], orientation: int) -> list[dict[str, Any]] | None:
        """The objects of a picture; None where they are unknown, also because its boxes cannot be placed.

        size: width and height of the upright picture, 0 x 0 of one that is damaged. orientation: EXIF's, 1 to 8.
        """
        self._images += 1
        if image.boxes is None or image.boxes_origin is None:
            return None
        if size == (0, 0):  # its boxes are checked against what the file says
            size, orientation = image.size or size, 1
        turned = orientation >= 5
        stored = (size[1], size[0]) if turned else size
        if image.size not in (None, size, stored):
            self._wrong.append((image, size))
            return None
        bad = self._bad.get(image.boxes_origin)
        if bad is None:
            bad = self._bad[image.boxes_origin] = self.left_out.bad_rows(image.boxes_origin, "boxes")
        bad.total += len(image.boxes)
        if image.boxes and size == (0, 0):
            return None
        if image.boxes and orientation > 1 and (image.size is None or size == stored):
            for box in image.boxes:
                bad.add(box.annotation, BadRow(_UNCLEAR, str(image.path)))
            return None
        objects: list[dict[str, Any]] = []
        for box in image.boxes:
            corners = (
                turn_box(box.corners, stored, orientation) if image.size != size and turned else box.corners
            )
            try:
                corners = fit_box(corners, size, self.left_out.counts)
            except BadRow as problem:
                bad.add(box.annotation, problem)
                continue
            objects.append({"bbox": list(corners), "label": box.label, "attributes": []})
        # The largest object first: what a caption is about, as far as boxes can tell.
        objects.sort(key=lambda o: -(o["bbox"][2] - o["bbox"][0]) * (o["bbox"][3] - o["bbox"][1]))
        return objects

    def check(self) -> None:
        """Raise UserError for pictures of another size than their boxes', or too many boxes that cannot be used."""
        if self._wrong:
            image, size = self._wrong[0]
            assert image.size is not None
            mend = "put the pictures that the annotations are of into the folder, or give no instances"
            if image.size == size[::-1]:
                mend = f"an EXIF orientation that copying took away does this; {mend}"
            raise UserError(
                f"{len(self._wrong)} of {self._images} images are not of the size that their boxes were drawn on, the "
                f"first is {image.path}: {size[0]} x {size[1]} instead of {image.size[0]} x {image.size[1]}; {mend}"
            )
        for rows in self._bad.values():
            rows.check()
