from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from open_clip.loss import ClipLoss
from torch.nn.functional import normalize

from diptych.eval.errors import UserError
from diptych.eval.images.retrieval import r_precision
from diptych.eval.precision import autocast_context
from diptych.eval.scorers.clip import (
    Clip,
    ClipConfig,
    build_clip,
    load_clip,
    load_pretrained_clip,
    save_clip,
)
from diptych.eval.scorers.clip_score import PROMPT
from diptych.eval.scorers.clip_training import (
    ClipTrainingConfig,
    ends_of,
    hard_contrastive_loss,
    swapped_texts,
    train_clip,
)
from diptych.eval.words import Swaps, read_words

RESNET = ClipConfig(32, 32, (1, 1, 1, 1), 8, 4, 8, 32, 1, 2, 20, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
VIT = dataclasses.replace(RESNET, vision_layers=2, vision_width=32)
TRAINING = ClipTrainingConfig(
    steps=20,
    batch_size=64,
    learning_rate=3e-3,
    weight_decay=0.05,
    warmup_steps=5,
    gradient_clip=1.0,
    seed=0,
    precision="float32",
    checkpoint_seconds=1e9,
    muon=1.0,
    captions_per_image=2,
    prompt_share=0.5,
    shift_pixels=1,
)


@pytest.mark.parametrize(("config", "last"), [(RESNET, "text_projection"), (VIT, "visual.proj")])
def test_pixels_words_and_projections_are_ends_and_layers_are_not(config: ClipConfig, last: str) -> None:
    model = build_clip(config, [["a red kite"]], seed=0).model
    ends = {id(weight) for weight in ends_of(model)}
    names = {name for name, weight in model.named_parameters() if id(weight) in ends}
    assert {"visual.conv1.weight", "token_embedding.weight", "positional_embedding", last} <= names
    inner = {name for name, weight in model.named_parameters() if weight.ndim > 1} - names
    assert inner and all(
        any(part in name for part in ("resblocks", "layer", "attnpool", "visual.conv2", "visual.conv3"))
        for name in inner
    )
    assert not any("resblocks" in name or "layer" in name for name in names)


@pytest.mark.parametrize("config", [RESNET, VIT])
def test_resumed_training_ends_with_equal_weights(config: ClipConfig, drawn, crashing_checkpoints) -> None:
    pictures, captions, _ = drawn
    whole, parts = build_clip(config, captions, seed=3), build_clip(config, captions, seed=3)
    history = train_clip(TRAINING, whole, lambda chosen: pictures[chosen], captions)

    crash = crashing_checkpoints
    with pytest.raises(KeyboardInterrupt):
        train_clip(
            dataclasses.replace(TRAINING, checkpoint_seconds=0.0),
            parts,
            lambda chosen: pictures[chosen],
            captions,
            crash,
        )
    assert crash.state is not None and crash.state["step"] == 10
    fresh = build_clip(config, captions, seed=99)
    crash.stop_after = None
    resumed = train_clip(TRAINING, fresh, lambda chosen: pictures[chosen], captions, crash)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, fresh.state_dict()[name]), name
    assert resumed == history
    # A finished training is not repeated.
    assert train_clip(TRAINING, fresh, lambda chosen: 1 / 0, captions, crash) == history


@pytest.fixture(scope="module")
def trained(drawn) -> tuple[Clip, list[dict[str, float]]]:
    """A CLIP that has learned, and how it did."""
    pictures, captions, _ = drawn
    clip = build_clip(RESNET, captions, seed=0)
    config = dataclasses.replace(TRAINING, steps=100)
    return clip, train_clip(config, clip, lambda chosen: pictures[chosen], captions)


def test_learns_what_drawn_pictures_show(trained, drawn_test) -> None:
    clip, history = trained
    assert history[-1]["loss"] < 0.7 * history[0]["loss"]
    test_pictures, test_captions, _ = drawn_test
    images = clip.encode_images(test_pictures.float() / 255)
    mean, _ = r_precision(
        images, clip.encode_texts([PROMPT + several[0] for several in test_captions]), seed=0
    )
    assert mean > 0.25  # chance is 0.01


