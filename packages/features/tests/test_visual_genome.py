"""The Visual Genome detector: its checkpoint's importer, its grid features, its second backend.

The reference is a plain restatement of vqa-maskrcnn-benchmark's network with that project's own names: all
levels, RoIAlign box by box, batch normalisation by itself.
"""

from __future__ import annotations

import importlib.util
import io
import json
import math
import os
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.resnet import Bottleneck, ResNet
from torchvision.ops import roi_align

from diptych.features.detector import (
    Detector,
    DetectorConfig,
    VisualGenomeConfig,
    import_visual_genome,
    load_detector,
    save_detector,
)
from diptych.features.detector.importer import _expected, _layers
from diptych.features.detector.visual_genome import VisualGenomeDetector, grid_level
from diptych.features.errors import UserError

TINY = VisualGenomeConfig(
    stem_channels=8,
    blocks=(1, 2, 3, 1),
    groups=2,
    width_per_group=4,
    stage_channels=16,
    pyramid_channels=12,
    feature_dim=24,
)
WITHOUT_DETECTRON2 = importlib.util.find_spec("detectron2") is None
MEAN = np.array([102.9801, 115.9465, 122.7717])  # blue, green, red


class FrozenNorm(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.rand(channels) + 0.5)
        self.register_buffer("bias", torch.randn(channels) * 0.2)
        self.register_buffer("running_mean", torch.randn(channels) * 0.2)
        self.register_buffer("running_var", torch.rand(channels) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        mean, deviation, weight, bias = (
            value.view(-1, 1, 1)
            for value in (self.running_mean, self.running_var.sqrt(), self.weight, self.bias)
        )
        return (x - mean) / deviation * weight + bias


class Block(nn.Module):
    def __init__(self, inputs: int, width: int, outputs: int, groups: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 1, bias=False), FrozenNorm(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, groups=groups, bias=False)
        self.bn2 = FrozenNorm(width)
        self.conv3, self.bn3 = nn.Conv2d(width, outputs, 1, bias=False), FrozenNorm(outputs)
        self.downsample = None
        if inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), FrozenNorm(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + (x if self.downsample is None else self.downsample(x)))


