"""Clustering grid features, and assigning every cell its code; both go on where a run was stopped."""

from __future__ import annotations

import hashlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.numpy import save_file
from torch import Tensor
from tqdm import tqdm

from diptych.features.codebook.reading import CODES
from diptych.features.errors import UserError
from diptych.features.files import atomic_path
from diptych.features.grid import CELLS
from diptych.features.ranges import check_at_least
from diptych.features.store import FeatureReader

# Images that are in memory as float32 at a time: half a row group of the store, 13 MB at the papers' size.
_BLOCK = 25
# Seconds between two checkpoints while codes are assigned; while clustering, every iteration is one.
_SAVE_SECONDS = 30.0
# Of what a checkpoint holds; one of another version is not resumed.
_STATE_VERSION = 2


class Checkpoints(Protocol):
    """Where a run keeps its state; `save` is atomic."""

    def load(self) -> dict[str, Any] | None: ...

    def save(self, state: dict[str, Any]) -> None: ...


@dataclass(frozen=True)
class ClusterConfig:
    """k: centroids (10,000 in the papers). iterations of Lloyd's algorithm (20).

    points_per_centroid: cells in the seeded sample per centroid; the papers' code leaves FAISS at 256, so
    2.56 M of COCO train's 82,783 x 64 = 5.30 M cells are used at k = 10,000. They are 21 GB of memory as float32
    [2048]; 64 a centroid are 5.2 GB.
    """

    k: int
    iterations: int
    points_per_centroid: int
    seed: int

    def __post_init__(self) -> None:
        check_at_least(self, 1, "k", "iterations", "points_per_centroid")


def build_codebook(
    reader: FeatureReader,
    train_ids: set[str],
    config: ClusterConfig,
    threads: int,
    out: Path,
    device: str = "cpu",
    checkpoints: Checkpoints | None = None,
    deal: Deal | None = None,
) -> tuple[dict[str, float], list[dict[str, float]]]:
    """Cluster the train images' cells and assign every image's; write codebook.safetensors and codes.parquet.

    Memory: the sample as float32, some blocks of 25 images, three times the centroids, and for each image of the store
    about 300 bytes: its id, sha256, codes and squared distance, and copies of some of them. FAISS does the clustering,
    one iteration of Lloyd's algorithm at a time, each followed by a checkpoint: a run that was killed repeats at most
    one iteration (of the assignment, half a minute) and ends with the same bytes as an undisturbed one on the same kind
    of machine with the same number of threads.

    A centroid that no cell is nearest to is replaced after each iteration by a copy of one of a large cluster, both
    pushed apart by 1/1024 (FAISS does it; `splits` of an iteration). Where there are fewer different cells than
    centroids, the rest stays dead: no code names it.

    device: "cuda" (all GPUs) or "cuda:N" (one) where FAISS is built for GPUs, else the CPU does it and says so. deal: has others
    assign the codes, a part of the store each; null: this process does.

    Returns metrics (relative_error: share of the features' variance that the codes lose, over all train cells;
    dead_centroids; smallest and largest cluster; perplexity of the codes; cells and sampled_cells of the train
    split; iterations) and one row per iteration: step, inertia (sum of squared distances of the sample to its
    centroids before the iteration), imbalance (1 for clusters of equal size) and splits.
    Raises UserError when k exceeds the number of cells, a feature is not finite, or the sample does not fit in memory.
    """
    import faiss

    if config.k > 65_536:
        raise UserError(f"cluster.k = {config.k}: codes are stored as 16-bit numbers; use at most 65536")
    keys = _read_keys(reader)
    train = _of_train(keys, train_ids)
    available = int(train.sum()) * CELLS
    if config.k > available:
        raise UserError(
            f"cluster.k = {config.k} centroids, but there are only {available} grid cells "
            f"({available // CELLS} train images x {CELLS}); lower cluster.k or add images"
        )
    faiss.omp_set_num_threads(threads)
    index = _flat_index(reader.feature_dim, device)
    progress = _Progress.begin_or_resume(checkpoints, _fingerprint(reader, keys, train, asdict(config)))
    if not progress.clustered:
        sample = _sample(reader, keys, train, config)
        _cluster(sample, config, index, progress)
        del sample  # before the assignment: its blocks take some of the room
    _assign(reader, keys, train, index, progress, deal)
    sampled, inertia = _sample_size(available, config), progress.curve[-1]["inertia"]
    return _write(out, keys, train, progress, sampled, inertia), progress.curve


