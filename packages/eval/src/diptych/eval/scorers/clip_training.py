"""Training of a small CLIP from scratch: CLIP's own loss, with captions in which a word is swapped to refuse."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from diptych.eval.errors import UserError
from diptych.eval.precision import autocast_context
from diptych.eval.scorers.clip import Clip
from diptych.eval.scorers.clip_score import PROMPT
from diptych.eval.scorers.training import (
    Checkpoints,
    ImageReader,
    PictureTrainingConfig,
    batch_indices,
    spoilt,
    train,
)
from diptych.eval.words import CATEGORIES, Swaps, read_words

_MAX_LOGIT_SCALE = float(np.log(100))


@dataclass(frozen=True, kw_only=True)
class ClipTrainingConfig(PictureTrainingConfig):
    """A schedule and what is varied in training.

    captions_per_image: captions that are drawn (with repetition) for each picture of a batch; a picture
    costs several times what a caption costs. prompt_share: share of texts (0..1) that begin with PROMPT.

    A CLIP that is to reward paintings should learn with `noise`: one that has seen clean pictures alone loses a third of its
    cosine to noise that nobody sees, and what raises its opinion of a picture is such noise rather than the things that the
    caption names. Gradients of networks that learned with noise point at what people see (Kaur et al. 2019).

    hard_negatives: captions with one word swapped that every picture of a batch brings along, and that all of its
    pictures have to tell from their own; 0 is CLIP's own training, which seldom learns what a batch's other captions do
    not ask for (Yuksekgonul et al. 2023, section 4.1). swapped_words: their word lists (`diptych.eval.words`);
    the category of each swap is drawn among those that the caption holds.
    """

    captions_per_image: int
    prompt_share: float
    hard_negatives: int = 0
    swapped_words: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hard_negatives < 0:
            raise UserError(f"hard_negatives: must be at least 0, got {self.hard_negatives}")
        if self.hard_negatives and self.swapped_words is None:
            raise UserError("hard_negatives: needs the word lists that swapped_words names, such as coco")


def train_clip(
    config: ClipTrainingConfig,
    clip: Clip,
    images: ImageReader,
    captions: Sequence[Sequence[str]],
    checkpoints: Checkpoints | None = None,
    device: torch.device | str = "cpu",
    description: str = "clip",
) -> list[dict[str, float]]:
    """Train in place with CLIP's symmetric loss; returns history rows (step, loss, accuracy, ...).

    `images` returns pictures by index; `captions[i]` are the captions of picture i. "accuracy" is the share of pictures of a batch that find their own caption.
    """
    clip.to(device)
    words = read_words(config.swapped_words) if config.swapped_words else None
    swaps = [Swaps(words, category) for category in CATEGORIES] if words else []

    def loss_at(step: int, generator: np.random.Generator) -> dict[str, Tensor]:
        chosen = batch_indices(len(captions), config.batch_size, config.seed, step)
        pictures = spoilt(images(chosen).to(device).float() / 255, config, generator)
        texts = [
            (PROMPT if generator.random() < config.prompt_share else "") + caption
            for index in chosen
            for caption in generator.choice(captions[index], config.captions_per_image)
        ]
        own = len(texts)
        for text in texts[:: config.captions_per_image] if swaps else ():
            texts += swapped_texts(text, swaps, config.hard_negatives, generator)
        with autocast_context(device, config.precision):
            image_embeddings, text_embeddings = clip.encode_images(pictures), clip.encode_texts(texts)
        wrong = text_embeddings[own:]
        text_embeddings = text_embeddings[:own].unflatten(0, (len(chosen), -1))  # [pictures, captions, E]
        # CLIP (Radford et al. 2021, section 2.5) keeps the scale of the logits below 100.
        scale = clip.model.logit_scale.clamp(max=_MAX_LOGIT_SCALE).exp()
        losses = [
            hard_contrastive_loss(image_embeddings, embeddings, wrong, scale)
            for embeddings in text_embeddings.unbind(1)
        ]
        with torch.no_grad():
            found = (image_embeddings @ text_embeddings[:, 0].T).argmax(1) == torch.arange(
                len(chosen), device=device
            )
        return {"loss": torch.stack(losses).mean(), "accuracy": found.float().mean()}

    return train(description, clip.model, config, loss_at, checkpoints, ends_of(clip.model))


def ends_of(model: nn.Module) -> list[nn.Parameter]:
    """The weights of open_clip's model at which pixels and words enter it and texts leave it."""
    ends = ("visual.conv1.", "visual.proj", "text_projection")
    return [
        weight
        for name, weight in model.named_parameters()
        if name.startswith(ends) or name.removesuffix(".weight").endswith("_embedding")
    ]


def swapped_texts(text: str, swaps: Sequence[Swaps], count: int, generator: np.random.Generator) -> list[str]:
    """Up to `count` versions of `text`, each with a word swapped of a category drawn among those that it holds."""
    found: list[str] = []
    order = generator.integers(len(swaps), size=count)
    for first in order:
        for number in range(len(swaps)):
            swap = swaps[(first + number) % len(swaps)].of(text, 1, generator)
            if swap is not None:
                found += swap[1]
                break
    return found


def hard_contrastive_loss(images: Tensor, texts: Tensor, wrong: Tensor, scale: Tensor) -> Tensor:
    """CLIP's symmetric loss of unit vectors [n, E] in which every picture also refuses all of `wrong` [m, E]
    (Yuksekgonul et al. 2023, section 4.1); with none, CLIP's own (open_clip's `ClipLoss`)."""
    own = torch.arange(len(images), device=images.device)
    to_texts = scale * images @ torch.cat([texts, wrong]).T  # [n, n + m]
    to_images = to_texts[:, : len(texts)].T
    return (functional.cross_entropy(to_texts, own) + functional.cross_entropy(to_images, own)) / 2
