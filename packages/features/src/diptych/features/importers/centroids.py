"""Centroids from elsewhere as the codebook: those that X-LXMERT released, or the codebook of another run or model.

X-LXMERT's are float32 [10000, 2048] in `maskrcnn_mscoco_train_centroids10000_iter20_d2048_grid8.npy`. The cluster ids that
belong to them are pickles, which are not read: codes are recomputed from features and centroids. Ours are the tensor
`centroids` of a `codebook.safetensors`, as the cluster stage and every model directory have it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from tqdm import tqdm

from ..codebook import CODES
from ..errors import UserError
from ..files import atomic_path
from ..grid import CELLS
from ..store import FeatureReader

_BLOCK = 25  # images that are in memory as float32 at a time


def import_centroids(
    path: Path, k: int, reader: FeatureReader, train_ids: set[str], threads: int, out: Path
) -> tuple[dict[str, float], list[dict[str, float]]]:
    """Take the centroids in `path` for the codebook and find the code of every image's cells, as `build_codebook` does
    after its clustering; write codebook.safetensors and codes.parquet.

    Codes are computed from float16 features: where two centroids are equally near to within its rounding, a code can
    be another than the one that X-LXMERT released.

    Returns the metrics of `build_codebook` (iterations and sampled_cells are 0, inertia is of all train cells) and a
    curve of one point. Raises UserError for what `read_centroids` refuses, for another number of centroids than
    `k`, and for centroids that represent the train cells worse than their mean would: those are of another detector.
    """
    import faiss

    centroids = read_centroids(path, reader.feature_dim)
    if len(centroids) != k:
        raise UserError(
            f"{path}: {len(centroids)} centroids, but cluster.k = {k}; set cluster.k to what is there"
        )
    faiss.omp_set_num_threads(threads)
    index = faiss.IndexFlatL2(reader.feature_dim)
    index.add(centroids)
    sizes, total = np.zeros(k, np.int64), np.zeros(reader.feature_dim)
    squares = lost = 0.0
    out.mkdir(parents=True, exist_ok=True)
    with (
        atomic_path(out / "codes.parquet") as temporary,
        pq.ParquetWriter(temporary, CODES) as writer,
        tqdm(total=len(reader), desc="codes", unit="image", mininterval=1) as bar,
    ):
        for image_ids, sha256s, features in reader.batches():
            codes = np.empty((len(image_ids), CELLS), "<u2")
            train = np.array([image_id in train_ids for image_id in image_ids])
            for start in range(0, len(image_ids), _BLOCK):
                block = slice(start, start + _BLOCK)
                cells = torch.from_numpy(
                    features[block]
                ).float()  # [n, 64, D]; numpy converts many times slower
                distances, found = index.search(cells.flatten(0, 1).numpy(), 1)
                codes[block] = found.reshape(-1, CELLS)
                own = cells[torch.from_numpy(train[block])].flatten(0, 1)
                total += own.sum(dim=0).double().numpy()
                squares += float(torch.linalg.vector_norm(own, dim=1).double().square().sum())
                lost += float(distances.reshape(-1, CELLS)[train[block]].sum(dtype=np.float64))
                bar.update(len(cells))
            sizes += np.bincount(codes[train].ravel(), minlength=k)
            column = pa.FixedSizeBinaryArray.from_buffers(
                CODES.field("codes").type, len(image_ids), [None, pa.py_buffer(codes)]
            )
            columns = [pa.array(image_ids), pa.array(sha256s), column]
            writer.write_table(pa.Table.from_arrays(columns, schema=CODES))
    cells_of_train = int(sizes.sum())
    variance = squares - float(total @ total) / max(cells_of_train, 1)
    if lost > variance > 0:
        raise UserError(
            f"{path}: these centroids represent the features in {reader.folder} worse than their mean does (relative "
            f"error {lost / variance:.3g}); take the centroids that were made of these features"
        )
    with atomic_path(out / "codebook.safetensors") as temporary:
        save_file({"centroids": centroids, "sizes": sizes}, temporary)
    share = sizes[sizes > 0] / max(cells_of_train, 1)
    metrics = {
        "k": k,
        "iterations": 0,
        "cells": cells_of_train,
        "sampled_cells": 0,
        "relative_error": lost / variance if variance > 0 else 0.0,
        "dead_centroids": int((sizes == 0).sum()),
        "smallest_cluster": int(sizes.min()),
        "largest_cluster": int(sizes.max()),
        "perplexity": float(np.exp(-(share * np.log(share)).sum())),
        "inertia": lost,
    }
    return metrics, [{"step": 0, "inertia": lost, "imbalance": float(k * (share**2).sum()), "splits": 0}]


def read_centroids(path: Path, feature_dim: int) -> np.ndarray:
    """The centroids in an .npy or .safetensors file, float32 [K, feature_dim].

    Raises UserError for anything but a file with at most 65,536 rows (codes are 16-bit numbers) of `feature_dim`
    finite numbers; pickled objects are not read.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file of centroids; set cluster.source to the file")
    centroids = _codebook_file(path) if path.suffix == ".safetensors" else _array_file(path)
    if centroids.ndim != 2 or not np.issubdtype(centroids.dtype, np.floating):
        raise UserError(
            f"{path}: {centroids.dtype} {list(centroids.shape)}, but centroids are float [K, {feature_dim}]"
        )
    if centroids.shape[1] != feature_dim:
        raise UserError(
            f"{path}: centroids of {centroids.shape[1]} dimensions, but the features have {feature_dim}; take the "
            "centroids that were made of these features"
        )
    if not 1 <= len(centroids) <= 65_536:
        raise UserError(
            f"{path}: {len(centroids)} centroids; codes are 16-bit numbers, so between 1 and 65536 fit"
        )
    if not np.isfinite(centroids).all():
        raise UserError(f"{path}: a centroid is not finite; copy the file again")
    return np.ascontiguousarray(centroids, dtype=np.float32)


def _array_file(path: Path) -> np.ndarray:
    try:
        centroids = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise UserError(
            f"{path}: not an .npy file of numbers ({error}); give the centroids: pickled cluster ids are not read but "
            "computed anew"
        ) from error
    if not isinstance(centroids, np.ndarray):
        raise UserError(f"{path}: an archive; give the .npy file of the centroids")
    return centroids


def _codebook_file(path: Path) -> np.ndarray:
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path}: not a readable safetensors file ({error}); copy it again") from error
    if "centroids" not in tensors:
        raise UserError(f"{path}: no tensor 'centroids'; give a codebook.safetensors")
    return tensors["centroids"]
