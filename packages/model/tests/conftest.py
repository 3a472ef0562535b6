"""Tiny stand-ins for what the transformer trains on, and a tiny packaged model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from architectures import LAYERS
from PIL import Image
from torch import nn

from diptych.eval.scorers.clip import Clip, ClipConfig, build_clip
from diptych.features.detector.network import Detector, DetectorConfig, save_detector
from diptych.model import Diptych
from diptych.model.answer_table import AnswerTable
from diptych.model.decoding.options import CaptionOptions, PaintOptions
from diptych.model.networks.architectures import build_transformer
from diptych.model.networks.config import CAPTION_ATTENTIONS, IMAGE_FEATURES, TransformerConfig
from diptych.model.networks.image_generator import ImageGenerator, named_config, save_image_generator
from diptych.model.packaged.directory import Common, write_package
from diptych.model.packaged.examples import Examples
from diptych.model.pretrained import load_transformer, save_transformer
from diptych.model.tokenizer import build_tokenizer

# The first backward of a process starts autograd's threads for the devices that torch knows by then; exporting a program makes known
# one that is none, and a process with such threads can not fork trainings. So the first is here, before any test.
torch.ones((), requires_grad=True).backward()

CAPTIONS = [
    ["a red kite floats.", "a kite that is red."],
    ["two blue boats rest on the sea.", "some boats of blue."],
    ["a green house stands alone.", "one green house."],
]
QUESTIONS = ["is there a red kite?", "how many boats are there?", "what color is the house?"]
ANSWERS = AnswerTable(["yes", "no", "2", "red", "the sea", "kite"])


class FakeShards:
    """The methods of ShardDataset that training uses, over arrays in memory."""

    def __init__(self, images: int, codebook_size: int, feature_dim: int, cells: int) -> None:
        random = np.random.default_rng(0)
        self.keys = [f"{index:06d}" for index in range(images)]
        self._grid = random.standard_normal((images, cells, feature_dim)).astype(np.float16)
        self._codes = random.integers(0, codebook_size, (images, cells))

    def __len__(self) -> int:
        return len(self.keys)

    def grid(self, indices):
        return self._grid[indices]

    def codes(self, indices):
        return self._codes[indices]

    def captions(self, index: int) -> list[str]:
        return CAPTIONS[index % len(CAPTIONS)]


class FakeGenerator(nn.Module):
    """16 vectors of 10 to an image of 4x4 pixels in -1..1."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(10, 3)

    def forward(self, grid):
        return self.layer(grid).transpose(1, 2).reshape(-1, 3, 4, 4).tanh()


class FakeScorer(nn.Module):
    """A linear image encoder whose cosine to the constant text is usually positive; it remembers the texts."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(48, 6)
        nn.init.constant_(self.layer.bias, 0.2)
        self.texts: list[str] = []

    def encode_images(self, images):
        assert images.min() >= 0 and images.max() <= 1
        return nn.functional.normalize(self.layer(images.flatten(1)), dim=-1)

    def encode_texts(self, texts):
        self.texts = texts
        return nn.functional.normalize(torch.ones(len(texts), 6), dim=-1)


def tiny_config(architecture: str = "two_streams", **sizes: Any) -> TransformerConfig:
    """A transformer of three or four tiny layers; what is not given here, `sizes` give."""
    return TransformerConfig(
        **{
            "hidden_size": 24, "attention_heads": 3, "intermediate_size": 40, **LAYERS[architecture],
            "cell_positions": False, "text_positions": 20, "dropout": 0.0, "caption_attention": "prefix",
            **sizes,
        }
    )  # fmt: skip


@pytest.fixture
def tiny(request: pytest.FixtureRequest) -> SimpleNamespace:
    """A tiny seeded transformer with tokenizer, codebook and shards; 4x4 grid, 12 codes, features of 10. Of two streams, or of
    the architecture that `both_architectures` gives."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer([text for texts in CAPTIONS for text in texts], min_count=1)
    config = tiny_config(
        getattr(request, "param", "two_streams"),
        vocab_size=len(tokenizer),
        codebook_size=12,
        feature_dim=10,
        grid_size=4,
        code_head="linear",
        initial_std=0.1,
    )
    codebook = torch.randn(12, 10) * 3 + 1
    model = build_transformer(config).eval()
    model.set_codebook(codebook)
    texts = [texts[0] for texts in CAPTIONS]
    return SimpleNamespace(
        config=config,
        model=model,
        tokenizer=tokenizer,
        codebook=codebook,
        train=FakeShards(6, 12, 10, 16),
        texts=texts,
        ids=tokenizer.encode(texts, 12),
        features=torch.randn(3, 16, 10) * 3 + 1,
        generator=FakeGenerator(),
        scorer=FakeScorer(),
    )


