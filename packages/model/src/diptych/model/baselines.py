"""Model directories of the systems that ours are compared with: config.json, model.safetensors, tokenizer files. They are measured, and
not packaged."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from diptych.model.errors import UserError
from diptych.model.networks.butd import BUTD
from diptych.model.networks.butd import read_config as read_butd_config
from diptych.model.networks.config_files import CONFIG_FOLDER, config_text
from diptych.model.networks.dm_gan import DMGAN, DMGANConfig
from diptych.model.networks.matching import MatchingConfig, TextEncoder
from diptych.model.pretrained import CONFIG_FILE, WEIGHTS_FILE, load_weights, save_weights, tokenizer_of
from diptych.model.tokenizer import CaptionTokenizer
from diptych.model.weight_files import read_tensors

PAINTER_SIZES = ("smoke", "toybox", "base")


def save_butd(folder: Path, model: BUTD, tokenizer: CaptionTokenizer) -> None:
    """Write the model directory of a captioner."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_FILE).write_text(config_text(model.config), encoding="utf-8")
    save_weights(model, folder)
    tokenizer.save(folder)


def load_butd(folder: Path, device: torch.device | str = "cpu") -> tuple[BUTD, CaptionTokenizer]:
    """Load it, in eval mode.

    Raises:
        UserError: a file is missing, unreadable or does not fit the others.
    """
    config = read_butd_config(folder / CONFIG_FILE)
    weights = read_tensors(folder / WEIGHTS_FILE)
    tokenizer = tokenizer_of(folder, config.vocab_size)
    with torch.device("meta"):
        model = BUTD(config)
    load_weights(model, weights, folder)
    return model.to(device).eval(), tokenizer


class Painter(nn.Module):
    """DM-GAN's generator and the encoder of its texts, whose words the tokenizer cuts."""

    def __init__(self, generator: DMGANConfig, matching: MatchingConfig) -> None:
        super().__init__()
        self.generator, self.encoder = DMGAN(generator), TextEncoder(matching)


def named_painter(name: str, vocab_size: int) -> tuple[DMGANConfig, MatchingConfig]:
    """The size ``name`` of ``configs/`` (smoke, toybox, base) of DM-GAN and of the encoders that teach it.

    Raises:
        UserError: an unknown name.
    """
    if name not in PAINTER_SIZES:
        raise UserError(f"no DM-GAN is named {name!r}; use one of {', '.join(PAINTER_SIZES)}")
    values = json.loads((CONFIG_FOLDER / f"dm_gan_{name}.json").read_text(encoding="utf-8"))
    return DMGANConfig(**values["generator"]), MatchingConfig(vocab_size=vocab_size, **values["matching"])


def save_dm_gan(
    folder: Path,
    generator: DMGAN,
    encoder: TextEncoder,
    matching: MatchingConfig,
    tokenizer: CaptionTokenizer,
) -> None:
    """Write the model directory of a painter."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"generator": asdict(generator.config), "matching": asdict(matching)}
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    save_weights(nn.ModuleDict({"generator": generator, "encoder": encoder}), folder)
    tokenizer.save(folder)


def load_dm_gan(folder: Path, device: torch.device | str = "cpu") -> tuple[Painter, CaptionTokenizer]:
    """Load it, in eval mode.

    Raises:
        UserError: a file is missing, unreadable or does not fit the others.
    """
    file = folder / CONFIG_FILE
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        generator, matching = DMGANConfig(**config["generator"]), MatchingConfig(**config["matching"])
    except FileNotFoundError:
        raise UserError(f"{file}: no such file; train the model again") from None
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: not the config of a DM-GAN ({error}); train the model again") from None
    tokenizer = tokenizer_of(folder, matching.vocab_size)
    with torch.device("meta"):
        painter = Painter(generator, matching)
    load_weights(painter, read_tensors(folder / WEIGHTS_FILE), folder)
    return painter.to(device).eval(), tokenizer
