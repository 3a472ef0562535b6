"""Both training stages: they learn, and they resume bit by bit."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch
from architectures import both_architectures

from diptych.model.checkpoints import TrainingCheckpoints
from diptych.model.decoding.caption import decode_captions
from diptych.model.decoding.paint import paint_codes
from diptych.model.errors import UserError
from diptych.model.training.schedules import warmup_constant, warmup_cosine
from diptych.model.training.scst import reference_words
from diptych.model.training.sequence import SequenceTrainingConfig, train_sequence
from diptych.model.training.sequence_evaluation import SequenceEvaluation, SequenceEvaluationConfig
from diptych.model.training.stopping import Stopping
from diptych.model.training.token import TokenTrainingConfig, drop_text, task_steps_before, train_token

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
    model = copy.deepcopy(tiny.model)
    frozen = [*tiny.generator.parameters(), *tiny.scorer.parameters()]
    before = copy.deepcopy(frozen)
    record = train_sequence(
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
    return model, record.history


OTHER_SEQUENCE = dataclasses.replace(
    SEQUENCE,
    baseline="mean",
    samples_per_image=3,
    painting_loss="features",
    straight_through=True,
    accumulation=2,
)


@pytest.mark.parametrize(
    ("run", "config", "attention", "saves"),
    [
        (run_token, TOKEN, "prefix", 13),
        (run_token, dataclasses.replace(TOKEN, muon=3.0), "masked", 13),
        (run_sequence, SEQUENCE, "prefix", 5),
        (run_sequence, SEQUENCE, "masked", 5),
        (run_sequence, OTHER_SEQUENCE, "masked", 5),
    ],
)
@pytest.mark.parametrize("torn", [False, True])
def test_a_killed_run_resumes_bit_by_bit(tiny, tmp_path, run, config, attention, saves, torn):
    tiny.model.config = dataclasses.replace(tiny.config, dropout=0.1, caption_attention=attention)
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


@both_architectures
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


@pytest.mark.parametrize(
    ("attention", "changes"),
    [("prefix", {}), ("masked", {}), ("prefix", {"baseline": "mean", "samples_per_image": 4})],
)
def test_sequence_training_raises_its_reward(tiny, attention, changes):
    tiny.model.config = dataclasses.replace(tiny.config, caption_attention=attention)
    words = tiny.tokenizer.words(tiny.ids[0])  # a red kite floats .
    others = torch.ones(len(tiny.tokenizer), dtype=torch.bool)
    others[words] = False
    with torch.no_grad():
        tiny.model.word_bias[others] = -20
    config = dataclasses.replace(
        SEQUENCE, steps=60, clip_steps=0, paint_steps=0, learning_rate=3e-3, **changes
    )
    _, history = run_sequence(tiny, config, None, words[2])
    assert history[-1]["scst_reward"] > history[0]["scst_reward"] + 0.2


@pytest.mark.parametrize("attention", ["prefix", "masked"])
@pytest.mark.parametrize("vision", [True, False])
def test_scst_trains_what_sees_the_image_alone_if_told_to(tiny, attention, vision):
    tiny.model.config = dataclasses.replace(tiny.config, caption_attention=attention)
    config = dataclasses.replace(
        SEQUENCE, steps=2, clip_steps=0, paint_steps=0, samples_per_image=16, scst_vision=vision
    )
    before = {name: weight.clone() for name, weight in tiny.model.state_dict().items()}
    model, _ = run_sequence(tiny, config, None)
    moved = {name for name, weight in model.state_dict().items() if not weight.equal(before[name])}
    assert any(
        name.startswith("language_layers" if attention == "masked" else "cross_layers") for name in moved
    )
    assert any(name.startswith("visual_layers") for name in moved) == vision


@both_architectures
@pytest.mark.parametrize("attention", ["prefix", "masked"])
def test_sequence_training_in_pieces_is_that_of_the_whole_batch(tiny, attention):
    """SCST samples by image, so that pieces change nothing; painting's noise is drawn for each piece, hence left out."""
    tiny.model.config = dataclasses.replace(tiny.config, caption_attention=attention)
    config = dataclasses.replace(SEQUENCE, steps=6, clip_steps=0)
    whole, history = run_sequence(tiny, config, None)
    pieces, in_pieces = run_sequence(tiny, dataclasses.replace(config, accumulation=3), None)
    ends = [
        torch.cat([weight.flatten() for weight in model.state_dict().values()]) for model in (whole, pieces)
    ]
    assert (ends[0] - ends[1]).norm() < 1e-4 * ends[0].norm()
    for row, other in zip(history, in_pieces, strict=True):
        assert row == pytest.approx(other, rel=1e-3, abs=1e-6)


