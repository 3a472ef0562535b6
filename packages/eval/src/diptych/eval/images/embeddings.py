"""Embeddings of many pictures in bounded memory: decoded in parallel, encoded in batches, kept on disk, resumable."""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, TypeVar

import numpy as np
import torch
from PIL import Image, ImageFilter, ImageOps
from torch import Tensor, nn
from tqdm import tqdm

from diptych.eval.errors import UserError
from diptych.eval.picture_folders import ENDINGS, find_pictures
from diptych.eval.picture_reader import PictureError, read_pixels
from diptych.eval.whole_files import written_whole

Resize = Literal["stretch", "crop"]
RESIZES: tuple[Resize, ...] = ("stretch", "crop")
# of the store's files; 2: pictures are read as the model reads them
FORMAT = "diptych-embeddings/2"
# pictures whose embeddings are one file of the store: what a killed run loses at most
CHUNK = 256
NAMED = 5  # damaged pictures that a message names
Item = TypeVar("Item")
Result = TypeVar("Result")


class Pictures(Protocol):
    """Pictures that are not in memory: their names, in order, and the bytes of their files.

    `content` is called from several threads.
    """

    @property
    def names(self) -> Sequence[str]: ...

    def content(self, index: int) -> bytes: ...


class FolderPictures:
    """The pictures of a folder and its folders, by their paths in it, sorted. remark: what was left out, or empty."""

    def __init__(self, folder: Path | str) -> None:
        """Raises UserError where there is no such folder or no picture in it."""
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise UserError(f"{folder}: no such folder")
        found = find_pictures(self.folder)
        self.names = sorted(path.as_posix() for path in found.files)
        self.remark = found.remark
        if not self.names:
            also = f"; {self.remark}" if self.remark else ""
            raise UserError(f"{folder}: no pictures there ({', '.join(sorted(ENDINGS))}){also}")

    def content(self, index: int) -> bytes:
        return (self.folder / self.names[index]).read_bytes()


@dataclass(frozen=True)
class Encoder:
    """A network that embeds pictures.

    encode: uint8 [n, 3, S, S] to float [n, width]; called in one thread. model: what records call it. key: everything
    that determines its numbers besides the pictures. blur: pictures are blurred before it sees them, with a Gaussian
    of so many pixels' standard deviation (Pillow's `GaussianBlur(radius)`); 0 is none.

    prepare: makes an RGB picture of any size what `encode` takes, of one shape and kind; called in several threads. With
    it the encoder gets pictures in their own size instead of the common square (blurred ones from the square, so that a
    radius means the same in every picture). resize: what records say `prepare` does.
    """

    name: str
    model: str
    key: str
    width: int
    encode: Callable[[Tensor], Tensor]
    blur: float = 0.0
    prepare: Callable[[Image.Image], Tensor] | None = None
    resize: str = ""

    def rule(self, settings: EmbedSettings) -> str:
        """What records say was done to pictures before the network saw them."""
        blurred = f", then blurred by a Gaussian of {self.blur:g} pixels (Pillow)" if self.blur else ""
        if self.prepare is None:
            return settings.rule + blurred
        return f"{settings.rule}{blurred}, then {self.resize}" if self.blur else self.resize


@dataclass(frozen=True)
class EmbedSettings:
    """image_size: pixels per side that all encoders get. resize: "stretch" the whole picture to the square, or "crop"
    the middle of it; bicubic and antialiased (Pillow). threads: that decode. max_damaged: share of pictures that may be
    unreadable; they are left out."""

    image_size: int = 256
    resize: Resize = "stretch"
    batch_size: int = 64
    threads: int = 4
    max_damaged: float = 0.0

    @property
    def rule(self) -> str:
        """What records say of the resizing."""
        return f"{self.resize} to {self.image_size} x {self.image_size}, bicubic, antialiased (Pillow)"


@dataclass(frozen=True)
class Embedded:
    """names: of all pictures. readable: bool [n]. damaged: by name, what is wrong. sha256: of names and contents."""

    names: Sequence[str]
    readable: np.ndarray
    damaged: dict[str, str]
    sha256: str
    parts: dict[str, list[Path]]

    def rows(self, encoder: str) -> np.ndarray:
        """Embeddings float32 [n, width] by the name of their encoder, NaN for damaged pictures; read from disk."""
        return np.concatenate([np.load(path) for path in self.parts[encoder]])


