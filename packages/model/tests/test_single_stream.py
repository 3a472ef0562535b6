"""UNITER's single stream: parity with a restatement of its own, the prefix scheme in one plain pass, its checkpoints."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from released_checkpoints import CONFIG, DATA, assert_used_or_listed, checkpoint, run_import
from torch import Tensor

from diptych.model.errors import UserError
from diptych.model.importers.detect import detect_format
from diptych.model.importers.hugging_face import export_lxmert
from diptych.model.importers.uniter import import_uniter
from diptych.model.networks.architectures import build_transformer
from diptych.model.networks.attention import causal_bias
from diptych.model.networks.config import named_config
from diptych.model.networks.single_stream import share_of_cells
from diptych.model.networks.unified import UnifiedTransformer
from diptych.model.pretrained import load_transformer
from diptych.model.tokenizer import SPECIAL_TOKENS, load_tokenizer
from diptych.model.training.initial import with_heads

UNITER = dataclasses.replace(
    CONFIG, architecture="single_stream", layers=2, language_layers=0, visual_layers=0, cross_layers=0
)

VQA_HEAD = (DATA / "uniter_vqa_names.txt").read_text().splitlines()


def released() -> dict[str, Tensor]:
    """Random tensors with the names and shapes of UNITER's own pretraining model, tied as it ties them."""
    tensors = checkpoint("uniter_names.txt")
    tensors["feat_regress.weight"] = tensors["uniter.img_embeddings.img_linear.weight"]
    return tensors


@pytest.fixture
def tensors(tmp_path: Path) -> dict[str, Tensor]:
    tensors = released()
    torch.save(tensors, tmp_path / "uniter-base.pt")
    return tensors


@pytest.fixture
def codebook() -> Tensor:
    return torch.randn(12, 10, generator=torch.Generator().manual_seed(4))


def dense(weights: dict[str, Tensor], name: str, states: Tensor) -> Tensor:
    return states @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def norm(weights: dict[str, Tensor], name: str, states: Tensor) -> Tensor:
    centred = states - states.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-12).sqrt()
    return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def uniter(
    weights: dict[str, Tensor], ids: Tensor, visible: Tensor, features: Tensor, masked: Tensor, heads: int
) -> tuple[Tensor, Tensor]:
    """UNITER restated (Chen et al. 2020, 3.1) from a checkpoint's own tensors: final states of words and of cells."""
    weights = {name.removeprefix("uniter."): tensor for name, tensor in weights.items()}
    n, t = ids.shape
    side = math.isqrt(features.shape[1])
    text = weights["embeddings.word_embeddings.weight"][ids] + weights["embeddings.position_embeddings.weight"][:t]
    text = norm(weights, "embeddings.LayerNorm", text + weights["embeddings.token_type_embeddings.weight"][0])
    seven = [
        (x / side, y / side, (x + 1) / side, (y + 1) / side, 1 / side, 1 / side, 1 / side**2)
        for y in range(side)
        for x in range(side)
    ]
    hidden = weights["img_embeddings.mask_embedding.weight"][1]
    seen = torch.where(masked[..., None], hidden, features)
    image = norm(weights, "img_embeddings.img_layer_norm", dense(weights, "img_embeddings.img_linear", seen))
    places = dense(weights, "img_embeddings.pos_linear", torch.tensor(seven).to(features))
    image = image + norm(weights, "img_embeddings.pos_layer_norm", places)
    image = image + weights["embeddings.token_type_embeddings.weight"][1]
    states = torch.cat([text, norm(weights, "img_embeddings.LayerNorm", image)], 1)
    keys_seen = torch.cat([visible, torch.ones(masked.shape, dtype=torch.bool)], 1)
    for layer in range(2):
        name = f"encoder.layer.{layer}"
        queries, keys, values = (
            dense(weights, f"{name}.attention.self.{part}", states).view(n, -1, heads, states.shape[-1] // heads)
            for part in ("query", "key", "value")
        )
        scores = torch.einsum("nqhd,nkhd->nhqk", queries, keys) / math.sqrt(queries.shape[-1])
        chances = scores.masked_fill(~keys_seen[:, None, None], -torch.inf).softmax(-1)
        mixed = torch.einsum("nhqk,nkhd->nqhd", chances, values).flatten(2)
        mixed = dense(weights, f"{name}.attention.output.dense", mixed)
        states = norm(weights, f"{name}.attention.output.LayerNorm", states + mixed)
        inner = dense(weights, f"{name}.intermediate.dense", states)
        inner = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))
        states = norm(weights, f"{name}.output.LayerNorm", states + dense(weights, f"{name}.output.dense", inner))
    return states[:, :t], states[:, t:]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-10)])
