"""Measure the fine-tuned models on the test split: VQA's, GQA's and NLVR2's metrics, and what pretraining is worth."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from diptych.eval.answers.gqa import measure_gqa
from diptych.eval.answers.nlvr2 import measure_nlvr2, sentence_of, truth
from diptych.eval.answers.normalisation import normalise_answer
from diptych.eval.answers.questions import Measuring, Question, Settings, units_of
from diptych.eval.answers.vqa import measure_vqa
from diptych.eval.figures import Figure, flat_values, table, write_figures
from diptych.features.errors import UserError
from diptych.features.shards.reading import ShardDataset
from diptych.model.answer_table import load_answer_table
from diptych.model.decoding.answer import statement_logits
from diptych.model.decoding.caption import encode_images
from diptych.model.image_features import caption_input, caption_rows
from diptych.model.precision import autocast_context
from diptych.model.pretrained import load_transformer
from pipelines.measuring.answers import answered_rows, guesses_from_words, question_of
from pipelines.measuring.shards import shards_of
from pipelines.runner.spread import NetworkWork, spread
from pipelines.runner.stage import Stage, run
from pipelines.x_lxmert.params import (
    ANSWERED,
    FIGURES,
    FineTuneParams,
    Params,
    Task,
    model_folder,
    questions_file,
    questions_in,
)

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor

    from diptych.model.answer_table import AnswerTable
    from diptych.model.networks.unified import UnifiedTransformer
    from diptych.model.tokenizer import CaptionTokenizer

SPLIT = "test"
Each = dict[str, dict[str, float]]


def main(stage: Stage, params: Params) -> None:
    """Write metrics/x_lxmert.json, its records metrics/x_lxmert_figures.json, and all answers to data/x_lxmert/answers.parquet:
    `task, start, question_id, image_ids, question, kind, references, answer, right` (0..1)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    figures: list[Figure] = []
    answered: list[dict[str, Any]] = []
    shards = shards_of(SPLIT)
    for task in params.tasks:
        asked = about_pictures_of(shards, questions_in(task, SPLIT), task)
        training = questions_in(task, "train")
        measured = MeasuredTask(task, [question_of(row) for row in asked], stage.seed, training)
        for start in params.starts:
            folder, wanted = model_folder(task, start), params.fine_tuning[task]
            model, tokenizer, codebook = load_transformer(folder, stage.device)
            known = load_answer_table(folder, model.config.answers)
            fine_tuned = model, tokenizer, codebook, known
            answers = answers_of(stage, wanted, fine_tuned, shards, asked, params.batch_size)
            scores = measured.add(answers, "" if start == "pretrained" else f"{start}.")
            answered += [
                {
                    "task": task,
                    "start": start,
                    "question_id": row["question_id"],
                    "image_ids": row["image_ids"],
                    "question": row["question"],
                    "kind": row["kind"],
                    "references": row["answers"],
                    "answer": answers[row["question_id"]],
                    "right": scores.get(row["question_id"]),
                }
                for row in asked
            ]
        guesses = guesses_from_words(training, asked)
        ids = [row["question_id"] for row in asked]
        measured.add(dict(zip(ids, guesses, strict=True)), "words_alone.")
        figures += measured.figures
        if set(params.starts) == {"pretrained", "random"}:
            figures += measured.gains()
    print(table(figures))
    with stage.write(str(ANSWERED)) as path:
        pq.write_table(pa.Table.from_pylist(answered, answered_schema()), path)
    with stage.write(str(FIGURES)) as path:
        write_figures(figures, path)
    stage.write_metrics("metrics/x_lxmert.json", flat_values(figures))


def answered_schema() -> pa.Schema:
    """Of data/x_lxmert/answers.parquet."""
    import pyarrow as pa

    texts = pa.list_(pa.string())
    return pa.schema(
        [
            ("task", pa.string()),
            ("start", pa.string()),
            ("question_id", pa.string()),
            ("image_ids", texts),
            ("question", pa.string()),
            ("kind", pa.string()),
            ("references", texts),
            ("answer", pa.string()),
            ("right", pa.float32()),
        ]
    )


class MeasuredTask:
    """The figures of a task, of one system's answers after the other's. training: rows of the questions that models learned from."""

    def __init__(
        self, task: Task, questions: Sequence[Question], seed: int, training: Sequence[Mapping[str, Any]] = ()
    ) -> None:
        self.task, self.questions = task, questions
        self.spelled = spellings(training) if task == "gqa" else {}
        self.settings = Settings(
            split=SPLIT, seed=seed, predictions="the answers", questions=str(questions_file(task))
        )
        self.figures: list[Figure] = []
        self.each: Each = {}

    def add(self, answers: Mapping[str, str], prefix: str) -> dict[str, float]:
        """Measure answers by question id. prefix: of the figures' names, before that of the task. Returns how right each is,
        0..1, by question id."""
        settings = replace(self.settings, prefix=f"{prefix}{self.task}")
        answers = {name: self.spelled.get(answer, answer) for name, answer in answers.items()}
        if self.task == "nlvr2":
            judged = {name: bool(truth(answer)) for name, answer in answers.items()}
            self.figures += measure_nlvr2(judged, self.questions, settings, self.each)
        else:
            measure = measure_vqa if self.task == "vqa" else measure_gqa
            self.figures += measure(answers, self.questions, settings, self.each)
        return self.each[f"{settings.prefix}.accuracy"]

    def gains(self) -> list[Figure]:
        """`gain.TASK.accuracy`: by how much the pretrained model is better than the one from random weights, with an interval
        over pictures; one training of each is compared."""
        pretrained, random = (self.each[f"{prefix}{self.task}.accuracy"] for prefix in ("", "random."))
        questions = [question for question in self.questions if question.question_id in pretrained]
        differences = [pretrained[one.question_id] - random[one.question_id] for one in questions]
        settings = replace(self.settings, prefix=f"gain.{self.task}")
        measuring = Measuring.of("gain", questions, settings, "as the two figures'")
        units, unit = units_of(questions)
        if self.task == "nlvr2":
            units, unit = [sentence_of(one) for one in questions], "sentences"
        return [measuring.mean("accuracy", differences, units, unit, "one training of each")]


