"""Train the image generator: an 8x8 grid of codebook vectors becomes pixels (X-LXMERT 4.2 and appendix D)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from diptych.features.codebook.reading import load_codebook
from diptych.features.detector import load_detector
from diptych.features.ranges import check_at_least
from diptych.features.shards.reading import ShardDataset
from diptych.model.networks.image_generator import ImageGenerator, named_config, save_image_generator
from diptych.model.objectives.perceptual import read_encoder
from diptych.model.pixels import to_uint8
from diptych.model.training.image_generator import ImageGeneratorTrainingConfig, train_image_generator
from diptych.model.training.processes import current_processes
from pipelines.measuring.detection import has_main_objects, main_object_shares, prepared
from pipelines.measuring.samples import repainted_pictures, write_samples
from pipelines.measuring.shards import shards_of
from pipelines.runner.processes import run, training_device
from pipelines.runner.stage import Stage

if TYPE_CHECKING:
    from torch import Tensor

    from diptych.features.detector.grid_detector import PyramidGridDetector
    from diptych.model.training.contracts import Record

CODEBOOK, DETECTOR = Path("data/codebook"), Path("models/detector")
BATCH_SIZE = 50


@dataclass(frozen=True)
class ImageGeneratorParams:
    """network: a named size of diptych.model (toybox, toybox_128, smoke, base); training: its schedule and losses.

    perceptual_encoder: models/detector, or a file with torchvision's ResNet-50 weights, as the paper has it.
    val_images: how many pictures of the val split the metrics are of, at most all.
    """

    network: str
    perceptual_encoder: Path
    val_images: int
    training: ImageGeneratorTrainingConfig

    def __post_init__(self) -> None:
        check_at_least(self, 1, "val_images")


def main(stage: Stage, params: ImageGeneratorParams) -> None:
    """Train on codes and pictures of the train split; write the generator, the histories, samples and metrics."""
    with training_device(stage) as device:
        generator, record = train(stage, params, device)
        if current_processes().rank > 0:
            return
        with stage.write("models/image_generator") as folder:
            save_image_generator(folder, generator)
        stage.write_history("plots/image_generator.csv", record.history)
        stage.write_history("plots/image_generator_val.csv", record.evaluations)
        write_samples(stage, record.samples, [], repainted_pictures())
        stage.write_metrics("metrics/image_generator.json", val_metrics(generator, params.val_images, device))


def train(
    stage: Stage, params: ImageGeneratorParams, device: str, part: str = "", reads: str = "codes"
) -> tuple[ImageGenerator, Record]:
    """A trained generator, from the seed's weights, and what its training leaves besides.

    part: names the training where a stage has several. reads: codes, or features.
    """
    import torch

    codebook = torch.from_numpy(load_codebook(CODEBOOK))
    config = named_config(params.network, feature_dim=codebook.shape[1], reads=reads)
    torch.manual_seed(stage.seed)
    generator = ImageGenerator(config)
    record = train_image_generator(
        params.training,
        generator,
        codebook,
        shards_of("train"),
        read_encoder(params.perceptual_encoder, device),
        stage.checkpoints(part),
        device,
        shards_of("val"),
    )
    return generator, record


def val_metrics(generator: ImageGenerator, count: int, device: str) -> dict[str, float]:
    """What the detector sees in reconstructions of `count` val pictures (at most all), beside real ones.

    `images`: how many. `l1`: mean distance of pixels in 0..1. `feature_distance`: of the grid features, squared and
    as a share of the real ones' variance, as `cluster.relative_error`. Where objects have attributes, by real |
    reconstruction: the shares of main objects whose class, colour, and both the detector reads from their box.
    """
    val = shards_of("val")
    indices = list(range(min(count, len(val))))
    real = val.images(indices, generator.config.image_size)
    painted = reconstruct(generator, val, indices, device)
    detector = load_detector(DETECTOR, device)
    features = [grid_features(detector, images, device) for images in (real, painted)]
    spread = (features[0] - features[0].mean((0, 1))).square().mean()
    metrics = {
        "images": len(indices),
        "l1": float((real.float() - painted.float()).abs().mean() / 255),
        "feature_distance": float((features[1] - features[0]).square().mean() / spread),
    }
    samples = [val.meta(index) for index in indices]
    if has_main_objects(detector, samples):
        for kind, images in (("real", real), ("reconstruction", painted)):
            metrics |= {
                f"{kind}.{name}": share
                for name, share in main_object_shares(detector, images, samples).items()
            }
    return metrics


def reconstruct(generator: ImageGenerator, shards: ShardDataset, indices: list[int], device: str) -> Tensor:
    """Pictures uint8 [n, 3, S, S] painted from the codes of real ones."""
    import torch

    codebook = torch.from_numpy(load_codebook(CODEBOOK)).to(device)
    parts = []
    with torch.inference_mode():
        for start in range(0, len(indices), BATCH_SIZE):
            codes = torch.from_numpy(shards.codes(indices[start : start + BATCH_SIZE])).to(device)
            parts.append(to_uint8(generator(codebook[codes])).cpu())
    return torch.cat(parts)


def grid_features(detector: PyramidGridDetector, images: Tensor, device: str) -> Tensor:
    """Grid features float32 [n, 64, D], on the CPU, of pictures uint8 [n, 3, S, S]."""
    import torch

    parts = []
    with torch.inference_mode():
        for start in range(0, len(images), BATCH_SIZE):
            batch = prepared(detector, images[start : start + BATCH_SIZE])
            parts.append(detector.grid_features(batch.to(device)).float().cpu())
    return torch.cat(parts)


if __name__ == "__main__":
    run("image_generator", ImageGeneratorParams, main)
