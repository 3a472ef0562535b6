"""Captions to ids and back."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from diptych.model.byte_pairs import learn_merges
from diptych.model.errors import UserError
from diptych.model.tokenizer import build_byte_pairs, build_tokenizer, count_words, load_tokenizer


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
    with pytest.warns(UserWarning, match="1 of 2 captions have characters .*風 kite"):
        unknown = tiny.tokenizer.encode(["a kite", "a 風 kite"], 20)[1]
    assert unknown.tolist().count(tiny.tokenizer.unk) == 1


def test_names_of_special_tokens_in_a_caption_are_text(tiny):
    for text in ("a [SEP] kite", "[MASK]", "[PAD] kite [CLS]", "[UNK]"):
        pieces = tiny.tokenizer.encode([text], 30)[0].tolist()
        inside = pieces[1 : pieces.index(tiny.tokenizer.sep)]
        assert len(inside) > 3 and not set(inside) & set(tiny.tokenizer.forbidden.tolist())


def test_captions_that_fit_are_no_warning(tiny, recwarn):
    assert tiny.tokenizer.encode(["two blue boats."], 6)[0, -2] == tiny.tokenizer.stop
    assert (
        tiny.tokenizer.encode(["two blue boats."], 5)[0, -1] == tiny.tokenizer.sep
    )  # only the full stop is lost
    assert not recwarn.list


def test_what_may_not_be_written_is_sent_to_a_device_once_and_can_be_learned_from(tiny, monkeypatch):
    """Also where a caption was written first, in inference mode."""
    tokenizer = build_tokenizer(["a red kite."], 1)
    sends = []
    monkeypatch.setattr(
        "diptych.model.tokenizer.sent", lambda tensor, device: sends.append(device) or tensor.to(device)
    )
    with torch.inference_mode():
        first = tokenizer.forbidden_on(torch.device("meta"))
    assert tokenizer.forbidden_on(torch.device("meta")) is first and len(sends) == 1
    assert not first.is_inference()


def test_rare_words_stay_out_of_the_vocabulary():
    tokenizer = build_tokenizer(["a kite.", "a kite.", "a zeppelin."], min_count=2)
    assert len(tokenizer.words(tokenizer.encode(["a kite."], 20)[0])) == 3
    assert len(tokenizer.words(tokenizer.encode(["a zeppelin."], 20)[0])) > 3


def test_full_stops_end_captions_and_long_captions_are_cut(tiny):
    tokenizer = tiny.tokenizer
    one, other = tokenizer.encode(["a red. kite", "a red kite ."], 12)
    assert one.tolist() == other.tolist()
    with pytest.warns(UserWarning, match="1 of 1 captions are cut, being longer than 5 tokens"):
        cut = tokenizer.encode(["two blue boats rest on the sea."], 5)[0]
    assert cut[-1] == tokenizer.sep and tokenizer.decode(cut) == "two blue boats"


def test_saved_files_load_again(tiny, tmp_path):
    tiny.tokenizer.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.encode(tiny.texts, 12).equal(tiny.ids)
    assert len(loaded) == len(tiny.tokenizer)


@pytest.mark.parametrize("config", [None, '{"tokenizer_class": "BertTokenizer", "do_lower_case": true}'])
def test_a_bert_vocabulary_can_be_used_instead(tmp_path, config):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "a", "red", "kite"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    if config is not None:
        (tmp_path / "tokenizer_config.json").write_text(config)
    tokenizer = load_tokenizer(tmp_path)
    assert len(tokenizer) == 9
    assert tokenizer.decode(tokenizer.encode(["A red kite."], 8)[0]) == "a red kite."


def test_a_tokenizer_without_a_mask_token_is_one_message(tmp_path):
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n.\na")
    with pytest.raises(UserError, match=r"vocab.txt has no \[MASK\]"):
        load_tokenizer(tmp_path)


def test_a_saved_tokenizer_without_a_mask_token_is_one_message(tiny, tmp_path):
    """Although its config promises one."""
    tiny.tokenizer.save(tmp_path)
    file = tmp_path / "tokenizer.json"
    content = json.loads(file.read_text())
    content["model"]["vocab"]["[QASK]"] = content["model"]["vocab"].pop("[MASK]")
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] != "[MASK]"]
    file.write_text(json.dumps(content))
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["mask_token"] == "[MASK]"
    with pytest.raises(UserError, match=r"tokenizer.json has no \[MASK\]"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(("name", "content"), [("tokenizer.json", b"{"), ("vocab.txt", b"\xff\xfe")])
def test_unreadable_tokenizer_files_are_one_message(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name}: not readable as a tokenizer"):
        load_tokenizer(tmp_path)


def test_errors(tiny, tmp_path):
    with pytest.raises(UserError, match="no word"):
        tiny.tokenizer.encode([" . "], 12)
    with pytest.raises(UserError, match="風.*only characters"):
        tiny.tokenizer.encode(["a kite", "風"], 12)
    with pytest.raises(UserError, match="have to be a list, 'a kite' is a string"):
        tiny.tokenizer.encode("a kite", 12)
    with pytest.raises(UserError, match="caption length is 2"):
        tiny.tokenizer.encode(["a kite"], 2)
    with pytest.raises(UserError, match="tokenizer.json"):
        load_tokenizer(tmp_path)


def test_byte_pairs_merge_the_most_frequent_pair_each_time() -> None:
    """Against counting all pairs anew for every merge."""
    captions = ["two red kites over the sea.", "a red boat on the water.", "the redder kite.", "boats are there."] * 2
    words = count_words(captions)
    merges = learn_merges(words, 30)
    pieces = {word: [word[0], *(f"##{letter}" for letter in word[1:])] for word in words}
    for found in merges:
        counts: Counter[tuple[str, str]] = Counter()
        for word, parts in pieces.items():
            for pair in pairwise(parts):
                counts[pair] += words[word]
        assert found == min(counts, key=lambda pair: (-counts[pair], pair))
        for word, parts in pieces.items():
            left: list[str] = []
            for part in parts:
                if left and (left[-1], part) == found:
                    left[-1] += part.removeprefix("##")
                else:
                    left.append(part)
            pieces[word] = left
    assert all(len(parts) == 1 for word, parts in pieces.items() if words[word] > 1)


def test_a_tokenizer_of_byte_pairs(tmp_path: Path) -> None:
    captions = ["two red kites over the sea.", "a red boat on the water."] * 3
    tokenizer = build_byte_pairs(captions, 200)
    assert len(tokenizer) <= 200 and tokenizer.vocabulary == build_byte_pairs(captions[::-1], 200).vocabulary
    ids = tokenizer.encode(["Two red kites over the sea", "zebras swim."], 24)
    assert [tokenizer.decode(row) for row in ids] == ["two red kites over the sea.", "zebras swim."]
    assert int((ids[0] != tokenizer.pad).sum()) == 9, "frequent words are one piece: [CLS] two red kites over the sea . [SEP]"
    tokenizer.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert again.encode(["two zebras."], 12).equal(tokenizer.encode(["two zebras."], 12))
    with pytest.raises(UserError, match="pieces is 20, but special tokens and characters alone are"):
        build_byte_pairs(captions, 20)
