"""Captions and paintings of a set of pictures by any model: what `generate` writes (UMT 3.1; X-LXMERT 5.2)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from diptych.features.images import read_image
from diptych.features.questions import questions_of, read_questions
from diptych.model.answer_table import load_answer_table
from diptych.model.decoding.clip_rerank import rerank_captions
from diptych.model.errors import UserError
from diptych.model.pixels import png
from diptych.model.precision import autocast_context
from diptych.model.pretrained import load_transformer
from pipelines.measuring.answers import QUESTIONS, answered_rows, answers_schema
from pipelines.measuring.clips import read_clip
from pipelines.measuring.drawn import draw
from pipelines.measuring.generate_params import EvaluationSet, GenerateParams
from pipelines.measuring.shards import shards_of
from pipelines.runner.spread import NetworkWork, spread
from pipelines.runner.stage import Stage

if TYPE_CHECKING:
    from PIL import Image

    from diptych.eval.scorers.clip import Clip
    from pipelines.measuring.models import GenerativeModel


TRANSFORMER = Path("models/sequence")
IMAGE_GENERATOR = Path("models/image_generator")


class Dataset(Protocol):
    """Pictures of a split, besides what only a family reads of them."""

    keys: list[str]

    def captions(self, index: int) -> list[str]:
        """The references."""

    def image_bytes(self, index: int) -> bytes:
        """An encoded picture."""


Pictures = TypeVar("Pictures", bound=Dataset)


def write_rows(path: Path, batches: Iterable[list[dict]], further: Sequence[str] = ()) -> None:
    """Write what `generate` yields; columns that a row lacks are null. further: names of further pictures."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema(
        [
            ("image_id", pa.string()),
            ("caption", pa.string()),
            ("prompt", pa.string()),
            ("codes", pa.binary()),
            ("steps", pa.binary()),
            ("painted", pa.binary()),
            ("reconstruction", pa.binary()),
            ("real", pa.binary()),
            *((name, pa.binary()) for name in further),
        ]
    )
    with pq.ParquetWriter(path, schema, compression="none") as writer:
        for rows in batches:
            writer.write_table(pa.Table.from_pylist(rows, schema))


