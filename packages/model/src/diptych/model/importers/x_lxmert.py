"""Checkpoints of the released implementations: X-LXMERT's, LXMERT's and generate-it's."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from diptych.model.errors import UserError
from diptych.model.importers.checkpoint import HEADS, Imported, build, find_tensors, released_config
from diptych.model.importers.heads import find_heads, name_fine_tuned_head
from diptych.model.importers.names import CODE_WEIGHTS, CODEBOOK, common_names
from diptych.model.networks.config import TransformerConfig

# Fine-tuned models have the network in an encoder, which several GPUs wrap once more.
X_LXMERT_NAMES = {
    "lxrt_encoder.model.module.bert.": "",
    "lxrt_encoder.model.module.": "",
    "lxrt_encoder.model.bert.": "",
    "lxrt_encoder.model.": "",
    "bert.": "",
}
GENERATE_IT_NAMES = {
    "embedding_layer.": "embeddings.",
    "classifier.": "cls.",
    "img_classifier.": "obj_predict_head.",
    "cluster_codebook.weight": "vis_emb.weight",
}
UNTRAINED = {
    r"(pooler|cls\.seq_relationship)\.": "image-text matching is no task of generate-it, which never trains this"
}


def import_x_lxmert(
    path: Path,
    config: TransformerConfig | None = None,
    codebook: Tensor | None = None,
    answers: Path | None = None,
) -> Imported:
    """Read X-LXMERT's ``Epoch20_LXRT.pth``: a dict of tensors (https://github.com/allenai/x-lxmert).

    Args:
        config: its size, ``named_config("base")``; None: as its tensors show
            (:func:`diptych.model.importers.checkpoint.released_config`). With ``code_head="codebook"`` the code head's
            last layer stays the frozen codebook, as X-LXMERT trained it; with "features" it is free, as generate-it
            goes on.
        codebook: float ``[K, D]``, if the file has none. In X-LXMERT the codebook and the last layer of its code head
            are one tensor, so a file that has either has both.
        answers: the list of the 9,500 answers of its answer head, ``all_ans.json``
            (:func:`diptych.model.importers.heads.find_heads`). ``config`` decides no heads; the file does.

    Raises:
        UserError: the file is unreadable or does not fit ``config`` or ``answers``.
    """
    tensors = name_fine_tuned_head(path, common_names(find_tensors(path), X_LXMERT_NAMES))
    if CODEBOOK in tensors:
        tensors.setdefault(CODE_WEIGHTS, tensors[CODEBOOK])
    elif CODE_WEIGHTS in tensors and codebook is None:
        tensors[CODEBOOK] = tensors[CODE_WEIGHTS]
    heads = find_heads(path, tensors, answers)
    config = heads.on(config or released_config(path, tensors))
    return build(path, tensors, config, codebook, table=heads.table)


def import_released_lxmert(
    path: Path,
    config: TransformerConfig | None = None,
    codebook: Tensor | None = None,
    answers: Path | None = None,
    seed: int = 0,
) -> Imported:
    """Read a ``.pth`` of LXMERT's own code (https://github.com/airsplay/lxmert): a pretrained ``Epoch20_LXRT.pth``, or a
    ``BEST.pth`` fine-tuned on VQA, GQA or NLVR2, which has no word head; the latter's head becomes that for pairs. Of a model
    fine-tuned from X-LXMERT it reads the same.

    Args and errors as in :func:`import_x_lxmert`, but ``codebook`` is needed, since LXMERT has no codes, and ``answers`` is
    ``trainval_label2ans.json`` of the task where one was fine-tuned. Heads that the file lacks start at random, by ``seed``.
    """
    tensors = name_fine_tuned_head(path, common_names(find_tensors(path), X_LXMERT_NAMES))
    if codebook is None:
        raise UserError(f"{path}: LXMERT has no codebook; give the centroids of the cluster stage")
    heads = find_heads(path, tensors, answers)
    config = heads.on(config or released_config(path, tensors, codebook))
    return build(
        path, tensors, config, codebook, lambda name: name.startswith(HEADS), table=heads.table, seed=seed
    )


def import_generate_it(
    path: Path, config: TransformerConfig | None = None, codebook: Tensor | None = None
) -> Imported:
    """Read generate-it's ``it_generator.pth``: a dict whose "model" is a dict of tensors; what else it holds (optimizer,
    schedule, step) is left alone (https://github.com/researchmm/generate-it).

    Args and errors as in :func:`import_x_lxmert`, but here the codebook is a tensor of its own.
    """
    tensors = common_names(find_tensors(path), GENERATE_IT_NAMES)
    return build(path, tensors, config or released_config(path, tensors), codebook, unused=UNTRAINED)
