"""Training that starts from a model directory; data that do not fit the model."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from diptych.model.errors import UserError
from diptych.model.networks import config as configs
from diptych.model.pretrained import save_transformer
from diptych.model.training import initial
from diptych.model.training.config import LoopConfig
from diptych.model.training.initial import initial_transformer, random_transformer
from diptych.model.training.token import TokenTrainingConfig, train_token

TOKEN = TokenTrainingConfig(
    **dataclasses.asdict(
        LoopConfig(
            steps=2, learning_rate=1e-3, clip_norm=1.0, ema_decay=0.0, precision="float32", seed=0,
            checkpoint_seconds=1e9,
        )
    ),
    caption_share=0.5,
    caption_batch_size=2,
    captions_per_image=1,
    paint_batch_size=2,
    caption_length=12,
    warmup_share=0.0,
    label_smoothing=0.1,
    least_masked=0.0,
    text_drop=0.0,
)  # fmt: skip


@pytest.fixture
def imported(tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model directory with raw visual input, as imported checkpoints have; its size is named `tiny`."""
    tiny.model.visual_embedding.feature_mean.zero_()
    tiny.model.visual_embedding.feature_scale.fill_(1)
    save_transformer(tmp_path / "imported", tiny.model, tiny.tokenizer, tiny.codebook)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/two_streams_tiny.json").write_text(tiny.config.to_json())
    monkeypatch.setattr(configs, "CONFIG_FOLDER", tmp_path / "configs")
    monkeypatch.setattr(configs, "SIZES", ("tiny",))
    return tmp_path / "imported"


def captions(tiny) -> list[str]:
    return [text for index in range(len(tiny.train)) for text in tiny.train.captions(index)]


def test_training_starts_from_the_imported_weights_and_input(tiny, imported: Path) -> None:
    before = {name: tensor.clone() for name, tensor in tiny.model.state_dict().items()}
    model, tokenizer = initial_transformer(
        imported, "tiny", "two_streams", "prefix", "two_level", captions(tiny), tiny.codebook
    )
    assert tokenizer.encode(captions(tiny), 12).equal(tiny.tokenizer.encode(captions(tiny), 12))
    for name, tensor in model.state_dict().items():
        assert tensor.equal(before[name]), name
    train_token(TOKEN, model, tokenizer, tiny.codebook, tiny.train, None, "cpu")
    embedding = model.visual_embedding
    assert embedding.feature_scale == 1 and not embedding.feature_mean.any(), "the raw input stays raw"
    assert not embedding.features.weight.equal(before["visual_embedding.features.weight"])


def test_random_weights_know_the_codebook(tiny, imported: Path) -> None:
    model, tokenizer = random_transformer(
        "tiny", "two_streams", "masked", "discrete", captions(tiny), 1, tiny.codebook, seed=3
    )
    again, _ = random_transformer("tiny", "two_streams", "masked", "discrete", captions(tiny), 1, tiny.codebook, seed=3)
    assert all(
        a.equal(b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True)
    )
    assert torch.allclose(model.visual_embedding.feature_mean, tiny.codebook.mean(0))
    assert len(tokenizer) == model.config.vocab_size
    assert model.config.caption_attention == "masked" and model.config.image_features == "discrete"


def test_an_imported_model_can_train_by_the_other_attention(tiny, imported: Path) -> None:
    prefix, tokenizer = initial_transformer(
        imported, "tiny", "two_streams", "prefix", "two_level", captions(tiny), tiny.codebook
    )
    masked, _ = initial_transformer(imported, "tiny", "two_streams", "masked", "two_level", captions(tiny), tiny.codebook)
    losses = [
        train_token(TOKEN, model, tokenizer, tiny.codebook, tiny.train, None, "cpu").history[-1][
            "caption_loss"
        ]
        for model in (prefix, masked)
    ]
    assert losses[0] != losses[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"network": {"architecture": "single_stream", "layers": 4, "language_layers": 0, "visual_layers": 0, "cross_layers": 0}},
            "architecture two_streams instead of single_stream, language_layers 1 instead of 0",
        ),
        ({"network": {"hidden_size": 48}}, "initial: .*imported is not of the size tiny: hidden_size 24 instead of 48"),
        ({"codebook": torch.zeros(12, 10)}, "was made with another codebook than the cluster stage's: its codes"),
        ({"codebook": torch.zeros(9, 10)}, r"another codebook .*\(K, D \(12, 10\), not \(9, 10\)\)"),
        ({"captions": ["ein 赤い凧 überall"] * 4}, r"the vocabulary of .*imported lacks \d+ of \d+ words"),
        ({"remove": "model.safetensors"}, "model.safetensors: no such file"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_message(
    change: dict[str, Any], message: str, tiny, imported: Path, tmp_path: Path
) -> None:
    if "network" in change:
        values = json.loads(tiny.config.to_json()) | change["network"]
        (tmp_path / "configs/two_streams_tiny.json").write_text(json.dumps(values))
    if "remove" in change:
        (imported / change["remove"]).unlink()
    with pytest.raises(UserError, match=message) as caught:
        initial_transformer(
            imported,
            "tiny",
            "two_streams",
            "prefix",
            "two_level",
            change.get("captions", captions(tiny)),
            change.get("codebook", tiny.codebook),
        )
    assert str(imported) in str(caught.value)


def test_a_few_unknown_characters_are_no_reason_to_stop(tiny, imported: Path) -> None:
    assert initial.MOST_UNKNOWN == 0.01
    initial_transformer(
        imported, "tiny", "two_streams", "prefix", "two_level", captions(tiny) * 30 + ["a red 凧."], tiny.codebook
    )


def test_data_of_another_size_than_the_model_are_named(tiny) -> None:
    tiny.train._grid = tiny.train._grid[:, :9]
    message = re.escape(
        "image 000000: grid features of (9, 10) cells and numbers, but the transformer was built for (16, 10)"
    )
    with pytest.raises(UserError, match=message):
        train_token(TOKEN, tiny.model, tiny.tokenizer, tiny.codebook, tiny.train, None, "cpu")


@pytest.mark.parametrize("length", [2, 21])
def test_a_caption_length_beyond_the_positions_is_named(length: int, tiny) -> None:
    with pytest.raises(
        UserError, match=f"caption_length must be from 3 to .* 20 text positions, is {length}"
    ):
        train_token(
            dataclasses.replace(TOKEN, caption_length=length),
            tiny.model, tiny.tokenizer, tiny.codebook, tiny.train, None, "cpu",
        )  # fmt: skip
