"""Clustering: FAISS's result, from little memory, whatever kills it, and whatever the cells are like."""

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from waiting import HOLD, environment_with_modules, held, kill

from diptych.features.codebook import clustering as module
from diptych.features.codebook.clustering import ClusterConfig, assign_codebook, build_codebook
from diptych.features.codebook.reading import load_cluster_sizes, load_codebook, read_codes
from diptych.features.errors import UserError
from diptych.features.store import FeatureReader, grid_values, write_part

DIM = 16


class FileCheckpoints:
    """The newest state in a file, replaced in one step."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def load(self) -> dict[str, Any] | None:
        return torch.load(self.path, weights_only=True) if self.path.exists() else None

    def save(self, state: dict[str, Any]) -> None:
        torch.save(state, self.path.with_suffix(".new"))
        os.replace(self.path.with_suffix(".new"), self.path)


def write_features(folder: Path, features: np.ndarray, part_size: int = 30) -> Path:
    """A feature folder of images i0, i1, ... from [n, 64, D]."""
    folder.mkdir(parents=True)
    dim = features.shape[2]
    (folder / "_meta.json").write_text(json.dumps({"feature_dim": dim}))
    for part, first in enumerate(range(0, len(features), part_size)):
        some = features[first : first + part_size].astype(np.float16)
        numbers = range(first, first + len(some))
        ids, sha256s = [f"i{n}" for n in numbers], [f"sum{n}" for n in numbers]
        write_part(folder / f"part-{part:06d}.parquet", grid_values(dim), ids, sha256s, some)
    return folder


def clouds(images: int, seed: int = 0, dim: int = DIM) -> np.ndarray:
    """Cells around 40 centres, float16 [n, 64, D]."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((40, dim)) * 3
    return (centres[rng.integers(0, 40, (images, 64))] + rng.standard_normal((images, 64, dim))).astype(
        np.float16
    )


def names(count: int) -> set[str]:
    return {f"i{number}" for number in range(count)}


def build(
    folder: Path,
    out: Path,
    train: set[str],
    k: int = 40,
    iterations: int = 12,
    points: int = 256,
    **more: Any,
) -> tuple[dict[str, float], list[dict[str, float]]]:
    return build_codebook(
        FeatureReader(folder), train, ClusterConfig(k, iterations, points, 0), 1, out, **more
    )


def assign(folder: Path, out: Path, train: set[str], **more: Any) -> Any:
    """Codes by 40 cells as the centroids."""
    centroids = clouds(130)[0, :40].astype(np.float32)
    return assign_codebook(centroids, Path("given.npy"), FeatureReader(folder), train, 1, out, **more)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """130 images, in parts that no block divides."""
    return write_features(tmp_path_factory.mktemp("features") / "features", clouds(130))


# What is computed


def test_one_iteration_at_a_time_is_what_faiss_does_in_one_run(features: Path, tmp_path: Path) -> None:
    _, curve = build(features, tmp_path, names(100), iterations=100, points=10_000)
    assert 10 < len(curve) < 100, "it ends where an iteration changes nothing"
    cells = clouds(130)[:100].reshape(-1, DIM).astype(np.float32)
    faiss.omp_set_num_threads(1)
    reference = faiss.Clustering(DIM, 40)
    reference.niter, reference.max_points_per_centroid = 100, 10_000
    first = module._different_cells(cells, ClusterConfig(40, 100, 10_000, 0))
    assert len({row.tobytes() for row in first} & {row.tobytes() for row in cells}) == 40
    faiss.copy_array_to_vector(first.ravel(), reference.centroids)
    reference.train(cells, faiss.IndexFlatL2(DIM))
    np.testing.assert_array_equal(
        load_codebook(tmp_path), faiss.vector_to_array(reference.centroids).reshape(40, DIM)
    )
    expected = [reference.iteration_stats.at(i) for i in range(reference.iteration_stats.size())]
    assert [row["inertia"] for row in curve] == [stats.obj for stats in expected]
    assert [row["splits"] for row in curve] == [stats.nsplit for stats in expected]