def test_an_imported_checkpoint_is_uniter(tensors, codebook, tmp_path, dtype, tolerance):
    imported = import_uniter(tmp_path / "uniter-base.pt", UNITER, codebook)
    assert_used_or_listed(imported, tensors)
    assert all(name.startswith("region_classifier.") for name in imported.report.unused)
    assert all(name.startswith("code_head.") for name in imported.report.initialised)
    model = imported.model.to(dtype)
    weights = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    torch.manual_seed(1)
    ids = torch.randint(50, (4, 7))
    visible = torch.arange(7) < torch.tensor([[7], [5], [3], [1]])
    features, masked = torch.randn(4, 16, 10, dtype=dtype), torch.rand(4, 16) < 0.4
    text, image = model(ids, visible, features, masked)
    expected_text, expected_image = uniter(weights, ids, visible, features, masked, heads=3)
    torch.testing.assert_close(text[visible], expected_text[visible], rtol=0, atol=tolerance)
    torch.testing.assert_close(image, expected_image, rtol=0, atol=tolerance)

    head = dense(weights, "cls.predictions.transform.dense", expected_text)
    head = norm(weights, "cls.predictions.transform.LayerNorm", F.gelu(head))
    words = head @ weights["uniter.embeddings.word_embeddings.weight"].T + weights["cls.predictions.bias"]
    torch.testing.assert_close(model.word_logits(text)[visible], words[visible], rtol=0, atol=tolerance)
    pooled = dense(weights, "uniter.pooler.dense", expected_text[:, 0]).tanh()
    matching = dense(weights, "itm_output", pooled)
    torch.testing.assert_close(model.matching_logits(text[:, 0]), matching, rtol=0, atol=tolerance)
    regressed = norm(weights, "feat_regress.net.2", F.gelu(dense(weights, "feat_regress.net.0", expected_image)))
    regressed = regressed @ weights["uniter.img_embeddings.img_linear.weight"] + weights["feat_regress.bias"]
    torch.testing.assert_close(model.feature_head(image), regressed, rtol=0, atol=tolerance * 10)

    # what skips the parts that nobody reads gives the same
    cells = torch.tensor([[3, 1, 15]] * 4)
    found = model.paint_logits(*model.encode_text(ids, visible), model.encode_visual(features, masked), cells)
    torch.testing.assert_close(found, model.code_head(expected_image[:, [3, 1, 15]]), rtol=0, atol=tolerance)
    shared = model.visual_projection(model.encode_visual(features, masked))
    for projection in (None, shared):
        first = model.masked_text_states(
            ids, visible, model.encode_visual(features, masked), torch.zeros(4, dtype=torch.long), projection
        )
        torch.testing.assert_close(first, expected_text[:, 0], rtol=0, atol=tolerance)


