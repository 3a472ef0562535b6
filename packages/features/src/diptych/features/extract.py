"""Grid extraction: images through the detector into the feature store, by Ray actors or in this process."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from .errors import UserError
from .files import atomic_path
from .images import ImageError, read_image, resize_square, to_uint8_tensor
from .manifest import resolve_image
from .store import FeatureStore

if TYPE_CHECKING:
    import pyarrow as pa

Chunk = list[tuple[str, str, str]]  # image_id, sha256, file
Failure = dict[str, str]  # sha256, kind, message


@dataclass(frozen=True)
class ExtractConfig:
    """How extraction runs; nothing here changes a feature.

    batch_size: images per forward pass. part_size: images per stored part, the most that a kill loses.
    max_failed_share: unreadable images that are tolerated, as a share of all.
    ray_address: of a running cluster, or null for this machine.
    """

    batch_size: int
    part_size: int
    max_failed_share: float
    ray_address: str | None

    def __post_init__(self) -> None:
        for name in ("batch_size", "part_size"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, is {getattr(self, name)}")


class _Worker:
    """Holds the detector and turns chunks of images into features; runs here or as a Ray actor."""

    def __init__(self, detector_folder: str, device: str, batch_size: int, threads: int) -> None:
        import torch

        from .detector import load_detector

        torch.set_num_threads(threads)
        self.detector = load_detector(detector_folder, device)
        self.device, self.batch_size = device, batch_size

    def extract(self, chunk: Chunk) -> tuple[list[int], np.ndarray, list[Failure]]:
        """Positions in the chunk that succeeded, their features float16 [m, 64, D], and the failures."""
        import torch

        size = self.detector.preprocessing["size"]
        positions, failures, features = [], [], []
        pending: list[torch.Tensor] = []

        def flush() -> None:
            if pending:
                images = torch.stack(pending).to(self.device).float() / 255
                with torch.inference_mode():
                    features.append(self.detector.grid_features(images).half().cpu().numpy())
                pending.clear()

        for position, (image_id, sha256, file) in enumerate(chunk):
            try:
                pending.append(to_uint8_tensor(resize_square(read_image(Path(file), image_id), size)))
                positions.append(position)
            except ImageError as error:
                failures.append({"sha256": sha256, "kind": error.kind, "message": str(error)})
            if len(pending) == self.batch_size:
                flush()
        flush()
        empty = np.zeros((0, 64, self.detector.feature_dim), np.float16)
        return positions, np.concatenate(features) if features else empty, failures


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
) -> dict[str, int]:
    """Extract what the store does not know yet and link the dataset's features into `out`.

    workers: Ray actors, each with its share of `threads`; 0 works in this process. Images that cannot be
    read are left out and listed in `out`/failures.parquet. Returns counts: images, extracted, reused, failed.
    Raises UserError when more than `max_failed_share` of the images fail; it names a copy of that table in the
    store, since `out` is not made.
    """
    from .detector import load_detector

    detector = load_detector(detector_folder)
    meta = {
        "detector": detector.weights_hash,
        "preprocessing": detector.preprocessing,
        "grid": 8,
        "feature_dim": detector.feature_dim,
    }
    store = FeatureStore(store_root, meta)
    known = store.known()
    rows = table.select(["image_id", "sha256", "path"]).to_pylist()
    wanted: Chunk = []
    queued = set(known)
    for row in rows:
        if row["sha256"] not in queued:
            queued.add(row["sha256"])
            wanted.append(
                (row["image_id"], row["sha256"], str(resolve_image(table_path.absolute(), row["path"])))
            )
    chunks = [wanted[i : i + config.part_size] for i in range(0, len(wanted), config.part_size)]

    failed: dict[str, Failure] = {}  # by sha256
    arguments = (str(Path(detector_folder).absolute()), device, config.batch_size)
    if not chunks:
        results: Iterator[tuple[Chunk, Any]] = iter(())
    elif workers == 0:
        worker = _Worker(*arguments, threads)
        results = ((chunk, worker.extract(chunk)) for chunk in chunks)
    else:
        results = _run_ray(chunks, arguments, min(workers, len(chunks)), threads, config.ray_address)
    with tqdm(
        total=len(rows), initial=len(rows) - len(wanted), unit="image", desc="extract", mininterval=1
    ) as bar:
        for chunk, (positions, features, failures) in results:
            if positions:
                store.append([chunk[p][0] for p in positions], [chunk[p][1] for p in positions], features)
            failed.update((failure["sha256"], failure) for failure in failures)
            bar.update(len(chunk))
            bar.set_postfix(failed=len(failed), refresh=False)

    bad = [{**row, **failed[row["sha256"]]} for row in rows if row["sha256"] in failed]
    if len(bad) > config.max_failed_share * len(rows):
        _write_failures(bad, store.folder / "failures.parquet")
        kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(f["kind"] for f in bad).most_common())
        raise UserError(
            f"extract: {len(bad)} of {len(rows)} images failed ({kinds}), more than "
            f"extract.max_failed_share = {config.max_failed_share}; the first is {bad[0]['path']}, all are in "
            f"{store.folder / 'failures.parquet'}. Mend the images or raise the share; what was extracted is kept"
        )
    good = [(row["image_id"], row["sha256"]) for row in rows if row["sha256"] not in failed]
    store.link_into(out, good, config.part_size)
    _write_failures(bad, out / "failures.parquet")
    extracted = len(wanted) - len(failed)
    return {"images": len(rows), "extracted": extracted, "reused": len(good) - extracted, "failed": len(bad)}


def _run_ray(
    chunks: list[Chunk], arguments: tuple[str, str, int], workers: int, threads: int, address: str | None
) -> Iterator[tuple[Chunk, Any]]:
    """Chunks through actors, at most two in flight for each, results as they come.

    An actor that dies is started again and its chunk is repeated (twice at most).
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # silences a warning without a GPU
    import logging

    import ray

    local = {"num_cpus": workers, "object_store_memory": 200 * 2**20} if address is None else {}
    # "local" and not null, or RAY_ADDRESS in the environment would decide.
    ray.init(
        address=address or "local",
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        **local,
    )
    try:
        # Ray deals out the GPUs for "cuda"; who names one ("cuda:1") gets that one in every actor.
        gpus = int(arguments[1] == "cuda")
        room = ray.cluster_resources()
        if workers > room.get("CPU", 0) or workers * gpus > room.get("GPU", 0):
            # The actors that do not fit would wait forever, and their chunks with them.
            raise UserError(
                f"extract: {workers} workers need {workers} CPUs and {workers * gpus} GPUs, Ray has "
                f"{room.get('CPU', 0):g} and {room.get('GPU', 0):g}; lower machine.workers"
            )
        actor = ray.remote(num_cpus=1, num_gpus=gpus, max_restarts=2, max_task_retries=2)(_Worker)
        actors = [actor.remote(*arguments, max(1, threads // workers)) for _ in range(workers)]
        queue = iter(enumerate(chunks))
        running = {}

        def submit(target: Any) -> None:
            if (item := next(queue, None)) is not None:
                running[target.extract.remote(item[1])] = (item[0], target)

        for _ in range(2):
            for target in actors:
                submit(target)
        while running:
            (ready,), _ = ray.wait(list(running), num_returns=1)
            number, target = running.pop(ready)
            submit(target)
            yield chunks[number], ray.get(ready)
    except ray.exceptions.RayActorError as error:
        raise UserError(
            f"extract: a worker died three times ({error}); lower machine.workers or extract.batch_size if "
            "memory ran out. What was extracted is kept; run again to go on"
        ) from error
    finally:
        ray.shutdown()


def _write_failures(failures: Sequence[Failure], path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([(name, pa.string()) for name in ("image_id", "path", "sha256", "kind", "message")])
    with atomic_path(path) as temporary:
        pq.write_table(pa.Table.from_pylist(list(failures), schema=schema), temporary)
