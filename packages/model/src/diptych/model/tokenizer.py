"""Captions to word-piece ids and back (UMT 3.1; BERT's tokenisation)."""

from __future__ import annotations

import json
import re
import string
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from diptych.model.byte_pairs import CONTINUATION, joined, learn_merges
from diptych.model.devices import sent
from diptych.model.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# halves of characters beyond 0xFFFF, which JSON and old systems let through alone
_HALVES = re.compile("[\ud800-\udfff]")
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
SPECIAL_NAMES = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
STOP = "."
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt")


def whole_characters(text: str) -> str:
    """The text with U+FFFD in the place of halves of characters (lone surrogates), which no tokenizer takes; the same object
    where there are none."""
    return _HALVES.sub("\ufffd", text) if _HALVES.search(text) else text


class CaptionTokenizer:
    """A BERT-style tokenizer whose captions are ``[CLS] words . [SEP] [PAD] ...``.

    The full stop ends a caption: it is a token of its own, one is appended where a caption has none, and any other
    full stop is dropped.

    It works on the library's own tokenizer: transformers takes seconds to import, and its wrapper of this tokenizer
    changes settings at every call, so that threads could not share it. These can.

    Attributes:
        pad, cls, sep, mask, unk: ids of the special tokens.
        stop: id of the full stop.
        forbidden: int64 tensor, the ids that no decoder may write: the special tokens.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        tokenizer.no_padding()
        tokenizer.no_truncation()
        tokenizer.encode_special_tokens = True  # names of special tokens in a caption are ordinary text
        self._tokenizer = tokenizer
        vocabulary = tokenizer.get_vocab()
        check_vocabulary(vocabulary, "the tokenizer")
        self.pad, self.unk, self.cls, self.sep, self.mask = (vocabulary[token] for token in SPECIAL_TOKENS)
        self.stop = vocabulary[STOP]
        self.forbidden = torch.tensor([self.pad, self.unk, self.cls, self.sep, self.mask])
        self._forbidden_on: dict[torch.device, Tensor] = {}

    def forbidden_on(self, device: torch.device) -> Tensor:
        """``forbidden`` on ``device``, where it stays: every word that is written asks for it."""
        if device == self.forbidden.device:
            return self.forbidden
        if device not in self._forbidden_on:
            # else losses could not use what a caption written before has left
            with torch.inference_mode(False):
                self._forbidden_on[device] = sent(self.forbidden, device)
        return self._forbidden_on[device]

    def __len__(self) -> int:
        """Size of the vocabulary."""
        return self._tokenizer.get_vocab_size()

    @property
    def vocabulary(self) -> set[str]:
        """All word pieces, special tokens included."""
        return set(self._tokenizer.get_vocab())

    def pieces(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text's word pieces, as they stand there. Names of special tokens are ordinary text.

        Halves of characters are left out, as BERT does with what cannot be decoded; a warning tells how many texts have some.

        Raises:
            UserError: a text is something else.
        """
        for text in texts:
            if not isinstance(text, str):
                raise UserError(f"captions have to be text, {text!r:.60} is none")
        whole = [whole_characters(text) for text in texts]
        broken = [text for text, kept in zip(texts, whole, strict=True) if text is not kept]
        if broken:
            warnings.warn(
                f"{len(broken)} of {len(whole)} captions have halves of characters, which are left out, such as "
                f"{broken[0]!a}",
                stacklevel=2,
            )
        return [text.ids for text in self._tokenizer.encode_batch(whole, add_special_tokens=False)]

    def encode(self, captions: Sequence[str], length: int) -> Tensor:
        """Encode captions to int64 ``[n, length]``.

        Longer captions are cut, with ``[SEP]`` in the last
        place; words with characters that the vocabulary lacks become ``[UNK]``. One warning each tells how many.

        Raises:
            UserError: a caption without any word, or with none that the vocabulary can spell; no room for a word.
        """
        if isinstance(captions, str):
            raise UserError(f"captions have to be a list, {captions!r} is a string; put it into one")
        pieces = [[piece for piece in pieces if piece != self.stop] for pieces in self.pieces(captions)]
        return self._rows(captions, pieces, [self.stop], length, "caption")

    def encode_questions(self, questions: Sequence[str], length: int) -> Tensor:
        """Encode questions or statements to int64 ``[n, length]``: ``[CLS] words ? [SEP] [PAD] ...``, as they stand there.
        Longer ones are cut and unknown characters read as by :meth:`encode`.

        Raises:
            UserError: as :meth:`encode`.
        """
        if isinstance(questions, str):
            raise UserError(f"questions have to be a list, {questions!r} is a string; put it into one")
        return self._rows(questions, self.pieces(questions), [], length, "question")

    def _rows(
        self, texts: Sequence[str], rows_of_pieces: list[list[int]], ending: list[int], length: int, what: str
    ) -> Tensor:
        """Rows of ``[CLS] pieces ending [SEP] [PAD] ...`` of the texts, each called ``what`` in messages."""
        if length < 3:
            raise UserError(f"{what} length is {length}; [CLS], one word and [SEP] are 3 tokens")
        rows = torch.full((len(texts), length), self.pad)
        unknown, cut = [], []
        for row, text, pieces in zip(rows, texts, rows_of_pieces, strict=True):
            if not pieces:
                raise UserError(f"{what} {text!r} has no word; write at least one")
            if all(piece == self.unk for piece in pieces):
                raise UserError(
                    f"{what} {text!r} has only characters that the tokenizer does not know; write it in the "
                    "language of the training captions"
                )
            if self.unk in pieces:
                unknown.append(text)
            if len(pieces) > length - 2:
                cut.append(text)
            ids = [self.cls, *[*pieces, *ending][: length - 2], self.sep]
            row[: len(ids)] = torch.tensor(ids)
        for found, happened in (
            (unknown, "have characters that the tokenizer does not know, read as [UNK]"),
            (cut, f"are cut, being longer than {length} tokens"),
        ):
            if found:
                warnings.warn(
                    f"{len(found)} of {len(texts)} {what}s {happened}, such as {found[0]!r}", stacklevel=3
                )
        return rows

    def no_text(self, n: int) -> Tensor:
        """Return ``[CLS] [SEP]``, the text of unconditional painting, int64 ``[n, 2]``."""
        return torch.tensor([[self.cls, self.sep]]).expand(n, 2)

    def words(self, ids: Sequence[int] | Tensor) -> list[int]:
        """Return the ids of one caption without special tokens, up to and including its full stop.

        This is what CIDEr-D rewards (UMT 4.1.2): with the full stop, so that a caption that breaks off loses.
        """
        words: list[int] = []
        for piece in torch.as_tensor(ids).tolist():
            if piece in (self.pad, self.cls):
                continue
            if piece == self.sep:
                break
            words.append(piece)
            if piece == self.stop:
                break
        return words

    def decode(self, ids: Sequence[int] | Tensor) -> str:
        """Write one caption, int64 ``[length]``, as text: ``a red kite.``"""
        return self._tokenizer.decode(self.words(ids)).replace(" .", ".")

    def group_pieces(self, words: Sequence[int]) -> list[tuple[str, int]]:
        """Return the words that word pieces, as of :meth:`words`, spell, each with the number of its pieces; the full
        stop is a word of its own."""
        groups: list[tuple[str, int]] = []
        for piece in words:
            text = self._tokenizer.id_to_token(piece) or SPECIAL_TOKENS[1]
            if text.startswith(CONTINUATION) and groups:
                before, count = groups[-1]
                groups[-1] = before + text[2:], count + 1
            else:
                groups.append((text, 1))
        return groups

    def unknown_words(self, text: str) -> list[str]:
        """Return the words of ``text`` that the vocabulary can at most spell, letter by letter."""
        unknown, place = [], 0
        pieces = self.pieces([text])[0]
        for word, count in self.group_pieces(pieces):
            own = pieces[place : place + count]
            letters = [(self._tokenizer.id_to_token(piece) or "").removeprefix(CONTINUATION) for piece in own]
            if self.unk in own or (count > 1 and all(len(letter) == 1 for letter in letters)):
                unknown.append(word)
            place += count
        return unknown

    def save(self, folder: Path) -> None:
        """Write the Hugging Face tokenizer files into ``folder``."""
        from transformers import PreTrainedTokenizerFast

        names = dict(zip(SPECIAL_NAMES, SPECIAL_TOKENS, strict=True))
        PreTrainedTokenizerFast(tokenizer_object=self._tokenizer, **names).save_pretrained(folder)


