"""A feature store's parts at an address (:mod:`diptych.features.addresses`): copied there once, and brought from there in the place of
an extraction.

There lies what lies here, a folder for each key with `_meta.json` and `part-*.parquet`, and beside each part, written after it, a
`part-*.json`: size and sha256 of the part, and the sha256 of the images whose rows it holds. So nobody brings half a part, or one
that he does not need, and those who publish at the same time write files of different names.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow.parquet as pq
from tqdm import tqdm

from diptych.features.addresses import Elsewhere
from diptych.features.errors import UserError
from diptych.features.files import atomic_path, sha256_of
from diptych.features.store import FeatureStore

VERSION = 1
CONNECTIONS = 8  # at a time; each holds a piece of a part in memory and no more


@dataclass(frozen=True)
class Listing:
    """What `part-*.json` says of a part. size: bytes. sha256: of the file. images: the sha256 of each image, in the order of rows."""

    version: int
    size: int
    sha256: str
    images: list[str]


def publish_parts(store: FeatureStore, address: str) -> dict[str, int]:
    """Copy the parts of a key to `address`/key, one after the other; none whose images are all there already.

    A run that was stopped goes on: what is listed there is whole. Returns counts of parts: written, there.
    Raises UserError as `Elsewhere` does, and for a damaged listing.
    """
    there = _folder(store, address)
    listings = _listings(there)
    images_there = {image for listing in listings.values() for image in listing.images}
    store.known()  # sets damaged parts aside
    parts = sorted(store.folder.glob("part-*.parquet"))
    if parts and there.size("_meta.json") is None:
        there.write("_meta.json", str(store.folder / "_meta.json"))
    written = 0
    for part in tqdm(parts, desc="publish", unit="part", mininterval=1):
        images = pq.read_table(part, columns=["sha256"])["sha256"].to_pylist()
        if part.name in listings or images_there.issuperset(images):
            continue
        listing = Listing(VERSION, part.stat().st_size, sha256_of(part), images)
        there.write(part.name, str(part))
        there.write_bytes(_name_of_listing(part.name), json.dumps(asdict(listing)).encode())
        images_there.update(images)
        written += 1
    return {"written": written, "there": len(parts) - written}


def bring_parts(store: FeatureStore, address: str, wanted: Iterable[str]) -> int:
    """Copy from `address`/key the parts that hold images of `wanted`, sha256s, which the store lacks. Returns how many images came.

    Several parts at a time, each piece by piece into a file that takes its name when it is whole: a run that was stopped goes on.
    Where the store lacks nothing, the address is not asked. Raises UserError as `Elsewhere` does, and for what is damaged there.
    """
    lacking = set(wanted) - store.known().keys()
    if not lacking:
        return 0
    there = _folder(store, address)
    left, chosen = set(lacking), []
    for name, listing in _listings(there).items():
        if not left.isdisjoint(listing.images):
            left.difference_update(listing.images)
            chosen.append((name, listing))

    def bring(part: tuple[str, Listing]) -> int:
        name, listing = part
        if not (store.folder / name).exists():  # another run on this store may have brought it by now
            _bring(there, name, listing, store.folder / name)
        return len(lacking.intersection(listing.images))

    with (
        ThreadPoolExecutor(CONNECTIONS) as pool,
        tqdm(total=len(lacking) - len(left), desc="bring", unit="image", mininterval=1) as bar,
    ):
        for count in pool.map(bring, chosen):
            bar.update(count)
    return len(lacking & store.known().keys())


def _bring(there: Elsewhere, name: str, listing: Listing, target: Path) -> None:
    digest = hashlib.sha256()
    with atomic_path(target) as temporary:
        with temporary.open("wb") as file:
            for piece in there.pieces(name, listing.size):
                file.write(piece)
                digest.update(piece)
        if digest.hexdigest() != listing.sha256:
            raise UserError(
                f"{there}/{name}: damaged (its sha256 is not that of {_name_of_listing(name)}); remove both there and publish again"
            )


def _folder(store: FeatureStore, address: str) -> Elsewhere:
    return Elsewhere(f"{address.rstrip('/')}/{store.folder.name}")


def _name_of_listing(part: str) -> str:
    return f"{part.removesuffix('.parquet')}.json"


def _listings(there: Elsewhere) -> dict[str, Listing]:
    """The listing of each part that is whole there, by the part's name, sorted."""
    names = [name for name in there.names() if name.startswith("part-") and name.endswith(".json")]
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        contents = list(pool.map(there.read, names))
    found = {}
    for name, content in zip(names, contents, strict=True):
        try:
            listing = Listing(**json.loads(content))
        except (ValueError, TypeError) as error:
            raise UserError(f"{there}/{name}: damaged ({error}); remove it there and publish again") from None
        if listing.version != VERSION:
            raise UserError(f"{there}/{name}: version {listing.version}, this version reads {VERSION}")
        found[f"{name.removesuffix('.json')}.parquet"] = listing
    return found
