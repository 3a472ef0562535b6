"""Turn a checkpoint of any format into a folder: what ``diptych import-checkpoint`` does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diptych.model.answer_table import load_answer_table
from diptych.model.errors import UserError
from diptych.model.importers.aug_vae import import_aug_vae
from diptych.model.importers.checkpoint import Imported, ImportReport
from diptych.model.importers.hugging_face import (
    architecture,
    export_lxmert,
    import_bert,
    import_lxmert,
)
from diptych.model.importers.image_generator import import_image_generator
from diptych.model.importers.uniter import import_uniter
from diptych.model.importers.x_lxmert import (
    import_generate_it,
    import_released_lxmert,
    import_x_lxmert,
)
from diptych.model.networks import aug_vae
from diptych.model.networks.config import SIZES, TransformerConfig, named_config, read_config
from diptych.model.networks.image_generator import SIZES as IMAGE_GENERATOR_SIZES
from diptych.model.networks.image_generator import ImageGeneratorConfig, save_image_generator
from diptych.model.networks.image_generator import named_config as named_image_generator
from diptych.model.networks.image_generator import read_config as read_image_generator
from diptych.model.new_folders import appearing, refusals_told
from diptych.model.pretrained import load_transformer, save_transformer
from diptych.model.tokenizer import load_tokenizer
from diptych.model.weight_files import read_tensors, why_no_array

FORMATS = ("x-lxmert", "generate-it", "lxmert", "uniter", "bert", "image-generator", "aug-vae", "to-lxmert")
TRANSFORMERS = ("x-lxmert", "generate-it", "lxmert", "uniter", "bert")
# the formats that read an option
READ_BY = {
    "codebook": (*TRANSFORMERS, "image-generator"),
    "tokenizer": TRANSFORMERS,
    "size": (*TRANSFORMERS, "image-generator", "aug-vae"),
    "answers": ("x-lxmert", "lxmert", "uniter"),
    "seed": ("lxmert", "uniter", "bert"),
}
REPORT_FILE = "import.json"


def read_codebook(path: Path | None) -> Tensor | None:
    """Read centroids float32 ``[K, D]``: ``.npy`` as X-LXMERT released them, or a codebook.safetensors of ours."""
    if path is None:
        return None
    if path.suffix == ".safetensors":
        tensors = read_tensors(path)
        if "centroids" not in tensors:
            raise UserError(f"{path}: no tensor 'centroids'; give the codebook of the cluster stage")
        codebook = tensors["centroids"].float()
    else:
        try:
            codebook = torch.from_numpy(np.load(path, allow_pickle=False).astype(np.float32))
        except FileNotFoundError:
            raise UserError(f"{path}: no such codebook") from None
        except (OSError, ValueError, EOFError, TypeError, AttributeError) as error:  # AttributeError: an .npz
            raise UserError(f"{path}: not a readable .npy file ({why_no_array(path, error)})") from None
    if codebook.ndim != 2 or not torch.isfinite(codebook).all():
        raise UserError(f"{path}: a codebook is [K, D] finite numbers, this is {list(codebook.shape)}")
    return codebook


def size(name: str, codebook: Tensor | None, architecture: str = "two_streams") -> TransformerConfig:
    """Return a named size of an architecture or that of a config file, with K and D of the codebook if one is given."""
    sizes = {} if codebook is None else {"codebook_size": len(codebook), "feature_dim": codebook.shape[1]}
    return named_config(name, architecture, **sizes) if name in SIZES else read_config(Path(name), **sizes)


def image_generator_size(name: str, codebook: Tensor | None) -> ImageGeneratorConfig:
    """Return a named size or that of a config file, with D of the codebook if one is given."""
    sizes = {} if codebook is None else {"feature_dim": codebook.shape[1]}
    if name in IMAGE_GENERATOR_SIZES:
        return named_image_generator(name, **sizes)
    return read_image_generator(Path(name), **sizes)


@dataclass(frozen=True)
class ImportRequest:
    """What to convert.

    Attributes:
        format: one of FORMATS.
        source: a .pth file or a directory.
        out: the directory to write; must not exist.
        codebook: centroids ``[K, D]``, .npy or .safetensors.
        tokenizer: a folder of tokenizer files; None: ``source`` if a directory.
        size: a named size or a config file; None: the default of the format. A directory of LXMERT has its own.
        seed: of weights that the checkpoint lacks; None: 0.
        answers: the list of the answers of its answer head; None: ``source/answers.json`` if there.
    """

    format: str
    source: Path
    out: Path
    codebook: Path | None = None
    tokenizer: Path | None = None
    size: str | None = None
    seed: int | None = None
    answers: Path | None = None


def convert(request: ImportRequest) -> Imported:
    """Run the importer of ``request.format``."""
    source, codebook, seed = request.source, read_codebook(request.codebook), request.seed or 0
    if request.format == "lxmert" and source.is_dir():
        return import_lxmert(source, codebook, seed=seed, answers=request.answers)
    if request.format == "bert":
        if codebook is None:
            raise UserError("BERT has no codebook; give --codebook, the centroids of the cluster stage")
        return import_bert(source, size(request.size or "base", codebook), codebook, seed)
    if request.format == "uniter":
        config = size(request.size, codebook, "single_stream") if request.size else None
        return import_uniter(source, config, codebook, request.answers, seed)
    config = size(request.size, codebook) if request.size else None
    if request.format == "lxmert":
        return import_released_lxmert(source, config, codebook, request.answers, seed)
    if request.format == "x-lxmert":
        return import_x_lxmert(source, config, codebook, request.answers)
    return import_generate_it(source, config, codebook)


def write(request: ImportRequest, folder: Path) -> str:
    """Write the result into ``folder``; returns what to print."""
    if request.format == "to-lxmert":
        model, tokenizer, codebook = load_transformer(request.source)
        export_lxmert(
            folder, model, tokenizer, codebook, load_answer_table(request.source, model.config.answers)
        )
        return how_to_load(model.config)
    if request.format == "image-generator":
        config = image_generator_size(request.size or "base", read_codebook(request.codebook))
        painter = import_image_generator(request.source, config)
        save_image_generator(folder, painter.generator)
        return reported(painter.report, folder)
    if request.format == "aug-vae":
        name = request.size or "base"
        size_of = aug_vae.named_config(name) if name in aug_vae.SIZES else aug_vae.read_config(Path(name))
        autoencoder = import_aug_vae(request.source, size_of)
        aug_vae.save_aug_vae(folder, autoencoder.model)
        return reported(autoencoder.report, folder)
    imported = convert(request)
    tokenizers = request.tokenizer or (request.source if request.source.is_dir() else None)
    if tokenizers is None:
        raise UserError(
            "the checkpoint has no tokenizer; give --tokenizer, the folder of bert-base-uncased's (UNITER: bert-base-cased's)"
        )
    tokenizer = load_tokenizer(tokenizers)
    if len(tokenizer) != imported.model.config.vocab_size:
        raise UserError(
            f"{tokenizers}: {len(tokenizer)} word pieces, but the checkpoint has {imported.model.config.vocab_size}; "
            "give the tokenizer it was trained with"
        )
    save_transformer(folder, imported.model, tokenizer, imported.codebook, imported.table)
    return reported(imported.report, folder)


def reported(report: ImportReport, folder: Path) -> str:
    """Write what became of the checkpoint beside what was made of it; returns what to print."""
    (folder / REPORT_FILE).write_text(report.to_json())
    return report.summary()


def how_to_load(config: TransformerConfig) -> str:
    """Tell which classes of transformers read an exported model, and what they miss in it."""
    name = f"loads with transformers.{architecture(config)}.from_pretrained"
    if not config.pooled:
        return f"{name}; its pooler starts at random"
    if config.answers:
        name += ", LxmertForQuestionAnswering too; answers.json tells which answer is which label"
        name += "" if config.matching else "; its matching head starts at random"
    return name


def import_into(request: ImportRequest) -> str:
    """Make the folder ``request.out``, whole or not at all; returns what to print.

    Raises:
        UserError: it exists or cannot be made, the format is unknown or does not read an option that is given, or the source
            cannot be converted.
    """
    if request.format not in FORMATS:
        raise UserError(f"format {request.format!r} is unknown; use one of {', '.join(FORMATS)}")
    for option, formats in READ_BY.items():
        if getattr(request, option) is not None and request.format not in formats:
            raise UserError(f"format {request.format} does not read --{option}; leave it out")
    if request.format == "lxmert" and request.size is not None and request.source.is_dir():
        raise UserError(f"{request.source}: its own config.json tells its size; leave out --size")
    with refusals_told(request.out), appearing(request.out) as folder:
        return write(request, folder)
