"""Who turns images into rows of a store: a worker that holds the encoder, in this process or as Ray actors.

Both kinds of pool take tasks and hand back outcomes in any order; the next task's images are decoded while the
encoder is busy with this one's.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from diptych.features.errors import UserError
from diptych.features.extraction.encoder import EncoderLoader
from diptych.features.extraction.ray_sockets import check_room_for_sockets
from diptych.features.images import ImageError, read_content, read_image
from diptych.features.precision import autocast_context

if TYPE_CHECKING:
    import torch

ACTOR_START_SECONDS = 300
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


@dataclass(frozen=True)
class Death:
    """The worker died before it had finished the task."""

    reason: str


Outcome = Encoded | Death


@dataclass(frozen=True)
class WorkerConfig:
    """What a worker needs to start. `load`: its encoder; `threads`: of one worker; `precision`: see `autocast_context`; `section`:
    of the parameters, for messages."""

    load: EncoderLoader
    device: str
    threads: int
    precision: str
    section: str


class EncodingWorker:
    """Holds the encoder; `decode` may run in other threads than `forward`."""

    def __init__(self, config: WorkerConfig) -> None:
        import torch

        # On a GPU the cores are there to decode; on a CPU the encoder needs them.
        on_gpu = config.device.startswith("cuda")
        torch.set_num_threads(1 if on_gpu else config.threads)
        self.decoders = ThreadPoolExecutor(config.threads if on_gpu else 1)
        self.config = config
        self.encoder = config.load(config.device)

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
        """Rows of what was decoded, images of equal size together."""
        done, rows = [], []
        for indices, images in decoded.batches():
            rows.append(self._encode(images))
            done += indices
        return Encoded(done, np.concatenate(rows) if rows else self._encoded([]), decoded.failed)

    def _encode(self, images: torch.Tensor) -> np.ndarray:
        """[n, *shape]; where memory does not suffice for all images at once, in halves."""
        import torch

        try:
            with torch.inference_mode(), autocast_context(self.config.device, self.config.precision):
                return self._encoded(self.encoder.encode(images.to(self.config.device)).cpu().numpy())
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error) or len(images) == 1:
                raise
        if self.config.device.startswith("cuda"):
            torch.cuda.empty_cache()
        middle = len(images) // 2
        return np.concatenate([self._encode(images[:middle]), self._encode(images[middle:])])

    def _encoded(self, rows: Any) -> np.ndarray:
        """Rows as the store has them."""
        values = self.encoder.values
        return np.asarray(rows, values.dtype).reshape(-1, *values.shape)


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
            if not _is_out_of_memory(error):
                raise
            raise UserError(
                f"{self.worker.config.section}: not even one image fits into memory ({task.images[0].file}); close other programs"
            ) from error

    def close(self) -> None:
        self.decoder.shutdown(cancel_futures=True)


class RayActor:
    """A worker as a Ray actor that runs two tasks at a time: one decodes while the other is in the encoder."""

    def __init__(self, config: WorkerConfig) -> None:
        self.config = config
        self.forward = Lock()

    def start(self) -> int:
        """Load the encoder (a method of its own, so that its errors come back as they are). Returns the process id."""
        self.worker = EncodingWorker(self.config)
        return os.getpid()

    def extract(self, task: Task) -> Encoded:
        decoded = self.worker.decode(task)
        with self.forward:
            return self.worker.forward(decoded)


class RayPool:
    """Actors on this machine or on a cluster. An actor that dies, or its node, is replaced; what it was working on is
    handed back as a `Death`."""

    def __init__(self, config: WorkerConfig, workers: int, address: str | None) -> None:
        import logging

        if address is None:
            check_room_for_sockets()
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # silences a warning without a GPU
        import ray

        local = {"num_cpus": workers, "object_store_memory": 256 * 2**20} if address is None else {}
        try:
            # "local" and not null, or RAY_ADDRESS in the environment would decide.
            ray.init(
                address=address or "local",
                include_dashboard=False if address is None else None,
                log_to_driver=False,
                logging_level=logging.ERROR,
                **local,
            )
        except Exception as error:  # Ray raises all kinds, where the machine is too busy a plain one
            where = f"{config.section}.ray_address = {address}" if address else "on this machine"
            raise UserError(
                f"{config.section}: Ray does not start ({where}): {' '.join(str(error).split()).rstrip('.')}. Start the cluster or mend the "
                "address, run it again when the machine is less busy, or set machine.workers to 0 to work without Ray"
            ) from error
        # Ray deals out the GPUs for "cuda"; who names one ("cuda:1") gets that one in every actor.
        gpus = int(config.device == "cuda")
        room = ray.cluster_resources()
        if workers > room.get("CPU", 0) or workers * gpus > room.get("GPU", 0):
            ray.shutdown()
            # The actors that do not fit would wait forever, and their tasks with them.
            raise UserError(
                f"{config.section}: {workers} workers need {workers} CPUs and {workers * gpus} GPUs, Ray has "
                f"{room.get('CPU', 0):g} and {room.get('GPU', 0):g}; lower machine.workers"
            )
        self.config, self.address = config, address
        self.actor_class = ray.remote(num_cpus=1, num_gpus=gpus, max_concurrency=IN_FLIGHT)(RayActor)
        self.starting: dict[Any, Any] = {}  # reference to its start -> actor
        self.running: dict[Any, tuple[Task, Any]] = {}  # reference to the rows -> task, actor
        self.loads: dict[Any, int] = {}  # actor -> tasks in flight
        for _ in range(workers):
            self._start_actor()
        self.last_sign_of_life = time.monotonic()

    @property
    def has_room(self) -> bool:
        return any(load < IN_FLIGHT for load in self.loads.values())

    def submit(self, task: Task) -> None:
        actor = min(self.loads, key=self.loads.__getitem__)
        self.loads[actor] += 1
        self.running[actor.extract.remote(task)] = (task, actor)

    def collect(self, seconds: float) -> list[tuple[Task, Outcome]]:
        import ray

        waited_for = [*self.starting, *self.running]
        if not waited_for:
            time.sleep(seconds)
            return []
        # As many as there are, once there is one: a wait for each would cost a round trip each.
        ready, _ = ray.wait(waited_for, num_returns=1, timeout=seconds)
        more, _ = ray.wait(waited_for, num_returns=len(waited_for), timeout=0)
        outcomes: list[tuple[Task, Outcome]] = []
        for reference in dict.fromkeys([*ready, *more]):
            if reference in self.starting:
                self._started(reference)
            elif reference in self.running:  # its actor may have been given up a moment ago
                task, actor = self.running.pop(reference)
                try:
                    encoded: Encoded = ray.get(reference)
                except (ray.exceptions.RayError, MemoryError) as error:
                    outcomes.append((task, Death(_reason(error))))
                    outcomes += self._give_up(actor, _reason(error))
                else:
                    self.loads[actor] -= 1
                    outcomes.append((task, encoded))
        if outcomes:
            self.last_sign_of_life = time.monotonic()
        elif not self.loads and time.monotonic() - self.last_sign_of_life > ACTOR_START_SECONDS:
            raise UserError(
                f"{self.config.section}: no Ray worker started within {ACTOR_START_SECONDS} seconds; look at `ray status`, free "
                "memory and CPUs, or set machine.workers to 0. What was extracted is kept; run again to go on"
            )
        return outcomes

    def close(self) -> None:
        import ray

        ray.shutdown()

    def _start_actor(self) -> None:
        actor = self.actor_class.remote(self.config)
        self.starting[actor.start.remote()] = actor

    def _started(self, reference: Any) -> None:
        import ray

        actor = self.starting.pop(reference)
        try:
            ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            cause = error.cause
            if isinstance(cause, UserError) and self.address is not None:
                raise UserError(
                    f"{cause}. (On a Ray cluster, all nodes need the project's folder under the same path.)"
                ) from error
            raise cause if isinstance(cause, UserError) else error from None
        except ray.exceptions.RayError:
            self._start_actor()
        else:
            self.loads[actor] = 0

    def _give_up(self, actor: Any, reason: str) -> list[tuple[Task, Outcome]]:
        """Replace an actor. Returns its other task, which died with it."""
        import ray

        if actor not in self.loads:
            return []
        del self.loads[actor]
        ray.kill(actor)  # one that only ran out of memory is still there and holds it
        lost = [reference for reference, (_, owner) in self.running.items() if owner == actor]
        self._start_actor()
        return [(self.running.pop(reference)[0], Death(reason)) for reference in lost]


def open_pool(config: WorkerConfig, workers: int, address: str | None) -> InProcessPool | RayPool:
    """`workers` Ray actors, on this machine or at `address`; 0 works in this process."""
    return RayPool(config, workers, address) if workers else InProcessPool(config)


def _is_out_of_memory(error: BaseException) -> bool:
    text = str(error).lower()
    # torch's allocator, CUDA's, C++'s, and what oneDNN says when it cannot allocate
    signs = ("can't allocate memory", "out of memory", "bad_alloc", "could not create a primitive")
    return isinstance(error, MemoryError) or any(sign in text for sign in signs)


def _reason(error: BaseException) -> str:
    """What killed a worker, in one line; an error that is a defect of ours is raised as it is."""
    import ray

    if isinstance(error, ray.exceptions.RayTaskError):
        cause = error.cause
        if not _is_out_of_memory(cause):
            raise cause if isinstance(cause, UserError) else error
        return "out of memory"
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
