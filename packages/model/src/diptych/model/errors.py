"""Errors that a user can mend."""


class UserError(Exception):
    """A problem the user can mend; the message names the file or key and the mend."""
