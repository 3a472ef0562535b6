"""Importers and the exporter of what reads the pooled state of [CLS]: matching, answers, pairs. Logits are compared with
transformers' LXMERT, matching's "match" with its loss; all keys of a file are used or listed with a reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from released_checkpoints import CONFIG, assert_complete, checkpoint, run_import

from diptych.model.answer_table import AnswerTable, load_answer_table
from diptych.model.errors import UserError
from diptych.model.importers.answer_lists import read_answer_list
from diptych.model.importers.checkpoint import Imported
from diptych.model.importers.detect import detect_format
from diptych.model.importers.hugging_face import export_lxmert, import_bert, import_lxmert
from diptych.model.importers.x_lxmert import import_released_lxmert, import_x_lxmert
from diptych.model.networks.architectures import build_transformer
from diptych.model.networks.config import TransformerConfig
from diptych.model.networks.embeddings import grid_boxes
from diptych.model.networks.unified import UnifiedTransformer
from diptych.model.pretrained import load_transformer
from diptych.model.training.initial import with_heads

ANSWERS = ["", "yes", "no", "2", "red kite", "grün", "on the left"]
TOLERANCES = {torch.float32: 1e-4, torch.float64: 1e-10}
X_LXMERT_ANSWERS = 9500


def write_json(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content, ensure_ascii=False), "utf-8")
    return path


def lxmert(kind: str, **values: Any) -> torch.nn.Module:
    """A tiny LXMERT of transformers with random weights, biases and LayerNorms included, as no start has them."""
    import transformers

    sizes = {
        "vocab_size": 50, "hidden_size": 24, "num_attention_heads": 3, "intermediate_size": 40, "l_layers": 2,
        "r_layers": 1, "x_layers": 2, "visual_feat_dim": 10, "max_position_embeddings": 20, "num_object_labels": 8,
        "num_attr_labels": 9, "num_qa_labels": len(ANSWERS),
    }  # fmt: skip
    torch.manual_seed(0)
    model = getattr(transformers, kind)(transformers.LxmertConfig(**{**sizes, **values})).eval()
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.add_(0.2 * torch.randn_like(tensor))
    return model


def inputs(dtype: torch.dtype, cells: int = 16) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids int64 ``[3, 7]``, which of them are words, features ``[3, 16, 10]``."""
    torch.manual_seed(1)
    ids, features = torch.randint(1, 50, (3, 7)), torch.randn(3, cells, 10, dtype=dtype)
    return ids, torch.arange(7) < torch.tensor([[7], [4], [2]]), features


@torch.no_grad()
def theirs(reference: torch.nn.Module, dtype: torch.dtype) -> Any:
    ids, visible, features = inputs(dtype)
    return reference.to(dtype)(
        input_ids=ids,
        attention_mask=visible.to(dtype),
        visual_feats=features,
        visual_pos=grid_boxes(4).to(dtype).expand(3, 16, 4),
    )


@torch.no_grad()
def first_states(model: UnifiedTransformer, dtype: torch.dtype) -> torch.Tensor:
    """States of [CLS] by the scheme ``masked``, as answering computes them."""
    ids, visible, features = inputs(dtype)
    model = model.to(dtype)
    positions = torch.zeros(3, dtype=torch.long)
    return model.masked_text_states(ids, visible, model.encode_visual(features), positions)


def assert_near(one: torch.Tensor, other: torch.Tensor, dtype: torch.dtype) -> None:
    assert other.std() > 0.1  # logits that are all alike would be near each other in any case
    torch.testing.assert_close(one, other, rtol=0, atol=TOLERANCES[dtype])


