"""Captions to ids and back."""

from __future__ import annotations

import pytest

from diptych.model.errors import UserError
from diptych.model.tokenizer import build_tokenizer, load_tokenizer


def test_round_trip_and_layout(tiny):
    tokenizer = tiny.tokenizer
    for text, row in zip(tiny.texts, tiny.ids, strict=True):
        assert tokenizer.decode(row) == text
        words = tokenizer.words(row)
        assert words[-1] == tokenizer.stop
        padding = [tokenizer.pad] * (12 - len(words) - 2)
        assert row.tolist() == [tokenizer.cls, *words, tokenizer.sep, *padding]


def test_unseen_words_are_spelled_and_only_unseen_characters_unknown(tiny):
    row = tiny.tokenizer.encode(["Zebras, red Kite"], 20)[0]
    assert tiny.tokenizer.unk not in row
    assert tiny.tokenizer.decode(row).replace(" ,", ",") == "zebras, red kite."
    assert tiny.tokenizer.unk in tiny.tokenizer.encode(["a 風 kite"], 20)[0]


def test_rare_words_stay_out_of_the_vocabulary():
    tokenizer = build_tokenizer(["a kite.", "a kite.", "a zeppelin."], min_count=2)
    assert len(tokenizer.words(tokenizer.encode(["a kite."], 20)[0])) == 3
    assert len(tokenizer.words(tokenizer.encode(["a zeppelin."], 20)[0])) > 3


def test_full_stops_end_captions_and_long_captions_are_cut(tiny):
    tokenizer = tiny.tokenizer
    one, other = tokenizer.encode(["a red. kite", "a red kite ."], 12)
    assert one.tolist() == other.tolist()
    cut = tokenizer.encode(["two blue boats rest on the sea."], 5)[0]
    assert cut[-1] == tokenizer.sep and tokenizer.decode(cut) == "two blue boats"


def test_saved_files_load_again(tiny, tmp_path):
    tiny.tokenizer.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.encode(tiny.texts, 12).equal(tiny.ids)
    assert len(loaded) == len(tiny.tokenizer)


def test_a_bert_vocabulary_can_be_used_instead(tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "a", "red", "kite"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    (tmp_path / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "BertTokenizer", "do_lower_case": true}'
    )
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.decode(tokenizer.encode(["A red kite."], 8)[0]) == "a red kite."


def test_a_tokenizer_without_a_mask_token_is_one_message(tmp_path):
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n.\na")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer", "mask_token": "a"}')
    with pytest.raises(UserError, match=r"no \[MASK\]"):
        load_tokenizer(tmp_path)


def test_errors(tiny, tmp_path):
    with pytest.raises(UserError, match="no word"):
        tiny.tokenizer.encode([" . "], 12)
    with pytest.raises(UserError, match="風.*only characters"):
        tiny.tokenizer.encode(["a kite", "風"], 12)
    with pytest.raises(UserError, match="caption length is 2"):
        tiny.tokenizer.encode(["a kite"], 2)
    with pytest.raises(UserError, match="tokenizer.json"):
        load_tokenizer(tmp_path)
