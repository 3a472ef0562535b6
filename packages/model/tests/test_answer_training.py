"""Questions in training: what is asked, of whom, and that the same visual pass serves captions and answers."""

from __future__ import annotations

import copy
import dataclasses
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from architectures import both_architectures

from diptych.model.answer_table import AnswerTable, build_answer_table, load_answer_table
from diptych.model.decoding.answer import answer_logits
from diptych.model.decoding.caption import encode_images
from diptych.model.errors import UserError
from diptych.model.objectives.answers import answer_loss, answer_score_loss
from diptych.model.training.initial import with_heads
from diptych.model.training.optimisation import add_gradients
from diptych.model.training.questions import QuestionSettings, QuestionTable, tell_left_out
from diptych.model.training.token import TokenSteps, TokenTrainingConfig, train_token

TABLE = AnswerTable(["red", "blue", "green", "2", "1"])
ASKED = [
    # of the three pictures that the captions take turns in (conftest.CAPTIONS)
    [("what color is it?", ["red"] * 9 + ["blue"]), ("how many are there?", ["1"] * 8 + ["one"] * 2)],
    [("what color is it?", ["blue"] * 10), ("how many are there?", ["2"] * 5 + ["two"] * 5)],
    [("what color is it?", ["green"] * 7 + ["mauve"] * 3)],
]
LENGTH = 20
CONFIG = TokenTrainingConfig(
    steps=8,
    caption_share=0.5,
    caption_batch_size=6,
    captions_per_image=2,
    paint_batch_size=4,
    caption_length=12,
    learning_rate=3e-3,
    warmup_share=0.1,
    clip_norm=1.0,
    ema_decay=0.0,
    precision="float32",
    seed=3,
    checkpoint_seconds=60,
    label_smoothing=0.0,
    least_masked=0.0,
    text_drop=0.0,
    questions=QuestionSettings(share=1.0, questions_per_image=2, length=LENGTH),
)


def rows(keys: list[str]) -> list[dict]:
    """Questions about all pictures but the last."""
    return [
        {"question_id": f"{key}-{number}", "image_ids": [key], "question": question, "answers": answers}
        for index, key in enumerate(keys[:-1])
        for number, (question, answers) in enumerate(ASKED[index % 3])
    ]


@pytest.fixture(params=["prefix", "masked"])
def asked(request, tiny):
    """A model with an answer head, by either attention scheme, and the questions about its pictures."""
    model = with_heads(tiny.model, 0, answers=TABLE)
    model.config = dataclasses.replace(model.config, caption_attention=request.param)
    questions = QuestionTable(rows(tiny.train.keys), tiny.train.keys, tiny.tokenizer, TABLE, LENGTH)
    return model, questions


def test_shares_are_those_of_known_answers_after_normalisation() -> None:
    assert TABLE.shares(["two", "2", "a red", "Red.", "mauve"]) == {3: 0.5, 0: 0.5}
    assert TABLE.shares(["mauve"]) == {}


def test_the_table_holds_what_questions_are_answered_with(tmp_path) -> None:
    answers = [["two"] * 10, ["2"] * 6 + ["3"] * 4, ["red", "red", "blue"], [""] * 3]
    assert build_answer_table(answers, 1).answers == ("2", "red")
    assert build_answer_table(answers, 2).answers == ("2",)
    with pytest.raises(UserError, match="no answer is that of 3 training questions"):
        build_answer_table(answers, 3)
    TABLE.save(tmp_path)
    again = load_answer_table(tmp_path, len(TABLE))
    assert again is not None and again.answers == TABLE.answers
    assert load_answer_table(tmp_path, 0) is None
    with pytest.raises(UserError, match="5 answers, but the answer head has 4"):
        load_answer_table(tmp_path, 4)
    (tmp_path / "answers.json").write_text('["red", "red"]')
    with pytest.raises(UserError, match=r"answers\.json.*'red' 2 times"):
        load_answer_table(tmp_path, 2)


