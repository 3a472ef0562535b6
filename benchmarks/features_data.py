"""What reading features and clustering them costs: shards and the feature store against HDF5, k-means against sgemm.

`python -m benchmarks.features_data [--samples 1000] [--dim 2048] [--k 1000] [--rounds 7] [--threads 1] [--folder /tmp]`
Random features, warm cache, batches of 64 delivered as float32 tensors, freed memory kept as in stages. Needs 1.1 GB
of disk by default, h5py and faiss.

| ratio | sides |
| --- | --- |
| shards.vs_hdf5 | samples/s of a shuffled epoch through ShardStream / as X-LXMERT reads HDF5: sample by sample, then collated |
| shards.vs_hdf5_direct | the same / the best HDF5 can do: each sample read straight into its place in the batch |
| shards.bytes_of_hdf5 | bytes of the features in the tars (values, headers, padding) / of the HDF5 file |
| shards.whole_bytes_of_hdf5 | bytes of the tars with their (here small) pictures, codes and captions / of the HDF5 file |
| store.vs_hdf5 | samples/s of a shuffled epoch through FeatureReader.rows / as X-LXMERT reads HDF5 |
| kmeans.of_sgemm | flops/s (2 n k d) of the assignment within an iteration of our clustering / of the same matrices' product by numpy or torch, whichever is faster here |
| kmeans.iteration_of_sgemm | the same of the whole iteration: assignment, new centroids, and what we add |
| kmeans.linear_in_vectors | CPU seconds of an iteration with 4 n vectors / 4 times those with n (1 is linear) |
| kmeans.linear_in_k | CPU seconds of an iteration with k / 4 times those with k / 4 |
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor

from benchmarks.alternate import alternate, median_ratio, seconds
from diptych.features.codebook import clustering as codebook
from diptych.features.codebook.clustering import ClusterConfig
from diptych.features.codebook.reading import CODES
from diptych.features.files import sha256_of
from diptych.features.manifest import read_manifest, write_manifest
from diptych.features.order import batch_indices
from diptych.features.shards.reading import ShardDataset
from diptych.features.shards.stream import ShardStream
from diptych.features.shards.writing import write_shards
from diptych.features.store import FeatureReader, grid_values, write_part
from pipelines.runner.threads import keep_freed_memory

BATCH_SIZE = 64
Epoch = Callable[[int], Iterator[Tensor]]  # seed -> float32 [n, 64, D] batch by batch


def make_data(folder: Path, samples: int, dim: int) -> None:
    """The same random features as a feature folder, as shards and as X-LXMERT's HDF5."""
    import h5py

    generator = np.random.default_rng(0)
    (folder / "features").mkdir()
    (folder / "codebook").mkdir()
    (folder / "features/_meta.json").write_text(json.dumps({"feature_dim": dim}))
    rows: list[dict[str, Any]] = []
    with h5py.File(folder / "features.h5", "w") as file:
        for part, first in enumerate(range(0, samples, 250)):
            numbers = range(first, min(first + 250, samples))
            features = generator.standard_normal((len(numbers), 64, dim), dtype=np.float32).astype(np.float16)
            for number, values in zip(numbers, features, strict=True):
                path = folder / f"{number}.jpg"
                Image.fromarray(generator.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(path)
                rows.append(_row(number, path))
                group = file.create_group(rows[-1]["image_id"])
                group.create_dataset("features", data=values.reshape(8, 8, dim).astype(np.float32))
            ids, sha256s = ([row[name] for row in rows[first:]] for name in ("image_id", "sha256"))
            path = folder / f"features/part-{part:06d}.parquet"
            write_part(path, grid_values(dim), ids, sha256s, features)
    ids, sha256s = ([row[name] for row in rows] for name in ("image_id", "sha256"))
    codes = [row.astype("<u2").tobytes() for row in generator.integers(0, 10_000, (samples, 64))]
    pq.write_table(pa.table([ids, sha256s, codes], schema=CODES), folder / "codebook/codes.parquet")
    manifest = folder / "manifest.parquet"
    write_manifest(rows, manifest)
    write_shards(
        read_manifest(manifest), manifest, folder / "features", folder / "codebook", folder / "shards", 500
    )


def _row(number: int, path: Path) -> dict[str, Any]:
    return {
        "image_id": f"image-{number:06d}",
        "split": "train",
        "path": path.name,
        "width": 64,
        "height": 64,
        "sha256": sha256_of(path),
        "captions": [f"a picture of noise , number {number} ."] * 5,
        "objects": None,
    }


def hdf5_epochs(path: Path, ids: Sequence[str], dim: int) -> tuple[Epoch, Epoch]:
    """Random reads as X-LXMERT's data loader does them, sample by sample and then collated; and as well as HDF5 can
    do them, each read straight into its place in the batch."""
    import h5py

    file = h5py.File(path, "r")

    def as_xlxmert(seed: int) -> Iterator[Tensor]:
        for indices in _batches(len(ids), seed):
            samples = []
            for index in indices:
                values = np.zeros((8, 8, dim), dtype=np.float32)
                file[f"{ids[index]}/features"].read_direct(values)
                samples.append(torch.from_numpy(values.reshape(64, dim)))
            yield torch.stack(samples)

    def direct(seed: int) -> Iterator[Tensor]:
        for indices in _batches(len(ids), seed):
            batch = np.empty((len(indices), 8, 8, dim), dtype=np.float32)
            for place, index in zip(batch, indices, strict=True):
                file[f"{ids[index]}/features"].read_direct(place)
            yield torch.from_numpy(batch.reshape(-1, 64, dim))

    return as_xlxmert, direct


def shards_vs_hdf5(folder: Path, rounds: int) -> dict[str, float]:
    """The ratios `shards.*` (see above)."""
    data = ShardDataset(folder / "shards", "train")

    def ours(seed: int) -> Iterator[Tensor]:
        stop = len(data) // BATCH_SIZE
        for batch in ShardStream(data, BATCH_SIZE, seed, stop=stop, members=("grid",)):
            yield batch["grid"]

    as_xlxmert, direct = hdf5_epochs(folder / "features.h5", data.keys, data.feature_dim)
    sides = {"shards": ours, "HDF5 as X-LXMERT": as_xlxmert, "HDF5, direct": direct}
    elapsed = compare(sides, len(data), rounds)
    whole = sum(path.stat().st_size for path in (folder / "shards").glob("*.tar"))
    grids = len(data) * (512 + 128 + 64 * data.feature_dim * 2)  # a tar header, an .npy header, the values
    hdf5 = (folder / "features.h5").stat().st_size
    print(f"bytes: HDF5 {hdf5:,}, tars {whole:,}, of which features {grids:,}")
    return {
        "shards.vs_hdf5": median_ratio(elapsed["HDF5 as X-LXMERT"], elapsed["shards"]),
        "shards.vs_hdf5_direct": median_ratio(elapsed["HDF5, direct"], elapsed["shards"]),
        "shards.bytes_of_hdf5": grids / hdf5,
        "shards.whole_bytes_of_hdf5": whole / hdf5,
    }


def store_vs_hdf5(folder: Path, rounds: int) -> dict[str, float]:
    """The ratio `store.vs_hdf5` (see above)."""
    reader = FeatureReader(folder / "features")

    def ours(seed: int) -> Iterator[Tensor]:
        for indices in _batches(len(reader), seed):
            yield torch.from_numpy(reader.rows(indices)).float()

    as_xlxmert, _ = hdf5_epochs(folder / "features.h5", reader.image_ids(), reader.feature_dim)
    elapsed = compare({"store": ours, "HDF5 as X-LXMERT": as_xlxmert}, len(reader), rounds)
    return {"store.vs_hdf5": median_ratio(elapsed["HDF5 as X-LXMERT"], elapsed["store"])}


def compare(epochs: dict[str, Epoch], samples: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of an epoch of each, in turns; prints samples/s. All deliver the same features in the same order."""

    def walk(epoch: Epoch, seed: int) -> float:
        return sum(float(batch[0, 0, 0]) + float(batch[-1, -1, -1]) for batch in epoch(seed))

    assert len({walk(epoch, 0) for epoch in epochs.values()}) == 1  # and files and memory are warm
    seeds = {name: itertools.count(1) for name in epochs}
    elapsed = alternate(
        {
            name: lambda name=name, epoch=epoch: seconds(lambda: walk(epoch, next(seeds[name])))
            for name, epoch in epochs.items()
        },
        rounds,
    )
    delivered = samples // BATCH_SIZE * BATCH_SIZE
    for name, values in elapsed.items():
        print(f"{name:20} {delivered / statistics.median(values):10,.0f} samples/s")
    return elapsed


def kmeans_of_sgemm(vectors: int, dim: int, k: int, threads: int, rounds: int) -> dict[str, float]:
    """The ratios `kmeans.*` (see above) and a table of seconds over vectors and k."""
    import faiss

    faiss.omp_set_num_threads(threads)
    torch.set_num_threads(threads)
    generator = np.random.default_rng(0)
    sample = generator.standard_normal((4 * vectors, dim), dtype=np.float32)
    some, centroids = sample[:vectors], sample[:k].copy()
    product = np.empty((vectors, k), dtype=np.float32)
    tensors = torch.from_numpy(some), torch.from_numpy(centroids).T, torch.from_numpy(product)
    sides = {
        "assignment": lambda: lloyd(some, k).assignment,
        "iteration": lambda: lloyd(some, k).iteration,
        "numpy": lambda: seconds(lambda: np.matmul(some, centroids.T, out=product)),
        "torch": lambda: seconds(lambda: torch.mm(*tensors[:2], out=tensors[2])),
    }
    for side in sides.values():
        side()
    elapsed = alternate(sides, rounds)
    print(f"\n{vectors:,} vectors of {dim}, k = {k:,}, {threads} threads")
    for name, values in elapsed.items():
        print(f"{name:12} {2 * vectors * k * dim / statistics.median(values) / 1e9:8.0f} GFLOP/s")
    sgemm = min(("numpy", "torch"), key=lambda name: statistics.median(elapsed[name]))

    print("\n vectors      k   CPU seconds an iteration   a million pairs of vector and centroid")
    sizes = list(itertools.product((vectors, 2 * vectors, 4 * vectors), (k // 4, k // 2, k)))
    table = alternate(
        {f"{n},{clusters}": lambda n=n, c=clusters: lloyd(sample[:n], c).cpu for n, clusters in sizes}, 3
    )
    cpu = {(n, clusters): min(table[f"{n},{clusters}"]) for n, clusters in sizes}
    for (n, clusters), value in cpu.items():
        print(f"{n:8,} {clusters:6,} {value:26.3f} {value / (n * clusters) * 1e6:40.4f}")
    return {
        "kmeans.of_sgemm": median_ratio(elapsed[sgemm], elapsed["assignment"]),
        "kmeans.iteration_of_sgemm": median_ratio(elapsed[sgemm], elapsed["iteration"]),
        "kmeans.linear_in_vectors": cpu[4 * vectors, k] / cpu[vectors, k] / 4,
        "kmeans.linear_in_k": cpu[4 * vectors, k] / cpu[4 * vectors, k // 4] / 4,
    }


@dataclass(frozen=True)
class Iteration:
    """Seconds of the assignment in one iteration of our clustering, of all of it, and CPU seconds of all of it."""

    assignment: float
    iteration: float
    cpu: float


def lloyd(sample: np.ndarray, k: int) -> Iteration:
    """Run one iteration of our clustering. How long the assignment in it took is what FAISS recorded."""
    import faiss

    made = []
    clustering = faiss.Clustering

    def recorded(dim: int, k: int) -> Any:
        made.append(clustering(dim, k))
        return made[-1]

    progress = codebook._Progress(None, "")
    progress.centroids = sample[:k].copy()
    index = codebook._flat_index(sample.shape[1], "cpu")
    faiss.Clustering = recorded
    try:
        cpu = time.process_time()
        elapsed = seconds(
            lambda: codebook._cluster(sample, ClusterConfig(k, 1, len(sample), 0), index, progress)
        )
        cpu = time.process_time() - cpu
    finally:
        faiss.Clustering = clustering
    return Iteration(made[0].iteration_stats.at(0).time_search, elapsed, cpu)


def _batches(count: int, seed: int) -> Iterator[list[int]]:
    for step in range(count // BATCH_SIZE):
        yield batch_indices(count, BATCH_SIZE, seed, step).tolist()


def measure(
    folder: Path | None = None,
    samples: int = 1000,
    dim: int = 2048,
    k: int = 1000,
    threads: int = 1,
    rounds: int = 7,
) -> dict[str, float]:
    """All ratios; the data lies in a temporary folder of `folder` for the time being."""
    keep_freed_memory()
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory(dir=folder) as name:
        scratch = Path(name)
        make_data(scratch, samples, dim)
        return {
            **shards_vs_hdf5(scratch, rounds),
            **store_vs_hdf5(scratch, rounds),
            **kmeans_of_sgemm(8 * k, dim, k, threads, rounds),
        }


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path)
    for name, value in (("samples", 1000), ("dim", 2048), ("k", 1000), ("threads", 1), ("rounds", 7)):
        parser.add_argument(f"--{name}", type=int, default=value)
    ratios = measure(**vars(parser.parse_args()))
    print(json.dumps({name: round(value, 3) for name, value in ratios.items()}, indent=2))


if __name__ == "__main__":
    main()
