"""Both tasks against an independent restatement of the reference code: Hugging Face's LXMERT with both heads on all
positions, a full forward pass for every step (benchmarks/reference_model.py). In float64, so that nothing hangs on ties."""

from __future__ import annotations

import copy
import dataclasses
import functools
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from architectures import both_architectures

from benchmarks import model as benchmark
from benchmarks.reference_model import ReferenceModel
from diptych.model.decoding.caption import decode_captions, encode_images
from diptych.model.decoding.decisions import PAPER, REFERENCE
from diptych.model.decoding.paint import paint_codes
from diptych.model.importers.checkpoint import build
from diptych.model.importers.names import common_names
from diptych.model.importers.x_lxmert import GENERATE_IT_NAMES, UNTRAINED
from diptych.model.inference.transformer import inference_transformer
from diptych.model.objectives.token import (
    masked_caption_loss,
    paint_loss,
    sample_mask,
    sample_positions,
)


def build_pair(tiny, seed):
    """Reference and ours with the same random weights, in float64; 16 cells, 60 codes. Biases are 0 and the layers'
    outputs small, or else random networks write the same word everywhere."""
    torch.manual_seed(seed)
    config = dataclasses.replace(tiny.config, code_head="features", language_layers=2, codebook_size=60)
    config = dataclasses.replace(config, caption_attention="masked")
    reference = ReferenceModel(config, torch.randn(60, 10) * 3, std=0.3).eval()
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            elif name.startswith("encoder") and name.endswith("output.dense.weight"):
                parameter.normal_(std=0.1)
        bias = reference.classifier.predictions.bias
        bias[[tiny.tokenizer.stop, tiny.tokenizer.unk]] += 1.5
    for table in reference.embedding_layer.children():
        if isinstance(table, torch.nn.Embedding):
            table.padding_idx = None  # their first row never trains; ours does
    tensors = {name: tensor.clone() for name, tensor in reference.state_dict().items()}
    imported = build(Path("reference"), common_names(tensors, GENERATE_IT_NAMES), config, None, unused=UNTRAINED)
    return SimpleNamespace(
        reference=reference.double(),
        model=imported.model.double(),
        codebook=imported.codebook.double(),
        features=torch.randn(6, 16, 10, dtype=torch.float64) * 3,
    )


@pytest.fixture
def pair(tiny):
    return build_pair(tiny, 1)


def test_masked_captions_are_the_references_word_for_word(tiny):
    tokenizer, words = tiny.tokenizer, 9
    special = tokenizer.forbidden[1:]  # all but [PAD]
    lengths, written = set(), set()
    for seed in range(6):
        pair = build_pair(tiny, seed)
        expected = pair.reference.write(
            pair.features, words, tokenizer.cls, tokenizer.sep, tokenizer.mask, tokenizer.stop
        )
        with torch.no_grad():
            visual = pair.model.encode_visual(pair.features)
        captions = decode_captions(pair.model, tokenizer, [visual], words + 2, decisions=REFERENCE)
        for ours, theirs in zip(captions.ids.tolist(), expected.tolist(), strict=True):
            stop = theirs.index(tokenizer.stop) if tokenizer.stop in theirs else words
            assert ours == [*theirs[: stop + 1], tokenizer.sep] + [tokenizer.pad] * (words - stop)
            lengths.add(stop)
            written |= set(theirs[1 : stop + 1])
        paper = decode_captions(pair.model, tokenizer, [visual], words + 2, decisions=PAPER)
        assert not torch.isin(paper.ids[paper.log_probabilities != 0], tokenizer.forbidden).any()
    # The networks wrote many words, special ones among them, and captions of several lengths.
    assert len(lengths) > 2 and len(written) > 20 and written & set(special.tolist())


def test_painted_codes_are_the_references(tiny):
    used, others = set(), 0
    for seed in range(6):
        pair = build_pair(tiny, seed)
        for steps in (1, 3, 4, 7):
            expected, _ = pair.reference.paint(tiny.ids, tiny.tokenizer.pad, steps)
            reference, paper = (
                paint_codes(
                    pair.model, tiny.tokenizer, pair.codebook, tiny.ids, steps=steps, decisions=decisions
                )
                for decisions in (REFERENCE, PAPER)
            )
            assert reference.codes.equal(expected)
            used |= set(expected.unique().tolist())
            others += not paper.codes.equal(expected)
    assert len(used) > 10 and others > 3  # many codes, and the rule matters


def gradients(model):
    return {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for name, parameter in model.named_parameters()
    }


