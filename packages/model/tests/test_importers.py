"""Importers and the exporter: every tensor used or listed, shapes checked, one message for what does not fit."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from released_checkpoints import CONFIG, assert_complete, checkpoint, run_import, tie
from safetensors.torch import load_file, save_file

from diptych.model.errors import UserError
from diptych.model.importers.checkpoint import released_config
from diptych.model.importers.hugging_face import export_lxmert, import_bert, import_lxmert
from diptych.model.importers.names import lxmert_names
from diptych.model.importers.x_lxmert import import_generate_it, import_x_lxmert
from diptych.model.networks.architectures import build_transformer
from diptych.model.networks.config import named_config
from diptych.model.networks.embeddings import grid_boxes
from diptych.model.pretrained import load_transformer, save_transformer


def old_names(tensors):
    rename = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    rename |= {"layer_norm.weight": "layer_norm.gamma", "layer_norm.bias": "layer_norm.beta"}
    for new, old in rename.items():
        tensors = {name.replace(new, old): tensor for name, tensor in tensors.items()}
    return tensors


@pytest.mark.parametrize("module", ["", "module."])
@pytest.mark.parametrize("old", [False, True])
def test_generate_it(tmp_path, module, old):
    tensors = checkpoint("generate_it_names.txt")
    tensors = old_names(tensors) if old else tensors
    tensors = {module + name: tensor for name, tensor in tensors.items()}
    path = tmp_path / "it_generator.pth"
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(2))])
    torch.save({"model": tensors, "optimizer": optimizer.state_dict(), "iteration": 7, "amp": None}, path)
    imported = import_generate_it(path, CONFIG)
    assert_complete(imported, tensors)
    assert imported.codebook.equal(tensors[f"{module}cluster_codebook.weight"])
    reasons = {name.removeprefix(module): reason for name, reason in imported.report.unused.items()}
    assert reasons.keys() == {
        "pooler.dense.weight", "pooler.dense.bias",
        "classifier.seq_relationship.weight", "classifier.seq_relationship.bias",
    }  # fmt: skip
    assert "image-text matching" in reasons["classifier.seq_relationship.bias"]
    assert "image-text matching" in imported.report.summary()
    assert set(json.loads(imported.report.to_json())) == {"used", "unused", "initialised"}


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("code_head", ["features", "codebook"])
def test_x_lxmert(tmp_path, old, code_head):
    tensors = checkpoint("x_lxmert_names.txt")
    tensors = old_names(tensors) if old else tensors
    torch.save(tensors, tmp_path / "Epoch20_LXRT.pth")
    config = dataclasses.replace(CONFIG, code_head=code_head)
    imported = import_x_lxmert(tmp_path / "Epoch20_LXRT.pth", config)
    assert_complete(imported, tensors)
    weights = imported.model.code_head.codes.weight
    assert weights.equal(imported.codebook) and weights.requires_grad == (code_head == "features")


def test_a_checkpoint_without_codebook_takes_one(tmp_path):
    tensors = checkpoint("generate_it_names.txt")
    codebook = tensors.pop("cluster_codebook.weight")
    path = tmp_path / "it_generator.pth"
    torch.save(tensors, path)
    with pytest.raises(UserError, match="no codebook"):
        import_generate_it(path, CONFIG)
    assert import_generate_it(path, CONFIG, codebook).codebook.equal(codebook)
    with pytest.raises(UserError, match=r"\(11, 10\).*\(12, 10\)"):
        import_generate_it(path, CONFIG, codebook[:11])
    torch.save({**tensors, "cluster_codebook.weight": codebook}, path)
    with pytest.raises(UserError, match="not the one in it.*cluster_codebook"):
        import_generate_it(path, CONFIG, codebook + 1)
    torch.save({**tensors, "cluster_codebook.weight": codebook[:11]}, path)
    with pytest.raises(UserError, match="not the one in it.*cluster_codebook"):
        import_generate_it(path, CONFIG, codebook)
    torch.save({**tensors, "cluster_codebook.weight": codebook * float("nan")}, path)
    with pytest.raises(UserError, match="NaN.*codebook"):
        import_generate_it(path, CONFIG)


@pytest.mark.parametrize("absent", ["module.vis_emb.weight", "module.obj_predict_head.out_cluster.weight"])
def test_x_lxmert_has_its_codebook_under_either_name(tmp_path, absent):
    tensors = checkpoint("x_lxmert_names.txt")
    codebook = tensors.pop(absent)
    path = tmp_path / "Epoch20_LXRT.pth"
    torch.save(tensors, path)
    imported = import_x_lxmert(path, CONFIG)
    assert imported.codebook.equal(codebook) and imported.model.code_head.codes.weight.equal(codebook)
    assert_complete(imported, tensors)


def changed(tensors, changes):
    """Tensors without those that change to None, with the others."""
    return {name: tensor for name, tensor in {**tensors, **changes}.items() if tensor is not None}


@pytest.mark.parametrize("wrap", [lambda t: t, lambda t: {"state_dict": {"model": t}, "epoch": 3}])
def test_checkpoints_are_found_in_other_dicts_and_under_several_prefixes(tmp_path, wrap):
    tensors = checkpoint("generate_it_names.txt")
    tensors = {f"_orig_mod.module.{name}": tensor for name, tensor in tensors.items()}
    torch.save(wrap(tensors), tmp_path / "it_generator.pth")
    assert_complete(import_generate_it(tmp_path / "it_generator.pth", CONFIG), tensors)


def test_tensors_beside_the_network_are_listed(tmp_path):
    """Other heads, constants, and names that have nothing to do with it."""
    tensors, path = checkpoint("x_lxmert_names.txt"), tmp_path / "Epoch20_LXRT.pth"
    more = {
        "module.obj_predict_head.out_attr.weight": torch.randn(9, 10),
        "module.obj_predict_head.decoder_dict.obj.bias": torch.randn(8),
        "module.bert.embeddings.position_ids": torch.arange(20)[None],
        "module.visual_pos": torch.zeros(1, 16, 4),
        "module.clip_scorer.scale": torch.ones(()),
    }
    torch.save({**tensors, **more}, path)
    report = import_x_lxmert(path, CONFIG).report
    assert sorted([*report.used, *report.unused]) == sorted([*tensors, *more])
    assert more.keys() <= report.unused.keys()
    assert report.unused["module.clip_scorer.scale"].startswith("unknown")


def test_the_bias_of_the_word_head_may_be_that_of_its_matrix(tmp_path):
    """As transformers writes it for BERT: one bias with two names, of which a file may have either."""
    tensors, path = checkpoint("generate_it_names.txt"), tmp_path / "it_generator.pth"
    own, tied = "classifier.predictions.bias", "classifier.predictions.decoder.bias"
    bias = tensors[own]
    for changes in ({own: None, tied: bias}, {tied: bias.clone()}):
        content = changed(tensors, changes)
        torch.save({"model": content}, path)
        imported = import_generate_it(path, CONFIG)
        assert imported.model.word_bias.equal(bias) and tied in imported.report.used
        assert_complete(imported, content)
    torch.save({"model": {**tensors, tied: bias + 1}}, path)
    with pytest.raises(UserError, match="decoder.bias differs from classifier.predictions.bias.*one bias"):
        import_generate_it(path, CONFIG)


def test_the_size_can_be_read_off_the_checkpoint(tmp_path):
    config = dataclasses.replace(
        CONFIG, hidden_size=64, attention_heads=1, grid_size=8, language_layers=3, cross_layers=2, dropout=0.1
    )
    shapes = {name: tensor.shape for name, tensor in build_transformer(config).state_dict().items()}
    torch.manual_seed(0)
    tensors = {"module.vis_emb.weight": torch.randn(12, 10)}
    for ours, theirs in lxmert_names(config).items():
        parts = torch.randn(shapes[ours]).chunk(len(theirs))
        tensors.update(zip(("module.bert." + name for name in theirs), parts, strict=True))
    path = tmp_path / "Epoch20_LXRT.pth"
    for tied in (False, True):
        if tied:
            tensors["module.bert.obj_predict_head.out_cluster.weight"] = tensors["module.vis_emb.weight"]
        torch.save(tensors, path)
        expected = dataclasses.replace(
            config, code_head="codebook" if tied else "features", caption_attention="masked"
        )
        imported = import_x_lxmert(path)
        assert imported.model.config == expected
        again = import_x_lxmert(path, expected)
        for one, other in zip(
            imported.model.state_dict().values(), again.model.state_dict().values(), strict=True
        ):
            assert one.equal(other)
    with torch.device("meta"):
        base = build_transformer(named_config("base")).state_dict()
    released = {}
    for ours, theirs in lxmert_names(named_config("base")).items():
        released.update(
            (name, (name, part)) for name, part in zip(theirs, base[ours].chunk(len(theirs)), strict=True)
        )
    assert released_config(path, released) == named_config("base")
    torch.save(checkpoint("x_lxmert_names.txt"), path)
    with pytest.raises(UserError, match="hidden size 24 .* heads of width 64"):
        import_x_lxmert(path)


def test_what_does_not_fit_is_one_message(tmp_path):
    path, tensors = tmp_path / "Epoch20_LXRT.pth", checkpoint("x_lxmert_names.txt")

    def refused(changes, config=CONFIG):
        torch.save(changed(tensors, changes), path)
        with pytest.raises(UserError, match="Epoch20_LXRT.pth") as caught:
            import_x_lxmert(path, config)
        return str(caught.value)

    dense = "module.bert.encoder.layer.0.attention.output.dense.weight"
    message = refused(
        {dense: None, "module.bert.encoder.strange": torch.zeros(1), "module.mask_feat": torch.zeros(9)}
    )
    assert "1 tensors are missing (encoder.layer.0.attention.output.dense.weight)" in message
    assert "1 tensors have another shape (module.mask_feat [9], not [10])" in message
    assert "1 tensors are unknown (module.bert.encoder.strange)" in message
    message = refused({}, dataclasses.replace(CONFIG, hidden_size=48, cross_layers=2))
    assert "hidden size 48" in message and "are missing" in message and "have another shape" in message
    message = refused({}, dataclasses.replace(CONFIG, codebook_size=11))
    assert "K = 11" in message and "out_cluster" in message
    assert f"not floating-point numbers ({dense})" in refused({dense: torch.ones(24, 24, dtype=torch.int8)})
    assert "NaN" in refused({dense: torch.full((24, 24), float("nan"))})
    assert "tied" in refused({"module.cls.predictions.decoder.weight": torch.zeros(50, 24)})


def test_files_that_are_no_checkpoints_are_one_message(tmp_path):
    path = tmp_path / "it_generator.pth"
    with pytest.raises(UserError, match="no such"):
        import_generate_it(path, CONFIG)
    path.write_bytes(b"no checkpoint")
    with pytest.raises(UserError, match="not a readable"):
        import_generate_it(path, CONFIG)
    torch.save({"model": {"a": Path("anything that needs code to be read")}}, path)
    with pytest.raises(UserError, match="not a readable checkpoint of plain tensors"):
        import_generate_it(path, CONFIG)
    torch.save(checkpoint("x_lxmert_names.txt"), path)
    with pytest.raises(UserError, match="no word embedding in it, but module.mask_feat.*another format"):
        import_generate_it(path, CONFIG)
    with pytest.raises(UserError, match="no matrix embeddings.word_embeddings.weight"):
        import_generate_it(path)
    torch.save({"model": {"a": 1}}, path)
    with pytest.raises(UserError, match="not a dict of tensors"):
        import_generate_it(path, CONFIG)
    torch.save({"model": {}}, path)
    with pytest.raises(UserError, match="empty"):
        import_generate_it(path, CONFIG)


@pytest.fixture
def lxmert_config():
    from transformers import LxmertConfig

    return LxmertConfig(
        vocab_size=50,
        hidden_size=24,
        num_attention_heads=3,
        intermediate_size=40,
        l_layers=2,
        r_layers=1,
        x_layers=1,
        visual_feat_dim=10,
        max_position_embeddings=20,
        num_qa_labels=7,
        num_object_labels=8,
        num_attr_labels=9,
    )


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("heads", [True, False])
def test_hugging_face_lxmert(tmp_path, lxmert_config, heads, safe):
    from transformers import LxmertForPreTraining, LxmertModel

    torch.manual_seed(0)
    reference = (LxmertForPreTraining if heads else LxmertModel)(lxmert_config).eval()
    reference.save_pretrained(tmp_path)
    if not safe:
        tensors = load_file(tmp_path / "model.safetensors")
        torch.save(tensors, tmp_path / "pytorch_model.bin")
        (tmp_path / "model.safetensors").unlink()
    codebook = torch.randn(12, 10)
    imported = import_lxmert(tmp_path, codebook, grid_size=4)
    model = imported.model
    assert model.config.language_layers == 2 and model.config.dropout == 0.1

    ids, features = torch.randint(1, 50, (3, 7)), torch.randn(3, 16, 10)
    visible = torch.rand(3, 7) < 0.7
    visible[:, 0] = True
    inputs = {
        "input_ids": ids,
        "attention_mask": visible.float(),
        "visual_feats": features,
        "visual_pos": grid_boxes(4).expand(3, 16, 4),
    }
    with torch.no_grad():
        body = reference.lxmert if heads else reference
        text, visual = model(ids, visible, features)
        expected = body(**inputs)
        torch.testing.assert_close(text, expected.language_output, rtol=0, atol=1e-5)
        torch.testing.assert_close(visual, expected.vision_output, rtol=0, atol=1e-5)
        if heads:
            words = reference(**inputs).prediction_logits
            torch.testing.assert_close(model.word_logits(text), words, rtol=0, atol=1e-5)
    lacks = {name.split(".")[0] for name in imported.report.initialised}
    assert lacks == {"visual_embedding", "code_head"} | (set() if heads else {"word_transform", "word_bias"})
    assert imported.report.initialised[0] == "visual_embedding.mask_feature"
    # objects, attributes, features, and answers that nobody has listed
    assert len(set(imported.report.unused.values())) == (4 if heads else 1)
    assert heads or "pooled" in imported.report.unused["pooler.dense.weight"]
    assert model.config.matching == heads and not model.config.answers
    again = import_lxmert(tmp_path, codebook, grid_size=4)
    for one, other in zip(model.state_dict().values(), again.model.state_dict().values(), strict=True):
        assert one.equal(other)  # what starts at random has a seed
    with pytest.raises(UserError, match="no codebook"):
        import_lxmert(tmp_path)
    with pytest.raises(UserError, match="visual_feat_dim is 10.*D is 11"):
        import_lxmert(tmp_path, torch.randn(12, 11))


def test_directories_that_are_not_lxmert_are_one_message(tmp_path, lxmert_config):
    with pytest.raises(UserError, match="config.json: no such file"):
        import_lxmert(tmp_path, torch.randn(12, 10))
    for key, value in (("model_type", "bert"), ("hidden_act", "relu"), ("type_vocab_size", 3)):
        (tmp_path / "config.json").write_text(json.dumps({**lxmert_config.to_dict(), key: value}))
        with pytest.raises(UserError, match="config.json"):
            import_lxmert(tmp_path, torch.randn(12, 10))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        import_lxmert(tmp_path, torch.randn(12, 10))
    (tmp_path / "config.json").write_text(json.dumps(lxmert_config.to_dict()))
    with pytest.raises(UserError, match="neither model.safetensors nor pytorch_model.bin"):
        import_lxmert(tmp_path, torch.randn(12, 10))


@pytest.mark.parametrize("kind", ["BertModel", "BertForPreTraining"])
def test_bert_starts_the_language_side(tmp_path, kind):
    import transformers

    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=24,
        num_hidden_layers=4,
        num_attention_heads=3,
        intermediate_size=40,
        max_position_embeddings=20,
    )
    bert = getattr(transformers, kind)(config).eval()
    bert.save_pretrained(tmp_path)
    size = dataclasses.replace(CONFIG, language_layers=3)
    imported = import_bert(tmp_path, size, torch.randn(12, 10))
    ids, visible = torch.randint(1, 50, (3, 7)), torch.arange(7) < torch.tensor([[7], [4], [2]])
    body = getattr(bert, "bert", bert)
    with torch.no_grad():
        text, _ = imported.model.encode_text(ids, visible)
        output = body(ids, visible.long(), output_hidden_states=True)
        torch.testing.assert_close(text[visible], output.hidden_states[3][visible], rtol=0, atol=1e-5)
        if kind == "BertForPreTraining":
            words = bert.cls.predictions(output.hidden_states[3])
            torch.testing.assert_close(imported.model.word_logits(output.hidden_states[3]), words)
    reasons = set(imported.report.unused.values())
    assert "layers beyond the 3 language layers" in reasons
    started = {name.split(".")[0] for name in imported.report.initialised}
    assert {"visual_embedding", "visual_layers", "cross_layers", "code_head"} <= started
    assert ("word_bias" in started) == (kind == "BertModel")
    assert not started & {"text_embedding", "language_layers"}
    with pytest.raises(UserError, match="3 attention heads.*has 6"):
        import_bert(tmp_path, dataclasses.replace(size, attention_heads=6), torch.randn(12, 10))
    with pytest.raises(UserError, match="5 language"):
        import_bert(tmp_path, dataclasses.replace(size, language_layers=5), torch.randn(12, 10))


def test_bert_has_no_answers(tiny, tmp_path):
    """A config with an answer head may be that of a model which answers; here nobody knows what its rows mean."""
    import transformers

    small = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40}
    vocabulary = {"vocab_size": len(tiny.tokenizer), "max_position_embeddings": 20}
    transformers.BertModel(transformers.BertConfig(**small, **vocabulary)).save_pretrained(tmp_path / "bert")
    tiny.tokenizer.save(tmp_path / "bert")
    np.save(tmp_path / "centroids.npy", tiny.codebook.numpy())
    words = len(tiny.tokenizer)
    size = dataclasses.replace(CONFIG, vocab_size=words, language_layers=2, answers=7, matching=True)
    (tmp_path / "size.json").write_text(size.to_json())
    options = ["--size", str(tmp_path / "size.json"), "--codebook", str(tmp_path / "centroids.npy")]
    assert run_import(["bert", str(tmp_path / "bert"), str(tmp_path / "model"), *options]) == 0
    model, _, _ = load_transformer(tmp_path / "model")
    assert model.config == dataclasses.replace(size, answers=0)


@pytest.mark.parametrize("code_head", ["linear", "features", "codebook"])
def test_export_and_import_are_exact(tiny, tmp_path, code_head):
    from transformers import LxmertForPreTraining, LxmertModel

    model = build_transformer(dataclasses.replace(tiny.config, code_head=code_head)).eval()
    if code_head == "codebook":
        with torch.no_grad():
            model.code_head.codes.weight.copy_(tiny.codebook)
    export_lxmert(tmp_path, model, tiny.tokenizer, tiny.codebook)
    imported = import_lxmert(tmp_path)
    assert imported.model.config == model.config and imported.codebook.equal(tiny.codebook)
    assert not imported.report.unused and not imported.report.initialised
    for name, tensor in model.state_dict().items():
        assert tensor.equal(imported.model.state_dict()[name]), name

    visible = tiny.ids != tiny.tokenizer.pad
    inputs = {
        "input_ids": tiny.ids,
        "attention_mask": visible.float(),
        "visual_feats": tiny.features,
        "visual_pos": grid_boxes(4).expand(3, 16, 4),
    }
    reference, info = LxmertModel.from_pretrained(tmp_path, output_loading_info=True)
    assert sorted(info["missing_keys"]) == ["pooler.dense.bias", "pooler.dense.weight"]
    with torch.no_grad():
        text, visual = model(tiny.ids, visible, tiny.features)
        output = reference.eval()(**inputs)
        torch.testing.assert_close(output.language_output, text, rtol=0, atol=1e-5)
        torch.testing.assert_close(output.vision_output, visual, rtol=0, atol=1e-5)
        words = LxmertForPreTraining.from_pretrained(tmp_path).eval()(**inputs).prediction_logits
        torch.testing.assert_close(words, model.word_logits(text), rtol=0, atol=1e-5)


def test_export_writes_standardised_features_into_the_projection(tiny, tmp_path):
    tiny.model.set_codebook(tiny.codebook * 3)
    export_lxmert(tmp_path, tiny.model, tiny.tokenizer, tiny.codebook)
    imported = import_lxmert(tmp_path)
    masked = torch.rand(3, 16) < 0.5
    with torch.no_grad():
        torch.testing.assert_close(
            imported.model.encode_visual(tiny.features, masked),
            tiny.model.encode_visual(tiny.features, masked),
            rtol=1e-4,
            atol=1e-5,
        )
    other = build_transformer(dataclasses.replace(tiny.config, cell_positions=True))
    with pytest.raises(UserError, match="cell_positions"):
        export_lxmert(tmp_path / "other", other, tiny.tokenizer, tiny.codebook)
    assert not (tmp_path / "other").exists()


def test_heads_that_lxmert_has_no_place_for_are_refused(tiny, tmp_path):
    """They were dropped without a word, and import-checkpoint reads all back without loss."""
    for heads in ({"regresses": True}, {"regresses": True, "object_classes": 3}):
        model = build_transformer(dataclasses.replace(tiny.config, **heads))
        with pytest.raises(UserError, match="a head that regresses features"):
            export_lxmert(tmp_path / "exported", model, tiny.tokenizer, tiny.codebook)
    assert not (tmp_path / "exported").exists()


def test_every_weight_of_ours_has_a_name_in_lxmert(tiny):
    for code_head in ("linear", "features", "codebook"):
        heads = {"answers": 7, "matching": True, "pairs": True} if code_head == "features" else {}
        config = dataclasses.replace(tiny.config, code_head=code_head, **heads)
        assert set(lxmert_names(config)) == {name for name, _ in build_transformer(config).named_parameters()}


def test_the_command_writes_a_model_directory_or_nothing(tiny, tmp_path, capsys):
    config = dataclasses.replace(CONFIG, vocab_size=len(tiny.tokenizer))
    tensors = checkpoint("generate_it_names.txt")
    for name, tensor in tensors.items():
        if tensor.shape[0] == 50:
            tensors[name] = torch.randn(config.vocab_size, *tensor.shape[1:])
    tie(tensors, "word_embeddings.weight", "predictions.decoder.weight")
    codebook = tensors.pop("cluster_codebook.weight")
    np.save(tmp_path / "centroids.npy", codebook.numpy())
    save_file({"centroids": codebook}, tmp_path / "centroids.safetensors")
    torch.save({"model": tensors}, tmp_path / "it_generator.pth")
    (tmp_path / "size.json").write_text(config.to_json())
    tiny.tokenizer.save(tmp_path / "words")
    source, out = str(tmp_path / "it_generator.pth"), tmp_path / "imported"
    arguments = ["generate-it", source, str(out), "--size", str(tmp_path / "size.json")]
    rest = ["--codebook", str(tmp_path / "centroids.npy"), "--tokenizer", str(tmp_path / "words")]

    wrongs = [
        arguments,
        [*arguments, *rest[:2]],
        [*arguments[:3], *rest],
        ["x-lxmert", *arguments[1:], *rest],
    ]
    for wrong in wrongs:
        assert run_import(wrong) == 1
        assert not list(tmp_path.glob("imported*"))
        message = capsys.readouterr().err.strip()
        assert "\n" not in message and message
    assert run_import([*arguments, *rest]) == 0
    assert "tensors used" in capsys.readouterr().out
    model, tokenizer, loaded = load_transformer(out)
    assert loaded.equal(codebook) and len(tokenizer) == config.vocab_size and model.config == config
    assert json.loads((out / "import.json").read_text())["used"]
    assert run_import([*arguments, *rest]) == 1 and "exists" in capsys.readouterr().err

    assert run_import(["to-lxmert", str(out), str(tmp_path / "exported")]) == 0
    back = ["lxmert", str(tmp_path / "exported"), str(tmp_path / "back")]
    assert run_import(back) == 0
    again, _, _ = load_transformer(tmp_path / "back")
    for one, other in zip(model.state_dict().values(), again.state_dict().values(), strict=True):
        assert one.equal(other)

    save_transformer(tmp_path / "plain", tiny.model, tiny.tokenizer, tiny.codebook)
    rest[1] = str(tmp_path / "centroids.safetensors")
    assert run_import(["bert", str(tmp_path / "plain"), str(tmp_path / "from-bert"), *rest]) == 1
    assert "not the config of a bert model" in capsys.readouterr().err


@pytest.fixture
def export(tiny, tmp_path):
    """Export a model directory to the folder of this name, with these options: (status, message)."""
    save_transformer(tmp_path / "model", tiny.model, tiny.tokenizer, tiny.codebook)

    def run(out, *options, capsys):
        status = run_import(["to-lxmert", str(tmp_path / "model"), str(out), *options])
        message = capsys.readouterr().err.strip()
        assert bool(status) == bool(message) and "\n" not in message
        return status, message.removeprefix("diptych: ")

    return run


def test_a_folder_called_unfinished_is_left_alone(export, tmp_path, capsys):
    """It may be somebody's own, or that of another import."""
    (tmp_path / "exported.unfinished").mkdir()
    (tmp_path / "exported.unfinished/mine.txt").write_text("work of days")
    assert export(tmp_path / "exported", capsys=capsys)[0] == 0
    assert (tmp_path / "exported.unfinished/mine.txt").read_text() == "work of days"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["exported", "exported.unfinished", "model"]
    assert (tmp_path / "exported").stat().st_mode & 0o777 == 0o755


