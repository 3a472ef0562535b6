"""What the model does for a request, on the queue's thread, and the reply that comes of it."""

from __future__ import annotations

import time

from fastapi import HTTPException
from PIL import Image

from diptych.model.errors import UserError
from diptych.model.packaged.attention import WordAttention
from diptych.model.packaged.captioning import CaptionChanges
from diptych.model.packaged.model import Diptych
from diptych.model.packaged.painting import PaintChanges
from diptych.model.serve.messages import (
    Answer,
    AnswerQuery,
    AnswerReply,
    Caption,
    CaptionQuery,
    CaptionReply,
    Painting,
    PaintReply,
    PaintRequest,
    RankedAnswer,
    Step,
    Word,
)
from diptych.model.serve.uploads import UploadError, data_url, read_upload


def painted(diptych: Diptych, wanted: PaintRequest) -> PaintReply:
    """Paint a sentence.

    Raises:
        HTTPException: 422, the model cannot do this.
    """
    start = time.perf_counter()
    try:
        found = diptych.paint(
            wanted.caption,
            samples=wanted.samples,
            rerank=wanted.rerank,
            seed=wanted.seed,
            return_steps=wanted.return_steps,
            codes=wanted.codes,
            locked=wanted.locked,
            repaint=wanted.repaint,
            **changes_of(wanted),
        )
    except UserError as error:
        raise cannot(diptych, error) from None
    return PaintReply(
        paintings=[
            Painting(
                image=data_url(painting.image),
                codes=painting.codes.tolist(),
                seed=painting.seed,
                sample=painting.sample,
                score=painting.score,
                steps=[
                    Step(image=data_url(step.image), codes=step.codes.tolist()) for step in painting.steps
                ],
            )
            for painting in found
        ],
        notes=reading_notes(diptych, wanted.caption),
        seconds=round(time.perf_counter() - start, 3),
    )


def changes_of(wanted: PaintRequest) -> PaintChanges:
    """The options other than the package's that a request to paint names."""
    changes: PaintChanges = {}
    if wanted.steps is not None:
        changes |= {"method": "mask_predict", "steps": wanted.steps}
    if wanted.temperature is not None:
        changes["temperature"] = wanted.temperature
    if wanted.guidance is not None:
        changes["guidance"] = wanted.guidance
    return changes


def reading_notes(diptych: Diptych, caption: str) -> list[str]:
    """What of a sentence is not read as it stands."""
    tokenizer, room = diptych.tokenizer, diptych.config.captioning.length - 2
    pieces = [piece for piece in tokenizer.pieces([caption])[0] if piece != tokenizer.stop]
    notes = []
    if len(pieces) > room:
        notes.append(f"The sentence is too long for the model, which reads its first {room} word pieces.")
    if tokenizer.unk in pieces:
        notes.append("The model cannot read some of the characters.")
    return notes


def captioned(diptych: Diptych, content: bytes, pixels: int, wanted: CaptionQuery) -> CaptionReply:
    """Caption an uploaded picture.

    Raises:
        HTTPException: it is no picture, damaged or too large, or the model cannot do this.
    """
    start = time.perf_counter()
    image = uploaded(content, pixels)
    try:
        found = diptych.caption(
            image,
            samples=wanted.samples,
            rerank=wanted.rerank,
            seed=wanted.seed,
            return_attention=wanted.attention,
            **caption_changes_of(wanted),
        )
    except UserError as error:
        raise cannot(diptych, error) from None
    return CaptionReply(
        captions=[
            Caption(
                text=caption.text,
                log_probability=caption.log_probability,
                sample=caption.sample,
                score=caption.score,
                words=words_of(caption.attention),
            )
            for caption in found
        ],
        width=image.width,
        height=image.height,
        seconds=round(time.perf_counter() - start, 3),
    )


def caption_changes_of(wanted: CaptionQuery) -> CaptionChanges:
    """The options other than the package's that a request to caption names."""
    if wanted.temperature is None:
        return {}
    # a temperature of 0 is the limit of drawing words, where always the likeliest one comes
    return {"temperature": wanted.temperature} if wanted.temperature > 0 else {"method": "greedy"}


def answered(diptych: Diptych, content: bytes, pixels: int, wanted: AnswerQuery) -> AnswerReply:
    """Answer questions about an uploaded picture, which is seen once.

    Raises:
        HTTPException: it is no picture, damaged or too large, or the model cannot answer one of the questions.
    """
    start = time.perf_counter()
    image = uploaded(content, pixels)
    try:
        found = diptych.answer(image, wanted.question, most=wanted.most, return_attention=wanted.attention)
    except UserError as error:
        raise cannot(diptych, error) from None
    return AnswerReply(
        answers=[
            Answer(
                question=question,
                text=answer.text,
                probability=answer.probability,
                ranked=[
                    RankedAnswer(answer=one.answer, probability=one.probability) for one in answer.ranked
                ],
                words=words_of(answer.attention),
            )
            for question, answer in zip(wanted.question, found, strict=True)
        ],
        width=image.width,
        height=image.height,
        seconds=round(time.perf_counter() - start, 3),
    )


def uploaded(content: bytes, pixels: int) -> Image.Image:
    """An uploaded picture of at most so many ``pixels``.

    Raises:
        HTTPException: it is no picture, damaged or too large.
    """
    try:
        return read_upload(content, pixels)
    except UploadError as error:
        raise HTTPException(error.status, str(error)) from None


def words_of(attention: WordAttention | None) -> list[Word] | None:
    """Words and where they look; None where nobody asked for it."""
    if attention is None:
        return None
    return [
        Word(word=word, cells=[round(weight, 5) for weight in weights.tolist()])
        for word, weights in zip(attention.words, attention.weights, strict=True)
    ]


def cannot(diptych: Diptych, error: UserError) -> HTTPException:
    """A UserError as a refusal that does not tell where the package lies."""
    return HTTPException(422, str(error).replace(str(diptych.folder), "the package"))
