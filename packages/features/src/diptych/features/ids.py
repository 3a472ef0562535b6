"""One rule for ids, whatever a file writes them as.

The packages features and eval do not know each other and read the same files, so that each has this file; a test keeps the
two equal to the letter. It imports nothing of either.
"""

from __future__ import annotations

import re

LONGEST = 80  # characters; ids name members of shards, and a longer one is a mistake
_EXACT = 2**53  # from here on a float skips whole numbers
_WHOLE = re.compile(r"(-?)0*([0-9]+)(?:\.0+)?")


def read_id(value: object) -> str:
    """The id that a file writes as a number or as text: 139, "139", "000000000139", 139.0 and "139.0" are one id, "139".

    Other text is the id itself, without blanks around it. Raises ValueError that says what is wrong with any other value.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError("neither a number nor text")  # noqa: TRY004 (one error for all that an id cannot be)
    if isinstance(value, float):
        if not abs(value) < _EXACT or value != int(value):  # not a number, infinite, a fraction
            raise ValueError("no whole number, or too large to be exact")
        value = int(value)
    if isinstance(value, int):
        if abs(value) >= 10**LONGEST:
            raise ValueError(f"more than {LONGEST} digits")
        return str(value)
    text = value.strip()
    if not text or len(text) > LONGEST:
        raise ValueError("empty" if not text else f"longer than {LONGEST} characters")
    if number := _WHOLE.fullmatch(text):
        return number[2] if number[2] == "0" else number[1] + number[2]
    return text
