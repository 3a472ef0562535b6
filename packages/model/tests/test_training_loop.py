"""What surrounds the steps of a training: evaluation, reading ahead, full disks, stalled drives."""

from __future__ import annotations

import copy
import dataclasses
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from torch import nn
from waiting import HANG_SECONDS, wait_until

from diptych.model.checkpoints import TrainingCheckpoints
from diptych.model.errors import UserError
from diptych.model.training import loop, reading
from diptych.model.training.config import LoopConfig
from diptych.model.training.contracts import Piece
from diptych.model.training.loop import run_training
from diptych.model.training.processes import Processes
from diptych.model.training.reading import ReadAhead
from diptych.model.training.state import averaged
from diptych.model.training.token import TokenTrainingConfig, train_token
from diptych.model.training.token_evaluation import EvaluationConfig

EVALUATION = EvaluationConfig(every=7, images=5, samples=2, mask_predict_steps=2, guidance=2.0)
LOOP = LoopConfig(
    steps=6,
    learning_rate=0.1,
    clip_norm=1e9,
    ema_decay=0.0,
    precision="float32",
    seed=0,
    checkpoint_seconds=1e9,
)

TOKEN = TokenTrainingConfig(
    **dataclasses.asdict(
        dataclasses.replace(LOOP, steps=25, learning_rate=3e-3, clip_norm=1.0, ema_decay=0.9)
    ),
    caption_share=0.4,
    caption_batch_size=3,
    captions_per_image=2,
    paint_batch_size=4,
    caption_length=12,
    warmup_share=0.05,
    label_smoothing=0.2,
    least_masked=0.0,
    text_drop=0.1,
)


class Numbers:
    """Steps of a model with one weight: a random number that belongs to the data, and one of the pass."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.drawn: list[tuple[float, float]] = []

    def read(self, step: int) -> int:
        return step

    def pieces(self, step: int, data: int) -> list[Piece]:
        assert data == step
        of_data = torch.rand(()).item()

        def loss() -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            self.drawn.append((of_data, torch.rand(()).item()))
            mean = self.model(torch.ones(1, 1)).square().sum()
            return mean, {"loss": mean.detach()}

        return [Piece(0.25, 3, loss), Piece(0.75, 9, loss)]


def run(config: LoopConfig = LOOP, steps: type[Numbers] = Numbers, checkpoints=None) -> Numbers:
    model = nn.Linear(1, 1)
    numbers = steps(model)
    run_training(model, "numbers", config, numbers, lambda step: 0.1, "here", checkpoints)
    return numbers


def test_processes_share_what_belongs_to_the_data_and_draw_their_own_dropout(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn = {}
    for rank in (0, 1, 2):
        processes = Processes(rank, 3) if rank else Processes(0, 1)
        monkeypatch.setattr(Processes, "sum", lambda self, tensors: None)
        monkeypatch.setattr(Processes, "agree", lambda self, what, value: None)
        monkeypatch.setattr(loop, "current_processes", lambda processes=processes: processes)
        drawn[rank] = run().drawn
    of_data, of_pass = ([[pair[part] for pair in drawn[rank]] for rank in drawn] for part in (0, 1))
    assert of_data[0] == of_data[1] == of_data[2] and len(set(of_data[0])) == 6
    assert len({number for numbers in of_pass for number in numbers}) == 3 * 12


def test_evaluation_changes_nothing_but_the_record(tiny) -> None:
    tiny.model.config = dataclasses.replace(tiny.config, dropout=0.1)
    for module in tiny.model.modules():
        if hasattr(module, "dropout"):
            module.dropout = 0.1
    ends, records = [], []
    for evaluation in (None, EVALUATION):
        model = copy.deepcopy(tiny.model)
        config = dataclasses.replace(TOKEN, evaluation=evaluation)
        records.append(
            train_token(config, model, tiny.tokenizer, tiny.codebook, tiny.train, None, "cpu", tiny.train)
        )
        ends.append(model.state_dict())
    assert all(a.equal(b) for a, b in zip(ends[0].values(), ends[1].values(), strict=True))
    plain, evaluated = records
    assert [row["step"] for row in plain.history] == [20, 25] and plain.samples == []
    assert evaluated.history == plain.history and plain.evaluations == []
    assert [row["step"] for row in evaluated.evaluations] == [7, 14, 21, 25]
    assert {*evaluated.evaluations[0]} == {"step", "val_caption_loss", "val_paint_loss"}
    assert [sample["step"] for sample in evaluated.samples] == [7, 7, 14, 14, 21, 21, 25, 25]
    first, second = evaluated.samples[:2]
    assert first["image_id"] != second["image_id"] and len(first["codes"]) == 16
    assert {sample["image_id"] for sample in evaluated.samples} == {first["image_id"], second["image_id"]}
    image = tiny.train.keys.index(first["image_id"])
    assert first["prompt"] in tiny.train.captions(image)


def test_a_compiled_training_is_the_same_up_to_rounding(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced as for any compiler; what a compiler makes of the traces is not ours, and takes minutes."""
    calls = []

    def trace(function, **options):
        calls.append(function.__name__)
        return torch._dynamo.optimize("eager", dynamic=options["dynamic"])(function)

    ends = []
    for compiled in (False, True):
        model = copy.deepcopy(tiny.model)
        config = dataclasses.replace(TOKEN, steps=6)
        monkeypatch.setattr(torch, "compile", trace)
        train_token(config, model, tiny.tokenizer, tiny.codebook, tiny.train, None, "cpu", compiled=compiled)
        ends.append(torch.cat([weight.flatten() for weight in model.state_dict().values()]))
    assert calls == ["caption_and_answer_losses", "paint_loss"]
    assert (ends[0] - ends[1]).norm() < 1e-4 * ends[0].norm()


