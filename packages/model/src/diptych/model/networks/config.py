"""Sizes of the unified transformer. The named sizes are data: ``configs/*.json``."""

from __future__ import annotations

import json
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path

from diptych.model.errors import UserError

CONFIG_FOLDER = Path(__file__).parent / "configs"
SIZES = ("smoke", "toybox", "base")
# the numbers of layers that each has
ARCHITECTURES = {
    "two_streams": ("language_layers", "visual_layers", "cross_layers"),
    "single_stream": ("layers",),
}
CODE_HEADS = ("linear", "features", "codebook")
CAPTION_ATTENTIONS = ("prefix", "masked")
LARGEST = 2**31 - 1  # of any size: what tensors can be told
IMAGE_FEATURES = ("two_level", "dense", "discrete")


@dataclass(frozen=True)
class TransformerConfig:
    """Shape of a :class:`diptych.model.networks.unified.UnifiedTransformer`.

    The size ``base`` of two streams is the paper's (UMT 5.1; LXMERT's 9 language, 5 visual and 5 cross-modality layers). The
    papers count it as 228 M parameters: language layers 63.8 M + cross-modality layers 82.7 M + visual layers
    35.4 M + word embedding, tied with the word head, 23.4 M + code head 22.7 M. They leave out 2.6 M: position
    and token-type tables (0.4 M), the visual embedding (1.6 M) and the word head's transform (0.6 M).

    Attributes:
        hidden_size: width of the states.
        attention_heads: heads of every attention; divides ``hidden_size``.
        intermediate_size: width of the feed-forward networks.
        architecture: ``two_streams`` (LXMERT's) or ``single_stream`` (UNITER's).
        language_layers: of two streams, layers that see only text.
        visual_layers: layers that see only the image.
        cross_layers: cross-modality layers.
        layers: of a single stream, layers over text and image.
        vocab_size: number of word pieces.
        codebook_size: number of codes, K.
        feature_dim: width of a grid feature and of a codebook vector, D.
        grid_size: cells along one side of the grid (8 in the papers, so 64 cells).
        cell_positions: add learned embeddings of a cell's row and column to the projection of its box. LXMERT has
            only the projection, which is linear in four coordinates: a short training cannot tell neighbouring
            cells apart by it.
        text_positions: rows of the position table; no text may be longer.
        dropout: dropout probability of embeddings, sublayers and attention probabilities.
        code_head: what follows the code head's transform: ``linear`` (H to K), ``features`` (H to D to K, as the
            reference implementation) or ``codebook`` (H to D, then the products with the frozen centroids).
        initial_std: standard deviation of the initial weights.
        caption_attention: the scheme by which the weights were, or are to be, trained to caption: ``masked`` (the
            papers') or ``prefix`` (:mod:`diptych.model.networks.unified` explains both). Any weights fit either, so it
            can be changed; trainings and decoders follow it.
        image_features: in the same way, what the weights were trained to see of pictures: ``two_level`` (UMT 3.2), or
            ``dense`` or ``discrete``, with which the paper compares it (:mod:`diptych.model.image_features`).
        answers: answers that the answer head knows, rows of the answer table; 0: no such head.
        matching: whether there is a head that says if a text belongs to a picture.
        pairs: whether there is a head that says if a statement is true of two pictures.
        regresses: whether there is a head that predicts grid features, as LXMERT's and not as X-LXMERT's pretraining.
        object_classes: classes of the head that says what a predicted feature shows (X-LXMERT C.1); 0: no such head. It
            reads the features that ``regresses`` predicts.
    """

    hidden_size: int
    attention_heads: int
    intermediate_size: int
    vocab_size: int
    codebook_size: int
    feature_dim: int
    grid_size: int
    cell_positions: bool
    text_positions: int
    dropout: float
    code_head: str
    initial_std: float
    caption_attention: str
    architecture: str = "two_streams"
    language_layers: int = 0
    visual_layers: int = 0
    cross_layers: int = 0
    layers: int = 0
    image_features: str = "two_level"
    answers: int = 0
    matching: bool = False
    pairs: bool = False
    regresses: bool = False
    object_classes: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            least = 0 if field.default == 0 else 1
            fits, kind = {
                "int": (
                    number and isinstance(value, int) and least <= value <= LARGEST,
                    f"a whole number from {least} to {LARGEST}",
                ),
                "float": (number and 0 <= value < 1, "in [0, 1)"),
                "bool": (isinstance(value, bool), "true or false"),
                "str": (isinstance(value, str), "a string"),
            }[str(field.type)]
            if not fits:
                raise UserError(f"transformer config: {field.name} must be {kind}, not {value!r}")
        if self.hidden_size % self.attention_heads:
            raise UserError(
                f"transformer config: attention_heads ({self.attention_heads}) must divide "
                f"hidden_size ({self.hidden_size})"
            )
        if self.architecture not in ARCHITECTURES:
            raise UserError(
                f"transformer config: architecture {self.architecture!r} is not one of {tuple(ARCHITECTURES)}"
            )
        for architecture, counts in ARCHITECTURES.items():
            for name in counts:
                if (getattr(self, name) > 0) != (architecture == self.architecture):
                    needed = "must be at least 1" if architecture == self.architecture else "must be 0"
                    raise UserError(f"transformer config: {name} of {self.architecture} {needed}")
        if self.object_classes and not self.regresses:
            raise UserError(
                "transformer config: object_classes need regresses: their head reads predicted features"
            )
        if self.code_head not in CODE_HEADS:
            raise UserError(f"transformer config: code_head {self.code_head!r} is not one of {CODE_HEADS}")
        if self.caption_attention not in CAPTION_ATTENTIONS:
            raise UserError(
                f"transformer config: caption_attention {self.caption_attention!r} is not one of {CAPTION_ATTENTIONS}"
            )
        if self.image_features not in IMAGE_FEATURES:
            raise UserError(
                f"transformer config: image_features {self.image_features!r} is not one of {IMAGE_FEATURES}"
            )

    @property
    def pooled(self) -> bool:
        """Whether a head reads the pooled state of [CLS]."""
        return self.matching or self.pairs or self.answers > 0

    @property
    def cells(self) -> int:
        """Number of grid cells (64)."""
        return self.grid_size**2

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2) + "\n"


