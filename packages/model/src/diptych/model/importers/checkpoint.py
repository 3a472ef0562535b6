"""From the tensors of a checkpoint to a transformer: every tensor is used or listed, every shape is checked."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diptych.model.answer_table import AnswerTable
from diptych.model.errors import UserError
from diptych.model.importers.names import (
    CODE_FEATURES,
    CODE_WEIGHTS,
    CODEBOOK,
    FEATURE_PROJECTION,
    OURS,
    POSITIONS,
    STACKS,
    TIED_WORD_BIAS,
    TIED_WORDS,
    UNUSED,
    WORD_BIAS,
    WORDS,
    names_of,
)
from diptych.model.networks.architectures import build_transformer
from diptych.model.networks.config import TransformerConfig
from diptych.model.networks.unified import UnifiedTransformer

# What checkpoints of LXMERT and UNITER may be without.
HEADS = ("word_", "code_head.", "visual_embedding.mask_feature")
FOREIGN = "unknown: no name of this family of networks"


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
    """A transformer in eval mode, the codebook float32 ``[K, D]`` it reads and writes, the report, and the table of its
    answer head, if it has one."""

    model: UnifiedTransformer
    codebook: Tensor
    report: ImportReport
    table: AnswerTable | None = None


def listed(names: list[str], most: int = 3) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def find_tensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a foreign file: it is a dict of them, or holds one as "model" or "state_dict", whose neighbours
    (optimizer, schedule, step) are left alone (:func:`diptych.features.weight_files.read_state_dict`).

    Raises:
        UserError: the file is missing or unreadable, there is no dict of tensors in it, or diptych-features is missing.
    """
    try:
        from diptych.features.weight_files import UnreadableWeights, read_state_dict
    except ImportError:
        raise UserError(
            "importing a checkpoint needs diptych-features; pip install diptych-model[use]"
        ) from None
    try:
        return read_state_dict(path)[0]
    except FileNotFoundError:
        raise UserError(f"{path}: no such checkpoint") from None
    except UnreadableWeights as error:
        raise UserError(f"{path}: not a readable checkpoint of plain tensors ({error})") from None


def check_fit(what: str, missing: list[str], misshapen: list[str], unknown: list[str]) -> None:
    """Raise one UserError that starts with ``what`` and tells all that does not fit, if anything does not."""
    problems = [
        f"{len(found)} tensors {fault} ({listed(found)})"
        for found, fault in (
            (missing, "are missing"),
            (misshapen, "have another shape"),
            (unknown, "are unknown"),
        )
        if found
    ]
    if problems:
        raise UserError(f"{what}: {'; '.join(problems)}; give the checkpoint's own size")


def check_finite(path: Path, tensors: dict[str, Tensor]) -> None:
    """Raise a UserError if any number in ``tensors`` is NaN or infinite, or any tensor is not of floating-point numbers."""
    whole = [name for name, tensor in tensors.items() if not tensor.is_floating_point()]
    if whole:
        raise UserError(
            f"{path}: weights that are not floating-point numbers ({listed(whole)}), as quantized checkpoints have; take "
            "those that are not quantized"
        )
    infinite = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if infinite:
        raise UserError(f"{path}: NaN or infinite weights ({listed(infinite)}); this checkpoint is damaged")


