"""All trainings, decoders and packaged calls on a device that is not the CPU (:mod:`other_device`): everything a step needs is there, no
step waits for the device, and the results are those of the CPU. What waits by its nature is listed here, with the reason."""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from types import FunctionType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import test_answer_training
import test_autoencoder_training
import test_biart
import test_butd
import test_dm_gan
import test_fine_tuning
import test_image_generator
import test_image_generator_game
import test_l_verse_package
import test_pretraining
import test_training
import torch
from architectures import both_architectures
from conftest import FakeGenerator, FakeScorer
from other_device import DEVICE, Mixed, OnDevice, other_device
from PIL import Image
from test_training_loop import LOOP
from torch import Tensor, nn
from torch.utils import _pytree

from diptych.model import Diptych
from diptych.model.decoding.answer import answer_logits, statement_logits
from diptych.model.decoding.biart import caption_codes, paint_texts
from diptych.model.decoding.butd import caption_vectors
from diptych.model.decoding.caption import encode_images
from diptych.model.decoding.decode import caption_images, paint_captions, paint_features
from diptych.model.decoding.dm_gan import paint_pixels
from diptych.model.decoding.gibbs import gibbs_texts
from diptych.model.decoding.options import CaptionOptions, PaintOptions
from diptych.model.decoding.paint import FixedCells
from diptych.model.devices import Texts, sent
from diptych.model.inference.transformer import inference_transformer
from diptych.model.networks.architectures import build_transformer
from diptych.model.networks.biart import BiART, named_config
from diptych.model.objectives import token as objectives
from diptych.model.training import loop, token
from diptych.model.training.autoencoder import train_autoencoder
from diptych.model.training.biart import train_biart
from diptych.model.training.butd import train_butd
from diptych.model.training.contracts import Piece
from diptych.model.training.dm_gan import train_dm_gan
from diptych.model.training.fine_tuning import fine_tune
from diptych.model.training.game import DiscriminatorConfig, GameConfig
from diptych.model.training.image_generator import train_image_generator
from diptych.model.training.initial import with_heads
from diptych.model.training.matching import train_matching
from diptych.model.training.pretraining import masked_in, pretrain
from diptych.model.training.progress import Figures
from diptych.model.training.sequence import train_sequence
from diptych.model.training.token import train_token
from diptych.model.training.token_evaluation import EvaluationConfig

PRECISIONS = ["float32", "bfloat16"]

# Functions that wait, and why they may. All of a training but these never waits.
BEFORE_THE_FIRST_STEP = [
    r"training\.\w+\.(train_\w+|pretrain|fine_tune)",  # networks and codebook go to the device
    r"training\.state\.fingerprint",  # hashes the first weights
    r"a test",  # moves a network of its own
    r"training\.game\.opponent_of",  # the discriminator goes to the device
    r"objectives\.near_codes\.NearCodes\.on",  # which codes are alike goes to the device
    r"networks\.image_generator\.ImageGenerator\.fit_input",  # takes means and scales from the codebook
    # a codebook starts from pictures, once
    r"networks\.vector_quantizer\.VectorQuantizer\.start",
]
EVERY_20_STEPS = [r"training\.progress\.Figures\.collect(\.<listcomp>)?"]  # a row of the history
SAMPLING = [
    r"decoding\.caption\.write_captions",  # done captions leave the batch: one look for each word
    r"training\.scst\.scst_parts",  # the reward is computed on the CPU, once a step
]
EVALUATION = [
    r"training\.token_evaluation\.TokenEvaluation\..*",
    r"decoding\.caption\.write_captions",
    r"decoding\.paint\.texts_to_paint",
    r"devices\.(Texts|Places)\.of",
    r"objectives\.token\.until",
    r"networks\.unified\.UnifiedTransformer\.encode_visual",  # are the pictures' features finite?
    r"tokenizer\.CaptionTokenizer\.\w+",
    r"training\.loop\.evaluate",
]
CHECKPOINTS = [r"training\.state\.TrainingState\..*"]


def unexpected(waits: set[str], *allowed: list[str]) -> set[str]:
    """The waiting functions that are in none of the lists."""
    patterns = [re.compile(pattern) for patterns in allowed for pattern in patterns]
    return {function for function in waits if not any(pattern.fullmatch(function) for pattern in patterns)}


