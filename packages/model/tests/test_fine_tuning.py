"""Fine-tuning on questions and on statements about two pictures."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from diptych.eval.answers.soft_scores import soft_score
from diptych.model.answer_table import AnswerTable
from diptych.model.decoding.answer import question_states
from diptych.model.decoding.caption import encode_images
from diptych.model.errors import UserError
from diptych.model.training.fine_tuning import (
    FineTuningConfig,
    QuestionSteps,
    StatementSteps,
    StatementTable,
    fine_tune,
)
from diptych.model.training.initial import with_heads
from diptych.model.training.optimisation import add_gradients
from diptych.model.training.questions import QuestionTable

TABLE = AnswerTable(["red", "blue", "green"])
LENGTH = 20
CONFIG = FineTuningConfig(
    steps=200,
    batch_size=6,
    learning_rate=3e-3,
    warmup_share=0.1,
    clip_norm=1.0,
    ema_decay=0.0,
    precision="float32",
    seed=3,
    checkpoint_seconds=60,
)


@pytest.fixture(params=["prefix", "masked"])
def model(request, tiny):
    model = with_heads(tiny.model, 0, answers=TABLE, pairs=True)
    model.config = dataclasses.replace(model.config, caption_attention=request.param)
    return model


@pytest.fixture
def questions(tiny) -> QuestionTable:
    rows = [
        {
            "image_ids": [key],
            "question": "what color?",
            "answers": [TABLE.answers[index % 3]] * 8 + ["blue"] * 2,
        }
        for index, key in enumerate(tiny.train.keys)
    ]
    return QuestionTable(rows, tiny.train.keys, tiny.tokenizer, TABLE, LENGTH)


@pytest.fixture
def statements(tiny) -> StatementTable:
    keys = tiny.train.keys
    rows = [
        {
            "image_ids": [left, right],
            "question": "same color.",
            "answers": ["true" if i + 2 * j >= 3 else "False"],
        }
        for i, left in enumerate(keys[:4])
        for j, right in enumerate(keys[4:])
    ]
    return StatementTable(rows, keys, tiny.tokenizer, LENGTH)


def test_scores_are_those_of_vqas_accuracy(questions: QuestionTable) -> None:
    scores = questions.scores(torch.arange(2))
    for answers, row in zip((["red"] * 8 + ["blue"] * 2, ["blue"] * 10), scores, strict=True):
        assert row.tolist() == pytest.approx([soft_score(answer, answers) for answer in TABLE.answers])
    assert TABLE.scores(["green"]) == {2: 1.0}, "one true answer, as GQA's"


@pytest.mark.parametrize("kind", ["questions", "statements"])
def test_pieces_add_up_to_the_gradient_of_the_whole_batch(
    tiny, model, questions, statements, kind: str
) -> None:
    gradients = []
    for accumulation in (1, 3):
        config = dataclasses.replace(CONFIG, accumulation=accumulation, questions_per_image=1)
        shared = config, model, tiny.tokenizer, tiny.codebook, tiny.train
        steps = (
            QuestionSteps(*shared, questions) if kind == "questions" else StatementSteps(*shared, statements)
        )
        torch.manual_seed(2)
        model.zero_grad()
        add_gradients(steps.pieces(0, steps.read(0)))
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert torch.allclose(gradients[0], gradients[1], rtol=1e-3, atol=1e-5)


def test_questions_are_learned(tiny, model, questions) -> None:
    record = fine_tune(CONFIG, model, tiny.tokenizer, tiny.codebook, tiny.train, questions, None, "cpu")
    assert record.history[-1]["answer_loss"] < 0.6 * record.history[0]["answer_loss"]


def test_statements_are_learned_from_both_pictures(tiny, model, statements) -> None:
    """Neither picture alone tells."""
    assert statements.pairs.shape == (8, 2) and int(statements.true.sum()) == 4
    config = dataclasses.replace(CONFIG, steps=300, batch_size=8)
    fine_tune(config, model, tiny.tokenizer, tiny.codebook, tiny.train, statements, None, "cpu")
    features = torch.from_numpy(tiny.train.grid(statements.pairs.flatten().tolist())).float()
    with torch.no_grad():
        texts = statements.ids.repeat_interleave(2, 0)[:, None]
        states = question_states(model, tiny.tokenizer, encode_images(model, features), texts)
        said = model.pair_logits(states[::2], states[1::2]).argmax(-1)
    assert said.bool().equal(statements.true)


def test_statements_that_cannot_be_used(tiny) -> None:
    keys = tiny.train.keys
    good = {"question_id": "1", "image_ids": keys[:2], "question": "same color.", "answers": ["true"]}
    table = StatementTable(
        [good, good | {"image_ids": [keys[0], "elsewhere"]}, good | {"image_ids": keys[:1]}],
        keys,
        tiny.tokenizer,
        LENGTH,
    )
    assert table.left_out == 2 and len(table.true) == 1
    with pytest.raises(UserError, match="statement 1: its answers are.*maybe"):
        StatementTable([good | {"answers": ["maybe"]}], keys, tiny.tokenizer, LENGTH)
    with pytest.raises(UserError, match="no statement is about two"):
        StatementTable([good | {"image_ids": ["a", "b"]}], keys, tiny.tokenizer, LENGTH)