def assert_all_told(imported: Imported, names: set[str]) -> None:
    report = imported.report
    assert sorted([*report.used, *report.unused]) == sorted(names)
    assert all(reason and not reason.startswith("unknown") for reason in report.unused.values())


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_transformers_pretrained_lxmert_matches_and_answers_the_same(tmp_path: Path, dtype: torch.dtype) -> None:
    reference = lxmert("LxmertForPreTraining")
    reference.save_pretrained(tmp_path)
    answers = write_json(tmp_path / "all_ans.json", [{"ans": answer, "dsets": ["vqa"]} for answer in ANSWERS])
    imported = import_lxmert(tmp_path, torch.randn(12, 10), grid_size=4, answers=answers)
    model, config = imported.model, imported.model.config
    assert (config.answers, config.matching, config.pairs) == (len(ANSWERS), True, False)
    assert config.caption_attention == "masked"
    assert imported.table and imported.table.answers == tuple(ANSWERS)
    assert_all_told(imported, set(reference.state_dict()) - {"cls.predictions.decoder.weight"})
    reasons = {name: reason for name, reason in imported.report.unused.items() if name.endswith(".bias")}
    assert {name.split(".")[-2]: reason.split(";")[0] for name, reason in reasons.items()} == {
        "obj": "LXMERT's classes of objects",
        "attr": "LXMERT's attributes of objects",
        "feat": "LXMERT's regression of masked features",
    }
    expected, states = theirs(reference, dtype), first_states(model, dtype)
    with torch.no_grad():
        assert_near(model.answer_logits(states), expected.question_answering_score, dtype)
        assert_near(model.matching_logits(states), expected.cross_relationship_score, dtype)
        ids, visible, features = inputs(dtype)
        text, _ = model(ids, visible, features)
        assert_near(model.word_logits(text), expected.prediction_logits, dtype)


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_transformers_question_answering_answers_the_same(tmp_path: Path, dtype: torch.dtype) -> None:
    reference = lxmert("LxmertForQuestionAnswering")
    reference.save_pretrained(tmp_path)
    numbers = {answer: number for number, answer in reversed(list(enumerate(ANSWERS)))}
    answers = write_json(tmp_path / "ans2label.json", numbers)
    imported = import_lxmert(tmp_path, torch.randn(12, 10), grid_size=4, answers=answers)
    assert imported.table and imported.table.answers == tuple(ANSWERS)
    assert not imported.model.config.matching and not imported.report.unused
    assert {name.split(".")[0] for name in imported.report.initialised} == {
        "word_transform", "word_bias", "visual_embedding", "code_head",
    }  # fmt: skip
    expected = theirs(reference, dtype).question_answering_score
    with torch.no_grad():
        assert_near(imported.model.answer_logits(first_states(imported.model, dtype)), expected, dtype)


def test_without_its_answers_the_head_is_left_out_and_told(tmp_path: Path) -> None:
    lxmert("LxmertForPreTraining").save_pretrained(tmp_path)
    imported = import_lxmert(tmp_path, torch.randn(12, 10), grid_size=4)
    assert imported.table is None and imported.model.answer_head is None
    left = {name: why for name, why in imported.report.unused.items() if name.startswith("answer_head.")}
    assert len(left) == 6 and all("--answers" in why for why in left.values())
    assert imported.model.config.matching and "lxmert.pooler.dense.weight" in imported.report.used


def test_match_is_index_1(tmp_path: Path) -> None:
    """transformers' own loss, whose label 1 says "does match" (LXMERT's ``is_matched``), trains two texts apart; ours tells
    the same one as that of its picture."""
    reference = lxmert("LxmertForPreTraining")
    ids, visible, features = inputs(torch.float32)
    labels = torch.tensor([1, 0, 0])
    given = {
        "input_ids": ids,
        "attention_mask": visible.float(),
        "visual_feats": features,
        "visual_pos": grid_boxes(4).expand(3, 16, 4),
    }
    optimizer = torch.optim.Adam(reference.cls.seq_relationship.parameters(), 0.05)
    for _ in range(200):
        optimizer.zero_grad()
        loss = reference(**given, matched_label=labels).loss
        loss.backward()
        optimizer.step()
    assert loss < 0.1
    reference.save_pretrained(tmp_path)
    model = import_lxmert(tmp_path, torch.randn(12, 10), grid_size=4).model
    with torch.no_grad():
        match = model.matching_logits(first_states(model, torch.float32)).softmax(-1)[:, 1]
    assert match[0] > 0.9 and match[1] < 0.1 and match[2] < 0.1


def pooled(config: TransformerConfig, **heads: Any) -> UnifiedTransformer:
    """A transformer with heads, all of its weights random."""
    torch.manual_seed(2)
    model = with_heads(build_transformer(config), 3, **heads).eval()
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.add_(0.2 * torch.randn_like(tensor))
    return model


