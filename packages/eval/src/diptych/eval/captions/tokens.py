"""Words of a caption as the Penn Treebank counts them, in Python: no Java is started."""

from __future__ import annotations

import re

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


def tokenize(caption: str) -> list[str]:
    """Lower-case words without punctuation, such as COCO's evaluation makes them.

    Clitics are words of their own: "don't" is "do", "n't" and "man's" is "man", "'s".
    """
    return _WORD.findall(caption.lower().replace("\u2019", "'"))
