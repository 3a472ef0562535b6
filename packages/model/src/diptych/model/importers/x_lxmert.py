"""Checkpoints of the two released implementations: X-LXMERT's and generate-it's."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from diptych.model.importers.checkpoint import Imported, build, find_tensors, released_config
from diptych.model.importers.names import CODE_WEIGHTS, CODEBOOK, common_names
from diptych.model.networks.config import TransformerConfig

X_LXMERT_NAMES = {"bert.": ""}
GENERATE_IT_NAMES = {
    "embedding_layer.": "embeddings.",
    "classifier.": "cls.",
    "img_classifier.": "obj_predict_head.",
    "cluster_codebook.weight": "vis_emb.weight",
}


def import_x_lxmert(
    path: Path, config: TransformerConfig | None = None, codebook: Tensor | None = None
) -> Imported:
    """Read X-LXMERT's ``Epoch20_LXRT.pth``: a dict of tensors (https://github.com/allenai/x-lxmert).

    Args:
        config: its size, ``named_config("base")``; None: as its tensors show
            (:func:`diptych.model.importers.checkpoint.released_config`). With ``code_head="codebook"`` the code head's
            last layer stays the frozen codebook, as X-LXMERT trained it; with "features" it is free, as generate-it
            goes on.
        codebook: float ``[K, D]``, if the file has none. In X-LXMERT the codebook and the last layer of its code head
            are one tensor, so a file that has either has both.

    Raises:
        UserError: the file is unreadable or does not fit ``config``.
    """
    tensors = common_names(find_tensors(path), X_LXMERT_NAMES)
    if CODEBOOK in tensors:
        tensors.setdefault(CODE_WEIGHTS, tensors[CODEBOOK])
    elif CODE_WEIGHTS in tensors and codebook is None:
        tensors[CODEBOOK] = tensors[CODE_WEIGHTS]
    return build(path, tensors, config or released_config(path, tensors), codebook)


def import_generate_it(
    path: Path, config: TransformerConfig | None = None, codebook: Tensor | None = None
) -> Imported:
    """Read generate-it's ``it_generator.pth``: a dict whose "model" is a dict of tensors; what else it holds (optimizer,
    schedule, step) is left alone (https://github.com/researchmm/generate-it).

    Args and errors as in :func:`import_x_lxmert`, but here the codebook is a tensor of its own.
    """
    tensors = common_names(find_tensors(path), GENERATE_IT_NAMES)
    return build(path, tensors, config or released_config(path, tensors), codebook)
