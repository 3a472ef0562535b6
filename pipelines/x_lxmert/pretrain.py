"""X-LXMERT's pretraining: masked codes, masked words, matching and questions (X-LXMERT 5.1, C.5)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diptych.features.codebook.reading import load_codebook
from diptych.features.detector import load_detector
from diptych.features.shards.reading import ShardDataset
from diptych.model.answer_table import build_answer_table
from diptych.model.pretrained import save_transformer
from diptych.model.training.initial import random_transformer
from diptych.model.training.pretraining import pretrain
from diptych.model.training.processes import current_processes
from diptych.model.training.questions import QuestionTable, tell_left_out
from pipelines.measuring.shards import shards_of
from pipelines.runner.processes import run, training_device
from pipelines.runner.stage import Stage
from pipelines.x_lxmert.params import CODEBOOK, PRETRAINED, Params, questions_in

if TYPE_CHECKING:
    from torch import Tensor

    from diptych.model.answer_table import AnswerTable
    from diptych.model.networks.unified import UnifiedTransformer
    from diptych.model.tokenizer import CaptionTokenizer
    from diptych.model.training.contracts import Record

DETECTOR = Path("models/detector")


def main(stage: Stage, params: Params) -> None:
    """Train on the train split; write the model directory models/x_lxmert/pretrained and the history."""
    with training_device(stage) as device:
        model, record = train(stage, params, device)
        if current_processes().rank > 0:
            return
        with stage.write(str(PRETRAINED)) as folder:
            save_transformer(folder, *model)
        stage.write_history("plots/x_lxmert/pretrain.csv", record.history)


def train(
    stage: Stage, params: Params, device: str
) -> tuple[tuple[UnifiedTransformer, CaptionTokenizer, Tensor, AnswerTable], Record]:
    """A pretrained model, its tokenizer, codebook and answer table, and its history."""
    import torch

    wanted = params.pretraining
    shards = shards_of("train")
    codebook = torch.from_numpy(load_codebook(CODEBOOK))
    tasks = dict.fromkeys((*wanted.questions, *params.tasks))
    rows = {task: questions_in(task, "train") for task in tasks}
    asked = [row for task in wanted.questions for row in rows[task]]
    table = build_answer_table([row["answers"] for row in asked], wanted.answers.min_count)
    objects = None if wanted.training.discrete else object_logits(device)
    model, tokenizer = random_transformer(
        params.network,
        params.architecture,
        wanted.attention,
        "two_level",
        words_of_all_tasks(shards, rows.values()),
        params.tokenizer.min_count,
        codebook,
        stage.seed,
        len(table),
        matching=True,
        regresses=not wanted.training.discrete,
        object_classes=objects(codebook[:1].to(device)).shape[-1] if objects else 0,
    )
    questions = QuestionTable(asked, shards.keys, tokenizer, table, wanted.training.text_length)
    tell_left_out(questions, len(asked), "pretraining")
    record = pretrain(
        wanted.training,
        model,
        tokenizer,
        codebook,
        shards,
        questions,
        stage.checkpoints(),
        device,
        objects,
    )
    return (model, tokenizer, codebook, table), record


def words_of_all_tasks(train: ShardDataset, asked: Iterable[Iterable[Mapping[str, Any]]]) -> list[str]:
    """What the vocabulary is made from: all that is learned of the train split, so that each task finds its words. asked: the
    training questions of each task."""
    captions = [caption for index in range(len(train)) for caption in train.captions(index)]
    return captions + [row["question"] for rows in asked for row in rows]


def object_logits(device: str) -> Callable[[Tensor], Tensor] | None:
    """The detector's logits of what grid features show; None where it has none for them, and LXMERT's pretraining regresses
    features alone."""
    detector = load_detector(DETECTOR, device)
    classes = getattr(detector, "grid_class", None)
    if classes is None:
        print(
            f"{DETECTOR}: this detector does not classify grid features; they are regressed alone (MVFR without MOC)"
        )
    return classes


if __name__ == "__main__":
    run("x_lxmert/pretrain", Params, main)
