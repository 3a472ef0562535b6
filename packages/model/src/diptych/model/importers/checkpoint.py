"""From the tensors of a checkpoint to a transformer: every tensor is used or listed, every shape is checked."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diptych.model.config import TransformerConfig
from diptych.model.errors import UserError
from diptych.model.importers.names import CODE_WEIGHTS, CODEBOOK, TIED_WORDS, UNUSED, WORDS, lxmert_names
from diptych.model.transformer import UnifiedTransformer


@dataclass(frozen=True)
class ImportReport:
    """What became of a checkpoint.

    Attributes:
        used: names in the checkpoint that the transformer or the codebook was filled from.
        unused: names that were left out, and why.
        initialised: weights of ours that the checkpoint does not have; they hold their random start.
    """

    used: list[str]
    unused: dict[str, str]
    initialised: list[str]

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2) + "\n"

    def summary(self) -> str:
        """A few lines to print."""
        lines = [f"{len(self.used)} tensors used, {len(self.unused)} left out:"]
        for reason in dict.fromkeys(self.unused.values()):
            names = [name for name, why in self.unused.items() if why == reason]
            lines.append(f"  {reason}: {listed(names)}")
        if self.initialised:
            lines.append(f"{len(self.initialised)} weights start at random: {listed(self.initialised)}")
        return "\n".join(lines)


@dataclass(frozen=True)
class Imported:
    """A transformer in eval mode, the codebook float32 ``[K, D]`` it reads and writes, and the report."""

    model: UnifiedTransformer
    codebook: Tensor
    report: ImportReport


def listed(names: list[str], most: int = 3) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def read_pickled(path: Path) -> dict[str, Any]:
    """Read a ``.pth`` or ``.bin`` file without running any code in it.

    Raises:
        UserError: the file is missing, unreadable or holds more than tensors, numbers, strings and containers of them.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path}: no such checkpoint") from None
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{path}: not a readable checkpoint of plain tensors ({reason})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__}, not a dict of tensors")
    return content


def tensors_only(content: dict[str, Any], path: Path) -> dict[str, Tensor]:
    """Return ``content`` if it maps names to tensors."""
    others = [str(name) for name, value in content.items() if not isinstance(value, Tensor)]
    if others or not content:
        raise UserError(f"{path}: not a dict of tensors ({listed(others) or 'it is empty'})")
    return content


def build(
    path: Path,
    tensors: dict[str, tuple[str, Tensor]],
    config: TransformerConfig,
    codebook: Tensor | None,
    may_lack: Callable[[str], bool] = lambda name: False,
    unused: dict[str, str] | None = None,
) -> Imported:
    """Fill a transformer of ``config``.

    Args:
        path: of the checkpoint, for messages.
        tensors: common name to (name in the file, tensor) (:func:`diptych.model.importers.names.common_names`).
        codebook: float ``[K, D]``; without one that of the checkpoint, which then has to have one.
        may_lack: tells of a weight of ours whether the checkpoint may be without it.
        unused: pattern of common names and the reason for leaving them out, besides those of the family.

    Raises:
        UserError: a tensor is unknown, missing, of another shape or not finite, or the codebook is of another size.
    """
    reasons = {**UNUSED, **(unused or {})}
    model = UnifiedTransformer(config)
    names = lxmert_names(config)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    weights: dict[str, Tensor] = {}
    used, missing, misshapen, initialised = [], [], [], []
    for ours, theirs in names.items():
        absent = [name for name in theirs if name not in tensors]
        if absent:
            # Half of a joined matrix is no checkpoint of the family.
            if len(absent) == len(theirs) and may_lack(ours):
                initialised.append(ours)
            else:
                missing += absent
            continue
        parts = [tensors[name][1] for name in theirs]
        expected = (shapes[ours][0] // len(parts), *shapes[ours][1:])
        wrong = [name for name, part in zip(theirs, parts, strict=True) if tuple(part.shape) != expected]
        misshapen += [
            f"{tensors[name][0]} {list(tensors[name][1].shape)}, not {list(expected)}" for name in wrong
        ]
        if not wrong:
            weights[ours] = torch.cat([part.float() for part in parts])
        used += [tensors[name][0] for name in theirs]

    if TIED_WORDS in tensors:
        if WORDS in tensors and not torch.equal(tensors[TIED_WORDS][1], tensors[WORDS][1]):
            raise UserError(
                f"{path}: {tensors[TIED_WORDS][0]} differs from {tensors[WORDS][0]}; here the word head is tied to "
                "the word embedding"
            )
        used.append(tensors[TIED_WORDS][0])
    if CODEBOOK in tensors:
        used.append(tensors[CODEBOOK][0])
    left_out, unknown = {}, []
    known = {name for group in names.values() for name in group} | {TIED_WORDS, CODEBOOK}
    for name, (original, _) in tensors.items():
        if name not in known:
            reason = next((why for pattern, why in reasons.items() if re.match(pattern, name)), None)
            if reason is None:
                unknown.append(original)
            else:
                left_out[original] = reason
    problems = [
        f"{len(found)} tensors {what} ({listed(found)})"
        for found, what in (
            (missing, "are missing"),
            (misshapen, "have another shape"),
            (unknown, "are unknown"),
        )
        if found
    ]
    if problems:
        raise UserError(
            f"{path} does not fit a transformer of {config.language_layers} language, {config.visual_layers} visual "
            f"and {config.cross_layers} cross-modality layers, hidden size {config.hidden_size}, "
            f"{config.vocab_size} word pieces, K = {config.codebook_size}, D = {config.feature_dim}: "
            + "; ".join(problems)
            + "; give the checkpoint's own size"
        )
    infinite = [names[name][0] for name, tensor in weights.items() if not torch.isfinite(tensor).all()]
    if infinite:
        raise UserError(f"{path}: NaN or infinite weights ({listed(infinite)}); this checkpoint is damaged")

    if codebook is None:
        if CODEBOOK not in tensors:
            raise UserError(f"{path}: it has no codebook; give the centroids it was trained with")
        codebook = tensors[CODEBOOK][1].float()
    expected_codebook = (config.codebook_size, config.feature_dim)
    if tuple(codebook.shape) != expected_codebook:
        raise UserError(
            f"{path}: a codebook of K, D = {tuple(codebook.shape)}, but the transformer needs {expected_codebook}"
        )
    if CODEBOOK in tensors and not torch.allclose(codebook, tensors[CODEBOOK][1].float()):
        raise UserError(f"{path}: the given codebook is not the one in it ({tensors[CODEBOOK][0]})")
    if model.code_head.tied and "code_head.codes.weight" in initialised:
        weights["code_head.codes.weight"] = codebook.clone()
    model.load_state_dict(weights, strict=False)
    return Imported(model.eval(), codebook, ImportReport(used, left_out, initialised))


def tied_to_codebook(tensors: dict[str, tuple[str, Tensor]]) -> bool:
    """Whether the code head's last layer is the codebook."""
    if CODE_WEIGHTS not in tensors or CODEBOOK not in tensors:
        return False
    return torch.equal(tensors[CODE_WEIGHTS][1], tensors[CODEBOOK][1])