def test_questions_about_other_pictures_and_with_unknown_answers_are_left_out(tiny, capsys) -> None:
    some = rows(tiny.train.keys)
    some += [
        {"question_id": "x", "image_ids": ["elsewhere"], "question": "what is it?", "answers": ["red"]},
        {
            "question_id": "y",
            "image_ids": [tiny.train.keys[0]],
            "question": "what is it?",
            "answers": ["mauve"],
        },
        {"question_id": "z", "image_ids": tiny.train.keys[:2], "question": "it is red.", "answers": ["true"]},
    ]
    table = QuestionTable(some, tiny.train.keys, tiny.tokenizer, TABLE, LENGTH)
    assert table.left_out == 3
    tell_left_out(table, 4, "vqa")
    assert "vqa: 3 of 4 questions left out" in capsys.readouterr().out
    assert table.images == list(range(len(tiny.train) - 1))
    with pytest.raises(UserError, match="no question about the training images"):
        QuestionTable(some[-3:], tiny.train.keys, tiny.tokenizer, TABLE, LENGTH)


def test_chosen_questions_are_the_pictures_own_and_different_while_there_are_enough(tiny) -> None:
    table = QuestionTable(rows(tiny.train.keys), tiny.train.keys, tiny.tokenizer, TABLE, LENGTH)
    last = len(tiny.train) - 1
    chosen = table.choose([0, 2, last], 2)
    assert sorted(table.texts[number] for number in chosen[0].tolist()) == sorted(q for q, _ in ASKED[0])
    assert len(set(chosen[1].tolist())) == 1  # there is one question about it
    shares = table.shares(chosen)
    assert shares.shape == (3, 2, len(TABLE))
    assert (
        shares[:2].sum(-1).allclose(torch.ones(2, 2)) and not shares[2].any()
    )  # nobody asked about the last
    color = table.shares(torch.tensor([0]))[0]
    assert color.tolist() == pytest.approx([0.9, 0.1, 0, 0, 0])


@both_architectures
def test_the_loss_is_the_mean_over_answered_questions(asked, tiny) -> None:
    model, questions = asked
    images = [0, 2, len(tiny.train) - 1]
    features = torch.from_numpy(tiny.train.grid(images)).float()
    chosen = questions.choose(images, 2)
    seen = encode_images(model, features)
    ids, shares = questions.ids[chosen], questions.shares(chosen).flatten(0, 1)
    loss = answer_loss(model, tiny.tokenizer, seen, ids, shares)
    logits = answer_logits(model, tiny.tokenizer, seen, ids)
    assert logits.shape == (6, len(TABLE))
    by_hand = -(shares[:4] * logits[:4].log_softmax(-1)).sum(1).mean()
    assert loss.item() == pytest.approx(by_hand.item(), rel=1e-5)


def test_fine_tuning_sums_the_binary_losses_of_all_answers() -> None:
    logits, scores = torch.tensor([[2.0, -1.0]]), torch.tensor([[1.0, 0.3]])
    expected = -(
        F.logsigmoid(torch.tensor(2.0))
        + 0.3 * F.logsigmoid(torch.tensor(-1.0))
        + 0.7 * F.logsigmoid(torch.tensor(1.0))
    )
    assert answer_score_loss(logits, scores).item() == pytest.approx(expected.item(), rel=1e-6)


@both_architectures
def test_pieces_add_up_to_the_gradient_of_the_whole_batch(asked, tiny) -> None:
    """Words and questions are counted apart; a picture without questions takes nothing from the others."""
    model, questions = asked
    gradients = []
    for accumulation in (1, 3):
        config = dataclasses.replace(CONFIG, accumulation=accumulation)
        steps = TokenSteps(config, model, tiny.tokenizer, tiny.codebook, tiny.train, questions)
        step = next(number for number in range(8) if steps.plan(number)[0])
        torch.manual_seed(1)
        model.zero_grad()
        loss, reported = add_gradients(steps.pieces(step, steps.read(step)))
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
        assert set(reported) == {"caption_loss", "answer_loss"}
        assert loss.item() == pytest.approx(sum(value.item() for value in reported.values()), rel=1e-5)
    assert torch.allclose(gradients[0], gradients[1], rtol=1e-3, atol=1e-6)


