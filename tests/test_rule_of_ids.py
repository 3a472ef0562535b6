"""Features and eval do not know each other and read the same files: their rule for ids is one."""

from __future__ import annotations

from pathlib import Path

import diptych.eval.ids
import diptych.eval.text_files
import diptych.features.ids
import diptych.features.text_files


def test_both_packages_have_the_same_rule_for_ids() -> None:
    ours, theirs = (Path(module.__file__).read_text() for module in (diptych.features.ids, diptych.eval.ids))
    assert ours == theirs and "diptych.features" not in ours.split('"""')[2]


def test_both_packages_replace_halves_of_characters_alike() -> None:
    for text in ("a kite", "a \ud83d kite", "\udc80", "\U0001f600", "\ud83d\ude00"):
        found = diptych.features.text_files.whole_characters(text)
        assert found == diptych.eval.text_files.whole_characters(text)
        assert found.encode() and len(found) == len(text) and (found is text) == ("\ufffd" not in found)