def build(
    path: Path,
    tensors: dict[str, tuple[str, Tensor]],
    config: TransformerConfig,
    codebook: Tensor | None,
    may_lack: Callable[[str], bool] = lambda name: False,
    unused: dict[str, str] | None = None,
    table: AnswerTable | None = None,
    seed: int = 0,
) -> Imported:
    """Fill a transformer of ``config``.

    Args:
        path: of the checkpoint, for messages.
        tensors: common name to (name in the file, tensor) (:func:`diptych.model.importers.names.common_names`).
        codebook: float ``[K, D]``; without one that of the checkpoint, which then has to have one.
        may_lack: tells of a weight of ours whether the checkpoint may be without it.
        unused: pattern of common names and the reason for leaving them out, before those of the family.
        table: of the answer head that ``config`` has.
        seed: of weights that the checkpoint lacks.

    Raises:
        UserError: a tensor of the network is unknown, missing, of another shape or not finite, or the codebook is of
            another size or not that of the checkpoint. Tensors whose names have nothing to do with the network are
            only listed.
    """
    reasons = [*(unused or {}).items(), *UNUSED.items()]
    if TIED_WORD_BIAS in tensors and WORD_BIAS not in tensors:
        # One tensor with two names, saved under this one.
        tensors = {**tensors, WORD_BIAS: tensors[TIED_WORD_BIAS]}
        del tensors[TIED_WORD_BIAS]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = build_transformer(config)
    names = names_of(config)
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

    for tied, source, what in (
        (TIED_WORDS, WORDS, "the word head is tied to the word embedding"),
        (TIED_WORD_BIAS, WORD_BIAS, "the word head has one bias"),
    ):
        if tied in tensors:
            if source in tensors and not torch.equal(tensors[tied][1], tensors[source][1]):
                raise UserError(f"{path}: {tensors[tied][0]} differs from {tensors[source][0]}; here {what}")
            used.append(tensors[tied][0])
    if CODEBOOK in tensors:
        used.append(tensors[CODEBOOK][0])
    left_out, unknown = {}, []
    known = {name for group in names.values() for name in group} | {TIED_WORDS, TIED_WORD_BIAS, CODEBOOK}
    for name, (original, _) in tensors.items():
        if name not in known:
            reason = next((why for pattern, why in reasons if re.match(pattern, name)), None)
            if reason is None and name.startswith(OURS):
                unknown.append(original)
            else:
                left_out[original] = reason or FOREIGN
    if WORDS not in tensors:
        raise UserError(
            f"{path}: no word embedding in it, but {listed([name for name, _ in tensors.values()])}; is it of another "
            "format?"
        )
    check_fit(
        f"{path} does not fit a transformer of {layers_of(config)}, hidden size {config.hidden_size}, "
        f"{config.vocab_size} word pieces, K = {config.codebook_size}, D = {config.feature_dim}",
        missing,
        misshapen,
        unknown,
    )
    check_finite(path, dict(tensors[theirs] for ours in weights for theirs in names[ours]))

    if codebook is None:
        if CODEBOOK not in tensors:
            raise UserError(f"{path}: it has no codebook; give the centroids it was trained with")
        codebook = tensors[CODEBOOK][1].float()
    expected_codebook = (config.codebook_size, config.feature_dim)
    if tuple(codebook.shape) != expected_codebook:
        raise UserError(
            f"{path}: a codebook of K, D = {tuple(codebook.shape)}, but the transformer needs {expected_codebook}"
        )
    check_finite(path, {"codebook": codebook})
    if CODEBOOK in tensors:
        original, own = tensors[CODEBOOK]
        if own.shape != codebook.shape or not torch.allclose(codebook, own.float()):
            raise UserError(f"{path}: the given codebook is not the one in it ({original})")
    if model.code_head.tied and "code_head.codes.weight" in initialised:
        weights["code_head.codes.weight"] = codebook.clone()
    model.load_state_dict(weights, strict=False)
    report = ImportReport(list(dict.fromkeys(used)), left_out, initialised)
    return Imported(model.eval(), codebook, report, table)


def layers_of(config: TransformerConfig) -> str:
    """The numbers of layers in words."""
    if config.architecture == "single_stream":
        return f"{config.layers} layers"
    return (
        f"{config.language_layers} language, {config.visual_layers} visual and {config.cross_layers} "
        "cross-modality layers"
    )


def code_head_of(tensors: dict[str, tuple[str, Tensor]]) -> str:
    """Tell the kind of the code head (:class:`diptych.model.networks.config.TransformerConfig`) by its tensors (common names);
    ``features`` where there are none."""
    if CODE_WEIGHTS not in tensors:
        return "features"
    if CODE_FEATURES not in tensors:
        return "linear"
    tied = CODEBOOK in tensors and torch.equal(tensors[CODE_WEIGHTS][1], tensors[CODEBOOK][1])
    return "codebook" if tied else "features"


def released_config(
    path: Path,
    tensors: dict[str, tuple[str, Tensor]],
    codebook: Tensor | None = None,
    architecture: str = "two_streams",
) -> TransformerConfig:
    """Read the size of a released implementation's network off its tensors (common names); K is that of ``codebook``
    ``[K, D]`` where no code head shows it.

    What no tensor shows is as in the papers: attention heads of width 64, 8x8 cells, dropout 0.1.

    Raises:
        UserError: the tensors that show the size are missing, or of no such network.
    """
    showing = {
        "vocab_size": (WORDS, 0),
        "hidden_size": (WORDS, 1),
        "text_positions": (POSITIONS, 0),
        "feature_dim": (f"{FEATURE_PROJECTION[architecture]}.weight", 1),
        "intermediate_size": ("encoder.layer.0.intermediate.dense.weight", 0),
        "codebook_size": (CODE_WEIGHTS, 0),
    }
    sizes: dict[str, Any] = {}
    if codebook is not None and CODE_WEIGHTS not in tensors:
        del showing["codebook_size"]
        sizes["codebook_size"] = len(codebook)
    absent = [name for name, _ in showing.values() if name not in tensors or tensors[name][1].ndim != 2]
    if absent:
        raise UserError(
            f"{path}: no matrix {listed(absent)} in it; is this a checkpoint of the network that you named?"
        )
    sizes |= {key: tensors[name][1].shape[axis] for key, (name, axis) in showing.items()}
    for key, stack in STACKS[architecture].items():
        found = (re.match(rf"encoder\.{stack}\.(\d+)\.", name) for name in tensors)
        sizes[key] = 1 + max((int(match[1]) for match in found if match), default=0)
    if sizes["hidden_size"] % 64:
        raise UserError(
            f"{path}: hidden size {sizes['hidden_size']} does not divide into heads of width 64; give the network's "
            "size"
        )
    return TransformerConfig(
        **sizes,
        architecture=architecture,
        attention_heads=sizes["hidden_size"] // 64,
        grid_size=8,
        cell_positions=False,
        dropout=0.1,
        code_head=code_head_of(tensors),
        initial_std=0.02,
        caption_attention="masked",
    )