def test_greedy_captions_do_not_change_what_is_sampled_beside_them(tiny):
    """One decoding of both gives what two would."""
    from diptych.model.decoding.caption import encode_images, next_word_of, write_captions

    images = encode_images(tiny.model, tiny.features)
    count = len(tiny.features)

    def write(rows, temperature, seeds):
        next_word = next_word_of(tiny.model, tiny.tokenizer, images, 12)
        next_word.keep(torch.arange(count).repeat_interleave(rows))
        return write_captions(next_word, tiny.tokenizer, count * rows, 12, "cpu", temperature, seeds).ids

    together = write(2, [0.0, 1.3] * count, [9] * (2 * count)).view(count, 2, -1)
    assert together[:, 0].equal(write(1, 0.0, None))
    assert together[:, 1].equal(write(1, 1.3, [9] * count))
    assert not together[:, 0].equal(together[:, 1])


@pytest.mark.parametrize(("task", "figure"), [("scst", "scst_reward"), ("clip", "clip_loss")])
def test_the_weight_of_a_loss_scales_its_gradient_alone(tiny, task, figure):
    others = {f"{name}_steps": 0 for name in ("scst", "clip", "paint") if name != task}
    # of so many samples some have the rewarded word
    config = dataclasses.replace(
        SEQUENCE, steps=1, clip_norm=1e9, baseline="mean", samples_per_image=16, **others
    )
    (_, once), (_, thrice) = (
        run_sequence(tiny, dataclasses.replace(config, **{f"{task}_weight": weight}), None)
        for weight in (1.0, 3.0)
    )
    assert once[0]["gradient_norm"] > 0
    assert thrice[0]["gradient_norm"] == pytest.approx(3 * once[0]["gradient_norm"], rel=1e-4)
    assert thrice[0][figure] == pytest.approx(once[0][figure])


def test_the_rate_of_stage_2_stays_or_falls(tiny):
    config = dataclasses.replace(SEQUENCE, steps=4, scst_steps=0, clip_steps=0)
    (_, stays), (_, falls) = (
        run_sequence(tiny, dataclasses.replace(config, schedule=schedule), None)
        for schedule in ("constant", "cosine")
    )
    assert stays[-1]["learning_rate"] == config.learning_rate > 3 * falls[-1]["learning_rate"] > 0


