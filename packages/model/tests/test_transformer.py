"""The architecture: parity with Hugging Face's LXMERT, and the prefix scheme."""

from __future__ import annotations

import dataclasses
import itertools
import subprocess
import sys
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch
from architectures import both_architectures

from diptych.model.errors import UserError
from diptych.model.importers.names import lxmert_names
from diptych.model.networks.architectures import build_transformer
from diptych.model.networks.config import named_config
from diptych.model.networks.embeddings import grid_boxes


@pytest.fixture
def lxmert(tiny):
    """Hugging Face's LxmertModel with random weights, and ours with the same."""
    from transformers import LxmertConfig, LxmertModel

    config = dataclasses.replace(tiny.config, language_layers=2, visual_layers=2, vocab_size=50)
    reference = LxmertModel(
        LxmertConfig(
            vocab_size=50,
            hidden_size=24,
            num_attention_heads=3,
            intermediate_size=40,
            l_layers=2,
            r_layers=2,
            x_layers=2,
            visual_feat_dim=10,
            max_position_embeddings=20,
        )
    ).eval()
    for parameter in reference.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    for table in reference.embeddings.children():
        if isinstance(table, torch.nn.Embedding):
            table.padding_idx = None  # their first row never trains; ours does
    model = build_transformer(config).eval()
    names = lxmert_names(config)
    tensors = reference.state_dict()
    weights = {
        ours: torch.cat([tensors[name] for name in theirs])
        for ours, theirs in names.items()
        if theirs[0] in tensors
    }
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected
    heads_and_buffers = ("word_", "code_head", "visual_embedding.mask", "visual_embedding.feature_m")
    heads_and_buffers += ("visual_embedding.feature_s", "visual_embedding.grid")
    assert all(name.startswith(heads_and_buffers) for name in missing)
    unread = {name for name in tensors if not name.startswith("pooler.")} - set(
        itertools.chain(*names.values())
    )
    assert not unread
    return SimpleNamespace(reference=reference, model=model, names=names)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-10)])
@pytest.mark.parametrize("seed", range(3))
def test_equals_hugging_face_lxmert_and_its_gradients(lxmert, dtype, tolerance, seed):
    """Random texts of random lengths with random words hidden; all gradients of a random sum of both outputs."""
    torch.manual_seed(seed)
    reference, model = lxmert.reference.to(dtype), lxmert.model.to(dtype)
    ids = torch.randint(1, 50, (4, 9))
    visible = torch.rand(4, 9) < 0.6
    visible &= torch.arange(9) < torch.randint(2, 10, (4, 1))
    visible[:, 0] = True
    visible[3] = seed != 0  # all words of one text hidden: they are attended to evenly
    features = torch.randn(4, 16, 10, dtype=dtype, requires_grad=True)
    other_features = features.detach().clone().requires_grad_()
    boxes = grid_boxes(4).to(dtype).expand(4, 16, 4)
    expected = reference(
        input_ids=ids, attention_mask=visible.to(dtype), visual_feats=other_features, visual_pos=boxes
    )
    text, visual = model(ids, visible, features)
    torch.testing.assert_close(text, expected.language_output, rtol=0, atol=tolerance)
    torch.testing.assert_close(visual, expected.vision_output, rtol=0, atol=tolerance)
    # The painting path skips what nobody reads of the last layer: its text half, its cells left alone.
    cells = torch.tensor([[3, 1, 15]] * 4)
    painted = model.paint_logits(*model.encode_text(ids, visible), model.encode_visual(features), cells)
    expected_logits = model.code_head(expected.vision_output[:, [3, 1, 15]])
    torch.testing.assert_close(painted, expected_logits, rtol=0, atol=tolerance)

    text_weights, visual_weights = torch.randn_like(text), torch.randn_like(visual)
    ((text * text_weights).sum() + (visual * visual_weights).sum()).backward()
    outputs = expected.language_output * text_weights, expected.vision_output * visual_weights
    (outputs[0].sum() + outputs[1].sum()).backward()
    theirs = {name: parameter.grad for name, parameter in reference.named_parameters()}
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    compared = 0
    for ours, sources in lxmert.names.items():
        if sources[0] in theirs:
            joined = torch.cat([theirs[name] for name in sources])
            torch.testing.assert_close(gradients[ours], joined, rtol=tolerance, atol=tolerance)
            compared += 1
    assert compared == len(lxmert.names) - 12  # all but both heads and the mask feature
    torch.testing.assert_close(features.grad, other_features.grad, rtol=tolerance, atol=tolerance)


