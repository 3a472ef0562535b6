"""The Visual Genome detector from its checkpoint, a `.pth` of vqa-maskrcnn-benchmark.

Every key of the checkpoint is used or listed with the reason why it is not; an unknown key is an error.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from diptych.features.detector.visual_genome import (
    VisualGenomeConfig,
    VisualGenomeDetector,
    save_visual_genome,
)
from diptych.features.errors import UserError
from diptych.features.files import sha256_of
from diptych.features.weight_files import UnreadableWeights, bare_name, read_state_dict

_BODY, _FPN, _BOX = "backbone.body.", "backbone.fpn.", "roi_heads.box."
_FC6 = f"{_BOX}feature_extractor.fc6"
_BATCH_NORM = ("weight", "bias", "running_mean", "running_var")

# Checkpoints that were converted from Caffe2 name a layer without the modules around it.
_FULL_NAMES = (
    (re.compile(r"(?=(conv1|bn1)\.)"), f"{_BODY}stem."),
    (re.compile(r"(?=layer[1-4]\.)"), _BODY),
    (re.compile(r"(?=fpn_(inner|layer)[1-4]\.)"), _FPN),
    (re.compile(r"(?=fc[67]\.)"), f"{_BOX}feature_extractor."),
    (re.compile(r"(?=(cls_score|bbox_pred|cls_embed|attr_linear[12])\.)"), f"{_BOX}predictor."),
)

_UNUSED = (
    (re.compile(r"rpn\."), "region proposals: the grid's boxes are fixed"),
    (re.compile(rf"{re.escape(_BOX)}feature_extractor\.fc7\."), "fc7: the feature is fc6, before it"),
    (re.compile(rf"{re.escape(_BOX)}predictor\.(cls_score|bbox_pred)\."), "classes and boxes: not predicted"),
    (re.compile(rf"{re.escape(_BOX)}predictor\.(cls_embed|attr_linear[12])\."), "attributes: not predicted"),
    (re.compile(r".*\.num_batches_tracked$"), "a counter of batch normalisation in training"),
)


@dataclass(frozen=True)
class ImportReport:
    """What became of a checkpoint.

    parameters: of the detector that was written. feature_dim: D. used: names in the checkpoint that it was
    filled from. unused: names that were left out, by reason.
    """

    parameters: int
    feature_dim: int
    used: list[str]
    unused: dict[str, list[str]]

    def summary(self) -> str:
        """A few lines to print."""
        lines = [f"{len(self.used)} tensors of the checkpoint used; left out:"]
        lines += [f"  {reason}: {_listed(names)}" for reason, names in self.unused.items()]
        return "\n".join(lines if self.unused else lines[:1])


def import_visual_genome(checkpoint: Path, out: Path) -> ImportReport:
    """Write the detector folder `out` from a checkpoint of vqa-maskrcnn-benchmark.

    checkpoint: a file with the state dict, or a dict with it as "model"
    (`diptych.features.weight_files.read_state_dict`); no code in it is run. Sizes are those of its tensors;
    batch normalisation is folded into the convolutions.
    Raises UserError when the file is missing, no checkpoint or holds more than tensors and plain values, and
    when a key is unknown, missing, of the wrong shape or not finite. Nothing is written then.
    """
    tensors, unused = _read(checkpoint)
    names = {_full_name(name): name for name in tensors}  # full name -> name in the file
    if len(names) < len(tensors):
        twice = sorted(set(tensors) - set(names.values()))
        raise UserError(
            f"{checkpoint}: has {_listed(twice)} under a second name too; save it with one of them"
        )
    found = {full: tensors[name] for full, name in names.items()}
    config = _config(found, checkpoint)
    layers = list(_layers(config))
    expected = _expected(config, layers, found)

    unknown = []
    for full in sorted(found.keys() - expected.keys()):
        reason = next((reason for pattern, reason in _UNUSED if pattern.match(full)), None)
        if reason is None:
            unknown.append(names[full])
        else:
            unused.setdefault(reason, []).append(names[full])
    wrong = [
        f"{names[full]} {_spell(found[full])} instead of {_spell(torch.empty(shape, device='meta'))}"
        for full, shape in expected.items()
        if full in found and (found[full].shape != shape or not found[full].is_floating_point())
    ]
    problems = {
        "lacks": [full for full in expected if full not in found],
        "has tensors that do not fit the others:": wrong,
        "has keys that are not known here, neither as used nor as left out:": unknown,
    }
    for what, which in problems.items():
        if which:
            raise UserError(
                f"{checkpoint}: {what} {_listed(which, most=8)}; wanted is the whole state dict of "
                "vqa-maskrcnn-benchmark's Faster R-CNN with a feature pyramid, and nothing else"
            )

    weights: dict[str, Tensor] = {}
    for layer in layers:
        weight, bias = (part.float() for part in _affine(layer, found))
        if not (weight.isfinite().all() and bias.isfinite().all()):
            raise UserError(
                f"{checkpoint}: {layer.theirs} has weights that are not finite; the file is damaged"
            )
        weights[f"{layer.ours}.weight"], weights[f"{layer.ours}.bias"] = weight, bias
    origin = {"checkpoint": checkpoint.name, "sha256": sha256_of(checkpoint), "unused": unused}
    save_visual_genome(out, config, weights, origin)
    used = [names[full] for full in expected]
    return ImportReport(sum(w.numel() for w in weights.values()), config.feature_dim, used, unused)


def _read(checkpoint: Path) -> tuple[dict[str, Tensor], dict[str, list[str]]]:
    """The state dict in a file, and what lies beside it there, by reason for leaving it."""
    try:
        tensors, beside = read_state_dict(checkpoint)
    except FileNotFoundError:
        raise UserError(f"{checkpoint}: no such checkpoint; put the detector's .pth there") from None
    except UnreadableWeights as error:
        raise UserError(f"{checkpoint}: {error}") from None
    return tensors, {"state of the training beside the model": beside} if beside else {}


def _full_name(name: str) -> str:
    """A key's name in the whole model, whether it was saved in parallel training or converted from Caffe2."""
    name = bare_name(name)
    return next((prefix + name for pattern, prefix in _FULL_NAMES if pattern.match(name)), name)


