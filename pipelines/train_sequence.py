"""Sequence-level training, stage 2: SCST on CIDEr-D for captions, CLIP loss for painting (UMT 4.1.2 and 4.2.2)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from diptych.eval.captions.cider import CiderDReward
from diptych.features.detector import load_detector
from diptych.features.questions import questions_of, read_questions
from diptych.features.shards.reading import ShardDataset
from diptych.model.answer_table import AnswerTable, load_answer_table
from diptych.model.errors import UserError
from diptych.model.networks.image_generator import load_image_generator
from diptych.model.pixels import unit_to_uint8
from diptych.model.pretrained import load_transformer, save_transformer
from diptych.model.training.processes import current_processes
from diptych.model.training.questions import QuestionTable, tell_left_out
from diptych.model.training.scst import reference_words
from diptych.model.training.sequence import SequenceTrainingConfig, train_sequence
from diptych.model.training.sequence_evaluation import SequenceEvaluation
from pipelines.measuring.clips import read_clip
from pipelines.measuring.detection import has_main_objects, main_object_shares
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
class TrainSequenceParams:
    """training: the schedule and the losses.

    document_frequencies: of the CIDEr-D that rewards captions, from the whole train split (corpus) or from the pictures
    that a process scores together (batch), a batch or a piece of it, as generate-it has it.
    """

    document_frequencies: Literal["corpus", "batch"]
    training: SequenceTrainingConfig


def main(stage: Stage, params: TrainSequenceParams) -> None:
    """Go on from the token-level model; write the model directory and the histories."""
    with training_device(stage) as device:
        model, record = train(stage, params, device)
        if current_processes().rank > 0:
            return
        with stage.write("models/sequence") as folder:
            save_transformer(folder, *model)
        stage.write_history("plots/train_sequence.csv", record.history)
        stage.write_history("plots/train_sequence_val.csv", record.evaluations)


def train(
    stage: Stage,
    params: TrainSequenceParams,
    device: str,
    part: str = "",
    start: Path = Path("models/token"),
) -> tuple[tuple[UnifiedTransformer, CaptionTokenizer, Tensor, AnswerTable | None], Record]:
    """The model directory `start` trained further, its tokenizer, codebook and answer table, and what the training leaves
    besides. Image generator and scorer stay as they are.

    part: names the training where there are several.
    """
    train, val = (shards_of(split) for split in ("train", "val"))
    model, tokenizer, codebook = load_transformer(start)
    table = load_answer_table(start, model.config.answers)
    generator = load_image_generator(Path("models/image_generator"), device)
    scorer = read_clip(Path("models/scorer"), device)
    config = params.training
    evaluation = None
    if config.evaluation is not None:
        evaluation = SequenceEvaluation(
            config.evaluation,
            config,
            model,
            tokenizer,
            codebook.to(device),
            val,
            CiderDReward(reference_words(tokenizer, val, config.caption_length)),
            generator,
            scorer,
            inspection(val, device),
        )
    references = reference_words(tokenizer, train, config.caption_length)
    questions = None
    if config.answer_steps:
        if table is None:
            raise UserError(
                f"train_sequence.training.answer_steps: {start} has no answer head; train stage 1 with questions, or set 0"
            )
        asked = questions_of(read_questions(QUESTIONS), ["train"], QUESTIONS)
        questions = QuestionTable(asked, train.keys, tokenizer, table, config.question_length)
        tell_left_out(questions, len(asked), "train")
    record = train_sequence(
        config,
        model,
        tokenizer,
        codebook,
        train,
        CiderDReward(references, params.document_frequencies),
        generator,
        scorer,
        stage.checkpoints(part),
        device,
        evaluation,
        questions,
    )
    return (model, tokenizer, codebook, table), record


def inspection(val: ShardDataset, device: str) -> Callable[[Tensor, list[int]], dict[str, float]] | None:
    """What the pipeline's detector finds in paintings: `val_main_object`, the share of those that show the main object of
    the caption's picture in its place, class and colour. None where the pictures have no such objects.

    The detector is no judge: it has trained the codes, and may be used to select.
    """
    detector = load_detector(Path("models/detector"), device)
    if not has_main_objects(detector, [val.meta(index) for index in range(len(val))]):
        return None

    def inspect(pictures: Tensor, images: list[int]) -> dict[str, float]:
        samples = [val.meta(index) for index in images]
        shares = main_object_shares(detector, unit_to_uint8(pictures), samples)
        return {"val_main_object": shares["main_object"]}

    return inspect


if __name__ == "__main__":
    run("train_sequence", TrainSequenceParams, main)
