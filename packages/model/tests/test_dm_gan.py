"""The GAN in DM-GAN's manner and what teaches it: matching, memory, both players' gradients, training, painting."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from diptych.model.decoding.dm_gan import paint_pixels
from diptych.model.errors import UserError
from diptych.model.networks.dm_gan import DMGAN, DMGANConfig, Memory
from diptych.model.networks.matching import EncodedTexts, MatchingConfig, PictureEncoder, TextEncoder
from diptych.model.networks.sentence_discriminator import SentenceDiscriminator
from diptych.model.objectives.matching import matching_losses, word_scores
from diptych.model.tokenizer import build_tokenizer
from diptych.model.training.dm_gan import (
    distance_from_normal,
    game,
    shrunk,
    train_dm_gan,
)
from diptych.model.training.dm_gan_config import DMGANTrainingConfig, MatchingTrainingConfig
from diptych.model.training.matching import train_matching

LENGTH = 8
COLORS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "white": (255, 255, 255)}
CAPTIONS = [f"a {color} picture {place}." for color in COLORS for place in ("here", "there")]
TOKENIZER = build_tokenizer(CAPTIONS, 1)
MATCHING = MatchingConfig(len(TOKENIZER), 8, 16, 0.0, 16, 8)
CONFIG = DMGANConfig(16, 6, 5, 8, 12, 8, 2, 1)


class Pictures:
    """Pictures of one colour each, with captions that name it."""

    def __init__(self, count: int) -> None:
        self.keys = [f"{index:06d}" for index in range(count)]

    def __len__(self) -> int:
        return len(self.keys)

    def images(self, indices, size: int) -> torch.Tensor:
        colors = [list(COLORS.values())[index % 4] for index in indices]
        return torch.tensor(colors, dtype=torch.uint8)[:, :, None, None].expand(-1, -1, size, size).clone()

    def captions(self, index: int) -> list[str]:
        return CAPTIONS[2 * (index % 4) : 2 * (index % 4) + 2]


def networks() -> tuple[DMGAN, TextEncoder, PictureEncoder]:
    torch.manual_seed(0)
    return DMGAN(CONFIG), TextEncoder(MATCHING), PictureEncoder(MATCHING)


SHARED = {
    "learning_rate": 2e-3,
    "clip_norm": 10.0,
    "ema_decay": 0.0,
    "precision": "float32",
    "seed": 1,
    "checkpoint_seconds": 60,
    "batch_size": 4,
    "caption_length": LENGTH,
}
MATCHING_TRAINING = MatchingTrainingConfig(steps=250, warmup_share=0.1, **SHARED)
TRAINING = DMGANTrainingConfig(
    steps=20,
    discriminator_channels=4,
    discriminator_learning_rate=2e-3,
    matching_weight=1.0,
    **SHARED,
)


def random_texts(n: int, words: int = 5) -> EncodedTexts:
    generator = torch.Generator().manual_seed(0)
    visible = torch.arange(words) < torch.tensor([[words], [2], [3], [1]])[:n]
    return EncodedTexts(
        torch.randn(n, words, 16, generator=generator), visible, torch.randn(n, 16, generator=generator)
    )


def test_words_fit_pictures_as_the_equations_say():
    """AttnGAN's equations 7 to 10 for one pair at a time, in loops."""
    texts, regions = random_texts(3), torch.randn(4, 6, 16)
    found = word_scores(texts, regions)
    for text in range(3):
        words = texts.words[text][texts.visible[text]]
        for picture in range(4):
            similarity = (words @ regions[picture].T).softmax(0)
            relevance = []
            for word, row in zip(words, similarity, strict=True):
                context = sum(
                    look * region for look, region in zip((5 * row).softmax(0), regions[picture], strict=True)
                )
                relevance.append(F.cosine_similarity(context, word, dim=0))
            expected = (5 * torch.stack(relevance)).exp().sum().log() / 5
            torch.testing.assert_close(found[text, picture], expected, rtol=1e-4, atol=1e-5)


def test_a_text_is_what_its_words_are_whatever_stands_beside_it():
    encoder = TextEncoder(MATCHING).eval()
    alone = encoder(TOKENIZER.encode(["a red."], LENGTH), TOKENIZER)
    beside = encoder(TOKENIZER.encode(["a red.", "a white picture there."], LENGTH), TOKENIZER)
    assert alone.visible.sum() == 3 and beside.visible.sum(1).tolist() == [3, 5]
    torch.testing.assert_close(beside.sentence[:1], alone.sentence)
    torch.testing.assert_close(beside.words[:1, :3], alone.words)


def test_memory_reads_words_and_no_padding():
    """Equations 5 to 10 of DM-GAN for one pixel; what stands in the padding does not count."""
    torch.manual_seed(0)
    memory, texts, maps = Memory(CONFIG), random_texts(2), torch.randn(2, 8, 3, 3)
    found = memory(maps, texts)
    words = texts.words[1][texts.visible[1]]
    picture, pixel = maps[1].mean((1, 2)), maps[1, :, 2, 1]
    gate = (memory.word_gate(words) + memory.picture_gate(picture)).sigmoid()
    slots = gate * memory.word_slot(words) + (1 - gate) * memory.picture_slot(picture)
    read = (memory.key(slots) @ pixel).softmax(0) @ memory.value(slots)
    keep = (memory.response_gate.weight[0, :, 0, 0] @ torch.cat([read, pixel]) + memory.response_gate.bias).sigmoid()
    torch.testing.assert_close(found[1, :, 2, 1], keep * read + (1 - keep) * pixel, rtol=1e-4, atol=1e-5)


