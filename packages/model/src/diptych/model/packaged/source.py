"""Where a packaged model is: a folder here, or a repository of the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

from diptych.model.errors import UserError


def find_package(source: str | Path, revision: str | None = None) -> Path:
    """Return the folder of a package: ``source`` itself, or the downloaded (or cached) repository of this name.

    A folder comes first. What begins with ``.``, ``/`` or ``~``, or has not exactly one ``/`` with text on both sides,
    is never looked up.

    Raises:
        UserError: no such folder; no such repository, or no way to reach it.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    name = str(source)
    if folder.exists():
        raise UserError(f"{name}: a file; give the folder of a packaged model")
    parts = name.split("/")
    if isinstance(source, Path) or len(parts) != 2 or not all(parts) or name[0] in "./~":
        raise UserError(
            f"{name}: no such folder; give that of a packaged model, or a repository as OWNER/NAME"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
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
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{name}: no such folder, and the repository cannot be downloaded ({reason})"
        ) from None
