"""Stage 2 as the released code has it, against a restatement of it on Hugging Face's LXMERT: paintings relaxed once, in
the end; 250 times the CLIP loss beside SCST in one step of AdamW; codebook vectors as the target without CLIP."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from benchmarks.reference_model import ReferenceModel
from diptych.model.checkpoints import TrainingCheckpoints
from diptych.model.decoding.decisions import PAPER, REFERENCE
from diptych.model.decoding.paint import paint_codes
from diptych.model.errors import UserError
from diptych.model.importers.checkpoint import build
from diptych.model.importers.names import common_names
from diptych.model.importers.x_lxmert import GENERATE_IT_NAMES, UNTRAINED
from diptych.model.objectives.sequence import PROMPT, clip_loss, relaxed_painting
from diptych.model.training.optimisation import add_gradients
from diptych.model.training.sequence import SequenceSteps, SequenceTrainingConfig, train_sequence

RELEASED = SequenceTrainingConfig(
    steps=3,
    scst_steps=1,
    clip_steps=1,
    paint_steps=1,
    joint_tasks=("scst", "clip"),
    scst_batch_size=4,
    clip_batch_size=3,
    paint_batch_size=4,
    caption_length=10,
    learning_rate=1e-3,
    clip_norm=1.0,
    label_smoothing=0.2,
    least_masked=0.0,
    text_drop=0.0,
    ema_decay=0.0,
    sample_temperature=1.0,
    clip_weight=250.0,
    feature_target="codebook",
    mask_predict_steps=4,
    guidance=1.0,
    gumbel_softmax="end",
    fresh_confidence=True,
    gumbel_temperature=1.0,
    precision="float32",
    seed=1,
    checkpoint_seconds=0.0,
)
IN_TURNS = dataclasses.replace(RELEASED, joint_tasks=())


class UnlikeRewards:
    """A reward of a caption's words alone, which nearly every caption has for itself; it remembers what it has scored."""

    def reward(self, image_indices, candidates):
        self.images, self.candidates = list(image_indices), [list(words) for words in candidates]
        values = [sum(place * word for place, word in enumerate(words, 1)) % 11 / 11 for words in candidates]
        return np.array(values, dtype=np.float32)


def build_pair(tiny, seed=1):
    """The reference and ours with the same random weights in float32; 16 cells, 60 codes."""
    torch.manual_seed(seed)
    config = dataclasses.replace(tiny.config, code_head="features", language_layers=2, codebook_size=60)
    config = dataclasses.replace(config, caption_attention="masked")
    reference = ReferenceModel(config, torch.randn(60, 10) * 3, std=0.3).eval()
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            elif name.startswith("encoder") and name.endswith("output.dense.weight"):
                parameter.normal_(std=0.1)
        reference.classifier.predictions.bias[tiny.tokenizer.stop] += 1.5
    for table in reference.embedding_layer.children():
        if isinstance(table, torch.nn.Embedding):
            table.padding_idx = None  # their first row never trains; ours does
    tensors = {name: tensor.clone() for name, tensor in reference.state_dict().items()}
    imported = build(Path("reference"), common_names(tensors, GENERATE_IT_NAMES), config, None, unused=UNTRAINED)
    tiny.generator.requires_grad_(False)
    tiny.scorer.requires_grad_(False)
    return SimpleNamespace(reference=reference, model=imported.model.eval(), codebook=imported.codebook)


def released_painting(reference, ids, pad, steps, temperature, hard=False):
    """Mask-predict by the likeliest codes, all cells ranked anew in each step; Gumbel-softmax once, of the logits that
    wrote the painting, times the codebook."""
    n, cells = len(ids), reference.cells
    codes = torch.zeros(n, cells, dtype=torch.int64)
    masked = torch.ones(n, cells, dtype=torch.bool)
    written = torch.zeros(n, cells, 60)
    for step in range(steps):
        _, logits = reference(reference.cluster_codebook(codes), ids, ids != pad, masked)
        logits = logits[:, :cells]
        written = torch.where(masked[..., None], logits, written)
        probabilities, likeliest = logits.detach().softmax(-1).max(-1)
        codes = torch.where(masked, likeliest, codes)
        lowest = probabilities.topk(int((steps - step - 1) / steps * cells), dim=1, largest=False).indices
        masked = torch.zeros_like(masked).scatter(1, lowest, True)
    return F.gumbel_softmax(written, tau=temperature, hard=hard) @ reference.cluster_codebook.weight


