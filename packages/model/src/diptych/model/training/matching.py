"""Training of the two encoders that a text-to-image GAN is taught by (AttnGAN's DAMSM, Xu et al. 2018, section 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from diptych.model.networks.matching import PictureEncoder, TextEncoder
from diptych.model.objectives.matching import matching_losses
from diptych.model.pixels import from_uint8
from diptych.model.precision import convolution_context
from diptych.model.tokenizer import CaptionTokenizer
from diptych.model.training.contracts import Checkpoints, Piece, Record
from diptych.model.training.dm_gan_config import MatchingTrainingConfig
from diptych.model.training.loop import run_training
from diptych.model.training.pictured import CaptionedBatches, CaptionedPictures
from diptych.model.training.schedules import warmup_cosine
from diptych.model.training.state import fingerprint


class MatchingSteps:
    """The steps of this training (:class:`diptych.model.training.contracts.Steps`)."""

    def __init__(
        self,
        config: MatchingTrainingConfig,
        texts: TextEncoder,
        pictures: PictureEncoder,
        tokenizer: CaptionTokenizer,
        train: CaptionedPictures,
        device: torch.device,
    ) -> None:
        self.config, self.texts, self.pictures = config, texts, pictures
        self.tokenizer, self.device = tokenizer, device
        self.batches = CaptionedBatches.of(config, train, tokenizer, pictures.size)

    def read(self, step: int) -> Tensor:
        """Read the pictures of ``step``."""
        return self.batches.read(step)

    def pieces(self, step: int, data: Tensor) -> list[Piece]:
        """Draw captions."""
        ids = self.batches.texts(step)

        def loss() -> tuple[Tensor, dict[str, Tensor]]:
            with convolution_context(self.device, self.config.precision):
                texts = self.texts(ids, self.tokenizer)
                losses = matching_losses(texts, *self.pictures(from_uint8(data, self.device)))
            total = torch.stack(list(losses.values())).sum()
            return total, {f"{name}_loss": value.detach() for name, value in losses.items()}

        return [Piece(1.0, len(ids), loss)]


def train_matching(
    config: MatchingTrainingConfig,
    texts: TextEncoder,
    pictures: PictureEncoder,
    tokenizer: CaptionTokenizer,
    train: CaptionedPictures,
    checkpoints: Checkpoints | None,
    device: torch.device | str,
) -> Record:
    """Train both encoders in place, in one process.

    Returns:
        History rows: step, learning_rate, words_loss, sentence_loss, gradient_norm.

    Raises:
        UserError: a loss is not finite, there are fewer pictures than in a batch, or several processes.
    """
    device = torch.device(device)
    both = nn.ModuleDict({"texts": texts, "pictures": pictures}).to(device)
    steps = MatchingSteps(config, texts, pictures, tokenizer, train, device)
    return run_training(
        both,
        "image-text matching",
        config,
        steps,
        learning_rate=lambda step: warmup_cosine(
            step, config.steps, config.learning_rate, config.warmup_share
        ),
        started_from=fingerprint(both, config.determining(), train.keys, steps.batches.captions.texts),
        checkpoints=checkpoints,
    )
