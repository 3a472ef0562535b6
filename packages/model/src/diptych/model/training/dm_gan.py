"""Training of DM-GAN (Zhu et al. 2019, section 3.3): a generator against a discriminator of each of its sizes, taught by how well its
pictures match their texts.

The papers' code moves the discriminators first and the generator by their new weights; here both move at once, as in all games of this
package.
"""

from __future__ import annotations

from dataclasses import asdict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diptych.model.devices import sent
from diptych.model.errors import UserError
from diptych.model.networks.dm_gan import DMGAN, GANPaintings
from diptych.model.networks.matching import EncodedTexts, PictureEncoder, TextEncoder
from diptych.model.networks.sentence_discriminator import SentenceDiscriminator
from diptych.model.objectives.matching import matching_losses
from diptych.model.pixels import from_uint8
from diptych.model.precision import convolution_context
from diptych.model.tokenizer import CaptionTokenizer
from diptych.model.training.contracts import Checkpoints, Piece, Record
from diptych.model.training.dm_gan_config import DMGANTrainingConfig
from diptych.model.training.game import WithGradient
from diptych.model.training.loop import run_training
from diptych.model.training.optimisation import Opponent
from diptych.model.training.pictured import CaptionedBatches, CaptionedPictures
from diptych.model.training.state import fingerprint


class DMGANSteps:
    """The steps of this training (:class:`diptych.model.training.contracts.Steps`)."""

    def __init__(
        self,
        config: DMGANTrainingConfig,
        generator: DMGAN,
        discriminators: nn.ModuleList,
        texts: TextEncoder,
        pictures: PictureEncoder,
        tokenizer: CaptionTokenizer,
        train: CaptionedPictures,
        device: torch.device,
    ) -> None:
        self.config, self.generator, self.discriminators = config, generator, discriminators
        self.texts, self.pictures, self.tokenizer, self.device = texts, pictures, tokenizer, device
        self.batches = CaptionedBatches.of(config, train, tokenizer, generator.config.sizes[-1])

    def read(self, step: int) -> Tensor:
        """Read the pictures of ``step``."""
        return self.batches.read(step)

    def pieces(self, step: int, data: Tensor) -> list[Piece]:
        """Draw captions and noise."""
        config, ids = self.generator.config, self.batches.texts(step)
        noise = torch.randn(len(ids), config.noise + config.condition)

        def loss() -> tuple[Tensor, dict[str, Tensor]]:
            real = from_uint8(data, self.device)
            with convolution_context(self.device, self.config.precision):
                with torch.no_grad():
                    texts = self.texts(ids, self.tokenizer)
                painted = self.generator(texts, sent(noise, self.device))
                return self._losses(painted, real, texts)

        return [Piece(1.0, len(ids), loss)]

    def _losses(
        self, painted: GANPaintings, real: Tensor, texts: EncodedTexts
    ) -> tuple[Tensor, dict[str, Tensor]]:
        config = self.config
        games = [
            game(discriminator, canvas, pictures, texts.sentence)
            for discriminator, canvas, pictures in zip(
                self.discriminators,
                painted.pictures,
                shrunk(real, self.generator.config.sizes),
                strict=True,
            )
        ]
        adversarial, rivals = (torch.stack(losses).sum() for losses in zip(*games, strict=True))
        condition = distance_from_normal(painted.mean, painted.log_variance)
        matching = torch.stack(
            list(matching_losses(texts, *self.pictures(painted.pictures[-1])).values())
        ).sum()
        total = adversarial + config.condition_weight * condition + config.matching_weight * matching
        figures = {
            "adversarial": adversarial,
            "condition": condition,
            "matching": matching,
            "discriminators": rivals,
        }
        return total + rivals, {name: value.detach() for name, value in figures.items()}


def game(
    discriminator: SentenceDiscriminator, canvas: Tensor, real: Tensor, sentences: Tensor
) -> tuple[Tensor, Tensor]:
    """Both players' losses in one size (section 3.3, equations 11 and 12): the generator's, which reaches ``canvas`` alone, and the
    discriminator's, which reaches its own weights alone. Sentences that do not belong are those of the next picture, as in the
    papers' code, and so is what each verdict counts."""
    painted = canvas.detach().requires_grad_()
    of_real, of_painted = discriminator(real), discriminator(painted)
    alone = discriminator.verdicts(of_painted)
    together = discriminator.sentence_verdicts(of_painted, sentences)
    generator_loss = F.softplus(-alone).mean() + F.softplus(-together).mean()
    # taken here, so that one pass over the painted pictures serves both players
    (gradient,) = torch.autograd.grad(generator_loss, painted, retain_graph=True)
    good = (
        F.softplus(-discriminator.verdicts(of_real)).mean()
        + F.softplus(-discriminator.sentence_verdicts(of_real, sentences)).mean()
    )
    mismatched = discriminator.sentence_verdicts(of_real[:-1], sentences[1:])
    bad = F.softplus(alone).mean() + F.softplus(together).mean() + F.softplus(mismatched).mean()
    return WithGradient.apply(canvas, generator_loss.detach(), gradient), good / 2 + bad / 3


def distance_from_normal(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Kullback-Leibler divergence of normal distributions ``[n, c]`` from the standard one, a mean over all (equation 13)."""
    return -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).float().mean()


def shrunk(pictures: Tensor, sizes: list[int]) -> list[Tensor]:
    """Real pictures ``[n, 3, S, S]`` in all sizes of a generator, the smallest first."""
    return [F.interpolate(pictures, size=(size, size), mode="area") for size in sizes]


def train_dm_gan(
    config: DMGANTrainingConfig,
    generator: DMGAN,
    texts: TextEncoder,
    pictures: PictureEncoder,
    tokenizer: CaptionTokenizer,
    train: CaptionedPictures,
    checkpoints: Checkpoints | None,
    device: torch.device | str,
) -> Record:
    """Train ``generator`` in place, in one process. Both encoders, which :func:`diptych.model.training.matching.train_matching` has
    trained, stay as they are.

    Returns:
        History rows: step, learning_rate, adversarial, condition, matching, discriminators and the gradients' norms.

    Raises:
        UserError: a loss is not finite, the sizes of the networks do not fit, there are fewer pictures than in a batch, or several
            processes.
    """
    device = torch.device(device)
    size = generator.config.sizes[-1]
    if pictures.size != size:
        raise UserError(
            f"the generator's last stage has {size} pixels a side, but the matching encoder sees {pictures.size}; set first_size "
            "and stages to its size"
        )
    generator.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    for encoder in (texts, pictures):
        encoder.to(device).eval().requires_grad_(False)
    torch.manual_seed(config.seed)
    discriminators = nn.ModuleList(
        SentenceDiscriminator(side, config.discriminator_channels, generator.config.text_width)
        for side in generator.config.sizes
    ).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    opponent = Opponent(discriminators, lambda step: config.discriminator_learning_rate, config.betas)
    steps = DMGANSteps(config, generator, discriminators, texts, pictures, tokenizer, train, device)
    frozen = [*texts.state_dict().values(), *pictures.state_dict().values()]
    return run_training(
        generator,
        "DM-GAN",
        config,
        steps,
        learning_rate=lambda step: config.learning_rate,
        started_from=fingerprint(
            generator,
            asdict(generator.config),
            config.determining(),
            train.keys,
            steps.batches.captions.texts,
            *frozen,
        ),
        checkpoints=checkpoints,
        opponent=opponent,
        betas=config.betas,
    )
