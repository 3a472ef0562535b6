"""Folders that are there whole or not at all."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from diptych.model.errors import UserError


@contextmanager
def appearing(out: Path) -> Iterator[Path]:
    """A folder that gets the name ``out`` when the block ends without an error; otherwise nothing is left of it.

    Raises:
        UserError: ``out`` exists.
        OSError: the system refuses the folder; :func:`refusals_told` makes one line of it.
    """
    if out.exists():
        raise UserError(f"{out}: exists already; remove it or write elsewhere")
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        yield partial
        for path in (partial, *partial.rglob("*")):  # tempfile and safetensors write for the owner only
            path.chmod(0o755 if path.is_dir() else 0o644)
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def refusals_told(out: Path) -> Iterator[None]:
    """Turn what the system refuses while the folder ``out`` is made (a full disk, a missing permission, a
    name that is not UTF-8) into a UserError.

    Raises:
        UserError: the system refused something; other errors pass.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        # safetensors and tokenizers, written in Rust, have errors of their own for it, which end in "(os error 28)"
        if not isinstance(error, OSError | UnicodeEncodeError) and "(os error " not in str(error):
            raise
        raise UserError(f"{out}: cannot be made ({error}); write elsewhere, or mend that") from None
