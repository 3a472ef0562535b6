"""X-LXMERT's released features and centroids become our feature folder and codebook, on HDF5 files of its layout."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from safetensors.numpy import save_file
from waiting import HOLD, held, kill

from diptych.features.codebook.reading import load_codebook, read_codes
from diptych.features.errors import UserError
from diptych.features.extraction.claims import Claims
from diptych.features.files import sha256_of
from diptych.features.importers import xlxmert_features
from diptych.features.importers.centroids import import_centroids, read_centroids
from diptych.features.importers.xlxmert_features import import_features
from diptych.features.manifest import read_manifest, write_manifest
from diptych.features.store import FeatureReader

h5py = pytest.importorskip("h5py")

DIM = 16
TRAIN, VAL = [9, 25, 30, 34, 36, 49, 61], [42, 73, 74, 133, 136]


def values(number: int) -> np.ndarray:
    """The features of an image, float32 [8, 8, D]: not negative, as after a ReLU, and not all of them halves."""
    return np.abs(np.random.default_rng(number).normal(size=(8, 8, DIM)) * 3).astype(np.float32)


def as_halves(number: int) -> np.ndarray:
    return values(number).astype(np.float16).reshape(64, DIM)


def write_h5(path: Path, numbers: Sequence[int], year: str, **changes: Any) -> Path:
    """A file as the release has it; `changes` are other values for some images, by the name of their group."""
    with h5py.File(path, "w") as file:
        for number in numbers:
            name = f"COCO_{year}_{number:012d}"
            file.create_group(name)["features"] = changes.get(name, values(number))
    return path


@pytest.fixture
def release(tmp_path: Path) -> list[Path]:
    return [
        write_h5(tmp_path / "maskrcnn_train_grid8.h5", TRAIN, "train2014"),
        write_h5(tmp_path / "maskrcnn_valid_grid8.h5", VAL, "val2014"),
    ]


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    return make_manifest(tmp_path, TRAIN, VAL)


def make_manifest(folder: Path, train: Sequence[int], val: Sequence[int], copies: Sequence[int] = ()) -> Path:
    """Pictures named as COCO 2014 names them; those in `copies` are all the same picture."""
    rows = []
    for year, numbers in (("train2014", train), ("val2014", val)):
        (folder / year).mkdir(exist_ok=True)
        for number in numbers:
            path = folder / year / f"COCO_{year}_{number:012d}.png"
            color = (255, 255, 255) if number in copies else (number % 255, number // 255, 0)
            Image.new("RGB", (8, 8), color).save(path)
            rows.append(
                {
                    "image_id": f"{number:012d}", "split": year[:-4], "path": str(path), "width": 8, "height": 8,
                    "sha256": sha256_of(path), "captions": ["a tile ."], "objects": None,
                }
            )  # fmt: skip
    write_manifest(rows, folder / "manifest.parquet")
    return folder / "manifest.parquet"


def run(
    manifest: Path, files: Sequence[Path], share: float = 0.0, part_size: int = 4, **more: Any
) -> dict[str, int]:
    folder = manifest.parent
    return import_features(
        read_manifest(manifest), files, folder / "store", folder / "features", part_size, share, **more
    )


def features(manifest: Path) -> dict[str, np.ndarray]:
    return {
        i: f
        for ids, _, fs in FeatureReader(manifest.parent / "features").batches()
        for i, f in zip(ids, fs, strict=True)
    }


def test_features_come_in_under_the_manifests_keys(manifest: Path, release: list[Path]) -> None:
    assert run(manifest, release) == {"images": 12, "imported": 12, "reused": 0, "failed": 0, "unused": 0}
    reader = FeatureReader(manifest.parent / "features")
    rows = read_manifest(manifest).to_pylist()
    assert reader.image_ids() == [row["image_id"] for row in rows]
    assert [s for _, sha256s, _ in reader.batches() for s in sha256s] == [row["sha256"] for row in rows]
    for image_id, found in features(manifest).items():
        # row-major from the top left: cell 8 * row + column
        np.testing.assert_array_equal(found, as_halves(int(image_id)))
    assert reader.meta["source"] == "X-LXMERT release" and reader.meta["feature_dim"] == DIM
    assert reader.meta["files"] == sorted(sha256_of(file) for file in release)
    assert len(pq.read_table(manifest.parent / "features/failures.parquet")) == 0
    again = {path.name: path.read_bytes() for path in (manifest.parent / "features").iterdir()}
    assert run(manifest, list(reversed(release)))["reused"] == 12
    assert {path.name: path.read_bytes() for path in (manifest.parent / "features").iterdir()} == again


def test_other_files_are_another_key(manifest: Path, release: list[Path]) -> None:
    run(manifest, release)
    write_h5(release[1], VAL, "val2014", COCO_val2014_000000000042=values(1))
    assert run(manifest, release)["imported"] == 12
    np.testing.assert_array_equal(features(manifest)["000000000042"], as_halves(1))
    assert len([path for path in (manifest.parent / "store").iterdir() if path.is_dir()]) == 2


def test_files_are_hashed_once(manifest: Path, release: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    facts = manifest.parent / "files.jsonl"
    run(manifest, release, facts_file=facts)
    monkeypatch.setattr(xlxmert_features, "_hash", lambda file, size: pytest.fail("hashed again"))
    assert run(manifest, release, facts_file=facts)["reused"] == 12


def test_images_are_found_by_coco_s_number(tmp_path: Path, release: list[Path]) -> None:
    """COCO 2017 has the pictures of 2014 under shorter names."""
    manifest = make_manifest(tmp_path, TRAIN, VAL)
    rows = read_manifest(manifest).to_pylist()
    for row in rows:
        short = Path(row["path"]).with_name(f"{row['image_id']}.png")
        Path(row["path"]).rename(short)
        row["path"] = str(short)
    write_manifest(rows, manifest)
    assert run(manifest, release)["imported"] == 12
    np.testing.assert_array_equal(features(manifest)["000000000133"], as_halves(133))


def test_copies_of_a_picture_share_a_row(tmp_path: Path, release: list[Path]) -> None:
    # one of the three has no features of its own, and needs none
    manifest = make_manifest(tmp_path, [*TRAIN, 999], VAL, copies=[42, 999, 9])
    assert run(manifest, release) == {"images": 13, "imported": 11, "reused": 2, "failed": 0, "unused": 0}
    found = features(manifest)
    for image_id in ("000000000042", "000000000999", "000000000009"):
        np.testing.assert_array_equal(found[image_id], as_halves(9))


def test_missing_features_are_listed_and_too_many_stop(tmp_path: Path, release: list[Path]) -> None:
    manifest = make_manifest(tmp_path, [*TRAIN, 1001, 1002], VAL)
    store = tmp_path / "store"
    with pytest.raises(UserError) as stopped:
        run(manifest, release, share=0.1)
    assert (
        "import: 2 of 14 images failed so far (2 no_features), more than extract.max_failed_share = 0.1; the "
        "first is 000000001001 (no file has features of COCO_train2014_000000001001 or 000000001001)"
    ) in str(stopped.value)
    table = store / "xlxmert-failures.parquet"
    assert str(table) in str(stopped.value)
    assert pq.read_table(table)["image_id"].to_pylist() == ["000000001001", "000000001002"]
    assert not (tmp_path / "features").exists()

    counts = run(manifest, release, share=0.2)
    assert counts == {
        "images": 14, "imported": 12, "reused": 0, "failed": 2, "failed.no_features": 2, "unused": 0,
    }  # fmt: skip
    failed = pq.read_table(tmp_path / "features/failures.parquet").to_pylist()
    assert [(row["image_id"], row["kind"]) for row in failed] == [
        ("000000001001", "no_features"),
        ("000000001002", "no_features"),
    ]
    assert failed[0]["path"].endswith("1001.png") and len(features(manifest)) == 12


def test_pictures_that_cannot_be_read_are_left_out(manifest: Path, release: list[Path]) -> None:
    """Two empty files are the same file, but not the same picture."""
    rows = read_manifest(manifest).to_pylist()
    for row in rows:
        if row["image_id"] in ("000000000030", "000000000133"):
            row |= {"sha256": "e3b0", "width": 0, "height": 0}
    write_manifest(rows, manifest)
    counts = run(manifest, release, share=0.2)
    assert (counts["failed"], counts["failed.not_an_image"], counts["unused"]) == (2, 2, 0)
    assert not {"000000000030", "000000000133"} & features(manifest).keys()


def test_features_of_unknown_images_are_listed(tmp_path: Path, release: list[Path]) -> None:
    manifest = make_manifest(tmp_path, TRAIN[:3], VAL)
    assert run(manifest, release) == {"images": 8, "imported": 8, "reused": 0, "failed": 0, "unused": 4}
    unused = pq.read_table(tmp_path / "features/unused.parquet").to_pylist()
    assert unused == [
        {"file": "maskrcnn_train_grid8.h5", "image_id": f"COCO_train2014_{number:012d}"}
        for number in sorted(TRAIN[3:])
    ]
    other = make_manifest(tmp_path, [5000], [])
    with pytest.raises(
        UserError, match=r"12 images, none of which is in the manifest .*COCO_train2014_000000000009"
    ):
        run(other, release)


@pytest.mark.parametrize(
    ("bad", "kind", "words"),
    [
        (np.nan, "not_finite", "holds NaN or infinity"),
        (-np.inf, "not_finite", "holds NaN or infinity"),
        (65520.0, "overflow", "holds 65520, float16 ends at 65504"),
    ],
)
def test_values_that_float16_cannot_hold(
    tmp_path: Path, manifest: Path, bad: float, kind: str, words: str
) -> None:
    wrong = values(42)
    wrong[3, 4, 5] = bad
    files = [
        write_h5(tmp_path / "a.h5", TRAIN, "train2014"),
        write_h5(tmp_path / "b.h5", VAL, "val2014", COCO_val2014_000000000042=wrong),
    ]
    with pytest.raises(
        UserError, match=rf"1 {kind}.* the first is 000000000042 \(.*b\.h5: COCO_val2014_0*42 {words}"
    ):
        run(manifest, files)
    counts = run(manifest, files, share=0.1)
    assert (counts["failed"], counts[f"failed.{kind}"], len(features(manifest))) == (1, 1, 11)
    assert "000000000042" not in features(manifest)


def test_the_largest_half_is_no_overflow(tmp_path: Path, manifest: Path) -> None:
    large = values(42)
    large[0, 0, 0] = 65519.0  # the last float32 values that round to float16's largest number
    files = [
        write_h5(tmp_path / "a.h5", TRAIN, "train2014"),
        write_h5(tmp_path / "b.h5", VAL, "val2014", COCO_val2014_000000000042=large),
    ]
    run(manifest, files)
    assert features(manifest)["000000000042"][0, 0] == 65504


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (np.zeros((36, DIM), np.float32), r"float32 \[36, 16\] instead of float \[8, 8, D\]; grid features are in \*_grid8"),
        (np.zeros((14, 14, DIM), np.float32), r"float32 \[14, 14, 16\] instead of"),
        (np.zeros((8, 8, DIM + 1), np.float32), r"float32 \[8, 8, 17\], those of other images are \[8, 8, 16\]; give files of one"),
        (np.zeros((8, 8, DIM), np.int64), r"int64 \[8, 8, 16\] instead of"),
        (np.float32(3), r"float32 \[\] instead of"),
    ],
)  # fmt: skip
def test_another_layout_is_named(tmp_path: Path, manifest: Path, wrong: Any, words: str) -> None:
    files = [
        write_h5(tmp_path / "a.h5", TRAIN, "train2014"),
        write_h5(tmp_path / "b.h5", VAL, "val2014", COCO_val2014_000000000074=wrong),
    ]
    with pytest.raises(UserError, match=rf"b\.h5: COCO_val2014_000000000074/features is {words}"):
        run(manifest, files, share=1.0)


def test_files_that_are_not_the_release(tmp_path: Path, manifest: Path, release: list[Path]) -> None:
    with pytest.raises(UserError, match=r"nowhere\.h5: no such file of features"):
        run(manifest, [tmp_path / "nowhere.h5"])
    half = tmp_path / "half.h5"
    half.write_bytes(release[0].read_bytes()[:-2000])
    with pytest.raises(
        UserError, match=r"half\.h5: not a whole HDF5 file \(.*truncated.*\); download it again"
    ):
        run(manifest, [half, release[1]])
    (tmp_path / "text.h5").write_text("no features")
    with pytest.raises(UserError, match=r"text\.h5: not a whole HDF5 file"):
        run(manifest, [tmp_path / "text.h5"])
    with pytest.raises(
        UserError, match=r"train_grid8\.h5 and .*copy\.h5: both have features of COCO_train2014_0*9;"
    ):
        copy = tmp_path / "copy.h5"
        copy.write_bytes(release[0].read_bytes())
        run(manifest, [*release, copy])
    with h5py.File(release[1], "a") as file:
        del file["COCO_val2014_000000000042/features"]
        file["COCO_val2014_000000000042/boxes"] = np.zeros((36, 4))
    with pytest.raises(UserError, match=r"COCO_val2014_000000000042/features is not there"):
        run(manifest, release)


def test_without_h5py_the_message_says_what_to_install(
    manifest: Path, release: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(UserError, match=r"needs h5py: pip install 'diptych-features\[xlxmert\]'"):
        run(manifest, release)


def test_a_killed_import_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = list(range(1, 61))
    manifest = make_manifest(tmp_path, numbers, [])
    release = [write_h5(tmp_path / "maskrcnn_train_grid8.h5", numbers, "train2014")]
    script = f"""
