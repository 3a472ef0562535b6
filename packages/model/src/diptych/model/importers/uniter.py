"""Checkpoints of UNITER's own code (https://github.com/ChenRocks/UNITER): pretrained, or fine-tuned on VQA."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from diptych.model.errors import UserError
from diptych.model.importers.checkpoint import HEADS, Imported, build, find_tensors, released_config
from diptych.model.importers.heads import find_heads
from diptych.model.importers.names import (
    ANSWER_HEAD,
    FEATURE_PROJECTION,
    MASK_FEATURE,
    MATCHING_HEAD,
    REGRESSION,
    common_names,
)
from diptych.model.networks.config import TransformerConfig

UNITER_NAMES = {
    "uniter.": "",
    "bert.": "",
    "itm_output.": f"{MATCHING_HEAD}.",
    "vqa_output.": f"{ANSWER_HEAD}.",
}
MASKS = "img_embeddings.mask_embedding.weight"
TIED_REGRESSION = f"{REGRESSION}.weight"
FEATURES = f"{FEATURE_PROJECTION['single_stream']}.weight"
TYPES = "embeddings.token_type_embeddings.weight"
LEFT_OUT = {
    r"region_classifier\.": "UNITER's classes of regions; ours predicts codes",
    r"(nlvr2_output|re_output|vcr_output|rank_output|attn\d|attn_pool|fc)\b": "a head of one of UNITER's other tasks",
}


def import_uniter(
    path: Path,
    config: TransformerConfig | None = None,
    codebook: Tensor | None = None,
    answers: Path | None = None,
    seed: int = 0,
) -> Imported:
    """Read UNITER's ``uniter-base.pt`` or a checkpoint fine-tuned from it, a dict of tensors.

    Its pictures were regions; as the start of X-UNITER their places are those of the grid's cells (X-LXMERT 7.2). Of the two rows
    of its mask embedding the second is what a masked region holds, the mask feature here; the first is zero whenever UNITER runs.
    Its regression of features, whose matrix is that of the visual input, becomes a head with a matrix of its own. Of the token types
    the first two stay, text and image; what is fine-tuned on NLVR2 or VCR has more.

    Args:
        config: its size; None: as its tensors show (:func:`diptych.model.importers.checkpoint.released_config`). It decides no
            heads; the file does.
        codebook: float ``[K, D]``, needed, since UNITER has no codes; the code head starts at random, by ``seed``.
        answers: the answers of its answer head, where one was fine-tuned (:func:`diptych.model.importers.heads.find_heads`).

    Raises:
        UserError: the file is unreadable or does not fit ``config``, ``codebook`` or ``answers``.
    """
    tensors = common_names(find_tensors(path), UNITER_NAMES)
    if codebook is None:
        raise UserError(f"{path}: UNITER has no codebook; give the centroids of the cluster stage")
    if config is not None and config.architecture != "single_stream":
        raise UserError(f"{path}: UNITER is a single stream; give the size of one")
    if MASKS in tensors:
        original, rows = tensors.pop(MASKS)
        if rows.ndim != 2 or len(rows) != 2:
            raise UserError(f"{path}: {original} is {list(rows.shape)}; UNITER's has two rows")
        tensors[MASK_FEATURE] = original, rows[1]
    if TYPES in tensors:
        original, types = tensors[TYPES]
        tensors[TYPES] = original, types[:2]
    regresses = f"{REGRESSION}.bias" in tensors
    tied = tensors.get(TIED_REGRESSION) or tensors.get(FEATURES)  # one tensor, which some files have once
    if regresses and tied:
        tensors[TIED_REGRESSION] = tied[0], tied[1].mT if tied[1].ndim == 2 else tied[1]
    heads = find_heads(path, tensors, answers)
    config = heads.on(config or released_config(path, tensors, codebook, "single_stream"), regresses)
    return build(
        path, tensors, config, codebook, lambda name: name.startswith(HEADS), LEFT_OUT, heads.table, seed
    )
