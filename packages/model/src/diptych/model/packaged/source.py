"""Where a packaged model is: a folder here, or a repository of the Hugging Face Hub."""

from __future__ import annotations

import os
from pathlib import Path

from diptych.model.errors import UserError


def find_package(source: str | Path, revision: str | None = None) -> Path:
    """Return the folder of a package: ``source`` itself, or the downloaded (or cached) repository of this name.

    A folder comes first. What begins with ``.``, ``/`` or ``~``, or has not exactly one ``/`` with text on both sides,
    is never looked up.

    Raises:
        UserError: no such folder; no such repository, or no way to reach it; a folder with a ``revision``.
    """
    name = str(source)
    folder = Path(os.path.expanduser(source))  # which leaves the home of nobody as it is written
    if os.path.isdir(folder):  # a name that is too long, or may not be looked at, is none
        if revision is not None:
            raise UserError(f"{name}: a folder, which has no revisions; leave out revision {revision!r}")
        return folder
    if os.path.exists(folder):
        raise UserError(f"{name}: a file; give the folder of a packaged model")
    parts = name.split("/")
    if isinstance(source, Path) or len(parts) != 2 or not all(parts) or name[0] in "./~":
        raise UserError(
            f"{name}: no such folder; give that of a packaged model, or a repository as OWNER/NAME"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return Path(snapshot_download(name, revision=revision))
    except GatedRepoError:
        raise UserError(
            f"{name}: the repository asks for consent; give it on its page, then log in"
        ) from None
    except RevisionNotFoundError:
        raise UserError(f"{name}: the repository has no revision {revision!r}") from None
    except (RepositoryNotFoundError, HFValidationError):
        raise UserError(
            f"{name}: no such folder, and no such repository (or it is private and you are not logged in)"
        ) from None
    except transfer_errors() as error:
        raise UserError(
            f"{name}: no such folder, and the repository cannot be downloaded ({reason_of(error)})"
        ) from None


def transfer_errors() -> tuple[type[Exception], ...]:
    """What a transfer to or from the Hub may end in: a name that cannot be, and errors of the system and of the library that
    speaks HTTP, which is one or another by the version of ``huggingface_hub``."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    return (HFValidationError, *HfHubHTTPError.__bases__)  # its bases are those errors


def reason_of(error: Exception) -> str:
    """The first line of an error's text, or its name where it has none."""
    return next(iter(str(error).splitlines()), type(error).__name__)
