"""Pictures of the manifest for trainings that need neither features nor codes."""

from __future__ import annotations

from pathlib import Path

from diptych.features.pictures import ManifestPictures
from diptych.model.training.processes import current_processes


def readable_pictures(table: Path, split: str, most: float, key: str) -> ManifestPictures:
    """The pictures of a split but those that cannot be read, which are told; each of several processes has read its share.

    most, key: as of `ManifestPictures.leave_out`. Raises UserError where more cannot be read.
    """
    processes, pictures = current_processes(), ManifestPictures(table, split)
    shares = processes.gather(pictures.unreadable(range(processes.rank, len(pictures), processes.count)))
    unreadable = {image_id: why for share in shares for image_id, why in share.items()}
    if processes.rank == 0:
        for why in unreadable.values():
            print(f"left out: {why}", flush=True)
    pictures.leave_out(unreadable, most, key)
    return pictures