class Quiet(SimpleNamespace):
    """A bar of progress that shows nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diptych.model.training.progress.tqdm", lambda *_, **__: Quiet())


class Reward:
    """So many different words."""

    def reward(self, images, candidates):
        return np.array([len(set(words)) for words in candidates], dtype=np.float32)


class Scorer(FakeScorer):
    """One whose texts are where its weights are."""

    def encode_images(self, images: Tensor) -> Tensor:
        return nn.functional.normalize(self.layer(images.flatten(1)), dim=-1)

    def encode_texts(self, texts: list[str]) -> Tensor:
        return nn.functional.normalize(torch.ones(len(texts), 6, device=self.layer.weight.device), dim=-1)


def by(model: nn.Module, attention: str) -> nn.Module:
    model = copy.deepcopy(model)
    model.config = dataclasses.replace(model.config, caption_attention=attention)
    return model


# Trainings: what runs a few steps of each on a device and returns its record. The CPU's and the device's have equal histories.

Run = Callable[[SimpleNamespace, str, str], Any]


def token_level(attention: str, **changes: Any) -> Run:
    def run(tiny: SimpleNamespace, precision: str, device: str) -> Any:
        settings = {"steps": 3, "precision": precision, **changes}
        config = dataclasses.replace(test_training.TOKEN, **settings)
        model = by(tiny.model, attention)
        return train_token(config, model, tiny.tokenizer, tiny.codebook, tiny.train, None, device)

    return run


def answering(attention: str) -> Run:
    def run(tiny: SimpleNamespace, precision: str, device: str) -> Any:
        model = by(with_heads(tiny.model, 0, answers=test_answer_training.TABLE), attention)
        keys = tiny.train.keys
        questions = test_answer_training.QuestionTable(
            test_answer_training.rows(keys), keys, tiny.tokenizer, test_answer_training.TABLE, 20
        )
        config = dataclasses.replace(test_answer_training.CONFIG, steps=4, precision=precision)
        return train_token(
            config, model, tiny.tokenizer, tiny.codebook, tiny.train, None, device, questions=questions
        )

    return run


def sequence_level(attention: str, **changes: Any) -> Run:
    def run(tiny: SimpleNamespace, precision: str, device: str) -> Any:
        torch.manual_seed(0)
        config = dataclasses.replace(test_training.SEQUENCE, steps=3, precision=precision, **changes)
        return train_sequence(
            config, by(tiny.model, attention), tiny.tokenizer, tiny.codebook, tiny.train, Reward(), FakeGenerator(),
            Scorer(), None, device,
        )  # fmt: skip

    return run


def pretraining(attention: str, **changes: Any) -> Run:
    def run(tiny: SimpleNamespace, precision: str, device: str) -> Any:
        torch.manual_seed(1)
        heads = {"answers": 3, "matching": True, "regresses": True, "object_classes": 4}
        model = build_transformer(dataclasses.replace(tiny.model.config, caption_attention=attention, **heads))
        model.set_codebook(tiny.codebook)
        keys = tiny.train.keys
        rows = [{"image_ids": [key], "question": "what color?", "answers": ["red"] * 10} for key in keys]
        questions = test_pretraining.QuestionTable(rows, keys, tiny.tokenizer, test_pretraining.TABLE, 20)
        # steps that mask each of the three
        seed = next(n for n in range(99) if len({masked_in(step, n, 1 / 3) for step in range(4)}) == 3)
        config = dataclasses.replace(
            test_pretraining.CONFIG, steps=4, precision=precision, masked_words=0.5, seed=seed, **changes
        )
        objects = nn.Linear(10, 4).to(device).requires_grad_(False)
        return pretrain(config, model, tiny.tokenizer, tiny.codebook, tiny.train, questions, None, device, objects)

    return run


def fine_tuning(attention: str, kind: str) -> Run:
    def run(tiny: SimpleNamespace, precision: str, device: str) -> Any:
        model = by(with_heads(tiny.model, 0, answers=test_fine_tuning.TABLE, pairs=True), attention)
        keys, tokenizer = tiny.train.keys, tiny.tokenizer
        if kind == "questions":
            rows = [{"image_ids": [key], "question": "what color?", "answers": ["red"] * 10} for key in keys]
            asked = test_fine_tuning.QuestionTable(rows, keys, tokenizer, test_fine_tuning.TABLE, 20)
        else:
            rows = [
                {"image_ids": [keys[0], key], "question": text, "answers": ["true"]}
                for key, text in zip(keys, ["same color.", "both are red."] * 3, strict=True)
            ]
            asked = test_fine_tuning.StatementTable(rows, keys, tokenizer, 20)
        config = dataclasses.replace(test_fine_tuning.CONFIG, steps=2, precision=precision)
        return fine_tune(config, model, tokenizer, tiny.codebook, tiny.train, asked, None, device)

    return run


def image_generator(**changes: Any) -> Run:
    def run(tiny: SimpleNamespace, precision: str, device: str) -> Any:
        torch.manual_seed(2)
        settings = {"steps": 3, "precision": precision, "perceptual_weight": 1.0, "object_weight": 0.5, **changes}
        config = test_image_generator.training_config(**settings)
        flags, generator = test_image_generator.Flags(8), test_image_generator_game.fresh()
        codebook, encoder = test_image_generator.codebook(16), test_image_generator.TwoMaps()
        return train_image_generator(config, generator, codebook, flags, encoder, None, device)

    return run


def autoencoder(game: GameConfig | None) -> Run:
    def run(tiny: SimpleNamespace, precision: str, device: str) -> Any:
        config = dataclasses.replace(
            test_autoencoder_training.CONFIG, steps=3, precision=precision, least_crop=0.7, game=game
        )
        model, squares = test_autoencoder_training.built(), test_autoencoder_training.Squares(20)
        return train_autoencoder(config, model, squares, None, None, device)

    return run


def small_biart() -> tuple[BiART, Any]:
    texts = [text for texts in test_biart.CAPTIONS for text in texts]
    tokenizer = test_biart.build_tokenizer(texts, 1)
    torch.manual_seed(0)
    config = named_config("smoke", vocab_size=len(tokenizer), codebook_size=test_biart.K, grid_size=4)
    return BiART(dataclasses.replace(config, initial_std=0.3, dropout=0.0)).eval(), tokenizer


def biart(**changes: Any) -> Run:
    def run(tiny: SimpleNamespace, precision: str, device: str) -> Any:
        config = dataclasses.replace(test_biart.CONFIG, steps=2, precision=precision, **changes)
        return train_biart(
            config, *small_biart(), test_biart.Tokens(6), test_biart.CODEBOOK, None, device
        )

    return run


def butd(objective: str) -> Run:
    def run(tiny: SimpleNamespace, precision: str, device: str) -> Any:
        config = dataclasses.replace(test_butd.WORDS, steps=2, precision=precision, objective=objective)
        reward = Reward() if objective == "scst" else None
        return train_butd(
            config, test_butd.network(), test_butd.TOKENIZER, test_butd.Images(6), None, device, reward
        )

    return run


def matching(tiny: SimpleNamespace, precision: str, device: str) -> Any:
    _, texts, pictures = test_dm_gan.networks()
    config = dataclasses.replace(test_dm_gan.MATCHING_TRAINING, steps=2, precision=precision)
    return train_matching(config, texts, pictures, test_dm_gan.TOKENIZER, test_dm_gan.Pictures(8), None, device)


def dm_gan(tiny: SimpleNamespace, precision: str, device: str) -> Any:
    config = dataclasses.replace(test_dm_gan.TRAINING, steps=2, precision=precision)
    return train_dm_gan(
        config, *test_dm_gan.networks(), test_dm_gan.TOKENIZER, test_dm_gan.Pictures(8), None, device
    )


AUTOENCODER_GAME = GameConfig(
    warm_start_steps=1, discriminator=DiscriminatorConfig(channels=8, first_channels=4), learning_rate=1e-3,
    adversarial_weight=1.0, code_weight=0.0, feature_weight=1.0,
)  # fmt: skip
GENERATOR_GAME = dataclasses.replace(test_image_generator_game.GAME, warm_start_steps=1)
OTHER_SEQUENCE = {
    "baseline": "mean", "samples_per_image": 3, "painting_loss": "features", "straight_through": True, "accumulation": 2,
}  # fmt: skip
TRAININGS: dict[str, Run] = {
    "token level, prefix": token_level("prefix", muon=2.0),
    "token level, masked": token_level("masked", accumulation=2, ema_decay=0.0),
    "token level with questions, prefix": answering("prefix"),
    "token level with questions, masked": answering("masked"),
    "sequence level, prefix": sequence_level("prefix"),
    "sequence level, masked": sequence_level("masked"),
    "sequence level, otherwise": sequence_level("masked", **OTHER_SEQUENCE),
    "sequence level, sampled in the end": sequence_level("prefix", gumbel_softmax="end", fresh_confidence=True),
    "pretraining, masked": pretraining("masked"),
    "pretraining, prefix": pretraining("prefix", sentences_per_image=2),
    "pretraining of features": pretraining("masked", discrete=False, uniform_masking=False),
    "fine-tuning, questions": fine_tuning("masked", "questions"),
    "fine-tuning, statements": fine_tuning("masked", "statements"),
    "fine-tuning, statements, prefix": fine_tuning("prefix", "statements"),
    "image generator": image_generator(ema_decay=0.9, perceptual_shift=1),
    "image generator with the game": image_generator(betas=(0.0, 0.999), game=GENERATOR_GAME),
    "autoencoder": autoencoder(None),
    "autoencoder with the game": autoencoder(AUTOENCODER_GAME),
    "BiART": biart(),
    "BiART, regularised": biart(code_drop=0.2, code_spread=1.0, text_drop=0.3, reference_weight=0.0, muon=1.0),
    "BUTD, words": butd("words"),
    "BUTD, scst": butd("scst"),
    "matching": matching,
    "DM-GAN": dm_gan,
}  # fmt: skip


def on_device(run: Run, tiny: SimpleNamespace, precision: str, monkeypatch: pytest.MonkeyPatch) -> tuple:
    """A training's record, and the functions that waited."""
    with other_device(monkeypatch) as device:
        found = run(tiny, precision, str(DEVICE))
    return found, device.waiting


