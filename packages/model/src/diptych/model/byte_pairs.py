"""Pieces of words by merging the most frequent pairs (Sennrich et al. 2016, "Neural Machine Translation of Rare Words with Subword
Units").

Our own, since the trainer of the library that reads these pieces numbers them by the order of a hash table: the same texts would give
another vocabulary at every run.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Mapping
from itertools import pairwise

CONTINUATION = "##"
LEAST_COUNT = 2  # of a pair that is merged


def learn_merges(words: Mapping[str, int], most: int) -> list[tuple[str, str]]:
    """At most so many merges, the most frequent pair first, of equally frequent ones the first in the alphabet.

    Args:
        words: how often each occurs. A word is its first character and the others as continuations (``##a``); merges stay within it.
    """
    pieces = [[word[0], *(CONTINUATION + character for character in word[1:])] for word in sorted(words)]
    frequencies = [words[word] for word in sorted(words)]
    counts: Counter[tuple[str, str]] = Counter()
    inside: dict[tuple[str, str], set[int]] = {}
    for number, word in enumerate(pieces):
        for pair, count in pairs_of(word, frequencies[number]).items():
            counts[pair] += count
            inside.setdefault(pair, set()).add(number)
    waiting = [(-count, pair) for pair, count in counts.items()]
    heapq.heapify(waiting)
    merges: list[tuple[str, str]] = []
    while waiting and len(merges) < most:
        count, pair = heapq.heappop(waiting)
        if counts[pair] != -count:  # it has changed since, and waits with its new count
            continue
        if -count < LEAST_COUNT:
            break
        merges.append(pair)
        changed: Counter[tuple[str, str]] = Counter()
        for number in inside.pop(pair):
            before, after = pieces[number], merged(pieces[number], pair)
            changed.subtract(pairs_of(before, frequencies[number]))
            for other, added in pairs_of(after, frequencies[number]).items():
                changed[other] += added
                inside.setdefault(other, set()).add(number)
            pieces[number] = after
        for other, difference in changed.items():
            counts[other] += difference
            if difference and counts[other] > 0:
                heapq.heappush(waiting, (-counts[other], other))
    return merges


def merged(pieces: list[str], pair: tuple[str, str]) -> list[str]:
    """The pieces of a word after a merge, from left to right."""
    result: list[str] = []
    place = 0
    while place < len(pieces):
        if tuple(pieces[place : place + 2]) == pair:
            result.append(joined(pair))
            place += 2
        else:
            result.append(pieces[place])
            place += 1
    return result


def joined(pair: tuple[str, str]) -> str:
    """The piece that a merge makes."""
    return pair[0] + pair[1].removeprefix(CONTINUATION)


def pairs_of(pieces: list[str], frequency: int) -> Counter[tuple[str, str]]:
    """How often each pair of neighbours occurs in a word of this frequency."""
    found: Counter[tuple[str, str]] = Counter()
    for pair in pairwise(pieces):
        found[pair] += frequency
    return found