class Reference(nn.Module):
    """The whole detector with a few classes: what grid features do not need lies in the checkpoint too."""

    def __init__(self, config: VisualGenomeConfig) -> None:
        super().__init__()
        self.config, c = config, config
        stem = nn.Module()
        stem.conv1 = nn.Conv2d(3, c.stem_channels, 7, 2, 3, bias=False)
        stem.bn1 = FrozenNorm(c.stem_channels)
        body, fpn, inputs = nn.Module(), nn.Module(), c.stem_channels
        body.stem = stem
        for stage in range(4):
            width, outputs = c.groups * c.width_per_group * 2**stage, c.stage_channels * 2**stage
            blocks = []
            for block in range(c.blocks[stage]):
                blocks.append(Block(inputs, width, outputs, c.groups, 2 if stage and block == 0 else 1))
                inputs = outputs
            setattr(body, f"layer{stage + 1}", nn.Sequential(*blocks))
            setattr(fpn, f"fpn_inner{stage + 1}", nn.Conv2d(outputs, c.pyramid_channels, 1))
            setattr(fpn, f"fpn_layer{stage + 1}", nn.Conv2d(c.pyramid_channels, c.pyramid_channels, 3, 1, 1))
        self.backbone = nn.Module()
        self.backbone.body, self.backbone.fpn = body, fpn
        self.rpn = nn.Module()
        self.rpn.anchor_generator = nn.Module()
        self.rpn.anchor_generator.cell_anchors = nn.ParameterList([nn.Parameter(torch.randn(3, 4))])
        self.rpn.head = nn.Module()
        self.rpn.head.conv = nn.Conv2d(c.pyramid_channels, c.pyramid_channels, 3)
        self.roi_heads = nn.Module()
        box = self.roi_heads.box = nn.Module()
        box.feature_extractor = nn.Module()
        box.feature_extractor.fc6 = nn.Linear(c.pyramid_channels * c.bins**2, c.feature_dim)
        box.feature_extractor.fc7 = nn.Linear(c.feature_dim, c.feature_dim)
        box.predictor = nn.Module()
        box.predictor.cls_score = nn.Linear(c.feature_dim, 5)
        box.predictor.bbox_pred = nn.Linear(c.feature_dim, 20)
        box.predictor.cls_embed = nn.Embedding(5, 6)
        box.predictor.attr_linear1 = nn.Linear(c.feature_dim + 6, 7)
        box.predictor.attr_linear2 = nn.Linear(7, 4)

    def levels(self, x: Tensor) -> list[Tensor]:
        body, fpn = self.backbone.body, self.backbone.fpn
        x = F.max_pool2d(F.relu(body.stem.bn1(body.stem.conv1(x))), 3, 2, 1)
        inner: list[Tensor] = []
        for stage in (1, 2, 3, 4):
            x = getattr(body, f"layer{stage}")(x)
            inner.append(getattr(fpn, f"fpn_inner{stage}")(x))
        for finer in (2, 1, 0):
            inner[finer] = inner[finer] + F.interpolate(inner[finer + 1], scale_factor=2, mode="nearest")
        return [getattr(fpn, f"fpn_layer{stage + 1}")(inner[stage]) for stage in range(4)]

    def grid_features(self, images: Tensor) -> Tensor:
        """images: BGR less the mean [n, 3, H, W] -> fc6 [n, 64, D]."""
        height, width = images.shape[-2:]
        levels = self.levels(images)
        features = []
        for image in range(len(images)):
            for row in range(8):
                for column in range(8):
                    box = torch.tensor(
                        [
                            column * (width // 8),
                            row * (height // 8),
                            (column + 1) * (width // 8),
                            (row + 1) * (height // 8),
                        ],
                        dtype=images.dtype,
                    )
                    area = (box[2] - box[0] + 1) * (box[3] - box[1] + 1)
                    level = math.floor(4 + math.log2(math.sqrt(area) / 224 + 1e-6))
                    level = min(max(level, 2), 5)
                    region = torch.cat([torch.tensor([image], dtype=images.dtype), box])[None]
                    pooled = roi_align(
                        levels[level - 2],
                        region,
                        self.config.bins,
                        1 / 2**level,
                        sampling_ratio=2,
                        aligned=False,
                    )
                    features.append(F.relu(self.roi_heads.box.feature_extractor.fc6(pooled.flatten(1))))
        return torch.cat(features).view(len(images), 64, -1)


def reference_input(image: Image.Image, height: int, width: int) -> Tensor:
    """The original's transform pixel by pixel: BGR less the mean, then bilinear as OpenCV does it."""
    pixels = np.asarray(image, dtype=np.float64)[:, :, ::-1] - MEAN
    for axis, size in ((0, height), (1, width)):
        length = pixels.shape[axis]
        points = ((np.arange(size) + 0.5) * length / size - 0.5).clip(0, length - 1)
        low = np.floor(points).astype(int)
        share = (points - low).reshape([-1 if axis == a else 1 for a in range(3)])
        high = np.minimum(low + 1, length - 1)
        pixels = pixels.take(low, axis) * (1 - share) + pixels.take(high, axis) * share
    return torch.from_numpy(pixels).permute(2, 0, 1)


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth colours that differ between channels and from corner to corner."""
    small = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def reference() -> Reference:
    torch.manual_seed(0)
    return Reference(TINY).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def checkpoint(reference: Reference, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As vqa-maskrcnn-benchmark saves it after training on several GPUs."""
    path = tmp_path_factory.mktemp("checkpoint") / "model_final.pth"
    state = {f"module.{name}": tensor for name, tensor in reference.state_dict().items()}
    torch.save({"model": state, "optimizer": {"state": {}, "param_groups": []}, "iteration": 9}, path)
    return path


@pytest.fixture(scope="module")
def folder(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("detector")
    import_visual_genome(checkpoint, out)
    return out


# 800 x 992 is the smallest that goes to level 3; 800 x 960 goes to level 2, 1792 x 1792 to level 4.
@pytest.mark.parametrize(
    ("height", "width", "level"), [(32, 1312, 2), (800, 960, 2), (992, 800, 3), (1792, 1792, 4)]
)
def test_features_are_fc6_of_roi_align_box_by_box(
    folder: Path, reference: Reference, height: int, width: int, level: int
) -> None:
    torch.manual_seed(1)
    assert grid_level(height, width) == level
    images = torch.randn(1 if height > 1000 else 2, 3, height, width) * 60
    expected = reference.grid_features(images)
    found = load_detector(folder).grid_features(images)
    assert found.shape == (len(images), 64, 24) and found.dtype == torch.float32
    # A mistake in a level, a bin or a box shows in most features; they are about one.
    assert expected.std() > 0.3
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_features_in_float64_differ_by_the_rounding_of_the_stored_weights(
    folder: Path, reference: Reference
) -> None:
    torch.manual_seed(2)
    images = torch.randn(1, 3, 224, 320, dtype=torch.float64) * 60
    expected = copy_of(reference).double().grid_features(images)
    found = load_detector(folder).double().grid_features(images).double()
    torch.testing.assert_close(found, expected, atol=3e-6, rtol=3e-6)


def test_a_picture_goes_in_as_the_original_reads_it(folder: Path, reference: Reference) -> None:
    detector = load_detector(folder)
    for width, height, size in ((640, 480, (800, 1056)), (90, 300, (1312, 384)), (2600, 1900, (800, 1088))):
        image = photo(width, height)
        assert detector.input_size(width, height) == size
        prepared = detector.prepare(image)
        expected = reference_input(image, *size)
        assert prepared.shape == (3, *size) and prepared.dtype == torch.float32
        torch.testing.assert_close(prepared.double(), expected, atol=2e-3, rtol=0)
    # Red is last, and with the channels the other way round the features are others.
    red = detector.prepare(Image.new("RGB", (64, 64), (255, 0, 0)))
    assert red[:, 5, 5].tolist() == pytest.approx([-102.9801, -115.9465, 255 - 122.7717], abs=1e-3)
    image = photo(640, 480)
    features = detector.grid_features(detector.prepare(image)[None])
    expected_features = reference.grid_features(reference_input(image, 800, 1056)[None].float())
    torch.testing.assert_close(features, expected_features, atol=2e-3, rtol=1e-3)
    swapped = detector.grid_features(detector.prepare(Image.fromarray(np.asarray(image)[:, :, ::-1]))[None])
    assert (swapped - expected_features).abs().mean() > 0.05


@pytest.mark.parametrize(
    ("width", "height", "size"),
    [
        (640, 480, (800, 1056)),  # 1066 floored
        (480, 640, (1056, 800)),
        (640, 640, (800, 800)),
        (640, 427, (800, 1184)),  # 1199 floored
        (640, 360, (736, 1312)),  # 1422 is too long: 1333 and 749, floored
        (1600, 960, (800, 1312)),  # 1333.3 rounds to 1333, which is not too long
        (334, 500, (1184, 800)),  # the original's float arithmetic makes 799 of the shorter side
        (10_000, 10, (32, 1312)),  # a side never vanishes
        (1, 1, (800, 800)),
    ],
)
def test_input_sizes(folder: Path, width: int, height: int, size: tuple[int, int]) -> None:
    assert load_detector(folder).input_size(width, height) == size


def test_a_batch_has_the_features_of_its_images(folder: Path) -> None:
    detector = load_detector(folder)
    images = torch.stack([detector.prepare(photo(320, 240, seed)) for seed in range(3)])
    together = detector.grid_features(images)
    alone = torch.cat([detector.grid_features(image[None]) for image in images])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)


def test_features_in_mixed_precision_are_close_and_float32(folder: Path) -> None:
    torch.manual_seed(5)
    detector, images = load_detector(folder), torch.randn(1, 3, 96, 128) * 60
    expected = detector.grid_features(images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = detector.grid_features(images)
    assert found.dtype == torch.float32 and not torch.equal(found, expected)
    assert (found - expected).abs().mean() < 0.02 * expected.abs().mean()


def test_the_pyramid_is_the_references_and_carries_gradients(folder: Path, reference: Reference) -> None:
    torch.manual_seed(3)
    images = torch.rand(2, 3, 64, 96, requires_grad=True)  # RGB
    levels = load_detector(folder).pyramid(images)
    mean = torch.tensor(MEAN, dtype=torch.float32).view(3, 1, 1)
    expected = reference.levels(images[:, [2, 1, 0]] * 255 - mean)
    assert len(levels) == 4
    for found, wanted in zip(levels, expected, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    (gradient,) = torch.autograd.grad(sum(level.square().sum() for level in levels), images)
    (wanted_gradient,) = torch.autograd.grad(sum(level.square().sum() for level in expected), images)
    torch.testing.assert_close(gradient, wanted_gradient, atol=1e-2, rtol=1e-3)


def test_the_report_names_every_key_once(checkpoint: Path, reference: Reference, tmp_path: Path) -> None:
    report = import_visual_genome(checkpoint, tmp_path)
    unused = [name for names in report.unused.values() for name in names]
    everything = [*(f"module.{name}" for name in reference.state_dict()), "optimizer", "iteration"]
    assert sorted([*report.used, *unused]) == sorted(everything)
    left = {"rpn", "roi_heads.box.feature_extractor.fc7", "roi_heads.box.predictor"}
    assert not any(name.removeprefix("module.").startswith(tuple(left)) for name in report.used)
    assert len(report.unused) == 5 and "fc7: the feature is fc6" in report.summary()
    assert report.feature_dim == 24
    # batch normalisation is folded away: a bias for each of its four vectors
    layers = {name: tensor for name, tensor in load_detector(tmp_path).state_dict().items()}
    assert report.parameters == sum(tensor.numel() for tensor in layers.values())
    origin = json.loads((tmp_path / "config.json").read_text())["origin"]
    assert origin["checkpoint"] == "model_final.pth" and origin["unused"] == report.unused


def test_all_ways_of_saving_give_the_same_detector(
    folder: Path, reference: Reference, tmp_path: Path
) -> None:
    state = reference.state_dict()
    expected = load_detector(folder).weights_hash
    torch.save(state, tmp_path / "plain.pth")
    torch.save({"model": state}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    # Caffe2's conversion: bare layer names; and statistics are part of scale and shift
    short = {
        name.replace("backbone.body.stem.", "").replace("backbone.body.", ""): t for name, t in state.items()
    }
    for prefix in ("backbone.fpn.", "roi_heads.box.feature_extractor.", "roi_heads.box.predictor."):
        short = {name.replace(prefix, ""): tensor for name, tensor in short.items()}
    assert {"conv1.weight", "layer1.0.bn1.bias", "fpn_inner1.bias", "fc6.bias"} <= short.keys()
    torch.save({"model": short}, tmp_path / "short.pth")
    for name in ("plain", "old", "short"):
        import_visual_genome(tmp_path / f"{name}.pth", tmp_path / name)
        assert load_detector(tmp_path / name).weights_hash == expected

    for name in [name for name in short if name.endswith("running_mean")]:
        layer = name.removesuffix("running_mean")
        scale = short[f"{layer}weight"] / short.pop(f"{layer}running_var").sqrt()
        short[f"{layer}weight"] = scale
        short[f"{layer}bias"] = short[f"{layer}bias"] - short.pop(name) * scale
    torch.save({"model": short}, tmp_path / "caffe2.pth")
    import_visual_genome(tmp_path / "caffe2.pth", tmp_path / "caffe2")
    images = torch.randn(1, 3, 64, 96) * 60
    torch.testing.assert_close(
        load_detector(tmp_path / "caffe2").grid_features(images),
        load_detector(folder).grid_features(images),
        atol=1e-4,
        rtol=1e-4,
    )


def test_the_paper_size_network_takes_the_checkpoints_names() -> None:
    config = VisualGenomeConfig()
    with torch.device("meta"):
        reference, detector = Reference(config), VisualGenomeDetector(config)
    state = reference.state_dict()
    expected = _expected(config, list(_layers(config)), state)
    rest = ("rpn.", "roi_heads.box.predictor.", "roi_heads.box.feature_extractor.fc7.")
    needed = {name: tensor.shape for name, tensor in state.items() if not name.startswith(rest)}
    assert expected == needed
    # torchvision's ResNeXt of the same kind, less its classifier and with one vector a normalisation
    with torch.device("meta"):
        body = ResNet(Bottleneck, [3, 8, 36, 3], groups=32, width_per_group=8)
    own = sum(p.numel() for n, p in body.named_parameters() if not n.startswith("fc.")) - sum(
        m.weight.numel() for m in body.modules() if isinstance(m, nn.BatchNorm2d)
    )
    pyramid = (256 + 512 + 1024 + 2048) * 512 + 4 * 512 * 512 * 9 + 8 * 512
    assert sum(p.numel() for p in detector.parameters()) == own + pyramid + 512 * 49 * 2048 + 2048
    assert tuple(detector.fc6.weight.shape) == (2048, 512 * 49)
    assert detector.stages[0][0].conv2.weight.shape == (256, 8, 3, 3)


class Payload:
    """Unpickled by a trusting reader, it would make a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.folder),)


def broken(reference: Reference, change: str) -> dict[str, Tensor]:
    state = dict(reference.state_dict())
    stem, fc6 = "backbone.body.stem.bn1", "roi_heads.box.feature_extractor.fc6.weight"
    if change == "missing":
        del state["backbone.body.layer2.1.bn2.running_var"], state["backbone.fpn.fpn_layer3.bias"]
    elif change == "no statistics":
        del state[f"{stem}.running_mean"]
    elif change == "no fc6":
        del state[fc6]
    elif change == "no block":
        state = {name: tensor for name, tensor in state.items() if "layer3.1." not in name}
    elif change == "shape":
        state["backbone.body.layer3.1.conv1.weight"] = torch.zeros(16, 32, 1, 1)
    elif change == "dtype":
        state[f"{stem}.bias"] = torch.zeros(8, dtype=torch.int64)
    elif change == "dimensions":
        state[fc6] = torch.zeros(5)
    elif change == "unknown":
        state["backbone.body.layer2.1.se.weight"] = torch.zeros(2)
    elif change == "infinite":
        state[f"{stem}.running_var"] = torch.zeros(8)
    elif change == "twice":
        state["bn1.bias"] = state[f"{stem}.bias"]
    return state


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing", r"lacks backbone\.body\.layer2\.1\.bn2\.running_var, backbone\.fpn\.fpn_layer3\.bias;"),
        ("no statistics", r"lacks backbone\.body\.stem\.bn1\.running_mean;"),
        ("no fc6", r"lacks roi_heads\.box\.feature_extractor\.fc6\.weight"),
        ("no block", r"lacks backbone\.body\.layer3\.1\.conv1\.weight.* and \d+ more"),
        ("shape", r"layer3\.1\.conv1\.weight \[16, 32, 1, 1\] instead of \[32, 64, 1, 1\]"),
        ("dtype", r"stem\.bn1\.bias \[8\] int64 instead of \[8\]"),
        ("dimensions", r"fc6\.weight \[5\] has not 2 dimensions"),
        ("unknown", r"not known here.*backbone\.body\.layer2\.1\.se\.weight"),
        ("infinite", r"backbone\.body\.stem\.conv1 has weights that are not finite"),
        ("twice", r"backbone\.body\.stem\.bn1\.bias under a second name|bn1\.bias under a second name"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(
    reference: Reference, tmp_path: Path, change: str, message: str
) -> None:
    path = tmp_path / "model.pth"
    torch.save({"model": broken(reference, change)}, path)
    with pytest.raises(UserError, match=rf"model\.pth.*{message}") as error:
        import_visual_genome(path, tmp_path / "out")
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_files_that_are_no_checkpoints_are_refused(reference: Reference, tmp_path: Path) -> None:
    state = reference.state_dict()
    torch.save({"model": state}, (whole := io.BytesIO()))
    contents = {
        "text.pth": b"version https://git-lfs.github.com/spec/v1\n",
        "empty.pth": b"",
        "half.pth": whole.getvalue()[: len(whole.getvalue()) // 2],
        "list.pth": saved([1, 2]),
        "nothing.pth": saved({}),
        "numbers.pth": saved({"model": {"lr": 0.1}}),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=rf"{name}: (not a|no state dict)") as error:
            import_visual_genome(tmp_path / name, tmp_path / "out")
        assert "\n" not in str(error.value), name
    with pytest.raises(UserError, match=r"absent\.pth: no such checkpoint"):
        import_visual_genome(tmp_path / "absent.pth", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("as_zip", [True, False])
def test_code_in_a_checkpoint_does_not_run(reference: Reference, tmp_path: Path, as_zip: bool) -> None:
    path, trap = tmp_path / "model.pth", tmp_path / "trap"
    content = {"model": reference.state_dict(), "scheduler": Payload(trap)}
    torch.save(content, path, _use_new_zipfile_serialization=as_zip)
    with pytest.raises(UserError, match=r"model\.pth: holds \S*mkdir, which only code"):
        import_visual_genome(path, tmp_path / "out")
    assert not trap.exists() and not (tmp_path / "out").exists()
    (tmp_path / "bare.pth").write_bytes(pickle.dumps(Payload(trap), protocol=2))
    with pytest.raises(UserError, match=r"bare\.pth"):
        import_visual_genome(tmp_path / "bare.pth", tmp_path / "out")
    assert not trap.exists()
    torch.load(path, weights_only=False)
    assert trap.exists()  # it was a trap


def test_a_detector_folder_that_cannot_be_used_is_named(folder: Path, tmp_path: Path) -> None:
    for name, content in (("config.json", b"{"), ("model.safetensors", b"abc")):
        copy = tmp_path / name
        copy.mkdir()
        for file in ("config.json", "model.safetensors"):
            (copy / file).write_bytes((folder / file).read_bytes())
        (copy / name).write_bytes(content)
        with pytest.raises(UserError, match=r"the detector is damaged"):
            load_detector(copy)
        (copy / name).unlink()
        with pytest.raises(UserError, match=rf"{name}: no detector there"):
            load_detector(copy)
    description = json.loads((folder / "config.json").read_text())
    copy = tmp_path / "other"
    copy.mkdir()
    (copy / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    for change, message in (
        ({"architecture": "yolo"}, "unknown detector architecture 'yolo'"),
        ({"format": 7}, "format 7, this version reads 1"),
        ({"config": {**description["config"], "feature_dim": 25}}, "does not fit config.json"),
    ):
        (copy / "config.json").write_text(json.dumps(description | change))
        with pytest.raises(UserError, match=message):
            load_detector(copy)


def test_a_backend_that_cannot_be_had_is_named(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "detectron2", None)
    assert load_detector(folder, backend="torchvision").feature_dim == 24
    with pytest.raises(UserError, match=r"backend 'detectron2' needs .* not installed.*torchvision"):
        load_detector(folder, backend="detectron2")
    with pytest.raises(UserError, match="backend 'caffe2' is unknown"):
        load_detector(folder, backend="caffe2")
    save_detector(Detector(DetectorConfig(32, (8, 8, 8, 8), 8, 8), ["kite"], ["red"]), tmp_path)
    with pytest.raises(UserError, match="torchvision backend alone"):
        load_detector(tmp_path, backend="detectron2")


@pytest.mark.skipif(WITHOUT_DETECTRON2, reason="detectron2 is not installed")
def test_detectron2_gives_the_same_features(folder: Path) -> None:
    ours, theirs = load_detector(folder), load_detector(folder, backend="detectron2")
    assert type(theirs).__module__.endswith("detectron2_backend")
    image = photo(640, 480)
    assert theirs.input_size(640, 480) == ours.input_size(640, 480)
    assert torch.equal(theirs.prepare(image), ours.prepare(image))
    assert (theirs.weights_hash, theirs.preprocessing) == (ours.weights_hash, ours.preprocessing)
    torch.manual_seed(4)
    for height, width in ((800, 960), (800, 992), (64, 96)):  # levels 2, 3 and 2
        images = torch.randn(2, 3, height, width) * 60
        expected = ours.grid_features(images)
        found = theirs.grid_features(images)
        assert expected.std() > 0.3 and found.dtype == torch.float32
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    for found, wanted in zip(theirs.pyramid(images.sigmoid()), ours.pyramid(images.sigmoid()), strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


def copy_of(reference: Reference) -> Reference:
    copy = Reference(reference.config).eval()
    copy.load_state_dict(reference.state_dict())
    return copy.requires_grad_(False)


def saved(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()
