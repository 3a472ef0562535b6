"""The adversarial game: its losses are the paper's, each player learns from its own, and nothing is lost by a kill."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import os
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from diptych.model.checkpoints import TrainingCheckpoints
from diptych.model.errors import UserError
from diptych.model.networks.discriminator import Discriminator, DiscriminatorConfig
from diptych.model.networks.image_generator import ImageGenerator
from diptych.model.objectives.perceptual import ResNetEncoder, perceptual_loss
from diptych.model.pixels import to_uint8
from diptych.model.training import loop
from diptych.model.training.game import GameConfig, collapse, opponent_of, play
from diptych.model.training.image_generator import (
    ImageGeneratorTrainingConfig,
    SampleConfig,
    train_image_generator,
)
from diptych.model.training.processes import joined_processes

sys.path.insert(0, str(Path(__file__).parent))
from test_image_generator import PAPER_IN_SMALL, Flags, TwoMaps, codebook, training_config

GAME = GameConfig(
    warm_start_steps=3,
    discriminator=DiscriminatorConfig(channels=16, first_channels=8),
    learning_rate=4e-3,
    adversarial_weight=1.0,
    code_weight=1.0,
    feature_weight=10.0,
)


def game_config(**changes: Any) -> ImageGeneratorTrainingConfig:
    return training_config(**{"betas": (0.0, 0.999), "game": GAME, **changes})


def fresh() -> ImageGenerator:
    torch.manual_seed(2)
    return ImageGenerator(PAPER_IN_SMALL)


def test_the_losses_are_equations_1_to_4_6_and_7() -> None:
    torch.manual_seed(0)
    discriminator = Discriminator(GAME.discriminator, 32, codebook(16)).eval()
    real, painted = torch.rand(2, 3, 3, 32, 32) * 2 - 1
    codes = torch.randint(4, (3, 64))
    judged = [discriminator(images) for images in (real, painted)]
    verdicts = [j.verdicts for j in judged]
    codes_read = [functional.cross_entropy(j.code_logits.mT, codes) for j in judged]
    matched = sum(
        torch.where((a - b).abs() <= 1, (a - b).square() / 2, (a - b).abs() - 0.5).mean()
        for a, b in zip(judged[0].features, judged[1].features, strict=True)
    )
    config = dataclasses.replace(GAME, adversarial_weight=2.0, code_weight=3.0, feature_weight=5.0)
    discriminator.train = lambda mode=True: discriminator  # without power iterations between the passes
    terms, (generator_loss, discriminator_loss) = play(config, discriminator, painted, real, codes)
    hinge = (1 - verdicts[0]).clamp(min=0).mean() + (1 + verdicts[1]).clamp(min=0).mean()
    expected = {
        "adversarial": -verdicts[1].mean(),
        "code": codes_read[1],
        "feature_matching": matched,
        "discriminator_hinge": hinge,
        "discriminator_code": codes_read[0] + codes_read[1],
    }
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        generator_loss,
        2 * expected["adversarial"] + 3 * expected["code"] + 5 * matched,
        rtol=1e-4,
        atol=1e-5,
    )
    torch.testing.assert_close(discriminator_loss, 2 * hinge + 3 * sum(codes_read), rtol=1e-4, atol=1e-5)


def test_a_game_may_restart_the_rate_of_who_paints() -> None:
    """It falls to 0 before the game, and from the given share of its peak in it."""
    config = game_config(
        steps=20,
        learning_rate=0.5,
        schedule="cosine",
        warmup_share=0.25,
        game=dataclasses.replace(GAME, warm_start_steps=8, restart=0.1),
    )
    plain = training_config(steps=8, learning_rate=0.5, schedule="cosine", warmup_share=0.25, game=None)
    rates = [config.generator_rate(step) for step in range(20)]
    assert rates[:8] == [plain.generator_rate(step) for step in range(8)]
    assert rates[8] == pytest.approx(0.05) and rates[8:] == sorted(rates[8:], reverse=True) and rates[19] < 0.002
    with pytest.raises(UserError, match=r"game\.restart must be from 0 to 1, is 2"):
        dataclasses.replace(GAME, restart=2)


def test_each_player_gets_the_gradient_of_its_own_loss() -> None:
    torch.manual_seed(0)
    discriminator = Discriminator(GAME.discriminator, 32, codebook(16))
    real, painted = torch.rand(2, 3, 3, 32, 32) * 2 - 1
    painted.requires_grad_()
    _, (generator_loss, discriminator_loss) = play(
        GAME, discriminator, painted, real, torch.randint(4, (3, 64))
    )
    generator_loss.backward(retain_graph=True)
    assert painted.grad is not None and painted.grad.abs().amax((1, 2, 3)).min() > 0
    assert all(weight.grad is None for weight in discriminator.parameters())
    before = painted.grad.clone()
    discriminator_loss.backward()
    assert torch.equal(painted.grad, before)
    assert all(weight.grad is not None and weight.requires_grad for weight in discriminator.parameters())
    assert discriminator.training


def test_one_pass_over_the_painted_pictures_gives_the_gradients_of_two() -> None:
    torch.manual_seed(0)
    discriminator = Discriminator(GAME.discriminator, 32, codebook(16))
    other = copy.deepcopy(discriminator)
    real, painted = torch.rand(2, 3, 3, 32, 32) * 2 - 1
    codes = torch.randint(4, (3, 64))

    canvas = painted.clone().requires_grad_()
    _, players = play(GAME, discriminator, canvas, real, codes)
    sum(players).backward()

    both = other(torch.cat([real, painted]))  # its power iteration; the pass for the generator makes none
    hinge = (1 - both.verdicts[:3]).clamp(min=0).mean() + (1 + both.verdicts[3:]).clamp(min=0).mean()
    read = 2 * functional.cross_entropy(both.code_logits.mT, torch.cat([codes, codes]))
    (GAME.adversarial_weight * hinge + GAME.code_weight * read).backward()
    judged = other.eval()(expected := painted.clone().requires_grad_())
    matched = sum(
        functional.huber_loss(found, maps[:3].detach())
        for found, maps in zip(judged.features, both.features, strict=True)
    )
    code = functional.cross_entropy(judged.code_logits.mT, codes)
    loss = GAME.code_weight * code + GAME.feature_weight * matched
    loss = loss - GAME.adversarial_weight * judged.verdicts.mean()
    (gradient,) = torch.autograd.grad(loss, expected)

    assert canvas.grad is not None
    torch.testing.assert_close(canvas.grad, gradient, rtol=1e-4, atol=1e-7)
    for weight, plain in zip(discriminator.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(weight.grad, plain.grad, rtol=1e-4, atol=1e-6)
    for buffer, plain in zip(discriminator.buffers(), other.buffers(), strict=True):
        assert torch.equal(buffer, plain)


def test_the_discriminator_learns_once_the_warm_start_is_over() -> None:
    game = dataclasses.replace(GAME, warm_start_steps=20, learning_rate=1e-2)
    record = train_image_generator(
        game_config(steps=60, batch_size=2, game=game, schedule="constant"),
        fresh(),
        codebook(16),
        Flags(8),
        None,
    )
    first, *others = record.history
    assert not any(name.startswith("discriminator") or "code" in name for name in first)
    assert {"adversarial", "code", "feature_matching", "discriminator_hinge", "discriminator_code"} < {
        *others[0]
    }
    # four colours on real and painted pictures: 2 ln 4 by chance
    assert others[0]["discriminator_code"] > 1.7
    assert others[-1]["discriminator_code"] < 1.6
    assert others[-1]["code"] < others[0]["code"]


def test_without_a_game_nothing_of_it_is_there() -> None:
    """The warm start is what training without a game is."""
    ends = []
    for game in (None, dataclasses.replace(GAME, warm_start_steps=5)):
        generator = fresh()
        train_image_generator(game_config(game=game, steps=6), generator, codebook(16), Flags(8), None)
        ends.append(generator)
    plain, played = (torch.cat([w.detach().flatten() for w in g.parameters()]) for g in ends)
    assert not torch.equal(plain, played)  # the sixth step was played
    stopped = []
    for game in (None, dataclasses.replace(GAME, warm_start_steps=5)):
        generator, data = fresh(), Flags(8)
        data.fail_at = 6
        with pytest.raises(KeyboardInterrupt):
            train_image_generator(game_config(game=game, steps=6), generator, codebook(16), data, None)
        stopped.append(torch.cat([w.detach().flatten() for w in generator.parameters()]))
    assert torch.equal(*stopped)


# ---- kills and processes: in forks of this process, which has imported everything -------------------------------


class KilledCheckpoints(TrainingCheckpoints):
    """Kills its process some moments after the n-th save."""

    def __init__(self, folder: Path, saves: int | None, delay: float) -> None:
        super().__init__(folder)
        self.saves, self.delay = saves, delay

    def save(self, state: dict[str, Any]) -> None:
        super().save(state)
        if self.saves is not None:
            self.saves -= 1
            if self.saves == 0:
                threading.Timer(self.delay, os.kill, (os.getpid(), signal.SIGKILL)).start()


def forked(
    folder: Path,
    config: ImageGeneratorTrainingConfig,
    processes: int = 1,
    saves: int | None = None,
    delay: float = 0,
) -> list[int]:
    """Train in forks; the first writes weights and history into `folder`. Returns the wait statuses."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(processes):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                torch.set_num_threads(1)
                os.environ.update(
                    RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(processes),
                    MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
                )  # fmt: skip
                torch.manual_seed(4)
                encoder = TwoMaps()
                generator = fresh()
                checkpoints = KilledCheckpoints(folder / "checkpoints", saves, delay)
                with joined_processes("cpu") if processes > 1 else contextlib.nullcontext():
                    record = train_image_generator(
                        config, generator, codebook(16), Flags(12), encoder, checkpoints, "cpu", Flags(12)
                    )
                if rank == 0:
                    torch.save([generator.state_dict(), dataclasses.asdict(record)], folder / "end.pt")
                status = 0
            finally:
                os._exit(status)
        children.append(child)
    return [os.waitpid(child, 0)[1] for child in children]


