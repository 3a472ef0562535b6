"""Training of BiART (L-Verse 3.4, 3.5): text to image and image to text in turns."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Protocol

import torch
from torch import Tensor

from diptych.model.devices import Texts, sent
from diptych.model.errors import UserError
from diptych.model.networks.biart import BiART
from diptych.model.objectives.bidirectional import caption_losses, painting_losses
from diptych.model.objectives.near_codes import NearCodes
from diptych.model.precision import autocast_context
from diptych.model.tokenizer import CaptionTokenizer
from diptych.model.training.biart_config import BiARTTrainingConfig
from diptych.model.training.contracts import Checkpoints, Piece, Record
from diptych.model.training.data import Captioned, CaptionTable, on_device, read_rows
from diptych.model.training.loop import run_training
from diptych.model.training.processes import current_processes
from diptych.model.training.schedules import warmup_cosine
from diptych.model.training.state import fingerprint
from diptych.model.training.token import check_caption_length, drop_text, plan_turn


class Tokens(Captioned, Protocol):
    """Images as codes, and their captions."""

    def codes(self, indices: Any) -> Any:
        """Codes, numpy int64 ``[n, cells]``."""


class BiARTSteps:
    """The steps of this training (:class:`diptych.model.training.contracts.Steps`)."""

    def __init__(
        self,
        config: BiARTTrainingConfig,
        model: BiART,
        tokenizer: CaptionTokenizer,
        train: Tokens,
        codebook: Tensor,
        device: torch.device,
    ) -> None:
        self.config, self.model, self.tokenizer = config, model, tokenizer
        self.near = NearCodes.of(codebook, config.code_spread).on(device) if config.code_spread else None
        self.train, self.device = train, device
        self.captions = CaptionTable(train, tokenizer, config.caption_length)
        own_pieces = current_processes().own_pieces
        self.caption_rows = own_pieces(config.caption_batch_size, config.accumulation)
        self.paint_rows = own_pieces(config.paint_batch_size, config.accumulation)

    def plan(self, step: int) -> tuple[bool, list[int]]:
        """Return whether ``step`` goes from image to text, and the images of its batch."""
        return plan_turn(self.config, len(self.train), step)

    def read(self, step: int) -> list[Tensor]:
        """Read the codes of each of this process's pieces."""
        captioning, indices = self.plan(step)
        rows = self.caption_rows if captioning else self.paint_rows
        return read_rows(self.train.codes, indices, rows, self.device)

    def pieces(self, step: int, data: list[Tensor]) -> list[Piece]:
        """Draw captions. The loss is the mean over the words, or cells, of the whole batch, and the reference's likewise."""
        config = self.config
        captioning, indices = self.plan(step)
        count = config.captions_per_image if captioning else 1
        ids = self.captions.choose(indices, count)[0]  # [n, c, t]
        hidden = None
        if not captioning:
            ids = drop_text(self.tokenizer, ids[:, 0], config.text_drop)
            if config.code_drop:
                hidden = torch.rand(len(indices), self.model.config.cells) < config.code_drop
        words = (ids[..., 1:] != self.tokenizer.pad).flatten(1).sum(1)  # [n]
        rows = self.caption_rows if captioning else self.paint_rows
        return [
            self._piece(
                captioning,
                ids[part],
                codes,
                None if hidden is None else hidden[part],
                len(codes) / len(indices),
                int(words[part].sum()) / int(words.sum()),
            )
            for part, codes in zip(rows, data, strict=True)
        ]

    def _piece(
        self, captioning: bool, ids: Tensor, codes: Tensor, hidden: Tensor | None, images: float, words: float
    ) -> Piece:
        """``images``, ``words``: the piece's shares of the batch's images and words."""
        config = self.config
        own, others = (words, images) if captioning else (images, words)
        names = (
            ("caption_loss", "image_reference_loss") if captioning else ("paint_loss", "text_reference_loss")
        )

        texts = Texts.of(ids, self.tokenizer.pad)

        def loss() -> tuple[Tensor, dict[str, Tensor]]:
            seen = on_device(codes, self.device), texts.to(self.device)
            how = config.label_smoothing, config.reference_weight > 0
            with autocast_context(self.device, config.precision):
                if captioning:
                    generated, reference = caption_losses(self.model, self.tokenizer, *seen, *how)
                else:
                    unseen = None if hidden is None else sent(hidden, self.device)
                    generated, reference = painting_losses(
                        self.model, self.tokenizer, *seen, *how, unseen, self.near
                    )
            if reference is None:
                return generated, {names[0]: generated.detach()}
            # the loss of the reference is a mean over other tokens than that of what is generated, whose share the piece has
            reference = others / own * reference
            reported = {names[0]: generated.detach(), names[1]: reference.detach()}
            return generated + config.reference_weight * reference, reported

        return Piece(own, ids.shape[:-1].numel(), loss)


def train_biart(
    config: BiARTTrainingConfig,
    model: BiART,
    tokenizer: CaptionTokenizer,
    train: Tokens,
    codebook: Tensor,
    checkpoints: Checkpoints | None,
    device: torch.device | str,
) -> Record:
    """Train ``model`` in place in both orders, alone or as one of several processes
    (:func:`diptych.model.training.processes.joined_processes`).

    Args:
        codebook: float ``[K, D]``, the vectors of the codes of ``train``: they say which codes are alike.

    Returns:
        History rows: step, learning_rate, caption_loss, paint_loss, text_reference_loss, image_reference_loss, gradient_norm.

    Raises:
        UserError: codes or captions are not of the sizes that ``model`` was built for, or a loss is not finite.
    """
    check_tokens(model, train, config.caption_length)
    device = torch.device(device)
    model.to(device)
    steps = BiARTSteps(config, model, tokenizer, train, codebook, device)
    return run_training(
        model,
        "BiART",
        config,
        steps,
        learning_rate=lambda step: warmup_cosine(
            step, config.steps, config.learning_rate, config.warmup_share
        ),
        started_from=fingerprint(
            model, asdict(model.config), config.determining(), train.keys, steps.captions.texts, codebook
        ),
        checkpoints=checkpoints,
    )


def check_tokens(model: BiART, train: Tokens, caption_length: int) -> None:
    """Raise a UserError where codes or captions do not fit ``model``."""
    if len(train):
        cells = train.codes([0]).shape[1]
        if cells != model.config.cells:
            raise UserError(
                f"image {train.keys[0]} has {cells} codes, but this transformer was built for {model.config.cells}; tokenize the "
                "images anew, or build another"
            )
    check_caption_length(caption_length, model.config.text_length)