def released_clip_loss(tiny, vectors, texts):
    """100 times CLIPScore, to be raised."""
    pictures = (tiny.generator(vectors) + 1) / 2
    cosines = (tiny.scorer.encode_images(pictures) * tiny.scorer.encode_texts(texts)).sum(-1)
    return -(100 * 2.5 * cosines.clamp(min=0)).mean()


def released_scst_loss(pair, tokenizer, features, candidates, rewards):
    """Of a greedy and a sampled caption for each picture: minus the difference of their rewards times the sampled
    caption's log-probability, word by word in full passes; the mean over words, which equation 2 does not have."""
    loss, count = torch.zeros(()), sum(map(len, candidates[1::2]))
    for image, (words, greedy, sampled) in enumerate(
        zip(candidates[1::2], rewards[::2], rewards[1::2], strict=True)
    ):
        for place, word in enumerate(words, 1):
            shown = torch.tensor([[tokenizer.cls, *words[: place - 1], tokenizer.mask]])
            logits, _ = pair.reference(features[image][None], shown, torch.ones_like(shown, dtype=torch.bool))
            logits = logits[0, pair.reference.cells + place]
            chances = logits.index_fill(0, tokenizer.forbidden, float("-inf")).log_softmax(-1)
            loss = loss - (sampled - greedy) * chances[word] / count
    return loss


def gradients(model):
    return {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for name, parameter in model.named_parameters()
    }


def assert_same_gradients(pair, least):
    """The reference's gradients come to our names by importing them as if they were weights."""
    theirs = {name: tensor.clone() for name, tensor in gradients(pair.reference).items()}
    theirs["cluster_codebook.weight"] = pair.codebook
    imported = build(Path("gradients"), common_names(theirs, GENERATE_IT_NAMES), pair.model.config, None, unused=UNTRAINED)
    expected = dict(imported.model.named_parameters())
    ours = gradients(pair.model)
    largest = max(float(gradient.abs().max()) for gradient in ours.values())
    for name, gradient in ours.items():
        torch.testing.assert_close(
            gradient, expected[name].detach(), rtol=1e-3, atol=1e-5 * largest, msg=name
        )
    assert sum(bool(gradient.any()) for gradient in ours.values()) > least


# --- painting --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize(("steps", "temperature"), [(1, 1.0), (4, 1.0), (3, 0.5)])
def test_a_painting_relaxed_in_the_end_is_the_released_one(tiny, steps, temperature, hard):
    pair, pad = build_pair(tiny), tiny.tokenizer.pad
    torch.manual_seed(3)
    expected = released_painting(pair.reference, tiny.ids, pad, steps, temperature, hard)
    loss = released_clip_loss(tiny, expected, [PROMPT + text for text in tiny.texts])
    assert loss < -10  # the cosine is above 0, or the loss had no gradient
    loss.backward()
    torch.manual_seed(3)
    vectors = relaxed_painting(
        pair.model, tiny.tokenizer, pair.codebook, tiny.ids, steps, 1.0, temperature, hard,
        gumbel_softmax="end", fresh_confidence=True,
    )  # fmt: skip
    torch.testing.assert_close(vectors, expected, rtol=1e-3, atol=1e-4)
    ours = 250 * clip_loss(vectors, tiny.texts, tiny.generator, tiny.scorer)
    assert ours.item() == pytest.approx(loss.item(), rel=1e-5)
    ours.backward()
    assert_same_gradients(pair, least=50)


@pytest.mark.parametrize("gumbel_softmax", ["each_step", "end"])
@pytest.mark.parametrize("fresh", [False, True])
def test_without_noise_each_way_paints_what_decoding_paints(tiny, gumbel_softmax, fresh):
    """Both rankings, of paintings that the ranking decides."""
    rankings = set()
    for seed in range(3):
        pair = build_pair(tiny, seed)
        codes = {
            decisions: paint_codes(
                pair.model, tiny.tokenizer, pair.codebook, tiny.ids, 4, 2.0, decisions=decisions
            ).codes
            for decisions in (PAPER, REFERENCE)
        }
        with torch.no_grad():
            vectors = relaxed_painting(
                pair.model, tiny.tokenizer, pair.codebook, tiny.ids, 4, 2.0, 1.0, True, 1e-4,
                gumbel_softmax=gumbel_softmax, fresh_confidence=fresh,
            )  # fmt: skip
        expected = pair.codebook[codes[REFERENCE if fresh else PAPER]]
        torch.testing.assert_close(vectors, expected, rtol=1e-4, atol=1e-4)
        rankings.add(codes[PAPER].equal(codes[REFERENCE]))
    assert False in rankings