def test_export_and_import_of_all_heads_are_exact(tiny, tmp_path: Path) -> None:
    from transformers import LxmertForPreTraining, LxmertForQuestionAnswering

    table = AnswerTable(ANSWERS)
    model = pooled(tiny.config, answers=table, matching=True, pairs=True)
    export_lxmert(tmp_path, model, tiny.tokenizer, tiny.codebook, table)
    imported = import_lxmert(tmp_path)
    assert imported.model.config == model.config
    assert imported.table and imported.table.answers == table.answers
    assert not imported.report.unused and not imported.report.initialised
    for name, tensor in model.state_dict().items():
        assert tensor.equal(imported.model.state_dict()[name]), name

    visible = tiny.ids != tiny.tokenizer.pad
    given = {
        "input_ids": tiny.ids,
        "attention_mask": visible.double(),
        "visual_feats": tiny.features.double(),
        "visual_pos": grid_boxes(4).double().expand(3, 16, 4),
    }
    model = model.double()
    pretrained, info = LxmertForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["mismatched_keys"]
    answering, info = LxmertForQuestionAnswering.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["mismatched_keys"]
    with torch.no_grad():
        visual = model.encode_visual(tiny.features.double())
        states = model.masked_text_states(tiny.ids, visible, visual, torch.zeros(3, dtype=torch.long))
        output = pretrained.double().eval()(**given)
        assert_near(output.cross_relationship_score, model.matching_logits(states), torch.float64)
        assert_near(output.question_answering_score, model.answer_logits(states), torch.float64)
        scores = answering.double().eval()(**given).question_answering_score
        assert_near(scores, model.answer_logits(states), torch.float64)