def assign_codebook(
    centroids: np.ndarray,
    source: Path,
    reader: FeatureReader,
    train_ids: set[str],
    threads: int,
    out: Path,
    device: str = "cpu",
    checkpoints: Checkpoints | None = None,
    deal: Deal | None = None,
) -> tuple[dict[str, float], list[dict[str, float]]]:
    """Take `centroids`, float32 [K, D], K at most 65,536, for the codebook, and do what `build_codebook` does after its
    clustering, checkpoints and GPUs included. source: where they are from, for messages.

    Returns the metrics of `build_codebook` (iterations and sampled_cells are 0, inertia is of all train cells) and a
    curve of one point. Raises UserError when a feature is not finite, and for centroids that represent the train cells
    worse than their mean would: those are of another detector.
    """
    import faiss

    keys = _read_keys(reader)
    train = _of_train(keys, train_ids)
    faiss.omp_set_num_threads(threads)
    index = _flat_index(reader.feature_dim, device)
    given = hashlib.sha256(centroids.tobytes()).hexdigest()
    progress = _Progress.begin_or_resume(checkpoints, _fingerprint(reader, keys, train, given))
    progress.centroids, progress.clustered = centroids, True
    _assign(reader, keys, train, index, progress, deal)
    lost, variance = float(progress.lost[train].sum()), progress.variance(train)
    if lost > variance > 0:
        raise UserError(
            f"{source}: these centroids represent the features in {reader.folder} worse than their mean does (relative "
            f"error {lost / variance:.3g}); take the centroids that were made of these features"
        )
    metrics = _write(out, keys, train, progress, 0, lost)
    share = progress.sizes(train) / max(metrics["cells"], 1)
    imbalance = len(centroids) * float((share**2).sum())
    return metrics, [{"step": 0, "inertia": lost, "imbalance": imbalance, "splits": 0}]


