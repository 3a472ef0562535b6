"""Fine-tuning on VQA, GQA or NLVR2, from the pretrained weights or, to compare with, from random ones (X-LXMERT 5.3)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from diptych.model.answer_table import AnswerTable, build_answer_table, load_answer_table
from diptych.model.pretrained import load_transformer, save_transformer
from diptych.model.training.fine_tuning import StatementTable, fine_tune
from diptych.model.training.initial import with_heads
from diptych.model.training.processes import current_processes
from diptych.model.training.questions import QuestionTable, tell_left_out
from pipelines.measuring.shards import shards_of
from pipelines.runner.processes import run, training_device
from pipelines.runner.stage import Stage
from pipelines.x_lxmert.params import PRETRAINED, FineTuneParams, Params, model_folder, questions_in

if TYPE_CHECKING:
    from torch import Tensor

    from diptych.model.networks.unified import UnifiedTransformer
    from diptych.model.tokenizer import CaptionTokenizer
    from diptych.model.training.contracts import Record


def main(stage: Stage, params: Params) -> None:
    """Train on the train split's questions; write the model directory models/x_lxmert/<task>_<start> and the history."""
    task, start = stage.item["task"], stage.item["start"]
    with training_device(stage) as device:
        model, record = train(stage, params.fine_tuning[task], task, start, PRETRAINED, device)
        if current_processes().rank > 0:
            return
        with stage.write(str(model_folder(task, start))) as folder:
            save_transformer(folder, *model)
        stage.write_history(f"plots/x_lxmert/{task}_{start}.csv", record.history)


def train(
    stage: Stage, params: FineTuneParams, task: str, start: str, pretrained: Path, device: str
) -> tuple[tuple[UnifiedTransformer, CaptionTokenizer, Tensor, AnswerTable | None], Record]:
    """A fine-tuned model, its tokenizer, codebook and answer table, and its history. pretrained: the model directory to start
    from, or with `start` random to have the network of."""
    shards = shards_of("train")
    asked = questions_in(task, "train")
    table = None
    if params.answers is not None:
        table = build_answer_table([row["answers"] for row in asked], params.answers.min_count)
    model, tokenizer, codebook = starting_from(stage, start, pretrained, table)
    model.config = replace(model.config, caption_attention=params.attention)
    questions: QuestionTable | StatementTable
    if table is None:
        questions = StatementTable(asked, shards.keys, tokenizer, params.length)
    else:
        questions = QuestionTable(asked, shards.keys, tokenizer, table, params.length)
    tell_left_out(questions, len(asked), task)
    record = fine_tune(
        params.training,
        model,
        tokenizer,
        codebook,
        shards,
        questions,
        stage.checkpoints(),
        device,
    )
    return (model, tokenizer, codebook, table), record


def starting_from(
    stage: Stage, start: str, pretrained: Path, table: AnswerTable | None
) -> tuple[UnifiedTransformer, CaptionTokenizer, Tensor]:
    """The pretrained model with the head of the task, its tokenizer and codebook; of the start `random` the same network with
    weights drawn by the seed. table: of the answers; null for a head that reads two pictures."""
    import torch

    from diptych.model.networks.architectures import build_transformer

    model, tokenizer, codebook = load_transformer(pretrained)
    known = load_answer_table(pretrained, model.config.answers)
    if start == "random":
        torch.manual_seed(stage.seed)
        model, known = build_transformer(replace(model.config, answers=0)), None
        model.set_codebook(codebook)
    model = with_heads(model, stage.seed, answers=table, known=known, pairs=table is None)
    return model, tokenizer, codebook


if __name__ == "__main__":
    run("x_lxmert/fine_tune", Params, main, ("task", "start"))
