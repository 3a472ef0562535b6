"""The directory of a packaged model: written whole or not at all, verified by its sums, refused where it is newer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, TypeVar

from diptych.features.files import sha256_of
from diptych.features.processor import usable_cores
from diptych.model.answer_table import load_answer_table
from diptych.model.decoding.options import AnswerOptions, CaptionOptions, PaintOptions
from diptych.model.errors import UserError
from diptych.model.networks.config import read_config
from diptych.model.new_folders import appearing, refusals_told
from diptych.model.pretrained import (
    CODEBOOK_FILE,
    CODEBOOK_FOLDER,
    CONFIG_FILE,
    IMAGE_TOKENIZER_FOLDER,
    WEIGHTS_FILE,
)
from diptych.model.weights import WEIGHT_KINDS, pack_weights

if TYPE_CHECKING:
    from torch import Tensor

    from diptych.eval.scorers.clip import Clip
    from diptych.model.networks.biart import BiART
    from diptych.model.networks.unified import UnifiedTransformer
    from diptych.model.packaged.examples import Examples
    from diptych.model.tokenizer import CaptionTokenizer

# of packages that read_package_config reads; a family is written with the version that brought it, so that older programs read what
# they can
FORMAT_VERSION = 2
FAMILY_VERSIONS = {"unified": 1, "l_verse": 2}
MODEL_TYPE = "diptych"
SUMS_FILE = "SHA256SUMS"
CARD_FILE = "README.md"
IMAGE_GENERATOR, DETECTOR, SCORER, EXPORTED = "image_generator", "detector", "scorer", "exported"
PRETRAINED_FILE = "pretrained.json"
COMMON = (CONFIG_FILE, WEIGHTS_FILE, "tokenizer.json")
REQUIRED = {
    "unified": (
        *COMMON,
        f"{CODEBOOK_FOLDER}/{CODEBOOK_FILE}",
        f"{IMAGE_GENERATOR}/{CONFIG_FILE}",
        f"{IMAGE_GENERATOR}/{WEIGHTS_FILE}",
        f"{DETECTOR}/{CONFIG_FILE}",
        f"{DETECTOR}/{WEIGHTS_FILE}",
    ),
    "l_verse": (
        *COMMON,
        f"{IMAGE_TOKENIZER_FOLDER}/{CONFIG_FILE}",
        f"{IMAGE_TOKENIZER_FOLDER}/{WEIGHTS_FILE}",
    ),
}
Options = TypeVar("Options", AnswerOptions, CaptionOptions, PaintOptions)


@dataclass(frozen=True)
class PackageConfig:
    """What config.json says besides the transformer's sizes.

    Attributes:
        captioning, painting: the options of whoever gives none; the model card's figures were measured with them.
        answering: how questions are read, and statements, where the transformer has a head for either.
        weights: how matrices of transformer and image generator are stored (:mod:`diptych.model.weights`).
        origin: where the model comes from, such as ``commit``; for the reader only.
        family: ``unified`` or ``l_verse``.
    """

    captioning: CaptionOptions
    painting: PaintOptions
    weights: str
    origin: Mapping[str, str]
    answering: AnswerOptions = field(default_factory=AnswerOptions)
    family: str = "unified"


@dataclass(frozen=True)
class Common:
    """What packages of all families are made of besides the model.

    Attributes:
        scorer: a CLIP, for reranking and scores; ``scorer_name``: open_clip's name of a pretrained one.
        weights: how to store matrices of the transformer and, in ``unified``, of the image generator
            (:mod:`diptych.model.weights`).
        origin: as of :class:`PackageConfig`.
        card: text of README.md.
    """

    scorer: Clip | None = None
    scorer_name: str | None = None
    weights: str = "float32"
    origin: Mapping[str, str] = field(default_factory=dict)
    card: str = ""


def read_package_config(folder: Path) -> PackageConfig:
    """Read the config.json of a package.

    Raises:
        UserError: there is none, it is no package's, it is newer than this program, or a value is wrong.
    """
    path = folder / CONFIG_FILE
    try:
        written = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; {folder} is not a packaged model") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error}); copy the package again") from None
    version = written.get("format_version") if isinstance(written, dict) else None
    if version is None:
        raise UserError(
            f"{path}: no format_version: this is not a packaged model (a folder that the stage `package` or "
            "write_package makes), at most one of its parts"
        )
    if type(version) is not int or version < 1:
        raise UserError(f"{path}: format_version is {version!r}, no whole number; copy the package again")
    if version > FORMAT_VERSION:
        raise UserError(
            f"{path}: the package has format {version}, this program reads up to {FORMAT_VERSION}; "
            "upgrade diptych-model"
        )
    family = written.get("family", "unified")
    if family not in REQUIRED:
        raise UserError(
            f"{path}: family is {family!r}, not one of {', '.join(REQUIRED)}; upgrade diptych-model, or copy the package again"
        )
    weights = written.get("weights")
    if weights not in WEIGHT_KINDS:
        raise UserError(f"{path}: weights is {weights!r}, not one of {', '.join(WEIGHT_KINDS)}")
    return PackageConfig(
        read_options(CaptionOptions, written.get("captioning"), f"{path}: captioning"),
        read_options(PaintOptions, written.get("painting"), f"{path}: painting"),
        weights,
        written.get("origin", {}),
        read_options(AnswerOptions, written.get("answering", {}), f"{path}: answering"),
        family,
    )


def read_options(kind: type[Options], values: Any, name: str) -> Options:
    """Turn a JSON object into options; the UserError names ``name`` and the key."""
    if not isinstance(values, dict):
        raise UserError(f"{name}: expected an object of options, found {values!r}")
    known = {option.name for option in fields(kind)}
    if unknown := sorted(values.keys() - known):
        raise UserError(f"{name}: unknown option {unknown[0]!r} (known: {', '.join(sorted(known))})")
    try:
        return kind(**values)
    except (TypeError, UserError) as error:
        raise UserError(f"{name}: {error}") from None


def write_sums(folder: Path) -> None:
    """Write SHA256SUMS over all other files of ``folder``."""
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    lines = [f"{sha256_of(folder / name)}  {name.as_posix()}\n" for name in files if str(name) != SUMS_FILE]
    (folder / SUMS_FILE).write_text("".join(lines), encoding="utf-8")


def required_files(folder: Path) -> tuple[str, ...]:
    """The files that every package of the family has that config.json names; of the common ones where it cannot be read."""
    try:
        written = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return COMMON
    return REQUIRED.get(written.get("family", "unified"), COMMON) if isinstance(written, dict) else COMMON


def read_sums(folder: Path) -> dict[str, str]:
    """Read SHA256SUMS: sums by relative path.

    Raises:
        UserError: it is missing or not such a file, names a file outside the folder, or lacks a file of every package.
    """
    path = folder / SUMS_FILE
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        raise UserError(f"{path}: no such file, or not readable; copy the package again") from None
    sums: dict[str, str] = {}
    for line in lines:
        digest, separator, name = line.partition("  ")
        inside = not PurePosixPath(name).is_absolute() and ".." not in PurePosixPath(name).parts
        if len(digest) != 64 or not separator or not name or not inside:
            raise UserError(f"{path}: not a list of sha256 sums (line {line[:80]!r}); copy the package again")
        sums[name] = digest
    if missing := [name for name in required_files(folder) if name not in sums]:
        raise UserError(f"{path}: lacks {missing[0]}, which every package has; copy the package again")
    return sums


def verify_package(folder: Path) -> None:
    """Compare all files that SHA256SUMS names with their sums.

    Raises:
        UserError: the first that is missing, cannot be read or is another.
    """
    sums = read_sums(folder)

    def problem(name: str) -> str | None:
        path = folder / name
        try:
            if not path.is_file():
                return f"{path}: no such file; the package is not complete, copy it again"
            found = sha256_of(path)
        except OSError as error:
            return f"{path}: cannot be read ({error.strerror}); mend that, or copy the package again"
        if found != sums[name]:
            return f"{path}: its sha256 is not that of {SUMS_FILE}: the file is damaged or was changed; copy it again"
        return None

    with ThreadPoolExecutor(usable_cores()) as pool:  # hashing releases the interpreter's lock
        for found in pool.map(problem, sums):
            if found:
                raise UserError(found)


def copy_package(folder: Path, out: Path) -> None:
    """Copy the files of a package, and nothing else that lies beside them, to a new folder.

    Raises:
        UserError: ``out`` exists or cannot be made, or a file is missing, unreadable or another than its sum says.
    """
    with refusals_told(out), appearing(out) as partial:
        for name in (*read_sums(folder), SUMS_FILE):
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            try:
                shutil.copyfile(folder / name, partial / name)
            except FileNotFoundError:
                raise UserError(
                    f"{folder / name}: no such file; the package is not complete, copy it again"
                ) from None
        verify_package(partial)


def write_package(
    out: Path,
    *,
    transformer: Path,
    image_generator: Path,
    detector: Path,
    captioning: CaptionOptions,
    painting: PaintOptions,
    answering: AnswerOptions | None = None,
    examples: Examples | None = None,
    common: Common = Common(),
) -> None:
    """Make a package of the family `unified` of its parts, checked to fit each other.

    Args:
        out: the folder to make.
        transformer: a model directory (:func:`diptych.model.pretrained.save_transformer`), with tokenizer and codebook.
        image_generator, detector: the folders of these.
        captioning, painting: what whoever uses the package gets without asking; answering: how its questions and statements are read.
        examples: of :func:`diptych.model.packaged.examples.collect_examples`.
        common: what packages of all families have.

    Raises:
        UserError: a part is missing or unreadable, or does not fit the others; captions or paintings are the best of several
            and there is no scorer; ``out`` exists.
    """
    from diptych.features.detector.load import load_detector
    from diptych.features.errors import UserError as FeaturesError
    from diptych.model.networks.image_generator import load_image_generator
    from diptych.model.pretrained import load_transformer

    model, tokenizer, codebook = load_transformer(transformer)
    generator = load_image_generator(image_generator)
    if generator.config.reads != "codes":
        raise UserError(
            f"{image_generator}: an image generator that reads features; a package paints codes: give one that reads these"
        )
    try:
        width = load_detector(detector).feature_dim
    except FeaturesError as error:
        raise UserError(str(error)) from None
    for name, folder, found in (
        ("image generator", image_generator, generator.config.feature_dim),
        ("detector", detector, width),
    ):
        if found != model.config.feature_dim:
            raise UserError(
                f"{folder}: the {name} has features of {found} numbers, the transformer {transformer} of "
                f"{model.config.feature_dim}; take parts of one run"
            )
    table = load_answer_table(transformer, model.config.answers)
    reads = table is not None or model.config.pairs
    further = {"answering": asdict(answering or AnswerOptions())} if reads else {}
    with new_package(out, "unified", model, tokenizer, captioning, painting, common, further) as folder:
        if table is not None:
            table.save(folder)
        (folder / CODEBOOK_FOLDER).mkdir()
        write_tensors({"centroids": codebook.float().contiguous()}, folder / CODEBOOK_FOLDER / CODEBOOK_FILE)
        if examples is not None:
            examples.save(folder / CODEBOOK_FOLDER)
        (folder / IMAGE_GENERATOR).mkdir()
        shutil.copyfile(image_generator / CONFIG_FILE, folder / IMAGE_GENERATOR / CONFIG_FILE)
        write_tensors(
            pack_weights(generator.state_dict(), common.weights), folder / IMAGE_GENERATOR / WEIGHTS_FILE
        )
        (folder / DETECTOR).mkdir()
        for name in (CONFIG_FILE, WEIGHTS_FILE):
            shutil.copyfile(detector / name, folder / DETECTOR / name)
        read_config(folder / CONFIG_FILE)


def write_l_verse_package(
    out: Path, *, model_folder: Path, captioning: CaptionOptions, painting: PaintOptions, common: Common
) -> None:
    """Make a package of the family `l_verse` of a model directory (:func:`diptych.model.pretrained.save_biart`); the rest is as of
    :func:`write_package`."""
    from diptych.model.networks.config_files import config_text
    from diptych.model.pretrained import load_biart

    model, tokenizer, image_tokenizer = load_biart(model_folder)
    with new_package(out, "l_verse", model, tokenizer, captioning, painting, common) as folder:
        (folder / IMAGE_TOKENIZER_FOLDER).mkdir()
        config = config_text(image_tokenizer.config)
        (folder / IMAGE_TOKENIZER_FOLDER / CONFIG_FILE).write_text(config, encoding="utf-8")
        # not packed: rounded encoders would find other codes than those that BiART has learned
        write_tensors(
            pack_weights(image_tokenizer.state_dict(), "float32"),
            folder / IMAGE_TOKENIZER_FOLDER / WEIGHTS_FILE,
        )


@contextmanager
def new_package(
    out: Path,
    family: str,
    model: UnifiedTransformer | BiART,
    tokenizer: CaptionTokenizer,
    captioning: CaptionOptions,
    painting: PaintOptions,
    common: Common,
    further: Mapping[str, Any] | None = None,
) -> Iterator[Path]:
    """A package's folder with what all families have; it appears as ``out``, with its sums, when the block ends without an error.
    ``further``: entries of its config.

    Raises:
        UserError: captions or paintings are the best of several and there is no scorer, or ``out`` exists.
    """
    if common.scorer is None:
        for name, options in (("captioning", captioning), ("painting", painting)):
            if options.samples > 1:  # so that every call without options would ask for the scorer
                raise UserError(
                    f"{name}: samples is {options.samples}, of which the scorer chooses the best, but the package has no "
                    "scorer; give it one, or set samples to 1"
                )
    with appearing(out) as folder:
        config = {
            "model_type": MODEL_TYPE,
            "format_version": FAMILY_VERSIONS[family],
            **({} if family == "unified" else {"family": family}),
            "weights": common.weights,
            "transformer": asdict(model.config),
            "captioning": asdict(captioning),
            "painting": asdict(painting),
            **(further or {}),
            "origin": dict(common.origin),
        }
        write_json(folder / CONFIG_FILE, config)
        tokenizer.save(folder)
        write_tensors(pack_weights(model.state_dict(), common.weights), folder / WEIGHTS_FILE)
        yield folder
        if common.scorer is not None:
            write_scorer(common.scorer, common.scorer_name, folder / SCORER)
        (folder / CARD_FILE).write_text(common.card, encoding="utf-8")
        write_sums(folder)


def write_tensors(tensors: Mapping[str, Tensor], file: Path) -> None:
    """A safetensors file as Hugging Face's libraries expect it."""
    from safetensors.torch import save_file

    save_file(dict(tensors), file, {"format": "pt"})