@dataclass(frozen=True)
class Parts:
    """Folders with tiny random parts of one model, on a grid of 8x8: what `write_package` takes."""

    transformer: Path
    image_generator: Path
    detector: Path


@pytest.fixture(scope="session")
def parts(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Parts:
    """Random parts that fit each other: 16 codes, features of 12, pictures of 16 pixels. Parametrised, it captions by
    the attention of this name, reads what the features of this name are, or is of the architecture of this name."""
    folder, name = tmp_path_factory.mktemp("parts"), getattr(request, "param", "prefix")
    found = Parts(folder / "transformer", folder / "image_generator", folder / "detector")
    torch.manual_seed(1)
    tokenizer = build_tokenizer([text for texts in CAPTIONS for text in texts], min_count=1)
    config = tiny_config(
        name if name in LAYERS else "two_streams",
        vocab_size=len(tokenizer), codebook_size=16, feature_dim=12, grid_size=8, code_head="features", initial_std=0.3,
        **({"image_features": name} if name in IMAGE_FEATURES else {}),
        **({"caption_attention": name} if name in CAPTION_ATTENTIONS else {}),
    )  # fmt: skip
    detector = Detector(DetectorConfig(32, (8, 8, 8, 8), 8, 12), ["kite", "boat"], ["red", "blue"])
    for parameter in detector.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.2)
    codebook = torch.rand(16, 12) * 3
    model = build_transformer(config).eval()
    model.set_codebook(codebook)
    save_transformer(found.transformer, model, tokenizer, codebook)
    save_detector(detector, found.detector)
    generator = ImageGenerator(named_config("smoke", feature_dim=12, image_size=16, block_channels=(16, 8)))
    generator.fit_input(codebook)
    save_image_generator(found.image_generator, generator)
    return found


@pytest.fixture(scope="session")
def scorer() -> Clip:
    """A tiny random CLIP that knows the captions' words."""
    config = ClipConfig(16, 16, 1, 16, 4, 8, 16, 1, 2, 20, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    return build_clip(config, CAPTIONS, seed=0)


@pytest.fixture(scope="session")
def package(parts: Parts, scorer: Clip, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packaged model of these parts; tests that change it copy it first."""
    random = np.random.default_rng(0)
    examples = Examples(
        random.integers(0, 256, (16, 2, 8, 8, 3)).astype(np.uint8),
        np.where(np.arange(32).reshape(16, 2) % 5, 1.0, np.inf).astype(np.float32),
    )
    folder = tmp_path_factory.mktemp("package") / "package"
    write_package(
        folder,
        transformer=parts.transformer,
        image_generator=parts.image_generator,
        detector=parts.detector,
        captioning=CaptionOptions(length=12),
        painting=PaintOptions(steps=3, guidance=1.5),
        examples=examples,
        common=Common(scorer=scorer, origin={"commit": "abc"}, card="A card.\n"),
    )
    return folder


@pytest.fixture(scope="session")
def diptych(package: Path) -> Diptych:
    """The packaged model, loaded; nothing changes it."""
    return Diptych.from_pretrained(package, device="cpu", precision="float32")


@pytest.fixture(scope="session")
def answering_package(parts: Parts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packaged model with random heads for answers and for pairs of pictures, which reads as that of `parts` does, knows
    the words of QUESTIONS too, and has neither scorer nor examples."""
    folder = tmp_path_factory.mktemp("answering")
    tokenizer = build_tokenizer([text for texts in CAPTIONS for text in texts] + QUESTIONS, min_count=1)
    model, _, codebook = load_transformer(parts.transformer)
    torch.manual_seed(2)
    config = replace(model.config, vocab_size=len(tokenizer), answers=len(ANSWERS), pairs=True)
    answering = build_transformer(config).eval()
    answering.set_codebook(codebook)
    save_transformer(folder / "transformer", answering, tokenizer, codebook, ANSWERS)
    write_package(
        folder / "package",
        transformer=folder / "transformer",
        image_generator=parts.image_generator,
        detector=parts.detector,
        captioning=CaptionOptions(length=12),
        painting=PaintOptions(steps=3, guidance=1.5),
        common=Common(card="A card.\n"),
    )
    return folder / "package"


@pytest.fixture(scope="session")
def answering(answering_package: Path) -> Diptych:
    """The packaged model that answers, loaded; nothing changes it."""
    return Diptych.from_pretrained(answering_package, device="cpu", precision="float32")


@pytest.fixture(scope="session")
def pictures() -> list[Image.Image]:
    """Five random pictures of different sizes."""
    random = np.random.default_rng(3)
    sizes = ((32, 32), (40, 24), (24, 40), (32, 32), (64, 48))
    return [
        Image.fromarray(random.integers(0, 256, (height, width, 3)).astype(np.uint8))
        for width, height in sizes
    ]
