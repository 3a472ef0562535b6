"""The architectures that a tiny transformer may have, and the mark of tests of what they share."""

from __future__ import annotations

import pytest

LAYERS = {
    "two_streams": {"language_layers": 1, "visual_layers": 1, "cross_layers": 2},
    "single_stream": {"architecture": "single_stream", "layers": 3},
}
both_architectures = pytest.mark.parametrize("tiny", LAYERS, indirect=True)
