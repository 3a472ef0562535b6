"""X-LXMERT's pretraining: what is masked, that only what a task reads is computed, and that it learns."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from architectures import both_architectures

from diptych.model.answer_table import AnswerTable
from diptych.model.decoding.answer import question_states
from diptych.model.decoding.caption import encode_images
from diptych.model.errors import UserError
from diptych.model.networks.architectures import build_transformer
from diptych.model.objectives.pretraining import (
    bernoulli_mask,
    feature_regression_loss,
    mask_words,
    masked_word_loss,
    matching_loss,
)
from diptych.model.training import pretraining
from diptych.model.training.initial import with_heads
from diptych.model.training.optimisation import add_gradients
from diptych.model.training.pretraining import PretrainingConfig, PretrainingSteps, masked_in, pretrain
from diptych.model.training.processes import Processes
from diptych.model.training.questions import QuestionTable
from diptych.model.training.sentences import SentenceTable

TABLE = AnswerTable(["red", "blue", "green"])
LENGTH = 20
CONFIG = PretrainingConfig(
    steps=30,
    batch_size=6,
    text_length=LENGTH,
    learning_rate=3e-3,
    warmup_share=0.1,
    clip_norm=1.0,
    ema_decay=0.0,
    precision="float32",
    seed=3,
    checkpoint_seconds=60,
)


@pytest.fixture
def pretrained(tiny):
    """A model with all heads of both pretrainings, which captions by `masked` attention, and questions about its pictures."""
    config = dataclasses.replace(
        tiny.model.config,
        caption_attention="masked",
        answers=len(TABLE),
        matching=True,
        regresses=True,
        object_classes=4,
    )
    torch.manual_seed(1)
    model = build_transformer(config)
    model.set_codebook(tiny.codebook)
    rows = [
        {"image_ids": [key], "question": "what color?", "answers": [TABLE.answers[index % 3]] * 10}
        for index, key in enumerate(tiny.train.keys)
    ]
    return model, QuestionTable(rows, tiny.train.keys, tiny.tokenizer, TABLE, LENGTH)


def test_words_are_masked_as_berts(tiny) -> None:
    torch.manual_seed(0)
    ids = tiny.ids.repeat(4000, 1)
    changed, chosen = mask_words(tiny.tokenizer, ids)
    special = torch.isin(ids, torch.tensor([tiny.tokenizer.pad, tiny.tokenizer.cls, tiny.tokenizer.sep]))
    assert not (chosen & special).any()
    assert changed[~chosen].equal(ids[~chosen])
    words = int((~special).sum())
    assert int(chosen.sum()) / words == pytest.approx(0.15, abs=0.01)
    masked = changed[chosen] == tiny.tokenizer.mask
    kept = changed[chosen] == ids[chosen]
    assert float(masked.float().mean()) == pytest.approx(0.8, abs=0.01)
    # a tenth stays; of the drawn words a few are the same, or were special tokens, which nobody reads
    vocabulary = len(tiny.tokenizer)
    assert float(kept.float().mean()) == pytest.approx(0.1 + 0.1 * 6 / vocabulary, abs=0.01)
    drawn = changed[chosen][~masked & ~kept]
    assert not torch.isin(drawn, tiny.tokenizer.forbidden).any() and len(drawn.unique()) > vocabulary // 2


def test_cells_are_masked_one_by_one_and_at_least_one_of_each_picture() -> None:
    torch.manual_seed(0)
    masked = bernoulli_mask(4000, 64)
    assert float(masked.float().mean()) == pytest.approx(0.15, abs=0.005)
    assert bernoulli_mask(4000, 2).any(1).all()


def test_cells_are_masked_in_their_share_of_the_steps() -> None:
    counts = Counter(masked_in(step, 5, 0.6) for step in range(3000))
    assert counts["cells"] == pytest.approx(1800, abs=100)
    assert counts["words"] == pytest.approx(counts["nothing"], abs=100)
    assert {masked_in(step, 5, 1.0) for step in range(100)} == {"cells"}
    assert "cells" not in {masked_in(step, 5, 0.0) for step in range(100)}


def test_each_modality_is_masked_in_a_third_of_the_steps() -> None:
    counts = Counter(masked_in(step, 5, 1 / 3) for step in range(3000))
    assert set(counts) == {"cells", "words", "nothing"}
    assert all(count == pytest.approx(1000, abs=100) for count in counts.values())
    assert [masked_in(step, 5, 1 / 3) for step in range(20)] != [masked_in(step, 6, 1 / 3) for step in range(20)]


@both_architectures
def test_losses_are_those_of_a_whole_forward_pass(tiny, pretrained) -> None:
    """Everything computed, all heads everywhere, then picked: as the released code does."""
    model = pretrained[0]
    images = [0, 1, 2]
    features = torch.from_numpy(tiny.train.grid(images)).float()
    changed, chosen = mask_words(tiny.tokenizer, tiny.ids, share=0.5)
    visible = tiny.ids != tiny.tokenizer.pad
    text, _ = model(changed, visible, features)
    words = F.cross_entropy(model.word_logits(text)[chosen], tiny.ids[chosen])
    texts = [part[:, None] for part in (changed, tiny.ids, chosen)]
    ours = masked_word_loss(model, tiny.tokenizer, encode_images(model, features), *texts)
    assert ours.item() == pytest.approx(words.item(), rel=1e-5)

    own = torch.tensor([True, False, True])
    text, _ = model(tiny.ids, visible, features)
    matching = F.cross_entropy(model.matching_logits(text[:, 0]), own.long())
    ours, states = matching_loss(
        model, tiny.tokenizer, encode_images(model, features), tiny.ids[:, None], own[:, None]
    )
    assert ours.item() == pytest.approx(matching.item(), rel=1e-5)
    assert torch.allclose(states, text[:, 0], atol=1e-5)

    masked = torch.rand(3, 16) < 0.4
    _, visual = model(tiny.ids, visible, features, masked)
    wanted = (features - model.visual_embedding.feature_mean) / model.visual_embedding.feature_scale
    predicted = model.feature_head(visual)
    regression = F.mse_loss(predicted[masked], wanted[masked])
    detector = torch.nn.Linear(10, 4)
    classes = F.cross_entropy(model.object_head(predicted[masked]), detector(features[masked]).softmax(-1))
    ours = feature_regression_loss(model, tiny.tokenizer, features, tiny.ids, masked, detector)
    assert [loss.item() for loss in ours] == pytest.approx([regression.item(), classes.item()], rel=1e-5)


def test_sentences_are_captions_and_questions_of_the_picture(tiny, pretrained) -> None:
    torch.manual_seed(0)
    table = SentenceTable(tiny.train, tiny.tokenizer, LENGTH, pretrained[1])
    captions = {tuple(row.tolist()) for row in tiny.tokenizer.encode(tiny.train.captions(0), LENGTH)}
    question = tuple(tiny.tokenizer.encode_questions(["what color?"], LENGTH)[0].tolist())
    drawn = table.choose([0] * 300)
    counts = Counter(tuple(row.tolist()) for row in drawn.ids)
    assert set(counts) == {*captions, question}
    assert all(count == pytest.approx(100, abs=40) for count in counts.values())
    asked = torch.tensor([tuple(row.tolist()) == question for row in drawn.ids])
    assert drawn.shares[asked].equal(torch.tensor([[1.0, 0, 0]]).expand(int(asked.sum()), 3))
    assert not drawn.shares[~asked].any()
    assert {tuple(row.tolist()) for row in table.choose([0] * 100, captions_only=True).ids} == captions
    every = {tuple(row.tolist()) for row in table.choose_any(400)}
    assert len(every) == 7  # two captions of each of three, and the question


def test_without_questions_only_captions_are_read(tiny) -> None:
    drawn = SentenceTable(tiny.train, tiny.tokenizer, LENGTH, None).choose([0, 1])
    assert drawn.shares.shape == (2, 0)


@both_architectures
@pytest.mark.parametrize("task", ["cells", "words", "nothing"])
@pytest.mark.parametrize(
    ("discrete", "attention", "sentences"), [(True, "masked", 1), (False, "masked", 1), (True, "prefix", 3)]
)
def test_pieces_add_up_to_the_gradient_of_the_whole_batch(
    tiny, pretrained, task: str, discrete: bool, attention: str, sentences: int
) -> None:
    model, questions = pretrained
    model.config = dataclasses.replace(model.config, caption_attention=attention)
    gradients, detector = [], torch.nn.Linear(10, 4)
    for accumulation in (1, 3):
        config = dataclasses.replace(
            CONFIG, accumulation=accumulation, discrete=discrete, sentences_per_image=sentences
        )
        steps = PretrainingSteps(
            config, model, tiny.tokenizer, tiny.codebook, tiny.train, questions, detector
        )
        step = next(number for number in range(30) if masked_in(number, config.seed, config.cells_share) == task)
        torch.manual_seed(2)
        model.zero_grad()
        add_gradients(steps.pieces(step, steps.read(step)))
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert torch.allclose(gradients[0], gradients[1], rtol=1e-3, atol=1e-5)


def test_codes_are_predicted_from_captions_only(tiny, pretrained, monkeypatch: pytest.MonkeyPatch) -> None:
    """ "Data alignment" is a parameter: without it questions are read, too."""
    model, questions = pretrained
    asked: list[bool] = []
    choose = SentenceTable.choose

    def watched(self, images, captions_only=False, per_image=1):
        asked.append(captions_only)
        return choose(self, images, captions_only, per_image)

    monkeypatch.setattr(SentenceTable, "choose", watched)
    for captions_only in (True, False):
        config = dataclasses.replace(CONFIG, captions_only=captions_only)
        steps = PretrainingSteps(config, model, tiny.tokenizer, tiny.codebook, tiny.train, questions)
        for task in ("cells", "words", "nothing"):
            step = next(number for number in range(30) if masked_in(number, config.seed, config.cells_share) == task)
            steps.pieces(step, steps.read(step))
    assert asked == [True, False, False, False, False, False]


@pytest.mark.parametrize(
    ("discrete", "attention", "sentences"), [(True, "masked", 1), (False, "masked", 1), (True, "prefix", 3)]
)
def test_pretraining_learns_every_task(
    tiny, pretrained, discrete: bool, attention: str, sentences: int
) -> None:
    model, questions = pretrained
    model.config = dataclasses.replace(model.config, caption_attention=attention)
    config = dataclasses.replace(
        CONFIG,
        steps=400,
        discrete=discrete,
        masked_words=0.4,
        sentences_per_image=sentences,
        batch_size=16,
    )
    objects = torch.nn.Linear(10, 4)
    torch.nn.init.normal_(objects.weight)  # sure enough of its classes to be learned from
    record = pretrain(
        config,
        model,
        tiny.tokenizer,
        tiny.codebook,
        tiny.train,
        questions,
        None,
        "cpu",
        None if discrete else objects,
    )
    # which text belongs to a picture is learned later where features are seen, and not within these steps
    names = ["code_loss", "matching_loss"] if discrete else ["feature_loss", "object_loss"]
    for name in [*names, "word_loss", "answer_loss"]:
        rows = [row[name] for row in record.history if name in row]
        first, last = (float(np.mean(part)) for part in (rows[:5], rows[-5:]))
        assert last < 0.97 * first, (name, first, last)


@both_architectures
def test_by_prefix_words_are_read_from_the_states_that_questions_have(tiny, pretrained) -> None:
    """Two texts about each picture, and no cell sees them."""
    model = pretrained[0]
    model.config = dataclasses.replace(model.config, caption_attention="prefix")
    images = encode_images(model, torch.from_numpy(tiny.train.grid([0, 1, 2])).float())
    ids = torch.stack([tiny.ids, tiny.ids.roll(1, 0)], 1)
    first = torch.zeros_like(ids, dtype=torch.bool)
    first[..., 0] = True
    loss = masked_word_loss(model, tiny.tokenizer, images, ids, ids, first)
    states = question_states(model, tiny.tokenizer, images, ids)
    wanted = F.cross_entropy(model.word_logits(states), ids[..., 0].flatten())
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)
    matching, own = matching_loss(model, tiny.tokenizer, images, ids, torch.ones(3, 2, dtype=torch.bool))
    assert own.equal(states) and matching.item() > 0


def test_heads_that_are_missing_are_named(tiny) -> None:
    model = with_heads(tiny.model, 0, answers=TABLE, matching=True)
    with pytest.raises(UserError, match="no head that regresses features"):
        feature_regression_loss(
            model, tiny.tokenizer, tiny.features, tiny.ids, torch.ones(3, 16, dtype=torch.bool)
        )


def test_shares_of_masked_words_are_checked() -> None:
    with pytest.raises(UserError, match=r"masked_words must be in \(0, 1\], is 0"):
        dataclasses.replace(CONFIG, masked_words=0.0)
    with pytest.raises(UserError, match="sentences_per_image must be at least 1"):
        dataclasses.replace(CONFIG, sentences_per_image=0)
    with pytest.raises(UserError, match="cells_share"):
        dataclasses.replace(CONFIG, cells_share=1.5)
    with pytest.raises(UserError, match=r"least_masked must be in \[0, 1\), is 1"):
        dataclasses.replace(CONFIG, least_masked=1.0)


def test_all_processes_have_gradients_of_the_same_weights(pretrained, tiny, monkeypatch) -> None:
    """Also where one of them has no question in its rows: what they sum must be alike."""
    model, _ = pretrained
    few = QuestionTable(
        [{"image_ids": [tiny.train.keys[0]], "question": "what color?", "answers": ["red"] * 10}],
        tiny.train.keys, tiny.tokenizer, TABLE, LENGTH,
    )  # fmt: skip
    unlike = 0
    for step in range(40):
        found = []
        for rank in range(2):
            monkeypatch.setattr(pretraining, "current_processes", lambda rank=rank: Processes(rank, 2))
            steps = PretrainingSteps(CONFIG, model, tiny.tokenizer, tiny.codebook, tiny.train, few)
            model.zero_grad()
            torch.manual_seed(step)
            add_gradients(steps.pieces(step, steps.read(step)))
            found.append({name for name, weight in model.named_parameters() if weight.grad is not None})
            heads = [weight.grad for weight in model.answer_head.parameters() if weight.grad is not None]
            unlike += bool(heads) and not any(bool(gradient.any()) for gradient in heads)
        assert found[0] == found[1]
    assert unlike  # a process without a question beside one with some
