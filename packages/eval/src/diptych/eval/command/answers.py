"""`diptych-eval answers`: VQA's, GQA's and NLVR2's metrics of predicted answers."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from diptych.eval.answers.gqa import measure_gqa
from diptych.eval.answers.nlvr2 import measure_nlvr2
from diptych.eval.answers.question_files import QUESTION_FORMS, QuestionFile, metric_of, read_question_file
from diptych.eval.answers.questions import Settings
from diptych.eval.answers.reading import PREDICTION_FORMS, read_predictions, texts, truths
from diptych.eval.answers.vqa import measure_vqa
from diptych.eval.errors import UserError
from diptych.eval.figures import Figure
from diptych.eval.option_values import check_seed, check_whole


def add_answers(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    shared: argparse.ArgumentParser,
    epilog: str,
) -> None:
    """Add the subcommand. shared: options that all have; epilog: what ends all helps."""
    answers = commands.add_parser(
        "answers",
        parents=[shared],
        help="accuracy and the like of answers to VQA v2, GQA, NLVR2 or Diptych's questions",
        description="VQA v2's accuracy; GQA's accuracy, consistency, validity, plausibility, distribution; NLVR2's accuracy and "
        "consistency; each as the official script counts.",
        epilog=f"PREDICTIONS are {PREDICTION_FORMS}.\n\nQUESTIONS are {QUESTION_FORMS}.\n\n{epilog}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    answers.add_argument("predictions", type=Path, metavar="PREDICTIONS", help="one answer per question")
    answers.add_argument(
        "questions", type=Path, metavar="QUESTIONS", help="the questions with people's or true answers"
    )
    answers.add_argument(
        "--metric",
        choices=("auto", "vqa", "gqa", "nlvr2"),
        default="auto",
        help="auto: the file's own; of Parquet nlvr2 for statements about two pictures, vqa where people gave several answers, "
        "gqa where there is one (default auto)",
    )
    answers.add_argument(
        "--split", metavar="NAME", help="measure that split alone, where QUESTIONS has several"
    )
    answers.add_argument(
        "--choices",
        type=Path,
        metavar="FILE",
        help="GQA's choices (val_choices.json), for validity and plausibility",
    )
    answers.set_defaults(measure=_answers, after_interrupt="")


def _answers(options: argparse.Namespace) -> list[Figure]:
    check_seed(options.seed)
    check_whole("resamples", options.resamples, least=1)
    predictions = read_predictions(options.predictions)
    file = read_question_file(options.questions, options.choices)
    file, split = _of_split(file, options)
    metric = metric_of(file, options.questions) if options.metric == "auto" else options.metric
    questions = file.questions
    if file.form == "parquet":
        pictures = 2 if metric == "nlvr2" else 1
        questions = [question for question in questions if len(question.image_ids) == pictures]
        if left := len(file.questions) - len(questions):
            kind = "questions about one picture" if pictures == 2 else "statements about two pictures"
            print(f"{left} {kind} of {options.questions} are left out by --metric {metric}", file=sys.stderr)
    known = {question.question_id for question in questions}
    if left := sum(question_id not in known for question_id in predictions):
        print(
            f"{left} answers of {options.predictions} are to no question that is measured, and are left out",
            file=sys.stderr,
        )
    settings = Settings(
        split=split,
        seed=options.seed,
        resamples=options.resamples,
        predictions=str(options.predictions),
        questions=str(options.questions),
    )
    kept = {
        question_id: answer for question_id, answer in predictions.items() if question_id in known
    } or predictions
    if metric == "nlvr2":
        return measure_nlvr2(truths(kept, options.predictions), questions, settings)
    answered = texts(kept, options.predictions)
    return (measure_vqa if metric == "vqa" else measure_gqa)(answered, questions, settings)


def _of_split(file: QuestionFile, options: argparse.Namespace) -> tuple[QuestionFile, str | None]:
    """The questions of the split that is measured, and its name, None where nobody says one."""
    there = sorted(set(file.splits))
    if options.split is None:
        if len(there) > 1:
            raise UserError(
                f"{options.questions}: has the splits {', '.join(there)}; choose one with --split"
            )
        return file, there[0] or None
    if there == [""]:
        return file, options.split  # GQA's files do not say it
    if options.split not in there:
        raise UserError(f"--split {options.split}: {options.questions} has {', '.join(there)}")
    members = [index for index, split in enumerate(file.splits) if split == options.split]
    questions = [file.questions[index] for index in members]
    return QuestionFile(questions, [options.split] * len(members), file.form), options.split