def assert_same_gradients(pair):
    """Bring the reference's gradients to our names by importing them as if they were weights."""
    theirs = {name: tensor.float() for name, tensor in gradients(pair.reference).items()}
    theirs["cluster_codebook.weight"] = pair.codebook.float()
    imported = build(Path("gradients"), common_names(theirs, GENERATE_IT_NAMES), pair.model.config, None, unused=UNTRAINED)
    expected = dict(imported.model.named_parameters())
    nonzero = 0
    for name, gradient in gradients(pair.model).items():
        torch.testing.assert_close(gradient.float(), expected[name].detach(), rtol=1e-5, atol=1e-6)
        nonzero += bool(gradient.any())
    assert nonzero > 60


def test_masked_caption_loss_and_gradients_are_the_references(tiny, pair):
    tokenizer = tiny.tokenizer
    ids = tokenizer.encode([*tiny.texts, "a kite."], 12)
    positions = torch.tensor([1, 4, 5, 3])
    features = pair.features[:4]
    expected = pair.reference.caption_loss(features, ids, positions, tokenizer.mask, 0.2)
    loss = masked_caption_loss(
        pair.model, tokenizer, encode_images(pair.model, features), ids[:, None], positions[:, None], 0.2
    )
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)  # the loss itself is taken in float32
    expected.backward()
    loss.backward()
    assert_same_gradients(pair)
    assert all(parameter.grad is None for parameter in pair.model.code_head.parameters())


def test_painting_loss_and_gradients_are_the_references(tiny, pair):
    torch.manual_seed(2)
    codes, masked = torch.randint(60, (3, 16)), sample_mask(3, 16)
    expected = pair.reference.paint_loss(codes, tiny.ids, masked, tiny.tokenizer.pad, 0.2)
    loss = paint_loss(pair.model, tiny.tokenizer, pair.codebook, codes, tiny.ids, masked, 0.2)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    expected.backward()
    loss.backward()
    assert_same_gradients(pair)


def test_masked_captions_of_one_image_share_its_visual_layers(tiny):
    """c captions per image give the loss and gradients of c separate images."""
    ids = tiny.ids[[0, 1, 2, 2, 1, 0]].view(2, 3, -1)
    positions = torch.tensor([[1, 3, 2], [4, 2, 5]])
    features = tiny.features[:2]
    parameters = list(tiny.model.visual_layers.parameters())

    def loss_and_gradients(features, ids, positions):
        loss = masked_caption_loss(
            tiny.model, tiny.tokenizer, encode_images(tiny.model, features), ids, positions, 0.1
        )
        return loss, torch.autograd.grad(loss, parameters)

    loss, shared = loss_and_gradients(features, ids, positions)
    apart = features.repeat_interleave(3, 0), ids.view(6, 1, -1), positions.view(6, 1)
    expected, separate = loss_and_gradients(*apart)
    torch.testing.assert_close(loss, expected)
    for one, other in zip(shared, separate, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)


@both_architectures
def test_words_after_the_mask_change_nothing(tiny):
    positions = torch.tensor([[2], [3], [1]])

    def loss(ids):
        return masked_caption_loss(
            tiny.model, tiny.tokenizer, encode_images(tiny.model, tiny.features), ids[:, None], positions, 0.1
        )

    before, changed = loss(tiny.ids), tiny.ids.clone()
    changed[:, 4:] = tiny.tokenizer.unk
    assert loss(changed).equal(before)
    changed[0, 1] = tiny.tokenizer.unk  # a word before one that is predicted
    assert not torch.allclose(loss(changed), before)


def test_targets_are_the_tokens_of_the_caption_and_for_the_reference_one_more(tiny):
    torch.manual_seed(0)
    row = tiny.ids[0]
    last = int((row != tiny.tokenizer.pad).sum()) - 1
    assert row[last] == tiny.tokenizer.sep
    drawn = sample_positions(tiny.tokenizer, row.expand(2000, 2, -1))
    assert drawn.shape == (2000, 2) and drawn.unique().tolist() == list(range(1, last + 1))
    shares = torch.bincount(drawn.flatten())[1:] / drawn.numel()
    torch.testing.assert_close(shares, torch.full((last,), 1 / last), rtol=0, atol=0.03)
    drawn = sample_positions(tiny.tokenizer, row.expand(2000, -1), REFERENCE)
    assert drawn.unique().tolist() == list(range(1, last + 2))
    full = torch.full((100, 5), tiny.tokenizer.mask)
    assert sample_positions(tiny.tokenizer, full, REFERENCE).max() == 4  # no [PAD] to predict


def test_the_references_masks_are_shared_by_the_batch():
    torch.manual_seed(0)
    counts = set()
    for _ in range(600):
        masked = sample_mask(5, 64, decisions=REFERENCE)
        assert (masked == masked[0]).all()
        counts.add(int(masked[0].sum()))
    assert min(counts) == 6 and max(counts) == 64 and len(counts) > 50


