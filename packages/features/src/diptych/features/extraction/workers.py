"""Who turns images into rows of a store: a worker that holds the encoder, in this process or as Ray actors.

Both kinds of pool take tasks and hand back outcomes in any order; the next task's images are decoded while the
encoder is busy with this one's.
"""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from diptych.features.errors import UserError
from diptych.features.extraction.encoder import EncoderLoader
from diptych.features.images import ImageError, read_content, read_image
from diptych.features.precision import autocast_context
from diptych.features.ray_cluster import Cluster, Death, RayPool, actor_cores, is_out_of_memory

if TYPE_CHECKING:
    import torch

IN_FLIGHT = 2  # tasks of one worker: one in the encoder, one being decoded


@dataclass(frozen=True)
class Image:
    """One picture to extract: its key, and the file that should hold it."""

    image_id: str
    sha256: str
    file: str


@dataclass(frozen=True)
class Task:
    """Pictures of one part for one worker; `positions` are their places in the part."""

    part: int
    positions: tuple[int, ...]
    images: tuple[Image, ...]
    deaths: int = 0  # workers that died on it so far


@dataclass
class Encoded:
    """What came of a task. `done`: indices into the task's images, `rows`: [len(done), *shape] of those; `failed`:
    (index, kind, message) of the others."""

    done: list[int]
    rows: np.ndarray
    failed: list[tuple[int, str, str]]


Outcome = Encoded | Death


@dataclass(frozen=True)
class WorkerConfig:
    """What a worker needs to start. `load`: its encoder; `threads`: of one worker, null: an actor's share of its node; `precision`: see
    `autocast_context`; `section`: of the parameters, for messages."""

    load: EncoderLoader
    device: str
    threads: int | None
    precision: str
    section: str


class EncodingWorker:
    """Holds the encoder; `decode` may run in other threads than `forward`."""

    def __init__(self, config: WorkerConfig) -> None:
        import torch

        # On a GPU the cores are there to decode; on a CPU the encoder needs them.
        on_gpu = config.device.startswith("cuda")
        threads = actor_cores() if config.threads is None else config.threads
        torch.set_num_threads(1 if on_gpu else threads)
        self.decoders = ThreadPoolExecutor(threads if on_gpu else 1)
        self.config = config
        self.encoder = config.load(config.device)
        self.encoding = Lock()

    def __call__(self, task: Task) -> Encoded:
        """A task as a Ray actor works on it."""
        decoded = self.decode(task)
        with self.encoding:
            return self.forward(decoded)

    def decode(self, task: Task) -> Decoded:
        """Read the task's images and check that they are the ones of the manifest."""
        decoded = Decoded()
        for index, image in enumerate(self.decoders.map(self._prepared, task.images)):
            if isinstance(image, ImageError):
                decoded.failed.append((index, image.kind, str(image)))
            else:
                decoded.add(index, image)
        return decoded

    def _prepared(self, image: Image) -> torch.Tensor | ImageError:
        try:
            return self.encoder.prepare(
                read_image(read_content(Path(image.file), image.sha256), image.image_id)
            )
        except ImageError as error:
            return error

    def forward(self, decoded: Decoded) -> Encoded:
        """Rows of what was decoded, images of equal size together; those that are not finite numbers are failures."""
        done, rows, failed = [], [self._encoded([])], list(decoded.failed)
        for indices, images in decoded.batches():
            encoded = self._encode(images)
            finite = np.isfinite(encoded).reshape(len(encoded), -1).all(axis=1)
            rows.append(encoded if finite.all() else encoded[finite])
            done += [index for index, good in zip(indices, finite, strict=True) if good]
            failed += [(indices[place], *_not_finite(encoded[place])) for place in np.flatnonzero(~finite)]
        return Encoded(done, np.concatenate(rows), failed)

    def _encode(self, images: torch.Tensor) -> np.ndarray:
        """[n, *shape]; where memory does not suffice for all images at once, in halves."""
        import torch

        try:
            with torch.inference_mode(), autocast_context(self.config.device, self.config.precision):
                return self._encoded(self.encoder.encode(images.to(self.config.device)).cpu().numpy())
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error) or len(images) == 1:
                raise
        if self.config.device.startswith("cuda"):
            torch.cuda.empty_cache()
        middle = len(images) // 2
        return np.concatenate([self._encode(images[:middle]), self._encode(images[middle:])])

    def _encoded(self, rows: Any) -> np.ndarray:
        """Rows as the store has them."""
        values = self.encoder.values
        return np.asarray(rows, values.dtype).reshape(-1, *values.shape)


def _not_finite(row: np.ndarray) -> tuple[str, str]:
    """Kind and message of a row that no later stage could use."""
    if np.isnan(row).any():
        return "not_finite", "the network makes NaN of this picture"
    return "overflow", f"the network makes numbers of this picture that {row.dtype} does not hold"


@dataclass
class Decoded:
    """A task's images as the encoder takes them, by shape, and those that could not be read."""

    by_shape: dict[tuple[int, ...], list[tuple[int, torch.Tensor]]] = field(
        default_factory=lambda: defaultdict(list)
    )
    failed: list[tuple[int, str, str]] = field(default_factory=list)

    def add(self, index: int, image: torch.Tensor) -> None:
        self.by_shape[tuple(image.shape)].append((index, image))

    def batches(self) -> Iterator[tuple[list[int], torch.Tensor]]:
        """Yield indices and their images, stacked [n, 3, H, W]."""
        import torch

        for items in self.by_shape.values():
            indices, images = zip(*items, strict=True)
            yield list(indices), torch.stack(images)


class Pool(Protocol):
    """Takes tasks while it has room, hands back outcomes."""

    @property
    def has_room(self) -> bool: ...

    def submit(self, task: Task) -> None: ...

    def collect(self, seconds: float) -> list[tuple[Task, Outcome]]:
        """What has finished; waits at most about so long for something to finish."""

    def close(self) -> None: ...


class InProcessPool:
    """Works in this process and thread; one thread beside it decodes ahead."""

    def __init__(self, config: WorkerConfig) -> None:
        self.worker = EncodingWorker(config)
        self.decoder = ThreadPoolExecutor(1)
        self.queue: deque[tuple[Task, Future[Decoded]]] = deque()

    @property
    def has_room(self) -> bool:
        return len(self.queue) < IN_FLIGHT

    def submit(self, task: Task) -> None:
        self.queue.append((task, self.decoder.submit(self.worker.decode, task)))

    def collect(self, seconds: float) -> list[tuple[Task, Outcome]]:
        if not self.queue:
            time.sleep(seconds)
            return []
        task, decoded = self.queue.popleft()
        try:
            return [(task, self.worker.forward(decoded.result()))]
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise UserError(
                f"{self.worker.config.section}: not even one image fits into memory ({task.images[0].file}); close other programs"
            ) from error

    def close(self) -> None:
        self.decoder.shutdown(cancel_futures=True)


def open_pool(config: WorkerConfig, workers: int, address: str | None) -> Pool:
    """`workers` Ray actors, on this machine or at `address`; 0 works in this process."""
    if not workers:
        return InProcessPool(config)
    cluster = Cluster(address, "machine.ray_address", "set machine.workers to 0")
    # Ray deals out the GPUs for "cuda"; who names one ("cuda:1") gets that one in every actor. One task decodes while the other is
    # in the encoder.
    return RayPool(
        partial(EncodingWorker, config),
        workers,
        config.device == "cuda",
        cluster,
        at_once=IN_FLIGHT,
        alone=lambda task: task.deaths > 0,
    )