class _Progress:
    """What is known so far, and where it is kept: centroids and curve, then codes and squared distances."""

    def __init__(self, checkpoints: Checkpoints | None, started_from: str) -> None:
        self._checkpoints, self._started_from = checkpoints, started_from
        self.centroids: np.ndarray | None = None  # float32 [K, D]
        self.curve: list[dict[str, float]] = []
        self.clustered = False
        self.assigned = 0  # images that have codes
        self.codes = np.zeros((0, CELLS), dtype=np.uint16)  # [n, 64]
        self.lost = np.zeros(0)  # float64 [n], an image's squared distances to its codes' centroids
        self.total = np.zeros(0)  # float64 [D], sum of the train cells that have codes
        self.squares = 0.0  # and of the squares of their lengths

    @classmethod
    def begin_or_resume(cls, checkpoints: Checkpoints | None, started_from: str) -> _Progress:
        """The state of a run that was stopped and started from the same, or of a new one."""
        progress = cls(checkpoints, started_from)
        state = checkpoints.load() if checkpoints else None
        if state is not None and state["started_from"] == started_from:
            progress.curve = state["curve"]
            progress.centroids = state["centroids"].numpy()
            progress.clustered, progress.assigned = state["clustered"], state["assigned"]
            progress.codes = state["codes"].numpy().view(np.uint16)
            progress.lost = state["lost"].numpy()
            progress.total, progress.squares = state["total"].numpy(), state["squares"]
        return progress

    def sizes(self, train: np.ndarray) -> np.ndarray:
        """How many of the train images' cells have each code, int64 [K]."""
        assert self.centroids is not None
        return np.bincount(self.codes[train].ravel(), minlength=len(self.centroids))

    def variance(self, train: np.ndarray) -> float:
        """Sum of the train cells' squared distances to their mean, once all have codes."""
        variance = self.squares - float(self.total @ self.total) / max(int(train.sum()) * CELLS, 1)
        # What is left of float32's rounding where all cells are the same is no variance.
        return variance if variance > 1e-6 * self.squares else 0.0

    def take(self, assigned: Assigned) -> None:
        """Add the next block's codes."""
        images = slice(assigned.first, assigned.first + len(assigned.codes))
        self.codes[images], self.lost[images] = assigned.codes, assigned.lost
        self.total += assigned.total
        self.squares += assigned.squares
        self.assigned = images.stop

    def save(self) -> None:
        if self._checkpoints is None or self.centroids is None:
            return
        self._checkpoints.save(
            {
                "started_from": self._started_from,
                "centroids": torch.from_numpy(self.centroids),
                "curve": self.curve,
                "clustered": self.clustered,
                "assigned": self.assigned,
                "codes": torch.from_numpy(self.codes.view(np.int16)),  # torch can do little with uint16
                "lost": torch.from_numpy(self.lost),
                "total": torch.from_numpy(self.total),
                "squares": self.squares,
            }
        )


def _read_keys(reader: FeatureReader) -> pa.Table:
    """image_id and sha256 of all images, in order."""
    columns = ["image_id", "sha256"]
    empty = pa.schema([CODES.field(name) for name in columns]).empty_table()
    parts = [pq.ParquetFile(part).read(columns).cast(empty.schema) for part in reader.parts]
    return pa.concat_tables([empty, *parts]).combine_chunks()


def _of_train(keys: pa.Table, train_ids: set[str]) -> np.ndarray:
    """Which images are of the train split, bool [n]."""
    return np.array([image_id in train_ids for image_id in keys["image_id"].to_pylist()], dtype=bool)


def _fingerprint(reader: FeatureReader, keys: pa.Table, train: np.ndarray, wanted: Any) -> str:
    """Hash of what a run starts from, `wanted` included; a checkpoint of any other run is not resumed."""
    digest = hashlib.sha256(json.dumps([_STATE_VERSION, wanted, reader.meta], sort_keys=True).encode())
    for sha256 in keys["sha256"].to_pylist():
        digest.update(sha256.encode())
    digest.update(train.tobytes())
    return digest.hexdigest()


def _flat_index(feature_dim: int, device: str) -> Any:
    """FAISS's exact search, on the GPUs that `device` names if it can use any."""
    import faiss

    index = faiss.IndexFlatL2(feature_dim)
    if not device.startswith("cuda"):
        return index
    if not faiss.get_num_gpus():
        message = (
            "cluster: this FAISS uses no GPU (faiss-gpu-cu12 instead of faiss-cpu would); the CPU clusters"
        )
        tqdm.write(message, file=sys.stderr)
        return index
    _, _, number = device.partition(":")
    gpus = [int(number)] if number else range(faiss.get_num_gpus())
    return faiss.index_cpu_to_gpus_list(index, gpus=list(gpus))


def _sample_size(available: int, config: ClusterConfig) -> int:
    return min(available, config.k * config.points_per_centroid)


