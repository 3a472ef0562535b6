"""The path that a proxy leaves before addresses, as an option of the commands that serve."""

from __future__ import annotations

import pytest

from diptych.eval.errors import UserError
from diptych.eval.path_prefix import checked_prefix


@pytest.mark.parametrize(
    ("given", "prefix"), [("", ""), ("/", ""), ("lab", "/lab"), ("/lab/diptych/", "/lab/diptych")]
)
def test_the_option(given: str, prefix: str) -> None:
    assert checked_prefix(given) == prefix


@pytest.mark.parametrize("given", ["https://host/lab", "/a/../b", "/a?b", "/a b", "/a\nb"])
def test_an_option_that_is_no_path(given: str) -> None:
    with pytest.raises(UserError, match="^--root-path .*: no path of an address; give one such as /diptych$"):
        checked_prefix(given)
