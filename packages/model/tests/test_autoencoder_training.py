"""AugVAE learns from pixels; pieces, crops and the codebook's start."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor

from diptych.model.checkpoints import TrainingCheckpoints
from diptych.model.errors import UserError
from diptych.model.networks.aug_vae import AugVAE, named_config, single_level
from diptych.model.networks.discriminator import DiscriminatorConfig
from diptych.model.training.autoencoder import (
    AutoencoderSteps,
    AutoencoderTrainingConfig,
    cropped,
    train_autoencoder,
)
from diptych.model.training.config import SampleConfig
from diptych.model.training.game import GameConfig
from diptych.model.training.optimisation import add_gradients

MULTI = named_config("smoke", levels=2, coded_level=None)
CONFIG = AutoencoderTrainingConfig(
    steps=80,
    batch_size=8,
    learning_rate=3e-3,
    warmup_share=0.1,
    clip_norm=1.0,
    ema_decay=0.0,
    precision="auto",
    seed=3,
    checkpoint_seconds=0,
    perceptual_weight=0.0,
    commitment_weight=0.02,
    decay=0.9,
    start_pictures=8,
    dead_share=0.1,
    candidates=16,
)


class Squares:
    """Pictures of a coloured square on a coloured ground."""

    def __init__(self, count: int, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.keys = [f"{index:06d}" for index in range(count)]
        colors = torch.randint(0, 256, (2, count, 3, 1, 1), generator=generator).byte()
        self.pictures = colors[0].repeat(1, 1, 32, 32)
        for picture, color, place in zip(self.pictures, colors[1], torch.randint(0, 16, (count, 2), generator=generator), strict=True):
            y, x = place.tolist()
            picture[:, y : y + 16, x : x + 16] = color

    def __len__(self) -> int:
        return len(self.keys)

    def images(self, indices, size: int) -> Tensor:
        assert size == 32
        return self.pictures[indices]


def built(seed: int = 0) -> AugVAE:
    torch.manual_seed(seed)
    return AugVAE(MULTI)


def test_both_networks_learn_and_the_codebook_is_in_use() -> None:
    train, model = Squares(64), built()
    config = dataclasses.replace(CONFIG, evaluation=SampleConfig(every=20, images=16, samples=2))
    record = train_autoencoder(config, model, train, None, val=Squares(16, 1))
    first, last = record.evaluations[0], record.evaluations[-1]
    assert last["val_reconstruction"] < 0.85 * first["val_reconstruction"]
    assert last["val_codes_used"] > 20
    assert [sample["image_id"] for sample in record.samples[:2]] and record.samples[0]["painted"].shape == (3, 32, 32)
    assert not model.training

    single = single_level(model, 0)
    further = dataclasses.replace(config, start_pictures=0, steps=20)
    record = train_autoencoder(further, single, train, None, val=Squares(16, 1))
    assert record.evaluations[-1]["val_reconstruction"] < 1.1 * last["val_reconstruction"]


def test_a_codebook_may_start_when_the_networks_have_learned() -> None:
    """What they make of pictures stays what it was but for the rounding to codes, whose vectors have mean 0 and variance 1 by then."""
    train, model = Squares(64), built()
    steps = AutoencoderSteps(
        dataclasses.replace(CONFIG, start_step=2, start_pictures=64), model, train, None, torch.device("cpu")
    )
    pixels = train.images(list(range(8)), 32).float() / 127.5 - 1
    with torch.no_grad():
        for module in (*model.before_codes, *model.after_codes):
            module.bias.normal_()
    for step in (0, 1):
        steps.pieces(step, steps.read(step))
        assert model.quantizer.passes
        drawn = model.train()(pixels)
        assert float(drawn.commitment) == 0 and float(model.quantizer.running_sums()[0].sum()) == 0
    before, plain = drawn.pixels.detach(), model.quantizer.embedding.clone()
    model.quantizer.move_means()
    assert model.quantizer.embedding.equal(plain), "there is nothing yet that moves it"
    steps.pieces(2, steps.read(2))
    assert not model.quantizer.passes and not model.quantizer.embedding.equal(plain)
    vectors = torch.cat(steps.start_vectors(), 1).detach()
    assert float(vectors.mean().abs()) < 1e-3 and float(vectors.std()) == pytest.approx(1, abs=0.01)
    model.quantizer.passes = True
    torch.testing.assert_close(model(pixels).pixels.detach(), before, rtol=1e-3, atol=1e-3)


def test_pieces_add_up_to_the_whole_batch() -> None:
    """Gradients, and what moves the codebook."""
    found = []
    for accumulation in (1, 3):
        model, config = built().train(), dataclasses.replace(CONFIG, accumulation=accumulation, least_crop=0.7)
        model.quantizer.upkeep(config.decay, config.dead_share, config.candidates)
        steps = AutoencoderSteps(config, model, Squares(20), None, torch.device("cpu"))
        torch.manual_seed(5)
        loss, reported = add_gradients(steps.pieces(0, steps.read(0)))
        sums = [each.clone() for each in model.quantizer.running_sums()]
        gradients = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        found.append((gradients, loss, sums))
        assert set(reported) == {"reconstruction", "commitment"}
        assert int(sums[0].sum()) == 8 * MULTI.cells and int(sums[3].sum()) == 16
    (gradients, loss, sums), (others, other, same) = found
    assert torch.allclose(loss, other, rtol=1e-4) and torch.allclose(gradients, others, rtol=1e-2, atol=1e-4)
    for own, theirs in zip(sums, same, strict=True):
        assert torch.allclose(own, theirs, atol=1e-3)


def test_a_training_that_was_stopped_ends_bit_by_bit(tmp_path: Path) -> None:
    class Stopped(Exception):
        """What ends the first run."""

    class Pictures(Squares):
        def images(self, indices, size: int) -> Tensor:
            self.read = getattr(self, "read", 0) + 1
            if getattr(self, "stops", False) and self.read > 8:
                raise Stopped
            return super().images(indices, size)

    config = dataclasses.replace(CONFIG, steps=12, least_crop=0.8, start_step=5, muon=1.0)
    whole, stopped = built(), built()
    train_autoencoder(config, whole, Squares(20), None)
    pictures = Pictures(20)
    pictures.stops = True
    with pytest.raises(Stopped):
        train_autoencoder(config, stopped, pictures, None, TrainingCheckpoints(tmp_path))
    again = built()
    train_autoencoder(config, again, Squares(20), None, TrainingCheckpoints(tmp_path))
    assert all(a.equal(b) for a, b in zip(again.state_dict().values(), whole.state_dict().values(), strict=True))


def test_a_game_is_played_beside_it(tmp_path: Path) -> None:
    """From its start on, by a discriminator without codes; also by a run that was stopped in it."""
    game = GameConfig(
        warm_start_steps=4,
        discriminator=DiscriminatorConfig(channels=8, first_channels=4),
        learning_rate=1e-3,
        adversarial_weight=1.0,
        code_weight=0.0,
        feature_weight=1.0,
    )
    config = dataclasses.replace(CONFIG, steps=24, game=game)
    model = built()
    record = train_autoencoder(config, model, Squares(20), None)
    last = record.history[-1]
    assert {"adversarial", "feature_matching", "discriminator_hinge", "reconstruction"} <= last.keys()
    assert "code" not in last and "discriminator_code" not in last
    plain = built()
    train_autoencoder(dataclasses.replace(config, game=None), plain, Squares(20), None)
    assert not all(a.equal(b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))
    same = built()
    untouched = dataclasses.replace(game, adversarial_weight=0.0, feature_weight=0.0)
    train_autoencoder(dataclasses.replace(config, game=untouched), same, Squares(20), None)
    for a, b in zip(same.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0.1, atol=2e-3)
    with pytest.raises(UserError, match="codes move while an autoencoder learns"):
        dataclasses.replace(config, game=dataclasses.replace(game, code_weight=1.0))
    with pytest.raises(UserError, match=r"game.warm_start_steps must be from 0 to below steps \(4\)"):
        dataclasses.replace(config, steps=4)


def test_crops_are_squares_of_the_picture_and_scaled_again() -> None:
    ramp = torch.linspace(-1, 1, 32).expand(1, 3, 32, 32).contiguous()
    drawn = torch.tensor([[0.0, 0.0, 0.99]])
    half = cropped(ramp, drawn, 0.25)  # of the area
    assert half.shape == ramp.shape
    assert float(half[..., 0].mean()) == pytest.approx(float(ramp[0, 0, 0, 16]), abs=0.05)
    assert float(half[..., -1].mean()) == pytest.approx(1.0, abs=0.05)
    assert cropped(ramp, drawn, 1.0) is ramp


def test_settings_are_checked() -> None:
    with pytest.raises(UserError, match="both of dead_share and candidates"):
        dataclasses.replace(CONFIG, candidates=0)
    with pytest.raises(UserError, match=r"start_step must be at least 0 and below steps \(80\), is 80"):
        dataclasses.replace(CONFIG, start_step=80)
    with pytest.raises(UserError, match="starts later starts from pictures; give start_pictures"):
        dataclasses.replace(CONFIG, start_step=8, start_pictures=0)
    with pytest.raises(UserError, match="averages would be of weights from before the codebook's start"):
        dataclasses.replace(CONFIG, start_step=8, ema_decay=0.9)
    with pytest.raises(UserError, match=r"least_crop must be in \(0, 1\], is 0"):
        dataclasses.replace(CONFIG, least_crop=0.0)
    with pytest.raises(UserError, match="schedule must be one of cosine, constant, is 'plateau'"):
        dataclasses.replace(CONFIG, schedule="plateau")
    with pytest.raises(UserError, match="batch_size 8 is larger than the 4 training pictures"):
        train_autoencoder(CONFIG, built(), Squares(4), None)
