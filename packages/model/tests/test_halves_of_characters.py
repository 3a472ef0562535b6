"""Captions with half an emoji, as cut strings and badly escaped JSON have them: read without it, and told."""

from __future__ import annotations

import json
import warnings

import pytest

from diptych.model.command.app import main
from diptych.model.decoding.words import start_words
from diptych.model.errors import UserError
from diptych.model.packaged.arguments import listed_captions
from diptych.model.tokenizer import build_tokenizer

HALF = "\ud83d"


def test_halves_are_left_out_and_counted(tiny):
    tokenizer = tiny.tokenizer
    with pytest.warns(
        UserWarning, match=r"1 of 2 captions have halves of characters, .*'a kite \\ud83d flies'"
    ):
        rows = tokenizer.encode(["a kite", f"a kite {HALF} flies"], 20)
    assert rows.equal(tokenizer.encode(["a kite", "a kite flies"], 20))
    with pytest.warns(UserWarning, match="halves"), pytest.raises(UserError, match="has no word"):
        tokenizer.encode([HALF], 20)
    with pytest.warns(UserWarning, match="halves"), pytest.raises(UserError, match=r"start: .* no word"):
        start_words(tokenizer, f"a {HALF}", 20)
    with pytest.warns(UserWarning, match="halves"):
        assert start_words(tokenizer, f"a kite{HALF}", 20) == start_words(tokenizer, "a kite", 20)


@pytest.mark.parametrize("caption", [None, 5, b"a kite", ["a kite"]])
def test_what_is_no_text_is_one_message(tiny, caption):
    with pytest.raises(UserError, match="captions have to be text"):
        tiny.tokenizer.encode([caption], 20)


def test_vocabularies_are_built_without_halves():
    assert build_tokenizer([f"a kite {HALF}"], 1).vocabulary == build_tokenizer(["a kite"], 1).vocabulary


def test_whole_characters_stay_as_they_are(tiny):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert tiny.tokenizer.pieces(["a red kite"]) == [
            tiny.tokenizer.encode(["a red kite"], 6)[0, 1:4].tolist()
        ]
        texts = ["a red kite", "\U0001f600"]
        assert all(one is other for one, other in zip(listed_captions(texts), texts, strict=True))
    with pytest.warns(UserWarning, match="halves of characters are left out of 1 of 2 captions"):
        assert listed_captions(["a", HALF]) == ["a", "\ufffd"]


def test_the_command_paints_and_captions_all_the_same(capsys, monkeypatch, package, tmp_path, pictures):
    monkeypatch.setenv("DIPTYCH_MODEL", str(package))
    monkeypatch.chdir(tmp_path)
    pictures[0].save("a.png")

    def run(*arguments: str) -> tuple[str, str]:
        with pytest.raises(SystemExit) as ended:
            main([*arguments, "--json", "--precision", "float32"])
        assert not ended.value.code
        return capsys.readouterr()

    out, err = run("paint", f"a red kite {HALF}", "-o", "kite.png")
    assert json.loads(out)["caption"] == "a red kite \ufffd" and "halves of characters" in err
    monkeypatch.setattr("sys.stdin", iter([f"two blue boats {HALF}\n", "two blue boats\n"]))
    out, err = run("paint", "-", "-o", "kite.png")
    first, second = (json.loads(line) for line in out.splitlines())
    assert first["codes"] == second["codes"] and "halves of characters" in err
    out, err = run("caption", "a.png", "--start", f"a{HALF}")
    assert json.loads(out)["captions"][0]["text"].startswith("a") and "halves of characters" in err
    with pytest.raises(SystemExit):
        main(["caption", "a.png", "--start", HALF, "--json"])
    assert "is no word that the tokenizer knows" in capsys.readouterr().err
