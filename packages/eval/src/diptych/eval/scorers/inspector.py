"""The inspector: a plain CNN that reads class and colour of the two largest objects of a picture.

It is trained from scratch on real pictures of the train split and shares nothing with any other
network, so it can say whether a painted picture shows what its caption asks for.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from diptych.eval.errors import UserError
from diptych.eval.precision import autocast_context
from diptych.eval.scorers.stored import fill, read_description
from diptych.eval.scorers.training import (
    Checkpoints,
    ImageReader,
    PictureTrainingConfig,
    batch_indices,
    spoilt,
    train,
)

FORMAT = "diptych-inspector/1"
ROLES = ("main", "second")
PARTS = ("main_class", "main_color", "second_class", "second_color")
_ABSENT = -1

Objects = Sequence[Mapping[str, Any]]
"""Objects of a picture as in the manifest: mappings with "label" and "attributes"."""


@dataclass(frozen=True)
class InspectorConfig:
    """Architecture: `channels[i]` of the stage that halves the picture the (i+1)th time.

    image_size: pixels per side that the network sees; other sizes are resized.
    """

    image_size: int
    channels: tuple[int, ...]


class _Block(nn.Module):
    """Two 3x3 convolutions beside a 1x1 shortcut, at half the resolution."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Conv2d(inputs, outputs, 1)

    def forward(self, maps: Tensor) -> Tensor:
        inner = functional.relu(self.first_norm(self.first(maps)))
        return functional.relu(
            self.second_norm(self.second(inner)) + self.shortcut(functional.avg_pool2d(maps, 2))
        )


