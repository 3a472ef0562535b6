"""A stage that was killed goes on where it was and ends with the same outputs as one that was not."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pipeline_clone import Clone

from diptych.model.checkpoints import TrainingCheckpoints
from pipelines.runner.writing import remove

# what the killed stage writes: `finished_clone` has it of an undisturbed run
CASES = {
    "cluster": ["data/codebook", "plots/cluster.csv", "plots/cluster_sizes.csv"],
    "detector": ["models/detector", "plots/detector.csv"],
    "judge": ["models/judge", "models/inspector", "plots/judge.csv", "plots/inspector.csv"],
    "train_token": [
        "models/token",
        "plots/train_token.csv",
        "plots/train_token_val.csv",
        "plots/train_token_samples.parquet",
    ],
}


def digest(clone: Clone, outs: list[str]) -> dict[str, str]:
    """sha256 by file of the outputs."""
    files = [path for out in outs for path in sorted([clone.folder / out, *(clone.folder / out).rglob("*")])]
    return {
        str(path.relative_to(clone.folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
        if path.is_file()
    }


def watched_trainings(monkeypatch: pytest.MonkeyPatch) -> Callable[[], bool]:
    """Watch the trainings of this process from now on. What is returned says whether one has found a state, and whether none that
    has repeated what it was of: the end alone is the same for one that began anew."""
    found: dict[Path, int] = {}
    repeated: list[tuple[Path, int]] = []
    load, save = TrainingCheckpoints.load, TrainingCheckpoints.save

    def steps(state: dict[str, Any]) -> int:
        """Done, or iterations of a clustering."""
        return state["step"] if "step" in state else len(state["curve"])

    def load_and_note(checkpoints: TrainingCheckpoints) -> dict[str, Any] | None:
        state = load(checkpoints)
        if state is not None:
            found[checkpoints.folder] = steps(state)
        return state

    def save_and_note(checkpoints: TrainingCheckpoints, state: dict[str, Any]) -> None:
        if steps(state) < found.get(checkpoints.folder, 0):
            repeated.append((checkpoints.folder, steps(state)))
        save(checkpoints, state)

    monkeypatch.setattr(TrainingCheckpoints, "load", load_and_note)
    monkeypatch.setattr(TrainingCheckpoints, "save", save_and_note)
    return lambda: max(found.values(), default=0) > 0 and not repeated


# a codebook and the transformer stand for the others, whose trainings are killed in the packages' tests, too
LONG = ("detector", "judge")


@pytest.mark.parametrize(
    "stage", [pytest.param(stage, marks=pytest.mark.slow) if stage in LONG else stage for stage in CASES]
)
def test_a_killed_training_goes_on(
    stage: str, finished_clone: Clone, tmp_path: Path, module_here, monkeypatch: pytest.MonkeyPatch
) -> None:
    outs, killed = CASES[stage], finished_clone.copy(tmp_path / "killed")
    killed.set_params("machine.checkpoint_seconds=0")
    undisturbed = digest(finished_clone, outs)
    store = killed.folder / ".cache/training" / stage
    killed.kill_held(store, "python", "-m", f"pipelines.{stage}")
    assert digest(killed, outs) == undisturbed, "a killed stage leaves its outputs alone"

    # so that what is compared in the end is what the resumed run wrote
    for out in outs:
        remove(killed.folder / out)
    went_on = watched_trainings(monkeypatch)
    resumed = module_here(killed.folder, f"pipelines.{stage}")
    assert resumed.status == 0, resumed.stderr[-3000:]
    assert went_on(), "it began anew"
    assert digest(killed, outs) == undisturbed
    assert list(store.rglob("*.pt")) == []