def test_val_losses_are_those_of_training_on_the_same_data(tiny) -> None:
    """One caption an image, every cell masked, nothing drawn: losses can be computed by hand."""
    from diptych.model.decoding.caption import encode_images
    from diptych.model.objectives.token import caption_loss, paint_loss
    from diptych.model.training.token_evaluation import TokenEvaluation

    tiny.train.captions = lambda index: [["a red kite floats."], ["two blue boats."]][index % 2]
    config = dataclasses.replace(TOKEN, least_masked=0.999, captions_per_image=1)
    evaluation = TokenEvaluation(
        dataclasses.replace(EVALUATION, images=40),
        config,
        tiny.model,
        tiny.tokenizer,
        tiny.codebook,
        tiny.train,
    )
    figures, _ = evaluation.evaluate()
    ids = tiny.tokenizer.encode([tiny.train.captions(index)[0] for index in range(6)], 12)
    features = torch.from_numpy(tiny.train.grid(range(6))).float()
    codes = torch.from_numpy(tiny.train.codes(range(6)))
    everything = torch.ones(codes.shape, dtype=torch.bool)
    with torch.no_grad():
        words = caption_loss(
            tiny.model, tiny.tokenizer, encode_images(tiny.model, features), ids[:, None], 0.2
        )
        cells = paint_loss(tiny.model, tiny.tokenizer, tiny.codebook, codes, ids, everything, 0.2)
    assert figures == {
        "val_caption_loss": pytest.approx(words.item(), rel=1e-5),
        "val_paint_loss": pytest.approx(cells.item(), rel=1e-5),
    }


def test_averages_stand_in_for_the_weights_and_go_again() -> None:
    weights = [nn.Parameter(torch.randn(3))]
    before = weights[0].detach().clone()
    with pytest.raises(RuntimeError), averaged(weights, [torch.zeros(3)]):
        assert (weights[0] == 0).all()
        raise RuntimeError
    assert weights[0].equal(before)
    with averaged(weights, []):
        assert weights[0].equal(before)


def test_the_next_step_is_read_while_this_one_runs() -> None:
    threads, begun = set(), []

    def read(step: int) -> int:
        threads.add(threading.current_thread().name)
        begun.append(step)
        return step

    reader = ReadAhead(read, 3, 9)
    taken = []
    for step in range(3, 9):
        taken.append(reader.take())
        # the next one comes without being asked for
        wait_until(lambda step=step: len(begun) >= min(step - 3 + 2, 6))
        time.sleep(0.02)
        assert len(begun) <= step - 3 + 2, "one step ahead and no further"
    assert taken == list(range(3, 9)) and threads == {"reader"}
    reader.close()


def test_an_error_while_reading_comes_at_its_step() -> None:
    class Failing(Numbers):
        def read(self, step: int) -> int:
            if step == 2:
                raise FileNotFoundError("shard")
            return step

    with pytest.raises(FileNotFoundError, match="shard"):
        run(steps=Failing)
    assert not [t for t in threading.enumerate() if t.name == "reader" and t.is_alive() and not t.daemon]


