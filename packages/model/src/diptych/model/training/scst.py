"""Steps of self-critical sequence training (Rennie et al. 2017; UMT 4.1.2): sample, reward, improve. Of any captioner."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from diptych.model.decoding.caption import write_captions
from diptych.model.decoding.noise import sample_seeds
from diptych.model.devices import sent
from diptych.model.objectives.scst import CaptionPolicy
from diptych.model.precision import autocast_context
from diptych.model.tokenizer import CaptionTokenizer
from diptych.model.training.contracts import Piece
from diptych.model.training.data import Captioned, CaptionTable


class ScstSettings(Protocol):
    """What SCST reads of a training's config."""

    @property
    def caption_length(self) -> int: ...

    @property
    def samples_per_image(self) -> int: ...

    @property
    def sample_temperature(self) -> float: ...

    @property
    def scst_vision(self) -> bool: ...

    @property
    def scst_weight(self) -> float: ...

    @property
    def baseline(self) -> Literal["greedy", "mean"]: ...

    @property
    def precision(self) -> str: ...


class TrainedPolicy(CaptionPolicy, Protocol):
    """A policy whose network learns."""

    @property
    def model(self) -> nn.Module: ...


class CaptionReward(Protocol):
    """CIDEr-D on token ids (``diptych.eval.captions.cider.CiderDReward``)."""

    def reward(self, image_indices: Sequence[int], candidates: Sequence[Sequence[int]]) -> np.ndarray:
        """Score candidate captions of images: float32 ``[n]``."""


def reference_words(tokenizer: CaptionTokenizer, images: Captioned, length: int) -> list[list[list[int]]]:
    """Return all captions as word ids, per image, as ``CiderDReward`` takes its references."""
    table = CaptionTable(images, tokenizer, length)
    return [[tokenizer.words(row) for row in ids] for ids in table.ids]


def scst_pieces(
    config: ScstSettings,
    policy: TrainedPolicy,
    tokenizer: CaptionTokenizer,
    reward: CaptionReward,
    indices: list[int],
    rows: list[slice],
    data: list[Tensor],
    seen: Callable[[Tensor], Tensor],
) -> list[Piece]:
    """The pieces of a step, whose loss is the mean over sampled captions.

    Args:
        indices: the images of the whole batch. rows: this process's parts of it.
        data: what was read of each part. seen: what the captioner sees of it, on its device.
    """
    seeds = torch.randint(2**62, (len(indices),)).tolist()

    def piece(rows: slice, part: Tensor) -> Piece:
        share = len(part) / len(indices)

        def loss() -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
            return scst_parts(
                config, policy, tokenizer, seen(part), indices[rows], seeds[rows], reward, share
            )

        return Piece(share, len(part), loss)

    return [piece(places, part) for places, part in zip(rows, data, strict=True)]


def scst_parts(
    config: ScstSettings,
    policy: TrainedPolicy,
    tokenizer: CaptionTokenizer,
    features: Tensor,
    indices: Sequence[int],
    seeds: Sequence[int],
    reward: CaptionReward,
    share: float,
) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    """SCST loss of captions, of images that show these ``features``, sampled by their images' seeds, times ``share`` and
    ``scst_weight``, in the parts of :meth:`diptych.model.objectives.scst.CaptionPolicy.losses`; the mean rewards come with the first.

    Sampling and scoring both run without dropout, so the scored policy is the one that was sampled. The greedy caption
    and the samples of all images are decoded together, without gradients, through the cache; then the sampled words
    are scored with gradients. Images are encoded once, for both.
    """
    policy.model.eval()
    device, length, samples = features.device, config.caption_length, config.samples_per_image
    with autocast_context(device, config.precision):
        with torch.set_grad_enabled(config.scst_vision):
            images = policy.read(features)
        greedy = config.baseline == "greedy"
        rows = samples + greedy  # captions per image, the greedy one first
        with torch.no_grad():
            next_word = policy.next_word(images, length)
            if rows > 1:
                next_word.keep(torch.arange(len(indices)).repeat_interleave(rows))
            temperatures = ([0.0] * greedy + [config.sample_temperature] * samples) * len(indices)
            drawn = torch.tensor(sample_seeds(seeds, samples)).view(len(indices), samples)
            padded = torch.cat([drawn[:, :1]] * greedy + [drawn], 1).flatten().tolist()
            ids = write_captions(
                next_word, tokenizer, rows * len(indices), length, device, temperatures, padded
            ).ids.cpu()
        owners = np.repeat(np.asarray(indices), rows)
        scores = np.asarray(reward.reward(owners.tolist(), [tokenizer.words(row) for row in ids]))
        rewards = sent(torch.from_numpy(scores.astype(np.float32)), device).view(len(indices), rows)
        if greedy:
            sampled, baselines = rewards[:, 1:], rewards[:, :1]
        else:
            sampled, baselines = rewards, (rewards.sum(1, keepdim=True) - rewards) / (samples - 1)
        reported = {"scst_reward": sampled.mean(), f"{config.baseline}_reward": baselines.mean()}
        advantages = (config.scst_weight * share * (sampled - baselines)).flatten()
        ids = ids.view(len(indices), rows, -1)[:, int(greedy) :].flatten(0, 1)
    for compute in policy.losses(images, ids, advantages, config.sample_temperature):
        with autocast_context(device, config.precision):
            loss = compute()
        yield loss, reported
        reported = {}
    policy.model.train()
