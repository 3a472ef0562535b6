"""Texts by Gibbs sampling, beside a plain rewrite."""

from __future__ import annotations

import pytest
import torch
from architectures import both_architectures

from diptych.model.decoding.caption import word_log_probabilities
from diptych.model.decoding.gibbs import gibbs_texts, places
from diptych.model.decoding.noise import sample_from, uniform_noise
from diptych.model.errors import UserError


@both_architectures
@pytest.mark.parametrize("attention", ["masked", "prefix"])
@torch.no_grad()
def test_each_place_is_drawn_from_all_others_and_the_picture(tiny, attention: str) -> None:
    """Image by image, from states of whole passes; the batch counts for nothing."""
    model, tokenizer = tiny.model, tiny.tokenizer
    object.__setattr__(model.config, "caption_attention", attention)
    seeds, words, sweeps = [4, 9, 2], 6, 2
    found = gibbs_texts(model, tokenizer, tiny.features, "A red", words, seeds, sweeps, temperature=0.7)
    assert found.shape == (3, 8)
    given = tokenizer.pieces(["a", "red"])
    given = [piece for pieces in given for piece in pieces]
    free = range(1 + len(given), 7)
    for row, seed in enumerate(seeds):
        ids = torch.tensor([[tokenizer.cls, *given, *[tokenizer.mask] * len(free), tokenizer.sep]])
        noise = uniform_noise([seed], sweeps, len(free), device="cpu")[0]
        for sweep, order in enumerate(places(seed, free, sweeps).tolist()):
            assert sorted(order) == list(free)
            for visit, place in enumerate(order):
                ids[0, place] = tokenizer.mask
                features = tiny.features[row : row + 1]
                if attention == "masked":
                    states, _ = model(ids, None, features)
                else:
                    images = model.encode_visual_prefix(features)
                    states = model.all_question_states(ids, None, model.visual_keys_values(images))
                chances = word_log_probabilities(model.word_logits(states[0, place]), tokenizer, 0.7)
                last = sweep == sweeps - 1
                ids[0, place] = chances.argmax() if last else sample_from(chances, noise[sweep, visit])
        assert found[row].tolist() == ids[0].tolist()
    assert not torch.isin(found[:, 1:-1], tokenizer.forbidden).any()


def test_numbers_out_of_range_and_words_without_room_are_named(tiny) -> None:
    def refused(message: str, start: str, words: int, **changes) -> None:
        features = tiny.features[: changes.pop("images", 3)]
        with pytest.raises(UserError, match=message):
            gibbs_texts(tiny.model, tiny.tokenizer, features, start, words, [1, 2, 3][: len(features)], **changes)

    refused("words and sweeps must be at least 1, are 5 and 0", "a", 5, sweeps=0)
    refused("words and sweeps must be at least 1, are 0 and 4", "", 0)
    refused("temperature must be a finite number above 0, is inf", "a", 5, temperature=float("inf"))
    refused("temperature must be a finite number above 0, is 0", "a", 5, temperature=0)
    refused("start: .* has 2 word pieces, a text of 2 has room for at most 1", "a red", 2)
    refused("there is no image to write about", "a", 5, images=0)
    with pytest.raises(ValueError, match="one seed per text"):
        gibbs_texts(tiny.model, tiny.tokenizer, tiny.features, "a", 5, [1, 2])
