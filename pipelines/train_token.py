"""Token-level training, stage 1: captioning and painting in turns by cross-entropy (UMT 4.1.1 and 4.2.1), and answering as a
third task where there are questions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from diptych.features.codebook.reading import load_codebook
from diptych.features.questions import questions_of, read_questions
from diptych.features.shards.reading import ShardDataset
from diptych.model.answer_table import AnswerTable, build_answer_table, load_answer_table
from diptych.model.pretrained import save_transformer
from diptych.model.training.initial import initial_transformer, random_transformer, with_heads
from diptych.model.training.processes import current_processes
from diptych.model.training.questions import QuestionTable, tell_left_out
from diptych.model.training.token import TokenTrainingConfig, train_token
from pipelines.measuring.samples import write_samples
from pipelines.measuring.shards import shards_of
from pipelines.runner.processes import run, training_device
from pipelines.runner.stage import Stage

if TYPE_CHECKING:
    from torch import Tensor

    from diptych.model.networks.unified import UnifiedTransformer
    from diptych.model.tokenizer import CaptionTokenizer
    from diptych.model.training.contracts import Record

QUESTIONS = Path("data/dataset/questions/vqa.parquet")


@dataclass(frozen=True)
class TokenizerParams:
    """min_count: how often a word must occur in the training captions to be in the vocabulary."""

    min_count: int


@dataclass(frozen=True)
class AnswersParams:
    """min_count: of how many training questions an answer must be the most frequent one to be in the answer table."""

    min_count: int


@dataclass(frozen=True)
class TrainTokenParams:
    """network: a named size of diptych.model (toybox, smoke, base). architecture: two_streams (LXMERT's, the papers') or
    single_stream (UNITER's). training: its schedule.

    caption_attention: by which captions are trained, and from then on written: prefix or masked (docs/attention.md).
    image_features: what the model sees of pictures: two_level, or dense or discrete, with which the papers compare it.

    initial: a model directory of that architecture and size and of this codebook, such as an imported checkpoint, to start from; its
    vocabulary stays, and `tokenizer` does not count. null: random weights. DVC tracks its name, not its content.

    answers: the answer table, where the training has questions.
    """

    network: str
    architecture: Literal["two_streams", "single_stream"]
    caption_attention: Literal["prefix", "masked"]
    image_features: Literal["two_level", "dense", "discrete"]
    initial: Path | None
    tokenizer: TokenizerParams
    answers: AnswersParams
    training: TokenTrainingConfig


def main(stage: Stage, params: TrainTokenParams) -> None:
    """Train on the train split; write the model directory, the histories, and captions and paintings made meanwhile."""
    with training_device(stage) as device:
        model, record = train(stage, params, device)
        if current_processes().rank > 0:
            return
        with stage.write("models/token") as folder:
            save_transformer(folder, *model)
        # Apart, because a cell without a number would be drawn as zero.
        stage.write_history("plots/train_token.csv", record.history)
        stage.write_history("plots/train_token_val.csv", record.evaluations)
        contents = sample_contents(val_shards(params))
        write_samples(stage, record.samples, ["caption", "prompt"], contents)


def val_shards(params: TrainTokenParams) -> ShardDataset | None:
    """What is measured and shown meanwhile."""
    return shards_of("val") if params.training.evaluation else None


def train(
    stage: Stage, params: TrainTokenParams, device: str, part: str = ""
) -> tuple[tuple[UnifiedTransformer, CaptionTokenizer, Tensor, AnswerTable | None], Record]:
    """A trained model, its tokenizer, codebook and answer table, and what the training leaves besides. part: names the training
    where there are several."""
    import torch

    train = shards_of("train")
    codebook = torch.from_numpy(load_codebook(Path("data/codebook")))
    captions = [caption for index in range(len(train)) for caption in train.captions(index)]
    asked = training_questions(params)
    table = (
        build_answer_table([row["answers"] for row in asked["train"]], params.answers.min_count)
        if asked
        else None
    )
    if params.initial is None:
        words = [row["question"] for row in asked["train"]] if asked else []
        model, tokenizer = random_transformer(
            params.network,
            params.architecture,
            params.caption_attention,
            params.image_features,
            captions + words,
            params.tokenizer.min_count,
            codebook,
            stage.seed,
            len(table) if table else 0,
        )
    else:
        model, tokenizer = initial_transformer(
            params.initial,
            params.network,
            params.architecture,
            params.caption_attention,
            params.image_features,
            captions,
            codebook,
        )
        known = load_answer_table(params.initial, model.config.answers)
        model = with_heads(model, stage.seed, answers=table, known=known)
    val = val_shards(params)
    questions, val_questions = (
        QuestionTable(asked[split], shards.keys, tokenizer, table, params.training.questions.length)
        if asked and table and shards and params.training.questions
        else None
        for split, shards in (("train", train), ("val", val))
    )
    for split, made in (("train", questions), ("val", val_questions)):
        if asked and made:
            tell_left_out(made, len(asked[split]), split)
    record = train_token(
        params.training,
        model,
        tokenizer,
        codebook,
        train,
        stage.checkpoints(part),
        device,
        val,
        stage.machine.compile,
        questions,
        val_questions,
    )
    return (model, tokenizer, codebook, table), record


def training_questions(params: TrainTokenParams) -> dict[str, list[dict[str, Any]]] | None:
    """The rows of the questions that the training asks, by split, where it asks any."""
    if params.training.questions is None:
        return None
    table = read_questions(QUESTIONS)
    return {split: questions_of(table, [split], QUESTIONS) for split in ("train", "val")}


def sample_contents(val: ShardDataset | None) -> dict[str, Callable[[Mapping[str, Any]], bytes]]:
    """Bytes of a sample: its codes, and the real picture as a file. Without `val` there are no samples."""
    import numpy as np

    number = {key: index for index, key in enumerate(val.keys)} if val else {}

    def codes(sample: Mapping[str, Any]) -> bytes:
        return np.array(sample["codes"], "<u2").tobytes()

    def real(sample: Mapping[str, Any]) -> bytes:
        return val.image_bytes(number[sample["image_id"]]) if val else b""

    return {"codes": codes, "real": real}


if __name__ == "__main__":
    run("train_token", TrainTokenParams, main)
