"""``diptych ask``."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diptych.features.text_files import whole_characters
from diptych.model.command.options import BatchSize, Device, Json, Model, Precision, load_model
from diptych.model.command.pictures import (
    Line,
    as_their_bytes,
    found,
    go_through,
    json_line,
    named,
    readable_name,
)
from diptych.model.command.question_files import FileQuestion, PictureFiles, read_question_file
from diptych.model.errors import UserError

if TYPE_CHECKING:
    from diptych.model import Diptych
    from diptych.model.packaged.answering import Answer


def ask(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PICTURE... QUESTION",
            help="Picture files; folders, for all pictures below them; - reads one path a line from stdin. The question "
            "comes last, in quotes; not with --questions.",
            show_default=False,
        ),
    ] = None,
    questions: Annotated[
        Path | None,
        typer.Option(
            "--questions",
            "-q",
            help="File of questions: one a line, all asked about each picture; or JSON with question_id, question and "
            "image (or VQA's image_id), of pictures named here or beside the file.",
            show_default=False,
        ),
    ] = None,
    most: Annotated[
        int, typer.Option(min=1, help="Likeliest answers to each question, with their probabilities.")
    ] = 1,
    model: Model = None,
    batch_size: BatchSize = 32,
    device: Device = None,
    precision: Precision = "auto",
    as_json: Json = False,
) -> None:
    """Answer a question about pictures: a line each, PATH, a tab, the answer, as soon as it is known.

    Of several questions, the question stands between PATH and the answer. With --most, each answer has a line of its own and
    its probability behind it. Of a JSON file of questions, each line is a result as VQA has it: question_id and answer.

    A picture that cannot be read is reported, and questions about the others are answered; the status is then 1.
    """
    as_their_bytes()
    asked = what_is_asked(arguments or [], questions)
    d = load_model(model, device, precision)
    for text in asked.every:
        d.check_question(text)
    if asked.named and not d.can_answer:
        d.check_question("")  # ends here: this package answers none
    wrong = [*asked.lost, *take_out_unreadable(d, asked)]
    for question, problem in wrong:
        line, stream = problem_line(question, problem, as_json)
        print(line, file=stream)

    def work(names: list[str], images: list[Any]) -> list[list[Answer]]:
        texts = [[text_of(one) for one in asked.about(name)] for name in names]
        # the same object side by side is seen once
        pictures = [image for image, own in zip(images, texts, strict=True) for _ in own]
        answers = iter(
            d.answer(pictures, [text for own in texts for text in own], most=most, batch_size=batch_size)
        )
        return [[next(answers) for _ in own] for own in texts]

    def lines(name: str, answers: list[Answer]) -> Iterator[Line]:
        own = asked.about(name)
        for question, answer in zip(own, answers, strict=True):
            yield from answer_lines(name, question, answer, most, len(asked.every) > 1, as_json)

    if not go_through(asked.sources, batch_size, "ask", work, lines, as_json) or wrong:
        raise typer.Exit(1)


@dataclass
class Asked:
    """What is asked about which pictures.

    Attributes:
        sources: the pictures; None is stdin.
        every: the questions about each of them; or
        named: those of a file that names the picture of each, by picture;
        lost: those whose picture is not there, and why.
    """

    sources: Sequence[str | None]
    every: list[str] = field(default_factory=list)
    named: dict[str, list[FileQuestion]] = field(default_factory=dict)
    lost: list[tuple[FileQuestion, str]] = field(default_factory=list)

    def about(self, name: str) -> Sequence[str | FileQuestion]:
        """The questions about one picture."""
        return self.named[name] if self.named else self.every


def what_is_asked(arguments: list[str], file: Path | None) -> Asked:
    """Find out what a command line asks.

    Raises:
        UserError: a file of questions or a folder of pictures is wrong.
        typer.BadParameter: there is no picture, or no question.
    """
    if file is None:
        if arguments and os.path.exists(arguments[-1]):  # a long question is no name, and no error here
            raise typer.BadParameter(
                f"the question comes last, and {readable_name(arguments[-1])} is a file or folder; ask in quotes, or by "
                "--questions FILE"
            )
        if len(arguments) < 2:
            raise typer.BadParameter('give pictures and a question: diptych ask photo.jpg "what is there?"')
        return Asked(list(found(arguments[:-1])), [whole_characters(arguments[-1])])
    questions = read_question_file(file)
    sources = list(found(arguments))
    texts = [one for one in questions if isinstance(one, str)]
    if texts:
        if not sources:
            raise typer.BadParameter(f"name the pictures that the questions of {file} are asked about")
        return Asked(sources, texts)
    if None in sources:
        raise typer.BadParameter(f"{file} names the pictures; give their folder instead of -")
    return by_picture([one for one in questions if isinstance(one, FileQuestion)], arguments, sources, file)


def by_picture(
    questions: list[FileQuestion], arguments: list[str], sources: Sequence[str | None], file: Path
) -> Asked:
    """The questions of a file by their pictures, in the order of each picture's first question.

    Raises:
        UserError: none of the pictures is there.
    """
    files = PictureFiles(filter(None, sources), filter(os.path.isdir, arguments))
    asked = Asked(())
    for question in questions:
        try:
            picture = files.find(question.image) if sources else files.beside(file, question.image)
        except UserError as error:
            asked.lost.append((question, str(error)))
        else:
            asked.named.setdefault(picture, []).append(question)
    if not asked.named:
        first = asked.lost[0][1]
        raise UserError(f"{file}: none of the {len(questions)} questions has its picture here: {first}")
    asked.sources = list(asked.named)
    return asked


def take_out_unreadable(d: Diptych, asked: Asked) -> list[tuple[FileQuestion, str]]:
    """Take out of a file's questions those that the model cannot read; returns them, and why. The others are answered."""
    wrong = []
    problems: dict[str, str] = {}
    for text in {one.question for own in asked.named.values() for one in own}:
        try:
            d.check_question(text)
        except UserError as error:
            problems[text] = str(error)
    for picture, own in asked.named.items():
        wrong += [(one, problems[one.question]) for one in own if one.question in problems]
        asked.named[picture] = [one for one in own if one.question not in problems]
    asked.sources = [picture for picture in asked.sources if picture is None or asked.about(picture)]
    return wrong


