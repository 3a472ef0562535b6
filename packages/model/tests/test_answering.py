"""Answers of a packaged model: which question goes with which picture, how often it is seen, and where words look."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch

from diptych.model import Diptych
from diptych.model.errors import UserError
from diptych.model.packaged import answering as answering_module

pytestmark = pytest.mark.parametrize("parts", ["prefix", "masked", "single_stream"], indirect=True)
QUESTIONS = [
    "is there a red kite?",
    "how many boats are there?",
    "what color is the house?",
]  # as in conftest.py
ANSWERS = ["yes", "no", "2", "red", "the sea", "kite"]


def probabilities(d: Diptych, picture, question: str) -> list[float]:
    """Of all answers, in the table's order."""
    [answer] = d.answer(picture, question, most=len(ANSWERS))
    found = {one.answer: one.probability for one in answer.ranked}
    return [found[text] for text in ANSWERS]


def same(found, expected) -> bool:
    return found.text == expected.text and math.isclose(found.probability, expected.probability, abs_tol=1e-5)


def test_answers_are_ranked(answering: Diptych, pictures) -> None:
    [answer] = answering.answer(pictures[0], QUESTIONS[0], most=99)
    ranked = [one.probability for one in answer.ranked]
    assert sorted(one.answer for one in answer.ranked) == sorted(ANSWERS)
    assert ranked == sorted(ranked, reverse=True) and math.isclose(sum(ranked), 1, abs_tol=1e-5)
    assert (answer.text, answer.probability) == (answer.ranked[0].answer, ranked[0]) and str(
        answer
    ) == answer.text
    [two] = answering.answer(pictures[0], QUESTIONS[0], most=2)
    assert two.ranked == answer.ranked[:2] and two.attention is None


def states(d: Diptych, picture, text: str) -> torch.Tensor:
    """What the heads read of a question or a statement and a picture, ``[1, h]``, by the network alone, without this project's
    decoding."""
    model, ids = d.parts.captions.transformer, d.tokenizer.encode_questions([text], 20)
    ids = ids[:, : int((ids != d.tokenizer.pad).sum())]
    features = d.features(picture)
    if model.config.caption_attention == "prefix":
        keys_values = model.visual_keys_values(model.encode_visual_prefix(features))
        return model.question_states(ids, None, keys_values)
    visual = model.encode_visual(features)
    return model.masked_text_states(ids, None, visual, torch.zeros(1, dtype=torch.long))


def test_probabilities_are_those_of_the_transformer(answering: Diptych, pictures) -> None:
    with torch.inference_mode():
        read = states(answering, pictures[0], QUESTIONS[1])
        expected = answering.parts.captions.transformer.answer_logits(read).softmax(-1)[0].tolist()
    assert np.allclose(probabilities(answering, pictures[0], QUESTIONS[1]), expected, atol=1e-5)


def test_pictures_and_questions_go_together(answering: Diptych, pictures) -> None:
    each = [[answering.answer(picture, question)[0] for question in QUESTIONS] for picture in pictures[:3]]
    assert len({round(one.probability, 6) for row in each for one in row}) == 9  # else nothing below tells
    for_all = answering.answer(pictures[:3], QUESTIONS[0])
    assert all(same(found, row[0]) for found, row in zip(for_all, each, strict=True))
    about_one = answering.answer(pictures[1], QUESTIONS)
    assert all(same(found, one) for found, one in zip(about_one, each[1], strict=True))
    paired = answering.answer(pictures[:3], QUESTIONS, batch_size=2)
    assert all(same(found, each[number][number]) for number, found in enumerate(paired))


def test_unequal_numbers_of_questions_keep_their_order(answering: Diptych, pictures, monkeypatch) -> None:
    """Neighbours are the same picture; more questions than are answered at once."""
    monkeypatch.setattr(answering_module, "QUESTIONS_AT_ONCE", 4)
    places = [0, 0, 1, 2, 2, 2, 2, 2, 0, 3, 3, 4, 4]
    asked = [QUESTIONS[number % 3] for number in range(len(places))]
    alone = [
        answering.answer(pictures[place], question)[0] for place, question in zip(places, asked, strict=True)
    ]
    for batch_size in (1, 2, 32):
        found = answering.answer(
            [pictures[place] for place in places], asked, batch_size=batch_size, return_attention=True
        )
        assert all(same(one, other) for one, other in zip(found, alone, strict=True))
        for one, question in zip(found, asked, strict=True):
            assert " ".join(one.attention.words) == question.replace("?", " ?")


