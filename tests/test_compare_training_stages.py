"""The comparison of training stages: no figure of other measurements, and no model of other inputs."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from pipeline_clone import Clone

from diptych.eval.figures import Figure
from pipelines.commands import compare_training_stages, current, seeds
from pipelines.commands.current import is_current
from pipelines.runner import code
from pipelines.runner.params import Machine, ParameterError, read_params, read_section
from pipelines.runner.stage import Stage
from pipelines.train_sequence import TrainSequenceParams

REPOSITORY = Path(__file__).parent.parent
MACHINE = Machine(1, 1, "cpu", "float32", 30.0, ".cache/features")
PROVIDED = {"seed": 0, "precision": "float32", "checkpoint_seconds": 30.0}


@pytest.fixture
def compare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], tuple[list[str], list[str]]]:
    """Compares seed 0 where the stage's own model is current or not: (models that were trained, that were measured)."""
    monkeypatch.chdir(tmp_path)
    params = read_section(
        TrainSequenceParams, "train_sequence", read_params(REPOSITORY / "params.yaml"), provided=PROVIDED
    )
    (tmp_path / "dvc.yaml").write_text("stages: {train_sequence: {cmd: train}}")
    (tmp_path / "params.yaml").write_text("{generate: {a: 1}, evaluate: {b: 1}}")
    for name in compare_training_stages.MEASURING[:3]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("made")
    (tmp_path / "models/sequence").mkdir()
    trained: list[str] = []
    measured: list[str] = []

    def train(stage: Stage, params: object, device: str, part: str) -> tuple[tuple[()], None]:
        trained.append(part)
        return (), None

    @contextlib.contextmanager
    def measured_model(model: Path, table: Path) -> Iterator[SimpleNamespace]:
        measured.append(model.name)
        table.parent.mkdir(parents=True, exist_ok=True)
        yield SimpleNamespace(figures=[Figure("caption.cider_d", 1.0, 1)])

    monkeypatch.setattr(code, "code_of", lambda file: {})
    monkeypatch.setattr(compare_training_stages, "train", train)
    monkeypatch.setattr(compare_training_stages, "save_transformer", lambda folder: folder.mkdir(parents=True))
    monkeypatch.setattr(compare_training_stages, "read_unified", lambda folder, *_: folder)
    monkeypatch.setattr(compare_training_stages, "measured_model", measured_model)

    def compared(own_is_current: bool) -> tuple[list[str], list[str]]:
        trained.clear()
        measured.clear()
        monkeypatch.setattr(compare_training_stages, "is_current", lambda stage: own_is_current)
        compare_training_stages.compare(Stage("train_sequence", 0, MACHINE, {}), params, [0])
        return list(trained), list(measured)

    return compared


def test_figures_are_kept_only_as_they_would_be_measured(compare, tmp_path: Path) -> None:
    assert compare(True) == ([], ["token", "sequence"])
    assert compare(True) == ([], [])
    (tmp_path / "models/judge").write_text("another")
    assert compare(True) == ([], ["token", "sequence"])
    (tmp_path / "params.yaml").write_text("{generate: {a: 1}, evaluate: {b: 2}}")
    assert compare(True) == ([], ["token", "sequence"])


def test_the_stages_own_model_is_taken_only_where_it_is_current(compare) -> None:
    assert compare(False) == (["0"], ["token", "model-0"])


@pytest.mark.parametrize("command", [compare_training_stages, seeds])
def test_seeds_are_seeds(command, tmp_path: Path, run_here) -> None:
    done = run_here(tmp_path, command.main, "--seeds", "0", "-1")
    assert done.status == 1 and "seeds are whole numbers from 0 on, not -1" in done.stderr


def test_a_seed_counts_once_and_no_good_end_of_a_stage_removes_it(tmp_path: Path, monkeypatch, run_here) -> None:
    asked = []
    stage = Stage("train_sequence", 0, MACHINE, {})
    monkeypatch.setattr(compare_training_stages.stages, "read_stage", lambda *_: (stage, None))
    monkeypatch.setattr(compare_training_stages, "prepare_process", lambda threads: None)
    monkeypatch.setattr(compare_training_stages, "compare", lambda *given: asked.append(given))
    assert run_here(tmp_path, compare_training_stages.main, "--seeds", "1", "1", "0").status == 0
    ((theirs, _, chosen),) = asked
    assert chosen == [1, 0]
    monkeypatch.setattr(Stage, "_key", "key")
    theirs.checkpoints("1").save({"step": 1})
    assert theirs.training_folder.parent.name == "compare_training_stages"
    stage.forget_training()
    assert theirs.checkpoints("1").load() == {"step": 1}


def test_what_a_stage_made_is_current_by_its_inputs_and_its_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = Clone(tmp_path)
    for command in (["git", "init", "--quiet"], ["dvc", "init", "--quiet"]):
        assert repository.run(*command).returncode == 0
    (tmp_path / "dvc.yaml").write_text("stages: {copy: {cmd: cp in out, deps: [in, code/copy.json], outs: [out]}}")
    (tmp_path / "in").touch()
    (tmp_path / "code").mkdir()
    (tmp_path / "code/copy.json").write_text(json.dumps({"pipelines.copy": "1"}))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(current, "code_of", lambda file: {"pipelines.copy": "1"})
    assert not is_current("copy"), "it has not run"
    assert repository.repro() == ["copy"]
    assert is_current("copy")
    monkeypatch.setattr(current, "code_of", lambda file: {"pipelines.copy": "2"})
    assert not is_current("copy"), "the stage `code` has not run since"
    monkeypatch.setattr(current, "code_of", lambda file: {"pipelines.copy": "1"})
    (tmp_path / "in").write_text("other")
    assert not is_current("copy")
    (tmp_path / "dvc.yaml").write_text("stages: [")
    with pytest.raises(ParameterError, match="dvc status copy: "):
        is_current("copy")
