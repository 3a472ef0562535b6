"""Centroids from elsewhere as the codebook: those that X-LXMERT released, or the codebook of another run or model.

X-LXMERT's are float32 [10000, 2048] in `maskrcnn_mscoco_train_centroids10000_iter20_d2048_grid8.npy`. The cluster ids that
belong to them are pickles, which are not read: codes are recomputed from features and centroids. Ours are the tensor
`centroids` of a `codebook.safetensors`, as the cluster stage and every model directory have it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from diptych.features.codebook.clustering import Checkpoints, Deal, assign_codebook
from diptych.features.errors import UserError
from diptych.features.store import FeatureReader


def import_centroids(
    path: Path,
    k: int,
    reader: FeatureReader,
    train_ids: set[str],
    threads: int,
    out: Path,
    device: str = "cpu",
    checkpoints: Checkpoints | None = None,
    deal: Deal | None = None,
) -> tuple[dict[str, float], list[dict[str, float]]]:
    """Take the centroids in `path` for the codebook and find the code of every image's cells, as
    `diptych.features.codebook.assign_codebook` does; it says what is returned, and what else is refused.

    Codes are computed from float16 features: where two centroids are equally near to within its rounding, a code can
    be another than the one that X-LXMERT released.

    Raises UserError for what `read_centroids` refuses, and for another number of centroids than `k`.
    """
    centroids = read_centroids(path, reader.feature_dim)
    if len(centroids) != k:
        raise UserError(
            f"{path}: {len(centroids)} centroids, but cluster.k = {k}; set cluster.k to what is there"
        )
    return assign_codebook(centroids, path, reader, train_ids, threads, out, device, checkpoints, deal)


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
        from diptych.features.weight_files import why_no_array  # brings torch, which clustering is without

        raise UserError(
            f"{path}: not an .npy file of numbers ({why_no_array(path, error)}); give the centroids: pickled "
            "cluster ids are not read but computed anew"
        ) from error
    if not isinstance(centroids, np.ndarray):
        raise UserError(f"{path}: an archive; give the .npy file of the centroids")
    return centroids


def _codebook_file(path: Path) -> np.ndarray:
    try:
        tensors = load_file(path)
    except Exception:  # noqa: BLE001 - of a damaged file, or of numbers that NumPy does not have
        tensors = _read_with_torch(path)
    if "centroids" not in tensors:
        raise UserError(f"{path}: no tensor 'centroids'; give a codebook.safetensors")
    return tensors["centroids"]


def _read_with_torch(path: Path) -> dict[str, np.ndarray]:
    """A safetensors file of numbers that NumPy does not have (bfloat16), as float32."""
    from diptych.features.weight_files import UnreadableWeights, read_safetensors

    try:
        return {name: tensor.float().numpy() for name, tensor in read_safetensors(path).items()}
    except UnreadableWeights as error:
        raise UserError(f"{path}: not a readable safetensors file ({error})") from None