def _config(found: dict[str, Tensor], checkpoint: Path) -> VisualGenomeConfig:
    """The sizes of the network, from a few of its tensors; the rest is checked against them."""

    def shape(name: str, dimensions: int) -> torch.Size:
        if name not in found:
            raise UserError(
                f"{checkpoint}: lacks {name}: not a checkpoint of vqa-maskrcnn-benchmark's Faster R-CNN with a "
                "feature pyramid"
            )
        if found[name].ndim != dimensions or not found[name].numel():
            raise UserError(f"{checkpoint}: {name} {_spell(found[name])} has not {dimensions} dimensions")
        return found[name].shape

    blocks = [0, 0, 0, 0]
    for name in found:
        if match := re.match(rf"{re.escape(_BODY)}layer([1-4])\.(\d+)\.", name):
            stage = int(match[1]) - 1
            blocks[stage] = max(blocks[stage], int(match[2]) + 1)
    width, width_per_group, *_ = shape(f"{_BODY}layer1.0.conv2.weight", 4)
    pyramid_channels, stage_channels, *_ = shape(f"{_FPN}fpn_inner1.weight", 4)
    feature_dim, pooled = shape(f"{_FC6}.weight", 2)
    return VisualGenomeConfig(
        stem_channels=shape(f"{_BODY}stem.conv1.weight", 4)[0],
        blocks=(max(1, blocks[0]), max(1, blocks[1]), max(1, blocks[2]), max(1, blocks[3])),
        groups=max(1, width // width_per_group),
        width_per_group=width_per_group,
        stage_channels=stage_channels,
        pyramid_channels=pyramid_channels,
        bins=max(1, math.isqrt(pooled // pyramid_channels)),
        feature_dim=feature_dim,
    )


@dataclass(frozen=True)
class _Layer:
    """A layer's name here and in the checkpoint, and there that of its batch normalisation."""

    ours: str
    theirs: str
    norm: str | None = None


def _layers(config: VisualGenomeConfig) -> Iterator[_Layer]:
    yield _Layer("stem", f"{_BODY}stem.conv1", f"{_BODY}stem.bn1")
    for stage, (blocks, inputs, _, outputs) in enumerate(config.stage_sizes()):
        for block in range(blocks):
            ours, theirs = f"stages.{stage}.{block}", f"{_BODY}layer{stage + 1}.{block}"
            for number in (1, 2, 3):
                yield _Layer(f"{ours}.conv{number}", f"{theirs}.conv{number}", f"{theirs}.bn{number}")
            if block == 0 and inputs != outputs:
                yield _Layer(f"{ours}.shortcut", f"{theirs}.downsample.0", f"{theirs}.downsample.1")
    for level in range(len(config.blocks)):
        yield _Layer(f"laterals.{level}", f"{_FPN}fpn_inner{level + 1}")
        yield _Layer(f"outputs.{level}", f"{_FPN}fpn_layer{level + 1}")
    yield _Layer("fc6", _FC6)


def _expected(
    config: VisualGenomeConfig, layers: list[_Layer], found: dict[str, Tensor]
) -> dict[str, torch.Size]:
    """Names and shapes of the checkpoint's tensors that the detector needs."""
    # Caffe2 knows a trained network's batch normalisation as scale and shift, without statistics.
    converted = not any(name.endswith((".running_mean", ".running_var")) for name in found)
    parts = _BATCH_NORM[:2] if converted else _BATCH_NORM
    with torch.device("meta"):
        ours = VisualGenomeDetector(config).state_dict()
    expected = {}
    for layer in layers:
        weight, bias = ours[f"{layer.ours}.weight"].shape, ours[f"{layer.ours}.bias"].shape
        expected[f"{layer.theirs}.weight"] = weight
        if layer.norm is None:
            expected[f"{layer.theirs}.bias"] = bias
        else:
            expected.update({f"{layer.norm}.{part}": bias for part in parts})
    return expected


def _affine(layer: _Layer, found: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """A layer's weight and bias, float64, with its batch normalisation folded in."""
    weight = found[f"{layer.theirs}.weight"].double()
    if layer.norm is None:
        return weight, found[f"{layer.theirs}.bias"].double()
    scale, bias = (found[f"{layer.norm}.{part}"].double() for part in ("weight", "bias"))
    if f"{layer.norm}.running_mean" in found:
        # The original adds no epsilon to the variance.
        scale = scale * found[f"{layer.norm}.running_var"].double().rsqrt()
        bias = bias - found[f"{layer.norm}.running_mean"].double() * scale
    return weight * scale.view(-1, 1, 1, 1), bias


def _spell(tensor: Tensor) -> str:
    kind = "" if tensor.is_floating_point() else f" {str(tensor.dtype).removeprefix('torch.')}"
    return f"{list(tensor.shape)}{kind}"


def _listed(names: list[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
