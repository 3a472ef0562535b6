"""Checkpoints of the two released implementations: X-LXMERT's and generate-it's."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from diptych.model.config import TransformerConfig
from diptych.model.errors import UserError
from diptych.model.importers.checkpoint import Imported, build, read_pickled, tensors_only
from diptych.model.importers.names import common_names

X_LXMERT_NAMES = {"bert.": ""}
GENERATE_IT_NAMES = {
    "embedding_layer.": "embeddings.",
    "classifier.": "cls.",
    "img_classifier.": "obj_predict_head.",
    "cluster_codebook.weight": "vis_emb.weight",
}


def import_x_lxmert(path: Path, config: TransformerConfig, codebook: Tensor | None = None) -> Imported:
    """Read X-LXMERT's ``Epoch20_LXRT.pth``: a dict of tensors (https://github.com/allenai/x-lxmert).

    Args:
        config: its size, ``named_config("base")``. With ``code_head="codebook"`` the code head's last layer stays the
            frozen codebook, as X-LXMERT trained it; with "features" it is free, as generate-it goes on.
        codebook: float ``[K, D]``, if the file has none.

    Raises:
        UserError: the file is unreadable or does not fit ``config``.
    """
    tensors = common_names(tensors_only(read_pickled(path), path), X_LXMERT_NAMES)
    return build(path, tensors, config, codebook)


def import_generate_it(path: Path, config: TransformerConfig, codebook: Tensor | None = None) -> Imported:
    """Read generate-it's ``it_generator.pth``: a dict whose "model" is a dict of tensors; what else it holds (optimizer,
    schedule, step) is left alone (https://github.com/researchmm/generate-it).

    Args and errors as in :func:`import_x_lxmert`.
    """
    content = read_pickled(path)
    if not isinstance(content.get("model"), dict):
        raise UserError(f'{path}: no dict named "model" in it; is this a checkpoint of generate-it?')
    tensors = common_names(tensors_only(content["model"], path), GENERATE_IT_NAMES)
    return build(path, tensors, config, codebook)
