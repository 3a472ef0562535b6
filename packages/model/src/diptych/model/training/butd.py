"""Training of BUTD's captioner (Anderson et al. 2018, section 3.2): word by word, then SCST on CIDEr-D."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Protocol

import torch
from torch import Tensor

from diptych.features.order import batch_indices
from diptych.model.devices import Texts
from diptych.model.networks.butd import BUTD
from diptych.model.objectives.butd import BUTDPolicy
from diptych.model.objectives.token import word_loss
from diptych.model.precision import autocast_context
from diptych.model.tokenizer import CaptionTokenizer
from diptych.model.training.butd_config import BUTDTrainingConfig
from diptych.model.training.contracts import Checkpoints, Piece, Record
from diptych.model.training.data import Captioned, CaptionTable, on_device, read_rows
from diptych.model.training.loop import run_training
from diptych.model.training.processes import current_processes
from diptych.model.training.schedules import warmup_cosine
from diptych.model.training.scst import CaptionReward, scst_pieces
from diptych.model.training.state import fingerprint


class Described(Captioned, Protocol):
    """Images as sets of vectors, and their captions."""

    def grid(self, indices: Any) -> Any:
        """Vectors, numpy float16 ``[n, k, D]``: of the cells of the grid, or of regions."""


class BUTDSteps:
    """The steps of either stage (:class:`diptych.model.training.contracts.Steps`)."""

    def __init__(
        self,
        config: BUTDTrainingConfig,
        model: BUTD,
        tokenizer: CaptionTokenizer,
        train: Described,
        reward: CaptionReward | None,
        device: torch.device,
    ) -> None:
        self.config, self.model, self.tokenizer = config, model, tokenizer
        self.train, self.reward, self.device = train, reward, device
        self.captions = CaptionTable(train, tokenizer, config.caption_length)
        self.rows = current_processes().own_pieces(config.batch_size, config.accumulation)

    def plan(self, step: int) -> list[int]:
        """Return the images of the batch of ``step``."""
        config = self.config
        return batch_indices(len(self.train), config.batch_size, config.seed, step).tolist()

    def read(self, step: int) -> list[Tensor]:
        """Read the vectors of each of this process's pieces."""
        return read_rows(self.train.grid, self.plan(step), self.rows, self.device)

    def pieces(self, step: int, data: list[Tensor]) -> list[Piece]:
        """Draw captions, or the seeds of those that are sampled."""
        indices = self.plan(step)
        if self.reward is not None:
            policy = BUTDPolicy(self.model, self.tokenizer)
            return scst_pieces(
                self.config, policy, self.tokenizer, self.reward, indices, self.rows, data, self._seen
            )
        ids = self.captions.choose(indices, self.config.captions_per_image)[0]
        words = (ids[..., 1:] != self.tokenizer.pad).flatten(1).sum(1)  # [n]
        return [
            self._piece(ids[rows], vectors, int(words[rows].sum()) / int(words.sum()))
            for rows, vectors in zip(self.rows, data, strict=True)
        ]

    def _seen(self, rows: Tensor) -> Tensor:
        return on_device(rows, self.device).float()

    def _piece(self, ids: Tensor, vectors: Tensor, share: float) -> Piece:
        own = Texts.of(ids, self.tokenizer.pad).flat()

        def loss() -> tuple[Tensor, dict[str, Tensor]]:
            with autocast_context(self.device, self.config.precision):
                texts = own.to(self.device)
                states = self.model.caption_states(texts.ids[:, :-1], self.model.read(self._seen(vectors)))
                mean = word_loss(self.model.logits, states, texts, self.config.label_smoothing)
            return mean, {"caption_loss": mean.detach()}

        return Piece(share, ids.shape[:-1].numel(), loss)


def train_butd(
    config: BUTDTrainingConfig,
    model: BUTD,
    tokenizer: CaptionTokenizer,
    train: Described,
    checkpoints: Checkpoints | None,
    device: torch.device | str,
    reward: CaptionReward | None = None,
) -> Record:
    """Train ``model`` in place by the objective that ``config`` names, alone or as one of several processes.

    Args:
        reward: for SCST, built on :func:`diptych.model.training.scst.reference_words` of the same ``train``.

    Returns:
        History rows: step, learning_rate, caption_loss or scst_reward and greedy_reward or mean_reward, gradient_norm.

    Raises:
        UserError: a loss is not finite, or an image has no caption or vectors of another width.
    """
    if (reward is None) != (config.objective == "words"):
        raise ValueError("SCST, and no other objective, has a reward")
    device = torch.device(device)
    model.to(device)
    steps = BUTDSteps(config, model, tokenizer, train, reward, device)
    return run_training(
        model,
        "BUTD",
        config,
        steps,
        learning_rate=lambda step: warmup_cosine(
            step, config.steps, config.learning_rate, config.warmup_share
        ),
        started_from=fingerprint(
            model, asdict(model.config), config.determining(), train.keys, steps.captions.texts
        ),
        checkpoints=checkpoints,
    )