def end_of(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    weights, record = torch.load(folder / "end.pt", weights_only=True)
    return weights, record


LONG = game_config(
    steps=26,
    ema_decay=0.9,
    checkpoint_seconds=0.0,
    perceptual_weight=1.0,
    evaluation=SampleConfig(every=6, images=5, samples=2),
)


def test_a_training_killed_four_times_ends_bit_by_bit_as_an_undisturbed_one(tmp_path: Path) -> None:
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    assert forked(tmp_path / "whole", LONG) == [0]
    # in the warm start, as the game begins, in it, and near its end
    for saves, delay in ((2, 0.0), (3, 0.01), (9, 0.02), (6, 0.005)):
        (status,) = forked(tmp_path / "killed", LONG, saves=saves, delay=delay)
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    assert forked(tmp_path / "killed", LONG) == [0]
    (weights, record), (other_weights, other_record) = end_of(tmp_path / "whole"), end_of(tmp_path / "killed")
    assert all(torch.equal(tensor, other_weights[name]) for name, tensor in weights.items())
    assert record["history"] == other_record["history"]
    assert record["evaluations"] == other_record["evaluations"]
    assert len(record["samples"]) == len(other_record["samples"]) == 10
    states = [TrainingCheckpoints(tmp_path / name / "checkpoints").load() for name in ("whole", "killed")]
    opponents = [state["opponent"] for state in states if state is not None]
    for name, tensor in opponents[0]["network"].items():  # spectral-norm vectors among them
        assert torch.equal(tensor, opponents[1]["network"][name]), name
    moments = [opponent["optimizer"]["state"] for opponent in opponents]
    assert moments[0] and all(
        torch.equal(value, moments[1][number][key])
        for number, values in moments[0].items()
        for key, value in values.items()
    )


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    """The gradients of both networks are summed; what is left is rounding. Without noise, which is each process's own."""
    config = dataclasses.replace(LONG, steps=10, learning_rate=1e-4, evaluation=None, checkpoint_seconds=1e9)
    for name, processes in (("one", 1), ("two", 2)):
        (tmp_path / name).mkdir()
        assert forked(tmp_path / name, config, processes) == [0] * processes
    (_, record), (_, other) = end_of(tmp_path / "one"), end_of(tmp_path / "two")
    for row, other_row in zip(record["history"], other["history"], strict=True):
        assert row.keys() == other_row.keys()
        for name, value in row.items():
            assert other_row[name] == pytest.approx(value, rel=2e-2, abs=2e-3), name


# ---- evaluation, collapse, settings ------------------------------------------------------------------------------


def test_evaluation_shows_the_same_pictures_and_changes_nothing() -> None:
    ends, records = [], []
    for evaluation in (None, SampleConfig(every=3, images=5, samples=2)):
        generator = fresh()
        config = game_config(evaluation=evaluation, perceptual_weight=1.0)
        torch.manual_seed(4)
        encoder = TwoMaps()
        val = Flags(8)
        records.append(
            train_image_generator(config, generator, codebook(16), Flags(8), encoder, None, "cpu", val)
        )
        ends.append(generator)
    assert all(
        torch.equal(a, b)
        for a, b in zip(ends[0].state_dict().values(), ends[1].state_dict().values(), strict=True)
    )
    plain, watched = records
    assert plain.history == watched.history and plain.samples == [] and plain.evaluations == []
    assert [row["step"] for row in watched.evaluations] == [3, 6]
    assert {*watched.evaluations[0]} == {"step", "val_reconstruction", "val_perceptual"}
    assert [sample["step"] for sample in watched.samples] == [3, 3, 6, 6]
    data = Flags(8)
    for sample in watched.samples[2:]:
        index = data.keys.index(sample["image_id"])
        assert torch.equal(sample["real"], data.images([index], 32)[0])
        with torch.no_grad():
            painted = ends[1](codebook(16)[torch.from_numpy(data.codes([index]))])[0]
        assert (sample["painted"].float() - to_uint8(painted).float()).abs().max() <= 1


def test_collapse_is_told_from_training() -> None:
    good = {"reconstruction": 0.1, "perceptual": 0.2, "discriminator_hinge": 1.2}
    assert collapse([good]) is None
    assert collapse([good, {**good, "reconstruction": 0.29, "perceptual": 0.59}]) is None
    assert "perceptual loss is 0.61" in (collapse([good, {**good, "perceptual": 0.61}]) or "")
    assert "reconstruction loss is 0.31" in (collapse([good, {**good, "reconstruction": 0.31}]) or "")
    assert "discriminator has won" in (collapse([good, {**good, "discriminator_hinge": 0.009}]) or "")
    later = [{"step": 20, "reconstruction": 0.01}, {"step": 60, **good}]
    assert collapse(later) is not None and collapse(later, since=40) is None, "losses of before are others"
    assert collapse([{"reconstruction": 0.1}, {"reconstruction": 0.9}]) is None  # no game, no collapse


def test_a_collapsed_game_ends_with_one_message_and_keeps_the_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "HISTORY_STEPS", 5)
    monkeypatch.setattr(loop, "FAILING_ROWS", 3)
    checkpoints = TrainingCheckpoints(tmp_path)
    game = dataclasses.replace(GAME, warm_start_steps=30, adversarial_weight=1e4)
    config = game_config(
        steps=120, learning_rate=1e-2, betas=(0.9, 0.999), schedule="constant", game=game,
        checkpoint_seconds=0.0,
    )  # fmt: skip
    with pytest.raises(
        UserError, match="painted pictures have collapsed.*the last good checkpoint is of step"
    ) as end:
        train_image_generator(config, fresh(), codebook(16), Flags(8), None, checkpoints)
    state = checkpoints.load()
    assert state is not None and f"checkpoint is of step {state['step']}" in str(end.value)
    assert 25 <= state["step"] < 120 and collapse(state["history"]) is None