def test_a_folder_that_cannot_be_made_is_one_message(export, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    for out in (".", "/", "..", "model"):
        status, message = export(out, capsys=capsys)
        assert status == 1 and message.startswith(f"{out}: exists already")
    for out in ("file/exported", "a" * 300):
        status, message = export(out, capsys=capsys)
        assert status == 1 and message.startswith(f"{out}: cannot be made ([Errno ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "model"]


FULL_DISK = """
import resource, signal, sys
from diptych.model.command.app import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # as Python has it; an error of the file instead
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
main(["import-checkpoint", "--format", "to-lxmert", "model", "exported"])
"""


@pytest.mark.parametrize("room", [10, 2_000])  # bytes of a file: too few for the config, for the weights
def test_a_full_disk_is_one_message(export, tmp_path, capsys, room):
    command = [sys.executable, "-c", FULL_DISK, str(room)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stderr.startswith("diptych: exported: cannot be made ("), done.stderr
    assert done.stderr.count("\n") == 1 and [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("form", "option"),
    [
        ("to-lxmert", "codebook"), ("to-lxmert", "tokenizer"), ("to-lxmert", "size"), ("to-lxmert", "answers"),
        ("aug-vae", "codebook"), ("aug-vae", "tokenizer"), ("image-generator", "tokenizer"), ("bert", "answers"),
        ("generate-it", "answers"), ("generate-it", "seed"), ("to-lxmert", "seed"), ("aug-vae", "seed"),
    ],
)  # fmt: skip
def test_options_that_a_format_does_not_read_are_refused(tmp_path, capsys, form, option):
    assert run_import([form, str(tmp_path), str(tmp_path / "out"), f"--{option}", "7"]) == 1
    assert capsys.readouterr().err == f"diptych: format {form} does not read --{option}; leave it out\n"


def test_a_directory_of_lxmert_has_a_size_of_its_own(export, tmp_path, capsys):
    assert export(tmp_path / "exported", capsys=capsys)[0] == 0
    assert run_import(["lxmert", str(tmp_path / "exported"), str(tmp_path / "back"), "--size", "base"]) == 1
    assert "its own config.json tells its size; leave out --size" in capsys.readouterr().err