def _sample(reader: FeatureReader, keys: pa.Table, train: np.ndarray, config: ClusterConfig) -> np.ndarray:
    """A uniform sample without repetition of the train images' cells, float32 [m, D], in their order.

    Reads every image, so that a feature that is not finite is found before the clustering, not after it.
    """
    generator = np.random.default_rng(config.seed)
    available = int(train.sum()) * CELLS
    wanted = _sample_size(available, config)
    try:
        sample = torch.from_numpy(np.empty((wanted, reader.feature_dim), dtype=np.float32))
    except MemoryError as error:
        raise UserError(
            f"cluster: a sample of {wanted:,} cells x {reader.feature_dim} takes {wanted * reader.feature_dim * 4 / 1e9:.1f}"
            f" GB of memory; lower cluster.points_per_centroid ({config.points_per_centroid})"
        ) from error
    unseen, filled = available, 0
    not_finite: list[str] = []
    for first, cells in _blocks(reader, 0, "sample"):
        images = np.flatnonzero(train[first : first + len(cells)])
        chosen = []
        for image in images:
            # How many of the cells that are still wanted are this image's: the draw does not depend on the parts.
            count = generator.hypergeometric(CELLS, unseen - CELLS, wanted - filled)
            places = (
                np.sort(generator.choice(CELLS, count, replace=False)) if count < CELLS else np.arange(CELLS)
            )
            chosen.append(image * CELLS + places)
            unseen, filled = unseen - CELLS, filled + count
        if chosen:
            rows = torch.from_numpy(np.concatenate(chosen))
            torch.index_select(cells.flatten(0, 1), 0, rows, out=sample[filled - len(rows) : filled])
        not_finite += _not_finite(cells, keys, first)
    if not_finite:
        raise _overflow(not_finite)
    return sample.numpy()


def _not_finite(cells: Tensor, keys: pa.Table, first: int) -> list[str]:
    """Ids of the images, from number `first` on, of which a feature is not finite. cells: float32 [n, 64, D]."""
    if math.isfinite(float(cells.sum())):
        return []
    finite = cells.isfinite().all(dim=2).all(dim=1).numpy()
    ids = keys["image_id"].slice(first, len(cells)).to_pylist()
    return [ids[place] for place in np.flatnonzero(~finite)]


def _overflow(image_ids: list[str]) -> UserError:
    """What is wrong with images whose features are not finite."""
    return UserError(
        f"cluster: features of {len(image_ids)} images are not finite: {', '.join(image_ids[:5])}"
        f"{', ...' if len(image_ids) > 5 else ''}; extraction stores none such: remove the folder of the feature store "
        "that has the same _meta.json and run `dvc repro -f extract`"
    )


def _cluster(sample: np.ndarray, config: ClusterConfig, index: Any, progress: _Progress) -> None:
    """Lloyd's iterations that are still to do, from a seeded choice of different cells as the first centroids.

    Calling FAISS once an iteration gives what calling it once for all of them gives, its end at an iteration that
    changed nothing included. (Its own first choice takes equal cells too. All but one of their centroids are empty,
    and where most cells are equal, an empty sky, it splits that one cluster again and again in vain.)
    """
    import faiss

    if progress.centroids is None:
        progress.centroids = _different_cells(sample, config)
    bar = tqdm(
        total=config.iterations,
        initial=len(progress.curve),
        desc=f"k-means, {len(sample):,} cells, k = {config.k:,}",
        unit="iteration",
    )
    while len(progress.curve) < config.iterations and not _settled(progress.curve):
        clustering = faiss.Clustering(sample.shape[1], config.k)
        clustering.niter = 1
        clustering.min_points_per_centroid = 1
        clustering.max_points_per_centroid = math.ceil(len(sample) / config.k)  # or FAISS copies a part of it
        clustering.check_input_data_for_NaNs = False  # done while sampling
        faiss.copy_array_to_vector(progress.centroids.ravel(), clustering.centroids)
        clustering.train(sample, index)
        progress.centroids = faiss.vector_to_array(clustering.centroids).reshape(config.k, -1)
        stats = clustering.iteration_stats.at(0)
        progress.curve.append(
            {
                "step": len(progress.curve),
                "inertia": stats.obj,
                "imbalance": stats.imbalance_factor,
                "splits": stats.nsplit,
            }
        )
        progress.save()
        bar.update()
        bar.set_postfix(inertia=f"{stats.obj:.4g}", splits=stats.nsplit)
    bar.close()
    progress.clustered = True
    progress.save()