def released(**changes: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """X-LXMERT's pretrained checkpoint at a tiny size."""
    tensors = {**checkpoint("x_lxmert_names.txt"), **changes}
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


def test_x_lxmert_has_all_its_heads(tmp_path: Path) -> None:
    tensors, path = released(), tmp_path / "Epoch20_LXRT.pth"
    torch.save(tensors, path)
    words = [f"answer {number}" for number in range(X_LXMERT_ANSWERS)]
    listed = [{"ans": word, "dsets": ["gqa"]} for word in words]
    answers = write_json(tmp_path / "all_ans.json", listed)
    imported = import_x_lxmert(path, CONFIG, answers=answers)
    assert_complete(imported, tensors)
    assert not imported.report.unused and imported.table and imported.table.answers == tuple(words)
    model = imported.model
    heads = {
        "bert.pooler.dense": model.pooler,
        "cls.seq_relationship": model.matching_head,
        "answer_head.logit_fc.0": model.answer_head.inner,
        "answer_head.logit_fc.2": model.answer_head.norm,
        "answer_head.logit_fc.3": model.answer_head.answers,
    }
    for name, head in heads.items():
        assert head.weight.equal(tensors[f"module.{name}.weight"]), name
        assert head.bias.equal(tensors[f"module.{name}.bias"]), name
    assert detect_format(path) == "x-lxmert"

    write_json(answers, listed[:-1])
    with pytest.raises(UserError, match="all_ans.json: 9499 answers, but the answer head has 9500"):
        import_x_lxmert(path, CONFIG, answers=answers)
    torch.save(released(**{"module.answer_head.logit_fc.2.bias": None}), path)
    write_json(answers, listed)
    with pytest.raises(UserError, match=r"are missing \(answer_head.logit_fc.2.bias\)"):
        import_x_lxmert(path, CONFIG, answers=answers)
    torch.save(released(**{"module.bert.pooler.dense.weight": None}), path)
    with pytest.raises(UserError, match=r"are missing \(pooler.dense.weight\)"):
        import_x_lxmert(path, CONFIG)


def wide(tensors: dict[str, torch.Tensor], width: int = 64) -> dict[str, torch.Tensor]:
    """Random tensors with a hidden size that divides into heads of width 64, so that the file shows its size."""
    sizes = {24: width, 48: 2 * width}
    return {name: torch.randn(*(sizes.get(s, s) for s in t.shape)) for name, t in tensors.items()}


def fine_tuned(wrapped: str, head: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """Names of LXMERT's fine-tuned models: the network without heads for pretraining in ``lxrt_encoder``, and
    ``logit_fc``."""
    body = {
        name.replace("module.bert.", f"{wrapped}bert."): tensor
        for name, tensor in checkpoint("x_lxmert_names.txt").items()
        if name.startswith("module.bert.")
    }
    return wide(body) | {f"logit_fc.{name}": torch.randn(*shape) for name, shape in head.items()}


def head_shapes(read: int, rows: int, width: int = 64) -> dict[str, tuple[int, ...]]:
    """LXMERT's ``logit_fc`` on ``read`` pooled states."""
    return {
        "0.weight": (2 * width, read * width), "0.bias": (2 * width,), "2.weight": (2 * width,), "2.bias": (2 * width,),
        "3.weight": (rows, 2 * width), "3.bias": (rows,),
    }  # fmt: skip


WRAPPERS = ["lxrt_encoder.model.", "lxrt_encoder.model.module.", "module.lxrt_encoder.model."]


@pytest.mark.parametrize("wrapped", WRAPPERS)
def test_lxmert_fine_tuned_on_vqa_or_gqa(tmp_path: Path, wrapped: str) -> None:
    tensors, path = fine_tuned(wrapped, head_shapes(1, len(ANSWERS))), tmp_path / "BEST.pth"
    torch.save(tensors, path)
    assert detect_format(path) == "lxmert"
    codebook = torch.randn(12, 10)
    answers = write_json(tmp_path / "trainval_label2ans.json", ANSWERS)
    imported = import_released_lxmert(path, codebook=codebook, answers=answers)
    assert_all_told(imported, set(tensors))
    config = imported.model.config
    assert (config.answers, config.matching, config.pairs) == (len(ANSWERS), False, False)
    assert not imported.report.unused and imported.codebook.equal(codebook)
    assert imported.table and imported.table.answers == tuple(ANSWERS)
    states = torch.randn(3, 64)
    pooler = f"{wrapped}bert.pooler.dense."
    hidden = torch.tanh(states @ tensors[f"{pooler}weight"].T + tensors[f"{pooler}bias"])
    with torch.no_grad():
        torch.testing.assert_close(imported.model.answer_logits(states), logit_fc(tensors, hidden))
    left_out = import_released_lxmert(path, codebook=codebook)
    assert left_out.model.answer_head is None and left_out.model.pooler is None
    assert "--answers" in left_out.report.unused["logit_fc.3.bias"]
    again = import_released_lxmert(path, codebook=codebook, answers=answers)
    for one, other in zip(
        imported.model.state_dict().values(), again.model.state_dict().values(), strict=True
    ):
        assert one.equal(other)  # what starts at random has a seed
    with pytest.raises(UserError, match="BEST.pth: LXMERT has no codebook"):
        import_released_lxmert(path)


def logit_fc(tensors: dict[str, torch.Tensor], pooled: torch.Tensor) -> torch.Tensor:
    """The head of LXMERT's tasks as it is written there."""
    head = torch.nn.Sequential(
        torch.nn.Linear(*reversed(tensors["logit_fc.0.weight"].shape)),
        torch.nn.GELU(),
        torch.nn.LayerNorm(len(tensors["logit_fc.2.weight"]), eps=1e-12),
        torch.nn.Linear(*reversed(tensors["logit_fc.3.weight"].shape)),
    )
    own = {name.removeprefix("logit_fc."): tensor for name, tensor in tensors.items()}
    head.load_state_dict({name: own[name] for name in head.state_dict()})
    return head(pooled)


def test_lxmert_fine_tuned_on_nlvr2(tmp_path: Path) -> None:
    """One pooled state per picture, side by side: ``x.view(-1, 2 * hid_dim)``; label 1 is "True"."""
    wrapped, path = WRAPPERS[0], tmp_path / "BEST.pth"
    tensors = fine_tuned(wrapped, head_shapes(2, 2))
    torch.save(tensors, path)
    imported = import_released_lxmert(path, codebook=torch.randn(12, 10))
    assert_all_told(imported, set(tensors))
    assert imported.model.config.pairs and not imported.model.config.answers and not imported.report.unused
    both = torch.randn(6, 64)  # statement 0 with its left and its right picture, statement 1 with its left, ...
    pooler = f"{wrapped}bert.pooler.dense."
    hidden = torch.tanh(both @ tensors[f"{pooler}weight"].T + tensors[f"{pooler}bias"]).view(-1, 128)
    with torch.no_grad():
        torch.testing.assert_close(
            imported.model.pair_logits(both[::2], both[1::2]), logit_fc(tensors, hidden)
        )
    answers = write_json(tmp_path / "answers.json", ANSWERS)
    with pytest.raises(UserError, match="BEST.pth: no answer head in it for the answers of .*answers.json"):
        import_released_lxmert(path, codebook=torch.randn(12, 10), answers=answers)
    torch.save(fine_tuned(wrapped, {**head_shapes(2, 2), "4.bias": (2,)}), path)
    with pytest.raises(UserError, match=r"1 tensors are unknown \(logit_fc.4.bias\)"):
        import_released_lxmert(path, codebook=torch.randn(12, 10))


def test_lxmerts_own_pretrained_checkpoint(tmp_path: Path) -> None:
    """No codes; heads for objects, attributes and features."""
    tensors = wide(checkpoint("x_lxmert_names.txt"))
    tensors = {
        name: tensor
        for name, tensor in tensors.items()
        if not any(part in name for part in ("mask_feat", "out_cluster", "linear_feat", "vis_emb"))
    }
    tensors["module.cls.predictions.decoder.weight"] = tensors["module.bert.embeddings.word_embeddings.weight"]
    for kind, rows in (("obj", 1600), ("attr", 400), ("feat", 10)):
        tensors[f"module.obj_predict_head.decoder_dict.{kind}.weight"] = torch.randn(rows, 64)
        tensors[f"module.obj_predict_head.decoder_dict.{kind}.bias"] = torch.randn(rows)
    path = tmp_path / "Epoch20_LXRT.pth"
    torch.save(tensors, path)
    assert detect_format(path) == "lxmert"
    imported = import_released_lxmert(path, codebook=torch.randn(12, 10))
    assert_all_told(imported, set(tensors))
    assert len(set(imported.report.unused.values())) == 4  # objects, attributes, features, answers
    assert imported.model.config.matching
    assert {name.rpartition(".")[0] for name in imported.report.initialised} == {
        "visual_embedding", "code_head.features", "code_head.codes",
    }  # fmt: skip


def test_two_answer_heads_are_one_message(tmp_path: Path) -> None:
    tensors = fine_tuned(WRAPPERS[0], head_shapes(1, 7)) | {"answer_head.logit_fc.0.bias": torch.randn(128)}
    torch.save(tensors, tmp_path / "BEST.pth")
    with pytest.raises(UserError, match="two answer heads, logit_fc.0.weight and answer_head.logit_fc.0.bias"):
        import_released_lxmert(tmp_path / "BEST.pth", codebook=torch.randn(12, 10))


def test_next_sentences_of_bert_are_no_matching(tmp_path: Path) -> None:
    import transformers

    sizes = {"num_hidden_layers": 1, "num_attention_heads": 3, "intermediate_size": 40}
    config = transformers.BertConfig(vocab_size=50, hidden_size=24, max_position_embeddings=20, **sizes)
    transformers.BertForPreTraining(config).save_pretrained(tmp_path)
    imported = import_bert(tmp_path, CONFIG, torch.randn(12, 10))
    assert not imported.model.config.pooled
    assert "next sentence" in imported.report.unused["cls.seq_relationship.bias"]
    assert "next sentence" in imported.report.unused["bert.pooler.dense.bias"]


@pytest.mark.parametrize(
    "content",
    [
        ANSWERS,
        [{"ans": answer, "dsets": []} for answer in ANSWERS],
        {answer: number for number, answer in enumerate(ANSWERS)},
        {str(number): answer for number, answer in reversed(list(enumerate(ANSWERS)))},
    ],
)
def test_lists_of_answers(tmp_path: Path, content: Any) -> None:
    assert read_answer_list(write_json(tmp_path / "a.json", content), 7).answers == tuple(ANSWERS)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ('["yes", "no", "yes"]', "entry 2 repeats 'yes' of entry 0"),
        ('["yes", 2, "no"]', "entry 1 is 2, not text"),
        ('[{"ans": "yes"}, {"dsets": ["vqa"]}, "no"]', "entry 1 is {'dsets': .*not text or {ans, dsets}"),
        ('["yes", "no"]', "2 answers, but the answer head has 3"),
        ("[]", "0 answers, but the answer head has 3"),
        ('{"yes": 0, "no": 2}', "no answer has label number 1 "),
        ('{"yes": 0, "no": 1, "kite": 3}', "'kite' has label number 3, but the answer head has rows 0 to 2"),
        ('{"yes": 0, "no": -1, "kite": 1}', "'no' has label number -1"),
        ('{"yes": 0, "no": 1, "kite": 1}', "'no' and 'kite' both have label number 1"),
        ('{"yes": 0, "no": 1, "yes": 2}', "'yes' is there twice, as 0 and as 2"),
        ('{"yes": 0, "no": true, "kite": 2}', "entry 'no' is True"),
        ('{"yes": 0, "no": "1", "kite": 2}', "entry 'no' is 1"),
        ('{"0": "yes", "x": "no", "2": "kite"}', "entry 'x' is no"),
        ('{"0": "yes", "1": "no", "2": "yes"}', "entry 2 repeats 'yes' of entry 0"),
        ('{"0": "yes", "00": "no", "2": "kite"}', "'yes' and 'no' both have label number 0"),
        ("3", "holds a int, not a list of answers"),
        ("{", "not a readable JSON file"),
        ("[" * 100_000, "not a readable JSON file"),
    ],
)
def test_what_is_no_list_of_the_heads_answers_is_one_message(
    tmp_path: Path, written: str, message: str
) -> None:
    path = tmp_path / "trainval_label2ans.json"
    path.write_text(written)
    with pytest.raises(UserError, match=message) as caught:
        read_answer_list(path, 3)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)
    path.write_bytes(b'["\xff"]')
    with pytest.raises(UserError, match="not a readable JSON file"):
        read_answer_list(path, 1)
    with pytest.raises(UserError, match="nowhere.json: no such file"):
        read_answer_list(tmp_path / "nowhere.json", 3)


