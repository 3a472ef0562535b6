"""What captioning and painting see of a picture, by the config's `image_features`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from diptych.model import Diptych
from diptych.model.decoding.caption import decode_captions, encode_images
from diptych.model.errors import UserError
from diptych.model.image_features import caption_input, caption_rows
from diptych.model.networks.config import read_config
from diptych.model.objectives.token import paint_loss
from diptych.model.packaged.attention import word_attention
from diptych.model.pretrained import load_transformer
from diptych.model.training.optimisation import add_gradients
from diptych.model.training.sequence import SequenceSteps, SequenceTrainingConfig
from diptych.model.training.token import TokenSteps, TokenTrainingConfig
from diptych.model.training.token_evaluation import EvaluationConfig, TokenEvaluation

COMMON = {
    "steps": 10, "learning_rate": 1e-3, "weight_decay": 0.01, "clip_norm": 1.0, "ema_decay": 0.0, "precision": "float32",
    "seed": 1, "checkpoint_seconds": 1e9, "paint_batch_size": 4, "caption_length": 12, "label_smoothing": 0.1,
    "least_masked": 0.0, "text_drop": 0.1,
}  # fmt: skip
TOKEN = TokenTrainingConfig(
    **COMMON, caption_share=0.4, caption_batch_size=3, captions_per_image=2, warmup_share=0.0
)
SEQUENCE = SequenceTrainingConfig(
    **COMMON, scst_steps=1, clip_steps=1, paint_steps=1, scst_batch_size=4, clip_batch_size=3, sample_temperature=1.0,
    samples_per_image=4, baseline="mean", mask_predict_steps=2, guidance=1.0, gumbel_temperature=1.0,
)  # fmt: skip


TEXTS = ["a red kite floats.", "a green house.", "a kite.", "some boats of blue.", "one green house."]


class SumReward:
    """The sum of a caption's word numbers: nearly every caption has another."""

    def reward(self, image_indices, candidates):
        return np.array([sum(words) for words in candidates], dtype=np.float32)


def set_features(tiny, image_features: str) -> None:
    tiny.config = dataclasses.replace(tiny.config, image_features=image_features)
    tiny.model.config = tiny.config


def gradient(tiny, steps, number: int) -> torch.Tensor:
    """The gradient of one step, with the same choices of captions and masks every time."""
    torch.manual_seed(7)
    tiny.model.zero_grad()
    add_gradients(steps.pieces(number, steps.read(number)))
    return torch.cat([p.grad.flatten() for p in tiny.model.parameters() if p.grad is not None])


def token_steps(tiny) -> TokenSteps:
    return TokenSteps(TOKEN, tiny.model, tiny.tokenizer, tiny.codebook, tiny.train)


def sequence_steps(tiny) -> SequenceSteps:
    return SequenceSteps(
        SEQUENCE, tiny.model, tiny.tokenizer, tiny.codebook, tiny.train, SumReward(), tiny.generator, tiny.scorer
    )  # fmt: skip


def test_discrete_captions_depend_on_the_codes_alone(tiny) -> None:
    """Features moved without reaching another centroid give the same caption; by two-level features another one."""
    codes = torch.arange(48).view(3, 16) % 12
    features = tiny.codebook[codes]
    moved = features + 0.05 * torch.randn_like(features)

    def written(rows: torch.Tensor) -> torch.Tensor:
        images = encode_images(tiny.model, caption_input(tiny.model.config, tiny.codebook, rows))
        return decode_captions(tiny.model, tiny.tokenizer, images, 12).log_probabilities

    assert not written(features).equal(written(moved))
    set_features(tiny, "discrete")
    assert written(features).equal(written(moved)) and written(features).equal(written(codes))
    assert caption_rows(tiny.config, tiny.train)([0]).dtype == tiny.train.codes([0]).dtype


