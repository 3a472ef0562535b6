"""The architecture: parity with Hugging Face's LXMERT, and the prefix scheme."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from diptych.model.config import named_config
from diptych.model.errors import UserError
from diptych.model.transformer import UnifiedTransformer, grid_boxes


def weights_from_lxmert(lxmert: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Map the weights of transformers' LxmertModel to ours; heads and buffers are not in it."""
    ours: dict[str, torch.Tensor] = {}

    def copy(target: str, source: str) -> None:
        for kind in ("weight", "bias"):
            if f"{source}.{kind}" in lxmert:
                ours[f"{target}.{kind}"] = lxmert[f"{source}.{kind}"]

    def attention(target: str, inner: str, output: str) -> None:
        for kind in ("weight", "bias"):
            parts = [lxmert[f"{inner}.{name}.{kind}"] for name in ("query", "key", "value")]
            ours[f"{target}.projection.{kind}"] = torch.cat(parts)
        copy(f"{target}.output", f"{output}.dense")
        copy(f"{target}.norm", f"{output}.LayerNorm")

    def feed_forward(target: str, inner: str, outer: str) -> None:
        copy(f"{target}.inner", f"{inner}.dense")
        copy(f"{target}.outer", f"{outer}.dense")
        copy(f"{target}.norm", f"{outer}.LayerNorm")

    for target, source in (("words", "word_embeddings"), ("positions", "position_embeddings")):
        copy(f"text_embedding.{target}", f"embeddings.{source}")
    copy("text_embedding.token_types", "embeddings.token_type_embeddings")
    copy("text_embedding.norm", "embeddings.LayerNorm")
    for target, source in (("features", "visn_fc"), ("boxes", "box_fc")):
        copy(f"visual_embedding.{target}", f"encoder.visn_fc.{source}")
    copy("visual_embedding.features_norm", "encoder.visn_fc.visn_layer_norm")
    copy("visual_embedding.boxes_norm", "encoder.visn_fc.box_layer_norm")
    for target, source in (("language_layers", "layer"), ("visual_layers", "r_layers")):
        for i in range(2):
            layer = f"encoder.{source}.{i}"
            attention(f"{target}.{i}.attention", f"{layer}.attention.self", f"{layer}.attention.output")
            feed_forward(f"{target}.{i}.feed_forward", f"{layer}.intermediate", f"{layer}.output")
    for i in range(2):
        layer, target = f"encoder.x_layers.{i}", f"cross_layers.{i}"
        cross = f"{layer}.visual_attention"
        attention(f"{target}.cross_attention", f"{cross}.att", f"{cross}.output")
        for stream, short in (("text", "lang"), ("visual", "visn")):
            own = f"{layer}.{short}_self_att"
            attention(f"{target}.{stream}_attention", f"{own}.self", f"{own}.output")
            feed_forward(
                f"{target}.{stream}_feed_forward", f"{layer}.{short}_inter", f"{layer}.{short}_output"
            )
    return ours


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_equals_hugging_face_lxmert(tiny, dtype, tolerance):
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
    )
    for parameter in reference.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    reference.eval().to(dtype)
    model = UnifiedTransformer(config).eval().to(dtype)
    missing, unexpected = model.load_state_dict(weights_from_lxmert(reference.state_dict()), strict=False)
    assert not unexpected
    heads_and_buffers = ("word_", "code_head", "visual_embedding.mask", "visual_embedding.feature_m")
    heads_and_buffers += ("visual_embedding.feature_s", "visual_embedding.grid")
    assert all(name.startswith(heads_and_buffers) for name in missing)

    ids = torch.randint(1, 50, (4, 9))
    visible = torch.rand(4, 9) < 0.6
    visible[:, 0] = True
    features = torch.randn(4, 16, 10, dtype=dtype)
    boxes = grid_boxes(4).to(dtype).expand(4, 16, 4)
    with torch.no_grad():
        expected = reference(
            input_ids=ids, attention_mask=visible.to(dtype), visual_feats=features, visual_pos=boxes
        )
        text, visual = model(ids, visible, features)
        # The painting path skips what nobody reads of the last layer: its text half, its cells left alone.
        cells = torch.tensor([[3, 1, 15]] * 4)
        painted = model.paint_logits(*model.encode_text(ids, visible), model.encode_visual(features), cells)
        expected_logits = model.code_head(expected.vision_output[:, [3, 1, 15]])
    torch.testing.assert_close(text, expected.language_output, rtol=0, atol=tolerance)
    torch.testing.assert_close(visual, expected.vision_output, rtol=0, atol=tolerance)
    torch.testing.assert_close(painted, expected_logits, rtol=0, atol=tolerance)


