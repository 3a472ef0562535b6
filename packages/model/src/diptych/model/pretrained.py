"""The model directory of each family. No pickle.

unified: config.json, model.safetensors, tokenizer files, codebook.safetensors, with an answer head answers.json
(:mod:`diptych.model.answer_table`). A packaged model (:mod:`diptych.model.packaged`), which has its codebook in a folder of its own,
is read as well.

l_verse: BiART's config.json and model.safetensors, tokenizer files, and the AugVAE whose codes it reads and writes in a folder
``image_tokenizer``.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from diptych.model.answer_table import AnswerTable
from diptych.model.errors import UserError
from diptych.model.networks.architectures import build_transformer
from diptych.model.networks.aug_vae import AugVAE, load_aug_vae, save_aug_vae
from diptych.model.networks.biart import BiART
from diptych.model.networks.biart import read_config as read_biart_config
from diptych.model.networks.config import read_config
from diptych.model.networks.config_files import config_text
from diptych.model.networks.unified import UnifiedTransformer
from diptych.model.tokenizer import CaptionTokenizer, load_tokenizer
from diptych.model.weight_files import misfit, read_tensors
from diptych.model.weights import unpack_weights

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
CODEBOOK_FILE = "codebook.safetensors"
CODEBOOK_FOLDER = "codebook"
IMAGE_TOKENIZER_FOLDER = "image_tokenizer"


def check_codebook(model: UnifiedTransformer, codebook: Tensor, name: str) -> None:
    """Raise a UserError unless ``codebook`` is ``[K, D]`` as the model's config says."""
    expected = (model.config.codebook_size, model.config.feature_dim)
    if tuple(codebook.shape) != expected:
        raise UserError(
            f"{name}: a codebook of K, D = {tuple(codebook.shape)}, but the transformer was built for {expected}; "
            "use the codebook it was trained with, or train again"
        )


def save_transformer(
    folder: Path,
    model: UnifiedTransformer,
    tokenizer: CaptionTokenizer,
    codebook: Tensor,
    table: AnswerTable | None = None,
) -> None:
    """Write a model directory; ``codebook`` is float32 ``[K, D]``, ``table`` that of the answer head, where there is one."""
    check_codebook(model, codebook, "codebook")
    if (len(table) if table else 0) != model.config.answers:
        raise ValueError("an answer head and its answer table have equally many rows")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_FILE).write_text(model.config.to_json())
    save_weights(model, folder)
    save_file({"centroids": codebook.detach().float().cpu().contiguous()}, folder / CODEBOOK_FILE)
    tokenizer.save(folder)
    if table is not None:
        table.save(folder)


def load_transformer(
    folder: Path, device: torch.device | str = "cpu"
) -> tuple[UnifiedTransformer, CaptionTokenizer, Tensor]:
    """Load a model directory: the transformer in eval mode, its tokenizer, its codebook (float32 ``[K, D]``).

    Raises:
        UserError: a file is missing, unreadable or does not fit the others.
    """
    config = read_config(folder / CONFIG_FILE)
    weights = unpack_weights(read_tensors(folder / WEIGHTS_FILE))
    packaged = folder / CODEBOOK_FOLDER / CODEBOOK_FILE
    codebook_file = packaged if packaged.exists() else folder / CODEBOOK_FILE
    tensors = read_tensors(codebook_file)
    if "centroids" not in tensors:
        raise UserError(f"{codebook_file}: no tensor 'centroids'; copy the codebook of the cluster stage")
    tokenizer = tokenizer_of(folder, config.vocab_size)
    with torch.device("meta"):
        model = build_transformer(config)
    load_weights(model, weights, folder)
    check_codebook(model, tensors["centroids"], str(codebook_file))
    return model.to(device).eval(), tokenizer, tensors["centroids"].float().to(device)


def save_biart(folder: Path, model: BiART, tokenizer: CaptionTokenizer, image_tokenizer: AugVAE) -> None:
    """Write the model directory of an L-Verse."""
    check_image_tokenizer(model, image_tokenizer, "the image tokenizer")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_FILE).write_text(config_text(model.config), encoding="utf-8")
    save_weights(model, folder)
    save_aug_vae(folder / IMAGE_TOKENIZER_FOLDER, image_tokenizer)
    tokenizer.save(folder)


def load_biart(folder: Path, device: torch.device | str = "cpu") -> tuple[BiART, CaptionTokenizer, AugVAE]:
    """Load the model directory of an L-Verse: both networks in eval mode, and the tokenizer of texts.

    Raises:
        UserError: a file is missing, unreadable or does not fit the others.
    """
    config = read_biart_config(folder / CONFIG_FILE)
    weights = unpack_weights(read_tensors(folder / WEIGHTS_FILE))
    tokenizer = tokenizer_of(folder, config.vocab_size)
    with torch.device("meta"):
        model = BiART(config)
    load_weights(model, weights, folder)
    image_tokenizer = load_aug_vae(folder / IMAGE_TOKENIZER_FOLDER, device)
    check_image_tokenizer(model, image_tokenizer, str(folder / IMAGE_TOKENIZER_FOLDER))
    return model.to(device).eval(), tokenizer, image_tokenizer


def check_image_tokenizer(model: BiART, image_tokenizer: AugVAE, name: str) -> None:
    """Raise a UserError unless codes and cells of ``image_tokenizer`` are those that BiART was built for."""
    config, wanted = image_tokenizer.config, (model.config.codebook_size, model.config.cells)
    found = (config.codebook_size, config.cells)
    if config.coded_level is None or found != wanted:
        raise UserError(
            f"{name}: {found[0]:,} codes and {found[1]} cells, but the transformer was built for {wanted[0]:,} and {wanted[1]}; "
            "use the single-level autoencoder whose codes it was trained on, or train again"
        )


def tokenizer_of(folder: Path, vocab_size: int) -> CaptionTokenizer:
    """The tokenizer of a model directory, of the size that its config says."""
    tokenizer = load_tokenizer(folder)
    if len(tokenizer) != vocab_size:
        raise UserError(
            f"{folder}: the tokenizer has {len(tokenizer)} word pieces, {CONFIG_FILE} says vocab_size "
            f"{vocab_size}; use the tokenizer the transformer was trained with"
        )
    return tokenizer


def save_weights(model: torch.nn.Module, folder: Path) -> None:
    """Write the weights of a model directory."""
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, folder / WEIGHTS_FILE, metadata={"format": "pt"})


def load_weights(model: torch.nn.Module, weights: dict[str, Tensor], folder: Path) -> None:
    """Put the weights of a model directory into a network built on torch's meta device."""
    try:
        model.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        raise UserError(f"{folder / WEIGHTS_FILE} does not fit {CONFIG_FILE}: {misfit(error)}") from None
