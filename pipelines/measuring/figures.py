"""The figures of captions and pictures that `generate` wrote, beside real pictures and reconstructions as ceilings.

Pictures are streamed: none of the tables of pictures is ever in memory as a whole. docs/metrics.md says what each figure is.
"""

from __future__ import annotations

import dataclasses
import math
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from diptych.eval.captions.facts import names_object, said_counts
from diptych.eval.captions.metrics import JavaUse, measure_captions
from diptych.eval.figures import Figure, mean_figure
from diptych.eval.images.embeddings import CHUNK, Embedded, Encoder, embed, weights_sha256
from diptych.eval.images.inception import FID_PROTOCOLS, FidProtocol, Inception
from diptych.eval.images.metrics import ImageSettings, image_encoders, measure_images
from diptych.eval.images.objects import ObjectFinder, object_figures
from diptych.eval.scorers.inspector import PARTS, Inspector, load_inspector, main_and_second
from diptych.eval.words import read_words
from diptych.features.detector import load_detector
from diptych.features.manifest import read_manifest
from diptych.features.ranges import check_at_least
from pipelines.measuring.clips import read_clip
from pipelines.measuring.objects import object_finder
from pipelines.runner.spread import spread
from pipelines.runner.stage import UNFINISHED_STORE, Stage

if TYPE_CHECKING:
    import pyarrow as pa

    from diptych.eval.scorers.clip import Clip

GENERATED = Path("data/generated")
MANIFEST = Path("data/dataset/manifest.parquet")
JAVA_USES: dict[bool | None, JavaUse] = {True: "needed", False: "never", None: "auto"}
KINDS = ("real", "reconstruction", "painted")
COMPOSITIONAL = "compositional"  # the split whose main objects no training picture shows
DETECTOR = Path("models/detector")
FRECHET_CLIPS = ("judge",)
EMBEDDINGS = UNFINISHED_STORE / "evaluate" / "embeddings"


@dataclass(frozen=True)
class EvaluateParams:
    """image_size: pixels per side at which all kinds are compared. negatives, folds: of R-precision-easy. words: the
    lists of R-precision-hard, "coco", "toybox" or a JSON file.

    java: whether captions are cut into words by the PTB tokenizer and METEOR is run, as the papers do; then a machine
    without Java is an error, so that the same parameters never give other figures. null: where Java starts. corenlp: the
    folder with SPICE's jars. inception: the weights for FID and IS. Null: not run, and the figures say so. fid_protocols:
    how pictures reach Inception for FID; a paper's FID is compared with pytorch-fid's (docs/metrics.md).
    """

    image_size: int
    batch_size: int
    negatives: int
    folds: int
    words: str
    java: bool | None
    corenlp: str | None
    inception: str | None
    fid_protocols: tuple[FidProtocol, ...] = ("diptych",)

    def __post_init__(self) -> None:
        check_at_least(self, 1, "image_size", "batch_size", "negatives", "folds")
        read_words(self.words)
        if not self.fid_protocols:
            raise ValueError(f"fid_protocols: name one or more of {', '.join(FID_PROTOCOLS)}")


def measure(
    stage: Stage,
    params: EvaluateParams,
    generated: Path,
    unseen: Path = GENERATED / f"{COMPOSITIONAL}.parquet",
    embeddings: Path = EMBEDDINGS,
    kinds: Sequence[str] = KINDS,
    detector: Path | None = DETECTOR,
) -> tuple[list[Figure], list[dict[str, Any]]]:
    """All figures of a set that `generate` wrote, those of `unseen` (where there is one) about its main objects, and for
    each picture of the set a row with `image_id`, the verdicts `caption_right` and `painted_right`, and its part in those
    figures of captions and paintings that are means over pictures, by the figures' names.

    Where nothing was captioned or nothing was painted, the figures of that are missing. embeddings: folder of what
    networks made of pictures, which several measurements may share. kinds: columns of pictures, `painted` the last. detector:
    what finds objects; null: nothing does.
    """
    inspector = read_inspector(stage.device)
    rows, known = read_texts(generated), read_manifest(MANIFEST)
    facts = facts_of(known, (row["image_id"] for row in rows))
    captioned = [row for row in rows if row["caption"] is not None]
    figures: list[Figure] = []
    if captioned:
        named = main_facts(captioned, facts)
        for row, fact in zip(captioned, named, strict=True):
            row["caption_right"] = fact
        figures += caption_figures(stage, params, captioned, facts, known)
        figures.append(share("caption.main_fact", named, stage.seed))
    if any(row["prompt"] is not None for row in rows):
        figures += picture_figures(
            stage, params, generated, rows, facts, inspector, embeddings, kinds, detector
        )
    if inspector and unseen.is_file():
        figures += unseen_figures(stage, params, inspector, unseen, known, embeddings, kinds)
    return figures, rows


