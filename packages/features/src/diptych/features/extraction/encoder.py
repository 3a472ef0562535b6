"""What extraction needs of a network that turns images into rows of a store: a detector, or an image tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from diptych.features.errors import UserError
from diptych.features.grid import GRID
from diptych.features.store import Values, grid_values, region_values

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from diptych.features.detector import GridDetector
    from diptych.features.detector.network import Detector


class ImageEncoder(Protocol):
    """A frozen network whose rows a store keeps."""

    @property
    def values(self) -> Values:
        """What it makes of an image."""

    @property
    def meta(self) -> dict[str, Any]:
        """Everything that determines a row, JSON-able; as `diptych.features.store.values_of` reads it. `precision` is that of the
        run where it is not here."""

    def input_size(self, width: int, height: int) -> tuple[int, int]:
        """(height, width) in pixels of the network's input for an upright image of `width` x `height`. Images of one input size
        go through the network together."""

    def prepare(self, image: Image.Image) -> Tensor:
        """An upright RGB image -> the network's input on the CPU. Safe to call from several threads."""

    def encode(self, images: Tensor) -> Tensor:
        """Prepared images, stacked and on the encoder's device -> [n, *shape] of numbers that the store's dtype can hold."""


# Loads an encoder onto a device; it travels to workers, so it is a function of a module or a dataclass that can be called.
EncoderLoader = Callable[[str], ImageEncoder]


@dataclass(frozen=True)
class DetectorLoader:
    """A detector's folder, and the backend that runs it."""

    folder: str
    backend: str

    def __call__(self, device: str) -> ImageEncoder:
        """Load it; errors as of `diptych.features.detector.load_detector`."""
        from diptych.features.detector import load_detector

        return DetectorEncoder(load_detector(self.folder, device, self.backend))


class DetectorEncoder:
    """A detector's grid features, float16 [n, 64, D]."""

    def __init__(self, detector: GridDetector) -> None:
        self.detector = detector
        self.input_size, self.prepare = detector.input_size, detector.prepare

    @property
    def values(self) -> Values:
        """Float16 [64, D]."""
        return grid_values(self.detector.feature_dim)

    @property
    def meta(self) -> dict[str, Any]:
        """Weights, preprocessing, and the shape."""
        return {
            "detector": self.detector.weights_hash,
            "preprocessing": self.detector.preprocessing,
            "grid": GRID,
            "feature_dim": self.detector.feature_dim,
        }

    def encode(self, images: Tensor) -> Tensor:
        """Float16 [n, 64, D]."""
        return self.detector.grid_features(images).half()


@dataclass(frozen=True)
class RegionLoader:
    """A detector's folder, and how many regions of an image it describes."""

    folder: str
    regions: int

    def __call__(self, device: str) -> ImageEncoder:
        """Load it. Raises UserError for a detector that proposes no regions, and as `diptych.features.detector.load_detector`."""
        from diptych.features.detector import load_detector
        from diptych.features.detector.network import Detector

        detector = load_detector(self.folder, device)
        if not isinstance(detector, Detector):
            raise UserError(
                f"{self.folder}: this detector describes the grid alone; regions need one that this pipeline trained"
            )
        return RegionEncoder(detector, self.regions)


class RegionEncoder:
    """A detector's features of the regions that it is surest of, float16 [n, k, D] (Anderson et al. 2018, section 3.1)."""

    def __init__(self, detector: Detector, regions: int) -> None:
        self.detector, self.regions = detector, regions
        self.input_size, self.prepare = detector.input_size, detector.prepare

    @property
    def values(self) -> Values:
        """Float16 [k, D]."""
        return region_values(self.regions, self.detector.feature_dim)

    @property
    def meta(self) -> dict[str, Any]:
        """Weights, preprocessing, which regions, and the shape."""
        from diptych.features.detector.network import REGION_CHOICE

        return {
            "detector": self.detector.weights_hash,
            "preprocessing": self.detector.preprocessing,
            "regions": self.regions,
            "choice": REGION_CHOICE,
            "feature_dim": self.detector.feature_dim,
        }

    def encode(self, images: Tensor) -> Tensor:
        """Float16 [n, k, D]."""
        return self.detector.region_features(images, self.regions).half()
