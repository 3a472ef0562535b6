"""The codebook: k-means over grid features, and the code of every grid cell (X-LXMERT, section 5.1)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import load_file, save_file
from tqdm import tqdm

from .errors import UserError
from .files import atomic_path
from .grid import CELLS
from .store import FeatureReader

CODES = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("sha256", pa.string(), nullable=False),
        pa.field("codes", pa.binary(CELLS * 2), nullable=False),
    ]
)


@dataclass(frozen=True)
class ClusterConfig:
    """k: centroids (10,000 in the papers). iterations of Lloyd's algorithm (20).

    points_per_centroid: cells in the seeded sample per centroid; the papers' code leaves FAISS at 256, so
    2.56 M of COCO train's 82,783 x 64 = 5.30 M cells are used at k = 10,000.
    """

    k: int
    iterations: int
    points_per_centroid: int
    seed: int

    def __post_init__(self) -> None:
        for name in ("k", "iterations", "points_per_centroid"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, is {getattr(self, name)}")


def build_codebook(
    reader: FeatureReader, train_ids: set[str], config: ClusterConfig, threads: int, out: Path
) -> tuple[dict[str, float], list[dict[str, float]]]:
    """Cluster the train images' cells and assign every image's; write codebook.safetensors and codes.parquet.

    Returns metrics (relative_error: share of the features' variance that the codes lose; dead_centroids;
    smallest and largest cluster; perplexity of the codes) and the inertia per iteration.
    Raises UserError when k exceeds the number of cells, or a feature is not finite.
    """
    import faiss

    if config.k > 65_536:
        raise UserError(f"cluster.k = {config.k}: codes are stored as 16-bit numbers; use at most 65536")
    faiss.omp_set_num_threads(threads)
    sample = _sample(reader, train_ids, config)
    clustering = faiss.Clustering(reader.feature_dim, config.k)
    clustering.niter, clustering.seed = config.iterations, config.seed
    clustering.max_points_per_centroid = config.points_per_centroid
    clustering.min_points_per_centroid = 1
    clustering.spherical = False
    index = faiss.IndexFlatL2(reader.feature_dim)
    with tqdm(total=1, desc=f"k-means, {len(sample)} cells, k = {config.k}", unit="run") as bar:
        clustering.train(sample, index)
        bar.update()
    centroids = faiss.vector_to_array(clustering.centroids).reshape(config.k, reader.feature_dim)
    stats = [clustering.iteration_stats.at(i) for i in range(clustering.iteration_stats.size())]
    curve = [{"step": i, "inertia": s.obj, "imbalance": s.imbalance_factor} for i, s in enumerate(stats)]
    # The clustering's own statistics travel with the centroids.
    mean = sample.mean(axis=0)
    del sample

    out.mkdir(parents=True, exist_ok=True)
    sizes = np.zeros(config.k, dtype=np.int64)
    lost = total = 0.0
    with atomic_path(out / "codes.parquet") as temporary, pq.ParquetWriter(temporary, CODES) as writer:
        for image_ids, sha256s, features in tqdm(
            reader.batches(), total=len(reader.parts), desc="codes", unit="part", mininterval=1
        ):
            cells = features.reshape(-1, reader.feature_dim).astype(np.float32)
            _check_finite(cells, image_ids)
            distances, codes = index.search(cells, 1)
            train = np.repeat([image_id in train_ids for image_id in image_ids], CELLS)
            lost += float(distances[train].sum(dtype=np.float64))
            total += float(((cells[train] - mean) ** 2).sum(dtype=np.float64))
            sizes += np.bincount(codes[train, 0], minlength=config.k)
            column = pa.FixedSizeBinaryArray.from_buffers(
                pa.binary(CELLS * 2), len(image_ids), [None, pa.py_buffer(codes.astype("<u2").tobytes())]
            )
            writer.write_table(
                pa.Table.from_arrays([pa.array(image_ids), pa.array(sha256s), column], schema=CODES)
            )
    with atomic_path(out / "codebook.safetensors") as temporary:
        save_file({"centroids": centroids, "sizes": sizes}, temporary)
    share = sizes[sizes > 0] / sizes.sum()
    metrics = {
        "k": config.k,
        "relative_error": lost / total if total else 0.0,
        "dead_centroids": int((sizes == 0).sum()),
        "smallest_cluster": int(sizes.min()),
        "largest_cluster": int(sizes.max()),
        "perplexity": float(np.exp(-(share * np.log(share)).sum())),
        "inertia": stats[-1].obj,
    }
    return metrics, curve


def load_codebook(folder: Path) -> np.ndarray:
    """The centroids, float32 [K, D]."""
    path = Path(folder) / "codebook.safetensors"
    try:
        return load_file(path)["centroids"]
    except FileNotFoundError as error:
        raise UserError(f"{path}: no codebook there; run `dvc repro cluster`") from error


def read_codes(folder: Path) -> tuple[list[str], np.ndarray]:
    """Image ids in the features' order and their codes, int64 [n, 64]."""
    path = Path(folder) / "codes.parquet"
    try:
        table = pq.read_table(path)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no codes there; run `dvc repro cluster`") from error
    packed = b"".join(table["codes"].to_pylist())
    return table["image_id"].to_pylist(), np.frombuffer(packed, dtype="<u2").reshape(-1, CELLS).astype(
        np.int64
    )


def _sample(reader: FeatureReader, train_ids: set[str], config: ClusterConfig) -> np.ndarray:
    """A seeded sample of the train images' cells, float32 [m, D], streamed into one preallocated array."""
    counts = [sum(i in train_ids for i in ids) * CELLS for ids in _ids(reader)]
    available = sum(counts)
    if config.k > available:
        raise UserError(
            f"cluster.k = {config.k} centroids, but there are only {available} grid cells "
            f"({available // CELLS} train images x {CELLS}); lower cluster.k or add images"
        )
    size = min(available, config.k * config.points_per_centroid)
    chosen = np.sort(np.random.default_rng(config.seed).choice(available, size, replace=False))
    sample = np.empty((size, reader.feature_dim), dtype=np.float32)
    offset = filled = 0
    for (image_ids, _, features), count in zip(reader.batches(), counts, strict=True):
        train = np.array([image_id in train_ids for image_id in image_ids])
        take = chosen[np.searchsorted(chosen, offset) : np.searchsorted(chosen, offset + count)] - offset
        cells = features[train].reshape(-1, reader.feature_dim)[take]
        _check_finite(cells, image_ids)
        sample[filled : filled + len(take)] = cells
        filled, offset = filled + len(take), offset + count
    return sample


def _ids(reader: FeatureReader) -> list[list[str]]:
    return [pq.read_table(part, columns=["image_id"])["image_id"].to_pylist() for part in reader.parts]


def _check_finite(cells: np.ndarray, image_ids: list[str]) -> None:
    if not np.isfinite(cells).all():
        raise UserError(
            f"cluster: a feature is not finite among the images {image_ids[0]} .. {image_ids[-1]}; "
            "the detector's features overflow float16: train it anew (`dvc repro -f detector`)"
        )
