"""Losses of X-LXMERT's pretraining (X-LXMERT 5.1, C.5), and of LXMERT's that it is compared with.

Masked codes (CCC) are :func:`diptych.model.objectives.token.paint_loss` without smoothing: what painting trains. Answers (QA)
are :func:`diptych.model.objectives.answers.answer_loss`. The masks of codes are
:func:`diptych.model.objectives.token.sample_mask`, or :func:`bernoulli_mask` where uniform masking is taken away.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from diptych.model.decoding.answer import question_states
from diptych.model.devices import Places, Texts
from diptych.model.errors import UserError
from diptych.model.networks.unified import UnifiedTransformer
from diptych.model.tokenizer import CaptionTokenizer

MASKED_SHARE = 0.15  # of words, and of cells where these are masked one by one


def mask_words(
    tokenizer: CaptionTokenizer, ids: Tensor, share: float = MASKED_SHARE
) -> tuple[Tensor, Tensor]:
    """Choose words to predict, each with the chance ``share``; of these 80% become [MASK], 10% a word drawn from the
    vocabulary, and 10% stay (BERT's masking, as in the released code). Uses torch's global generator.

    Args:
        ids: int64 ``[n, t]``. Special tokens, [SEP] and padding among them, are never chosen.

    Returns:
        ids with the chosen words changed, and the choice, bool ``[n, t]``. A text may have no chosen word.
    """
    special = torch.isin(ids, torch.tensor([tokenizer.pad, tokenizer.cls, tokenizer.sep]))
    chosen = (torch.rand(ids.shape) < share) & ~special
    fate, drawn = torch.rand(ids.shape), torch.randint(len(tokenizer), ids.shape)
    changed = torch.where(chosen & (fate < 0.8), tokenizer.mask, ids)
    ordinary = ~torch.isin(drawn, tokenizer.forbidden)
    return torch.where(chosen & (fate >= 0.8) & (fate < 0.9) & ordinary, drawn, changed), chosen


def bernoulli_mask(n: int, cells: int, share: float = MASKED_SHARE) -> Tensor:
    """Draw the cells to predict as LXMERT does, each with the chance ``share``: bool ``[n, cells]``, at least one of each
    row. Uses torch's global generator."""
    masked = torch.rand(n, cells) < share
    none = ~masked.any(1)
    masked[none, torch.randint(cells, (int(none.sum()),))] = True
    return masked


def counted_words(
    tokenizer: CaptionTokenizer, ids: Tensor, targets: Tensor, chosen: Tensor
) -> tuple[Tensor, Tensor, Places]:
    """Texts of :func:`masked_word_loss`, cut to the longest, and their chosen words, counted: ids and targets ``[n, c, t]``, and
    places among n * c texts."""
    texts = Texts.of(targets, tokenizer.pad)
    longest = texts.ids.shape[-1]
    return ids[..., :longest], texts.ids, Places.of(chosen[..., :longest].flatten(0, 1))


def masked_word_loss(
    model: UnifiedTransformer,
    tokenizer: CaptionTokenizer,
    images: list[Tensor],
    ids: Tensor,
    targets: Tensor,
    chosen: Tensor | Places,
) -> Tensor:
    """MLM: cross-entropy of the ``chosen`` words, their mean; 0 where there is none.

    Args:
        images: n of them (:func:`diptych.model.decoding.caption.encode_images`), each seen once for all its texts.
        ids, chosen: of :func:`mask_words`; targets: the ids before, all ``[n, c, t]``, c texts of each image; or all three of
            :func:`counted_words`, so that a GPU is not waited for.
    """
    per_image = ids.shape[1]
    if not isinstance(chosen, Places):
        ids, targets, chosen = counted_words(tokenizer, ids, targets, chosen)
    ids, targets = ids.flatten(0, 1), targets.flatten(0, 1)
    visible = targets != tokenizer.pad
    if model.config.caption_attention == "prefix":
        logits = model.question_word_logits(ids, visible, model.visual_keys_values(images), chosen)
    else:
        logits = model.masked_word_logits(ids, visible, images[0].repeat_interleave(per_image, 0), chosen)
    wanted = chosen.of_values(targets)
    return F.cross_entropy(logits.float(), wanted, reduction="sum") / max(1, len(wanted))


def matching_loss(
    model: UnifiedTransformer,
    tokenizer: CaptionTokenizer,
    images: list[Tensor],
    ids: Tensor | Texts,
    own: Tensor,
) -> tuple[Tensor, Tensor]:
    """ITM: cross-entropy of whether a text is its picture's own.

    Args:
        images: n of them (:func:`diptych.model.decoding.caption.encode_images`).
        ids: int64 ``[n, c, t]``, c texts for each.
        own: bool ``[n, c]``, false where the text is another picture's.

    Returns:
        The mean loss; and the states of [CLS] ``[n * c, h]``, from which questions are answered in the same pass.
    """
    states = question_states(model, tokenizer, images, ids)
    matching = F.cross_entropy(model.matching_logits(states).float(), own.flatten().long())
    return matching, states


def feature_regression_loss(
    model: UnifiedTransformer,
    tokenizer: CaptionTokenizer,
    features: Tensor,
    ids: Tensor | Texts,
    masked: Tensor | Places,
    objects: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """LXMERT's losses of masked cells: MVFR, the squared error of their features after the network's standardisation, and
    MOC, the cross-entropy of what the detector sees in them. Both are means over masked cells.

    Args:
        features: float ``[n, cells, D]``, also what visible cells show.
        ids: int64 ``[n, t]``; masked: bool ``[n, cells]``.
        objects: turns features ``[m, D]`` into the detector's logits of classes ``[m, C]``; None: no MOC, its loss is 0.

    Raises:
        UserError: the transformer has no head for features, or for objects.
    """
    if model.feature_head is None or (objects is not None and model.object_head is None):
        raise UserError(
            "this transformer has no head that regresses features, or none that classifies objects"
        )
    ids, masked = Texts.of(ids, tokenizer.pad).ids, Places.of(masked)
    text, bias = model.encode_text(ids, ids != tokenizer.pad)
    predicted = model.feature_head(
        model.visual_states(text, bias, model.encode_visual(features, masked), masked)
    )
    embedding = model.visual_embedding
    shown = masked.of_values(features)
    wanted = (shown - embedding.feature_mean) / embedding.feature_scale
    regression = F.mse_loss(predicted.float(), wanted.float())
    if objects is None or model.object_head is None:
        return regression, torch.zeros_like(regression)
    with torch.no_grad():
        classes = objects(shown).float().softmax(-1)
    return regression, F.cross_entropy(model.object_head(predicted).float(), classes)
