"""The model of Diptych: ``from diptych.model import Diptych`` captions images and paints captions.

Every stage depends on this file, so nothing happens in it: the class, and torch with it, is imported when it is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diptych.model.packaged.model import Caption, Diptych, Painting

__all__ = ["Caption", "Diptych", "Painting"]


def __getattr__(name: str) -> Any:
    """Import what is asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module("diptych.model.packaged.model"), name)