import sys
from pathlib import Path
from diptych.features.importers import xlxmert_features
from diptych.features.manifest import read_manifest
read, folder = xlxmert_features._read, Path({str(tmp_path)!r})
def read_or_wait(*arguments):
    if len(list((folder / "store").glob("*/part-*.parquet"))) >= 3:
        {HOLD}
    return read(*arguments)
xlxmert_features._read = read_or_wait
xlxmert_features.import_features(
    read_manifest(folder / "manifest.parquet"), [folder / "maskrcnn_train_grid8.h5"], folder / "store",
    folder / "features", 4, 0.0,
)
"""
    kill(held(script))
    assert not (tmp_path / "features").exists(), "killed in its middle"
    kept = sum(len(pq.read_table(part)) for part in (tmp_path / "store").glob("*/part-*.parquet"))

    asked: list[str] = []
    read = xlxmert_features._read

    def count(*arguments: Any) -> np.ndarray:
        asked.append(arguments[1].group)
        return read(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(xlxmert_features, "_read", count)
        counts = run(manifest, release)
    assert 0 < kept < 60 and counts["reused"] == kept and counts["imported"] == 60 - kept
    assert len(asked) == 60 - kept, "nothing that is stored is read"
    resumed = {path.name: path.read_bytes() for path in (tmp_path / "features").iterdir()}

    undisturbed = tmp_path / "undisturbed"
    counts = import_features(
        read_manifest(manifest), release, undisturbed / "store", undisturbed / "features", 4, 0.0
    )
    assert counts["imported"] == 60
    assert {path.name: path.read_bytes() for path in (undisturbed / "features").iterdir()} == resumed


def nearest(centroids: np.ndarray, number: int) -> np.ndarray:
    cells = as_halves(number).astype(np.float64)
    return ((cells[:, None] - centroids[None].astype(np.float64)) ** 2).sum(axis=2).argmin(axis=1)


def test_centroids_become_a_codebook_and_codes_are_computed(manifest: Path, release: list[Path]) -> None:
    run(manifest, release)
    cells = np.concatenate([as_halves(number) for number in TRAIN]).astype(np.float32)
    centroids = cells[np.random.default_rng(0).permutation(len(cells))[:20]]
    centroids = np.concatenate([centroids, np.full((1, DIM), 500, np.float32)])  # one that nothing is near to
    path = manifest.parent / "maskrcnn_mscoco_train_centroids21_iter20_d16_grid8.npy"
    np.save(path, centroids)
    reader, out = FeatureReader(manifest.parent / "features"), manifest.parent / "codebook"
    train_ids = {f"{number:012d}" for number in TRAIN}
    metrics, curve = import_centroids(path, 21, reader, train_ids, 1, out)

    np.testing.assert_array_equal(load_codebook(out), centroids)
    image_ids, codes = read_codes(out)
    assert image_ids == reader.image_ids()
    for image_id, found in zip(image_ids, codes, strict=True):
        np.testing.assert_array_equal(found, nearest(centroids, int(image_id)))
    train_codes = np.concatenate([nearest(centroids, number) for number in TRAIN])
    sizes = np.bincount(train_codes, minlength=21)
    lost = ((cells - centroids[train_codes]) ** 2).sum()
    share = sizes[sizes > 0] / sizes.sum()
    expected = {
        "k": 21,
        "iterations": 0,
        "cells": 64 * len(TRAIN),
        "sampled_cells": 0,
        "relative_error": lost / ((cells - cells.mean(axis=0)) ** 2).sum(),
        "dead_centroids": int((sizes == 0).sum()),
        "smallest_cluster": 0,
        "largest_cluster": int(sizes.max()),
        "perplexity": float(np.exp(-(share * np.log(share)).sum())),
        "inertia": lost,
    }
    assert metrics == pytest.approx(expected, rel=1e-4) and metrics["dead_centroids"] >= 1
    assert curve == [
        pytest.approx({"step": 0, "inertia": lost, "imbalance": 21 * (share**2).sum(), "splits": 0}, rel=1e-4)
    ]


def test_a_codebook_of_ours_is_taken_as_it_is(manifest: Path, release: list[Path]) -> None:
    run(manifest, release)
    folder, reader = manifest.parent, FeatureReader(manifest.parent / "features")
    train_ids = {f"{number:012d}" for number in TRAIN}
    centroids = np.concatenate([as_halves(number) for number in TRAIN]).astype(np.float32)[::2]
    np.save(folder / "centroids.npy", centroids)
    import_centroids(folder / "centroids.npy", len(centroids), reader, train_ids, 1, folder / "first")
    own = folder / "first/codebook.safetensors"
    import_centroids(own, len(centroids), reader, train_ids, 1, folder / "second")
    for name in ("codebook.safetensors", "codes.parquet"):
        assert (folder / "first" / name).read_bytes() == (folder / "second" / name).read_bytes()
    save_file({"sizes": np.zeros(4, np.int64)}, folder / "other.safetensors")
    (folder / "damaged.safetensors").write_bytes(own.read_bytes()[:-5])
    for name, words in (
        ("other", "no tensor 'centroids'"),
        ("damaged", "not a readable safetensors file"),
        ("no", "no such"),
    ):
        with pytest.raises(UserError, match=rf"{name}\.safetensors: {words}"):
            read_centroids(folder / f"{name}.safetensors", DIM)


def test_centroids_of_other_features_are_refused(manifest: Path, release: list[Path]) -> None:
    run(manifest, release)
    reader, path = FeatureReader(manifest.parent / "features"), manifest.parent / "centroids.npy"
    np.save(path, np.random.default_rng(0).normal(size=(8, DIM)).astype(np.float32) - 40)
    train_ids, out = {f"{number:012d}" for number in TRAIN}, manifest.parent / "codebook"
    with pytest.raises(UserError, match=r"centroids\.npy: .* represent .* worse than their mean"):
        import_centroids(path, 8, reader, train_ids, 1, out)
    with pytest.raises(UserError, match=r"centroids\.npy: 8 centroids, but cluster\.k = 9"):
        import_centroids(path, 9, reader, train_ids, 1, out)
    assert not (manifest.parent / "codebook/codebook.safetensors").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (np.zeros((4, DIM + 1), np.float32), "centroids of 17 dimensions, but the features have 16"),
        (np.zeros((4, 2, DIM), np.float32), r"float32 \[4, 2, 16\], but centroids are float \[K, 16\]"),
        (np.zeros((4, DIM), np.int64), r"int64 \[4, 16\], but centroids are float"),
        (np.full((4, DIM), np.nan, np.float32), "a centroid is not finite"),
        (np.zeros((65_537, DIM), np.float16), "65537 centroids; codes are 16-bit numbers"),
        (np.zeros((0, DIM), np.float32), "0 centroids"),
        ({"COCO_val2014_000000000042": [1, 2]}, "pickled cluster ids are not read"),
        (b"neither", "not an .npy file of numbers"),
        (None, "no such file of centroids"),
    ],
)
def test_files_that_are_no_centroids(tmp_path: Path, content: Any, words: str) -> None:
    path = tmp_path / "centroids.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.save(path, content, allow_pickle=True)
    with pytest.raises(UserError, match=rf"centroids\.npy: {words}|centroids\.npy: .*{words}"):
        read_centroids(path, DIM)


def test_centroids_may_be_of_another_precision(tmp_path: Path) -> None:
    np.save(tmp_path / "centroids.npy", np.asfortranarray(np.random.default_rng(0).normal(size=(5, DIM))))
    found = read_centroids(tmp_path / "centroids.npy", DIM)
    assert found.dtype == np.float32 and found.flags.c_contiguous and found.shape == (5, DIM)


def test_the_folder_says_where_it_is_from(manifest: Path, release: list[Path]) -> None:
    run(manifest, release)
    meta = json.loads((manifest.parent / "features/_meta.json").read_text())
    assert set(meta) == {"feature_version", "source", "files", "grid", "feature_dim"} and meta["grid"] == 8


def test_what_another_run_works_on_is_left_to_it(
    manifest: Path, release: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(manifest, release)
    (folder,) = (manifest.parent / "store").iterdir()
    for part in folder.glob("part-*"):
        part.unlink()
    (left,) = [row["sha256"] for row in read_manifest(manifest).to_pylist() if row["image_id"].endswith("49")]
    waits = []
    with Claims(folder / "runs") as another:
        assert another.claim([left]) == {left}

        def wait(seconds: float) -> None:
            waits.append(
                [
                    sha256
                    for part in folder.glob("part-*")
                    for sha256 in pq.read_table(part)["sha256"].to_pylist()
                ]
            )
            another.close()  # it ends without it

        monkeypatch.setattr(xlxmert_features.time, "sleep", wait)
        assert run(manifest, release)["imported"] == 12
    assert len(waits) == 1 and len(waits[0]) == 11 and left not in waits[0]
    np.testing.assert_array_equal(features(manifest)["000000000049"], as_halves(49))
