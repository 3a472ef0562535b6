"""BUTD's captioner against a plain statement of its equations; decoding, SCST, training."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from diptych.eval.captions.cider import CiderDReward
from diptych.model.decoding.butd import BUTDNextWord, caption_vectors
from diptych.model.decoding.caption import word_log_probabilities
from diptych.model.decoding.options import CaptionOptions
from diptych.model.errors import UserError
from diptych.model.networks.butd import BUTD, BUTDConfig, named_config
from diptych.model.objectives.butd import BUTDPolicy
from diptych.model.objectives.scst import paid_words
from diptych.model.tokenizer import build_tokenizer
from diptych.model.training.butd import BUTDSteps, train_butd
from diptych.model.training.butd_config import BUTDTrainingConfig
from diptych.model.training.optimisation import add_gradients
from diptych.model.training.scst import reference_words

D, K, LENGTH = 6, 5, 10
CAPTIONS = [
    ["a red kite floats.", "a kite that is red."],
    ["two blue boats rest on the sea.", "some boats of blue."],
    ["a green house stands alone.", "one green house."],
]
TOKENIZER = build_tokenizer([text for texts in CAPTIONS for text in texts], 1)


class Images:
    """Images of k vectors that say which of three captions are theirs."""

    def __init__(self, count: int) -> None:
        self.keys = [f"{index:06d}" for index in range(count)]
        noise = np.random.default_rng(0).normal(0, 0.3, (count, K, D))
        noise[np.arange(count), np.arange(count) % K, np.arange(count) % 3] += 3
        self.vectors = noise.astype("float16")

    def __len__(self) -> int:
        return len(self.keys)

    def grid(self, indices):
        return self.vectors[indices]

    def captions(self, index: int) -> list[str]:
        return CAPTIONS[index % 3]


def network(width: int = 8) -> BUTD:
    torch.manual_seed(0)
    return BUTD(BUTDConfig(D, len(TOKENIZER), 7, width, 4, 0.0)).eval()


WORDS = BUTDTrainingConfig(
    steps=60,
    learning_rate=1e-2,
    warmup_share=0.1,
    clip_norm=1.0,
    ema_decay=0.0,
    precision="float32",
    seed=3,
    checkpoint_seconds=60,
    objective="words",
    batch_size=6,
    captions_per_image=2,
    caption_length=LENGTH,
)


def plain_logits(model: BUTD, vectors: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Equations 2 to 7 for one image ``[k, D]`` and one caption, the gates of an LSTM written out: ``[t, V]``."""

    def lstm(cell, x, h, c):
        gates = cell.weight_ih @ x + cell.bias_ih + cell.weight_hh @ h + cell.bias_hh
        enter, forget, new, out = gates.chunk(4)
        c = forget.sigmoid() * c + enter.sigmoid() * new.tanh()
        return out.sigmoid() * c.tanh(), c

    zero = torch.zeros(model.config.hidden_size)
    h1 = c1 = h2 = c2 = zero
    rows = []
    for word in ids:
        x1 = torch.cat([h2, vectors.mean(0), model.words.weight[word]])
        h1, c1 = lstm(model.looking, x1, h1, c1)
        energies = [
            model.relevance.weight[0] @ torch.tanh(model.keys.weight @ v + model.query.weight @ h1)
            for v in vectors
        ]
        shares = torch.stack(energies).softmax(0)
        attended = sum(share * v for share, v in zip(shares, vectors, strict=True))
        h2, c2 = lstm(model.speaking, torch.cat([attended, h1]), h2, c2)
        rows.append(model.word_head.weight @ h2 + model.word_head.bias)
    return torch.stack(rows)


