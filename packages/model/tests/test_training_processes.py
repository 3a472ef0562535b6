"""Training that is killed, cut into pieces or shared by several processes ends as if nothing had happened."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from diptych.model.errors import UserError
from diptych.model.training.processes import Processes, threads_of_all

SCRIPT = Path(__file__).with_name("training_process.py")


MASKED: dict[str, Any] = {"caption_attention": "masked", "config": {"muon": 1.0}}
# The trainings that the tests compare: what is special about them (see training_process.py).
JOBS: dict[str, list[dict[str, Any]]] = {
    "alone": [{}],
    "pieces": [{"config": {"accumulation": 3}}],
    "processes": [{"processes": 2, "checkpoints": True}],
    "stopped": [
        {**MASKED, "checkpoints": True, "end_after_saves": 10},
        {**MASKED, "processes": 2, "checkpoints": True, "end_after_saves": 12},
        {**MASKED, "checkpoints": True},
    ],
    "masked": [MASKED],
    "masked_processes_and_pieces": [
        {"caption_attention": "masked", "processes": 2, "config": {"muon": 1.0, "accumulation": 2}}
    ],
    "dropout": [{"config": {"dropout": 0.1, "steps": 60}}],
    "dropout_killed": [{"config": {"dropout": 0.1, "steps": 60}, "checkpoints": True, "kills": 4}],
    "plain": [{"config": {"accumulation": 3, "muon": 3.0, "steps": 60, "ema_decay": 0.0, "evaluation": None}}],
    "plain_killed": [
        {
            "config": {"accumulation": 3, "muon": 3.0, "steps": 60, "ema_decay": 0.0, "evaluation": None},
            "checkpoints": True,
            "kills": 4,
        }
    ],
}


@pytest.fixture(scope="module")
def trainings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the results of every job in a folder of its name."""
    folder = tmp_path_factory.mktemp("trainings")
    jobs = [{**job, "folder": str(folder / name)} for name, parts in JOBS.items() for job in parts]
    (folder / "jobs.json").write_text(json.dumps(jobs))
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(folder / "jobs.json")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "weights.pt", weights_only=True)


def record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "record.json").read_text())


def assert_same_training(folder: Path, other: Path) -> None:
    """Equal up to rounding: gradients of both tasks, weights, history."""
    found, expected = (torch.load(path / "gradients.pt", weights_only=True) for path in (folder, other))
    for task in ("caption", "paint"):
        assert found[task].keys() == expected[task].keys()
        for name, gradient in expected[task].items():
            torch.testing.assert_close(found[task][name], gradient, rtol=1e-5, atol=1e-7)
    assert found["caption"].keys() != found["paint"].keys(), "the tasks use different parts of the network"
    # As one vector: AdamW makes whole steps of gradients that are nothing but rounding, such as those of keys' biases.
    ends, expected_ends = (
        torch.cat([w.flatten() for w in weights(path).values()]) for path in (folder, other)
    )
    assert (ends - expected_ends).norm() < 1e-4 * expected_ends.norm()
    for rows in ("history", "evaluations"):
        for row, expected_row in zip(record(folder)[rows], record(other)[rows], strict=True):
            assert row == pytest.approx(expected_row, rel=1e-3)


@pytest.mark.parametrize("name", ["pieces", "processes"])
def test_pieces_and_processes_train_as_the_whole_batch(name: str, trainings: Path) -> None:
    """Batches of 5 and 7, so that the pieces are of unlike size, with unlike numbers of words and masked cells."""
    assert_same_training(trainings / name, trainings / "alone")


def test_masked_captions_train_in_pieces_and_processes_as_in_one(trainings: Path) -> None:
    assert_same_training(trainings / "masked_processes_and_pieces", trainings / "masked")
    assert record(trainings / "masked")["history"] != record(trainings / "alone")["history"]


def test_another_number_of_processes_goes_on(trainings: Path) -> None:
    """Ten steps alone, twelve by two processes, each of which has some of Muon's momenta, the last eight alone; only process 0 writes
    checkpoints."""
    assert_same_training(trainings / "stopped", trainings / "masked")
    assert max((trainings / "stopped/checkpoints").iterdir()).name == "checkpoint-00000030.pt"
    assert len(list((trainings / "processes/checkpoints").iterdir())) == 2


@pytest.mark.parametrize("name", ["dropout", "plain"])
def test_a_training_killed_at_random_moments_ends_bit_by_bit(name: str, trainings: Path) -> None:
    """With dropout, averaged weights and evaluation; and in pieces without them."""
    killed = trainings / f"{name}_killed"
    saved = json.loads((killed / "saved.json").read_text())
    assert len(saved) == 4 and saved == sorted(set(saved)) and saved[-1] < 60, saved
    expected = weights(trainings / name)
    for key, weight in weights(killed).items():
        assert weight.equal(expected[key]), key
    assert record(killed) == record(trainings / name)
    assert bool(record(killed)["samples"]) == (name == "dropout")
    assert len(list((killed / "checkpoints").glob("*.pt"))) == 2


def test_rows_are_shared_without_loss_or_repetition() -> None:
    for count in (1, 2, 3, 8):
        for accumulation in (1, 2, 5):
            for batch in (count * accumulation, count * accumulation + 3, 256):
                pieces = [
                    piece
                    for rank in range(count)
                    for piece in Processes(rank, count).own_pieces(batch, accumulation)
                ]
                assert pieces[0].start == 0 and pieces[-1].stop == batch
                assert all(one.stop == other.start for one, other in pairwise(pieces))
                sizes = {piece.stop - piece.start for piece in pieces}
                assert min(sizes) >= 1 and max(sizes) - min(sizes) <= 1
    with pytest.raises(
        UserError, match=r"batch of 3 cannot be cut into 4 pieces \(accumulation 2 times 2 processes"
    ):
        Processes(0, 2).own_pieces(3, 2)


def test_a_process_that_others_wait_for_has_their_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    own = torch.get_num_threads()
    with pytest.raises(RuntimeError), threads_of_all():
        assert torch.get_num_threads() == 3 * own
        raise RuntimeError
    assert torch.get_num_threads() == own