@both_architectures
def test_fused_attention_of_gpus_equals_the_explicit_one(tiny, monkeypatch):
    import diptych.model.networks.attention as module

    visible = tiny.ids != tiny.tokenizer.pad
    explicit = tiny.model(tiny.ids, visible, tiny.features)
    fused = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(module, "scaled_dot_product", lambda q, k, v, bias, p, _: fused(q, k, v, bias, p))
    for one, other in zip(tiny.model(tiny.ids, visible, tiny.features), explicit, strict=True):
        torch.testing.assert_close(one, other)


@both_architectures
def test_teacher_forced_logits_equal_cached_decoding(tiny):
    model = tiny.model
    with torch.no_grad():
        prefix = model.encode_visual_prefix(tiny.features)
        expected = model.caption_logits(tiny.ids, prefix)
        caches, pairs = model.caption_caches(tiny.ids.shape[1]), model.visual_keys_values(prefix)
        steps = [model.caption_states(tiny.ids[:, i, None], pairs, caches) for i in range(tiny.ids.shape[1])]
        logits = model.word_logits(torch.cat(steps, 1))
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


@both_architectures
def test_a_future_word_changes_no_earlier_logit(tiny):
    prefix = tiny.model.encode_visual_prefix(tiny.features)
    before = tiny.model.caption_logits(tiny.ids, prefix)
    changed = tiny.ids.clone()
    changed[:, 4] = tiny.tokenizer.mask
    after = tiny.model.caption_logits(changed, prefix)
    assert torch.equal(after[:, :4], before[:, :4])
    assert not torch.allclose(after[:, 4:], before[:, 4:])


@both_architectures
def test_captions_of_one_image_share_its_visual_states_and_gradients(tiny):
    """Five captions over one visual pass give what five separate passes give; text never reaches the image."""
    model, images = tiny.model, tiny.features[:2]
    ids = tiny.ids[[0, 1, 2, 2, 1, 0]]  # three captions for each of two images

    def states_and_gradient(features, repeats):
        features = features.clone().requires_grad_()
        shared = model.encode_visual_prefix(features)
        states = model.caption_states(ids, model.visual_keys_values(shared))
        states.square().sum().backward()
        return states.detach(), features.grad.view(2, repeats, *features.shape[1:]).sum(1)

    states, gradient = states_and_gradient(images, 1)
    expected, expected_gradient = states_and_gradient(images.repeat_interleave(3, 0), 3)
    torch.testing.assert_close(states, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-3, atol=1e-4)


@both_architectures
def test_padding_and_the_hidden_cells_do_not_reach_paintings(tiny):
    model, masked = tiny.model, torch.zeros(3, 16, dtype=torch.bool)
    masked[:, ::2] = True

    def logits(ids, features):
        text, bias = model.encode_text(ids, tiny.ids != tiny.tokenizer.pad)
        return model.paint_logits(text, bias, model.encode_visual(features, masked), masked)

    before = logits(tiny.ids, tiny.features)
    padding = torch.where(tiny.ids == tiny.tokenizer.pad, tiny.tokenizer.mask, tiny.ids)
    other = torch.where(masked[..., None], torch.randn_like(tiny.features), tiny.features)
    torch.testing.assert_close(logits(padding, other), before)
    assert not torch.allclose(logits(tiny.ids, tiny.features + 1), before)


