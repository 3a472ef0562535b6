"""Fine-tuning on VQA, GQA or NLVR2, from the pretrained weights or, to compare with, from random ones (X-LXMERT 5.3)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from diptych.features.shards.reading import ShardDataset
from diptych.model.answer_table import AnswerTable, build_answer_table, load_answer_table
from diptych.model.pretrained import load_transformer, save_transformer
from diptych.model.training.fine_tuning import StatementTable, fine_tune
from diptych.model.training.initial import with_heads
from diptych.model.training.processes import current_processes
from diptych.model.training.questions import QuestionTable
from pipelines.runner.processes import run, training_device
from pipelines.runner.stage import Stage
from pipelines.x_lxmert.params import PRETRAINED, SHARDS, Params, model_folder, questions_in

if TYPE_CHECKING:
    from torch import Tensor

    from diptych.model.networks.unified import UnifiedTransformer
    from diptych.model.tokenizer import CaptionTokenizer


def main(stage: Stage, params: Params) -> None:
    """Train on the train split's questions; write the model directory models/x_lxmert/<task>_<start> and the history."""
    task, start = stage.item["task"], stage.item["start"]
    with training_device(stage) as device:
        wanted = params.fine_tuning[task]
        train = ShardDataset(SHARDS, "train")
        asked = questions_in(task, "train")
        table = None
        if wanted.answers is not None:
            table = build_answer_table([row["answers"] for row in asked], wanted.answers.min_count)
        model, tokenizer, codebook = starting_from(stage, start, table)
        model.config = replace(model.config, caption_attention=wanted.attention)
        questions: QuestionTable | StatementTable
        if table is None:
            questions = StatementTable(asked, train.keys, tokenizer, wanted.length)
        else:
            questions = QuestionTable(asked, train.keys, tokenizer, table, wanted.length)
        record = fine_tune(
            wanted.training,
            model,
            tokenizer,
            codebook,
            train,
            questions,
            stage.checkpoints(),
            device,
        )
        if current_processes().rank > 0:
            return
        with stage.write(str(model_folder(task, start))) as folder:
            save_transformer(folder, model, tokenizer, codebook, table)
        stage.write_history(f"plots/x_lxmert/{task}_{start}.csv", record.history)


def starting_from(
    stage: Stage, start: str, table: AnswerTable | None
) -> tuple[UnifiedTransformer, CaptionTokenizer, Tensor]:
    """The pretrained model with the head of the task, its tokenizer and codebook; of the start `random` the same network with
    weights drawn by the seed. table: of the answers; null for a head that reads two pictures."""
    import torch

    from diptych.model.networks.architectures import build_transformer

    model, tokenizer, codebook = load_transformer(PRETRAINED)
    known = load_answer_table(PRETRAINED, model.config.answers)
    if start == "random":
        torch.manual_seed(stage.seed)
        model, known = build_transformer(replace(model.config, answers=0)), None
        model.set_codebook(codebook)
    model = with_heads(model, stage.seed, answers=table, known=known, pairs=table is None)
    return model, tokenizer, codebook


if __name__ == "__main__":
    run("x_lxmert/fine_tune", Params, main, ("task", "start"))
