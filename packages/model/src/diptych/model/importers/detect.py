"""Whose checkpoint a file or directory is."""

from __future__ import annotations

import json
from pathlib import Path

from diptych.model.errors import UserError
from diptych.model.importers.checkpoint import find_tensors

# A tensor that only the checkpoints of one origin have, without prefixes such as "module."; the first origin that fits.
TELLING = {
    "generate-it": ("embedding_layer.word_embeddings.weight", "cluster_codebook.weight"),
    "x-lxmert": ("obj_predict_head.out_cluster.weight", "vis_emb.weight"),
    "uniter": ("img_embeddings.img_linear.weight",),
    "lxmert": ("embeddings.word_embeddings.weight",),
    "image-generator": ("bottleneck_emb.0.weight",),
    "aug-vae": ("pre_quants.0.weight",),
}
DIRECTORIES = ("lxmert", "bert")


def detect_format(source: Path) -> str:
    """Return the importer's name for ``source``: by the model_type of a directory's config.json, or the names of a
    file's tensors.

    Raises:
        UserError: it is missing, unreadable, or of none of these origins.
    """
    if source.is_dir():
        path = source / "config.json"
        try:
            kind = json.loads(path.read_text(encoding="utf-8")).get("model_type")
        except (OSError, ValueError, AttributeError):
            raise UserError(f"{path}: not there, or not a config; name the format") from None
        if kind not in DIRECTORIES:
            raise UserError(
                f"{path}: model_type is {kind!r}, not {' or '.join(DIRECTORIES)}; name the format"
            )
        return kind
    names = find_tensors(source)
    for origin, telling in TELLING.items():
        if any(name == known or name.endswith(f".{known}") for name in names for known in telling):
            return origin
    raise UserError(
        f"{source}: its tensors ({', '.join(list(names)[:2])}, ...) are those of no known origin; name the format"
    )
