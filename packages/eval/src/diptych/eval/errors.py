"""The error that a user can mend."""

from __future__ import annotations


class UserError(Exception):
    """A problem the user can mend; the message names the file or key and the mend."""
