"""Drawing Toybox scenes: plain shapes, antialiased by drawing four times larger and averaging."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

from diptych.features.datasets.toybox.world import COLORS, Scene

_SUPERSAMPLING = 4
_INK = (52, 44, 44)

# Sky at the top, sky at the horizon, ground at the horizon, ground at the bottom.
_SCENERY: dict[str, tuple[tuple[int, int, int], ...]] = {
    "desert": ((188, 222, 240), (236, 232, 214), (222, 190, 140), (198, 158, 104)),
    "field": ((168, 208, 240), (214, 230, 240), (150, 190, 118), (112, 156, 88)),
    "night": ((18, 20, 48), (44, 44, 84), (52, 58, 72), (32, 36, 48)),
    "sea": ((150, 200, 236), (206, 228, 240), (96, 164, 184), (52, 118, 150)),
    "snow": ((176, 188, 204), (208, 214, 224), (226, 232, 238), (204, 214, 226)),
}

Point = tuple[float, float]


def draw(scene: Scene, size: int) -> Image.Image:
    """Paint a scene as an RGB picture of `size` x `size` pixels.

    The same scene and size give the same pixels. Things are drawn from the smallest to the largest.
    """
    picture = Image.fromarray(_background(scene, size))
    scale = size * _SUPERSAMPLING / 64
    layer = Image.new("RGBA", (size * _SUPERSAMPLING,) * 2, (0, 0, 0, 0))
    pen = ImageDraw.Draw(layer)
    for thing in (*reversed(scene.others), *scene.main):
        x0, y0, x1, y1 = (value * scale for value in thing.box)
        red, green, blue = COLORS[thing.color]
        outline = (int(red * 0.55), int(green * 0.55), int(blue * 0.55))
        _SHAPES[thing.label](_Brush(pen, x0, y0, x1 - x0, y1 - y0, (red, green, blue), outline, scale))
    # Averaging premultiplied colours keeps dark fringes off the outlines.
    layer = layer.convert("RGBa").reduce(_SUPERSAMPLING).convert("RGBA")
    picture.paste(layer, (0, 0), layer)
    return picture


def _background(scene: Scene, size: int) -> np.ndarray:
    top, far_sky, far_ground, bottom = (
        np.array(color, dtype=np.float32) for color in _SCENERY[scene.scenery]
    )
    y = (np.arange(size, dtype=np.float32) + 0.5) * 64 / size
    sky = np.clip(y / scene.horizon, 0, 1)[:, None]
    ground = np.clip((y - scene.horizon) / (64 - scene.horizon), 0, 1)[:, None]
    edge = np.clip((y - scene.horizon) * size / 64 + 0.5, 0, 1)[:, None]
    column = (top + (far_sky - top) * sky) * (1 - edge) + (far_ground + (bottom - far_ground) * ground) * edge
    column = np.clip(column * scene.light, 0, 255).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(column[:, None, :], (size, size, 3)))


class _Brush:
    """A pen that works in fractions (0..1) of an object's box."""

    def __init__(self, pen, x, y, width, height, fill, outline, scale) -> None:
        self.pen, self.x, self.y, self.width, self.height = pen, x, y, width, height
        self.fill, self.outline, self.line = (*fill, 255), (*outline, 255), max(1, round(0.9 * scale))

    def at(self, point: Point) -> Point:
        return self.x + point[0] * self.width, self.y + point[1] * self.height

    def polygon(self, *points: Point, fill: tuple[int, ...] | None = None) -> None:
        corners = [self.at(point) for point in points]
        self.pen.polygon(corners, fill=fill or self.fill)
        self.pen.line([*corners, corners[0]], fill=self.outline, width=self.line, joint="curve")

    def ellipse(
        self, x0: float, y0: float, x1: float, y1: float, fill: tuple[int, ...] | None = None
    ) -> None:
        box = [*self.at((x0, y0)), *self.at((x1, y1))]
        self.pen.ellipse(box, fill=fill or self.fill, outline=self.outline, width=self.line)

    def stroke(self, *points: Point, width: float = 1.0) -> None:
        line = [self.at(point) for point in points]
        self.pen.line(line, fill=(*_INK, 255), width=max(1, round(self.line * width)), joint="curve")


def _ball(brush: _Brush) -> None:
    brush.ellipse(0, 0, 1, 1)
    brush.stroke((0.02, 0.5), (0.98, 0.5), width=1.6)


def _boat(brush: _Brush) -> None:
    brush.stroke((0.5, 0.02), (0.5, 0.7), width=1.5)
    brush.polygon((0.56, 0.04), (0.96, 0.58), (0.56, 0.58))
    brush.polygon((0.02, 0.66), (0.98, 0.66), (0.78, 0.99), (0.22, 0.99))


def _car(brush: _Brush) -> None:
    brush.polygon((0.24, 0.22), (0.68, 0.22), (0.84, 0.5), (0.12, 0.5))
    brush.polygon((0, 0.48), (1, 0.48), (1, 0.8), (0, 0.8))
    brush.ellipse(0.1, 0.62, 0.42, 0.96, fill=(*_INK, 255))
    brush.ellipse(0.58, 0.62, 0.9, 0.96, fill=(*_INK, 255))


def _fish(brush: _Brush) -> None:
    brush.polygon((0.62, 0.5), (1, 0.14), (1, 0.86))
    brush.ellipse(0, 0.16, 0.76, 0.84)
    brush.ellipse(0.14, 0.36, 0.28, 0.5, fill=(*_INK, 255))


def _house(brush: _Brush) -> None:
    brush.polygon((0.1, 0.42), (0.9, 0.42), (0.9, 0.99), (0.1, 0.99))
    brush.polygon((0, 0.44), (0.5, 0.01), (1, 0.44))
    brush.polygon((0.4, 0.64), (0.62, 0.64), (0.62, 0.99), (0.4, 0.99), fill=(*_INK, 255))


def _kite(brush: _Brush) -> None:
    brush.stroke((0.5, 0.76), (0.62, 0.86), (0.42, 0.92), (0.54, 1.0), width=1.5)
    brush.polygon((0.5, 0), (0.98, 0.36), (0.5, 0.84), (0.02, 0.36))
    brush.stroke((0.5, 0.04), (0.5, 0.8))
    brush.stroke((0.06, 0.36), (0.94, 0.36))


def _star(brush: _Brush) -> None:
    angles = np.arange(10) * np.pi / 5 - np.pi / 2
    radii = np.where(np.arange(10) % 2 == 0, 0.52, 0.23)
    brush.polygon(
        *(
            (float(0.5 + r * np.cos(a)), float(0.53 + r * np.sin(a)))
            for a, r in zip(angles, radii, strict=True)
        )
    )


def _tree(brush: _Brush) -> None:
    brush.polygon((0.4, 0.56), (0.6, 0.56), (0.6, 1), (0.4, 1), fill=(112, 74, 44, 255))
    brush.ellipse(0.04, 0.24, 0.54, 0.7)
    brush.ellipse(0.46, 0.24, 0.96, 0.7)
    brush.ellipse(0.2, 0, 0.8, 0.58)


_SHAPES: dict[str, Callable[[_Brush], None]] = {
    "ball": _ball,
    "boat": _boat,
    "car": _car,
    "fish": _fish,
    "house": _house,
    "kite": _kite,
    "star": _star,
    "tree": _tree,
}