# In bfloat16 one of each kind.
VARIANTS = ("prefix", "otherwise", "in the end", "features", "regularised")
RUNS = [
    (name, precision)
    for precision in PRECISIONS
    for name in TRAININGS
    if precision == "float32" or not name.endswith(VARIANTS)
]


@pytest.mark.parametrize(("name", "precision"), RUNS)
def test_a_training_is_on_its_device_and_no_step_waits_for_it(tiny, name, precision, monkeypatch) -> None:
    record, waiting = on_device(TRAININGS[name], tiny, precision, monkeypatch)
    samples = SAMPLING if "sequence" in name or "scst" in name else []
    assert not unexpected(waiting, BEFORE_THE_FIRST_STEP, EVERY_20_STEPS, samples)
    (found,) = record.history
    assert all(np.isfinite(value) for value in found.values())
    if precision == "float32":  # bfloat16 rounds elsewhere where a GPU takes another way, such as fused attention
        (expected,) = TRAININGS[name](tiny, precision, "cpu").history
        assert found == pytest.approx(expected, rel=2e-4, abs=1e-5)


@both_architectures
def test_a_training_of_either_architecture_is_on_its_device(tiny, monkeypatch) -> None:
    _, waiting = on_device(token_level("masked"), tiny, "bfloat16", monkeypatch)
    assert not unexpected(waiting, BEFORE_THE_FIRST_STEP, EVERY_20_STEPS)


