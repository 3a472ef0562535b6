"""What a family gives a packaged model; everything else is the same for all."""

from __future__ import annotations

from dataclasses import dataclass

from diptych.model.answer_table import AnswerTable
from diptych.model.packaged.answering import AnswerDecoder
from diptych.model.packaged.captioning import CaptionDecoder
from diptych.model.packaged.painting import PaintDecoder
from diptych.model.packaged.seeing import ImageTokenizer
from diptych.model.tokenizer import CaptionTokenizer


@dataclass(frozen=True)
class Parts:
    """images: pixels to codes and back. captions, paintings, answers: what decodes; a family that answers no questions has none of the last.
    table: of answers, where there are some."""

    tokenizer: CaptionTokenizer
    images: ImageTokenizer
    captions: CaptionDecoder
    paintings: PaintDecoder
    answers: AnswerDecoder | None = None
    table: AnswerTable | None = None