def test_codes_and_statistics_are_those_of_all_cells(features: Path, tmp_path: Path) -> None:
    """Sampled are 40 x 30 of 6,400 cells; codes, sizes and the relative error are about all, computed here anew."""
    train = {f"i{number}" for number in range(0, 130, 2)} | names(35)
    metrics, curve = build(features, tmp_path, train, points=30)
    cells = clouds(130).astype(np.float64)
    centroids = load_codebook(tmp_path)
    assert centroids.shape == (40, DIM) and centroids.dtype == np.float32
    ids, codes = read_codes(tmp_path)
    assert ids == [f"i{number}" for number in range(130)]
    table = pq.read_table(tmp_path / "codes.parquet")
    assert table["sha256"].to_pylist() == [f"sum{number}" for number in range(130)]
    distances = ((cells[:, :, None] - centroids) ** 2).sum(-1)
    own = np.take_along_axis(distances, codes[..., None], 2)[..., 0]
    np.testing.assert_allclose(own, distances.min(-1), rtol=1e-4)
    of_train = np.array([i in train for i in ids])
    variance = ((cells[of_train] - cells[of_train].mean((0, 1))) ** 2).sum()
    sizes = np.bincount(codes[of_train].ravel(), minlength=40)
    np.testing.assert_array_equal(load_cluster_sizes(tmp_path), sizes)
    share = sizes / sizes.sum()
    expected = {
        "k": 40,
        "iterations": len(curve),
        "cells": of_train.sum() * 64,
        "sampled_cells": 1200,
        "relative_error": own[of_train].sum() / variance,
        "dead_centroids": (sizes == 0).sum(),
        "smallest_cluster": sizes.min(),
        "largest_cluster": sizes.max(),
        "perplexity": np.exp(-(share[share > 0] * np.log(share[share > 0])).sum()),
        "inertia": curve[-1]["inertia"],
    }
    assert metrics == pytest.approx(expected, rel=1e-4)
    assert [row["step"] for row in curve] == list(range(len(curve)))
    assert all(b["inertia"] <= a["inertia"] for a, b in itertools.pairwise(curve))