def write_scorer(scorer: Clip, name: str | None, folder: Path) -> None:
    """Write a CLIP of ours, or the weights of a pretrained one with its name."""
    from diptych.eval.scorers.clip import save_clip

    if scorer.config is not None:
        save_clip(scorer, folder)
        return
    if name is None:
        raise UserError("scorer: a pretrained CLIP needs its name in open_clip")
    folder.mkdir()
    weights = {key: tensor.cpu().contiguous() for key, tensor in scorer.model.state_dict().items()}
    write_tensors(weights, folder / WEIGHTS_FILE)
    write_json(folder / PRETRAINED_FILE, {"model_name": name})


def read_scorer(folder: Path, device: str) -> Clip:
    """Read what :func:`write_scorer` wrote, in eval mode."""
    from diptych.eval.errors import UserError as EvalError
    from diptych.eval.scorers.clip import load_clip, load_pretrained_clip

    try:
        if (folder / PRETRAINED_FILE).is_file():
            name = json.loads((folder / PRETRAINED_FILE).read_text(encoding="utf-8"))["model_name"]
            return load_pretrained_clip(name, folder / WEIGHTS_FILE, device)
        return load_clip(folder, device)
    except EvalError as error:
        raise UserError(str(error)) from None


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write an indented JSON file."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