def write_answers(
    stage: Stage, params: GenerateParams, name: str, path: Path, transformer: Path = TRANSFORMER
) -> None:
    """Write the answers to the questions about a set's pictures, a row each; no row where the set asks for none.

    Raises UserError where the model cannot answer.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    wanted, schema = params.sets[name].answer, answers_schema()
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        if wanted is None:
            return
        model, tokenizer, codebook = load_transformer(transformer, stage.device)
        table = load_answer_table(transformer, model.config.answers)
        if table is None:
            raise UserError(
                f"generate.sets.{name}.answer: {transformer} has no answer head; train with train_token.training.questions, "
                "or set it to null"
            )
        shards = {split: shards_of(split) for split in wanted.splits}
        pictures = draw(wanted, {split: dataset.keys for split, dataset in shards.items()}, stage.seed)
        known = questions_of(read_questions(QUESTIONS), wanted.splits, QUESTIONS)
        asked = [row for row in known if row["image_ids"][0] in pictures]
        options = params.answer.length, params.batch_size
        for rows in answered_rows(stage, model, tokenizer, codebook, table, shards, asked, *options):
            writer.write_table(pa.Table.from_pylist(rows, schema))


def pictures_of(
    wanted: EvaluationSet, seed: int, read: Callable[[str], Pictures]
) -> tuple[dict[str, Pictures], set[str], set[str]]:
    """The datasets of a set, by their splits, and the ids of its pictures to caption and to paint."""
    splits = dict.fromkeys((*wanted.caption.splits, *wanted.paint.splits))
    datasets = {split: read(split) for split in splits}
    keys = {split: dataset.keys for split, dataset in datasets.items()}
    return datasets, draw(wanted.caption, keys, seed), draw(wanted.paint, keys, seed)


def generate(
    stage: Stage,
    params: GenerateParams,
    datasets: Mapping[str, Dataset],
    to_caption: set[str],
    to_paint: set[str],
    model: GenerativeModel,
) -> Iterator[list[dict]]:
    """Rows of the output, a batch at a time; an item's noise depends on the seed and its number in its split only.

    datasets: by split, as the model reads them. A column of what a picture is not in the set for is missing.
    """
    from tqdm import tqdm

    reranks = params.caption.samples > 1 or params.paint.samples > 1
    scorer = read_clip(Path("models/scorer"), stage.device) if reranks else None
    making = Making(
        model,
        scorer,
        datasets,
        to_caption,
        to_paint,
        params,
        stage.seed,
        device=stage.device,
        precision=stage.machine.precision,
    )
    batches = []
    for split, dataset in datasets.items():
        wanted = [index for index, key in enumerate(dataset.keys) if key in to_caption or key in to_paint]
        starts = range(0, len(wanted), params.batch_size)
        batches += [(split, wanted[start : start + params.batch_size]) for start in starts]
    made = spread(stage, making, batches)
    yield from tqdm(made, total=len(batches), desc=", ".join(datasets), unit="batch", mininterval=1)


@dataclass(frozen=True)
class Making(NetworkWork):
    """Captions and paintings of a batch of pictures: of a split, those of these numbers. scorer: where several samples are made."""

    model: GenerativeModel
    scorer: Clip | None
    datasets: Mapping[str, Dataset]
    to_caption: set[str]
    to_paint: set[str]
    params: GenerateParams
    seed: int

    def __call__(self, batch: tuple[str, list[int]]) -> list[dict]:
        import torch

        split, indices = batch
        dataset = self.datasets[split]
        rows: dict[int, dict] = {
            index: {"image_id": dataset.keys[index], "real": dataset.image_bytes(index)} for index in indices
        }
        with torch.inference_mode(), autocast_context(self.device, self.precision):
            for ids, work in ((self.to_caption, self._captions), (self.to_paint, self._pictures)):
                those = [index for index in indices if dataset.keys[index] in ids]
                if those:
                    for index, columns in zip(those, work(dataset, those), strict=True):
                        rows[index].update(columns)
        return list(rows.values())

    def _captions(self, dataset: Dataset, indices: list[int]) -> list[dict]:
        import torch

        options, tokenizer, scorer = self.params.caption, self.model.tokenizer, self.scorer
        written = self.model.captions(dataset, indices, options, self._seeds(indices))
        if scorer is not None and options.samples > 1:
            texts = [tokenizer.decode(ids) for ids in written.ids]
            images = torch.stack([scorer.fitted(picture(dataset, index)) for index in indices])
            written = rerank_captions(written, options.samples, texts, images, scorer).best
        return [{"caption": tokenizer.decode(written.ids[row])} for row in range(len(indices))]

    def _pictures(self, dataset: Dataset, indices: list[int]) -> list[dict]:
        # each picture's captions take turns, so that the painted ones are a fair sample of all
        references = [dataset.captions(index) for index in indices]
        prompts = [texts[index % len(texts)] for index, texts in zip(indices, references, strict=True)]
        ids = self.model.tokenizer.encode(prompts, self.params.caption.length).to(self.device)
        seeds = self._seeds(indices)
        painted, paintings = self.model.paint(prompts, ids, self.params.paint, seeds, self.scorer)
        again = self.model.repaint(dataset, indices)
        return [
            {
                "prompt": prompt,
                **paintings[row],
                "painted": png(painted[row]),
                **{column: png(pictures[row]) for column, pictures in again.items()},
            }
            for row, prompt in enumerate(prompts)
        ]

    def _seeds(self, indices: list[int]) -> list[int]:
        return [self.seed * 1_000_003 + index for index in indices]


def picture(dataset: Dataset, index: int) -> Image.Image:
    """A real picture, decoded."""
    return read_image(dataset.image_bytes(index), dataset.keys[index])