@both_architectures
def test_both_kinds_of_positions_give_the_same_logits(tiny):
    model, masked = tiny.model, torch.zeros(3, 16, dtype=torch.bool)
    masked[:, 3:8] = True
    text, bias = model.encode_text(tiny.ids, tiny.ids != tiny.tokenizer.pad)
    visual = model.encode_visual(tiny.features, masked)
    dense = model.paint_logits(text, bias, visual, torch.arange(3, 8).expand(3, 5))
    assert dense.shape == (3, 5, 12)
    torch.testing.assert_close(model.paint_logits(text, bias, visual, masked), dense.flatten(0, 1))


@both_architectures
def test_standardised_input_forgets_scale_and_shift(tiny):
    visual = tiny.model.encode_visual(tiny.codebook[None, :12].repeat(1, 2, 1)[:, :16])
    tiny.model.set_codebook(tiny.codebook * 100 - 7)
    moved = tiny.model.encode_visual((tiny.codebook * 100 - 7)[None, :12].repeat(1, 2, 1)[:, :16])
    torch.testing.assert_close(moved, visual, rtol=1e-3, atol=1e-4)


def test_tied_code_head_holds_the_frozen_codebook(tiny):
    model = build_transformer(dataclasses.replace(tiny.config, code_head="codebook"))
    model.set_codebook(tiny.codebook)
    scale = model.visual_embedding.feature_scale
    torch.testing.assert_close(model.code_head.codes.weight * scale + tiny.codebook.mean(0), tiny.codebook)
    assert not model.code_head.codes.weight.requires_grad


def test_paper_size_counts_as_228_million():
    """The parts that TransformerConfig names, in millions; the papers' figure leaves out what LXMERT has besides."""
    with torch.device("meta"):
        model = build_transformer(named_config("base"))

    def millions(module):
        return round(sum(parameter.numel() for parameter in module.parameters()) / 1e6, 1)

    counted = {
        "language": millions(model.language_layers),
        "cross": millions(model.cross_layers),
        "visual": millions(model.visual_layers),
        "words": millions(model.text_embedding.words),
        "codes": millions(model.code_head),
    }
    assert counted == {"language": 63.8, "cross": 82.7, "visual": 35.4, "words": 23.4, "codes": 22.7}
    assert round(sum(counted.values())) == 228
    assert round(millions(model) - sum(counted.values()), 1) == 2.6
    text, words = model.text_embedding, model.text_embedding.words
    rest = millions(text) - millions(words), millions(model.visual_embedding), millions(model.word_transform)
    assert [round(part, 1) for part in rest] == [0.4, 1.6, 0.6]


def test_grid_boxes_are_row_major():
    boxes = grid_boxes(8)
    assert boxes[1].tolist() == [0.125, 0.0, 0.25, 0.125]
    assert boxes[8].tolist() == [0.0, 0.125, 0.125, 0.25]


def test_cell_positions_tell_rows_and_columns_apart(tiny):
    torch.manual_seed(0)
    embedding = build_transformer(dataclasses.replace(tiny.config, cell_positions=True)).visual_embedding
    features, masked = torch.zeros(1, 16, 10), torch.ones(1, 16, dtype=torch.bool)
    before = embedding(features, masked, torch.zeros(24))[0]
    with torch.no_grad():
        embedding.rows.weight[2] += torch.randn(24)
        embedding.columns.weight[3] += torch.randn(24)
    changed = (embedding(features, masked, torch.zeros(24))[0] - before).abs().amax(1) > 1e-4
    assert changed.view(4, 4).tolist() == [[c == 3 or r == 2 for c in range(4)] for r in range(4)]


def test_config_errors_name_the_key(tiny):
    with pytest.raises(UserError, match="attention_heads"):
        dataclasses.replace(tiny.config, attention_heads=5)
    with pytest.raises(UserError, match="vocab_size"):
        named_config("toybox")
    with pytest.raises(UserError, match="known sizes"):
        named_config("huge")