def test_a_drive_that_stops_answering_ends_the_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stalls, ended = threading.Event(), threading.Event()

    class Stalling(Numbers):
        def read(self, step: int) -> int:
            if step == 3:
                stalls.set()
                ended.wait(HANG_SECONDS)
            return step

        def pieces(self, step: int, data: int) -> list[Piece]:
            if step == 2:  # only from here on is a wait of this length a stall
                assert stalls.wait(HANG_SECONDS)
                monkeypatch.setattr(reading, "STALL_SECONDS", 0.2)
            return super().pieces(step, data)

    config = dataclasses.replace(LOOP, checkpoint_seconds=0.0)
    with pytest.raises(UserError, match="no training data came for .* minutes; check the .*drive"):
        run(config, Stalling, TrainingCheckpoints(tmp_path))
    assert TrainingCheckpoints(tmp_path).load()["step"] == 3
    ended.set()


def test_a_read_that_keeps_pythons_lock_ends_the_process() -> None:
    """As a page fault of a mapped file on a dead network drive does; no Python code can run meanwhile."""
    script = """
import ctypes
from diptych.model.training import reading
reading.HANG_SECONDS = 1.0
reader = reading.ReadAhead(lambda step: step and ctypes.PyDLL(None).sleep(3600), 0, 9)
reader.take()
reader.take()
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=HANG_SECONDS
    )
    assert done.returncode == 1
    assert "Timeout (0:00:01)" in done.stderr and "reading.py" in done.stderr


def test_not_a_number_names_the_step_and_the_last_good_checkpoint(tmp_path: Path) -> None:
    class Broken(Numbers):
        def pieces(self, step: int, data: int) -> list[Piece]:
            pieces = super().pieces(step, data)
            if step < 4:
                return pieces
            return [dataclasses.replace(pieces[0], share=float("nan")), pieces[1]]

    config = dataclasses.replace(LOOP, checkpoint_seconds=0.0)
    with pytest.raises(UserError, match=r"nan .* at step 4; the last good checkpoint is of step 4; lower"):
        run(config, Broken, TrainingCheckpoints(tmp_path))
    state = TrainingCheckpoints(tmp_path).load()
    assert state["step"] == 4 and all(tensor.isfinite().all() for tensor in state["model"].values())


FULL_DISK = """
import sys
from pathlib import Path
sys.path[:0] = [{tests!r}]
from test_training_loop import LOOP, Numbers
import dataclasses, torch
from torch import nn
from diptych.model.checkpoints import TrainingCheckpoints
from diptych.model.errors import UserError
from diptych.model.training.loop import run_training

folder = Path({folder!r})
class Filling(Numbers):
    def pieces(self, step, data):
        if step == 2:
            (folder / "others").write_bytes(bytes({filled}))
        return super().pieces(step, data)

model = nn.Sequential(nn.Linear(1, 200_000), nn.Linear(200_000, 1))
config = dataclasses.replace(LOOP, checkpoint_seconds=0.0)
try:
    run_training(model, "numbers", config, Filling(model), lambda step: 0.1, "here", TrainingCheckpoints(folder))
except UserError as error:
    print(error)
print(sorted(path.name for path in folder.iterdir()), TrainingCheckpoints(folder).load()["step"])
"""


def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path: Path) -> None:
    if subprocess.run(["unshare", "-Urm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine lets nobody mount a small disk")
    # A checkpoint of 600,001 weights with AdamW's averages is 7.2 MB; two fit and the others' file, no third.
    script = FULL_DISK.format(tests=str(Path(__file__).parent), folder=str(tmp_path), filled=9 << 20)
    done = subprocess.run(
        ["unshare", "-Urm", "sh", "-c", 'mount -t tmpfs -o size=25m tmpfs "$1" && exec "$2" -c "$3"', "sh",
         str(tmp_path), sys.executable, script],
        capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    message, listing = done.stdout.strip().splitlines()
    assert "the checkpoint of step 3 could not be written ([Errno 28] No space left on device" in message
    assert "the last good checkpoint is of step 2; free some space" in message
    assert listing == "['checkpoint-00000001.pt', 'checkpoint-00000002.pt', 'others'] 2"


def test_settings_below_one_are_named() -> None:
    for name in ("steps", "accumulation"):
        with pytest.raises(UserError, match=f"{name} must be at least 1, is 0"):
            dataclasses.replace(LOOP, **{name: 0})
    with pytest.raises(UserError, match=r"evaluation.samples must be from 0 to images \(5\), is 6"):
        dataclasses.replace(EVALUATION, samples=6)
