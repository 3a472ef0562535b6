"""The best sample by a CLIP: against cosines of single pairs."""

from __future__ import annotations

import pytest
import torch

from diptych.eval.scorers.clip import Clip
from diptych.eval.scorers.clip_score import PROMPT
from diptych.model.decoding.caption import Captions
from diptych.model.decoding.clip_rerank import (
    embed_captions,
    embed_pictures,
    rerank_captions,
    rerank_paintings,
)
from diptych.model.decoding.paint import Paintings

TEXTS = ["a red kite.", "two blue boats.", "one green house.", "a sea.", "a kite floats.", "some boats rest."]


def test_captions_are_embedded_after_the_prompt(scorer: Clip) -> None:
    found = embed_captions(scorer, TEXTS)
    assert found.equal(scorer.encode_texts([f"{PROMPT}{text}" for text in TEXTS]))
    assert not found.equal(scorer.encode_texts(TEXTS))


def test_the_best_caption_of_each_picture(scorer: Clip) -> None:
    torch.manual_seed(0)
    pictures = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    captions = Captions(torch.arange(12).reshape(6, 2), torch.rand(6, 2))
    with torch.inference_mode():
        result = rerank_captions(captions, 3, TEXTS, pictures, scorer)
        for row in range(2):
            seen = scorer.encode_images(pictures[row : row + 1] / 255)
            cosines = [
                float((seen * embed_captions(scorer, [text])).sum()) for text in TEXTS[3 * row : 3 * row + 3]
            ]
            assert result.scores[row].tolist() == pytest.approx(cosines, abs=1e-5)
            chosen = int(result.chosen[row])
            assert chosen == max(range(3), key=lambda number: cosines[number])
            assert result.best.ids[row].equal(captions.ids[3 * row + chosen])
            assert float(result.best_scores[row]) == pytest.approx(max(cosines), abs=1e-5)


def test_the_best_painting_of_each_caption(scorer: Clip) -> None:
    """Codes are drawn as pictures of -1..1, and the CLIP sees them in 0..1."""
    torch.manual_seed(0)
    palette = torch.rand(8, 3) * 2 - 1

    def draw(codes: torch.Tensor) -> torch.Tensor:
        return palette[codes].transpose(1, 2).reshape(-1, 3, 4, 4)

    paintings = Paintings(torch.randint(0, 8, (6, 16)), None)
    with torch.inference_mode():
        result = rerank_paintings(paintings, 2, TEXTS[:3], draw, scorer)
        for row, text in enumerate(TEXTS[:3]):
            own = paintings.codes[2 * row : 2 * row + 2]
            seen = torch.cat([scorer.encode_images((draw(codes[None]) + 1) / 2) for codes in own])
            cosines = (seen * embed_captions(scorer, [text])).sum(1)
            assert torch.allclose(result.scores[row], cosines, atol=1e-5)
            assert result.best.codes[row].equal(own[int(cosines.argmax())])


def test_pictures_are_embedded_by_their_values(scorer: Clip) -> None:
    pictures = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    with torch.inference_mode():
        assert embed_pictures(scorer, pictures).equal(scorer.encode_images(pictures.float() / 255))
        black = embed_pictures(scorer, torch.zeros_like(pictures))
        assert not black.equal(embed_pictures(scorer, pictures))