def test_noise_of_the_end_changes_no_code_that_a_step_sees(tiny):
    """Hard samples of many paintings of one caption have the mean of the greedy painting's distributions, which is not
    the mean where each step sees what was drawn."""
    pair, count = build_pair(tiny), 1500

    def mean_painting(gumbel_softmax):
        torch.manual_seed(0)
        with torch.no_grad():
            vectors = relaxed_painting(
                pair.model, tiny.tokenizer, pair.codebook, tiny.ids[:1].expand(count, -1), 4, 1.0, 1.0, True,
                recompute=False, gumbel_softmax=gumbel_softmax,
            )  # fmt: skip
        return vectors.mean(0)

    expected = (greedy_logits(pair, tiny).softmax(-1) @ pair.codebook)[0]
    # five standard deviations of the mean of codebook vectors, whose own is 3
    bound = 5 * 3 / count**0.5
    assert (mean_painting("end") - expected).abs().max() < bound
    assert (mean_painting("each_step") - expected).abs().max() > 2 * bound


def greedy_logits(pair, tiny):
    """Logits [1, cells, K] that wrote the greedy painting of the first caption, cells ranked as decoding ranks them."""
    ids, cells = tiny.ids[:1], pair.reference.cells
    codes, written = torch.zeros(1, cells, dtype=torch.int64), torch.zeros(1, cells, 60)
    confidences, masked = torch.zeros(1, cells), torch.ones(1, cells, dtype=torch.bool)
    with torch.no_grad():
        for count in (12, 8, 4, 0):
            _, logits = pair.reference(
                pair.reference.cluster_codebook(codes), ids, ids != tiny.tokenizer.pad, masked
            )
            logits = logits[:, :cells]
            written = torch.where(masked[..., None], logits, written)
            codes = torch.where(masked, logits.argmax(-1), codes)
            confidences = torch.where(masked, logits.softmax(-1).amax(-1), confidences)
            masked = torch.zeros_like(masked).scatter(1, confidences.topk(count, largest=False).indices, True)
    return written


def test_running_steps_again_changes_nothing(tiny):
    pair = build_pair(tiny)

    def painted(recompute):
        pair.model.zero_grad()
        torch.manual_seed(5)
        vectors = relaxed_painting(
            pair.model, tiny.tokenizer, pair.codebook, tiny.ids, 4, 2.0, 1.0,
            recompute=recompute, gumbel_softmax="end", fresh_confidence=True,
        )  # fmt: skip
        vectors.square().mean().backward()
        return vectors.detach(), gradients(copy.deepcopy(pair.model))

    (vectors, again), (kept_vectors, kept) = painted(True), painted(False)
    assert vectors.equal(kept_vectors)
    for name, gradient in kept.items():
        torch.testing.assert_close(again[name], gradient, rtol=1e-5, atol=1e-7)


# --- steps of several tasks ------------------------------------------------------------------------------------------


def steps_of(tiny, pair, config, reward=None):
    reward = reward or UnlikeRewards()
    train = tiny.train
    return SequenceSteps(
        config, pair.model, tiny.tokenizer, pair.codebook, train, reward, tiny.generator, tiny.scorer
    )


def run_pieces(pair, steps, step):
    """Loss and figures of a step; its gradients stay in the model. Choices and noise are the same every time."""
    pair.model.zero_grad()
    torch.manual_seed(7)
    pieces = steps.pieces(step, steps.read(step))
    torch.manual_seed(9)
    loss, figures = add_gradients(pieces)
    return float(loss), {name: float(value) for name, value in figures.items()}


