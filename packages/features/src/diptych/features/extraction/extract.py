"""Extraction: images through an encoder into its store, by Ray actors or in this process."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from diptych.features.errors import UserError
from diptych.features.extraction.claims import Claims
from diptych.features.extraction.encoder import DetectorLoader, EncoderLoader, ImageEncoder
from diptych.features.extraction.workers import (
    IN_FLIGHT,
    Encoded,
    Image,
    Outcome,
    Task,
    WorkerConfig,
    open_pool,
)
from diptych.features.manifest import resolve_image
from diptych.features.precision import resolved_precision
from diptych.features.ray_cluster import Death
from diptych.features.store import FeatureStore, cut_into_parts, write_failures
from diptych.features.store_elsewhere import bring_parts

if TYPE_CHECKING:
    import pyarrow as pa

Failure = dict[str, str]  # sha256, kind, message

# What is wrong with the bytes themselves, or what the network makes of them, stays wrong. Other failures (a missing file, one that may not be read) are
# somebody's to mend, and tried again by every run.
LASTING = ("empty", "not_an_image", "truncated", "too_large", "kills_workers", "not_finite", "overflow")
# tasks that die with their workers while none is finished, besides all that its workers can take with them at once, when nodes
# are lost: the machine's fault and not a picture's
DEATHS_IN_A_ROW = 12


@dataclass(frozen=True, kw_only=True)
class EncodingConfig:
    """How images are encoded into a store. Of these only the precision touches a row, and within rounding.

    batch_size: images per forward pass. part_size: images per stored part, about; what a kill loses is the parts
    in flight. max_failed_share: unreadable images that are tolerated, as a share of all. retry_failed: try again
    what earlier runs found unreadable. ray_address: of a running cluster ("auto", "host:6379"), or null for this machine.
    precision: "float32", "bfloat16" or "auto" (see `diptych.features.precision`).
    """

    batch_size: int
    part_size: int
    max_failed_share: float
    retry_failed: bool
    ray_address: str | None
    precision: str

    def __post_init__(self) -> None:
        for name in ("batch_size", "part_size"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, is {getattr(self, name)}")
        if not 0 <= self.max_failed_share <= 1:
            raise UserError(f"max_failed_share is a share between 0 and 1, is {self.max_failed_share}")


@dataclass(frozen=True, kw_only=True)
class ExtractConfig(EncodingConfig):
    """How grid features are extracted. backend: of the detector, "torchvision" or "detectron2", the same within rounding."""

    backend: str


def extract_features(
    table: pa.Table,
    table_path: Path,
    detector_folder: Path,
    store_root: Path,
    out: Path,
    config: ExtractConfig,
    workers: int,
    threads: int,
    device: str,
    elsewhere: str | None = None,
) -> dict[str, int]:
    """Grid features by the detector of a folder: `encode_images`."""
    loader = DetectorLoader(str(Path(detector_folder).absolute()), config.backend)
    return encode_images(
        table, table_path, loader, store_root, out, config, workers, threads, device, elsewhere=elsewhere
    )


def encode_images(
    table: pa.Table,
    table_path: Path,
    load: EncoderLoader,
    store_root: Path,
    out: Path,
    config: EncodingConfig,
    workers: int,
    threads: int,
    device: str,
    section: str = "extract",
    elsewhere: str | None = None,
) -> dict[str, int]:
    """Encode what the store does not know yet and link the dataset's rows into `out`.

    load: the encoder. workers: Ray actors, each with its share of `threads`, or on a cluster of its node's cores; 0 works in this process. Images that cannot be
    read are left out and listed in `out`/failures.parquet. Returns counts: images, extracted (by this run),
    reused, failed. Several runs may work on one store at once; each image is encoded by one of them. section: of the
    parameters that `config` is, for messages. elsewhere: address of published parts (`diptych.features.store_elsewhere`), from where
    what the store lacks is brought before anything is encoded; how many images came is the count `brought`.
    Raises UserError when more than `max_failed_share` of the images fail; it names a copy of that table in the
    store, since `out` is not made.
    """
    encoder = load("cpu")
    precision = resolved_precision(device, config.precision)
    store = FeatureStore(store_root, {"precision": precision, **encoder.meta})
    rows = table.select(["image_id", "sha256", "path", "width", "height"]).to_pylist()
    remembered = {} if config.retry_failed else store.failures()
    with Claims(store.folder / "runs") as claims:
        store.remove_leftovers()
        brought = {}
        if elsewhere is not None:
            wanted = [row["sha256"] for row in rows if row["sha256"] not in remembered]
            brought = {"brought": bring_parts(store, elsewhere, wanted)}
        plan = _Plan(rows, table_path, store, claims, config, set(remembered), encoder, section, workers)
        if not plan.finished:
            images = plan.images_left
            del encoder  # the workers have their own
            workers = min(workers, -(-images // config.batch_size))
            worker_config = WorkerConfig(
                load=load,
                device=device,
                threads=None if workers and config.ray_address else max(1, threads // max(workers, 1)),
                precision=precision,
                section=section,
            )
            try:
                with (
                    tqdm(
                        total=len(rows),
                        initial=len(rows) - images,
                        unit="image",
                        desc=section.rpartition(".")[2],
                        mininterval=1,
                    ) as bar,
                    closing(open_pool(worker_config, workers, config.ray_address)) as pool,
                ):
                    while not plan.finished:
                        while pool.has_room and (task := plan.next_task()) is not None:
                            pool.submit(task)
                        for task, outcome in pool.collect(seconds=0.5):
                            plan.settle(task, outcome)
                        bar.set_postfix(failed=len(plan.failed), refresh=False)
                        bar.update(images - plan.images_left - (bar.n - bar.initial))
            finally:  # also what a run that is interrupted has found
                store.record_failures(plan.lasting_failures())

    failed = remembered | plan.failed
    bad = [
        {**failed[row["sha256"]], "image_id": row["image_id"], "path": row["path"]}
        for row in rows
        if row["sha256"] in failed
    ]
    if len(bad) > config.max_failed_share * len(rows):
        write_failures(bad, store.folder / "failures.parquet")
        kinds = ", ".join(f"{count} {kind}" for kind, count in count_kinds(bad).items())
        raise UserError(
            f"{section}: {len(bad)} of {len(rows)} images failed ({kinds}), more than "
            f"{section}.max_failed_share = {config.max_failed_share}; the first is {bad[0]['path']}, all are in "
            f"{store.folder / 'failures.parquet'}. Mend the images or raise the share; what was extracted is kept"
        )
    good = [(row["image_id"], row["sha256"]) for row in rows if row["sha256"] not in failed]
    store.link_into(out, good, config.part_size)
    write_failures(bad, out / "failures.parquet")
    return {
        "images": len(rows),
        "extracted": plan.extracted,
        **brought,
        "reused": len(good) - plan.extracted - sum(brought.values()),
        "failed": len(bad),
        **{f"failed.{kind}": count for kind, count in count_kinds(bad).items()},
    }


def count_kinds(failures: Sequence[Failure]) -> dict[str, int]:
    """Failures by kind, the most frequent first."""
    return dict(Counter(failure["kind"] for failure in failures).most_common())


@dataclass
class _Part:
    """A part while it is being encoded: [n, *shape], filled task by task."""

    images: list[Image]
    rows: np.ndarray
    settled: int = 0
    good: list[int] = field(default_factory=list)


class _Plan:
    """What is left to do: hands out tasks in the manifest's order, and stores each part when its last task is settled.

    Images that another living run has claimed are left to it, and come back only if it dies.
    """

    def __init__(
        self,
        rows: list[dict[str, Any]],
        table_path: Path,
        store: FeatureStore,
        claims: Claims,
        config: EncodingConfig,
        skipped: set[str],
        encoder: ImageEncoder,
        section: str = "extract",
        workers: int = 0,
    ) -> None:
        self.store, self.claims, self.batch_size, self.section = store, claims, config.batch_size, section
        self.failed: dict[str, Failure] = {}  # by sha256
        self.extracted = 0
        queued = skipped | set(store.known())
        self._sizes: dict[
            str, tuple[int, int]
        ] = {}  # what the encoder makes of each image: one size, one batch
        images: list[Image] = []
        for row in rows:
            if row["sha256"] not in queued:
                queued.add(row["sha256"])
                file = str(resolve_image(table_path.absolute(), row["path"]))
                images.append(Image(row["image_id"], row["sha256"], file))
                known_size = row["width"] > 0 and row["height"] > 0
                self._sizes[row["sha256"]] = (
                    encoder.input_size(row["width"], row["height"]) if known_size else (0, 0)
                )
        self.images_left = len(images)
        parts = cut_into_parts([image.sha256 for image in images], config.part_size)
        self._waiting: deque[list[Image]] = deque(images[part] for part in parts)
        self._open: dict[int, _Part] = {}
        self._tasks: deque[Task] = deque()
        self._parts_begun = 0
        self._deaths_in_a_row, self._most_deaths = 0, DEATHS_IN_A_ROW + IN_FLIGHT * workers
        self._suspects: set[str] = set()  # images that are failures by deaths of this row

    @property
    def finished(self) -> bool:
        return not self._waiting and not self._open

    def next_task(self) -> Task | None:
        """A task, or None while there is nothing to hand out."""
        for _ in range(len(self._waiting)):
            if self._tasks:
                break
            self._begin(self._waiting.popleft())
        return self._tasks.popleft() if self._tasks else None

    def settle(self, task: Task, outcome: Outcome) -> None:
        """Take what came of a task."""
        if isinstance(outcome, Death):
            self._settle_death(task, outcome)
            return
        self._deaths_in_a_row = 0
        self._suspects.clear()
        self._settle(task, outcome)

    def lasting_failures(self) -> list[Failure]:
        """Failures that no later run needs to try. While tasks die one after the other, whether a picture kills its workers
        or the machine does is not known."""
        unknown = frozenset() if self.finished else self._suspects
        return [f for f in self.failed.values() if f["kind"] in LASTING and f["sha256"] not in unknown]

    def _settle(self, task: Task, outcome: Encoded) -> None:
        part = self._open[task.part]
        positions = [task.positions[index] for index in outcome.done]
        part.rows[positions] = outcome.rows
        part.good += positions
        for index, kind, message in outcome.failed:
            self._fail(task.images[index], kind, message)
        part.settled += len(task.images)
        self.images_left -= len(task.images)
        if part.settled == len(part.images):
            self._store(task.part)

    def _begin(self, images: list[Image]) -> None:
        """Open a part with those of `images` that nobody has stored and nobody else is working on."""
        by_sha256 = {image.sha256: image for image in images}
        mine, others = (
            [by_sha256[sha256] for sha256 in sha256s]
            for sha256s in self.claims.take(list(by_sha256), self.store.known)
        )
        self.images_left -= len(images) - len(mine) - len(others)
        if others:
            self._waiting.append(others)
        if not mine:
            return
        number = self._parts_begun
        self._parts_begun += 1
        self._open[number] = _Part(mine, self._empty(len(mine)))
        by_size: dict[tuple[int, int], list[int]] = {}
        for position, image in enumerate(mine):
            by_size.setdefault(self._sizes[image.sha256], []).append(position)
        for positions in by_size.values():
            for start in range(0, len(positions), self.batch_size):
                batch = tuple(positions[start : start + self.batch_size])
                self._tasks.append(Task(number, batch, tuple(mine[position] for position in batch)))

    def _settle_death(self, task: Task, death: Death) -> None:
        """Try a task again; one that kills twice is halved until the picture that kills is alone."""
        self._deaths_in_a_row += 1
        if self._deaths_in_a_row > self._most_deaths:
            raise UserError(
                f"{self.section}: {self._deaths_in_a_row} tasks in a row died with their workers ({death.reason}); lower machine.workers "
                f"or {self.section}.batch_size if memory ran out. What was extracted is kept; run again to go on"
            )
        deaths = task.deaths + 1
        if deaths < 2:
            self._tasks.appendleft(replace(task, deaths=deaths))
        elif len(task.images) == 1:
            message = f"{task.images[0].file}: every worker that reads it dies ({death.reason})"
            self._suspects.add(task.images[0].sha256)
            self._settle(task, Encoded([], self._empty(0), [(0, "kills_workers", message)]))
        else:
            middle = len(task.images) // 2
            for half in (slice(middle, None), slice(middle)):
                self._tasks.appendleft(Task(task.part, task.positions[half], task.images[half], deaths))

    def _store(self, number: int) -> None:
        part = self._open.pop(number)
        if part.good:
            good = sorted(part.good)
            images = [part.images[position] for position in good]
            rows = part.rows if len(good) == len(part.images) else part.rows[good]
            self.store.append([image.image_id for image in images], [image.sha256 for image in images], rows)
            self.extracted += len(good)
        self.claims.release([image.sha256 for image in part.images])

    def _empty(self, count: int) -> np.ndarray:
        return np.empty((count, *self.store.values.shape), self.store.values.dtype)

    def _fail(self, image: Image, kind: str, message: str) -> None:
        self.failed[image.sha256] = {"sha256": image.sha256, "kind": kind, "message": message}