def check_vocabulary(vocabulary: Iterable[str], name: str) -> None:
    """Raise a UserError that calls it ``name`` unless ``vocabulary`` has the special tokens and the full stop."""
    known = set(vocabulary)
    missing = [token for token in (*SPECIAL_TOKENS, STOP) if token not in known]
    if missing:
        raise UserError(f"{name} has no {', '.join(missing)}; use a BERT-style tokenizer with these tokens")


def build_tokenizer(captions: Iterable[str], min_count: int) -> CaptionTokenizer:
    """Build a vocabulary of words from training captions.

    It holds the special tokens, printable ASCII and every character of the captions, alone and as a continuation
    (``##a``), and every word that occurs at least ``min_count`` times; so rarer words are spelled and only
    characters never seen become ``[UNK]``, and words of more than 100 characters. The order depends on nothing but the counts.
    """
    from tokenizers import models

    counts = count_words(captions)
    words = [
        word
        for word, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        if count >= min_count
    ]
    characters = characters_of(counts)
    tokens = [
        *SPECIAL_TOKENS,
        *characters,
        *(f"{CONTINUATION}{character}" for character in characters),
        *words,
    ]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    return CaptionTokenizer(
        bert_style(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100))
    )


def build_byte_pairs(captions: Iterable[str], pieces: int) -> CaptionTokenizer:
    """Build a vocabulary of at most ``pieces`` from training captions by byte-pair encoding (:func:`learn_merges`; L-Verse 3.5 has
    49,808). Words are split and cased as by :func:`build_tokenizer`, and the special tokens and characters are the same.

    Raises:
        UserError: special tokens and characters alone are more than ``pieces``.
    """
    from tokenizers import models

    counts = count_words(captions)
    characters = characters_of(counts)
    tokens = [*SPECIAL_TOKENS, *characters, *(f"{CONTINUATION}{character}" for character in characters)]
    if len(tokens) > pieces:
        raise UserError(f"pieces is {pieces}, but special tokens and characters alone are {len(tokens)}")
    merges = learn_merges(counts, pieces - len(tokens))
    vocabulary = dict.fromkeys([*tokens, *map(joined, merges)])
    numbered = {token: index for index, token in enumerate(vocabulary)}
    return CaptionTokenizer(
        bert_style(models.BPE(numbered, merges, unk_token="[UNK]", continuing_subword_prefix=CONTINUATION))
    )