def test_a_joint_step_has_the_released_loss_and_gradient(tiny):
    pair, reward = build_pair(tiny), UnlikeRewards()
    run_pieces(pair, steps_of(tiny, pair, RELEASED, reward), 0)
    per_words = RELEASED.scst_batch_size / sum(map(len, reward.candidates[1::2]))
    reward = UnlikeRewards()
    loss, figures = run_pieces(pair, steps_of(tiny, pair, dataclasses.replace(RELEASED, scst_weight=per_words), reward), 0)
    features = torch.from_numpy(tiny.train.grid(reward.images[::2])).float()
    candidates, texts = reward.candidates, list(tiny.scorer.texts)
    rewards = reward.reward(reward.images, candidates)
    assert (rewards[::2] != rewards[1::2]).sum() > 1  # samples that are no greedy captions
    captions = released_scst_loss(pair, tiny.tokenizer, features, candidates, rewards)
    ids = tiny.tokenizer.encode([text.removeprefix(PROMPT) for text in texts], RELEASED.caption_length)
    torch.manual_seed(9)
    vectors = released_painting(pair.reference, ids, tiny.tokenizer.pad, 4, 1.0)
    pictures = released_clip_loss(tiny, vectors, texts)
    (captions + pictures).backward()
    captions, pictures = captions.detach(), pictures.detach()
    assert loss == pytest.approx(float(captions + pictures), rel=1e-4)
    assert figures["clip_loss"] == pytest.approx(float(pictures) / 250, rel=1e-4)
    assert figures["scst_reward"] == pytest.approx(float(rewards[1::2].mean()))
    assert_same_gradients(pair, least=60)


def test_one_step_of_adamw_for_all_that_train_together(tiny):
    """Two joint steps are torch's own AdamW on the clipped sum of both gradients."""
    config = dataclasses.replace(RELEASED, steps=2, paint_steps=0)
    pair, plain = build_pair(tiny), build_pair(tiny)
    record = train_sequence(
        config, pair.model, tiny.tokenizer, pair.codebook, tiny.train, UnlikeRewards(), tiny.generator, tiny.scorer,
        None, "cpu",
    )  # fmt: skip
    optimizer = torch.optim.AdamW(plain.model.parameters(), lr=config.learning_rate, weight_decay=0.0)
    separate = {
        task: steps_of(tiny, plain, dataclasses.replace(config, joint_tasks=(), **{f"{other}_steps": 0}))
        for task, other in (("scst", "clip"), ("clip", "scst"))
    }
    moved, norms, before = {}, [], {n: w.detach().clone() for n, w in plain.model.named_parameters()}
    plain.model.train()
    for step in range(2):
        torch.manual_seed(config.seed * 1_000_003 + step)
        pieces = [
            piece for steps in separate.values() for piece in steps.pieces(step, steps.read(step))
        ]  # choices of both, then both run
        optimizer.zero_grad()
        add_gradients(pieces)
        norms.append(float(torch.nn.utils.clip_grad_norm_(plain.model.parameters(), config.clip_norm)))
        for name, weight in plain.model.named_parameters():
            if weight.grad is not None:
                moved[name] = moved.get(name, True) & (weight.grad.abs() > 1e-5)
        optimizer.step()
    assert record.history[-1]["gradient_norm"] == pytest.approx(sum(norms) / 2, rel=1e-4)
    assert {"scst_reward", "clip_loss"} <= record.history[-1].keys()
    trained, compared = dict(pair.model.named_parameters()), 0
    for name, weight in plain.model.named_parameters():
        if (
            name in moved
        ):  # where the gradient is no rounding error, whose direction AdamW would follow all the same
            where = moved[name]
            torch.testing.assert_close(trained[name][where], weight[where], rtol=0, atol=2e-5)
            compared += int(where.sum())
            assert not where.any() or not weight[where].equal(before[name][where])
    assert compared > 5000


def test_joint_steps_take_the_batches_that_turns_take(tiny):
    turns = dataclasses.replace(IN_TURNS, scst_steps=2, clip_steps=2, paint_steps=1)
    joint = dataclasses.replace(turns, joint_tasks=("clip", "scst"))
    assert turns.turns == [("scst",), ("scst",), ("clip",), ("clip",), ("paint",)]
    assert joint.turns == [("scst", "clip"), ("scst", "clip"), ("paint",)] and joint.cycle == turns.cycle
    everything = dataclasses.replace(RELEASED, joint_tasks=("scst", "clip", "paint"))
    assert everything.turns == [("scst", "clip", "paint")]
    alone = dataclasses.replace(joint, scst_steps=0)  # as the rows of table 1 that train one task
    assert alone.turns == [("clip",), ("clip",), ("paint",)]
    pair = build_pair(tiny)

    def batches(config, count):
        found = {"scst": [], "clip": [], "paint": []}
        steps = steps_of(tiny, pair, config)
        for step in range(count):
            for task, images in steps.plan(step):
                found[task].append(images)
        return found

    assert batches(joint, 9) == batches(turns, 15)
    assert {task: len(found) for task, found in batches(joint, 9).items()} == {
        "scst": 6,
        "clip": 6,
        "paint": 3,
    }


