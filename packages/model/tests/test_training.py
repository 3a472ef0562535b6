"""Both training stages: they learn, and they resume bit by bit."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch

from diptych.model.checkpoints import TrainingCheckpoints
from diptych.model.decoding.caption import decode_captions
from diptych.model.decoding.paint import paint_codes
from diptych.model.errors import UserError
from diptych.model.training.loop import warmup_cosine
from diptych.model.training.sequence import SequenceTrainingConfig, reference_words, train_sequence
from diptych.model.training.token import TokenTrainingConfig, caption_steps_before, drop_text, train_token

TOKEN = TokenTrainingConfig(
    steps=25,
    caption_share=0.4,
    caption_batch_size=3,
    captions_per_image=2,
    paint_batch_size=4,
    caption_length=12,
    learning_rate=3e-3,
    warmup_share=0.05,
    weight_decay=1e-2,
    clip_norm=1.0,
    label_smoothing=0.2,
    least_masked=0.0,
    text_drop=0.1,
    ema_decay=0.9,
    precision="float32",
    seed=1,
    checkpoint_seconds=0.0,
)
SEQUENCE = SequenceTrainingConfig(
    steps=10,
    scst_steps=1,
    clip_steps=1,
    paint_steps=1,
    scst_batch_size=4,
    clip_batch_size=3,
    paint_batch_size=4,
    caption_length=10,
    learning_rate=1e-3,
    weight_decay=1e-2,
    clip_norm=1.0,
    label_smoothing=0.2,
    least_masked=0.0,
    text_drop=0.1,
    ema_decay=0.0,
    sample_temperature=1.0,
    mask_predict_steps=2,
    guidance=1.0,
    gumbel_temperature=1.0,
    precision="float32",
    seed=1,
    checkpoint_seconds=0.0,
)


class Killed(Exception):
    """The process died here."""


class KilledAfter(TrainingCheckpoints):
    """Checkpoints of a process that dies right after its n-th save."""

    def __init__(self, folder, saves):
        super().__init__(folder)
        self.saves = saves

    def save(self, state):
        super().save(state)
        self.saves -= 1
        if self.saves == 0:
            raise Killed


class WordReward:
    """The share of one word among a caption's words."""

    def __init__(self, word: int) -> None:
        self.word = word

    def reward(self, image_indices, candidates):
        return np.array([words.count(self.word) / len(words) for words in candidates], dtype=np.float32)


def run_token(tiny, config, checkpoints, model=None):
    model = copy.deepcopy(tiny.model) if model is None else model
    record = train_token(config, model, tiny.tokenizer, tiny.codebook, tiny.train, checkpoints, "cpu")
    return model, record.history


def run_sequence(tiny, config, checkpoints, word=7):
    model, frozen = copy.deepcopy(tiny.model), [*tiny.generator.parameters(), *tiny.scorer.parameters()]
    before = copy.deepcopy(frozen)
    history = train_sequence(
        config,
        model,
        tiny.tokenizer,
        tiny.codebook,
        tiny.train,
        WordReward(word),
        tiny.generator,
        tiny.scorer,
        checkpoints,
        "cpu",
    )
    assert all(one.equal(other) for one, other in zip(before, frozen, strict=True))
    return model, history


@pytest.mark.parametrize(("run", "config", "saves"), [(run_token, TOKEN, 13), (run_sequence, SEQUENCE, 5)])
@pytest.mark.parametrize("torn", [False, True])
def test_a_killed_run_resumes_bit_by_bit(tiny, tmp_path, run, config, saves, torn):
    tiny.model.config = dataclasses.replace(tiny.config, dropout=0.1)
    for module in tiny.model.modules():
        if hasattr(module, "dropout"):
            module.dropout = 0.1
    whole, history = run(tiny, config, None)
    with pytest.raises(Killed):
        run(tiny, config, KilledAfter(tmp_path, saves))
    if torn:
        newest = max(tmp_path.glob("*.pt"))
        newest.write_bytes(newest.read_bytes()[:1000])
        with pytest.warns(UserWarning, match="unreadable"):
            resumed, resumed_history = run(tiny, config, TrainingCheckpoints(tmp_path))
    else:
        resumed, resumed_history = run(tiny, config, TrainingCheckpoints(tmp_path))
    for one, other in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert one.equal(other)
    assert resumed_history == history
    assert len(list(tmp_path.iterdir())) == 2