def test_captions_and_paintings_are_trained_on_the_same_batches_without_questions(asked, tiny) -> None:
    model, questions = asked
    losses = []
    for settings in (CONFIG.questions, None):
        config = dataclasses.replace(CONFIG, questions=settings)
        steps = TokenSteps(
            config, model, tiny.tokenizer, tiny.codebook, tiny.train, questions if settings else None
        )
        for step in range(4):
            torch.manual_seed(step)
            pieces = steps.pieces(step, steps.read(step))
            reported = pieces[0].loss()[1]
            losses.append({name: value.item() for name, value in reported.items() if name != "answer_loss"})
    assert losses[:4] == losses[4:]


@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
def test_the_share_of_captioning_steps_asks(tiny, share: float) -> None:
    settings = dataclasses.replace(CONFIG.questions, share=share)
    config = dataclasses.replace(CONFIG, steps=80, questions=settings)
    steps = TokenSteps(config, tiny.model, tiny.tokenizer, tiny.codebook, tiny.train)
    captioning = [step for step in range(80) if steps.plan(step)[0]]
    assert Counter(steps.asks(step) for step in captioning)[True] == share * len(captioning)
    with pytest.raises(UserError, match="without the task questions is null"):
        dataclasses.replace(settings, share=0.0)
    with pytest.raises(UserError, match=r"questions\.weight must be above 0"):
        dataclasses.replace(settings, weight=0.0)


def test_answers_are_learned(asked, tiny) -> None:
    model, questions = asked
    config = dataclasses.replace(CONFIG, steps=160)
    record = train_token(
        config, model, tiny.tokenizer, tiny.codebook, tiny.train, None, "cpu", questions=questions
    )
    assert record.history[-1]["answer_loss"] < 0.5 * record.history[0]["answer_loss"]
    images = questions.images[:6]
    chosen = questions.choose(images, 1)
    seen = encode_images(model, torch.from_numpy(tiny.train.grid(images)).float())
    with torch.no_grad():
        said = answer_logits(model, tiny.tokenizer, seen, questions.ids[chosen]).argmax(-1)
    assert said.equal(questions.shares(chosen).flatten(0, 1).argmax(-1))


def test_heads_are_added_and_rows_of_known_answers_copied(tiny) -> None:
    first = with_heads(tiny.model, 0, answers=TABLE)
    same = [name for name in tiny.model.state_dict()]
    assert all(first.state_dict()[name].equal(tiny.model.state_dict()[name]) for name in same)
    other = AnswerTable(["green", "yes", "red"])
    second = with_heads(first, 1, answers=other, known=TABLE, matching=True)
    old, new = first.answer_head.answers.weight, second.answer_head.answers.weight
    assert new[0].equal(old[2]) and new[2].equal(old[0]) and not new[1].any()
    assert second.answer_head.inner.weight.equal(first.answer_head.inner.weight)
    assert second.matching_head is not None and first.matching_head is None


def test_a_model_without_the_head_says_so(tiny) -> None:
    state = torch.zeros(1, tiny.model.config.hidden_size)
    with pytest.raises(UserError, match="no answer head"):
        tiny.model.answer_logits(state)
    with pytest.raises(UserError, match="no matching head"):
        tiny.model.matching_logits(state)
    with pytest.raises(UserError, match="no head for pairs"):
        tiny.model.pair_logits(state, state)
    assert copy.deepcopy(tiny.model.config).pooled is False
