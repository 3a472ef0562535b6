"""A pretrained model of one row and seed fine-tuned on a task and measured on it, as `pipelines/x_lxmert` does both (X-LXMERT's
table 1)."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from diptych.eval.answers.nlvr2 import sentence_of
from diptych.eval.answers.questions import Question
from pipelines.measuring.answers import question_of
from pipelines.measuring.shards import shards_of
from pipelines.runner.params import read_params, read_section
from pipelines.tables.item import TableItem, only_one_named, run
from pipelines.tables.measured import write_measured
from pipelines.tables.params import PretrainingTableParams, x_lxmert_params
from pipelines.x_lxmert import fine_tune
from pipelines.x_lxmert.evaluate import SPLIT, MeasuredTask, about_pictures_of, answers_of
from pipelines.x_lxmert.params import TASKS, questions_in

if TYPE_CHECKING:
    from pipelines.tables.params import TableParams

X_LXMERT = "table_x_lxmert"


def main(item: TableItem, section: TableParams) -> None:
    """Write measured/ROW_TASK-SEED in the table's folder: figures.json, pictures.parquet with the accuracy of each picture's
    questions (for NLVR2 of each sentence), and parameters.txt. The fine-tuned model is not kept."""
    stage, row = item.stage, item.values["row"]
    (task,) = (known for known in TASKS if known == item.values["task"])
    everything = read_params()
    if not isinstance(
        section, PretrainingTableParams
    ):  # a table that compares X-LXMERT, pretrained by its own, with others
        section, of = read_section(PretrainingTableParams, X_LXMERT, everything), X_LXMERT
    else:
        of = item.table.name
    params = x_lxmert_params(section, of, everything, stage.seed)
    wanted = params.fine_tuning[task]
    start = only_one_named(item.deps, "pretrained_")
    (model, tokenizer, codebook, table), _ = fine_tune.train(
        stage, wanted, task, "pretrained", start, stage.device
    )
    fine_tuned = model, tokenizer, codebook.to(stage.device), table
    shards = shards_of(SPLIT)
    asked = about_pictures_of(shards, questions_in(task, SPLIT), task)
    questions = [question_of(each) for each in asked]
    measured = MeasuredTask(task, questions, stage.seed, questions_in(task, "train"))
    right = measured.add(answers_of(stage, wanted, fine_tuned, shards, asked, params.batch_size), "")
    with stage.write(f"{item.table.measured}/{row}_{task}-{stage.seed}") as folder:
        write_measured(folder, measured.figures, model)
        write_pictures(folder / "pictures.parquet", f"{task}.accuracy", questions, right)


def write_pictures(path: Path, name: str, questions: Sequence[Question], right: Mapping[str, float]) -> None:
    """A row per picture, or per sentence of NLVR2, whose pairs of pictures are its own: `image_id`, and in the column `name` the mean
    of its questions, which are not independent."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    of_unit: dict[str, list[float]] = {}
    for question in questions:
        if question.question_id in right:
            unit = sentence_of(question) if len(question.image_ids) == 2 else question.image_ids[0]
            of_unit.setdefault(unit, []).append(right[question.question_id])
    columns = {"image_id": list(of_unit), name: [statistics.fmean(values) for values in of_unit.values()]}
    pq.write_table(pa.table(columns), path)


if __name__ == "__main__":
    run("answered", ("row", "task", "seed"), main)
