"""Training of AugVAE from pixels (L-Verse 3.3, appendix A): squared error, a perceptual loss, commitment; the codebook by moving means.

AugVAE-ML is trained from random weights, AugVAE-SL from what :func:`diptych.model.networks.aug_vae.single_level` leaves of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diptych.features.order import batch_indices, epoch_order
from diptych.model.errors import UserError
from diptych.model.networks.aug_vae import AugVAE, Reconstruction
from diptych.model.networks.discriminator import Discriminator
from diptych.model.pixels import from_uint8, to_uint8
from diptych.model.precision import convolution_context
from diptych.model.training.config import (
    LoopConfig,
    SampleConfig,
    check_at_least_one,
    check_schedule,
    check_share,
)
from diptych.model.training.contracts import Checkpoints, Piece, Record
from diptych.model.training.game import (
    GameConfig,
    check_game,
    collapse,
    is_on,
    opponent_of,
    painter_rate,
    play,
)
from diptych.model.training.loop import HISTORY_STEPS, run_training
from diptych.model.training.processes import current_processes
from diptych.model.training.state import fingerprint

EVALUATION_BATCH = 32
# Pictures that are encoded at a time where the codebook starts.
START_BATCH = 32

PerceptualLoss = Callable[[Tensor, Tensor], Tensor]


class Pictures(Protocol):
    """Pictures that are all that this training reads."""

    keys: list[str]

    def __len__(self) -> int:
        """Number of pictures."""

    def images(self, indices: Any, size: int) -> Tensor:
        """Pictures, uint8 ``[n, 3, size, size]``."""


@dataclass(frozen=True, kw_only=True)
class AutoencoderTrainingConfig(LoopConfig):
    """Settings of AugVAE's training; the released code's in brackets (the paper's appendix A is not at hand).

    Attributes:
        steps: of the run [30 epochs of ImageNet for each of the two networks].
        batch_size: pictures in a step [8 a GPU].
        learning_rate: peak [4.5e-6 times the batch's pictures; halved on plateaus].
        warmup_share: share of the steps that warm up [0].
        schedule: what follows, ``cosine`` to 0 or ``constant``.
        betas: of AdamW [0.9, 0.999].
        weight_decay: [1e-5].
        perceptual_weight: of the perceptual loss beside the squared error [0.1].
        commitment_weight: of the squared distance to the codes [0.25].
        least_crop: pictures are cut to a square of a share drawn from here to 1 of their area, then scaled again [0.75]; 1: whole
            pictures.
        decay: of the codebook's moving means [0.99].
        start_pictures: pictures from whose vectors the codebook starts; 0: from the weights it has [0].
        start_step: before this step nothing is quantized [0]: what no code tells is not learned before it, such as colours where the
            codes are of shapes, and codes are not of what is not learned.
        dead_share, candidates: codes with fewer vectors than this share of the mean are replaced by vectors of the batch, at most
            so many in a step [0, 0].
        game: an adversarial game beside all this (:mod:`diptych.model.training.game`), whose discriminator reads no codes, since they
            move; None [None].
        evaluation: what is measured and shown on val pictures meanwhile; None: nothing.
        clip_norm, ema_decay [0], accumulation, precision [float32], seed, checkpoint_seconds: as in
            :class:`diptych.model.training.config.LoopConfig`.
    """

    batch_size: int
    warmup_share: float
    schedule: str = "cosine"
    betas: tuple[float, float] = (0.9, 0.999)
    perceptual_weight: float
    commitment_weight: float
    least_crop: float = 1.0
    decay: float = 0.99
    start_pictures: int = 0
    start_step: int = 0
    dead_share: float = 0.0
    candidates: int = 0
    game: GameConfig | None = None
    evaluation: SampleConfig | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least_one(self, "batch_size")
        check_share(self, "warmup_share", "decay", "dead_share")
        check_schedule(self.schedule)
        check_game(self.game, self.steps)
        if self.game is not None and self.game.code_weight:
            raise UserError(
                "game.code_weight: codes move while an autoencoder learns, so nothing can read them; set it to 0"
            )
        if not 0 < self.least_crop <= 1:
            raise UserError(f"least_crop must be in (0, 1], is {self.least_crop}")
        if self.start_pictures < 0 or self.candidates < 0:
            raise UserError("start_pictures and candidates must be at least 0")
        if not 0 <= self.start_step < self.steps:
            raise UserError(
                f"start_step must be at least 0 and below steps ({self.steps}), is {self.start_step}"
            )
        if self.start_step and not self.start_pictures:
            raise UserError(
                "start_step: a codebook that starts later starts from pictures; give start_pictures"
            )
        if self.start_step and self.ema_decay:
            raise UserError(
                "start_step: averages would be of weights from before the codebook's start, which scales them anew; set "
                "ema_decay or start_step to 0"
            )
        if bool(self.dead_share) != bool(self.candidates):
            raise UserError("give both of dead_share and candidates, or 0 for both")

    def determining(self) -> dict[str, Any]:
        """All settings that determine the result."""
        return {name: value for name, value in super().determining().items() if name != "evaluation"}

    def rate(self, step: int) -> float:
        """Learning rate of ``step``."""
        return painter_rate(self.game, self.schedule, step, self.steps, self.learning_rate, self.warmup_share)

    def arithmetic(self, device: torch.device) -> AbstractContextManager:
        """The autocast context of a step."""
        return convolution_context(device, self.precision)


def cropped(pixels: Tensor, drawn: Tensor, least: float) -> Tensor:
    """Squares of pixels ``[n, 3, S, S]``, each with an area from ``least`` to 1 of S * S, scaled to S again. ``drawn``: of each
    picture three numbers in 0..1 for its square's area, row and column, float ``[n, 3]``."""
    if least == 1:
        return pixels
    size, squares = pixels.shape[-1], []
    for picture, (of_area, of_row, of_column) in zip(pixels, drawn.tolist(), strict=True):
        side = round(size * math.sqrt(least + (1 - least) * of_area))
        y, x = (int(share * (size - side + 1)) for share in (of_row, of_column))
        square = picture[None, :, y : y + side, x : x + side]
        squares.append(F.interpolate(square, (size, size), mode="bilinear", antialias=True))
    return torch.cat(squares).contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True)
class Candidates:
    """Vectors of a batch that one level offers as codes.

    Attributes:
        cells: of the level's grid.
        vectors: their numbers among the level's vectors of the whole batch, int64.
        places: of each among all of the step's candidates, int64.
    """

    cells: int
    vectors: Tensor
    places: Tensor

    def of(self, rows: slice) -> tuple[Tensor, Tensor]:
        """Those in the pictures ``rows``, numbered within them, and their places."""
        own = (self.vectors >= rows.start * self.cells) & (self.vectors < rows.stop * self.cells)
        return self.vectors[own] - rows.start * self.cells, self.places[own]


class AutoencoderSteps:
    """The steps of this training (:class:`diptych.model.training.contracts.Steps`)."""

    def __init__(
        self,
        config: AutoencoderTrainingConfig,
        model: AugVAE,
        train: Pictures,
        perceptual: PerceptualLoss | None,
        device: torch.device,
        discriminator: Discriminator | None = None,
    ) -> None:
        self.config, self.model, self.train = config, model, train
        self.perceptual, self.device, self.discriminator = perceptual, device, discriminator
        self.rows = current_processes().own_pieces(config.batch_size, config.accumulation)

    def read(self, step: int) -> list[Tensor]:
        """The pictures of this process's pieces, uint8."""
        indices = batch_indices(len(self.train), self.config.batch_size, self.config.seed, step).tolist()
        return [self.train.images(indices[rows], self.model.config.image_size) for rows in self.rows]

    def pieces(self, step: int, data: list[Tensor]) -> list[Piece]:
        """The batch's loss is the mean over pictures. Crops, and the vectors that are offered as codes, are drawn here for the
        whole batch."""
        self.model.quantizer.passes = step < self.config.start_step
        if step == self.config.start_step and self.config.start_pictures:
            self.start_codebook()
        squares, offered = torch.rand(self.config.batch_size, 3), self.draw_candidates()
        playing = is_on(self.config.game, step)
        return [
            self._piece(images, squares[rows], [level.of(rows) for level in offered], playing)
            for rows, images in zip(self.rows, data, strict=True)
        ]

    def draw_candidates(self) -> list[Candidates]:
        """Of each coded level, as many as fall on it where all levels' vectors are equally likely."""
        config, found, first = self.model.config, [], 0
        chosen = torch.randperm(self.config.batch_size * config.cells)[: self.config.candidates]
        for level in config.coded_levels:
            cells = config.grid_size(level) ** 2
            end = first + self.config.batch_size * cells
            (places,) = ((chosen >= first) & (chosen < end)).nonzero(as_tuple=True)
            found.append(Candidates(cells, chosen[places] - first, places))
            first = end
        return found

    def _piece(
        self, images: Tensor, squares: Tensor, offered: list[tuple[Tensor, Tensor]], playing: bool
    ) -> Piece:
        config = self.config

        def loss() -> tuple[Tensor, dict[str, Tensor]]:
            pixels = cropped(from_uint8(images, self.device), squares, config.least_crop)
            with config.arithmetic(self.device):
                drawn = self.model(pixels, offered if config.candidates else None)
                losses = {"reconstruction": F.mse_loss(drawn.pixels.float(), pixels)}
                total = losses["reconstruction"] + config.commitment_weight * drawn.commitment
                if self.perceptual is not None and config.perceptual_weight > 0:
                    losses["perceptual"] = self.perceptual(drawn.pixels, pixels)
                    total = total + config.perceptual_weight * losses["perceptual"]
                if playing:
                    assert self.discriminator is not None and config.game is not None
                    judged, players = play(config.game, self.discriminator, drawn.pixels, pixels, None)
                    losses |= judged
                    total = total + players[0] + players[1]
            losses["commitment"] = drawn.commitment
            return total, {name: value.detach() for name, value in losses.items()}

        return Piece(len(images) / config.batch_size, len(images), loss)

    @torch.no_grad()
    def start_codebook(self) -> None:
        """Start from train pictures, the same in all processes: first scale what is quantized to mean 0 and variance 1, by the 1x1
        convolutions before it, then take its vectors as codes.

        Random encoders make nearly the same of all pictures, and a decoder, whose biases are larger, would learn to do without. Where
        the decoder has learned already, what it makes of the vectors stays the same.
        """
        processes, model = current_processes(), self.model
        moved = [
            *model.before_codes.parameters(),
            *model.after_codes.parameters(),
            *model.quantizer.buffers(),
        ]
        if processes.rank == 0:
            after = model.after_codes if self.config.start_step else None
            vectors = standardise(model.before_codes, self.start_vectors(), after)
            generator = torch.Generator().manual_seed(self.config.seed)
            model.quantizer.start(torch.cat(vectors, 1).T, generator)
        else:
            for tensor in moved:
                tensor.zero_()
        processes.sum([tensor.data for tensor in moved])

    def start_vectors(self) -> list[Tensor]:
        """What the pictures of the start have to be quantized, float ``[D, m]`` of each coded level."""
        config = self.config
        indices = epoch_order(len(self.train), config.seed, 0)[: config.start_pictures].tolist()
        found: list[list[Tensor]] = [[] for _ in self.model.config.coded_levels]
        for first in range(0, len(indices), START_BATCH):
            images = self.train.images(indices[first : first + START_BATCH], self.model.config.image_size)
            for vectors, maps in zip(
                found, self.model.features(from_uint8(images, self.device)), strict=True
            ):
                vectors.append(maps.float().transpose(0, 1).flatten(1))
        return [torch.cat(vectors, 1) for vectors in found]


def standardise(
    convolutions: Iterable[nn.Module], made: Iterable[Tensor], readers: Iterable[nn.Module] | None = None
) -> list[Tensor]:
    """Scale and shift 1x1 convolutions so that each channel of what they have ``made``, float ``[D, m]``, has mean 0 and variance
    1; return what they make now. ``readers``: 1x1 convolutions that read it, to undo both."""
    standard = []
    following = list(readers) if readers is not None else []
    for place, (convolution, vectors) in enumerate(zip(convolutions, made, strict=True)):
        assert isinstance(convolution, nn.Conv2d) and convolution.bias is not None
        mean, scale = vectors.double().mean(1), vectors.double().std(1).clamp(min=1e-6)
        convolution.weight /= scale[:, None, None, None]
        convolution.bias.copy_((convolution.bias - mean) / scale)
        if following:
            reader = following[place]
            assert isinstance(reader, nn.Conv2d) and reader.bias is not None
            reader.bias += reader.weight[:, :, 0, 0].double() @ mean
            reader.weight *= scale[None, :, None, None]
        standard.append(((vectors - mean[:, None]) / scale[:, None]).float())
    return standard


class AutoencoderEvaluation:
    """Fixed val pictures drawn again (:class:`diptych.model.training.contracts.Evaluation`)."""

    def __init__(
        self,
        config: AutoencoderTrainingConfig,
        evaluation: SampleConfig,
        model: AugVAE,
        val: Pictures,
        device: torch.device,
    ) -> None:
        self.config, self.model, self.device = config, model, device
        self.every, self.at_start, self.samples = evaluation.every, False, evaluation.samples
        indices = epoch_order(len(val), config.seed, 0)[: evaluation.images].tolist()
        self.keys = [val.keys[index] for index in indices]
        self.images = val.images(indices, model.config.image_size)

    @torch.no_grad()
    def evaluate(self) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Return `val_reconstruction` (mean squared error), `val_commitment` and `val_codes_used` (exp of the entropy of the codes
        that the pictures take: so many codes would be equally frequent), and samples: `image_id`, `real` and `painted`, uint8
        [3, S, S]."""
        error = commitment = 0.0
        counts = torch.zeros(len(self.model.quantizer), device=self.device)
        samples: list[dict[str, Any]] = []
        for images in self.images.split(EVALUATION_BATCH):
            pixels = from_uint8(images, self.device)
            with self.config.arithmetic(self.device):
                drawn: Reconstruction = self.model(pixels)
            share = len(images) / len(self.images)
            error += share * float(F.mse_loss(drawn.pixels.float(), pixels))
            commitment += share * float(drawn.commitment)
            for codes in drawn.codes:
                counts += torch.bincount(codes.flatten(), minlength=len(counts))
            for image, own in zip(drawn.pixels, images, strict=True):
                if len(samples) < self.samples:
                    key = self.keys[len(samples)]
                    samples.append(
                        {"image_id": key, "real": own.clone(), "painted": to_uint8(image.float()).cpu()}
                    )
        shares = counts / counts.sum()
        used = math.exp(-float(torch.special.xlogy(shares, shares).sum()))
        figures = {"val_reconstruction": error, "val_commitment": commitment, "val_codes_used": used}
        return figures, samples


def train_autoencoder(
    config: AutoencoderTrainingConfig,
    model: AugVAE,
    train: Pictures,
    perceptual: PerceptualLoss | None,
    checkpoints: Checkpoints | None = None,
    device: torch.device | str = "cpu",
    val: Pictures | None = None,
) -> Record:
    """Train ``model`` in place to draw the pictures of ``train`` again; leave it in eval mode.

    Args:
        perceptual: distance of drawn and real pixels ``[n, 3, S, S]`` in -1..1, with a gradient to the drawn; None: the squared
            error alone.
        val: pictures that ``config.evaluation`` is about.

    Returns:
        History rows: step, learning_rate, reconstruction, perceptual, commitment (unweighted), those of the game once it is on, and
        gradient_norm.

    Raises:
        UserError: a loss is not finite, the game collapses, or there are fewer pictures than in a batch.
    """
    if len(train) < config.batch_size:
        raise UserError(
            f"autoencoder: batch_size {config.batch_size} is larger than the {len(train)} training pictures"
        )
    device = torch.device(device)
    model.to(device, memory_format=torch.channels_last)
    if isinstance(perceptual, nn.Module):
        perceptual.to(device).eval().requires_grad_(False)
    model.quantizer.upkeep(config.decay, config.dead_share, config.candidates)
    discriminator, opponent = None, None
    if config.game is not None:
        torch.manual_seed(config.seed)
        discriminator = Discriminator(config.game.discriminator, model.config.image_size, None)
        opponent = opponent_of(
            config.game, discriminator, device, config.schedule, config.steps, config.betas
        )
    evaluation = None
    if config.evaluation is not None and val is not None:
        evaluation = AutoencoderEvaluation(config, config.evaluation, model, val, device)
    return run_training(
        model,
        "autoencoder",
        config,
        AutoencoderSteps(config, model, train, perceptual, device, discriminator),
        learning_rate=config.rate,
        started_from=fingerprint(model, config.determining(), asdict(model.config), train.keys),
        checkpoints=checkpoints,
        evaluation=evaluation,
        opponent=opponent,
        betas=config.betas,
        # before the codebook starts, losses are lower; a row is the mean of the steps since the one before
        failure=lambda history: collapse(
            history, config.start_step + HISTORY_STEPS if config.start_step else -1
        ),
    )