def test_equals_the_papers_equations():
    model, vectors = network(), torch.randn(2, K, D)
    ids = TOKENIZER.encode([text for texts in CAPTIONS[:2] for text in texts], LENGTH)
    with torch.no_grad():
        ours = model.logits(model.caption_states(ids, model.read(vectors)))
        for row in range(4):
            expected = plain_logits(model, vectors[row // 2], ids[row])
            torch.testing.assert_close(ours[row], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "rows", [[0, 1, 2], [0, 0, 1, 1, 2, 2], [2, 0], [0, 0, 1], [1, 1, 2, 0], [2, 2, 0, 0]]
)
@torch.no_grad()
def test_a_cached_word_is_what_all_words_together_say(rows):
    """Whatever rows of the batch go on, once or twice, and after that others."""
    model, vectors = network(), torch.randn(3, K, D)
    ids = TOKENIZER.encode([texts[0] for texts in CAPTIONS], LENGTH)
    kept = torch.tensor(rows)
    next_word = BUTDNextWord(model, model.read(vectors))
    next_word.logits(ids[:, :1])
    next_word.keep(kept)
    next_word.logits(ids[kept, :2])
    again = torch.arange(len(rows)).flip(0)[: max(1, len(rows) - 1)]
    next_word.keep(again)
    found = next_word.logits(ids[kept[again], :4])
    places = kept[again]
    whole = model.logits(model.caption_states(ids[places, :4], model.read(vectors[places])))
    torch.testing.assert_close(found, whole[:, -1], rtol=1e-4, atol=1e-5)


def test_samples_and_beams_of_an_image_do_not_depend_on_the_batch():
    model, vectors = network(), torch.randn(3, K, D)
    for options in (
        CaptionOptions(length=LENGTH, method="sample", samples=3),
        CaptionOptions(length=LENGTH, method="beam", beams=3, samples=2),
        CaptionOptions(length=LENGTH),
    ):
        together = caption_vectors(model, TOKENIZER, vectors, options, [4, 5, 6]).ids
        alone = caption_vectors(model, TOKENIZER, vectors[1:2], options, [5]).ids
        assert together[options.samples : 2 * options.samples].equal(alone)
    with pytest.raises(UserError, match="no image"):
        caption_vectors(model, TOKENIZER, vectors[:0], CaptionOptions(length=LENGTH))
    with pytest.raises(UserError, match="width 5.*built for 6"):
        caption_vectors(model, TOKENIZER, vectors[..., :5], CaptionOptions(length=LENGTH))


@torch.no_grad()
def test_self_critical_loss_is_the_mean_over_captions():
    model, vectors = network(), torch.randn(2, K, D)
    ids = TOKENIZER.encode(["a red kite.", "a kite", "two blue boats rest.", "a house."], LENGTH)
    advantages = torch.tensor([0.5, -1.0, 2.0, 0.3])
    (part,) = BUTDPolicy(model, TOKENIZER).losses(model.read(vectors), ids, advantages, 0.7)
    words, expected = paid_words(TOKENIZER, ids), 0.0
    for row in range(4):
        choices = word_log_probabilities(
            plain_logits(model, vectors[row // 2], ids[row, :-1]), TOKENIZER, 0.7
        )
        taken = choices.gather(1, ids[row, 1:, None])[:, 0]
        expected -= float(advantages[row] * taken[words[row]].sum()) / 4
    assert float(part()) == pytest.approx(expected, rel=1e-4)


def test_learns_to_caption_and_scst_raises_the_reward():
    images, model = Images(12), network(32)
    history = train_butd(replace(WORDS, steps=150), model, TOKENIZER, images, None, "cpu").history
    assert history[-1]["caption_loss"] < 0.5 * history[0]["caption_loss"]
    reward = CiderDReward(reference_words(TOKENIZER, images, LENGTH))

    def cider() -> float:
        vectors = torch.from_numpy(images.grid(list(range(12)))).float()
        ids = caption_vectors(model, TOKENIZER, vectors, CaptionOptions(length=LENGTH)).ids
        return float(np.mean(reward.reward(list(range(12)), [TOKENIZER.words(row) for row in ids])))

    before = cider()
    sequence = replace(WORDS, objective="scst", steps=100, learning_rate=3e-3, captions_per_image=5)
    history = train_butd(sequence, model, TOKENIZER, images, None, "cpu", reward).history
    assert {"scst_reward", "greedy_reward"} <= history[-1].keys()
    assert history[-1]["scst_reward"] > history[0]["scst_reward"]
    assert cider() > before


@pytest.mark.parametrize("objective", ["words", "scst"])
def test_a_step_in_pieces_has_the_gradient_of_the_whole(objective):
    images = Images(12)
    reward = None
    if objective == "scst":
        reward = CiderDReward(reference_words(TOKENIZER, images, LENGTH))
    gradients = []
    for accumulation in (1, 3):
        model = network()
        config = replace(WORDS, objective=objective, accumulation=accumulation)
        steps = BUTDSteps(config, model, TOKENIZER, images, reward, torch.device("cpu"))
        torch.manual_seed(1)
        add_gradients(steps.pieces(0, steps.read(0)))
        gradients.append([weight.grad.clone() for weight in model.parameters()])
    for whole, pieces in zip(*gradients, strict=True):
        torch.testing.assert_close(pieces, whole, rtol=1e-4, atol=1e-6)


def test_what_is_wrong_with_settings_is_said():
    with pytest.raises(UserError, match="captions_per_image to 2 or more"):
        replace(WORDS, objective="scst", baseline="mean", captions_per_image=1)
    with pytest.raises(UserError, match="sample_temperature must be above 0"):
        replace(WORDS, sample_temperature=0.0)
    with pytest.raises(UserError, match="no BUTD is named 'huge'"):
        named_config("huge", feature_dim=4, vocab_size=5)
    with pytest.raises(UserError, match=r"butd_base\.json.*hidden_size must be a whole number from 1 on"):
        named_config("base", feature_dim=4, vocab_size=5, hidden_size=0)