@pytest.mark.parametrize("steps_of", [token_steps, sequence_steps])
@pytest.mark.parametrize("image_features", ["two_level", "dense", "discrete"])
def test_trainings_read_what_the_config_says(tiny, steps_of, image_features: str) -> None:
    """A changed grid feature changes captioning's gradient unless it reads codes, and painting's only where visible cells
    show features."""
    set_features(tiny, image_features)
    steps = steps_of(tiny)
    # of the steps of a cycle, captioning and token-level painting
    tasks = {"caption": 2, "paint": 0} if steps_of is token_steps else {"caption": 0, "paint": 2}
    before = {task: gradient(tiny, steps, number) for task, number in tasks.items()}
    tiny.train._grid = tiny.train._grid + 1
    after = {task: gradient(tiny, steps, number) for task, number in tasks.items()}
    assert before["caption"].equal(after["caption"]) == (image_features == "discrete")
    assert before["paint"].equal(after["paint"]) == (image_features != "dense")
    tiny.train._codes = (tiny.train._codes + 1) % 12
    changed = {task: gradient(tiny, steps, number) for task, number in tasks.items()}
    assert changed["caption"].equal(after["caption"]) == (image_features != "discrete")
    assert not changed["paint"].equal(after["paint"]), "targets are codes"


def test_dense_paintings_train_in_pieces_as_in_one(tiny) -> None:
    set_features(tiny, "dense")
    whole = gradient(tiny, token_steps(tiny), 0)
    config = dataclasses.replace(TOKEN, accumulation=2)
    steps = TokenSteps(config, tiny.model, tiny.tokenizer, tiny.codebook, tiny.train)
    torch.testing.assert_close(gradient(tiny, steps, 0), whole, rtol=1e-4, atol=1e-6)


def test_dense_painting_sees_features_of_visible_cells_only(tiny) -> None:
    codes, masked = torch.arange(48).view(3, 16) % 12, torch.rand(3, 16) < 0.5

    def loss(features: torch.Tensor | None) -> torch.Tensor:
        return paint_loss(tiny.model, tiny.tokenizer, tiny.codebook, codes, tiny.ids, masked, 0.1, features)

    inside = tiny.features + masked[..., None]
    outside = tiny.features + ~masked[..., None]
    assert loss(tiny.features).equal(loss(inside)) and not loss(tiny.features).equal(loss(outside))
    assert loss(tiny.codebook[codes]).equal(loss(None))


def test_losses_meanwhile_are_of_what_is_trained(tiny) -> None:
    """Dense painting's loss and discrete captioning's are those of features and codes; the others stay."""
    figures = {}
    for name in ("two_level", "dense", "discrete"):
        set_features(tiny, name)
        config = EvaluationConfig(every=1, images=4, samples=2, mask_predict_steps=2, guidance=1.0)
        evaluation = TokenEvaluation(config, TOKEN, tiny.model, tiny.tokenizer, tiny.codebook, tiny.train)
        figures[name], samples = evaluation.evaluate()
        assert len(samples) == 2
    losses = {name: (row["val_caption_loss"], row["val_paint_loss"]) for name, row in figures.items()}
    assert losses["dense"][0] == losses["two_level"][0] != losses["discrete"][0]
    assert losses["discrete"][1] == losses["two_level"][1] != losses["dense"][1]


@pytest.mark.parametrize("parts", ["discrete"], indirect=True, scope="session")
def test_a_packaged_model_captions_by_codes(diptych: Diptych, package: Path, pictures) -> None:
    model, tokenizer, codebook = load_transformer(package)
    assert model.config.image_features == "discrete"
    with torch.inference_mode():
        images = encode_images(model, codebook[diptych.codes(pictures)])
        written = decode_captions(model, tokenizer, images, 12)
        looks = word_attention(model, tokenizer, images, tokenizer.encode(TEXTS, 12))
    assert [one.text for one in diptych.caption(pictures)] == [tokenizer.decode(row) for row in written.ids]
    for found, expected in zip(diptych.attention(pictures, TEXTS), looks, strict=True):
        torch.testing.assert_close(found.weights, expected.weights, rtol=1e-4, atol=1e-5)


def test_old_configs_are_two_level_and_wrong_ones_are_named(tiny, tmp_path: Path) -> None:
    values = json.loads(tiny.config.to_json())
    old = {name: value for name, value in values.items() if name != "image_features"}
    file = tmp_path / "config.json"
    file.write_text(json.dumps(old))
    assert read_config(file) == tiny.config and tiny.config.image_features == "two_level"
    file.write_text(json.dumps({**old, "image_features": "sparse"}))
    with pytest.raises(UserError, match="image_features 'sparse' is not one of"):
        read_config(file)
    del old["grid_size"]
    file.write_text(json.dumps(old))
    with pytest.raises(UserError, match=r"missing keys \['grid_size'\]"):
        read_config(file)
