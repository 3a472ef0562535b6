"""Captions to word-piece ids and back (UMT 3.1; BERT's tokenisation)."""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from diptych.model.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
STOP = "."


class CaptionTokenizer:
    """A BERT-style tokenizer whose captions are ``[CLS] words . [SEP] [PAD] ...``.

    The full stop ends a caption: it is a token of its own, one is appended where a caption has none, and any other
    full stop is dropped.

    Attributes:
        pad, cls, sep, mask, unk: ids of the special tokens.
        stop: id of the full stop.
        forbidden: int64 tensor, the ids that no decoder may write: the special tokens.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer
        vocabulary = tokenizer.get_vocab()
        missing = [token for token in (*SPECIAL_TOKENS, STOP) if token not in vocabulary]
        if missing:
            raise UserError(
                f"the tokenizer has no {', '.join(missing)}; use a BERT-style tokenizer with these tokens"
            )
        self.pad, self.unk, self.cls, self.sep, self.mask = (vocabulary[token] for token in SPECIAL_TOKENS)
        self.stop = vocabulary[STOP]
        self.forbidden = torch.tensor([self.pad, self.unk, self.cls, self.sep, self.mask])

    def __len__(self) -> int:
        """Size of the vocabulary."""
        return len(self._tokenizer)

    def encode(self, captions: Sequence[str], length: int) -> Tensor:
        """Encode captions to int64 ``[n, length]``; longer ones are cut, with ``[SEP]`` in the last place.

        Raises:
            UserError: a caption without any word, or with none that the vocabulary can spell; no room for a word.
        """
        if length < 3:
            raise UserError(f"caption length is {length}; [CLS], one word and [SEP] are 3 tokens")
        rows = torch.full((len(captions), length), self.pad)
        if not captions:
            return rows
        encoded = self._tokenizer(list(captions), add_special_tokens=False, verbose=False)["input_ids"]
        for row, caption, pieces in zip(rows, captions, encoded, strict=True):
            words = [piece for piece in pieces if piece != self.stop]
            if not words:
                raise UserError(f"caption {caption!r} has no word; write at least one")
            if all(piece == self.unk for piece in words):
                raise UserError(
                    f"caption {caption!r} has only characters that the tokenizer does not know; write it in the "
                    "language of the training captions"
                )
            ids = [self.cls, *[*words, self.stop][: length - 2], self.sep]
            row[: len(ids)] = torch.tensor(ids)
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

    def save(self, folder: Path) -> None:
        """Write the Hugging Face tokenizer files into ``folder``."""
        self._tokenizer.save_pretrained(folder)


def build_tokenizer(captions: Iterable[str], min_count: int) -> CaptionTokenizer:
    """Build a vocabulary from training captions.

    It holds the special tokens, printable ASCII and every character of the captions, alone and as a continuation
    (``##a``), and every word that occurs at least ``min_count`` times; so rarer words are spelled and only
    characters never seen become ``[UNK]``. The order depends on nothing but the counts.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    normalizer = normalizers.BertNormalizer(lowercase=True)
    splitter = pre_tokenizers.BertPreTokenizer()
    counts: Counter[str] = Counter()
    for caption in captions:
        counts.update(word for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(caption)))
    characters = sorted({*string.punctuation, *string.digits, *string.ascii_lowercase, *"".join(counts)})
    words = [
        word
        for word, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        if count >= min_count
    ]
    tokens = [*SPECIAL_TOKENS, *characters, *(f"##{character}" for character in characters), *words]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}

    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100))
    backend.normalizer = normalizer
    backend.pre_tokenizer = splitter
    backend.decoder = decoders.WordPiece()
    names = dict(
        zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL_TOKENS, strict=True)
    )
    return CaptionTokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, **names))


def load_tokenizer(folder: Path) -> CaptionTokenizer:
    """Load the tokenizer of a model directory, or any directory of a pretrained BERT tokenizer.

    Raises:
        UserError: the folder has no tokenizer files.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    if (folder / "tokenizer.json").is_file():
        return CaptionTokenizer(PreTrainedTokenizerFast.from_pretrained(folder))
    if (folder / "vocab.txt").is_file():
        return CaptionTokenizer(AutoTokenizer.from_pretrained(folder))
    raise UserError(
        f"{folder}: no tokenizer.json or vocab.txt; give a folder with Hugging Face tokenizer files"
    )
