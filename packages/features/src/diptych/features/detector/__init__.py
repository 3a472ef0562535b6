"""The object detector whose features describe the 8x8 grid."""

from .network import Detector, DetectorConfig, load_detector, save_detector
from .training import DetectorTrainingConfig, average_precision, train_detector

__all__ = [
    "Detector",
    "DetectorConfig",
    "DetectorTrainingConfig",
    "average_precision",
    "load_detector",
    "save_detector",
    "train_detector",
]