def test_joint_steps_in_pieces_are_those_of_whole_batches(tiny):
    """Captions and token-level paintings, which draw nothing anew for a piece."""
    pair = build_pair(tiny)
    config = dataclasses.replace(RELEASED, joint_tasks=("scst", "paint"), clip_steps=0)
    whole, whole_figures = run_pieces(pair, steps_of(tiny, pair, config), 0)
    expected = copy.deepcopy(gradients(pair.model))
    cut = steps_of(tiny, pair, dataclasses.replace(config, accumulation=3))
    pieces, figures = run_pieces(pair, cut, 0)
    assert pieces == pytest.approx(whole, rel=1e-4) and figures == pytest.approx(whole_figures, rel=1e-4)
    for name, gradient in gradients(pair.model).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-5)


class Killed(Exception):
    """The process died here."""


class KilledAfterTwo(TrainingCheckpoints):
    """Checkpoints of a process that dies right after its second save."""

    saves = 0

    def save(self, state):
        super().save(state)
        self.saves += 1
        if self.saves == 2:
            raise Killed


def test_the_released_way_resumes_bit_by_bit(tiny, tmp_path):
    def train(checkpoints):
        model = build_pair(tiny).model
        codebook = build_pair(tiny).codebook
        record = train_sequence(
            dataclasses.replace(RELEASED, steps=4), model, tiny.tokenizer, codebook, tiny.train, UnlikeRewards(),
            tiny.generator, tiny.scorer, checkpoints, "cpu",
        )  # fmt: skip
        return model.state_dict(), record.history

    whole, history = train(None)
    with pytest.raises(Killed):
        train(KilledAfterTwo(tmp_path))
    resumed, resumed_history = train(TrainingCheckpoints(tmp_path))
    assert all(resumed[name].equal(weight) for name, weight in whole.items()) and resumed_history == history
    assert {"scst_reward", "clip_loss", "paint_loss"} <= history[-1].keys()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"joint_tasks": ("scst",)}, r"joint_tasks .*\['scst'\]"),
        ({"joint_tasks": ("scst", "scst")}, r"joint_tasks .*different"),
        ({"clip_steps": 2}, "scst_steps and clip_steps must be equal, are 1 and 2"),
    ],
)
def test_tasks_that_cannot_train_together_are_named(wrong, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(RELEASED, **wrong)


# --- without the CLIP loss -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["grid", "codebook"])
def test_the_target_without_clip_is_what_is_asked_for(tiny, target):
    """The step's loss is the squared error to it, by hand; what is not asked for does not matter."""
    pair = build_pair(tiny)
    config = dataclasses.replace(
        IN_TURNS, painting_loss="features", feature_target=target, scst_steps=0, clip_weight=1.0
    )
    steps = steps_of(tiny, pair, config)
    loss, figures = run_pieces(pair, steps, 0)
    expected = copy.deepcopy(gradients(pair.model))
    ((task, images),) = steps.plan(0)
    assert task == "clip"
    torch.manual_seed(7)
    ids, _ = steps.captions.choose(images, 1)
    torch.manual_seed(9)
    vectors = released_painting(pair.reference, ids[:, 0], tiny.tokenizer.pad, 4, 1.0)
    real = {
        "grid": torch.from_numpy(tiny.train.grid(images)).float(),
        "codebook": F.embedding(torch.from_numpy(tiny.train.codes(images)), pair.codebook),
    }[target]
    spread = ((pair.codebook - pair.codebook.mean(0)) ** 2).mean()
    by_hand = ((vectors - real) ** 2).mean() / spread
    by_hand.backward()
    assert loss == pytest.approx(by_hand.item(), rel=1e-4)
    assert figures["features_loss"] == pytest.approx(by_hand.item(), rel=1e-4)
    assert_same_gradients(pair, least=50)
    other = {"grid": "_codes", "codebook": "_grid"}[target]
    setattr(tiny.train, other, getattr(tiny.train, other)[::-1].copy())
    assert run_pieces(pair, steps_of(tiny, pair, config), 0)[0] == loss
    assert all(gradient.equal(expected[name]) for name, gradient in gradients(pair.model).items())
