"""Answers of ours to X-LXMERT's test questions, as its transformer was trained to answer beside captions and paintings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from diptych.model.answer_table import load_answer_table
from diptych.model.errors import UserError
from diptych.model.pretrained import load_transformer
from pipelines.measuring.answers import answered_rows, question_of
from pipelines.measuring.generate_params import GenerateParams
from pipelines.measuring.shards import shards_of
from pipelines.runner.stage import read_stage
from pipelines.tables.answered import write_pictures
from pipelines.tables.item import TableItem, only_one_in, run
from pipelines.tables.measured import write_measured
from pipelines.x_lxmert.evaluate import SPLIT, MeasuredTask, about_pictures_of
from pipelines.x_lxmert.params import questions_in

if TYPE_CHECKING:
    from pipelines.tables.params import TableParams


def main(item: TableItem, section: TableParams) -> None:
    """Write measured/MODEL_vqa-SEED in the table's folder, as `answered` does. Raises UserError for a model without an answer head."""
    stage, model_name = item.stage, item.values["model"]
    folder = only_one_in(item.deps, item.path("models"))
    model, tokenizer, codebook = load_transformer(folder, stage.device)
    table = load_answer_table(folder, model.config.answers)
    if table is None:
        raise UserError(f"{folder}: no answer head; train with train_token.training.questions")
    _, generation = read_stage("generate", GenerateParams)
    shards = shards_of(SPLIT)
    asked = about_pictures_of(shards, questions_in("vqa", SPLIT), "vqa")
    options = generation.answer.length, generation.batch_size
    batches = answered_rows(stage, model, tokenizer, codebook, table, {SPLIT: shards}, asked, *options)
    questions = [question_of(each) for each in asked]
    measured = MeasuredTask("vqa", questions, stage.seed)
    right = measured.add({row["question_id"]: row["answers"][0] for rows in batches for row in rows}, "")
    with stage.write(f"{item.table.measured}/{model_name}_vqa-{stage.seed}") as path:
        write_measured(Path(path), measured.figures, model)
        write_pictures(path / "pictures.parquet", "vqa.accuracy", questions, right)


if __name__ == "__main__":
    run("answers", ("model", "seed"), main)
