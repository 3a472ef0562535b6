"""X-LXMERT's image generator: its checkpoint ``G_60.pth``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from diptych.model.errors import UserError
from diptych.model.importers.checkpoint import (
    ImportReport,
    check_finite,
    check_fit,
    find_tensors,
)
from diptych.model.networks.image_generator import ImageGenerator, ImageGeneratorConfig

# What ours are called there. The spectral norm is that of torch.nn.utils.spectral_norm.
RELEASED_NAMES = (
    (r"^bottleneck\.", "bottleneck_emb.0."),
    (r"^stem\.", "learned_init_conv.0."),
    (r"^modulation\.", "style_init_conv.0."),
    (r"^blocks\.", "resblocks."),
    (r"^to_rgb\.(\d+)\.", r"to_RGB_blocks.\1.conv."),
    (r"\.norm(\d)\.", r".cbn\1."),
    (r"\.shared\.", ".shared.0."),
    (r"\.scale\.", ".gamma."),
    (r"\.shift\.", ".beta."),
    (r"\.noise(\d)\.amount$", r".noise\1.weight"),
    (r"\.convolution(\d)\.", r".conv\1."),
    (r"\.shortcut\.", ".res_branch.1."),
    (r"\.parametrizations\.weight\.original$", ".weight_orig"),
    (r"\.parametrizations\.weight\.0\._([uv])$", r".weight_\1"),
)
# Ours alone: the released network reads features as they are, which is what these buffers start with.
OURS_ONLY = ("feature_mean", "feature_scale")
# Settings that no tensor shows, as the released network has them.
RELEASED_SETTINGS = {"modulation_resolution": "block", "upsampling": "bilinear", "grid_blocks": 0}


@dataclass(frozen=True)
class ImportedImageGenerator:
    """An image generator in eval mode, float32, and the report."""

    generator: ImageGenerator
    report: ImportReport


def released_name(name: str) -> str:
    """The name in ``G_60.pth`` of a tensor of ours."""
    for pattern, replacement in RELEASED_NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def import_image_generator(path: Path, config: ImageGeneratorConfig) -> ImportedImageGenerator:
    """Read X-LXMERT's ``G_60.pth``: a dict of tensors (https://github.com/allenai/x-lxmert).

    Every tensor of the file is used, the vectors of the spectral norms included: in eval mode the generator paints what
    the released one paints in its eval mode without noise.

    Args:
        config: its size, ``named_config("base")``.

    Raises:
        UserError: the file is unreadable or does not fit ``config``, or ``config`` is not of the released kind.
    """
    for key, value in RELEASED_SETTINGS.items():
        if getattr(config, key) != value:
            raise UserError(
                f"{path}: X-LXMERT's image generator has {key} {value!r}, the size you gave has "
                f"{getattr(config, key)!r}; give base, or a config of its kind"
            )
    content = find_tensors(path)  # which says where diptych-features is missing
    from diptych.features.weight_files import bare_name

    tensors = {bare_name(name): (name, tensor) for name, tensor in content.items()}
    generator = ImageGenerator(config)
    shapes = {name: tensor.shape for name, tensor in generator.state_dict().items()}
    weights: dict[str, Tensor] = {}
    missing, misshapen = [], []
    for ours in shapes.keys() - OURS_ONLY:
        theirs = released_name(ours)
        if theirs not in tensors:
            missing.append(theirs)
            continue
        original, tensor = tensors[theirs]
        weights[ours] = tensor.float()
        if tensor.shape != shapes[ours]:
            misshapen.append(f"{original} {list(tensor.shape)}, not {list(shapes[ours])}")
    known = {released_name(name) for name in shapes}
    unknown = [original for name, (original, _) in tensors.items() if name not in known]
    check_fit(
        f"{path} does not fit an image generator of image_size {config.image_size}, D = {config.feature_dim}, "
        f"{list(config.block_channels)} channels",
        sorted(missing),
        sorted(misshapen),
        unknown,
    )
    check_finite(path, dict(tensors[released_name(name)] for name in weights))
    generator.load_state_dict(weights, strict=False)
    report = ImportReport(used=sorted(content), unused={}, initialised=[])
    return ImportedImageGenerator(generator.eval(), report)