@both_architectures
def test_features_of_another_grid_and_nan_are_one_message(tiny):
    with pytest.raises(UserError, match=r"\[n, 16, 10\].*\[3, 9, 10\]"):
        tiny.model.encode_visual(tiny.features[:, :9])
    with pytest.raises(UserError, match=r"\[3, 16, 7\]"):
        tiny.model.encode_visual(tiny.features[..., :7])
    broken = tiny.features.clone()
    broken[2, 5, 1] = float("nan")
    with torch.no_grad(), pytest.raises(UserError, match="row 2"):
        tiny.model.encode_visual(broken)


@both_architectures
def test_a_text_beyond_the_position_table_is_one_message(tiny):
    ids = torch.full((1, 21), tiny.tokenizer.cls)
    with pytest.raises(UserError, match="21 tokens.*20 text positions"):
        tiny.model.encode_text(ids, None)


# Refuses to import whatever torch, numpy and transformers do not themselves require, and the other packages of diptych.
ONLY_THREE_LIBRARIES = """
import importlib.metadata, sys
from packaging.requirements import Requirement

def required(name, found):
    if name not in found:
        found.add(name)
        try:
            lines = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            lines = []
        for requirement in map(Requirement, lines):
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                required(requirement.name.lower().replace("_", "-"), found)
    return found

distributions = set()
for name in ("torch", "numpy", "transformers"):
    required(name, distributions)
modules = importlib.metadata.packages_distributions()
absent = {
    module
    for module, owners in modules.items()
    if distributions.isdisjoint(owner.lower().replace("_", "-") for owner in owners) and module != "diptych"
}
absent |= {"diptych.features", "diptych.eval"}

class Present:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        parts = name.split(".")
        refused = parts[0] in absent or ".".join(parts[:2]) in absent
        return None if refused else self.finder.find_spec(name, path, target)

sys.meta_path[:] = map(Present, sys.meta_path)
"""


def test_captions_and_paintings_need_only_torch_numpy_and_transformers():
    script = f"""{ONLY_THREE_LIBRARIES}
import torch
import diptych.model.decoding.rerank, diptych.model.importers.convert, diptych.model.pretrained
from diptych.model.networks.config import named_config
from diptych.model.decoding.decode import caption_images, paint_captions
from diptych.model.decoding.options import CaptionOptions, PaintOptions
from diptych.model.inference.transformer import inference_transformer
from diptych.model.tokenizer import build_tokenizer
from diptych.model.networks.architectures import build_transformer
tokenizer = build_tokenizer(["a red kite."], 1)
sizes = dict(vocab_size=len(tokenizer), codebook_size=12, feature_dim=10)
model = inference_transformer(build_transformer(named_config("smoke", **sizes)))
cells = model.config.cells
print(caption_images(model, tokenizer, torch.randn(2, cells, 10), CaptionOptions(length=8)).ids.shape)
ids = tokenizer.encode(["a kite"], 8)
print(paint_captions(model, tokenizer, torch.randn(12, 10), ids, PaintOptions()).codes.shape)
print(sorted({{"ray", "faiss", "pyarrow", "PIL", "safetensors"}} & absent))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    captions, paintings, refused = done.stdout.splitlines()
    assert captions == "torch.Size([2, 8])" and paintings.startswith("torch.Size([1, ")
    assert "safetensors" not in refused and (find_spec("ray") is None or "ray" in refused)


def test_the_codebook_s_statistics_do_not_depend_on_threads() -> None:
    """A run's checkpoints are found by its initial weights: with another number of threads they have to be the same."""
    generator = torch.Generator().manual_seed(0)
    codebooks = [torch.rand(512, 128, generator=generator).exp() for _ in range(20)]
    config = named_config("toybox", vocab_size=9, codebook_size=512, feature_dim=128)
    model = build_transformer(config)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            for codebook in codebooks:
                model.set_codebook(codebook)
                embedding = model.visual_embedding
                found.append(torch.cat([embedding.feature_mean, embedding.feature_scale[None]]))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(torch.stack(found[:20]), torch.stack(found[20:]))