def caption_figures(
    stage: Stage,
    params: EvaluateParams,
    rows: Sequence[dict[str, Any]],
    facts: Mapping[str, dict[str, Any]],
    known: pa.Table,
) -> list[Figure]:
    """The papers' caption metrics and statistics, against the references of these pictures; adds to each row its part in
    them."""
    import pyarrow.compute as pc

    training = known.filter(pc.equal(known["split"], "train"))["captions"]
    each: dict[str, dict[str, float]] = {}
    figures = measure_captions(
        {row["image_id"]: row["caption"] for row in rows},
        {row["image_id"]: facts[row["image_id"]]["captions"] for row in rows},
        java=JAVA_USES[params.java],
        corenlp=Path(params.corenlp) if params.corenlp else None,
        spice=params.corenlp is not None,
        training=pc.list_flatten(training).to_pylist(),
        seed=stage.seed,
        each=each,
    )
    for row in rows:
        row |= {f"caption.{name}": values[row["image_id"]] for name, values in each.items()}
    return [dataclasses.replace(figure, name=f"caption.{figure.name}") for figure in figures]


def with_mends(figures: Iterable[Figure], java: bool | None, java_key: str) -> list[Figure]:
    """Figures whose reasons, where METEOR or SPICE was not run, say which parameters mend it.

    java, java_key: the value and the name of the parameter about Java. Where Java was looked for (null), METEOR's reason
    says what to install.
    """
    mends = {"caption.spice": f"{java_key} and evaluate.corenlp"}
    if java is not None:
        mends["caption.meteor"] = java_key
    return [
        dataclasses.replace(figure, reason=f"{figure.reason}; set {mends[figure.name]} in params.yaml")
        if figure.reason and figure.name in mends
        else figure
        for figure in figures
    ]


def picture_figures(
    stage: Stage,
    params: EvaluateParams,
    generated: Path,
    rows: Sequence[dict[str, Any]],
    facts: Mapping[str, dict[str, Any]],
    inspector: Inspector | None,
    embeddings: Path,
    names: Sequence[str],
    detector: Path | None,
) -> list[Figure]:
    """Figures of paintings, reconstructions and real pictures; adds to each painting's row its verdicts, its part in the
    figures of paintings, and `painted_score`, the judge's CLIPScore (0..2.5) of the painting and its own sentence."""
    painted = [number for number, row in enumerate(rows) if row["prompt"] is not None]
    prompts = [rows[number]["prompt"] for number in painted]
    objects = [facts[rows[number]["image_id"]]["objects"] or [] for number in painted]
    kinds = {kind: TablePictures(generated, kind, painted) for kind in names}
    settings = image_settings(stage, params)
    recipe = AllNetworks(settings, params.inception, detector if any(objects) else None)
    embed_on_cluster(stage, recipe, kinds, settings, embeddings)
    networks = recipe.read(stage.device)
    finder = networks.finder
    each: dict[str, np.ndarray] = {}
    figures, embedded = measure_images(
        kinds,
        dict.fromkeys(kinds, prompts),
        networks.clips,
        read_words(params.words),
        settings,
        embeddings,
        inception=networks.inception,
        frechet_clips=FRECHET_CLIPS,
        others=networks.others,
        each=each,
    )
    for place, number in enumerate(painted):
        rows[number] |= {
            name: float(values[place]) for name, values in each.items() if name.startswith("painted.")
        }
    if finder:
        counts = [said_counts(prompt, finder.labels) for prompt in prompts]
        for kind in kinds:
            found = embedded[kind].rows("objects")
            figures += object_figures(kind, found, objects, finder, stage.seed, counts, resize=settings.rule)
    if inspector:
        said = second_said(prompts, objects)
        for kind in kinds:
            right = compared(inspector, embedded[kind], objects)
            second = right["second_object"]
            for name, among in (
                ("main_object", right["main_object"]),
                ("second_object", second[right["has_second"]]),
                ("second_object_said", second[said]),
            ):
                figures.append(inspected(f"{kind}.{name}", among, stage, params, inspector))
        for place, number in enumerate(painted):  # painted is the last kind
            rows[number] |= {
                "painted_right": bool(right["main_object"][place]),
                "painted_class_right": bool(right["main_class"][place]),
                "painted_color_right": bool(right["main_color"][place]),
            }
    for number in painted:
        score = rows[number]["painted.clip_score_judge"]
        rows[number]["painted_score"] = None if math.isnan(score) else score  # of a damaged picture
    return figures