@pytest.mark.parametrize(
    "wrong", [{"warmup_share": 1.5}, {"clip_weight": -1.0}, {"scst_weight": -1.0}, {"all_masked": 1.5}]
)
def test_a_setting_out_of_range_is_named(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        dataclasses.replace(SEQUENCE, **wrong)


def test_the_mean_baseline_wants_samples():
    with pytest.raises(UserError, match="samples_per_image to 2 or more"):
        dataclasses.replace(SEQUENCE, baseline="mean")


def test_reference_words_are_what_the_reward_compares(tiny):
    references = reference_words(tiny.tokenizer, tiny.train, 12)
    assert len(references) == 6 and len(references[0]) == 2
    assert references[0][0] == tiny.tokenizer.words(tiny.ids[0])


def test_learning_rate_and_task_schedule():
    rates = [warmup_cosine(step, 100, 2.0, 0.05) for step in range(100)]
    assert rates[:5] == pytest.approx([0.4, 0.8, 1.2, 1.6, 2.0])
    assert rates[5] == 2.0 and rates == sorted(rates[:5]) + sorted(rates[5:], reverse=True)
    assert rates[-1] < 0.002
    rates = [warmup_constant(step, 100, 2.0, 0.05) for step in range(100)]
    assert rates[:5] == pytest.approx([0.4, 0.8, 1.2, 1.6, 2.0]) and set(rates[5:]) == {2.0}
    assert {warmup_constant(step, 100, 2.0, 0.0) for step in range(100)} == {2.0}
    for share in (0.0, 0.3, 0.5, 1.0):
        assert task_steps_before(1000, share) == 1000 * share


def test_dropped_text_is_the_unconditional_text(tiny):
    torch.manual_seed(0)
    ids = tiny.ids[:1].expand(1000, -1)
    dropped = (drop_text(tiny.tokenizer, ids, 0.1) != ids).any(1)
    assert 70 < int(dropped.sum()) < 130
    row = drop_text(tiny.tokenizer, ids, 1.0)[0]
    assert row[:2].equal(tiny.tokenizer.no_text(1)[0]) and (row[2:] == tiny.tokenizer.pad).all()


@both_architectures
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


# Ending a training whose figures fall

STOPPING = Stopping(watched=("val_cider_d", "val_main_object"), tolerance=0.1, patience=2)


def rows(*objects: float) -> list[dict[str, float]]:
    return [
        {"val_cider_d": 1.0, "val_clip_score": index, "val_main_object": value}
        for index, value in enumerate(objects)
    ]


def test_a_fall_is_named_and_ends_after_patience():
    assert STOPPING.fallen(rows(0.5, 0.46)) == [], "within the tolerance"
    assert STOPPING.fallen(rows(0.5, 0.44)) == ["val_main_object from 0.5 to 0.44"]
    assert not STOPPING.ends(rows(0.5, 0.44))
    assert not STOPPING.ends(rows(0.5, 0.44, 0.5, 0.3)), "in turn"
    assert STOPPING.ends(rows(0.5, 0.44, 0.4))
    assert STOPPING.ends(rows(0.3, 0.6, 0.5, 0.5)), "measured from the best"


def test_what_is_not_finite_has_fallen():
    nan = float("nan")
    assert STOPPING.fallen(rows(0.5, nan)) == ["val_main_object from 0.5 to nan"]
    assert STOPPING.fallen(rows(nan)) == ["val_main_object from nan to nan"]
    assert STOPPING.fallen(rows(nan, float("inf"), 0.5)) == [], "the best is the best that is finite"
    assert STOPPING.fallen(rows(nan, 0.5, 0.4)) == ["val_main_object from 0.5 to 0.4"]


class FallingInspection:
    """Paintings that get worse from the third evaluation on."""

    def __init__(self) -> None:
        self.values = iter([0.5, 0.6, 0.55, 0.4, 0.3, 0.2])

    def __call__(self, pictures, images):
        assert (
            pictures.shape == (3, 3, 4, 4) and 0 <= pictures.min() <= pictures.max() <= 1 and len(images) == 3
        )
        return {"val_main_object": next(self.values)}


def train_watched(tiny, checkpoints, inspect, stopping=STOPPING, steps=20):
    model = copy.deepcopy(tiny.model)
    evaluation = SequenceEvaluationConfig(
        every=2, images=3, mask_predict_steps=2, guidance=1.0, stopping=stopping
    )
    config = dataclasses.replace(SEQUENCE, steps=steps, evaluation=evaluation)
    measured = SequenceEvaluation(
        evaluation, config, model, tiny.tokenizer, tiny.codebook, tiny.train, WordReward(7), tiny.generator, tiny.scorer,
        inspect,
    )  # fmt: skip
    record = train_sequence(
        config, model, tiny.tokenizer, tiny.codebook, tiny.train, WordReward(7), tiny.generator, tiny.scorer,
        checkpoints, "cpu", measured,
    )  # fmt: skip
    return model, record


def test_training_ends_and_keeps_the_weights_from_before_the_fall(tiny, capfd):
    model, record = train_watched(tiny, None, FallingInspection())
    assert [row["step"] for row in record.evaluations] == [0, 2, 4, 6, 8]
    assert "ended after step 8, val_main_object from 0.6 to 0.3" in capfd.readouterr().out
    # within the tolerance of 0.1 after step 4; the same as a run that ends there
    short, _ = train_watched(tiny, None, None, stopping=None, steps=4)
    assert all(
        a.equal(b) for a, b in zip(model.state_dict().values(), short.state_dict().values(), strict=True)
    )
    assert set(record.evaluations[0]) == {"step", "val_cider_d", "val_clip_score", "val_main_object"}


def test_a_killed_training_keeps_the_same_weights(tiny, tmp_path):
    whole, _ = train_watched(tiny, None, FallingInspection())
    inspect = FallingInspection()
    with pytest.raises(Killed):
        train_watched(tiny, KilledAfter(tmp_path, 7), inspect)
    resumed, record = train_watched(tiny, TrainingCheckpoints(tmp_path), inspect)
    assert [row["step"] for row in record.evaluations] == [0, 2, 4, 6, 8]
    assert all(
        a.equal(b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True)
    )


def test_what_cannot_be_watched_is_named(tiny):
    with pytest.raises(UserError, match="val_main_object cannot be measured here"):
        train_watched(tiny, None, None)
    with pytest.raises(UserError, match="val_hue cannot be measured here; known are val_cider_d, val_clip_score, val_main"):
        Stopping(watched=("val_hue",), tolerance=0.0, patience=1).fallen(rows(0.5))
    with pytest.raises(UserError, match="val_clip_score is what the training raises"):
        SequenceEvaluationConfig(
            every=2, images=3, mask_predict_steps=2, guidance=1.0,
            stopping=Stopping(watched=("val_clip_score",), tolerance=0.0, patience=1),
        )  # fmt: skip
    with pytest.raises(UserError, match="patience must be at least 1"):
        Stopping(watched=(), tolerance=0.0, patience=0)