def one_pass(model: UnifiedTransformer, ids: Tensor, features: Tensor, text_bias: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The prefix scheme as a single pass over text and image, of which a matrix hides the text from the image: states of the
    text, and the attention of each layer, [n, heads, t + v, t + v]."""
    text, image = model.text_embedding(ids), model.encode_visual(features)
    t, v = text.shape[1], image.shape[1]
    hidden = torch.full((len(ids), 1, t + v, t + v), -torch.inf, dtype=text.dtype)
    hidden[:, :, :t, :t] = text_bias
    hidden[..., t:] = 0
    states, attentions = torch.cat([text, image], 1), []
    for layer in model.layers:
        queries, keys, _ = layer.attention.project(states)
        attentions.append((queries @ keys.mT / math.sqrt(queries.shape[-1]) + hidden).softmax(-1))
        states = layer(states, hidden)
    return states[:, :t], attentions


@pytest.mark.parametrize("tiny", ["single_stream"], indirect=True)
def test_the_prefix_scheme_is_one_pass_that_hides_text_from_the_image(tiny):
    model, ids, features = tiny.model.double(), tiny.ids, tiny.features.double()
    keys_values = model.visual_keys_values(model.encode_visual_prefix(features))
    expected, attentions = one_pass(model, ids, features, causal_bias(ids.shape[1], ids.device).double())
    torch.testing.assert_close(model.caption_states(ids, keys_values), expected)
    looked = model.prefix_attention(ids, causal_bias(ids.shape[1], ids.device), keys_values)
    to_cells = [attention[:, :, : ids.shape[1], ids.shape[1] :].mean(1) for attention in attentions]
    to_cells = [weights / weights.sum(-1, keepdim=True) for weights in to_cells]
    torch.testing.assert_close(looked.double(), sum(to_cells) / len(to_cells), rtol=1e-5, atol=1e-6)

    visible = ids != tiny.tokenizer.pad
    bias = torch.zeros(visible.shape, dtype=torch.float64).masked_fill(~visible, -torch.inf)[:, None, None]
    expected, _ = one_pass(model, ids, features, bias)
    torch.testing.assert_close(model.question_states(ids, visible, keys_values), expected[:, 0])
    logits = model.question_word_logits(ids, visible, keys_values, visible)
    torch.testing.assert_close(logits, model.word_logits(expected[visible]))


@pytest.mark.parametrize("tiny", ["single_stream"], indirect=True)
def test_the_masked_schemes_attention_is_that_of_the_layers(tiny):
    """Recomputed from what each layer is given in a plain pass."""
    model, visible, inputs = tiny.model, tiny.ids != tiny.tokenizer.pad, []
    hooks = [layer.register_forward_pre_hook(lambda _, given: inputs.append(given)) for layer in model.layers]
    model(tiny.ids, visible, tiny.features)
    for hook in hooks:
        hook.remove()
    t, shares = tiny.ids.shape[1], []
    for layer, (states, bias) in zip(model.layers, inputs, strict=True):
        queries, keys, _ = layer.attention.project(states)
        weights = (queries @ keys.mT / math.sqrt(queries.shape[-1]) + bias).softmax(-1)[:, :, :t, t:].mean(1)
        shares.append(weights / weights.sum(-1, keepdim=True))
    found = model.masked_attention(tiny.ids, visible, model.encode_visual(tiny.features))
    torch.testing.assert_close(found, sum(shares) / len(shares))


def test_the_size_is_read_off_the_checkpoint_and_base_is_uniters(tmp_path, codebook):
    config = dataclasses.replace(UNITER, hidden_size=64, attention_heads=1, grid_size=8)
    tensors = {
        name: torch.randn([64 if size == 24 else size for size in tensor.shape])
        for name, tensor in released().items()
    }
    tensors["cls.predictions.decoder.weight"] = tensors["uniter.embeddings.word_embeddings.weight"]
    torch.save(tensors, tmp_path / "uniter.pt")
    imported = import_uniter(tmp_path / "uniter.pt", codebook=codebook)
    assert imported.model.config == dataclasses.replace(config, matching=True, regresses=True)
    with torch.device("meta"):
        base = build_transformer(named_config("base", "single_stream"))
    layers = sum(weight.numel() for weight in base.layers.parameters())
    words = base.text_embedding.words.weight.numel()
    assert (round(layers / 1e6), round(words / 1e6)) == (85, 22)  # BERT base, cased


def test_the_command_tells_uniter_and_a_cased_vocabulary(tensors, codebook, tmp_path, capsys):
    (tmp_path / "bert-base-cased").mkdir()
    pieces = [*SPECIAL_TOKENS, ".", "?", "A", "a", "red", "Red", *(f"##{letter}" for letter in "abcdefghij")]
    pieces += [f"w{number}" for number in range(50 - len(pieces))]
    (tmp_path / "bert-base-cased/vocab.txt").write_text("\n".join(pieces) + "\n")
    tokenizer = load_tokenizer(tmp_path / "bert-base-cased")
    assert tokenizer.pieces(["Red red A a"])[0] == [pieces.index(piece) for piece in ("Red", "red", "A", "a")]
    (tmp_path / "bert-base-cased/tokenizer_config.json").write_text('{"model_max_length": 512}')
    assert load_tokenizer(tmp_path / "bert-base-cased").pieces(["Red"]) == [[pieces.index("Red")]]
    (tmp_path / "bert-base-cased/tokenizer_config.json").write_text('{"do_lower_case": true}')
    assert load_tokenizer(tmp_path / "bert-base-cased").pieces(["Red"]) == [[pieces.index("red")]]
    (tmp_path / "bert-base-cased/tokenizer_config.json").unlink()
    source = tmp_path / "uniter-base.pt"
    assert detect_format(source) == "uniter"
    (tmp_path / "size.json").write_text(UNITER.to_json())
    command = ["uniter", str(source), str(tmp_path / "out"), "--size", str(tmp_path / "size.json")]
    command += ["--tokenizer", str(tmp_path / "bert-base-cased")]
    assert run_import(command) == 1
    assert "UNITER has no codebook" in capsys.readouterr().err
    np.save(tmp_path / "codebook.npy", codebook.numpy())
    assert run_import([*command, "--codebook", str(tmp_path / "codebook.npy")]) == 0
    model, _, _ = load_transformer(tmp_path / "out")
    assert model.config.architecture == "single_stream" and model.config.matching


def test_more_token_types_and_a_tie_that_is_stored_once(tensors, codebook, tmp_path):
    """As NLVR2's fine-tuning leaves them, and as safetensors stores one tensor with two names."""
    types = torch.randn(3, 24)
    changed = {**tensors, "uniter.embeddings.token_type_embeddings.weight": types}
    del changed["feat_regress.weight"]
    changed["nlvr2_output.weight"] = torch.randn(2, 48)
    torch.save(changed, tmp_path / "nlvr2.pt")
    imported = import_uniter(tmp_path / "nlvr2.pt", UNITER, codebook)
    assert imported.model.text_embedding.token_types.weight.equal(types[:2])
    features = tensors["uniter.img_embeddings.img_linear.weight"]
    assert imported.model.feature_head.features.weight.equal(features.T)
    assert "other tasks" in imported.report.unused["nlvr2_output.weight"]
    with pytest.raises(UserError, match="UNITER is a single stream"):
        import_uniter(tmp_path / "nlvr2.pt", CONFIG, codebook)


def test_a_single_stream_is_no_lxmert(tensors, codebook, tmp_path):
    imported = import_uniter(tmp_path / "uniter-base.pt", UNITER, codebook)
    with pytest.raises(UserError, match="a single stream cannot be exported"):
        export_lxmert(tmp_path / "out", imported.model, None, imported.codebook)
    assert not (tmp_path / "out").exists()


def test_further_training_leaves_the_head_of_features_out(tensors, codebook, tmp_path):
    """What is painted by then are codes."""
    imported = import_uniter(tmp_path / "uniter-base.pt", UNITER, codebook)
    assert imported.model.feature_head is not None
    assert with_heads(imported.model, 0, matching=True).feature_head is None


def test_shares_of_cells_are_finite_where_words_take_all():
    seen, own = torch.zeros(1, 2, 3, 4), torch.full((1, 2, 3, 5), 200.0)
    seen[..., 1] = 1.0
    shares = share_of_cells(seen, own)
    torch.testing.assert_close(shares, seen.softmax(-1)[:, 0])
    random = torch.randn(1, 2, 3, 4), torch.randn(1, 2, 3, 5)
    plain = torch.cat(random, -1).softmax(-1)[..., :4].mean(1)
    torch.testing.assert_close(share_of_cells(*random), plain / plain.sum(-1, keepdim=True))


def test_a_fine_tuned_answer_head_needs_its_answers(tensors, codebook, tmp_path):
    vqa = {name: tensor for name, tensor in tensors.items() if name.startswith("uniter.")}
    for name, *shape in (line.split() for line in VQA_HEAD):
        vqa[name] = torch.randn(*map(int, shape))
    torch.save(vqa, tmp_path / "vqa.pt")
    (tmp_path / "answers.json").write_text('["", "yes", "no", "2", "red", "blue"]')
    without = import_uniter(tmp_path / "vqa.pt", UNITER, codebook)
    assert without.model.config.answers == 0 and "vqa_output.3.weight" in without.report.unused
    imported = import_uniter(tmp_path / "vqa.pt", UNITER, codebook, tmp_path / "answers.json")
    assert imported.table is not None and len(imported.table) == 6
    assert imported.model.answer_head.answers.weight.equal(vqa["vqa_output.3.weight"])



@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"uniter.img_embeddings.mask_embedding.weight": torch.zeros(3, 10)}, "UNITER's has two rows"),
        ({"uniter.encoder.layer.1.output.dense.bias": None}, "does not fit a transformer of 2 layers.*1 tensors are missing"),
        ({"uniter.img_embeddings.strange": torch.zeros(1)}, "1 tensors are unknown"),
        ({"feat_regress.bias": torch.full((10,), torch.nan)}, "NaN or infinite weights"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_message(tensors, codebook, tmp_path, change, message):
    changed = {name: tensor for name, tensor in {**tensors, **change}.items() if tensor is not None}
    torch.save(changed, tmp_path / "uniter-base.pt")
    with pytest.raises(UserError, match=message):
        import_uniter(tmp_path / "uniter-base.pt", UNITER, codebook)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "three_streams"}, "architecture 'three_streams' is not one of"),
        ({"layers": 0}, "layers of single_stream must be at least 1"),
        ({"cross_layers": 2}, "cross_layers of single_stream must be 0"),
        ({"architecture": "two_streams"}, "must be at least 1|must be 0"),
    ],
)
def test_the_layers_are_those_of_the_architecture(changes, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(UNITER, **changes)