@pytest.fixture
def drawn_words(tmp_path: Path) -> str:
    lists = {
        "nouns": [["disc"], ["box"]],
        "verbs": [],
        "colors": [["red"], ["green"], ["blue"]],
        "numbers": [],
    }
    path = tmp_path / "words.json"
    path.write_text(json.dumps(lists))
    return str(path)


def test_training_refuses_swapped_captions_and_repeats_itself(drawn, drawn_words) -> None:
    pictures, captions, _ = drawn
    plain = dataclasses.replace(TRAINING, steps=2)
    hard = dataclasses.replace(plain, hard_negatives=4, swapped_words=drawn_words)
    first, second, third = (
        train_clip(config, build_clip(RESNET, captions, seed=0), lambda chosen: pictures[chosen], captions)
        for config in (plain, hard, hard)
    )
    # 64 own captions and 256 more to refuse, half of the symmetric loss: log(5) / 2 more for an untrained CLIP
    assert second[0]["loss"] - first[0]["loss"] == pytest.approx(np.log(5) / 2, abs=0.2)
    assert second == third


def test_a_clip_that_learned_with_noise_minds_it_less(trained, drawn, drawn_test) -> None:
    pictures, captions, _ = drawn
    test_pictures, test_captions, _ = drawn_test
    clean = test_pictures.float() / 255
    noisy = (clean + 0.15 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)

    hardened = build_clip(RESNET, captions, seed=0)
    config = dataclasses.replace(TRAINING, steps=100, noise=0.15)
    train_clip(config, hardened, lambda chosen: pictures[chosen], captions)

    def lost(clip: Clip) -> float:
        """By how much the mean cosine of pictures and their captions falls once there is noise."""
        own = [texts[0] for texts in test_captions]
        with torch.no_grad():
            texts = clip.encode_texts(own)
            found = [float((texts * clip.encode_images(images)).sum(-1).mean()) for images in (clean, noisy)]
        return found[0] - found[1]

    assert lost(hardened) < 0.7 * lost(trained[0])


def test_swapped_texts_differ_in_a_word_of_a_category_that_is_there(drawn_words) -> None:
    words = read_words(drawn_words)
    swaps = [Swaps(words, category) for category in ("nouns", "verbs", "colors", "numbers")]
    text = "a red disc on the left ."
    found = swapped_texts(text, swaps, 50, np.random.default_rng(0))
    assert set(found) == {
        text.replace("disc", "box"),
        text.replace("red", "green"),
        text.replace("red", "blue"),
    }
    assert len(found) == 50
    assert swapped_texts("nothing .", swaps, 5, np.random.default_rng(0)) == []


def test_the_hard_loss_is_clip_s_with_more_captions_to_refuse() -> None:
    torch.manual_seed(0)
    images, texts, wrong = (normalize(torch.randn(count, 8), dim=-1) for count in (5, 5, 7))
    scale = torch.tensor(9.0)
    plain = ClipLoss()(images, texts, scale)
    torch.testing.assert_close(hard_contrastive_loss(images, texts, wrong[:0], scale), plain)
    expected = 0.0
    for i in range(5):
        to_texts = torch.cat([images[i] @ texts.T, images[i] @ wrong.T]) * scale
        to_images = images @ texts[i] * scale
        expected += (to_texts.logsumexp(0) + to_images.logsumexp(0) - 2 * to_texts[i]) / 10
    torch.testing.assert_close(hard_contrastive_loss(images, texts, wrong, scale), expected)


def test_hard_negatives_need_word_lists() -> None:
    with pytest.raises(UserError, match="swapped_words"):
        dataclasses.replace(TRAINING, hard_negatives=2)
    with pytest.raises(UserError, match="hard_negatives"):
        dataclasses.replace(TRAINING, hard_negatives=-1)