def text_of(question: str | FileQuestion) -> str:
    """A question's text."""
    return question if isinstance(question, str) else question.question


def answer_lines(
    name: str, question: str | FileQuestion, answer: Answer, most: int, several: bool, as_json: bool
) -> Iterator[Line]:
    """What to print of an answer, and where to. ``most``: answers that were asked for; ``several``: whether this is one of
    several questions."""
    ids = {} if isinstance(question, str) else {"question_id": question.question_id}
    if as_json:
        ranked = [{"answer": one.answer, "probability": round(one.probability, 6)} for one in answer.ranked]
        own = {**named(name), "question": text_of(question), **ranked[0]}
        yield json_line({**ids, **own, **({"answers": ranked} if most > 1 else {})})
    elif ids:
        yield json_line({**ids, "answer": answer.text})
    else:
        start = f"{name}\t{text_of(question)}" if several else name
        if most == 1:
            yield f"{start}\t{answer.text}", sys.stdout
        else:
            for one in answer.ranked:
                yield f"{start}\t{one.answer}\t{one.probability:.4f}", sys.stdout


def problem_line(question: FileQuestion, problem: str, as_json: bool) -> Line:
    """What to print of a question that cannot be answered, and where to."""
    if as_json:
        return json_line(
            {
                "question_id": question.question_id,
                "question": question.question,
                "error": readable_name(problem),
            }
        )
    return f"diptych: question {question.question_id}: {problem}", sys.stderr