def unseen_figures(
    stage: Stage,
    params: EvaluateParams,
    inspector: Inspector,
    generated: Path,
    known: pa.Table,
    embeddings: Path,
    kinds: Sequence[str],
) -> list[Figure]:
    """Main objects named and painted where no training picture showed such a pair of class and colour."""
    rows = read_texts(generated)
    facts = facts_of(known, (row["image_id"] for row in rows))
    captioned = [row for row in rows if row["caption"] is not None]
    figures = [share("caption.main_fact_unseen", main_facts(captioned, facts), stage.seed)]
    painted = [number for number, row in enumerate(rows) if row["prompt"] is not None]
    objects = [facts[rows[number]["image_id"]]["objects"] for number in painted]
    settings = image_settings(stage, params)
    pictures = {kind: TablePictures(generated, kind, painted) for kind in kinds}
    embed_on_cluster(stage, InspectorAlone(), pictures, settings, embeddings)
    for kind in kinds:
        embedded = embed(pictures[kind], [inspecting(inspector)], settings, embeddings, f"unseen, {kind}")
        right = compared(inspector, embedded, objects)["main_object"]
        figures.append(inspected(f"{kind}.main_object_unseen", right, stage, params, inspector))
    return figures


class TablePictures:
    """A column of pictures of a table that `generate` wrote; two row groups are in memory at a time. It travels."""

    def __init__(self, path: Path, column: str, rows: Sequence[int]) -> None:
        import pyarrow.parquet as pq

        self._file, self._column, self._rows = pq.ParquetFile(path), column, rows
        self._path = path
        metadata = self._file.metadata
        groups = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
        self._ends = list(accumulate(groups))
        self._starts = [0, *self._ends]
        self._loaded: dict[int, list[bytes]] = {}
        self._lock = threading.Lock()
        ids = pq.read_table(path, columns=["image_id"])["image_id"].to_pylist()
        self.names = [ids[row] for row in rows]

    def __reduce__(self) -> tuple[type, tuple[Path, str, Sequence[int]]]:
        return TablePictures, (self._path, self._column, self._rows)

    def content(self, index: int) -> bytes:
        row = self._rows[index]
        group = bisect_right(self._ends, row)
        with self._lock:
            if group not in self._loaded:
                while len(self._loaded) > 1:
                    del self._loaded[next(iter(self._loaded))]
                read = self._file.read_row_group(group, columns=[self._column])
                self._loaded[group] = read[self._column].to_pylist()
            return self._loaded[group][row - self._starts[group]]


@dataclass(frozen=True)
class Networks:
    """What looks at pictures. others: encoders beside those of the clips and Inception."""

    clips: Mapping[str, Clip]
    inception: Inception | None
    finder: ObjectFinder | None
    others: Sequence[Encoder]


@dataclass(frozen=True)
class AllNetworks:
    """Both clips, the inspector, and where they are given Inception and a detector, to be read on any device."""

    settings: ImageSettings
    inception: str | None
    detector: Path | None

    def read(self, device: str) -> Networks:
        inspector = read_inspector(device)
        finder = object_finder(load_detector(self.detector, device)) if self.detector else None
        return Networks(
            {name: read_clip(Path(f"models/{name}"), device) for name in ("judge", "scorer")},
            Inception(Path(self.inception), device) if self.inception else None,
            finder,
            [*([inspecting(inspector)] if inspector else []), *([finder.encoder()] if finder else [])],
        )

    def encoders(self, device: str) -> list[Encoder]:
        networks = self.read(device)
        return image_encoders(
            networks.clips, self.settings, networks.inception, FRECHET_CLIPS, networks.others
        )


class InspectorAlone:
    """The inspector, to be read on any device."""

    def encoders(self, device: str) -> list[Encoder]:
        inspector = read_inspector(device)
        assert inspector is not None
        return [inspecting(inspector)]


@dataclass(frozen=True)
class Embedding:
    """Embeds some of the pictures of a kind, from a number on, into the store where :func:`embed` looks for them."""

    networks: AllNetworks | InspectorAlone
    kinds: Mapping[str, TablePictures]
    settings: ImageSettings
    store: Path

    def on(self, device: str) -> Callable[[tuple[str, int]], None]:
        encoders = self.networks.encoders(device)
        settings = dataclasses.replace(self.settings, threads=1)  # a worker's core

        def work(piece: tuple[str, int]) -> None:
            kind, start = piece
            embed(ChunkOf(self.kinds[kind], start), encoders, settings, self.store, kind)

        return work


