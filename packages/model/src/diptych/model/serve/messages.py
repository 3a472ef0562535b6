"""What requests and replies hold. What pydantic checks here, and the limits, stand in the OpenAPI document too."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

MOST_LETTERS = 500
MOST_SAMPLES = 8
MOST_QUESTIONS = 16  # in one address, which servers bound
MOST_ANSWERS = 20
MOST_PICTURES = 128  # in one reply, steps included
HIGHEST_TEMPERATURE = 5.0
HIGHEST_GUIDANCE = 20.0

Seed = Annotated[int | None, Field(ge=0, lt=2**63, description="Of chance; without one, one is drawn.")]
Temperature = Annotated[
    float | None,
    Field(ge=0, le=HIGHEST_TEMPERATURE, allow_inf_nan=False, description="0 takes the likeliest."),
]
Cells = Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(max_length=4096)]


class Strict(BaseModel):
    """Unknown keys and values of another type are errors."""

    model_config = ConfigDict(extra="forbid", strict=True)


class PaintRequest(Strict):
    """A sentence to paint. What is left out is as the package's own options say."""

    caption: str = Field(min_length=1, max_length=MOST_LETTERS, examples=["two red kites above the sea."])
    samples: int | None = Field(None, ge=1, le=MOST_SAMPLES, description="Paintings of the sentence.")
    steps: int | None = Field(None, ge=1, le=4096, description="k of mask-predict-k, at most one per cell.")
    temperature: Temperature = None
    guidance: float | None = Field(None, ge=0, le=HIGHEST_GUIDANCE, allow_inf_nan=False)
    seed: Seed = None
    rerank: bool | None = Field(None, description="Only the painting that the scorer likes best.")
    return_steps: bool = Field(False, description="Also the painting after each step.")
    codes: Cells | None = Field(None, description="A painting to start from, with `locked` or `repaint`.")
    locked: Cells | None = Field(
        None, description="Cells that keep their codes, by number from the top left, row by row."
    )
    repaint: Cells | None = Field(None, description="Cells that do not: the others keep theirs.")

    @model_validator(mode="after")
    def check_together(self) -> PaintRequest:
        """What belongs together is given together."""
        given = (self.locked is not None) + (self.repaint is not None)
        if (self.codes is None and given) or (self.codes is not None and given != 1):
            raise ValueError("give codes together with either locked or repaint")
        return self


class CaptionQuery(BaseModel):
    """How to caption the picture in the body. What is left out is as the package's own options say."""

    model_config = ConfigDict(extra="forbid")

    samples: int | None = Field(None, ge=1, le=MOST_SAMPLES, description="Captions of the picture.")
    temperature: float | None = Field(
        None,
        ge=0,
        le=HIGHEST_TEMPERATURE,
        allow_inf_nan=False,
        description="Above 0 words are drawn; 0 takes the likeliest one each time.",
    )
    seed: Seed = None
    rerank: bool | None = Field(None, description="Only the caption that the scorer likes best.")
    attention: bool = Field(False, description="Also where in the picture each word looks.")


class AnswerQuery(BaseModel):
    """What is asked about the picture in the body."""

    model_config = ConfigDict(extra="forbid")

    question: list[Annotated[str, Field(min_length=1, max_length=MOST_LETTERS)]] = Field(
        min_length=1,
        max_length=MOST_QUESTIONS,
        description="Given several times, so many questions are answered.",
        examples=[["how many kites are there?"]],
    )
    most: int = Field(5, ge=1, le=MOST_ANSWERS, description="Likeliest answers to each question.")
    attention: bool = Field(False, description="Also where in the picture each word of a question looks.")


class Step(BaseModel):
    """The painting after one step."""

    image: str = Field(description="PNG as a data URL.")
    codes: list[int] = Field(description="Row by row from the top left; -1 where there is none yet.")


class Painting(BaseModel):
    """One painting; with the same request and this seed it is painted again."""

    image: str = Field(description="PNG as a data URL.")
    codes: list[int] = Field(description="Row by row from the top left.")
    seed: int
    sample: int
    score: float | None = Field(description="CLIPScore with the sentence, where it was reranked.")
    steps: list[Step]


class PaintReply(BaseModel):
    """Paintings of a sentence."""

    paintings: list[Painting]
    notes: list[str] = Field(description="What of the sentence was not read as it stands.")
    seconds: float = Field(description="Without waiting.")


class Word(BaseModel):
    """A word and where it looks."""

    word: str
    cells: list[float] = Field(description="Weights of the grid's cells, row by row; they sum to 1.")


class Caption(BaseModel):
    """One caption."""

    text: str
    log_probability: float
    sample: int
    score: float | None = Field(description="CLIPScore with the picture, where it was reranked.")
    words: list[Word] | None = Field(description="With `attention`.")


class CaptionReply(BaseModel):
    """Captions of a picture."""

    captions: list[Caption]
    width: int = Field(description="Of the picture, upright.")
    height: int
    seconds: float = Field(description="Without waiting.")


class RankedAnswer(BaseModel):
    """An answer that the model knows, and how likely it is."""

    answer: str
    probability: float = Field(description="Among all answers that the model knows.")


class Answer(BaseModel):
    """The answer to one question."""

    question: str
    text: str = Field(description="The likeliest answer.")
    probability: float
    ranked: list[RankedAnswer] = Field(description="The likeliest answers, likeliest first.")
    words: list[Word] | None = Field(description="Of the question; with `attention`.")


class AnswerReply(BaseModel):
    """Answers to questions about a picture, in their order."""

    answers: list[Answer]
    width: int = Field(description="Of the picture, upright.")
    height: int
    seconds: float = Field(description="Without waiting.")


class CodeReply(BaseModel):
    """What a code of the codebook looks like."""

    code: int
    examples: list[str] = Field(
        description="Patches of training pictures nearest to the centroid, as data URLs, nearest first: the cell and "
        "those around it."
    )


class PaintingDefaults(BaseModel):
    """The package's own options."""

    method: str
    steps: int
    step_count: int = Field(description="Pictures that `return_steps` brings of one painting, at most.")
    temperature: float
    guidance: float


class CaptioningDefaults(BaseModel):
    """The package's own options."""

    method: str
    temperature: float = Field(description="Of method `sample`; others have none.")


class Limits(BaseModel):
    """What is taken at most."""

    letters: int
    samples: int
    questions: int
    steps: int
    pictures: int = Field(description="In one reply, steps included.")
    upload_bytes: int
    pixels: int
    queue: int = Field(description="Requests that may wait.")


class ModelReply(BaseModel):
    """The model, and what is taken at most."""

    name: str
    image_size: int = Field(description="Pixels a side of a painting.")
    grid_size: int = Field(description="Cells a side.")
    codebook_size: int
    has_scorer: bool = Field(description="Whether it can rerank.")
    has_examples: bool = Field(description="Whether it knows what its codes look like.")
    can_answer: bool = Field(description="Whether it answers questions about pictures.")
    painting: PaintingDefaults
    captioning: CaptioningDefaults
    words: list[str] | None = Field(description="All words that it knows, where they are few.")
    examples: list[str] = Field(description="Sentences to begin with.")
    questions: list[str] = Field(description="Questions to begin with.")
    limits: Limits
    waiting: int = Field(description="Requests in the queue, that which is worked on included.")


class Problem(BaseModel):
    """Why there is no result, and what to do."""

    error: str