def test_a_picture_is_seen_once(answering: Diptych, pictures, monkeypatch, tmp_path) -> None:
    seen = []
    own = answering.parts.images.detector.grid_features
    monkeypatch.setattr(
        answering.parts.images.detector, "grid_features", lambda batch: seen.append(len(batch)) or own(batch)
    )
    many = [QUESTIONS[number % 3] for number in range(700)]
    assert len(answering.answer(pictures[0], many)) == 700 and seen == [1]
    seen.clear()
    pictures[0].save(tmp_path / "a.png")
    pictures[3].save(tmp_path / "b.png")
    names = [str(tmp_path / "a.png")] * 5 + [str(tmp_path / "b.png")] * 5
    assert len(answering.answer(names, many[:10])) == 10 and sum(seen) == 2


def direct_attention(d: Diptych, features: torch.Tensor, question: str) -> torch.Tensor:
    """Where the pieces of a question look, ``[pieces, 64]``, from the weights of the cross attention itself."""
    model = d.parts.captions.transformer
    ids = d.tokenizer.encode_questions([question], 20)
    ids = ids[:, : int((ids != d.tokenizer.pad).sum())]
    found = []
    with torch.inference_mode():
        text, visual = model.text_embedding(ids), model.encode_visual(features)
        for layer in model.language_layers:
            text = layer(text, None)
        for layer in model.cross_layers:
            attention = layer.cross_attention
            keys = attention.keys_values(visual)[0]
            queries = attention.queries(text)
            weights = torch.einsum("nhtd,nhkd->nhtk", queries, keys) / queries.shape[-1] ** 0.5
            found.append(weights.exp() / weights.exp().sum(-1, keepdim=True))
            if model.config.caption_attention == "prefix":
                text = layer.text_from_visual(text, None, attention.keys_values(visual))
                visual = layer.visual_alone(visual)
            else:
                text, visual = layer(text, None, visual)
    return torch.stack(found).mean((0, 2))[0, 1:-1]


def test_attention_is_that_of_the_network(answering: Diptych, pictures) -> None:
    if answering.parts.captions.transformer.config.architecture == "single_stream":
        pytest.skip("has no layers for it alone: test_single_stream.py")
    question = QUESTIONS[2]
    [answer] = answering.answer(pictures[2], question, return_attention=True)
    attention = answer.attention
    assert attention is not None and attention.words == ("what", "color", "is", "the", "house", "?")
    assert attention.weights.shape == (6, 64)
    assert torch.allclose(attention.weights.sum(1), torch.ones(6), atol=1e-5)
    expected = direct_attention(answering, answering.features(pictures[2]), question)
    assert torch.allclose(attention.weights, expected, atol=1e-5)
    assert float((attention.weights - 1 / 64).abs().max()) > 1e-4  # else any network's would do


def test_attention_is_not_changed_by_longer_questions_beside_it(answering: Diptych, pictures) -> None:
    texts = ["red?", "how many boats are there on the sea?"]
    both = answering.answer(pictures[0], texts, return_attention=True)
    for text, answer in zip(texts, both, strict=True):
        [alone] = answering.answer(pictures[0], text, return_attention=True)
        assert same(alone, answer) and alone.attention.words == answer.attention.words
        assert torch.allclose(alone.attention.weights, answer.attention.weights, atol=1e-5)