def read_config(path: Path, **sizes: int) -> TransformerConfig:
    """Read a config file; ``sizes`` (usually vocab_size, codebook_size, feature_dim) override or complete it. That of a
    packaged model (:mod:`diptych.model.packaged`) has the sizes in its section ``transformer``.

    Raises:
        UserError: the file is missing or not JSON, or a key is unknown, absent or of a wrong kind.
    """
    try:
        written = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path}: no such transformer config") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(written, dict):
        raise UserError(f"{path}: holds a {type(written).__name__}, not an object of a transformer's sizes")
    if isinstance(written.get("transformer"), dict):
        written = written["transformer"]
    values = {**written, **sizes}
    names = {field.name for field in fields(TransformerConfig)}
    needed = {field.name for field in fields(TransformerConfig) if field.default is MISSING}
    if not needed <= values.keys() <= names:
        raise UserError(
            f"{path}: unknown keys {sorted(values.keys() - names)}, missing keys {sorted(needed - values.keys())}"
        )
    return TransformerConfig(**values)


def named_config(name: str, architecture: str = "two_streams", **sizes: int) -> TransformerConfig:
    """Return the size ``name`` of ``configs/`` (toybox, smoke, base) of an architecture, completed by what the data decides.

    ``toybox`` and ``smoke`` need ``vocab_size``, ``codebook_size`` and ``feature_dim``.
    """
    if name not in SIZES:
        raise UserError(f"unknown transformer size {name!r}; known sizes: {', '.join(SIZES)}")
    if architecture not in ARCHITECTURES:
        raise UserError(f"unknown architecture {architecture!r}; known ones: {', '.join(ARCHITECTURES)}")
    return read_config(CONFIG_FOLDER / f"{architecture}_{name}.json", **sizes)
