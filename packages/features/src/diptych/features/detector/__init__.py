"""The object detector whose features describe the 8x8 grid."""

from .grid_detector import GridDetector, PyramidGridDetector
from .importer import ImportReport, import_visual_genome
from .load import load_detector
from .network import Detector, DetectorConfig, save_detector
from .training import DetectorTrainingConfig, average_precision, train_detector
from .visual_genome import VisualGenomeConfig, VisualGenomeDetector

__all__ = [
    "Detector",
    "DetectorConfig",
    "DetectorTrainingConfig",
    "GridDetector",
    "ImportReport",
    "PyramidGridDetector",
    "VisualGenomeConfig",
    "VisualGenomeDetector",
    "average_precision",
    "import_visual_genome",
    "load_detector",
    "save_detector",
    "train_detector",
]