def count_words(captions: Iterable[str]) -> Counter[str]:
    """How often each lower-cased word occurs, words and punctuation being told apart as BERT does."""
    from tokenizers import normalizers, pre_tokenizers

    normalizer = normalizers.BertNormalizer(lowercase=True)
    splitter = pre_tokenizers.BertPreTokenizer()
    counts: Counter[str] = Counter()
    for caption in captions:
        text = normalizer.normalize_str(whole_characters(caption))
        counts.update(word for word, _ in splitter.pre_tokenize_str(text))
    return counts


def characters_of(words: Iterable[str]) -> list[str]:
    """Printable ASCII and every character of the words, in order."""
    return sorted({*string.punctuation, *string.digits, *string.ascii_lowercase, *"".join(words)})


def bert_style(model: Any) -> Tokenizer:
    """A tokenizer of a model of pieces whose continuations begin with ``##``, with BERT's splitting and special tokens."""
    from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers

    backend = Tokenizer(model)
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix=CONTINUATION)
    backend.add_special_tokens(list(SPECIAL_TOKENS))
    return backend


def load_tokenizer(folder: Path) -> CaptionTokenizer:
    """Load the tokenizer of a model directory, or any directory of a pretrained BERT tokenizer.

    Raises:
        UserError: the folder has no tokenizer files, or they are unreadable or lack a special token.
    """
    from tokenizers import Tokenizer

    file = next((folder / name for name in TOKENIZER_FILES if (folder / name).is_file()), None)
    if file is None:
        raise UserError(
            f"{folder}: no {' or '.join(TOKENIZER_FILES)}; give a folder with Hugging Face tokenizer files"
        )
    try:
        if file.suffix == ".json":
            tokenizer = Tokenizer.from_file(str(file))
            check_vocabulary(tokenizer.get_vocab(), str(file))
        else:
            from transformers import BertTokenizerFast

            # Here, because from_pretrained would add the tokens that are missing, which no transformer has seen.
            vocabulary = file.read_text(encoding="utf-8").split("\n")
            check_vocabulary(vocabulary, str(file))
            # A vocabulary alone, as UNITER's bert-base-cased, does not say so; capitals in it do.
            cased = any(piece != piece.lower() for piece in vocabulary if not piece.startswith("["))
            config = folder / "tokenizer_config.json"
            says = config.is_file() and "do_lower_case" in json.loads(config.read_text(encoding="utf-8"))
            casing = {} if says else {"do_lower_case": not cased}
            tokenizer = BertTokenizerFast.from_pretrained(folder, **casing).backend_tokenizer
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001 - the libraries raise whatever they like
        raise UserError(f"{file}: not readable as a tokenizer ({error}); copy or build it again") from None
    return CaptionTokenizer(tokenizer)
