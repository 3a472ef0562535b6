"""Files of weights: their tensors, or one line that says what a file is.

What a file is, `diptych.features.weight_files` knows. It is asked where something is wrong and by whoever reads foreign
files; a model directory is loaded without it.
"""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from diptych.model.errors import UserError


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        UserError: it is missing, damaged or of another kind.
    """
    try:
        return load_file(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; is this a model directory?") from None
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise UserError(
            f"{path}: not a readable safetensors file ({why_no_safetensors(path, error)}); copy or build it again"
        ) from None


def why_no_safetensors(path: Path, error: Exception) -> str:
    """Say why ``path`` could not be read: what it is, or, without diptych-features, what its reader said."""
    try:
        from diptych.features import weight_files
    except ImportError:
        return str(error)
    return weight_files.why_no_safetensors(path, error)


def why_no_array(path: Path, error: Exception) -> str:
    """Say why NumPy could not read ``path``: what it is, or, without diptych-features, what NumPy said."""
    try:
        from diptych.features import weight_files
    except ImportError:
        return str(error)
    return weight_files.why_no_array(path, error)


def misfit(error: RuntimeError) -> str:
    """Say in one line what ``load_state_dict`` says of weights that do not fit; without diptych-features all of it."""
    try:
        from diptych.features import weight_files
    except ImportError:
        return " ".join(str(error).split())
    return weight_files.misfit(error)
