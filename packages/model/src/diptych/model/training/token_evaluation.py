"""What is measured and shown while token-level training runs: the same images of the val split every time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from diptych.features.order import epoch_order
from diptych.model.decoding.answer import answer_logits
from diptych.model.decoding.caption import decode_captions, encode_images
from diptych.model.decoding.paint import paint_codes
from diptych.model.image_features import caption_input, caption_rows, painting_shows_features
from diptych.model.networks.unified import UnifiedTransformer
from diptych.model.objectives.token import (
    caption_and_answer_losses,
    paint_loss,
    sample_mask,
    sample_positions,
)
from diptych.model.precision import autocast_context
from diptych.model.tokenizer import CaptionTokenizer
from diptych.model.training.config import SampleConfig, check_at_least_one
from diptych.model.training.data import CaptionTable, TrainingShards, on_device
from diptych.model.training.questions import QuestionSettings, QuestionTable

BATCH_SIZE = 32


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig(SampleConfig):
    """Evaluation during training.

    Attributes:
        images: val images whose captions and codes the losses are of.
        samples: how many of them are captioned and painted, to be shown.
        mask_predict_steps, guidance: how they are painted.
        every: as in :class:`diptych.model.training.config.WatchConfig`.
    """

    mask_predict_steps: int
    guidance: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least_one(self, "mask_predict_steps", section="evaluation.")


class TrainingSettings(Protocol):
    """What an evaluation reads of the training's config."""

    @property
    def captions_per_image(self) -> int: ...

    @property
    def caption_length(self) -> int: ...

    @property
    def least_masked(self) -> float: ...

    @property
    def all_masked(self) -> float: ...

    @property
    def label_smoothing(self) -> float: ...

    @property
    def questions(self) -> QuestionSettings | None: ...

    @property
    def precision(self) -> str: ...

    @property
    def seed(self) -> int: ...


class TokenEvaluation:
    """Losses, captions and paintings of fixed val images.

    The losses are those of training, smoothing included, so that both can be read against each other; captions, masks,
    their ratios, questions and, where ``masked`` captioning trains, the hidden words are drawn once. No text is dropped.
    """

    def __init__(
        self,
        config: EvaluationConfig,
        training: TrainingSettings,
        model: UnifiedTransformer,
        tokenizer: CaptionTokenizer,
        codebook: Tensor,
        val: TrainingShards,
        questions: QuestionTable | None = None,
    ) -> None:
        self.config, self.training = config, training
        self.model, self.tokenizer, self.codebook = model, tokenizer, codebook
        self.every = config.every
        self.at_start = False
        images = epoch_order(len(val), training.seed, 0)[: config.images].tolist()
        captions = CaptionTable(val, tokenizer, training.caption_length, images)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(training.seed)
            self.captions, prompts = captions.choose(list(range(len(images))), training.captions_per_image)
            self.masked = sample_mask(
                len(images), model.config.cells, training.least_masked, training.all_masked
            )
            self.positions = sample_positions(tokenizer, self.captions)
            self.questions = questions
            if questions and training.questions:
                self.asked = [row for row, image in enumerate(images) if image in set(questions.images)]
                self.chosen = questions.choose(
                    [images[row] for row in self.asked], training.questions.questions_per_image
                )
        self.keys = [val.keys[image] for image in images[: config.samples]]
        self.prompts = prompts[: config.samples]
        self.seen = torch.from_numpy(caption_rows(model.config, val)(images))
        self.codes = torch.from_numpy(val.codes(images))
        shows_features = painting_shows_features(model.config)
        self.features = torch.from_numpy(val.grid(images)) if shows_features else None

    @torch.no_grad()
    def evaluate(self) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Return ``val_caption_loss`` and ``val_paint_loss``, with questions ``val_answer_loss`` and ``val_answer_accuracy``
        (share of those whose most frequent answer was given), and the samples: ``image_id``, the greedy ``caption``, the
        ``prompt`` (one of the image's captions) and the ``codes`` painted from it (64 whole numbers)."""
        device = self.codebook.device
        sums = {"val_caption_loss": [0.0, 0], "val_paint_loss": [0.0, 0]}
        for start in range(0, len(self.codes), BATCH_SIZE):
            rows = slice(start, start + BATCH_SIZE)
            captions, hidden = self.captions[rows].to(device), self.masked[rows].to(device)
            seen, codes = self._seen(rows), on_device(self.codes[rows], device)
            shown = None if self.features is None else on_device(self.features[rows], device)
            smoothing = self.training.label_smoothing
            with autocast_context(device, self.training.precision):
                masked = self.model.config.caption_attention == "masked"
                positions = self.positions[rows].to(device) if masked else None
                words, _ = caption_and_answer_losses(
                    self.model, self.tokenizer, seen, captions, positions, smoothing, None, None
                )
                trained = int((captions[..., 1:] != self.tokenizer.pad).sum())
                if positions is not None:
                    trained = positions.numel()
                cells = paint_loss(
                    self.model, self.tokenizer, self.codebook, codes, captions[:, 0], hidden, smoothing, shown
                )
            counts = trained, int(hidden.sum())
            for total, loss, count in zip(sums.values(), (words, cells), counts, strict=True):
                total[0] += float(loss) * count
                total[1] += count
        figures = {name: total / count for name, (total, count) in sums.items()}
        return {**figures, **self._answers(device)}, self._samples(device)

    def _answers(self, device: torch.device) -> dict[str, float]:
        if self.questions is None or not self.asked:
            return {}
        loss, right = 0.0, 0
        for start in range(0, len(self.asked), BATCH_SIZE):
            rows, chosen = self.asked[start : start + BATCH_SIZE], self.chosen[start : start + BATCH_SIZE]
            shares = self.questions.shares(chosen).flatten(0, 1).to(device)
            seen = caption_input(self.model.config, self.codebook, on_device(self.seen[rows], device))
            with autocast_context(device, self.training.precision):
                images = encode_images(self.model, seen)
                logits = answer_logits(
                    self.model, self.tokenizer, images, self.questions.ids[chosen].to(device)
                )
            loss += float(F.cross_entropy(logits.float(), shares, reduction="sum"))
            right += int((logits.argmax(-1) == shares.argmax(-1)).sum())
        count = self.chosen.numel()
        return {"val_answer_loss": loss / count, "val_answer_accuracy": right / count}

    def _seen(self, rows: slice) -> Tensor:
        """What captioning sees of these images."""
        return caption_input(
            self.model.config, self.codebook, on_device(self.seen[rows], self.codebook.device)
        )

    def _samples(self, device: torch.device) -> list[dict[str, Any]]:
        count = len(self.keys)
        if count == 0:
            return []
        seen = self._seen(slice(count))
        with autocast_context(device, self.training.precision):
            length = self.training.caption_length
            images = encode_images(self.model, seen)
            written = decode_captions(self.model, self.tokenizer, images, length).ids
            painted = paint_codes(
                self.model,
                self.tokenizer,
                self.codebook,
                self.captions[:count, 0].to(device),
                self.config.mask_predict_steps,
                self.config.guidance,
            ).codes
        return [
            {
                "image_id": self.keys[row],
                "caption": self.tokenizer.decode(written[row]),
                "prompt": self.prompts[row],
                "codes": painted[row].tolist(),
            }
            for row in range(count)
        ]