def test_statements_about_two_pictures(answering: Diptych, pictures) -> None:
    left, right = pictures[0], pictures[1]
    statement = "there is a red kite."
    [verdict] = answering.verify((left, right), statement)
    assert (
        bool(verdict) == verdict.true == (verdict.probability > 0.5)
        and str(verdict) == str(verdict.true).lower()
    )
    [swapped] = answering.verify((right, left), statement)
    assert not math.isclose(verdict.probability, swapped.probability, abs_tol=1e-6)
    pairs = [(left, right), (right, left), (pictures[2], pictures[4])]
    statements = [statement, statement, "two boats."]
    several = answering.verify(pairs, statements, batch_size=2)
    assert len(several) == 3
    with torch.inference_mode():
        for found, pair, text in zip(several, pairs, statements, strict=True):
            sides = [states(answering, picture, text) for picture in pair]
            logits = answering.parts.captions.transformer.pair_logits(*sides)  # of (false, true)
            assert math.isclose(found.probability, float(logits.softmax(-1)[0, 1]), abs_tol=1e-5)
    for found, pair, text in zip(several, pairs, statements, strict=True):
        assert math.isclose(found.probability, answering.verify(pair, text)[0].probability, abs_tol=1e-5)
    with pytest.raises(UserError, match="1 statements for 2 pairs"):
        answering.verify([(left, right), (left, right)], [statement])
    with pytest.raises(UserError, match="two pictures"):
        answering.verify((left, right, left), statement)


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ("", "has no word"),
        (" ?! ", "has no word"),
        ("is there a zeppelin?", "never read: zeppelin"),
        ("is there a zeppelin on the quagmire?", "zeppelin, quagmire"),
        ("is there a \u98a8?", "never read"),
        ("is there " + "a red kite " * 6 + "?", "word pieces, this model reads 18"),
    ],
)
def test_questions_that_cannot_be_read(answering: Diptych, pictures, question: str, message: str) -> None:
    for call in (
        lambda: answering.answer(pictures[0], question),
        lambda: answering.answer(pictures[0], [QUESTIONS[0], question]),
        lambda: answering.check_question(question),
        lambda: answering.verify((pictures[0], pictures[1]), question),
    ):
        with pytest.raises(UserError, match=message) as failed:
            call()
        assert "\n" not in str(failed.value)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        answering.check_question(QUESTIONS[0])


def test_the_first_question_that_is_wrong_is_named(answering: Diptych, pictures) -> None:
    pair = (pictures[0], pictures[1])
    for number in range(20):  # by chance, another one would be named
        texts = [f"is there a zeppelin{letter}?" for letter in "abcdef"[number % 6 :]]
        first = texts[0].split()[-1].rstrip("?")
        with pytest.raises(UserError, match=f"never read: {first};"):
            answering.answer(pictures[0], texts)
        with pytest.raises(UserError, match=f"never read: {first};"):
            answering.verify([pair] * len(texts), texts)
    with pytest.raises(UserError, match=r"questions have to be text, \['is there a red kite\?'\] is none"):
        answering.answer(pictures[0], [[QUESTIONS[0]]])
    with pytest.raises(UserError, match="statements have to be text"):
        answering.verify([pair], [[QUESTIONS[0]]])


def test_other_mistakes(answering: Diptych, diptych: Diptych, pictures) -> None:
    with pytest.raises(UserError, match="2 questions for 3 pictures"):
        answering.answer(pictures[:3], QUESTIONS[:2])
    with pytest.raises(UserError, match="no picture"):
        answering.answer([], QUESTIONS[0])
    with pytest.raises(UserError, match="at least 1"):
        answering.answer(pictures[0], QUESTIONS[0], most=0)
    for call in (
        lambda: answering.answer(pictures[0], QUESTIONS[0], batch_size=0),
        lambda: answering.verify((pictures[0], pictures[1]), "a red kite.", batch_size=-1),
    ):
        with pytest.raises(UserError, match="batch_size: .*at least 1"):
            call()
    assert answering.can_answer and answering.can_verify
    assert not diptych.can_answer and not diptych.can_verify
    for call in (
        lambda: diptych.answer(pictures[0], "a red kite?"),
        lambda: diptych.check_question("a red kite?"),
    ):
        with pytest.raises(UserError, match="no answer head"):
            call()
    with pytest.raises(UserError, match="no head for pairs"):
        diptych.verify((pictures[0], pictures[1]), "a red kite.")