def decoding_logits(network, tiny, n: int) -> list[torch.Tensor]:
    """What both decoders of a network read, for n of the inputs, and its bidirectional states."""
    rows = torch.arange(n) % 3
    ids = tiny.ids[rows]
    features = tiny.features[rows].to(network.text_embedding.words.weight.dtype)
    visible, cells = ids != tiny.tokenizer.pad, torch.arange(16).expand(n, 16)
    text, bias = network.encode_text(ids, visible)
    visual = network.encode_visual(features)
    return [
        network.paint_logits(text, bias, visual, cells),
        network.masked_caption_logits(ids, visible, visual, torch.full((n,), 3)),
        network.caption_logits(ids, network.encode_visual_prefix(features)),
        *network(ids, visible, features),
    ]


@both_architectures
@pytest.mark.parametrize("code_head", ["linear", "features", "codebook"])
def test_the_inference_copy_is_the_same_function(tiny, code_head):
    """Few rows (packed weights) and many, with a bias and without, and both decoders; the model stays as it was."""
    torch.manual_seed(3)
    model = type(tiny.model)(dataclasses.replace(tiny.config, code_head=code_head)).eval()
    model.set_codebook(tiny.codebook)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fast = inference_transformer(model)
    with torch.no_grad():
        for n in (1, 3, 12):
            results = [decoding_logits(network, tiny, n) for network in (model, fast)]
            for one, other in zip(*results, strict=True):
                torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-4)
    assert not any(parameter.requires_grad for parameter in fast.parameters())
    assert all(tensor.equal(before[name]) for name, tensor in model.state_dict().items())
    assert model.text_embedding.words.weight.requires_grad
    assert isinstance(fast.code_head.features, torch.nn.Identity)  # one product instead of two


@both_architectures
def test_the_inference_copy_in_bfloat16_is_what_autocast_makes_of_it(tiny):
    """Its matrices are rounded once; the model's stay as they are, and so do norms and embeddings."""
    before = {name: tensor.clone() for name, tensor in tiny.model.state_dict().items()}
    copies = [inference_transformer(tiny.model), inference_transformer(tiny.model, torch.bfloat16)]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for n in (1, 12):  # few rows and many
            results = [decoding_logits(network, tiny, n) for network in copies]
            for one, other in zip(*results, strict=True):
                torch.testing.assert_close(other, one, rtol=0.02, atol=0.02 * float(one.abs().max()))
    for module in copies[1].modules():
        if isinstance(module, torch.nn.Linear):
            assert {module.weight.dtype, module.bias.dtype} == {torch.bfloat16}
        elif isinstance(module, torch.nn.LayerNorm | torch.nn.Embedding):
            assert module.weight.dtype == torch.float32
    after = tiny.model.state_dict()
    assert all(after[name].dtype == old.dtype and after[name].equal(old) for name, old in before.items())


@both_architectures
def test_the_inference_copy_has_the_dtype_of_its_model(tiny):
    model = copy.deepcopy(tiny.model).bfloat16()
    with torch.no_grad():
        for n in (1, 12):
            results = [decoding_logits(network, tiny, n) for network in (model, inference_transformer(model))]
            for one, other in zip(*results, strict=True):
                assert other.dtype == one.dtype == torch.bfloat16
                torch.testing.assert_close(other, one, rtol=0.05, atol=0.05 * float(one.abs().max()))


@both_architectures
def test_the_inference_copy_also_runs_under_autocast(tiny):
    fast = inference_transformer(tiny.model)
    visible = tiny.ids != tiny.tokenizer.pad
    with torch.no_grad():
        exact, _ = fast(tiny.ids, visible, tiny.features)
        with torch.autocast("cpu", torch.bfloat16):
            rounded, _ = fast(tiny.ids, visible, tiny.features)
    difference = (rounded.float() - exact).abs().max()
    assert 0 < difference < 0.1 * exact.abs().max()


def test_both_sides_of_a_round_have_the_same_draw(monkeypatch):
    """Also after the first calls, which do not count."""
    drawn = iter(range(9))
    seen = {"reference": [], "ours": []}

    def make():
        draw = next(drawn)
        return {side: functools.partial(seen[side].append, draw) for side in seen}

    monkeypatch.setattr(benchmark, "product_rate", lambda: 1.0)
    monkeypatch.setattr(benchmark, "read_rate", lambda: 1.0)
    sides = SimpleNamespace(floor=lambda work: SimpleNamespace(flops=1.0, weight_bytes=1.0))
    benchmark.compare(sides, benchmark.Report(), "paint.b4", make, rounds=5, agreement="")
    assert seen["reference"] == seen["ours"] and len(seen["ours"]) == 1 + 5