def test_each_player_learns_from_its_own_loss():
    torch.manual_seed(0)
    discriminator = SentenceDiscriminator(8, 4, 16)
    canvas = torch.randn(3, 3, 8, 8, requires_grad=True)
    sentences, real = torch.randn(3, 16), torch.randn(3, 3, 8, 8)
    ours, rival = game(discriminator, canvas, real, sentences)
    ours.backward(retain_graph=True)
    assert all(weight.grad is None for weight in discriminator.parameters())
    gradient, canvas.grad = canvas.grad.clone(), None
    rival.backward()
    assert canvas.grad is None and all(weight.grad is not None for weight in discriminator.parameters())
    maps = discriminator(canvas)
    expected = (
        F.binary_cross_entropy_with_logits(discriminator.verdicts(maps), torch.ones(3))
        + F.binary_cross_entropy_with_logits(discriminator.sentence_verdicts(maps, sentences), torch.ones(3))
    )
    assert float(ours.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, canvas)[0], rtol=1e-4, atol=1e-6)


def test_distance_from_the_standard_normal():
    mean, log_variance = torch.randn(2, 3), torch.randn(2, 3)
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(normal(mean, (log_variance / 2).exp()), normal(0.0, 1.0))
    torch.testing.assert_close(distance_from_normal(mean, log_variance), expected.mean())
    sizes = [part.shape[-1] for part in shrunk(torch.rand(1, 3, 16, 16), CONFIG.sizes)]
    assert sizes == CONFIG.sizes == [8, 16]


def test_learns_what_captions_say_and_paints_it():
    """After some hundred steps its pictures have the colours that are asked for; the same seed paints the same in every batch."""
    train = Pictures(16)
    generator, texts, encoder = networks()
    history = train_matching(MATCHING_TRAINING, texts, encoder, TOKENIZER, train, None, "cpu").history
    assert history[-1]["sentence_loss"] < 0.8 * history[0]["sentence_loss"]
    training = replace(TRAINING, steps=250, batch_size=8)
    history = train_dm_gan(training, generator, texts, encoder, TOKENIZER, train, None, "cpu").history
    assert {"adversarial", "condition", "matching", "discriminators"} <= history[-1].keys()
    prompts = [f"a {color} picture here." for color in ("red", "green", "blue")]
    ids = TOKENIZER.encode(prompts, LENGTH)
    pixels = paint_pixels(generator, texts, TOKENIZER, ids, [3, 4, 5], samples=2)
    assert pixels.shape == (6, 3, 16, 16) and pixels.abs().max() <= 1
    seen = pixels.mean((2, 3)).argmax(1).view(3, 2)
    assert seen.tolist() == [[0, 0], [1, 1], [2, 2]]
    alone = paint_pixels(generator, texts, TOKENIZER, ids[1:2], [4], samples=2)
    torch.testing.assert_close(alone, pixels[2:4], rtol=1e-4, atol=1e-4)


class Kept:
    """Checkpoints in memory, of which a run may be cut off."""

    def __init__(self, cut: int) -> None:
        self.state, self.cut = None, cut

    def load(self):
        return self.state

    def save(self, state) -> None:
        import copy

        if self.cut and state["step"] > self.cut:
            raise KeyboardInterrupt
        self.state = copy.deepcopy(state)


def test_goes_on_bit_by_bit_after_a_kill():
    train = Pictures(8)
    training = replace(TRAINING, steps=6, checkpoint_seconds=0)
    left = []
    for cut in (0, 3):
        generator, texts, encoder = networks()
        kept = Kept(cut)
        if cut:
            with pytest.raises(KeyboardInterrupt):
                train_dm_gan(training, generator, texts, encoder, TOKENIZER, train, kept, "cpu")
            assert kept.state["step"] == 3
            kept.cut = 0
            generator, texts, encoder = networks()
        train_dm_gan(training, generator, texts, encoder, TOKENIZER, train, kept, "cpu")
        left.append(generator.state_dict())
    assert all(whole.equal(left[1][name]) for name, whole in left[0].items())


def test_what_is_wrong_is_said():
    generator, texts, encoder = networks()
    with pytest.raises(UserError, match="accumulation 1 and one process"):
        train_dm_gan(
            replace(TRAINING, accumulation=2), generator, texts, encoder, TOKENIZER, Pictures(8), None, "cpu"
        )
    with pytest.raises(UserError, match="batch_size 4 is larger than the 2"):
        train_dm_gan(TRAINING, generator, texts, encoder, TOKENIZER, Pictures(2), None, "cpu")
    with pytest.raises(UserError, match="last stage has 32 pixels a side.*sees 16"):
        large = DMGAN(replace(CONFIG, stages=3))
        train_dm_gan(TRAINING, large, texts, encoder, TOKENIZER, Pictures(8), None, "cpu")
    with pytest.raises(UserError, match="first_size must be 4 times a power of two, is 12"):
        replace(CONFIG, first_size=12)
    with pytest.raises(UserError, match="image_size must be 8 times a power of two"):
        replace(MATCHING, image_size=20)
    with pytest.raises(UserError, match="batch_size must be at least 2"):
        replace(TRAINING, batch_size=1)
    with pytest.raises(UserError, match="a caption has no word to paint"):
        paint_pixels(generator, texts, TOKENIZER, TOKENIZER.no_text(1), [1])


def test_matching_tells_pairs_apart():
    """Texts and pictures that fit have the least loss."""
    texts = random_texts(3)
    regions = torch.stack([texts.words[row][:1].expand(6, -1) for row in range(3)])
    right = matching_losses(texts, regions, texts.sentence)
    wrong = matching_losses(texts, regions.roll(1, 0), texts.sentence.roll(1, 0))
    assert all(right[name] < wrong[name] for name in ("words", "sentence"))
