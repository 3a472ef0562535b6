"""What token-level training starts from: random weights, or a model directory such as an imported checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diptych.model.answer_table import AnswerTable
from diptych.model.errors import UserError
from diptych.model.networks.architectures import build_transformer
from diptych.model.networks.config import TransformerConfig, named_config
from diptych.model.networks.unified import UnifiedTransformer
from diptych.model.pretrained import load_transformer
from diptych.model.tokenizer import CaptionTokenizer, build_tokenizer

MOST_UNKNOWN = 0.01


def random_transformer(
    network: str,
    architecture: str,
    caption_attention: str,
    image_features: str,
    texts: Sequence[str],
    min_count: int,
    codebook: Tensor,
    seed: int,
    answers: int = 0,
    **heads: Any,
) -> tuple[UnifiedTransformer, CaptionTokenizer]:
    """Build the named size ``network`` of an architecture for a codebook float32 ``[K, D]`` and a vocabulary from the training
    captions, with ``answers`` in its answer table also from the training questions
    (:func:`diptych.model.tokenizer.build_tokenizer`).
    ``heads``: other heads, as :class:`TransformerConfig` names them."""
    tokenizer = build_tokenizer(texts, min_count)
    codes, width = codebook.shape
    torch.manual_seed(seed)
    config = named_config(
        network, architecture, vocab_size=len(tokenizer), codebook_size=codes, feature_dim=width
    )
    model = build_transformer(
        replace(
            config,
            caption_attention=caption_attention,
            image_features=image_features,
            answers=answers,
            **heads,
        )
    )
    model.set_codebook(codebook)
    return model, tokenizer


def initial_transformer(
    folder: Path,
    network: str,
    architecture: str,
    caption_attention: str,
    image_features: str,
    captions: Sequence[str],
    codebook: Tensor,
) -> tuple[UnifiedTransformer, CaptionTokenizer]:
    """Load the model directory ``folder`` to train it further on these ``captions`` and this codebook.

    Its architecture and sizes must be those of ``architecture`` and ``network``; ``caption_attention`` and ``image_features`` may
    differ from what it was trained with. What else its config decides (dropout, the kind of code head) stays. So do the statistics
    of its visual input, which for imported checkpoints are the identity.

    Raises:
        UserError: it has another size, it was made with another codebook, its vocabulary lacks more than a hundredth of
            the captions' words, or one of its files is missing or unreadable.
    """
    model, tokenizer, own = load_transformer(folder)
    wanted = named_config(
        network, architecture, vocab_size=len(tokenizer), codebook_size=own.shape[0], feature_dim=own.shape[1]
    )
    different = [
        f"{field.name} {getattr(model.config, field.name)} instead of {getattr(wanted, field.name)}"
        for field in fields(TransformerConfig)
        if (field.type == "int" or field.name == "architecture")
        and field.name not in ("answers", "object_classes")
        and getattr(model.config, field.name) != getattr(wanted, field.name)
    ]
    if different:
        raise UserError(
            f"initial: {folder} is not of the size {network}: {', '.join(different)}; name its size as "
            "network and its architecture"
        )
    if own.shape != codebook.shape or not torch.allclose(own, codebook, rtol=1e-3, atol=1e-5):
        shapes = (
            "" if own.shape == codebook.shape else f" (K, D {tuple(own.shape)}, not {tuple(codebook.shape)})"
        )
        raise UserError(
            f"initial: {folder} was made with another codebook than the cluster stage's{shapes}: its codes mean other "
            "things; import it with this codebook, or give the cluster stage the one that belongs to it"
        )
    pieces = tokenizer.encode(captions, model.config.text_positions)
    unknown = int((pieces == tokenizer.unk).sum())
    words = int((pieces != tokenizer.pad).sum()) - 2 * len(captions)
    if unknown > MOST_UNKNOWN * words:
        raise UserError(
            f"initial: the vocabulary of {folder} lacks {unknown} of {words} words of the training captions; is it of "
            "another language, or cased?"
        )
    model.config = replace(model.config, caption_attention=caption_attention, image_features=image_features)
    return model, tokenizer


def with_heads(
    model: UnifiedTransformer,
    seed: int,
    *,
    answers: AnswerTable | None = None,
    known: AnswerTable | None = None,
    matching: bool = False,
    pairs: bool = False,
) -> UnifiedTransformer:
    """Return a transformer with the weights of ``model``, these heads, those that it lacks drawn by ``seed``, and no others of
    pretraining.

    Args:
        answers: the table of the answer head. Where ``known``, the table of the answer head of ``model``, is another, the
            rows of answers that both have are copied and the others start at zero, as LXMERT fine-tunes.
    """
    torch.manual_seed(seed)
    rows = len(answers) if answers else 0
    config = replace(model.config, answers=rows, matching=matching, pairs=pairs)
    new = build_transformer(replace(config, regresses=False, object_classes=0))
    weights = new.state_dict()
    old = model.state_dict()
    if answers and known and answers.answers != known.answers:
        number = {answer: row for row, answer in enumerate(known.answers)}
        shared = [answer for answer in answers.answers if answer in number]
        old_rows = torch.tensor([number[answer] for answer in shared], dtype=torch.long)
        is_shared = torch.tensor([answer in number for answer in answers.answers])
        for name in ("answer_head.answers.weight", "answer_head.answers.bias"):
            copied = torch.zeros_like(weights[name])
            copied[is_shared] = old[name][old_rows]
            old[name] = copied
    weights.update(
        {
            name: tensor
            for name, tensor in old.items()
            if name in weights and tensor.shape == weights[name].shape
        }
    )
    new.load_state_dict(weights)
    return new