def _different_cells(sample: np.ndarray, config: ClusterConfig) -> np.ndarray:
    """k rows of the sample, no two of them equal if there are k such, float32 [k, D]."""
    order = np.random.default_rng((config.seed, 1)).permutation(len(sample))
    chosen: dict[bytes, int] = {}
    for row in order:
        chosen.setdefault(hashlib.blake2b(sample[row], digest_size=16).digest(), row)
        if len(chosen) == config.k:
            break
    rows = np.fromiter(chosen.values(), dtype=np.int64)
    return sample[np.concatenate([rows, order[: config.k - len(rows)]])]


def _settled(curve: list[dict[str, float]]) -> bool:
    """Whether the last iteration changed nothing (FAISS's own rule)."""
    return len(curve) > 1 and curve[-1]["inertia"] == curve[-2]["inertia"] != 0


Deal = Callable[["Assignment", Sequence[int]], Iterator[list["Assigned"]]]
"""Has the codes of some of the store's parts assigned by whoever works, and hands them back in the order of the parts."""


@dataclass(frozen=True)
class Assigned:
    """Codes of a block of images. first: number of its first image. codes: uint16 [n, 64]. lost: float64 [n], squared distances of an
    image's cells to their centroids. total: float64 [D], the sum of its train cells, and `squares` of the squares of their lengths."""

    first: int
    codes: np.ndarray
    lost: np.ndarray
    total: np.ndarray
    squares: float


@dataclass(frozen=True)
class Assignment:
    """What assigns the codes of a part, with all that it reads: it travels to other processes."""

    centroids: np.ndarray
    reader: FeatureReader
    keys: pa.Table
    train: np.ndarray

    def on(self, device: str) -> Callable[[int], list[Assigned]]:
        """The same on a device, ready to be called with the number of a part."""
        import faiss

        faiss.omp_set_num_threads(torch.get_num_threads())
        index = _flat_index(self.reader.feature_dim, device)
        index.add(self.centroids)
        return partial(self._part, index)

    def _part(self, index: Any, number: int) -> list[Assigned]:
        start = self.reader.first_of(number)
        blocks = _blocks(self.reader, start, "codes", self.reader.first_of(number + 1))
        return [self.block(index, first, cells) for first, cells in blocks]

    def block(self, index: Any, first: int, cells: Tensor) -> Assigned:
        """The nearest centroid of each cell of a block, float32 [n, 64, D]. UserError where a feature is not finite."""
        if not_finite := _not_finite(cells, self.keys, first):
            raise _overflow(not_finite)
        distances, codes = index.search(cells.flatten(0, 1).numpy(), 1)
        train = self.train[first : first + len(cells)]
        own = (cells if train.all() else cells[torch.from_numpy(train)]).flatten(0, 1)
        return Assigned(
            first,
            codes.reshape(-1, CELLS).astype(np.uint16),
            distances.reshape(-1, CELLS).sum(axis=1, dtype=np.float64),
            own.sum(dim=0).double().numpy(),
            float(torch.linalg.vector_norm(own, dim=1).double().square().sum()),
        )