class OnHost:
    """Checkpoints as files keep them: without a device."""

    state: dict | None = None

    def load(self) -> dict | None:
        return self.state

    def save(self, state: dict) -> None:
        def copied(leaf: Any) -> Any:
            return (leaf.inner if isinstance(leaf, OnDevice) else leaf).clone() if isinstance(leaf, Tensor) else leaf

        self.state = _pytree.tree_map(copied, state)


def test_evaluations_and_checkpoints_work_on_the_device(tiny, monkeypatch) -> None:
    """A run that goes on from a checkpoint ends bit by bit as an undisturbed one."""
    config = dataclasses.replace(
        test_training.TOKEN, steps=4, muon=1.0, checkpoint_seconds=-1.0,
        evaluation=EvaluationConfig(every=2, images=3, samples=2, mask_predict_steps=2, guidance=2.0),
    )  # fmt: skip

    def run(checkpoints: OnHost | None, device: str) -> Any:
        model = copy.deepcopy(tiny.model)
        shards = (tiny.train, checkpoints, device, tiny.train)
        return train_token(config, model, tiny.tokenizer, tiny.codebook, *shards), model

    class Killed(Exception):
        pass

    class KilledAtTwo(OnHost):
        def save(self, state: dict) -> None:
            super().save(state)
            if state["step"] == 2:
                raise Killed

    expected, _ = run(None, "cpu")
    checkpoints, allowed = KilledAtTwo(), (BEFORE_THE_FIRST_STEP, EVERY_20_STEPS, EVALUATION, CHECKPOINTS)
    with other_device(monkeypatch) as device:
        with pytest.raises(Killed):
            run(checkpoints, str(DEVICE))
        later = OnHost()
        later.state = checkpoints.state
        found, model = run(later, str(DEVICE))
        _, undisturbed = run(None, str(DEVICE))
    assert not unexpected(device.waiting, *allowed)
    for row, other in zip(found.evaluations, expected.evaluations, strict=True):
        assert row == pytest.approx(other, rel=2e-4)
    for own, other in zip(model.state_dict().values(), undisturbed.state_dict().values(), strict=True):
        assert isinstance(own, OnDevice) and own.inner.equal(other.inner)