def test_a_discriminator_that_is_not_finite_ends_the_run() -> None:
    game = dataclasses.replace(GAME, warm_start_steps=2, code_weight=float("nan"))
    with pytest.raises(UserError, match="nan .* at step 2; there is no checkpoint yet"):
        train_image_generator(game_config(game=game), fresh(), codebook(16), Flags(8), None)


def test_wrong_settings_are_named() -> None:
    for changes, message in (
        (
            {"game": dataclasses.replace(GAME, warm_start_steps=6)},
            "warm_start_steps must be from 0 to below steps",
        ),
        ({"schedule": "linear"}, "schedule must be one of cosine, constant"),
        ({"reconstruction": "l2"}, "reconstruction must be l1 or huber"),
        ({"perceptual_shift": -1}, "perceptual_shift must be at least 0, is -1"),
    ):
        with pytest.raises(UserError, match=message):
            game_config(**changes)
    with pytest.raises(UserError, match="game.shift must be at least 0, is -2"):
        dataclasses.replace(GAME, shift=-2)
    with pytest.raises(UserError, match="evaluation.samples must be from 0 to images"):
        SampleConfig(every=1, images=2, samples=3)


def test_both_rates_follow_the_schedule() -> None:
    config = game_config(steps=100, learning_rate=1.0, warmup_share=0.1)

    def discriminator_rate(config: ImageGeneratorTrainingConfig, step: int) -> float:
        network = Discriminator(config.game.discriminator, 32, None)
        opponent = opponent_of(config.game, network, torch.device("cpu"), config.schedule, config.steps, config.betas)
        return opponent.learning_rate(step)

    assert config.generator_rate(4) == pytest.approx(0.5)
    assert discriminator_rate(config, 3) == pytest.approx(4e-3)
    assert discriminator_rate(config, 99) < 1e-5
    constant = dataclasses.replace(config, schedule="constant")
    assert constant.generator_rate(4) == pytest.approx(0.5)
    assert constant.generator_rate(99) == 1.0
    assert discriminator_rate(constant, 99) == 4e-3