def spellings(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """How answers are written, by what normalisation makes of them: a model says the latter, and GQA compares what is written. Of
    several the most frequent."""
    counted = Counter(answer for row in rows for answer in row["answers"])
    return {normalise_answer(answer): answer for answer, _ in reversed(counted.most_common())}


def about_pictures_of(
    shards: ShardDataset, rows: Sequence[dict[str, Any]], task: Task
) -> list[dict[str, Any]]:
    """The questions whose pictures have features, and of VQA's those that several people have answered, which its accuracy needs; how
    many others there are is told. Raises UserError where none has."""
    there = set(shards.keys)
    kept = [row for row in rows if there.issuperset(row["image_ids"])]
    if len(kept) < len(rows):
        print(
            f"{task}: {len(rows) - len(kept)} of {len(rows)} questions are about pictures without features, left out"
        )
    if task == "vqa" and (alone := sum(len(row["answers"]) < 2 for row in kept)):
        kept = [row for row in kept if len(row["answers"]) >= 2]
        print(f"vqa: {alone} of {len(rows)} questions have fewer than two answers, left out")
    if not kept:
        raise UserError(
            f"{questions_file(task)}: no question of the split {SPLIT} is about a picture of {shards.folder}"
        )
    return kept


def answers_of(
    stage: Stage,
    wanted: FineTuneParams,
    fine_tuned: tuple[UnifiedTransformer, CaptionTokenizer, Tensor, AnswerTable | None],
    shards: ShardDataset,
    asked: Sequence[Mapping[str, Any]],
    batch_size: int,
) -> dict[str, str]:
    """The likeliest answer of a fine-tuned model to each question, by its id; "true" or "false" to statements. fine_tuned: the model
    in eval mode, its tokenizer, codebook, both on the stage's device, and answer table."""
    model, tokenizer, codebook, answers = fine_tuned
    if answers is None:
        judging = Judging(
            wanted, model, tokenizer, codebook, shards, device=stage.device, precision=stage.machine.precision
        )
        return judged_statements(stage, judging, asked, batch_size)
    options = wanted.length, batch_size
    batches = answered_rows(stage, model, tokenizer, codebook, answers, {SPLIT: shards}, asked, *options)
    return {row["question_id"]: row["answers"][0] for rows in batches for row in rows}


def judged_statements(
    stage: Stage, judging: Judging, asked: Sequence[Mapping[str, Any]], batch_size: int
) -> dict[str, str]:
    """Of each statement, by its id, whether it is "true" or "false"."""
    from tqdm import tqdm

    number = {key: index for index, key in enumerate(judging.shards.keys)}
    statements = [(row["question"], [number[image] for image in row["image_ids"]]) for row in asked]
    batches = [statements[start : start + batch_size] for start in range(0, len(asked), batch_size)]
    judged = tqdm(
        spread(stage, judging, batches), total=len(batches), desc="statements", unit="batch", mininterval=1
    )
    truths = (is_true for batch in judged for is_true in batch)
    return {
        row["question_id"]: "true" if is_true else "false" for row, is_true in zip(asked, truths, strict=True)
    }


@dataclass(frozen=True)
class Judging(NetworkWork):
    """Whether statements are true, each with the numbers of its left and its right picture, a batch at a time."""

    wanted: FineTuneParams
    model: UnifiedTransformer
    tokenizer: CaptionTokenizer
    codebook: Tensor
    shards: ShardDataset

    def __call__(self, statements: Sequence[tuple[str, list[int]]]) -> list[bool]:
        import torch

        ids = self.tokenizer.encode_questions([text for text, _ in statements], self.wanted.length)
        pictures = [index for _, pair in statements for index in pair]
        seen = torch.from_numpy(caption_rows(self.model.config, self.shards)(pictures)).to(self.device)
        with torch.inference_mode(), autocast_context(self.device, self.precision):
            images = encode_images(self.model, caption_input(self.model.config, self.codebook, seen))
            logits = statement_logits(self.model, self.tokenizer, images, ids.to(self.device))
        return (logits[:, 1] > logits[:, 0]).tolist()


if __name__ == "__main__":
    run("x_lxmert/evaluate", Params, main)
