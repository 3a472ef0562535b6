"""A folder of pictures without captions, such as ImageNet's, as a table of scenes: what an image tokenizer is trained on.

python -m diptych.features.datasets.picture_folder FOLDER TABLE.parquet [--val 0.001]
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tqdm import tqdm

from diptych.features.errors import UserError
from diptych.features.images import ImageError, image_size, read_file
from diptych.features.manifest import manifest_table, write_scenes
from diptych.features.picture_folders import find_pictures
from diptych.features.processor import usable_cores

ID_LETTERS = 20  # of the sha256 of a picture's path below the folder


def write_folder(folder: Path, table: Path, val_share: float) -> dict[str, int]:
    """Write the scenes of all pictures below a folder: paths are absolute, ids are hashes of the paths below it, and a picture is in the
    split val by its id, the same whatever others there are. Pictures that cannot be read are left out, each with a line on stderr.

    Returns counts: images, val, left_out. Raises UserError where no picture is left, or one of both splits is empty.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    if not 0 <= val_share < 1:
        raise UserError(f"val is a share from 0 to below 1, is {val_share}")
    found = find_pictures(folder)
    if found.remark:
        print(found.remark, file=sys.stderr)
    rows = list(scenes(folder.resolve(), found.files, val_share))
    if not rows:
        raise UserError(f"{folder}: no picture in it that can be read")
    val = sum(row["split"] == "val" for row in rows)
    if val in (0, len(rows)):
        raise UserError(
            f"{folder}: {val} of {len(rows)} pictures are in the split val; give another share by --val, such as 0.1"
        )
    table.parent.mkdir(parents=True, exist_ok=True)
    write_scenes(manifest_table(rows, table), table)
    return {"images": len(rows), "val": val, "left_out": len(found.files) - len(rows)}


def scenes(folder: Path, files: list[Path], val_share: float) -> Iterator[dict[str, Any]]:
    """Rows of the pictures that can be read."""

    def row(file: Path) -> dict[str, Any] | ImageError:
        path = folder / file
        try:
            content = read_file(path)
            width, height = image_size(content, str(path))
        except ImageError as error:
            return error
        image_id = hashlib.sha256(file.as_posix().encode("utf-8", "surrogateescape")).hexdigest()[:ID_LETTERS]
        is_val = int(image_id[:8], 16) < val_share * 2**32
        return {
            "image_id": image_id, "split": "val" if is_val else "train", "path": str(path), "width": width, "height": height,
            "sha256": hashlib.sha256(content).hexdigest(), "captions": [], "objects": None,
        }  # fmt: skip

    with ThreadPoolExecutor(usable_cores()) as pool:
        for result in tqdm(
            pool.map(row, files), total=len(files), desc="pictures", unit="image", mininterval=1
        ):
            if isinstance(result, ImageError):
                print(f"left out: {result}", file=sys.stderr)
            else:
                yield result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("table", type=Path, help="to write")
    parser.add_argument(
        "--val", type=float, default=0.001, help="share of the pictures in the split val (default: 0.001)"
    )
    arguments = parser.parse_args()
    try:
        counts = write_folder(arguments.folder, arguments.table, arguments.val)
    except UserError as error:
        sys.exit(str(error))
    except OSError as error:
        sys.exit(f"{error.filename or arguments.table}: {error.strerror or error}")
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        sys.exit(130)
    print(", ".join(f"{name}: {count}" for name, count in counts.items()))


if __name__ == "__main__":
    main()