def test_a_checkpoint_of_other_settings_is_not_resumed(tiny, tmp_path):
    config = dataclasses.replace(TOKEN, steps=3)
    run_token(tiny, config, TrainingCheckpoints(tmp_path))
    other = dataclasses.replace(config, learning_rate=1e-3)
    fresh, _ = run_token(tiny, other, None)
    again, _ = run_token(tiny, other, TrainingCheckpoints(tmp_path))
    assert all(
        a.equal(b) for a, b in zip(fresh.state_dict().values(), again.state_dict().values(), strict=True)
    )


def test_a_small_set_is_learned_by_heart(tiny):
    """After training, every caption is one of its image's, and painting gives each caption's own codes back."""
    # Images 0..2 only, so that a caption belongs to one picture.
    tiny.train.keys = tiny.train.keys[:3]
    config = dataclasses.replace(
        TOKEN, steps=360, caption_share=0.25, learning_rate=6e-3, label_smoothing=0.1, paint_batch_size=9
    )
    model, history = run_token(tiny, config, None)
    assert history[-1]["step"] == 360 and history[-1]["caption_loss"] < history[0]["caption_loss"]
    features = torch.from_numpy(tiny.train.grid([0, 1, 2])).float()
    captions = decode_captions(model, tiny.tokenizer, model.encode_visual_prefix(features), 12)
    for index in range(3):
        assert tiny.tokenizer.decode(captions.ids[index]) in tiny.train.captions(index)
    codes = torch.from_numpy(tiny.train.codes([0, 1, 2]))
    painted = paint_codes(model, tiny.tokenizer, tiny.codebook, tiny.ids, guidance=1.5).codes
    assert (painted == codes).float().mean() > 0.9


def test_sequence_training_raises_its_reward(tiny):
    words = tiny.tokenizer.words(tiny.ids[0])  # a red kite floats .
    others = torch.ones(len(tiny.tokenizer), dtype=torch.bool)
    others[words] = False
    with torch.no_grad():
        tiny.model.word_bias[others] = -20
    config = dataclasses.replace(SEQUENCE, steps=60, clip_steps=0, paint_steps=0, learning_rate=3e-3)
    _, history = run_sequence(tiny, config, None, words[2])
    assert history[-1]["scst_reward"] > history[0]["scst_reward"] + 0.2


def test_reference_words_are_what_the_reward_compares(tiny):
    references = reference_words(tiny.tokenizer, tiny.train, 12)
    assert len(references) == 6 and len(references[0]) == 2
    assert references[0][0] == tiny.tokenizer.words(tiny.ids[0])


def test_learning_rate_and_task_schedule():
    rates = [warmup_cosine(step, 100, 2.0, 0.05) for step in range(100)]
    assert rates[:5] == pytest.approx([0.4, 0.8, 1.2, 1.6, 2.0])
    assert rates[5] == 2.0 and rates == sorted(rates[:5]) + sorted(rates[5:], reverse=True)
    assert rates[-1] < 0.002
    for share in (0.0, 0.3, 0.5, 1.0):
        assert caption_steps_before(1000, share) == 1000 * share


def test_dropped_text_is_the_unconditional_text(tiny):
    torch.manual_seed(0)
    ids = tiny.ids[:1].expand(1000, -1)
    dropped = (drop_text(tiny.tokenizer, ids, 0.1) != ids).any(1)
    assert 70 < int(dropped.sum()) < 130
    row = drop_text(tiny.tokenizer, ids, 1.0)[0]
    assert row[:2].equal(tiny.tokenizer.no_text(1)[0]) and (row[2:] == tiny.tokenizer.pad).all()


def test_bfloat16_training_stays_close_to_float32(tiny):
    config = dataclasses.replace(TOKEN, steps=20)
    _, exact = run_token(tiny, config, None)
    _, half = run_token(tiny, dataclasses.replace(config, precision="bfloat16"), None)
    for figure in ("caption_loss", "paint_loss"):
        assert half[0][figure] == pytest.approx(exact[0][figure], rel=0.05)
        assert half[0][figure] != exact[0][figure]


def test_a_loss_that_is_not_a_number_stops_the_run(tiny):
    tiny.train._grid[:] = np.inf
    with pytest.raises(UserError, match="at step 2.*no checkpoint"):
        run_token(tiny, TOKEN, None)


def test_wrong_codebook_and_settings_are_named(tiny):
    tiny.codebook = tiny.codebook[:5]
    with pytest.raises(UserError, match=r"\(5, 10\).*\(12, 10\)"):
        run_token(tiny, TOKEN, None)