@pytest.mark.parametrize("config", [RESNET, VIT])
def test_saved_and_loaded_clip_gives_equal_embeddings(config: ClipConfig, tmp_path: Path, drawn) -> None:
    pictures, captions, _ = drawn
    clip = build_clip(config, captions, seed=0).eval().requires_grad_(False)
    save_clip(clip, tmp_path / "scorer")
    assert sorted(path.name for path in (tmp_path / "scorer").iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    loaded = load_clip(tmp_path / "scorer")
    texts = [several[0] for several in captions[:9]] + ["an unknown word", ""]
    images = pictures[:9].float() / 255
    assert torch.equal(clip.encode_images(images), loaded.encode_images(images))
    assert torch.equal(clip.encode_texts(texts), loaded.encode_texts(texts))
    assert loaded.config == config and not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("config", [RESNET, VIT])
def test_gradient_reaches_pixels_of_any_size(config: ClipConfig, precision: str, drawn) -> None:
    clip = build_clip(config, drawn[1], seed=0).eval().requires_grad_(False)
    pixels = torch.rand(2, 3, 48, 40, requires_grad=True)
    with autocast_context("cpu", precision):
        embeddings = clip.encode_images(pixels)
        texts = clip.encode_texts(["a red disc", "a blue box"])
    assert embeddings.dtype == torch.float32 and embeddings.shape == (2, 32)
    torch.testing.assert_close(embeddings.norm(dim=-1), torch.ones(2))
    (embeddings * texts).sum().backward()
    assert pixels.grad is not None and (pixels.grad.abs().sum((1, 2, 3)) > 0).all()
    with pytest.raises(TypeError, match="255"):
        clip.encode_images(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))


def test_tokenizer_is_insensitive_to_case_and_cuts_long_texts(drawn) -> None:
    clip = build_clip(RESNET, drawn[1], seed=0)
    assert torch.equal(clip.tokenize(["A Red disc ."]), clip.tokenize(["a red disc."]))
    tokens = clip.tokenize(["red " * 50])
    assert tokens.shape == (1, 20)
    assert int((tokens == clip.model.text_eos_id).sum()) == 1
    assert "[UNK]" not in clip.tokenizer.encode(PROMPT).tokens


def test_a_bad_loss_names_the_step(drawn) -> None:
    pictures, captions, _ = drawn
    clip = build_clip(RESNET, captions, seed=0)
    with torch.no_grad():
        clip.model.logit_scale.fill_(float("nan"))
    with pytest.raises(UserError, match="step 0"):
        train_clip(TRAINING, clip, lambda chosen: pictures[chosen], captions)


def test_missing_files_are_named(tmp_path: Path, drawn) -> None:
    with pytest.raises(UserError, match="config.json is missing"):
        load_clip(tmp_path)
    with pytest.raises(UserError, match="weights.bin is missing"):
        load_pretrained_clip("RN50", tmp_path / "weights.bin")
    with pytest.raises(UserError, match="no model 'RN5'"):
        load_pretrained_clip("RN5", tmp_path / "weights.bin")
    save_clip(build_clip(RESNET, drawn[1], seed=0), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "format": "diptych-clip/0"}))
    with pytest.raises(UserError, match="diptych-clip/0"):
        load_clip(tmp_path)


def test_pretrained_models_have_the_same_interface(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import open_clip

    tiny = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    (tmp_path / "tiny-test.json").write_text(json.dumps(tiny))
    open_clip.add_model_config(tmp_path)
    model = open_clip.create_model("tiny-test").eval()
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    clip = load_pretrained_clip("tiny-test", tmp_path / "weights.pt")
    assert isinstance(clip, Clip) and clip.image_size == 32
    texts = ["a photo of a dog"]
    expected = model.encode_text(open_clip.get_tokenizer("tiny-test")(texts), normalize=True)
    torch.testing.assert_close(clip.encode_texts(texts), expected)
    assert clip.encode_images(torch.rand(2, 3, 40, 40)).shape == (2, 16)
    with pytest.raises(UserError, match="not saved"):
        save_clip(clip, tmp_path / "copy")


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(UserError, match="float8"):
        dataclasses.replace(TRAINING, precision="float8")