def embed(
    pictures: Pictures,
    encoders: Sequence[Encoder],
    settings: EmbedSettings,
    store: Path,
    description: str = "pictures",
) -> Embedded:
    """Embed all pictures with all encoders in one pass; at most two batches of pictures are in memory.

    Every CHUNK pictures become a file in `store`, named by a hash of everything that determines it: the
    contents of its pictures, the resizing and the encoder's key. What is there already, from a run that was
    killed or one before it, is not computed again; pictures that could not be read are tried again.

    Raises UserError that names the damaged pictures where there are more than settings.max_damaged allows.
    """
    count = len(pictures.names)
    with ThreadPoolExecutor(settings.threads, thread_name_prefix="decode") as pool:
        digests = list(
            _in_order(pool, lambda index: _digest(pictures, index), range(count), 4 * settings.threads)
        )
        chunks = [range(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK)]
        parts = {
            encoder.name: [store / _part_name(encoder, settings, digests[c.start : c.stop]) for c in chunks]
            for encoder in encoders
        }
        lacking = [
            _lacking(chunk, {encoder: parts[encoder.name][number] for encoder in encoders})
            for number, chunk in enumerate(chunks)
        ]
        work = sum(len(indices) for groups in lacking for indices in groups)
        done = count - len({index for groups in lacking for indices in groups for index in indices})
        problems: dict[int, str] = {}
        bar = tqdm(
            total=done + work,
            initial=done,
            desc=description,
            unit="image",
            disable=not work,
            dynamic_ncols=True,
        )
        with bar:
            for number, (chunk, groups) in enumerate(zip(chunks, lacking, strict=True)):
                for indices, some in groups.items():
                    rows, unread = _embed_some(pool, pictures, indices, some, settings, bar)
                    problems |= unread
                    for encoder in some:
                        _write(rows[encoder.name], parts[encoder.name][number], chunk, indices)
    readable = np.ones(count, bool)
    readable[list(problems)] = False
    damaged = {pictures.names[index]: problem for index, problem in problems.items()}
    if len(damaged) > settings.max_damaged * count:
        named = "; ".join(f"{name}: {problem}" for name, problem in sorted(damaged.items())[:NAMED])
        more = f"; and {len(damaged) - NAMED} more" if len(damaged) > NAMED else ""
        raise UserError(
            f"{description}: {len(damaged)} of {count} pictures are damaged ({named}{more}); replace them, or leave "
            "them out by allowing a share of damaged pictures"
        )
    listed = hashlib.sha256(json.dumps([list(pictures.names), digests]).encode()).hexdigest()
    return Embedded(list(pictures.names), readable, damaged, listed, parts)


def read_picture(content: bytes) -> Image.Image:
    """Bytes of a file as upright RGB; of an animation the first frame, transparency on black.

    Raises UserError with what is wrong.
    """
    try:
        return read_pixels(content)
    except PictureError as error:
        raise UserError(str(error)) from None
    except MemoryError:
        raise UserError("does not fit into memory") from None


def resized(image: Image.Image, settings: EmbedSettings) -> Image.Image:
    """The picture as a square of settings.image_size pixels."""
    size = (settings.image_size, settings.image_size)
    if settings.resize == "crop":
        return ImageOps.fit(image, size, Image.Resampling.BICUBIC)
    return image if image.size == size else image.resize(size, Image.Resampling.BICUBIC)


def uint8_tensor(image: Image.Image) -> Tensor:
    """An RGB picture as uint8 [3, H, W]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def weights_sha256(network: nn.Module) -> str:
    """sha256 over names, kinds, shapes and contents of a network's state."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _lacking(chunk: range, parts: dict[Encoder, Path]) -> dict[tuple[int, ...], list[Encoder]]:
    """The encoders by the indices of the chunk's pictures that their part has no embedding of: of all where it is not there; else
    of those that could not be read, which may have been the machine's fault."""
    groups: dict[tuple[int, ...], list[Encoder]] = {}
    for encoder, part in parts.items():
        indices = tuple(chunk)
        if part.is_file():
            indices = tuple(chunk[place] for place in np.flatnonzero(np.isnan(np.load(part)[:, 0])))
        if indices:
            groups.setdefault(indices, []).append(encoder)
    return groups