class ChunkOf:
    """The pictures that the store keeps in one file, from a number on."""

    def __init__(self, pictures: TablePictures, start: int) -> None:
        self.names, self._pictures, self._start = pictures.names[start : start + CHUNK], pictures, start

    def content(self, index: int) -> bytes:
        return self._pictures.content(self._start + index)


def embed_on_cluster(
    stage: Stage,
    networks: AllNetworks | InspectorAlone,
    kinds: Mapping[str, TablePictures],
    settings: ImageSettings,
    store: Path,
) -> None:
    """Where there is a cluster, let it embed all pictures into the store, which is in the folder that all nodes share."""
    from tqdm import tqdm

    if stage.machine.ray_address is None:
        return
    pieces = [
        (kind, start) for kind, pictures in kinds.items() for start in range(0, len(pictures.names), CHUNK)
    ]
    done = spread(stage, Embedding(networks, kinds, settings, store), pieces)
    for _ in tqdm(done, total=len(pieces), desc="embeddings", unit="file", mininterval=1):
        pass


def image_settings(stage: Stage, params: EvaluateParams) -> ImageSettings:
    """How pictures are read and compared."""
    return ImageSettings(
        image_size=params.image_size,
        batch_size=params.batch_size,
        threads=stage.threads,
        negatives=params.negatives,
        folds=params.folds,
        fid_protocols=params.fid_protocols,
        seed=stage.seed,
    )


def inspecting(inspector: Inspector) -> Encoder:
    """The inspector as an encoder: the numbers of its answers are the embedding."""
    key = f"inspector {inspector.config} {inspector.classes} {inspector.colors} {weights_sha256(inspector)}"
    return Encoder(
        "inspector", "inspector", key, len(PARTS), lambda images: inspector.answers(images).float()
    )


def compared(inspector: Inspector, embedded: Embedded, objects: Sequence[Any]) -> dict[str, np.ndarray]:
    """What is right in the pictures, by the inspector's answers among the embeddings."""
    import torch

    return inspector.compare(torch.from_numpy(embedded.rows("inspector")).long(), objects)


def inspected(
    name: str, right: np.ndarray, stage: Stage, params: EvaluateParams, inspector: Inspector
) -> Figure:
    """The share of pictures that the inspector finds right."""
    rule = image_settings(stage, params).rule
    model = f"inspector, weights sha256 {weights_sha256(inspector)[:16]}"
    return mean_figure(name, right, stage.seed, resize=rule, model=model)


def read_inspector(device: str) -> Inspector | None:
    """The inspector; None for data without attributes, for which the judge stage leaves an empty folder."""
    folder = Path("models/inspector")
    return load_inspector(folder, device) if any(folder.iterdir()) else None


def read_texts(generated: Path) -> list[dict[str, Any]]:
    """Ids, captions and prompts of a set that `generate` wrote, a row per picture; without the pictures."""
    import pyarrow.parquet as pq

    return pq.read_table(generated, columns=["image_id", "caption", "prompt"]).to_pylist()


def facts_of(known: pa.Table, image_ids: Iterable[str]) -> dict[str, dict[str, Any]]:
    """`captions` and `objects` of the manifest's pictures of these ids."""
    import pyarrow as pa
    import pyarrow.compute as pc

    chosen = known.filter(pc.is_in(known["image_id"], value_set=pa.array(list(image_ids), pa.string())))
    return {row["image_id"]: row for row in chosen.select(["image_id", "captions", "objects"]).to_pylist()}


def main_facts(rows: Iterable[Mapping[str, Any]], facts: Mapping[str, dict[str, Any]]) -> list[bool | None]:
    """Whether each caption names its picture's main object with its colour; None where no colour is known."""
    named: list[bool | None] = []
    for row in rows:
        things = main_and_second(facts[row["image_id"]]["objects"] or [])
        named.append(names_object(row["caption"], *things[0]) if things else None)
    return named


def second_said(sentences: Sequence[str], objects: Sequence[Any]) -> np.ndarray:
    """Whether each sentence names its picture's second object with its colour, bool [n]: others leave it to chance."""
    said = []
    for sentence, several in zip(sentences, objects, strict=True):
        second = main_and_second(several)[1:]
        said.append(bool(second) and names_object(sentence, *second[0]))
    return np.array(said, bool)


def share(name: str, facts: Sequence[bool | None], seed: int) -> Figure:
    """The share of what is known that is true."""
    return mean_figure(name, [fact for fact in facts if fact is not None], seed)
