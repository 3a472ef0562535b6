"""What a pretrained CLIP is shown: open_clip's own transform for its weights, of pictures and, differentiably, of pixels."""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from diptych.eval.errors import UserError

_KEYS = ("mean", "std", "interpolation", "resize_mode", "fill_color")


@dataclass(frozen=True)
class Preprocessing:
    """How open_clip makes a picture the input of a vision tower of `height` x `width` pixels.

    resize_mode: "shortest" (the shorter side fits, then the middle), "longest" (all of it fits, `fill_color` of 0..255
    around it) or "squash" (stretched). interpolation: "bicubic" or "bilinear", antialiased. mean, std: of pixels in 0..1.
    """

    height: int
    width: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str
    resize_mode: str
    fill_color: int = 0

    @property
    def rule(self) -> str:
        """What records say of it."""
        how = {
            "shortest": "shorter side fitted, the middle cut out",
            "longest": "longer side fitted, the rest filled",
            "squash": "stretched",
        }[self.resize_mode]
        return f"open_clip's, {self.height} x {self.width}, {self._mode}, antialiased, {how}"

    def fitted(self, image: Image.Image) -> Tensor:
        """The RGB picture as uint8 [3, height, width], before mean and std: bit by bit open_clip's own pixels."""
        from open_clip.transform import image_transform

        transform = image_transform(
            (self.height, self.width),
            is_train=False,
            mean=(0.0, 0.0, 0.0),
            std=(1.0, 1.0, 1.0),
            resize_mode=self.resize_mode,
            interpolation=self.interpolation,
            fill_color=self.fill_color,
        )
        return (transform(image) * 255).round().to(torch.uint8)

    def fitted_pixels(self, images: Tensor) -> Tensor:
        """Pixels float [n, 3, H, W] in 0..1 to float32 [n, 3, height, width] in 0..1, differentiable.

        The same geometry as `fitted`, whose Pillow rounds to 1/255 after each of its two passes and this does not: 2.5/255
        at most. Where a picture shrinks more in height than in width, Pillow from 13 on does the columns first and bicubic
        edges between black and white differ by more.
        """
        from open_clip.transform import center_crop_or_pad

        images, (height, width) = images.float(), self._resized(*images.shape[-2:])
        # bicubic overshoots at edges and Pillow's pixels cannot, neither after the rows nor after the columns
        for size in ((images.shape[-2], width), (height, width)):
            if images.shape[-2:] != size:
                images = functional.interpolate(images, size, mode=self._mode, antialias=True).clamp(0, 1)
        return center_crop_or_pad(images, [self.height, self.width], fill=self.fill_color / 255)  # type: ignore[arg-type]

    @property
    def _mode(self) -> str:
        # open_clip's one exception: where the shorter side is to fit an oblong
        oblong = self.resize_mode == "shortest" and self.height != self.width
        return "bilinear" if self.interpolation == "bilinear" and not oblong else "bicubic"

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        """Height and width before what is too much is cut and what is missing is filled."""
        if self.resize_mode == "squash":
            return self.height, self.width
        if self.resize_mode == "shortest" and self.height == self.width:
            # torchvision's Resize rounds down
            shorter = min(height, width)
            return int(self.height * height / shorter), int(self.width * width / shorter)
        ratios = height / self.height, width / self.width
        ratio = min(ratios) if self.resize_mode == "shortest" else max(ratios)
        return round(height / ratio), round(width / ratio)


def architecture_of(model_name: str) -> str:
    """open_clip's architecture in "ARCHITECTURE" or "ARCHITECTURE@TAG"; UserError where open_clip has none of that name."""
    import open_clip

    architecture = model_name.partition("@")[0]
    if architecture not in open_clip.list_models():
        raise UserError(f"open_clip has no model '{architecture}'; `open_clip.list_models()` names them all")
    return architecture


def preprocessing_of(model_name: str, image_size: int | tuple[int, int]) -> Preprocessing:
    """What belongs to the weights of "ARCHITECTURE@TAG", or to all published ones of "ARCHITECTURE".

    open_clip knows it by the tag of the weights and forgets it for a file, which it treats as OpenAI's. Here a file is
    treated as the architecture's published weights. Of 144 architectures three have weights of two kinds: without a tag they
    are treated as OpenAI's with a warning that says so. Architectures without published weights are treated as OpenAI's.

    image_size: pixels per side, or height and width. Raises UserError for an unknown architecture or tag.
    """
    from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model
    from open_clip.transform import PreprocessCfg

    architecture, _, tag = model_name.partition("@")
    tags = list_pretrained_tags_by_model(architecture_of(model_name))
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    default = _of_config(asdict(PreprocessCfg()), height, width)
    # what a tag leaves open is the default
    known = {
        each: _of_config(asdict(default) | _given(get_pretrained_cfg(architecture, each)), height, width)
        for each in tags
    }
    if tag:
        if tag not in known:
            raise UserError(
                f"open_clip has no weights '{tag}' of {architecture}; it has {', '.join(tags) or 'none'}"
            )
        return known[tag]
    if len(set(known.values())) == 1:
        return next(iter(known.values()))
    others = [each for each, found in known.items() if found != default]
    if others:
        warnings.warn(
            f"{architecture}: pictures are prepared as for OpenAI's weights; if the file is {' or '.join(others)}, say so: "
            f"{architecture}@{others[0]}",
            stacklevel=2,
        )
    return default


def _given(config: dict[str, Any]) -> dict[str, Any]:
    return {key: config[key] for key in _KEYS if config.get(key) is not None}


def _of_config(config: dict[str, Any], height: int, width: int) -> Preprocessing:
    kept = {key: config[key] for key in _KEYS}
    for key in ("mean", "std"):  # lists in some configs
        kept[key] = tuple(kept[key])
    return Preprocessing(height, width, **kept)