class Inspector(nn.Module):
    """Answers which class and colour the main and the second object have."""

    def __init__(self, config: InspectorConfig, classes: Sequence[str], colors: Sequence[str]) -> None:
        super().__init__()
        self.config, self.classes, self.colors = config, tuple(classes), tuple(colors)
        first, *others = config.channels
        self.stem = nn.Sequential(
            nn.Conv2d(3, first, 5, stride=2, padding=2, bias=False), nn.BatchNorm2d(first), nn.ReLU()
        )
        self.blocks = nn.Sequential(
            *(_Block(inputs, outputs) for inputs, outputs in zip(config.channels, others, strict=False))
        )
        # Where to look for the main and for the second object, and what is seen there. The answers are
        # shared by both, so that every object of a picture teaches what its class looks like.
        self.look = nn.Conv2d(config.channels[-1], len(ROLES), 1)
        self.class_head = nn.Linear(config.channels[-1], len(self.classes))
        self.color_head = nn.Linear(config.channels[-1], len(self.colors))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Pictures float [n, 3, H, W] in 0..1 to logits per part: [n, classes] or [n, colors]."""
        size = self.config.image_size
        if images.shape[-2:] != (size, size):
            images = functional.interpolate(images, (size, size), mode="bilinear", antialias=True)
        maps = self.blocks(self.stem((images - 0.5).contiguous(memory_format=torch.channels_last) * 4))
        cells = maps.flatten(2)  # [n, channels, cells]
        weights = self.look(maps).flatten(2).float().softmax(-1)  # [n, roles, cells]
        seen = torch.einsum("ncs,nrs->rnc", cells, weights.to(cells.dtype))
        logits: dict[str, Tensor] = {}
        for role, feature in zip(ROLES, seen, strict=True):
            logits[f"{role}_class"] = self.class_head(feature).float()
            logits[f"{role}_color"] = self.color_head(feature).float()
        return logits

    @torch.no_grad()
    def answers(self, images: Tensor) -> Tensor:
        """Numbers of classes and colours int64 [n, 4], in the order of PARTS, for pictures uint8 or float 0..1."""
        self.eval()
        images = images.to(self.look.weight.device)
        logits = self(images if images.is_floating_point() else images.float() / 255)
        return torch.stack([logits[part].argmax(1) for part in PARTS], 1).cpu()

    def compare(self, answers: Tensor, objects: Sequence[Objects]) -> dict[str, np.ndarray]:
        """What is right in answers [n, 4] for pictures that should show `objects`.

        Returns bool arrays [n] for PARTS, "main_object" and "second_object" (class and colour right)
        and "has_second"; entries of second objects mean nothing where that is false.
        """
        truth = object_targets(objects, self.classes, self.colors)
        right = {part: (answers[:, number] == truth[:, number]).numpy() for number, part in enumerate(PARTS)}
        right["main_object"] = right["main_class"] & right["main_color"]
        right["second_object"] = right["second_class"] & right["second_color"]
        right["has_second"] = truth[:, 2].numpy() != _ABSENT
        return right

    def inspect(
        self, images: Tensor, objects: Sequence[Objects], batch_size: int = 256
    ) -> dict[str, np.ndarray]:
        """:meth:`compare` what pictures (uint8 or float 0..1, [n, 3, H, W]) show with what they should show."""
        answers = [
            self.answers(images[start : start + batch_size]) for start in range(0, len(images), batch_size)
        ]
        return self.compare(torch.cat(answers), objects)

    def accuracy(self, images: Tensor, objects: Sequence[Objects]) -> dict[str, float]:
        """Shares (0..1) of pictures that are right: "main_object", "second_object" and PARTS.

        The second object counts where there is one; NaN when no picture has one.
        """
        return shares_right(self.inspect(images, objects))


def shares_right(right: Mapping[str, np.ndarray]) -> dict[str, float]:
    """What :meth:`Inspector.inspect` found as shares, as :meth:`Inspector.accuracy` gives them."""
    present = right["has_second"]
    return {
        name: float((values[present] if name.startswith("second") else values).mean())
        if present.any() or name.startswith("main")
        else float("nan")
        for name, values in right.items()
        if name != "has_second"
    }


def main_and_second(objects: Objects) -> list[tuple[str, str]]:
    """(class, colour) of the main object and, where there is one, of the second.

    Objects without attributes are scenery. The second object is the first one that differs from the
    main object: "two red kites" are one main object twice.
    """
    things = [(thing["label"], thing["attributes"][0]) for thing in objects if len(thing["attributes"])]
    return [*things[:1], *[thing for thing in things[1:] if thing != things[0]][:1]]


def object_targets(objects: Sequence[Objects], classes: Sequence[str], colors: Sequence[str]) -> Tensor:
    """Class and colour numbers int64 [n, 4] in the order of PARTS, -1 where there is no second object.

    Raises UserError for a picture without main object; an unknown class or colour is -1 too, never right.
    """
    class_number = {name: number for number, name in enumerate(classes)}
    color_number = {name: number for number, name in enumerate(colors)}
    rows = []
    for index, several in enumerate(objects):
        things = main_and_second(several)
        if not things:
            raise UserError(
                f"picture {index} has no object with an attribute; the inspector needs class and colour"
            )
        row = [
            value for label, color in things for value in (class_number.get(label), color_number.get(color))
        ]
        rows.append([_ABSENT if value is None else value for value in (*row, None, None)[:4]])
    return torch.tensor(rows, dtype=torch.int64).reshape(-1, 4)


def build_inspector(config: InspectorConfig, objects: Sequence[Objects], seed: int) -> Inspector:
    """An untrained inspector whose vocabularies are the classes and colours of `objects`."""
    things = [thing for several in objects for thing in main_and_second(several)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Inspector(
            config, sorted({label for label, _ in things}), sorted({color for _, color in things})
        )


def train_inspector(
    config: PictureTrainingConfig,
    inspector: Inspector,
    images: ImageReader,
    objects: Sequence[Objects],
    checkpoints: Checkpoints | None = None,
    device: torch.device | str = "cpu",
) -> list[dict[str, float]]:
    """Train in place on real pictures; returns history rows (step, loss, main_object, ...)."""
    targets = object_targets(objects, inspector.classes, inspector.colors).to(device)
    inspector.to(device, memory_format=torch.channels_last)

    def loss_at(step: int, generator: np.random.Generator) -> dict[str, Tensor]:
        chosen = batch_indices(len(objects), config.batch_size, config.seed, step)
        pictures = spoilt(images(chosen).to(device).float() / 255, config, generator)
        with autocast_context(device, config.precision):
            logits = inspector(pictures)
        wanted = targets[torch.from_numpy(chosen).to(device)]
        losses = [
            functional.cross_entropy(logits[part], wanted[:, number], ignore_index=_ABSENT, reduction="sum")
            / (wanted[:, number] != _ABSENT).sum().clamp(min=1)
            for number, part in enumerate(PARTS)
        ]
        with torch.no_grad():
            both = [logits[part].argmax(1) == wanted[:, number] for number, part in enumerate(PARTS[:2])]
        return {"loss": torch.stack(losses).sum(), "main_object": (both[0] & both[1]).float().mean()}

    ends = (inspector.stem, inspector.look, inspector.class_head, inspector.color_head)
    return train("inspector", inspector, config, loss_at, checkpoints, ends)


def save_inspector(inspector: Inspector, folder: Path | str) -> None:
    """Write config.json (architecture, classes, colours) and model.safetensors into `folder`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: value.contiguous() for name, value in inspector.state_dict().items()},
        folder / "model.safetensors",
    )
    content = {
        "format": FORMAT,
        "architecture": dataclasses.asdict(inspector.config),
        "classes": inspector.classes,
        "colors": inspector.colors,
    }
    (folder / "config.json").write_text(json.dumps(content, indent=2) + "\n")


def load_inspector(folder: Path | str, device: torch.device | str = "cpu") -> Inspector:
    """Read what `save_inspector` wrote: in eval mode, with frozen weights. UserError where that fails."""
    folder = Path(folder)
    content = read_description(folder, FORMAT, ("model.safetensors",))
    try:
        architecture: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in content["architecture"].items()
        }
        inspector = Inspector(InspectorConfig(**architecture), content["classes"], content["colors"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{folder / 'config.json'}: no architecture of an inspector ({error!r})") from None
    fill(inspector, folder)
    return inspector.to(device).eval().requires_grad_(False)
