"""L-Verse's released autoencoders: AugVAE-ML and AugVAE-SL, Lightning's ``.ckpt`` files.

They are read as plain tensors; what lies beside them (Lightning's own state, hyper-parameters) is never executed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from diptych.model.errors import UserError
from diptych.model.importers.checkpoint import ImportReport, check_finite, check_fit, find_tensors
from diptych.model.networks.aug_vae import FIRST_LEVEL, FURTHER_LEVELS, AugVAE, AugVAEConfig

KINDS = ("weight", "bias")
RESIDUAL = {
    "norm1": "norm1",
    "convolution1": "conv1",
    "norm2": "norm2",
    "convolution2": "conv2",
    "shortcut": "nin_shortcut",
}
# the codebook's tensors
CODEBOOK = {"embedding": "weight", "counts": "cluster_size", "sums": "embed_avg"}
UNUSED = {
    r"loss\.": "the perceptual loss's network",
    r"quantizers\.\d+\.embedding\.": "the codebook once more: all levels share it",
    r"(pre|post)_quants\.\d+\.": "of a level that is not coded any more",
}


@dataclass(frozen=True)
class ImportedAugVAE:
    """An autoencoder in eval mode, float32, and the report."""

    model: AugVAE
    report: ImportReport


def released_names(config: AugVAEConfig) -> Iterator[tuple[str, str]]:
    """Each tensor of ours with its name in the checkpoint."""
    levels = config.built_levels
    for level in range(levels):
        factors = FURTHER_LEVELS if level else FIRST_LEVEL
        # decoders are counted there from the coarsest on
        for ours, theirs, blocks in (
            (f"encoders.{level}", f"encoders.{level}", encoder_blocks(factors, config)),
            (f"decoders.{level}", f"decoders.{levels - 1 - level}", decoder_blocks(factors, config)),
        ):
            for own, released in (("stem", "conv_in"), ("norm", "norm_out"), ("head", "conv_out")):
                yield f"{ours}.{own}", f"{theirs}.{released}"
            for place, block in enumerate(blocks):
                if block.endswith(".conv"):
                    yield f"{ours}.blocks.{place}", f"{theirs}.{block}"
                else:
                    for own, released in RESIDUAL.items():
                        yield f"{ours}.blocks.{place}.{own}", f"{theirs}.{block}.{released}"
    for place, level in enumerate(config.coded_levels):
        yield f"before_codes.{place}", f"pre_quants.{level}"
        # as decoders are: the first belongs to the coarsest coded level
        yield f"after_codes.{place}", f"post_quants.{len(config.coded_levels) - 1 - place}"
    for level in range(0 if config.coded_level is None else levels):
        yield f"expansions.{level}", f"connectors.{levels - 1 - level}"


def encoder_blocks(factors: tuple[int, ...], config: AugVAEConfig) -> list[str]:
    """The names of an encoder's blocks, in our order."""
    names = []
    for place in range(len(factors)):
        names += [f"down.{place - 1}.downsample.conv"] if place else []
        names += [f"down.{place}.block.{number}" for number in range(config.residual_blocks)]
    return [*names, "mid.block_1", "mid.block_2"]


def decoder_blocks(factors: tuple[int, ...], config: AugVAEConfig) -> list[str]:
    """The names of a decoder's blocks, in our order; its resolutions are counted there from the finest on."""
    names = ["mid.block_1", "mid.block_2"]
    for place in reversed(range(len(factors))):
        names += [f"up.{place + 1}.upsample.conv"] if place < len(factors) - 1 else []
        names += [f"up.{place}.block.{number}" for number in range(config.residual_blocks + 1)]
    return names


def import_aug_vae(path: Path, config: AugVAEConfig) -> ImportedAugVAE:
    """Read a released checkpoint: ``connectors`` in it make it a single-level one, of ``config.coded_level``; without them it is the
    multi-level one, whatever ``config.coded_level`` says.

    Args:
        config: its size, ``named_config("base")``.

    Raises:
        UserError: the file is unreadable, does not fit ``config``, or its levels have different codebooks.
    """
    tensors = find_tensors(path)
    if not any(name.startswith("connectors.") for name in tensors):
        config = replace(config, coded_level=None)
    elif config.coded_level is None:
        raise UserError(
            f"{path}: a single-level autoencoder; give a config with its coded_level (base has 1)"
        )
    model = AugVAE(config)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    names = {
        f"{ours}.{kind}": f"{theirs}.{kind}" for ours, theirs in released_names(config) for kind in KINDS
    }
    names = {ours: theirs for ours, theirs in names.items() if ours in shapes}
    quantizer = f"quantizers.{config.coded_levels[-1]}.embedding"
    names |= {f"quantizer.{ours}": f"{quantizer}.{theirs}" for ours, theirs in CODEBOOK.items()}
    missing = sorted(theirs for theirs in names.values() if theirs not in tensors)
    misshapen = [
        f"{theirs} {list(tensors[theirs].shape)}, not {list(shapes[ours])}"
        for ours, theirs in names.items()
        if theirs in tensors and tensors[theirs].shape != shapes[ours]
    ]
    used = set(names.values())
    unused = {
        name: reason
        for name in tensors
        if name not in used
        for reason in [next((why for known, why in UNUSED.items() if re.match(known, name)), "")]
    }
    check_fit(
        f"{path} does not fit an AugVAE of image_size {config.image_size}, {config.channels} channels, "
        f"{config.codebook_size} codes of {config.code_dim}",
        missing,
        sorted(misshapen),
        sorted(name for name, reason in unused.items() if not reason),
    )
    check_one_codebook(path, config, tensors)
    check_finite(path, {theirs: tensors[theirs] for theirs in names.values()})
    model.load_state_dict({ours: tensors[theirs].float() for ours, theirs in names.items()})
    return ImportedAugVAE(model.eval(), ImportReport(used=sorted(used), unused=unused, initialised=[]))


def check_one_codebook(path: Path, config: AugVAEConfig, tensors: dict[str, Tensor]) -> None:
    """Raise a UserError unless all coded levels have the same codes."""
    books = [tensors[f"quantizers.{level}.embedding.weight"] for level in config.coded_levels]
    different = [
        level
        for level, book in zip(config.coded_levels, books, strict=True)
        if not torch.equal(book, books[-1])
    ]
    if different:
        raise UserError(
            f"{path}: the codebook of level {different[0]} is another than that of level {config.coded_levels[-1]}; all levels of an "
            "AugVAE share one"
        )
