"""VQA's normalisation of answers, rule by rule as its official script has it, oddities included (docs/metrics.md)."""

from __future__ import annotations

import re
from functools import lru_cache

_SIGNS = ';/[]"{}()=+\\_-><@`,?!'
_NUMBER_WITH_COMMA = re.compile(r"\d,\d")
# the script means to spare the periods of numbers, before and behind; its lookbehind is written wrong and never holds
_PERIOD = re.compile(r"\.(?!\d)")
_PERIODS_AT_MOST = (
    32  # the script passes re.UNICODE, which is 32, where re.sub takes the number of replacements
)
_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {word: str(number) for number, word in enumerate(_DIGITS)} | {"none": "0"}
_ARTICLES = frozenset({"a", "an", "the"})
# Contractions that people write without their apostrophe. The script's "Im", "Ive" and "Id've" are not among them: it looks
# them up in lower case, so that they never apply.
_ONE_APOSTROPHE = """
    ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's isn't it'd
    it'll ma'am mightn't might've mustn't must've needn't not've o'clock oughtn't shan't should've shouldn't somebody'll
    somebody's someone'd someone'll someone's something'd something'll that's there'd there're there's they'd they'll they're
    they've 'twas wasn't we've weren't what'll what're what's what've when's where'd where's where've who'd who'll who's
    who've why'll why're why's won't would've wouldn't y'all you'd you'll you're you've
"""
# and those of several, which are found with any one of them missing
_SEVERAL_APOSTROPHES = """
    couldn't've hadn't've he'd've it'd've mightn't've 'ow's'at she'd've shouldn't've somebody'd've someone'd've something'd've
    there'd've they'd've we'd've who'd've wouldn't've y'all'll y'all'd've you'd've
"""


def _contractions() -> dict[str, str]:
    found = {"somebody'd": "somebodyd"}  # the script has this one the wrong way round
    found |= {word.replace("'", ""): word for word in _ONE_APOSTROPHE.split()}
    for word in _SEVERAL_APOSTROPHES.split():
        places = [place for place, sign in enumerate(word) if sign == "'"]
        found |= {word[:place] + word[place + 1 :]: word for place in places}
    return found


_CONTRACTIONS = _contractions()


def plain_answer(answer: str) -> str:
    """An answer on one line, without blanks around it: what is compared where all people answered the same."""
    return answer.replace("\n", " ").replace("\t", " ").strip()


@lru_cache(maxsize=1 << 17)
def normalise_answer(answer: str) -> str:
    """The answer as VQA v2's official script compares it where people's answers differ: "The red-ish dog." is "red ish dog".

    Signs become blanks, or go where a blank stands beside that sign or a number has a comma ("1,000"); periods go unless a
    digit follows; then lower case, numbers up to ten as digits ("none" is 0), no articles, contractions with their
    apostrophes. What is left may be empty ("a"). Used for answer tables too, where two spellings are one answer.
    """
    answer = found = plain_answer(answer)
    joined = _NUMBER_WITH_COMMA.search(answer) is not None
    for sign in _SIGNS:
        gone = joined or f"{sign} " in answer or f" {sign}" in answer
        found = found.replace(sign, "" if gone else " ")
    found = _PERIOD.sub("", found, count=_PERIODS_AT_MOST)
    words = (_NUMBERS.get(word, word) for word in found.lower().split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)