def test_fused_attention_of_gpus_equals_the_explicit_one(tiny, monkeypatch):
    import diptych.model.transformer as module

    visible = tiny.ids != tiny.tokenizer.pad
    explicit = tiny.model(tiny.ids, visible, tiny.features)
    fused = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(module, "scaled_dot_product", lambda q, k, v, bias, p: fused(q, k, v, bias, p))
    for one, other in zip(tiny.model(tiny.ids, visible, tiny.features), explicit, strict=True):
        torch.testing.assert_close(one, other)


def test_teacher_forced_logits_equal_cached_decoding(tiny):
    model = tiny.model
    with torch.no_grad():
        prefix = model.encode_visual_prefix(tiny.features)
        expected = model.caption_logits(tiny.ids, prefix)
        caches, pairs = model.caption_caches(tiny.ids.shape[1]), model.visual_keys_values(prefix)
        steps = [model.caption_states(tiny.ids[:, i, None], pairs, caches) for i in range(tiny.ids.shape[1])]
        logits = model.word_logits(torch.cat(steps, 1))
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


def test_a_future_word_changes_no_earlier_logit(tiny):
    prefix = tiny.model.encode_visual_prefix(tiny.features)
    before = tiny.model.caption_logits(tiny.ids, prefix)
    changed = tiny.ids.clone()
    changed[:, 4] = tiny.tokenizer.mask
    after = tiny.model.caption_logits(changed, prefix)
    assert torch.equal(after[:, :4], before[:, :4])
    assert not torch.allclose(after[:, 4:], before[:, 4:])


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


def test_both_kinds_of_positions_give_the_same_logits(tiny):
    model, masked = tiny.model, torch.zeros(3, 16, dtype=torch.bool)
    masked[:, 3:8] = True
    text, bias = model.encode_text(tiny.ids, tiny.ids != tiny.tokenizer.pad)
    visual = model.encode_visual(tiny.features, masked)
    dense = model.paint_logits(text, bias, visual, torch.arange(3, 8).expand(3, 5))
    assert dense.shape == (3, 5, 12)
    torch.testing.assert_close(model.paint_logits(text, bias, visual, masked), dense.flatten(0, 1))


def test_standardised_input_forgets_scale_and_shift(tiny):
    visual = tiny.model.encode_visual(tiny.codebook[None, :12].repeat(1, 2, 1)[:, :16])
    tiny.model.set_codebook(tiny.codebook * 100 - 7)
    moved = tiny.model.encode_visual((tiny.codebook * 100 - 7)[None, :12].repeat(1, 2, 1)[:, :16])
    torch.testing.assert_close(moved, visual, rtol=1e-3, atol=1e-4)


def test_tied_code_head_holds_the_frozen_codebook(tiny):
    model = UnifiedTransformer(dataclasses.replace(tiny.config, code_head="codebook"))
    model.set_codebook(tiny.codebook)
    scale = model.visual_embedding.feature_scale
    torch.testing.assert_close(model.code_head.codes.weight * scale + tiny.codebook.mean(0), tiny.codebook)
    assert not model.code_head.codes.weight.requires_grad


def test_paper_size_counts_as_228_million():
    with torch.device("meta"):
        model = UnifiedTransformer(named_config("base"))

    def count(module):
        return sum(parameter.numel() for parameter in module.parameters())

    parts = [model.language_layers, model.cross_layers, model.visual_layers, model.text_embedding.words]
    assert round((sum(map(count, parts)) + count(model.code_head)) / 1e6) == 228


def test_grid_boxes_are_row_major():
    boxes = grid_boxes(8)
    assert boxes[1].tolist() == [0.125, 0.0, 0.25, 0.125]
    assert boxes[8].tolist() == [0.0, 0.125, 0.125, 0.25]


def test_cell_positions_tell_rows_and_columns_apart(tiny):
    torch.manual_seed(0)
    embedding = UnifiedTransformer(dataclasses.replace(tiny.config, cell_positions=True)).visual_embedding
    features, masked = torch.zeros(1, 16, 10), torch.ones(1, 16, dtype=torch.bool)
    before = embedding(features, masked)[0]
    with torch.no_grad():
        embedding.rows.weight[2] += torch.randn(24)
        embedding.columns.weight[3] += torch.randn(24)
    changed = (embedding(features, masked)[0] - before).abs().amax(1) > 1e-4
    assert changed.view(4, 4).tolist() == [[c == 3 or r == 2 for c in range(4)] for r in range(4)]


def test_config_errors_name_the_key(tiny):
    with pytest.raises(UserError, match="attention_heads"):
        dataclasses.replace(tiny.config, attention_heads=5)
    with pytest.raises(UserError, match="vocab_size"):
        named_config("toybox")
    with pytest.raises(UserError, match="known sizes"):
        named_config("huge")
