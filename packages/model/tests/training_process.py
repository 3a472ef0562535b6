"""Token-level trainings of a tiny transformer in processes of their own, for tests that kill them or start several.

``python training_process.py JOBS.json`` does a list of jobs one after the other, each in forks of this process, which
has spent the seconds of importing everything. A job is a dict: ``folder``, ``config`` (changes of the settings below),
``processes`` that train together, whether there are ``checkpoints``, ``end_after_saves`` (or null), and ``kills``, with
which the training is killed by SIGKILL so many times, at a random moment, before it may come to its end.

The folder gets ``weights.pt`` (the trained weights), ``record.json``, and ``gradients.pt`` (of the first captioning and
the first painting step from the initial weights); with ``kills`` also ``saved.json``, the newest checkpoint's step after
each of them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import random
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # what AdamW imports when it is built
from transformers import PreTrainedTokenizerFast  # noqa: F401 - imported when it is used

sys.path.insert(0, str(Path(__file__).parent))
from conftest import CAPTIONS, FakeShards

from diptych.model.checkpoints import TrainingCheckpoints
from diptych.model.networks.architectures import build_transformer
from diptych.model.networks.config import TransformerConfig
from diptych.model.tokenizer import build_tokenizer
from diptych.model.training.optimisation import add_gradients
from diptych.model.training.processes import current_processes, joined_processes
from diptych.model.training.token import TokenSteps, TokenTrainingConfig, train_token
from diptych.model.training.token_evaluation import EvaluationConfig

SETTINGS: dict[str, Any] = {
    "steps": 30,
    "caption_share": 0.4,
    "caption_batch_size": 5,
    "captions_per_image": 2,
    "paint_batch_size": 7,
    "caption_length": 12,
    "learning_rate": 3e-3,
    "warmup_share": 0.05,
    "weight_decay": 1e-2,
    "clip_norm": 1.0,
    "label_smoothing": 0.2,
    "least_masked": 0.0,
    "text_drop": 0.2,
    "ema_decay": 0.9,
    "accumulation": 1,
    "precision": "float32",
    "seed": 1,
    "checkpoint_seconds": 0.0,
    "evaluation": {"every": 8, "images": 4, "samples": 2, "mask_predict_steps": 2, "guidance": 2.0},
}


class Stopped(Exception):
    """The training was to end here."""


class EndingCheckpoints(TrainingCheckpoints):
    """Checkpoints of a process that ends after its n-th save: at once, or killed some seconds later."""

    def __init__(self, folder: Path, saves: int | None, killed_after: float | None) -> None:
        super().__init__(folder)
        self.saves, self.killed_after = saves, killed_after

    def save(self, state: dict[str, Any]) -> None:
        super().save(state)
        if self.saves is not None:
            self.saves -= 1
            if self.saves == 0 and self.killed_after is None:
                raise Stopped
            if self.saves == -2:
                threading.Event().wait()  # a busy machine may be late with the kill, and the training is to wait for it
            if self.saves == 0:
                threading.Timer(self.killed_after, os.kill, (os.getpid(), signal.SIGKILL)).start()


def train(job: dict[str, Any]) -> None:
    """One training in this process, which may be one of several."""
    torch.set_num_threads(1)
    values = {**SETTINGS, **job["config"]}
    dropout = values.pop("dropout", 0.0)
    if values["evaluation"] is not None:
        values["evaluation"] = EvaluationConfig(**values["evaluation"])
    config = TokenTrainingConfig(**values)
    tokenizer = build_tokenizer([text for texts in CAPTIONS for text in texts], min_count=1)
    torch.manual_seed(0)
    model = build_transformer(
        TransformerConfig(
            hidden_size=24, attention_heads=3, intermediate_size=40, language_layers=1, visual_layers=1,
            cross_layers=2, vocab_size=len(tokenizer), codebook_size=12, feature_dim=10, grid_size=4,
            cell_positions=False, text_positions=20, dropout=dropout, code_head="linear", initial_std=0.1,
            caption_attention=job.get("caption_attention", "prefix"),
        )
    )  # fmt: skip
    codebook = torch.randn(12, 10) * 3 + 1
    model.set_codebook(codebook)
    shards, val = FakeShards(11, 12, 10, 16), FakeShards(6, 12, 10, 16)
    folder = Path(job["folder"])
    processes = current_processes()

    gradients = {}
    model.train()
    steps = TokenSteps(config, model, tokenizer, codebook, shards)
    for name, step in (("paint", 0), ("caption", 2)):
        torch.manual_seed(5)
        loss, _ = add_gradients(steps.pieces(step, steps.read(step)))
        found = {key: weight.grad for key, weight in model.named_parameters() if weight.grad is not None}
        processes.sum([loss, *found.values()])
        gradients[name] = {"loss": loss, **found}
        model.zero_grad()

    checkpoints = None
    if job["checkpoints"]:
        checkpoints = EndingCheckpoints(
            folder / "checkpoints", job["end_after_saves"], job.get("killed_after")
        )
    try:
        record = train_token(config, model, tokenizer, codebook, shards, checkpoints, "cpu", val)
    except Stopped:
        os._exit(0)
    if processes.rank == 0:
        torch.save(model.state_dict(), folder / "weights.pt")
        torch.save(gradients, folder / "gradients.pt")
        (folder / "record.json").write_text(json.dumps(dataclasses.asdict(record)))


def killed_trainings(job: dict[str, Any]) -> None:
    """Train in forks that are killed at a random moment, and write down the steps they left checkpoints of."""
    chance, folder, saved = random.Random(3), Path(job["folder"]), []
    for _ in range(job["kills"]):
        # within about two steps after the save, wherever the process is then
        changes = {"end_after_saves": chance.randint(1, 9), "killed_after": chance.uniform(0, 0.05)}
        (status,) = run_forks({**job, **changes})
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        newest = max(folder.rglob("checkpoint-*.pt"))
        saved.append(int(newest.stem.split("-")[1]))
    (folder / "saved.json").write_text(json.dumps(saved))


def run_forks(job: dict[str, Any]) -> list[int]:
    """Train in as many forks as the job has processes; return their wait statuses."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(job["processes"]):
        child = os.fork()
        if child == 0:
            # what torchrun sets
            os.environ.update(
                RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(job["processes"]),
                MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
            )  # fmt: skip
            with joined_processes("cpu") if job["processes"] > 1 else contextlib.nullcontext():
                train(job)
            os._exit(0)
        children.append(child)
    return [os.waitpid(child, 0)[1] for child in children]


if __name__ == "__main__":
    defaults = {"config": {}, "processes": 1, "checkpoints": False, "end_after_saves": None, "kills": 0}
    for settings in json.loads(Path(sys.argv[1]).read_text()):
        job = {**defaults, **settings}
        Path(job["folder"]).mkdir(exist_ok=True)
        killed_trainings(job)
        first, *others = run_forks(job)
        # where process 0 ends early, the others must find out and fail
        if first or any(bool(other) != (job["end_after_saves"] is not None) for other in others):
            sys.exit(f"failed: {job}")