def test_the_perceptual_encoder_sees_both_pictures_shifted_alike() -> None:
    torch.manual_seed(0)
    encoder = TwoMaps()
    painted, real = (torch.rand(2, 3, 16, 16) * 2 - 1 for _ in range(2))
    assert perceptual_loss(encoder, real, real, shift=3).item() == 0
    offsets = set()
    for _ in range(40):
        encoder.seen.clear()
        perceptual_loss(encoder, painted, real, shift=3)
        places = [
            (down, right)
            for down in range(4)
            for right in range(4)
            if torch.equal(encoder.seen[0], (real.roll((down, right), (2, 3)) + 1) / 2)
            and torch.equal(encoder.seen[1], (painted.roll((down, right), (2, 3)) + 1) / 2)
        ]
        offsets.update(places)
        assert len(places) == 1
    assert len(offsets) > 8
    assert perceptual_loss(encoder, painted, real).item() == perceptual_loss(encoder, painted, real).item()


def test_the_discriminator_sees_both_pictures_shifted_alike_and_its_gradient_comes_back_in_place() -> None:
    torch.manual_seed(0)
    discriminator = Discriminator(GAME.discriminator, 32, codebook(16))
    real, painted = torch.rand(2, 3, 3, 32, 32) * 2 - 1
    codes = torch.randint(4, (3, 64))

    def gradient(shift: int, pictures: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        canvas = pictures.clone().requires_grad_()
        _, (loss, _) = play(
            dataclasses.replace(GAME, shift=shift), copy.deepcopy(discriminator), canvas, others, codes
        )
        return torch.autograd.grad(loss, canvas)[0]

    found = set()
    for _ in range(8):
        moved = gradient(1, painted, real)
        places = [
            (down, right)
            for down in range(2)
            for right in range(2)
            if torch.allclose(
                moved.roll((down, right), (2, 3)),
                gradient(0, painted.roll((down, right), (2, 3)), real.roll((down, right), (2, 3))),
                atol=1e-7,
            )
        ]
        assert len(places) == 1
        found.update(places)
    assert len(found) > 2


# ---- the perceptual encoder of the papers ------------------------------------------------------------------------


def test_resnet_encoder_gives_the_four_stages_of_torchvisions_network(tmp_path: Path) -> None:
    from torchvision.models import resnet50
    from torchvision.models.feature_extraction import create_feature_extractor

    torch.manual_seed(0)
    network = resnet50().eval()
    file = tmp_path / "resnet50.pth"
    torch.save(network.state_dict(), file)
    encoder = ResNetEncoder(file)
    images = torch.rand(2, 3, 64, 64)
    stages = create_feature_extractor(copy.deepcopy(network), [f"layer{n}" for n in (1, 2, 3, 4)])
    normalised = (images - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor(
        [0.229, 0.224, 0.225]
    ).view(3, 1, 1)
    with torch.no_grad():
        found, expected = encoder.pyramid(images), stages(normalised)
    assert [tuple(maps.shape[1:]) for maps in found] == [
        (256, 16, 16),
        (512, 8, 8),
        (1024, 4, 4),
        (2048, 2, 2),
    ]
    for maps, own in zip(found, expected.values(), strict=True):
        torch.testing.assert_close(maps, own)
    assert not encoder.training and not any(weight.requires_grad for weight in encoder.parameters())


def test_a_missing_or_foreign_resnet_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"resnet50.pth is missing; put torchvision's ResNet-50"):
        ResNetEncoder(tmp_path / "resnet50.pth")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="not the state dict of torchvision's resnet50"):
        ResNetEncoder(tmp_path / "other.pth")