def test_the_command_imports_and_exports_with_answers(tiny, tmp_path: Path, capsys) -> None:
    reference = lxmert("LxmertForPreTraining", vocab_size=len(tiny.tokenizer))
    source, words = tmp_path / "lxmert", tmp_path / "words"
    reference.save_pretrained(source)
    tiny.tokenizer.save(words)
    codebook = tmp_path / "centroids.npy"
    torch.manual_seed(0)
    np.save(codebook, torch.randn(12, 10).numpy())
    answers = write_json(tmp_path / "all_ans.json", ANSWERS)
    rest = ["--codebook", str(codebook), "--tokenizer", str(words)]
    out = tmp_path / "model"
    assert run_import(["lxmert", str(source), str(out), *rest, "--answers", str(answers)]) == 0
    model, _, _ = load_transformer(out)
    table = load_answer_table(out, model.config.answers)
    assert table and table.answers == tuple(ANSWERS)
    capsys.readouterr()
    assert run_import(["to-lxmert", str(out), str(tmp_path / "exported")]) == 0
    said = capsys.readouterr().out
    assert "LxmertForPreTraining" in said and "LxmertForQuestionAnswering" in said and "random" not in said
    assert run_import(["lxmert", str(tmp_path / "exported"), str(tmp_path / "back")]) == 0
    again, _, _ = load_transformer(tmp_path / "back")
    assert again.config == model.config
    for one, other in zip(model.state_dict().values(), again.state_dict().values(), strict=True):
        assert one.equal(other)
    assert load_answer_table(tmp_path / "back", again.config.answers).answers == table.answers

    write_json(answers, ANSWERS[:-1])
    capsys.readouterr()
    for arguments in (
        ["lxmert", str(source), str(tmp_path / "no"), *rest],
        ["bert", str(source), str(tmp_path / "no"), *rest],
    ):
        assert run_import([*arguments, "--answers", str(answers)]) == 1
        message = capsys.readouterr().err.strip()
        assert "answer" in message and "\n" not in message and not (tmp_path / "no").exists()


def test_fine_tuning_copies_the_rows_of_known_answers(tiny) -> None:
    known = AnswerTable(["yes", "no", "kite"])
    model = pooled(tiny.config, answers=known)
    rows, bias = model.answer_head.answers.weight, model.answer_head.answers.bias
    new = with_heads(model, 0, answers=AnswerTable(["boat", "kite", "yes", "2"]), known=known)
    assert new.answer_head.answers.weight[[1, 2]].equal(rows[[2, 0]])
    assert new.answer_head.answers.bias[[1, 2]].equal(bias[[2, 0]])
    assert not new.answer_head.answers.weight[[0, 3]].any()
    assert new.answer_head.inner.weight.equal(model.answer_head.inner.weight)
    none = with_heads(model, 0, answers=AnswerTable(["boat", "2"]), known=known)
    assert not none.answer_head.answers.weight.any() and not none.answer_head.answers.bias.any()
