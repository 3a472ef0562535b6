"""The network that a config describes."""

from __future__ import annotations

from diptych.model.networks.config import TransformerConfig
from diptych.model.networks.single_stream import SingleStream
from diptych.model.networks.two_streams import TwoStreams
from diptych.model.networks.unified import UnifiedTransformer

CLASSES: dict[str, type[UnifiedTransformer]] = {"two_streams": TwoStreams, "single_stream": SingleStream}


def build_transformer(config: TransformerConfig) -> UnifiedTransformer:
    """Return an untrained transformer of ``config.architecture``; its weights are drawn by torch's global generator."""
    return CLASSES[config.architecture](config)
