"""The object detector whose features describe the 8x8 grid."""

from diptych.features.detector.grid_detector import GridDetector, PyramidGridDetector
from diptych.features.detector.importer import ImportReport, import_visual_genome
from diptych.features.detector.load import load_detector
from diptych.features.detector.network import Detector, DetectorConfig, save_detector
from diptych.features.detector.training import DetectorTrainingConfig, average_precision, train_detector
from diptych.features.detector.visual_genome import VisualGenomeConfig, VisualGenomeDetector

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
