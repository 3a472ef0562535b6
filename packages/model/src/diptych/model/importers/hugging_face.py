"""Hugging Face directories: LXMERT in both directions, BERT as a start of the language side."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from diptych.model.answer_table import AnswerTable
from diptych.model.errors import UserError
from diptych.model.importers.checkpoint import HEADS, Imported, build, code_head_of, find_tensors
from diptych.model.importers.heads import find_heads, name_fine_tuned_head
from diptych.model.importers.names import CODEBOOK, common_names, lxmert_names
from diptych.model.networks.config import TransformerConfig
from diptych.model.networks.unified import UnifiedTransformer
from diptych.model.pretrained import check_codebook
from diptych.model.tokenizer import CaptionTokenizer

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
LXMERT_NAMES = {"lxmert.": "", "bert.": ""}
LANGUAGE = ("text_embedding.", "language_layers.", "layers.")
NEXT_SENTENCE = "BERT's prediction of the next sentence, which tells nothing about pictures"


def import_lxmert(
    folder: Path,
    codebook: Tensor | None = None,
    grid_size: int = 8,
    seed: int = 0,
    answers: Path | None = None,
) -> Imported:
    """Read a directory of ``LxmertModel``, ``LxmertForPreTraining`` or ``LxmertForQuestionAnswering``, or one of
    :func:`export_lxmert`.

    The size is that of its config.json. Heads that it lacks start at random (listed in the report).

    Args:
        codebook: float ``[K, D]``; LXMERT has none of its own.
        grid_size: cells along one side, where config.json does not say.
        seed: of what starts at random.
        answers: as in :func:`diptych.model.importers.heads.find_heads`.

    Raises:
        UserError: a file is missing, unreadable or not LXMERT's, or does not fit the codebook or the answers.
    """
    values = read_hugging_face_config(folder, "lxmert")
    tensors = name_fine_tuned_head(folder, common_names(read_weights(folder), LXMERT_NAMES))
    if codebook is None:
        if CODEBOOK not in tensors:
            raise UserError(f"{folder}: LXMERT has no codebook; give the centroids of the cluster stage")
        codebook = tensors[CODEBOOK][1].float()
    if codebook.shape[1] != values["visual_feat_dim"]:
        raise UserError(
            f"{folder}: visual_feat_dim is {values['visual_feat_dim']}, the codebook's D is {codebook.shape[1]}; give "
            "a codebook of the features that it was trained with"
        )
    config = TransformerConfig(
        hidden_size=values["hidden_size"],
        attention_heads=values["num_attention_heads"],
        intermediate_size=values["intermediate_size"],
        language_layers=values["l_layers"],
        visual_layers=values["r_layers"],
        cross_layers=values["x_layers"],
        vocab_size=values["vocab_size"],
        codebook_size=len(codebook),
        feature_dim=codebook.shape[1],
        grid_size=values.get("grid_size", grid_size),
        cell_positions=False,
        text_positions=values["max_position_embeddings"],
        dropout=values["hidden_dropout_prob"],
        code_head=code_head_of(tensors),
        initial_std=values["initializer_range"],
        caption_attention=values.get("caption_attention", "masked"),
        image_features=values.get("image_features", "two_level"),
    )
    heads = find_heads(folder, tensors, answers)
    return build(
        folder,
        tensors,
        heads.on(config),
        codebook,
        may_lack=lambda name: name.startswith(HEADS),
        table=heads.table,
        seed=seed,
    )


def import_bert(folder: Path, config: TransformerConfig, codebook: Tensor, seed: int = 0) -> Imported:
    """Start a transformer from a BERT directory, as LXMERT and X-LXMERT did: embeddings, the first language layers and,
    if it has one, the word head. The rest starts at random (listed in the report).

    Args:
        config: the transformer's size; what it shares with BERT has to be the same. It starts without an answer head: BERT
            has no answers that the rows of one could mean.
        codebook: float ``[K, D]``.
        seed: of what starts at random.

    Raises:
        UserError: a file is missing, unreadable or not BERT's, or of another size.
    """
    config = replace(config, answers=0)
    values = read_hugging_face_config(folder, "bert")
    if values["num_attention_heads"] != config.attention_heads:
        raise UserError(
            f"{folder}: BERT with {values['num_attention_heads']} attention heads, but the transformer has "
            f"{config.attention_heads}; use the same number"
        )
    if values.get("layer_norm_eps", 1e-12) != 1e-12:
        raise UserError(f"{folder}: layer_norm_eps is {values['layer_norm_eps']}; ours is 1e-12")
    tensors = common_names(read_weights(folder), LXMERT_NAMES)
    own = config.layers or config.language_layers
    beyond = range(own, values["num_hidden_layers"])
    unused = {r"(pooler|cls\.seq_relationship)\.": NEXT_SENTENCE}
    if beyond:
        layers = "|".join(map(str, beyond))
        unused[rf"encoder\.layer\.({layers})\."] = (
            f"layers beyond the {own} {'layers' if config.layers else 'language layers'}"
        )
    return build(
        folder, tensors, config, codebook, lambda name: not name.startswith(LANGUAGE), unused, seed=seed
    )


def export_lxmert(
    folder: Path,
    model: UnifiedTransformer,
    tokenizer: CaptionTokenizer,
    codebook: Tensor,
    table: AnswerTable | None = None,
) -> None:
    """Write a directory that ``LxmertModel.from_pretrained``, ``LxmertForPreTraining.from_pretrained`` and, of a model with
    an answer head, ``LxmertForQuestionAnswering.from_pretrained`` load, and that :func:`import_lxmert` reads back without
    loss. ``table``, that of the answer head, becomes answers.json.

    LXMERT takes features as they are: where ours standardises them (:meth:`UnifiedTransformer.set_codebook`), the same
    function is written into its feature projection. Code head, mask feature and codebook have X-LXMERT's names, the head for
    pairs those of LXMERT's NLVR2 model; transformers has no place for these four. Heads of LXMERT that ``model`` lacks, and the
    pooler if it lacks all, transformers starts at random and says so.

    Raises:
        UserError: the network is a single stream, has row and column embeddings of cells, or regresses features, for which LXMERT
            has no place.
    """
    check_codebook(model, codebook, "codebook")
    config = model.config
    if config.architecture != "two_streams":
        raise UserError("LXMERT has two streams; a single stream cannot be exported as one")
    if config.cell_positions:
        raise UserError(
            "LXMERT has no embeddings of a cell's row and column; only a transformer trained with cell_positions false "
            "can be exported"
        )
    if config.regresses:
        raise UserError(
            "the model has a head that regresses features, ours and not LXMERT's; only a transformer without it can be exported"
        )
    ours = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    mean, scale = ours["visual_embedding.feature_mean"], ours["visual_embedding.feature_scale"]
    if mean.any() or scale != 1:
        weight = ours["visual_embedding.features.weight"] / scale
        ours["visual_embedding.features.weight"] = weight
        ours["visual_embedding.features.bias"] = ours["visual_embedding.features.bias"] - weight @ mean
        ours["visual_embedding.mask_feature"] = ours["visual_embedding.mask_feature"] * scale + mean
    tensors = {CODEBOOK: codebook.detach().float().cpu()}
    for name, theirs in lxmert_names(config).items():
        tensors.update(zip(theirs, ours[name].chunk(len(theirs)), strict=True))
    body = ("embeddings.", "encoder.", "pooler.")
    tensors = {
        f"lxmert.{name}" if name.startswith(body) else name: tensor.contiguous().clone()
        for name, tensor in tensors.items()
    }
    values = {
        "architectures": [architecture(config)],
        "model_type": "lxmert",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_attention_heads": config.attention_heads,
        "intermediate_size": config.intermediate_size,
        "hidden_act": "gelu",
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.dropout,
        "max_position_embeddings": config.text_positions,
        "type_vocab_size": 2,
        "initializer_range": config.initial_std,
        "l_layers": config.language_layers,
        "x_layers": config.cross_layers,
        "r_layers": config.visual_layers,
        "visual_feat_dim": config.feature_dim,
        "visual_pos_dim": 4,
        "tie_word_embeddings": True,
        "task_obj_predict": False,
        "task_matched": config.matching,
        "task_qa": config.answers > 0,
        **({"num_qa_labels": config.answers} if config.answers else {}),
        "grid_size": config.grid_size,
        "caption_attention": config.caption_attention,
        "image_features": config.image_features,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(values, indent=2) + "\n")
    save_file(tensors, folder / WEIGHT_FILES[0], metadata={"format": "pt"})
    tokenizer.save(folder)
    if table is not None:
        table.save(folder)


def architecture(config: TransformerConfig) -> str:
    """Name the class of transformers that has most of the network's heads."""
    return "LxmertForPreTraining" if config.matching or config.answers else "LxmertModel"


def read_hugging_face_config(folder: Path, model_type: str) -> dict[str, Any]:
    """Read config.json, completed by the library's defaults, and check what our architecture takes for granted."""
    from transformers import BertConfig, LxmertConfig

    path = folder / "config.json"
    try:
        written = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(
            f"{path}: no such file; give a Hugging Face directory of a {model_type} model"
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(written, dict) or written.get("model_type") != model_type:
        raise UserError(f"{path}: not the config of a {model_type} model")
    values = {**{"lxmert": LxmertConfig, "bert": BertConfig}[model_type]().to_dict(), **written}
    for key, needed in (("hidden_act", "gelu"), ("type_vocab_size", 2), ("visual_pos_dim", 4)):
        if values.get(key, needed) != needed:
            raise UserError(f"{path}: {key} is {values[key]!r}; this architecture needs {needed!r}")
    return values


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Read the weights of a Hugging Face directory."""
    for name in WEIGHT_FILES:
        path = folder / name
        if path.is_file():
            return find_tensors(path)
    raise UserError(f"{folder}: neither {' nor '.join(WEIGHT_FILES)} in it")
