"""Words of a caption as the Penn Treebank counts them, in Python: no Java is started."""

from __future__ import annotations

import re
import unicodedata

# In the order of their attempts: 'cannot' and 'n't' as two words, clitics, numbers, words with inner
# hyphens, dots or apostrophes (t-shirt, u.s, o'clock), and signs that are words of their own.
_WORD = re.compile(
    r"""
    can(?=not\b) | gon(?=na\b) | got(?=ta\b) | wan(?=na\b)
    | [a-z]+?(?=n't\b) | n't\b
    | '(?:s|m|d|ll|re|ve)\b
    | \d+(?:[.,:/]\d+)+(?!\w)
    | [^\W_]+(?:(?:[-_./&]|'(?!(?:s|m|d|ll|re|ve|t)\b))[^\W_]+)*
    | [&%$#@+=*]
    """,
    re.VERBOSE,
)
_JOINERS = "\u200c\u200d"  # between letters of Persian or Hindi, say, they belong to the word
_LETTER = "\u02b0"  # any that no rule above names


def tokenize(caption: str) -> list[str]:
    """Lower-case words without punctuation, such as COCO's evaluation makes them.

    Clitics are words of their own: "don't" is "do", "n't" and "man's" is "man", "'s". In all scripts a word keeps its
    vowel signs and accents, which are composed (NFC), so that words are equal where they look equal; invisible signs
    such as soft hyphens do not count. A script without spaces is not cut: what stands between two signs is one word.
    """
    if caption.isascii():
        return _WORD.findall(caption.lower())
    lower = unicodedata.normalize("NFC", caption).lower().replace("\u2019", "'")
    text = unicodedata.normalize("NFC", lower)  # lower case may take a letter apart
    text = "".join(sign for sign in text if sign in _JOINERS or unicodedata.category(sign) != "Cf")
    return [text[found.start() : found.end()] for found in _WORD.finditer(_with_letters_for_marks(text))]


def _with_letters_for_marks(text: str) -> str:
    """The text in which marks after a letter or digit, and joiners between two, are letters.

    `re` counts a mark, such as a vowel sign that stands below its consonant, as the end of a word.
    """
    shape: list[str] = []
    for place, sign in enumerate(text):
        inside = bool(shape) and shape[-1].isalnum()
        following = text[place + 1 : place + 2]
        if inside and (
            unicodedata.category(sign).startswith("M") or (sign in _JOINERS and following.isalnum())
        ):
            sign = _LETTER
        shape.append(sign)
    return "".join(shape)
