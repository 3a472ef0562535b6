"""Extraction against a straightforward loop, one worker against two, and memory at 2,000 and 20,000 images.

`python -m benchmarks.features_extract [--images 2000] [--rounds 5]`. The detector has the default profile's size and
random weights; the pictures are Toybox's.

| ratio | sides |
| --- | --- |
| extract.vs_loop | images/s of one worker / of a loop: one image at a time through backbone and RoI heads (64 boxes, fc6, fc7, predictor), float32, written to HDF5 |
| extract.two_workers | images/s of two Ray actors / of one, one thread each, while all are working |
| extract.of_bare_forward | images/s of extraction with store and linking / of the forward pass alone on prepared batches |
| extract.peak_memory_20k_over_2k | peak memory of the whole process, 20,000 images / 2,000 |
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.alternate import alternate, median_ratio, seconds
from diptych.features.datasets.toybox import GrammarConfig, SceneConfig, ToyboxConfig, build_toybox
from diptych.features.detector import Detector, DetectorConfig, load_detector, save_detector
from diptych.features.extraction.extract import ExtractConfig, extract_features
from diptych.features.grid import CELLS, grid_boxes
from diptych.features.images import read_image
from diptych.features.manifest import read_manifest, resolve_image, write_manifest
from pipelines.runner.memory import peak_resident

NETWORK = DetectorConfig(image_size=64, channels=(32, 64, 128, 192), pyramid_channels=64, feature_dim=128)
EXTRACT = ExtractConfig(
    batch_size=50, part_size=250, max_failed_share=0.0, retry_failed=False, backend="torchvision", ray_address=None,
    precision="float32",
)  # fmt: skip


def measure(folder: Path, images: int, rounds: int, memory_images: tuple[int, int]) -> dict[str, float]:
    """All ratios; `folder` is for scratch files."""
    manifest = make_toybox(folder / f"toybox-{images}", images)
    torch.manual_seed(0)
    save_detector(Detector(NETWORK, ["kite"] * 8, ["red"] * 6), folder / "detector")
    torch.set_num_threads(1)
    sides = {
        "loop": lambda: images / seconds(lambda: loop(manifest, folder)),
        "one worker": lambda: images / seconds(lambda: extract(manifest, folder, workers=0)),
        "forward": lambda: forward_rate(manifest, folder),
    }
    for side in sides.values():  # not the first touch of files and memory
        side()
    rates = alternate(sides, rounds)
    actors = alternate(
        {str(workers): lambda workers=workers: ray_rate(manifest, folder, workers) for workers in (1, 2)},
        rounds,
    )
    for name, values in [*rates.items(), *((f"{n} Ray actors", v) for n, v in actors.items())]:
        print(f"{name:>14}: {statistics.median(values):8.1f} images/s")
    small, large = (peak_memory(folder, count) for count in memory_images)
    print(f"peak memory: {small:.0f} MiB at {memory_images[0]} images, {large:.0f} MiB at {memory_images[1]}")
    return {
        "extract.vs_loop": median_ratio(rates["one worker"], rates["loop"]),
        "extract.two_workers": median_ratio(actors["2"], actors["1"]),
        "extract.of_bare_forward": median_ratio(rates["one worker"], rates["forward"]),
        "extract.peak_memory_20k_over_2k": large / small,
    }


def make_toybox(folder: Path, images: int) -> Path:
    """A manifest of Toybox pictures."""
    (folder / "images").mkdir(parents=True)
    config = ToyboxConfig(
        train=images, val=1, test=1, compositional=1, ablation=1, image_size=64,
        scenes=SceneConfig(two=0.13, three=0.07, large=0.7, second=0.65, third=0.15, jitter=1.0),
        captions=GrammarConfig(usual=0.75, where=0.93, size=0.35, scenery=0.6, second=0.88, third=0.4),
    )  # fmt: skip
    rows = [row for row in build_toybox(config, 0, folder) if row["split"] == "train"]
    write_manifest(rows, folder / "manifest.parquet")
    return folder / "manifest.parquet"


def extract(manifest: Path, folder: Path, workers: int) -> Path:
    """A whole extraction into a fresh store. Returns the store."""
    store, out = folder / "store", folder / "out"
    for old in (store, out):
        shutil.rmtree(old, ignore_errors=True)
    extract_features(
        read_manifest(manifest),
        manifest,
        folder / "detector",
        store,
        out,
        EXTRACT,
        workers,
        max(workers, 1),
        "cpu",
    )
    return store


def ray_rate(manifest: Path, folder: Path, workers: int) -> float:
    """Images/s between the first part and the last: while all actors are up and nobody is waiting for Ray."""
    (key,) = extract(manifest, folder, workers).iterdir()
    times = sorted(part.stat().st_mtime_ns for part in key.glob("part-*.parquet"))
    images = len(read_manifest(manifest))
    return images * (len(times) - 1) / len(times) / (times[-1] - times[0]) * 1e9


@torch.inference_mode()
def loop(manifest: Path, folder: Path) -> None:
    """What a first script looks like: every image alone through all of backbone and RoI heads."""
    import h5py

    detector = load_detector(folder / "detector")
    rows = read_manifest(manifest).to_pylist()
    with h5py.File(folder / "loop.h5", "w") as file:
        for row in rows:
            image = detector.prepare(read_image(resolve_image(manifest, row["path"])))[None].float() / 255
            height, width = image.shape[-2:]
            levels = detector.backbone(image)
            heads = detector.heads
            pooled = heads.box_roi_pool(levels, [grid_boxes(height, width)], [(height, width)])
            features = heads.box_head.features(pooled)
            heads.box_predictor(torch.relu(heads.box_head.fc7(features)))
            group = file.create_group(row["image_id"])
            group.create_dataset("features", data=features.view(8, 8, -1).numpy())


@torch.inference_mode()
def forward_rate(manifest: Path, folder: Path) -> float:
    """Images/s of the detector alone, batches of the same size prepared beforehand."""
    detector = load_detector(folder / "detector")
    rows = read_manifest(manifest).to_pylist()
    images = [detector.prepare(read_image(resolve_image(manifest, row["path"]))) for row in rows]
    batches = [
        torch.stack(images[i : i + EXTRACT.batch_size]) for i in range(0, len(images), EXTRACT.batch_size)
    ]

    def run() -> None:
        for batch in batches:
            assert detector.grid_features(batch).half().shape[1] == CELLS

    return len(images) / seconds(run)


def peak_memory(folder: Path, images: int) -> float:
    """MiB of a fresh process that extracts so many images."""
    manifest = folder / f"toybox-{images}" / "manifest.parquet"
    if not manifest.exists():
        make_toybox(manifest.parent, images)
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_extract_and_weigh, (manifest, folder))


def _extract_and_weigh(manifest: Path, folder: Path) -> float:
    torch.set_num_threads(1)
    extract(manifest, folder, workers=0)
    peak = peak_resident()
    assert peak is not None
    return peak / 2**20


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory-images", type=int, nargs=2, default=(2000, 20000))
    arguments = parser.parse_args()
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        ratios = measure(Path(scratch), arguments.images, arguments.rounds, tuple(arguments.memory_images))
    print(json.dumps({name: round(value, 3) for name, value in ratios.items()}, indent=2))
    print(f"{time.perf_counter() - begun:.0f} s")
