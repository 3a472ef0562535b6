"""Which words may come next, against plain rewrites and Hugging Face's filters."""

from __future__ import annotations

import pytest
import torch

from diptych.model.decoding.words import (
    WordFilters,
    is_among_largest,
    likeliest,
    start_words,
    without_repeats,
)
from diptych.model.errors import UserError


def test_exactly_k_of_the_largest_and_of_equal_ones_the_first():
    values = torch.randint(0, 4, (50, 30), generator=torch.Generator().manual_seed(0)).double()
    values[7] = -torch.inf
    values[8, 5:] = -torch.inf
    for k in (1, 3, 8, 29, 30, 31):
        chosen = is_among_largest(values, k)
        for row, marks in zip(values.tolist(), chosen, strict=True):
            expected = sorted(sorted(range(30), key=lambda word, row=row: -row[word])[:k])
            assert marks.nonzero()[:, 0].tolist() == expected


@pytest.mark.parametrize(("top_k", "top_p"), [(None, 0.5), (5, 1.0), (7, 0.9), (1, 0.3), (None, 0.999)])
def test_likeliest_words_equal_hugging_face(top_k, top_p):
    transformers = pytest.importorskip("transformers")
    chances = torch.randn(40, 60, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2
    chances[:, :5] = -torch.inf
    chances = chances.log_softmax(-1)
    expected = chances
    if top_k is not None:
        expected = transformers.TopKLogitsWarper(top_k)(None, expected)
    if top_p < 1:
        expected = transformers.TopPLogitsWarper(top_p)(None, expected)
    assert likeliest(chances, top_k, top_p).equal(expected)


def test_at_least_one_word_stays_and_of_equal_ones_the_first():
    chances = torch.zeros(2, 8).log_softmax(-1)
    chances[:, 0] = -torch.inf
    for top_k, top_p in ((1, 1.0), (None, 1e-12), (1, 1e-12)):
        assert likeliest(chances, top_k, top_p).isfinite().nonzero().tolist() == [[0, 1], [1, 1]]
    assert likeliest(torch.zeros(1, 4), None, 0.5).isfinite().tolist() == [[True, True, False, False]]
    # 3 of 7 equal words are the fewest with 3/8 of the probability
    assert likeliest(chances, None, 3 / 8).isfinite().sum(1).tolist() == [3, 3]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_repeats_equal_hugging_face(size):
    transformers = pytest.importorskip("transformers")
    generator = torch.Generator().manual_seed(2)
    filtered = 0
    for length in range(1, 9):
        ids = torch.randint(0, 4, (30, length), generator=generator)
        ids[:, 0] = 9
        chances = torch.randn(30, 10, generator=generator)
        expected = transformers.NoRepeatNGramLogitsProcessor(size)(ids, chances.clone())
        result = without_repeats(ids, chances, size)
        assert result.equal(expected)
        filtered += int(result.isinf().sum())
    assert filtered > 20


def test_filters_apply_to_what_the_others_leave():
    ids = torch.tensor([[0, 3, 3]])
    chances = torch.tensor([[0.05, 0.05, 0.1, 0.5, 0.3]]).log()
    assert WordFilters(1, 1)(ids, chances).isfinite().nonzero().tolist() == [[0, 4]]
    # without words 0 and 3 the next two have 8/9 of the rest
    assert WordFilters(1, None, 0.88)(ids, chances).isfinite()[0].tolist() == [
        False,
        False,
        True,
        False,
        True,
    ]
    assert WordFilters(0, 3, 0.7)(ids, chances).isfinite()[0].tolist() == [False, False, False, True, True]


def test_start_words(tiny):
    tokenizer = tiny.tokenizer
    assert start_words(tokenizer, "", 12) == ()
    words = start_words(tokenizer, "A red", 12)
    assert tokenizer.decode([tokenizer.cls, *words, tokenizer.stop]) == "a red."
    assert len(start_words(tokenizer, "What", 12)) > 1  # not in the vocabulary: spelled
    assert len(start_words(tokenizer, "a red kite", 7)) == 3
    with pytest.raises(UserError, match="'a red kite' has 3 word pieces.* at most 2 .*raise length"):
        start_words(tokenizer, "a red kite", 6)
    for unknown in ("Ω", "redΩ", ".", "kite."):
        with pytest.raises(UserError, match="no word that the tokenizer knows"):
            start_words(tokenizer, f"a {unknown}", 12)