def _assign(
    reader: FeatureReader,
    keys: pa.Table,
    train: np.ndarray,
    index: Any,
    progress: _Progress,
    deal: Deal | None,
) -> None:
    """The nearest centroid of every cell of every image that has none yet."""
    assert progress.centroids is not None
    if not progress.assigned:
        progress.codes = np.zeros((len(reader), CELLS), dtype=np.uint16)
        progress.lost, progress.total = np.zeros(len(reader)), np.zeros(reader.feature_dim)
    assignment, saved = Assignment(progress.centroids, reader, keys, train), time.monotonic()
    if deal is None:
        index.reset()
        index.add(progress.centroids)
        blocks = _blocks(reader, progress.assigned, "codes")
        assigned = (assignment.block(index, first, cells) for first, cells in blocks)
    else:
        parts = [n for n in range(len(reader.parts)) if reader.first_of(n + 1) > progress.assigned]
        bar = tqdm(deal(assignment, parts), total=len(parts), desc="codes", unit="part", mininterval=1)
        assigned = (each for several in bar for each in several if each.first >= progress.assigned)
    for each in assigned:
        progress.take(each)
        if time.monotonic() - saved > _SAVE_SECONDS:
            progress.save()
            saved = time.monotonic()


def _write(
    out: Path, keys: pa.Table, train: np.ndarray, progress: _Progress, sampled_cells: int, inertia: float
) -> dict[str, float]:
    """Write codebook.safetensors and codes.parquet; returns the metrics."""
    assert progress.centroids is not None
    sizes, variance = progress.sizes(train), progress.variance(train)
    out.mkdir(parents=True, exist_ok=True)
    with atomic_path(out / "codes.parquet") as temporary:
        codes = pa.py_buffer(progress.codes.astype("<u2", copy=False))
        column = pa.FixedSizeBinaryArray.from_buffers(CODES.field("codes").type, len(keys), [None, codes])
        pq.write_table(keys.append_column("codes", column).cast(CODES), temporary)
    with atomic_path(out / "codebook.safetensors") as temporary:
        # The clustering's own statistics travel with the centroids.
        save_file({"centroids": progress.centroids, "sizes": sizes}, temporary)
    cells = int(sizes.sum())
    share = sizes[sizes > 0] / max(cells, 1)
    return {
        "k": len(progress.centroids),
        "iterations": len(progress.curve),
        "cells": cells,
        "sampled_cells": sampled_cells,
        "relative_error": float(progress.lost[train].sum()) / variance if variance else 0.0,
        "dead_centroids": int((sizes == 0).sum()),
        "smallest_cluster": int(sizes.min()),
        "largest_cluster": int(sizes.max()),
        "perplexity": float(np.exp(-(share * np.log(share)).sum())),
        "inertia": inertia,
    }


def _blocks(
    reader: FeatureReader, start: int, name: str, stop: int | None = None
) -> Iterator[tuple[int, Tensor]]:
    """Some images at a time, from number `start`, which begins a block, on (to before `stop`, which begins a part): the first one's
    number and float32 [n, 64, D], a buffer that the next block overwrites.

    Parts are not read whole, but by row groups: at the papers' size a part is 131 MB, more than some samples.
    """
    buffer = torch.empty(_BLOCK, CELLS, reader.feature_dim)
    first, stop = 0, len(reader) if stop is None else stop
    with tqdm(total=stop, initial=start, desc=name, unit="image", mininterval=1) as bar:
        for number, part in enumerate(reader.parts):
            if not start < reader.first_of(number + 1) <= stop:
                first = reader.first_of(number + 1)
                continue
            file = pq.ParquetFile(part)
            for group in range(file.num_row_groups):
                following = first + file.metadata.row_group(group).num_rows
                if following > start:
                    for batch in file.read_row_group(group, columns=["features"]).to_batches(_BLOCK):
                        if first >= start:
                            yield first, _as_float32(batch["features"], buffer[: len(batch)])
                            bar.update(len(batch))
                        first += len(batch)
                first = following


def _as_float32(column: pa.FixedSizeBinaryArray, out: Tensor) -> Tensor:
    """The values of a features column in `out`, float32 [n, 64, D]; torch converts them, numpy is many times slower."""
    values = np.frombuffer(column.buffers()[1], dtype="<f2")
    first = column.offset * out[0].numel()
    return out.copy_(torch.from_numpy(values[first : first + out.numel()]).view_as(out))
