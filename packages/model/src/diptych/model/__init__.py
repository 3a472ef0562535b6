"""The model of Diptych: ``from diptych.model import Diptych`` captions images and paints captions.

Every stage depends on this file, so nothing happens in it: the class, and torch with it, is imported when it
is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diptych.model.packaged.captioning import Caption
    from diptych.model.packaged.model import Diptych
    from diptych.model.packaged.painting import Painting

__all__ = ["Caption", "Diptych", "Painting"]

MODULES = {"Caption": "captioning", "Diptych": "model", "Painting": "painting"}


def __getattr__(name: str) -> Any:
    """Import what is asked for."""
    if name not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"diptych.model.packaged.{MODULES[name]}"), name)