def test_a_gpus_losses_are_looked_at_every_20_steps(monkeypatch) -> None:
    looks, collect = [], Figures.collect
    monkeypatch.setattr(Figures, "collect", lambda self: (looks.append(len(self._recent)), collect(self)))
    with other_device(monkeypatch) as device:
        model = nn.Linear(1, 1).to(DEVICE)

        class Steps:
            def read(self, step: int) -> Tensor:
                return torch.ones(1, 1)

            def pieces(self, step: int, data: Tensor) -> list[Piece]:
                def loss() -> tuple[Tensor, dict[str, Tensor]]:
                    mean = model(sent(data, DEVICE)).square().mean()
                    return mean, {"loss": mean.detach()}

                return [Piece(1.0, 1, loss)]

        loop.run_training(
            model, "numbers", dataclasses.replace(LOOP, steps=45), Steps(), lambda step: 0.1, "", None
        )
    assert looks == [loop.HISTORY_STEPS, loop.HISTORY_STEPS, 5]
    assert not unexpected(device.waiting, EVERY_20_STEPS, ["a test"])


# The tests of the test: what it is there to find is found.


def test_a_tensor_that_was_left_on_the_cpu_is_found(tiny, monkeypatch) -> None:
    monkeypatch.setattr(Texts, "to", lambda self, device: self)
    with other_device(monkeypatch), pytest.raises(Mixed, match="cuda:0 and cpu"):
        token_level("prefix")(tiny, "float32", str(DEVICE))