def test_the_sample_is_uniform_seeded_and_without_repetition(tmp_path: Path) -> None:
    """Each cell says its own number. Other parts give the same sample, another seed another one."""
    count = 60
    numbers = np.arange(count * 64).reshape(count, 64)
    cells = np.stack([numbers // 64, numbers % 64], axis=2).astype(np.float16)
    folders = [write_features(tmp_path / f"parts-{size}", cells, size) for size in (60, 7)]
    train = np.arange(count) % 3 > 0  # 2,560 cells

    def draw(folder: Path, seed: int, points: int = 100) -> np.ndarray:
        reader = FeatureReader(folder)
        sample = module._sample(reader, module._read_keys(reader), train, ClusterConfig(10, 1, points, seed))
        return (sample[:, 0] * 64 + sample[:, 1]).astype(int)

    drawn = draw(folders[0], 0)
    assert len(drawn) == 1000 == len(set(drawn)) and (np.diff(drawn) > 0).all()
    assert train[drawn // 64].all()
    np.testing.assert_array_equal(draw(folders[1], 0), drawn)
    assert set(draw(folders[0], 1)) != set(drawn)
    # 60 draws: each cell's count is binomial(60, 1000 / 2560), mean 23.4, standard deviation 3.8
    counts = np.bincount(np.concatenate([draw(folders[0], seed) for seed in range(60)]), minlength=count * 64)
    counts = counts.reshape(count, 64)[train]
    assert counts.min() > 23.4 - 5.5 * 3.8 and counts.max() < 23.4 + 5.5 * 3.8
    assert abs(counts.mean(1) - 23.4).max() < 5 * 3.8 / 8 and counts.std() == pytest.approx(3.8, rel=0.1)
    np.testing.assert_array_equal(draw(folders[0], 0, points=10_000), numbers[train].ravel())


# What kills it

RUN = """
import sys
from pathlib import Path
import test_codebook as t
from diptych.features.codebook import clustering
clustering._SAVE_SECONDS = 0
make, moment, (features, out, checkpoint) = sys.argv[1], sys.argv[2], map(Path, sys.argv[3:])
class Held(t.FileCheckpoints):
    def save(self, state):
        super().save(state)
        if state["assigned"] >= 50 if moment == "assignment" else len(state["curve"]) >= 4:
            HOLD
getattr(t, make)(features, out, t.names(100), checkpoints=Held(checkpoint))
""".replace("HOLD", HOLD)


@pytest.mark.parametrize(
    ("make", "moment"), [(build, "clustering"), (build, "assignment"), (assign, "assignment")]
)
def test_a_killed_run_goes_on_to_the_same_bytes(
    make: Callable[..., Any], moment: str, features: Path, tmp_path: Path
) -> None:
    undisturbed, out = tmp_path / "undisturbed", tmp_path / "out"
    expected = make(features, undisturbed, names(100))
    checkpoints = FileCheckpoints(tmp_path / "state.pt")
    kill(held(RUN, make.__name__, moment, features, out, checkpoints.path))
    assert not out.exists() or content(out) == {}
    state = checkpoints.load()
    assert state is not None
    done, assigned = len(state["curve"]), state["assigned"]
    assert (0 < assigned < 130) if moment == "assignment" else (4 <= done < 12 and not assigned)
    iterations = len(expected[1]) - done if make is build else 0

    counted = Counted()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(faiss, "Clustering", counted.clustering)
        patch.setattr(module, "_blocks", counted.blocks)
        assert make(features, out, names(100), checkpoints=checkpoints) == expected
    assert counted.iterations == iterations, "no iteration twice"
    assert counted.images["codes"] == 130 - assigned, "no image's codes twice"
    assert ("sample" in counted.images) == (moment == "clustering")
    assert content(out) == content(undisturbed)


class Counted:
    """How much of the work was done."""

    def __init__(self) -> None:
        self.iterations, self.images = 0, dict[str, int]()
        self._clustering, self._blocks = faiss.Clustering, module._blocks

    def clustering(self, dim: int, k: int) -> Any:
        self.iterations += 1
        return self._clustering(dim, k)

    def blocks(self, reader: FeatureReader, start: int, name: str) -> Any:
        for first, cells in self._blocks(reader, start, name):
            self.images[name] = self.images.get(name, 0) + len(cells)
            yield first, cells


def test_a_checkpoint_of_another_run_is_left_alone(features: Path, tmp_path: Path) -> None:
    checkpoints = FileCheckpoints(tmp_path / "state.pt")
    build(features, tmp_path / "first", names(100), checkpoints=checkpoints)
    for number, changes in enumerate(({"k": 30}, {"points": 20}, {"train": names(99)}, {"folder": None})):
        settings: dict[str, Any] = {"folder": features, "train": names(100), **changes}
        if settings["folder"] is None:
            settings["folder"] = write_features(tmp_path / "other", clouds(131, seed=1))
        out = tmp_path / f"{number}"
        build(out=out / "resumed", checkpoints=checkpoints, **settings)
        build(out=out / "fresh", **settings)
        assert content(out / "resumed") == content(out / "fresh")


# How much memory it takes

MEASURE = """
import json, sys
from pathlib import Path
import faiss, pyarrow.parquet, torch
import test_codebook as t
from diptych.features.store import FeatureReader
torch.set_num_threads(1)
def peak():  # of this program; ru_maxrss remembers what the process was before it
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))
before = peak()
metrics, _ = t.build(Path(sys.argv[1]), Path(sys.argv[2]), t.names(250), k=96, iterations=2, points=900)
print(json.dumps([peak() - before, metrics["sampled_cells"]]))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_peak_memory_is_the_sample_and_little_more(tmp_path: Path) -> None:
    """Vectors of the papers' size in parts of the papers' size: a store 3.7 times the sample (one part, linked
    ten times), of which everything is read twice."""
    bits = np.random.default_rng(0).integers(0x3000, 0x4000, (500, 64, 2048), dtype=np.uint16)
    folder = write_features(tmp_path / "features", bits.view(np.float16), part_size=500)
    part = folder / "part-000000.parquet"
    for number in range(1, 10):
        os.link(part, folder / f"part-{number:06d}.parquet")
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(folder), str(tmp_path / "out")],
        env=environment_with_modules(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    grown, cells = json.loads(done.stdout)
    sample = cells * 2048 * 4
    assert cells == 96 * 900
    assert 3.7 * cells < 10 * 500 * 64
    assert sample < grown < 1.25 * sample


# What the cells may be like


def test_fewer_different_cells_than_centroids(tmp_path: Path) -> None:
    """Seven different cells, twenty centroids: thirteen stay dead, nothing is lost, no code names a dead one."""
    rng = np.random.default_rng(0)
    kinds = rng.standard_normal((7, DIM)).astype(np.float16)
    cells = kinds[rng.integers(0, 7, (30, 64))]
    folder = write_features(tmp_path / "features", cells)
    metrics, curve = build(folder, tmp_path / "out", names(20), k=20)
    assert metrics["dead_centroids"] == 13 and metrics["relative_error"] < 1e-5
    assert all(row["splits"] >= 13 for row in curve)
    centroids, (_, codes) = load_codebook(tmp_path / "out"), read_codes(tmp_path / "out")
    assert np.isfinite(centroids).all() and len(np.unique(codes)) == 7
    np.testing.assert_allclose(centroids[codes], cells.astype(np.float32), rtol=3e-3)
    sizes = load_cluster_sizes(tmp_path / "out")
    assert (sizes > 0).sum() == 7 and sizes.sum() == 20 * 64


def test_cells_that_are_all_the_same(tmp_path: Path) -> None:
    """There is no variance to lose a share of; what rounding leaves of it is none."""
    cell = np.random.default_rng(0).standard_normal(DIM).astype(np.float16)
    folder = write_features(tmp_path / "features", np.tile(cell, (40, 64, 1)))
    metrics, _ = build(folder, tmp_path / "out", names(40), k=5)
    assert (metrics["dead_centroids"], metrics["relative_error"], metrics["perplexity"]) == (4, 0.0, 1.0)


def test_equal_cells_cost_no_centroids(tmp_path: Path) -> None:
    """Nine tenths of the cells are one vector. FAISS's own first choice takes it for nearly all centroids, most of
    which stay dead; here all are in use."""
    rng = np.random.default_rng(0)
    cells = np.broadcast_to(rng.standard_normal(DIM), (60, 64, DIM)).astype(np.float16)
    others = rng.random((60, 64)) < 0.1
    cells[others] = clouds(60)[others]
    folder = write_features(tmp_path / "features", cells)
    metrics, curve = build(folder, tmp_path / "out", names(60), iterations=20)
    assert metrics["dead_centroids"] == 0
    theirs = faiss.Kmeans(DIM, 40, niter=20, seed=0, min_points_per_centroid=1)
    theirs.train(cells.reshape(-1, DIM).astype(np.float32))
    assert curve[-1]["inertia"] < 0.8 * theirs.obj[-1]


def test_empty_clusters_are_split_off_large_ones(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Ten of the first centroids are where no cell is."""
    first = module._different_cells

    def ten_far_away(sample: np.ndarray, config: ClusterConfig) -> np.ndarray:
        centroids = first(sample, config)
        centroids[5:15] = 1000
        return centroids

    monkeypatch.setattr(module, "_different_cells", ten_far_away)
    metrics, curve = build(write_features(tmp_path / "features", clouds(60)), tmp_path / "out", names(60))
    assert curve[0]["splits"] == 10 and curve[-1]["splits"] == 0 and metrics["dead_centroids"] == 0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_images_whose_features_are_not_finite_are_named(value: float, tmp_path: Path) -> None:
    """All of them, before the clustering, whether or not their cells are sampled or their split is train."""
    cells = clouds(70)
    cells[[3, 41, 66], 5, 2] = value
    folder = write_features(tmp_path / "features", cells)
    with pytest.raises(UserError, match="features of 3 images are not finite: i3, i41, i66; "):
        build(folder, tmp_path / "out", names(60), k=2, points=2)
    with pytest.raises(UserError, match="features of 1 images are not finite: i3; "):
        assign(folder, tmp_path / "out", names(60))
    assert not (tmp_path / "out").exists()


def test_as_many_centroids_as_cells_and_more(features: Path, tmp_path: Path) -> None:
    metrics, _ = build(features, tmp_path / "out", names(1), k=64)
    assert metrics["relative_error"] < 1e-5 and metrics["dead_centroids"] == 0
    with pytest.raises(UserError, match=r"cluster\.k = 65 .* only 64 grid cells \(1 train images x 64\)"):
        build(features, tmp_path / "more", names(1), k=65)
    with pytest.raises(UserError, match="only 0 grid cells"):
        build(features, tmp_path / "more", set(), k=1)
    with pytest.raises(UserError, match=r"cluster\.k = 65537: .* at most 65536"):
        build(features, tmp_path / "more", names(1), k=65_537)
    assert not (tmp_path / "more").exists()


def test_a_sample_that_does_not_fit_in_memory_is_refused_with_its_size(
    features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(shape: tuple[int, int], dtype: type) -> np.ndarray:
        raise MemoryError

    monkeypatch.setattr(np, "empty", none_left)
    with pytest.raises(UserError, match=r"2,000 cells x 16 takes 0\.0 GB .*points_per_centroid \(50\)"):
        build(features, tmp_path, names(100), points=50)


def test_damaged_files_are_named(features: Path, tmp_path: Path) -> None:
    build(features, tmp_path, names(100), iterations=2)
    for name, load in (("codebook.safetensors", load_codebook), ("codes.parquet", read_codes)):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-9])
        with pytest.raises(UserError, match=rf"{name}: damaged .*`dvc repro -f cluster`"):
            load(tmp_path)
        (tmp_path / name).unlink()
        with pytest.raises(UserError, match=rf"{name}: no "):
            load(tmp_path)


def test_gpus_are_taken_where_faiss_has_them(
    features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The choice only: FAISS's GPU index itself needs a GPU."""
    build(features, tmp_path / "cpu", names(100))
    capsys.readouterr()
    build(features, tmp_path / "none", names(100), device="cuda")
    assert "this FAISS uses no GPU" in capsys.readouterr().err
    chosen: list[list[int]] = []

    def on_gpus(index: Any, gpus: list[int]) -> Any:
        chosen.append(gpus)
        return index

    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 3)
    monkeypatch.setattr(faiss, "index_cpu_to_gpus_list", on_gpus)
    for device in ("cuda", "cuda:1", "cpu"):
        build(features, tmp_path / device, names(100), device=device)
        assert content(tmp_path / device) == content(tmp_path / "cpu") == content(tmp_path / "none")
    assert chosen == [[0, 1, 2], [1]]
