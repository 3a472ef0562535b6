"""Answers to the questions about a set's pictures: what `generate` writes of them, and how right they are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diptych.eval.answers.questions import Choices, Question, Settings
from diptych.eval.answers.vqa import measure_vqa
from diptych.eval.answers.words_alone import answers_from_words
from diptych.eval.figures import Figure
from diptych.features.questions import questions_of, read_questions
from diptych.features.shards.reading import ShardDataset
from diptych.model.answer_table import AnswerTable
from diptych.model.decoding.answer import answer_logits, equally_asked, rank_answers
from diptych.model.decoding.caption import encode_images
from diptych.model.image_features import caption_input, caption_rows
from diptych.model.precision import autocast_context
from pipelines.runner.spread import NetworkWork, spread
from pipelines.runner.stage import Stage

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor

    from diptych.model.networks.unified import UnifiedTransformer
    from diptych.model.tokenizer import CaptionTokenizer

QUESTIONS = Path("data/dataset/questions/vqa.parquet")
RANKED = 3  # answers that are kept of each question


def answered_rows(
    stage: Stage,
    model: UnifiedTransformer,
    tokenizer: CaptionTokenizer,
    codebook: Tensor,
    table: AnswerTable,
    shards: Mapping[str, ShardDataset],
    questions: Iterable[Mapping[str, Any]],
    length: int,
    batch_size: int,
) -> Iterator[list[dict[str, Any]]]:
    """Rows of `question_id`, `split`, `image_id`, and the likeliest answers as `answers` and `probabilities`: of every question about
    a picture of the shards, a batch of pictures at a time, each seen once.

    length: most tokens of a question.
    """
    from tqdm import tqdm

    of_picture: dict[str, list[Mapping[str, Any]]] = {}
    for row in questions:
        of_picture.setdefault(row["image_ids"][0], []).append(row)
    answering = Answering(
        model, tokenizer, codebook, table, shards, length,
        device=str(codebook.device), precision=stage.machine.precision,
    )  # fmt: skip
    batches: list[AskedBatch] = []
    for split, dataset in shards.items():
        asked = [(index, of_picture[key]) for index, key in enumerate(dataset.keys) if key in of_picture]
        asked.sort(key=lambda pair: len(pair[1]))  # those with equally many questions go together
        batches += [(split, indices, own) for indices, own, _ in equally_asked(asked, batch_size)]
    count = sum(len(indices) for _, indices, _ in batches)
    with tqdm(total=count, desc=f"{', '.join(shards)}, answers", unit="picture", mininterval=1) as bar:
        for (_, indices, _), rows in zip(batches, spread(stage, answering, batches), strict=True):
            yield rows
            bar.update(len(indices))


AskedBatch = tuple[str, Sequence[int], Sequence[Sequence[Mapping[str, Any]]]]
"""A split, numbers of pictures in it, and the questions about each, equally many."""


@dataclass(frozen=True)
class Answering(NetworkWork):
    """Answers to the questions about a batch of pictures, as :func:`answered_rows` has them."""

    model: UnifiedTransformer
    tokenizer: CaptionTokenizer
    codebook: Tensor
    table: AnswerTable
    shards: Mapping[str, ShardDataset]
    length: int

    def __call__(self, batch: AskedBatch) -> list[dict[str, Any]]:
        import torch

        split, indices, own = batch
        rows = [row for several in own for row in several]
        ids = self.tokenizer.encode_questions([row["question"] for row in rows], self.length).to(self.device)
        features = torch.from_numpy(caption_rows(self.model.config, self.shards[split])(indices)).to(
            self.device
        )
        with torch.inference_mode(), autocast_context(self.device, self.precision):
            images = encode_images(self.model, caption_input(self.model.config, self.codebook, features))
            logits = answer_logits(
                self.model, self.tokenizer, images, ids.view(len(indices), len(own[0]), -1)
            )
            ranked = rank_answers(logits, self.table.answers, RANKED)
        return [
            {
                "question_id": row["question_id"],
                "split": split,
                "image_id": row["image_ids"][0],
                "answers": [one.answer for one in likeliest],
                "probabilities": [one.probability for one in likeliest],
            }
            for row, likeliest in zip(rows, ranked, strict=True)
        ]


def answers_schema() -> pa.Schema:
    """Of the rows of :func:`answered_rows`."""
    import pyarrow as pa

    return pa.schema(
        [
            ("question_id", pa.string()),
            ("split", pa.string()),
            ("image_id", pa.string()),
            ("answers", pa.list_(pa.string())),
            ("probabilities", pa.list_(pa.float32())),
        ]
    )


def measured_schema() -> pa.Schema:
    """Of the rows of :func:`measured_answers`."""
    import pyarrow as pa

    columns = [("question", pa.string()), ("kind", pa.string()), ("references", pa.list_(pa.string()))]
    return pa.schema([*answers_schema(), *columns, ("score", pa.float32())])


def measured_answers(path: Path, seed: int) -> tuple[list[Figure], list[dict[str, Any]]]:
    """VQA's accuracy of the answers in a file of `generate`, in all and by kind of question, each beside that of who reads
    the question alone; and the rows with `question`, `kind`, `references` (people's answers) and `score` (0..1)."""
    import pyarrow.parquet as pq

    rows = pq.read_table(path).to_pylist()
    if not rows:
        return [], []
    known = read_questions(QUESTIONS)
    training = questions_of(known, ["train"], QUESTIONS)
    splits = sorted({row["split"] for row in rows})
    facts = {row["question_id"]: row for row in questions_of(known, splits, QUESTIONS)}
    for row in rows:
        fact = facts[row["question_id"]]
        row |= {"question": fact["question"], "kind": fact["kind"], "references": fact["answers"]}
    questions = [question_of(facts[row["question_id"]]) for row in rows]
    guesses = guesses_from_words(training, rows)
    each: dict[str, dict[str, float]] = {}
    figures = measure_vqa(
        by_id(rows, [row["answers"][0] for row in rows]), questions, settings("answer", seed), each
    )
    figures += measure_vqa(by_id(rows, guesses), questions, settings("words_alone", seed))
    scores = each["answer.accuracy"]
    for row in rows:
        row["score"] = scores[row["question_id"]]
    return figures, rows


def question_of(row: Mapping[str, Any]) -> Question:
    """A row of the contract Questions as metrics take it."""
    choices = row["choices"] and Choices(
        frozenset(row["choices"]["valid"]), frozenset(row["choices"]["plausible"])
    )
    return Question(
        row["question_id"],
        tuple(row["answers"]),
        row["kind"],
        tuple(row["image_ids"]),
        row["group"],
        tuple(row["entailed"] or ()),
        choices,
        row["balanced"] is not False,
    )


def guesses_from_words(
    training: Sequence[Mapping[str, Any]], asked: Sequence[Mapping[str, Any]]
) -> list[str]:
    """What each of the `asked` is answered by who has read the `training` questions and sees no picture."""
    return answers_from_words(
        ((row["question"], row["kind"], row["answers"]) for row in training),
        ((row["question"], row["kind"]) for row in asked),
    )


def by_id(rows: Sequence[Mapping[str, Any]], answers: Sequence[str]) -> dict[str, str]:
    """Answers by their questions' ids."""
    return {row["question_id"]: answer for row, answer in zip(rows, answers, strict=True)}


def settings(prefix: str, seed: int) -> Settings:
    """How answers of the test set are measured."""
    return Settings(
        split="test", prefix=prefix, seed=seed, predictions="the answers", questions=str(QUESTIONS)
    )