def test_a_tensor_that_is_made_on_the_cpu_is_found(tiny, monkeypatch) -> None:
    smoothed = objectives.smoothed_cross_entropy

    def weighed(logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
        return smoothed(logits * torch.ones(logits.shape[-1]), targets, smoothing)

    monkeypatch.setattr(objectives, "smoothed_cross_entropy", weighed)
    with other_device(monkeypatch), pytest.raises(Mixed):
        token_level("prefix")(tiny, "float32", str(DEVICE))


@pytest.mark.parametrize(
    ("what", "look"),
    [
        ("_local_scalar_dense", lambda loss: loss.item()),
        ("_local_scalar_dense", lambda loss: bool(loss > 0)),
        ("tolist", lambda loss: loss.tolist()),
        ("copy to the CPU", lambda loss: loss.cpu()),
        ("nonzero", lambda loss: (loss > 0).nonzero()),
        ("indexing by a mask", lambda loss: loss[None][loss[None] > 0]),
        ("copy to the device", lambda loss: torch.ones(3).to(loss.device)),
        ("copy to the device", lambda loss: torch.ones(3).to(loss.device, non_blocking=True)),
        ("tensor", lambda loss: torch.tensor([1.0], device=loss.device)),
        ("new_tensor", lambda loss: loss.new_tensor([1.0])),
        ("repeat_interleave without output_size", lambda loss: torch.repeat_interleave((loss[None] > 0).long())),
        ("indexing by the CPU's numbers", lambda loss: loss[None][torch.tensor([0])]),
    ],
)  # fmt: skip
def test_a_look_at_the_device_inside_a_step_is_found(tiny, monkeypatch, what, look) -> None:
    paint_pieces = token.paint_pieces
    # as if the line stood in Diptych's code
    look = FunctionType(look.__code__, {"torch": torch, "__name__": "diptych.model.objectives.x"})

    def looking(*arguments: Any) -> Any:
        def looked(*given: Any) -> Tensor:
            loss = objectives.paint_loss(*given)
            look(loss.detach())
            return loss

        return paint_pieces(*arguments[:-1], looked)

    monkeypatch.setattr(token, "paint_pieces", looking)
    with other_device(monkeypatch) as device:
        token_level("prefix", steps=1, caption_share=0.0)(tiny, "float32", str(DEVICE))
    assert unexpected(device.waiting, BEFORE_THE_FIRST_STEP, EVERY_20_STEPS) == {"objectives.x.<lambda>"}
    assert ("objectives.x.<lambda>", what) in device.waits


def test_the_device_is_one(monkeypatch) -> None:
    with other_device(monkeypatch):
        there = torch.ones(3, device=DEVICE)
        assert there.device == DEVICE and isinstance(there * 2, OnDevice)
        with pytest.raises(TypeError, match="can't convert cuda:0"):
            there.numpy()
        with pytest.raises(Mixed):
            there + torch.ones(3)
        assert isinstance(there + torch.ones(()), OnDevice)  # as a number
        assert isinstance(there.cpu(), Tensor) and not isinstance(there.cpu(), OnDevice)


# Decoders: what writes or paints on a device; results are those of the CPU.

LOOKS = [r"decoding\.caption\.write_captions"]  # done captions leave the batch: one look for each word
BEAMS = [
    r"decoding\.beam\.beam_search",  # images that are done leave the batch: one look for each word
    r"decoding\.(caption\.CachedNextWord|caption\.MaskedNextWord|butd\.BUTDNextWord)\.keep",  # and which captions go on
]
# Before the first step, once: are features finite, do fixed cells fit, where are texts' ends
ONCE = [
    r"networks\.unified\.UnifiedTransformer\.encode_visual",
    r"decoding\.paint\.(FixedCells\.check|texts_to_paint)",
    r"devices\.Texts\.of",
    r"decoding\.decode\.order_of",
    r"a test",
]
# Images with unlike many cells to paint: a mask is counted in each step.
UNLIKE = [
    r"devices\.Places\.of", r"decoding\.paint\.mask_predict", r"decoding\.cells\.(paint_in_order|paint_easiest_first)",
]  # fmt: skip


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("attention", ["prefix", "masked"])
def test_captions_are_written_on_the_device(tiny, attention, precision, monkeypatch) -> None:
    options = {
        "greedy": CaptionOptions(length=10),
        "sampled": CaptionOptions(
            length=10, method="sample", samples=2, temperature=1.3, top_k=40, top_p=0.9, no_repeat=2, start="a"
        ),
        "beams": CaptionOptions(length=10, method="beam", beams=4, samples=2, groups=2, diversity=0.5, no_repeat=2),
    }  # fmt: skip

    def write(device: Any, name: str) -> list[Tensor]:
        model, features = by(tiny.model, attention).to(device), tiny.features.to(device)
        frozen = inference_transformer(model, torch.float32)
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bfloat16"):
            return [
                caption_images(network, tiny.tokenizer, features, options[name], [1, 2, 3]).ids
                for network in ((model, frozen) if precision == "float32" else (model,))
            ]

    for name in options:
        with other_device(monkeypatch) as device:
            found = write(DEVICE, name)
        assert not unexpected(device.waiting, ONCE, BEAMS if name == "beams" else LOOKS)
        expected = write("cpu", name) if precision == "float32" else []
        for ours, theirs in zip(found, expected, strict=False):
            assert ours.inner.equal(theirs)


PAINTINGS = {
    "mask-predict": PaintOptions(steps=4),
    "mask-predict, guided and sampled": PaintOptions(
        steps=3, schedule="cosine", guidance=2.0, temperature=1.0, confidence_noise=0.5, top_k=5, samples=2
    ),
    "easiest": PaintOptions(method="easiest", temperature=0.7, confidence_noise=0.5),
    "rows": PaintOptions(method="rows"),
    "random": PaintOptions(method="random", extra_steps=3, guidance=1.5),
    "gibbs": PaintOptions(method="gibbs", sweeps=2, cells_at_once=4, temperature=1.0),
}  # fmt: skip


@pytest.mark.parametrize(
    ("partial", "precision"), [(False, "float32"), (False, "bfloat16"), (True, "float32")]
)
def test_paintings_are_painted_on_the_device(tiny, partial, precision, monkeypatch) -> None:
    texts = Texts.of(tiny.ids, tiny.tokenizer.pad)

    def paint(device: Any, options: PaintOptions) -> Tensor:
        model, codebook = copy.deepcopy(tiny.model).to(device), tiny.codebook.to(device)
        given = None
        if partial:
            fixed = (torch.arange(16) < torch.tensor([[3], [7], [12]])).to(device)
            given = FixedCells(torch.arange(48).view(3, 16).remainder(12).to(device), fixed)
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bfloat16"):
            own = texts.to(device)
            return paint_captions(model, tiny.tokenizer, codebook, own, options, [4, 5, 6], given, True).steps

    for options in PAINTINGS.values():
        with other_device(monkeypatch) as device:
            found = paint(DEVICE, options)
        assert not unexpected(device.waiting, ["a test"], *((ONCE, UNLIKE) if partial else ()))
        assert precision == "bfloat16" or found.inner.equal(paint("cpu", options))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_other_decoders_are_on_the_device(tiny, precision, monkeypatch) -> None:
    torch.manual_seed(0)
    heads = with_heads(tiny.model, 0, answers=test_fine_tuning.TABLE, pairs=True)
    regressing = build_transformer(dataclasses.replace(tiny.model.config, regresses=True)).eval()
    questions = tiny.tokenizer.encode_questions(["what color?", "how many?", "red?"], 20)
    biart_model, biart_tokenizer = small_biart()
    biart_ids = biart_tokenizer.encode(["a red kite.", "two blue boats rest on the sea."], 12)
    codes = torch.from_numpy(test_biart.Tokens(2).codes([0, 1]))
    vectors = torch.from_numpy(test_butd.Images(3).grid([0, 1, 2])).float()
    butd_model, (generator, encoder, _) = test_butd.network(), test_dm_gan.networks()
    gan_ids = test_dm_gan.TOKENIZER.encode(test_dm_gan.CAPTIONS[:3], 8)
    rows, beam = PaintOptions(method="rows"), CaptionOptions(length=10, method="beam", beams=2)

    def answers(model: Any, device: Any) -> Tensor:
        images = encode_images(model, tiny.features.to(device))
        ids = questions.to(device)
        left = [states[[0, 1, 1, 2]] for states in images]
        return torch.cat(
            [answer_logits(model, tiny.tokenizer, images, ids[:, None]).flatten(),
             statement_logits(model, tiny.tokenizer, left, ids[:2]).flatten()]
        )  # fmt: skip

    def on(module: nn.Module, device: Any) -> Any:
        return copy.deepcopy(module).to(device).eval()

    decoders: dict[str, tuple[Callable[[Any], Tensor], list]] = {
        "answers": (lambda device: answers(by(on(heads, device), "masked"), device), []),
        "answers, prefix": (lambda device: answers(on(heads, device), device), []),
        "gibbs texts": (
            lambda device: gibbs_texts(
                on(tiny.model, device), tiny.tokenizer, tiny.features.to(device), "a", 4, [1, 2, 3], 2
            ), [],
        ),
        "features": (
            lambda device: paint_features(
                on(regressing, device), tiny.tokenizer, tiny.ids.to(device), PaintOptions(method="random"), [1, 2, 3]
            ), [],
        ),
        "BiART captions": (
            lambda device: caption_codes(
                on(biart_model, device), biart_tokenizer, codes.to(device), CaptionOptions(length=10)
            ).ids, LOOKS,
        ),
        "BiART beams": (
            lambda device: caption_codes(on(biart_model, device), biart_tokenizer, codes.to(device), beam).ids, BEAMS,
        ),
        "BiART paintings": (
            lambda device: paint_texts(
                on(biart_model, device), biart_tokenizer, biart_ids.to(device),
                dataclasses.replace(rows, temperature=1.0, guidance=2.0, samples=2), [1, 2], None, True,
            ).steps, [],
        ),
        "BUTD captions": (
            lambda device: caption_vectors(
                on(butd_model, device), test_butd.TOKENIZER, vectors.to(device),
                CaptionOptions(length=10, method="sample", samples=2), [1, 2, 3],
            ).ids, LOOKS,
        ),
        "BUTD beams": (
            lambda device: caption_vectors(on(butd_model, device), test_butd.TOKENIZER, vectors.to(device), beam).ids,
            BEAMS,
        ),
        "DM-GAN": (
            lambda device: paint_pixels(
                on(generator, device), on(encoder, device), test_dm_gan.TOKENIZER, gan_ids.to(device), [1, 2, 3], 2
            ), [r"decoding\.dm_gan\.paint_pixels"],
        ),
    }  # fmt: skip
    for name, (decode, allowed) in decoders.items():
        half = precision == "bfloat16"
        with other_device(monkeypatch) as device, torch.no_grad(), torch.autocast("cuda", torch.bfloat16, half):
            found = decode(DEVICE)
        assert not unexpected(device.waiting, ONCE, allowed), name
        if precision == "float32":
            with torch.no_grad():
                torch.testing.assert_close(found.inner, decode("cpu"), rtol=1e-4, atol=1e-5, msg=name)


# Packaged calls look at results by their nature: they return texts, numbers and pictures. What they need is on the device.


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_packaged_model_is_on_its_device(
    package: Path, answering_package: Path, pictures: list[Image.Image], precision, monkeypatch
) -> None:
    def call(device: Any) -> list[Any]:
        d = Diptych.from_pretrained(package, device=device, precision=precision)
        asked = Diptych.from_pretrained(answering_package, device=device, precision=precision)
        texts = ["a red kite floats.", "two blue boats."]
        painted = [*d.paint(texts), *d.paint(texts, samples=2, rerank=True, temperature=1.0)]
        return [
            [str(caption) for caption in d.caption(pictures)],
            [str(caption) for caption in d.caption(pictures, method="beam", beams=3)],
            [str(caption) for caption in d.caption(pictures, samples=2, rerank=True)],
            [np.asarray(painting.image).tolist() for painting in painted],
            d.codes(pictures).tolist(),
            [str(answer) for answer in asked.answer(pictures, "is there a red kite?")],
            [bool(found) for found in asked.verify([(pictures[0], pictures[1])], ["there is a red kite."])],
            d.score(pictures[:2], texts).tolist(),
            len(d.attention(pictures[0], texts[0])),
            np.asarray(d.reconstruct(pictures[:1])[0]).tolist(),
        ]

    with other_device(monkeypatch):
        found = call(DEVICE)
    if precision == "float32":
        expected = call("cpu")
        assert found[:3] == expected[:3] and found[4:7] == expected[4:7]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_packaged_l_verse_is_on_its_device(
    pictures: list[Image.Image], tmp_path: Path, precision, monkeypatch
) -> None:
    package = test_l_verse_package.save_package(test_l_verse_package.save_networks(tmp_path / "biart"))

    def call(device: Any) -> list[Any]:
        d = Diptych.from_pretrained(package, device=device, precision=precision)
        painted = d.paint(["a red kite floats.", "two blue boats."], temperature=1.0)
        return [
            [str(caption) for caption in d.caption(pictures)],
            d.codes(pictures).tolist(),
            d.features(pictures[:1]).shape,
            len(d.attention(pictures[0], "a red kite floats.")),
            [np.asarray(picture).tolist() for picture in d.reconstruct(pictures[:1])],
            [np.asarray(painting.image).tolist() for painting in painted],
        ]

    with other_device(monkeypatch):
        found = call(DEVICE)
    if precision == "float32":
        assert found[:4] == call("cpu")[:4]