def _embed_some(
    pool: ThreadPoolExecutor,
    pictures: Pictures,
    indices: Sequence[int],
    encoders: Sequence[Encoder],
    settings: EmbedSettings,
    bar: tqdm,
) -> tuple[dict[str, np.ndarray], dict[int, str]]:
    """Embeddings float32 [len(indices), width] by encoder, and what is wrong with damaged pictures by index."""
    rows = {e.name: np.full((len(indices), e.width), np.nan, np.float32) for e in encoders}
    damaged: dict[int, str] = {}

    def decode(index: int) -> dict[str, Tensor] | str:
        try:
            return _decoded(pictures.content(index), settings, encoders)
        except (UserError, OSError) as error:
            return str(error)

    batch: list[dict[str, Tensor]] = []
    places: list[int] = []

    def flush() -> None:
        if batch:
            for encoder in encoders:
                images = torch.stack([inputs[encoder.name] for inputs in batch]).contiguous()
                with torch.inference_mode():
                    embeddings = encoder.encode(images)
                if not embeddings.isfinite().all():
                    raise UserError(f"{encoder.model} gives numbers that are not finite; use other weights")
                rows[encoder.name][places] = embeddings.float().cpu().numpy()
            batch.clear()
            places.clear()

    decoded = _in_order(pool, decode, indices, settings.batch_size + settings.threads)
    for place, (index, image) in enumerate(zip(indices, decoded, strict=True)):
        if isinstance(image, str):
            damaged[index] = image
        else:
            batch.append(image)
            places.append(place)
        if len(batch) == settings.batch_size:
            flush()
        bar.update()
    flush()
    return rows, damaged


def _decoded(content: bytes, settings: EmbedSettings, encoders: Sequence[Encoder]) -> dict[str, Tensor]:
    """The picture as each encoder takes it, by the encoder's name; encoders that take the same share it."""
    picture = read_picture(content)
    blurs = {encoder.blur for encoder in encoders if encoder.prepare is None or encoder.blur}
    square = resized(picture, settings) if blurs else picture
    blurred = {blur: square.filter(ImageFilter.GaussianBlur(blur)) if blur else square for blur in blurs}
    plain = {
        blur: uint8_tensor(blurred[blur])
        for blur in {encoder.blur for encoder in encoders if encoder.prepare is None}
    }
    return {
        encoder.name: plain[encoder.blur]
        if encoder.prepare is None
        else encoder.prepare(blurred[encoder.blur] if encoder.blur else picture)
        for encoder in encoders
    }


def _digest(pictures: Pictures, index: int) -> str:
    try:
        return hashlib.sha256(pictures.content(index)).hexdigest()
    except OSError as error:  # found again, and reported, where it is decoded
        return f"unreadable: {error}"


def _in_order(
    pool: ThreadPoolExecutor, work: Callable[[Item], Result], items: Iterable[Item], ahead: int
) -> Iterator[Result]:
    """`work` of all items in their order, at most `ahead` of them begun and not yet taken."""
    begun: deque[Future[Result]] = deque()
    try:
        for item in items:
            begun.append(pool.submit(work, item))
            if len(begun) > ahead:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()
    finally:
        for future in begun:
            future.cancel()


def _part_name(encoder: Encoder, settings: EmbedSettings, digests: Sequence[str]) -> str:
    rule = settings.rule if encoder.prepare is None or encoder.blur else encoder.resize
    content = [FORMAT, encoder.key, encoder.width, encoder.blur, rule, list(digests)]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest() + ".npy"


def _write(rows: np.ndarray, path: Path, chunk: range, indices: Sequence[int]) -> None:
    """Write a chunk's part, of which `rows` are the embeddings of `indices`; the others are there already."""
    if len(indices) < len(chunk):
        if np.isnan(rows).all():
            return
        whole = np.load(path)
        whole[[chunk.index(index) for index in indices]] = rows
        rows = whole
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as file:
        np.save(file, rows)
