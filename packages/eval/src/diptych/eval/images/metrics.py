"""The picture metrics of the papers' tables (UMT 5.1; X-LXMERT, appendix E.1; L-Verse, table 3) behind one function."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diptych.eval.errors import UserError
from diptych.eval.figures import (
    RESAMPLES,
    Figure,
    interval,
    mean_figure,
    not_run,
    resampled_means,
    sha256_of_json,
)
from diptych.eval.images.embeddings import (
    Embedded,
    EmbedSettings,
    Encoder,
    Pictures,
    embed,
    uint8_tensor,
    weights_sha256,
)
from diptych.eval.images.frechet import FRECHET_RESAMPLES, frechet_distance, frechet_interval
from diptych.eval.images.inception import (
    CLASSES,
    FEATURES,
    MEND,
    FidProtocol,
    Inception,
    inception_score_figure,
    pytorch_fid_input,
)
from diptych.eval.images.retrieval import fold_deviation, hard_wins, r_precision_wins
from diptych.eval.scorers.clip import Clip
from diptych.eval.scorers.clip_score import PROMPT, clip_scores
from diptych.eval.words import CATEGORIES, Swapped, WordLists, swapped_captions

BLUR_RADII = (0.0, 1.0, 2.0, 4.0, 8.0)
MEND_CLIP = "needs a CLIP: give a folder of one of ours, or the name of an open_clip model and its weights"

# by protocol: the figure, the encoder, and what its record says of the papers
_FID: dict[FidProtocol, tuple[str, str, str]] = {
    "diptych": ("fid", "inception", "beside a paper's FID stands fid_pytorch"),
    "pytorch-fid": ("fid_pytorch", "inception_pytorch", "the papers'"),
}


@dataclass(frozen=True)
class ImageSettings(EmbedSettings):
    """negatives: of R-precision-easy; folds: its drawings of them, and the parts of its deviation. hard_negatives,
    hard_captions: of R-precision-hard, captions per category. blur_radii: of FID-k, in pixels; 0 is FID itself.
    fid_protocols: those that FID is measured by, of FID_PROTOCOLS; a paper's figure is compared with pytorch-fid's.
    resamples: of a bootstrap; those of Frechet distances cost more and are counted apart, 0 is no interval."""

    negatives: int = 99
    folds: int = 10
    hard_negatives: int = 9
    hard_captions: int = 1000
    blur_radii: tuple[float, ...] = BLUR_RADII
    fid_protocols: tuple[FidProtocol, ...] = ("diptych",)
    seed: int = 0
    resamples: int = RESAMPLES
    frechet_resamples: int = FRECHET_RESAMPLES


def measure_images(
    kinds: Mapping[str, Pictures],
    captions: Mapping[str, Sequence[str | None]],
    clips: Mapping[str, Clip],
    words: WordLists | None,
    settings: ImageSettings,
    store: Path,
    reference: str = "real",
    inception: Inception | None = None,
    frechet_clips: Sequence[str] | None = None,
    others: Sequence[Encoder] = (),
    each: dict[str, np.ndarray] | None = None,
) -> tuple[list[Figure], dict[str, Embedded]]:
    """Figures of every kind of pictures, and what the networks made of them; one pass over the pictures of a kind.

    kinds: pictures by kind, `reference` among them. captions: for each kind the caption of each picture, without prompt,
    None where there is none; a kind without captions gets no CLIPScore and no R-precision. frechet_clips: names of
    the clips in whose space Frechet distances are taken; all by default. others: encoders that are run in the same pass.
    store: folder of embeddings (:func:`diptych.eval.images.embeddings.embed`). each: a dict that takes the values of single pictures, float64 [n] by
    figure, of the figures that are means of them; NaN where a picture has no part in it.

    Names begin with the kind: `fid`, `fid_blur_K` (protocol diptych), `fid_pytorch`, `fid_pytorch_blur_K` (pytorch-fid)
    and `inception_score` by Inception; for every clip NAME
    `clip_score_NAME`, `r_precision_NAME`, `r_precision_hard_NAME` (the mean of its categories),
    `r_precision_hard_CATEGORY_NAME`, `frechet_NAME`, `frechet_NAME_blur_K`. What cannot be run is a figure with a reason.
    """
    frechet_clips = tuple(clips) if frechet_clips is None else tuple(frechet_clips)
    radii = _radii(settings)
    encoders = image_encoders(clips, settings, inception, frechet_clips, others)
    embedded = {
        kind: embed(pictures, encoders, settings, store, kind)
        for kind, pictures in sorted(kinds.items(), key=lambda item: item[0] != reference)
    }
    texts = {name: _TextEmbeddings(clip, settings.batch_size) for name, clip in clips.items()}
    figures: list[Figure] = []
    for kind in kinds:
        measure = _Kind(
            kind,
            embedded[kind],
            embedded[reference],
            settings,
            {encoder.name: encoder for encoder in encoders},
            {} if each is None else each,
        )
        for protocol in dict.fromkeys(settings.fid_protocols) if kind != reference else ():
            name, encoder, remark = _FID[protocol]
            figures += measure.distances(name, encoder, radii, FEATURES, f", protocol {protocol} ({remark})")
        figures.append(measure.inception_score(inception))
        for name in frechet_clips if kind != reference else ():
            figures += measure.distances(f"frechet_{name}", name, radii)
        for name in clips:
            figures += measure.matches(name, texts[name], captions.get(kind), words)
        if not clips:
            figures += [
                not_run(f"{kind}.{name}", MEND_CLIP)
                for name in ("clip_score", "r_precision", "r_precision_hard")
            ]
    return figures, embedded


def image_encoders(
    clips: Mapping[str, Clip],
    settings: ImageSettings,
    inception: Inception | None = None,
    frechet_clips: Sequence[str] | None = None,
    others: Sequence[Encoder] = (),
) -> list[Encoder]:
    """The encoders that :func:`measure_images` of the same arguments runs. Raises UserError where there is none."""
    frechet_clips = tuple(clips) if frechet_clips is None else tuple(frechet_clips)
    radii = _radii(settings)
    encoders = [
        clip_encoder(name, clip, radius)
        for name, clip in clips.items()
        for radius in (radii if name in frechet_clips else (0.0,))
    ]
    if inception is not None:
        own = radii if "diptych" in settings.fid_protocols else (0.0,)  # of the Inception Score
        encoders += [inception_encoder(inception, radius) for radius in own]
        if "pytorch-fid" in settings.fid_protocols:
            encoders += [pytorch_fid_encoder(inception, radius) for radius in radii]
    encoders += others
    if not encoders:
        raise UserError(
            f"nothing to measure pictures with: the Frechet distance in its space {MEND_CLIP}; FID: {MEND}"
        )
    return encoders


def _radii(settings: ImageSettings) -> tuple[float, ...]:
    """Blurs of the Frechet distances; 0 is none."""
    return tuple(dict.fromkeys((0.0, *settings.blur_radii)))


def clip_encoder(name: str, clip: Clip, blur: float = 0.0) -> Encoder:
    """A CLIP's picture tower. A pretrained one gets pictures in their own size and what open_clip would make of them; ours
    get the common square and resize it to theirs. Either is part of the key."""
    size, device, preprocessing = clip.image_size, clip.mean.device, clip.preprocessing
    key = weights_sha256(clip.model)
    normalisation = [*clip.mean.flatten().tolist(), *clip.std.flatten().tolist()]

    def encode(images: Tensor) -> Tensor:
        return clip.encode_images(images.to(device).float() / 255)

    with torch.inference_mode():
        width = encode(torch.zeros(1, 3, size, size, dtype=torch.uint8)).shape[1]
    resizing = "bilinear, antialiased" if preprocessing is None else preprocessing.interpolation
    model = f"{name}: CLIP of {size} x {size} pixels ({resizing}), weights sha256 {key[:16]}"
    full_key = f"clip {size} {normalisation} {key}"
    if preprocessing is None:
        return Encoder(_blurred(name, blur), model, full_key, width, encode, blur)
    return Encoder(
        _blurred(name, blur), model, f"{full_key} {preprocessing}", width, encode, blur, clip.fitted, preprocessing.rule
    )  # fmt: skip


def inception_encoder(inception: Inception, blur: float = 0.0) -> Encoder:
    """Inception's features and answers; of blurred pictures only the features."""
    width = FEATURES if blur else FEATURES + CLASSES
    model = (
        f"Inception 2015-12-05 (torch-fidelity), 299 x 299 (bilinear), weights sha256 {inception.sha256[:16]}"
    )
    return Encoder(
        _blurred("inception", blur), model, f"inception {inception.sha256}", width,
        lambda images: inception(images)[:, :width], blur,
    )  # fmt: skip


def pytorch_fid_encoder(inception: Inception, blur: float = 0.0) -> Encoder:
    """Inception's features of pictures that are resized as pytorch-fid does."""
    # what is blurred is square already and is resized beside the network: floats of 299 x 299 take four times the memory
    return Encoder(
        _blurred("inception_pytorch", blur), f"Inception 2015-12-05, weights sha256 {inception.sha256[:16]}",
        f"inception pytorch-fid {inception.sha256}", FEATURES, inception.pytorch_fid_features, blur,
        uint8_tensor if blur else pytorch_fid_input, "pytorch-fid's, 299 x 299, bilinear, not antialiased",
    )  # fmt: skip


def _blurred(name: str, radius: float) -> str:
    return f"{name}_blur_{radius:g}" if radius else name


class _TextEmbeddings:
    """Texts behind PROMPT as unit vectors; each text is encoded once."""

    def __init__(self, clip: Clip, batch_size: int) -> None:
        self._clip, self._batch_size = clip, batch_size
        self._known: dict[str, Tensor] = {}

    def __call__(self, texts: Sequence[str]) -> Tensor:
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        with torch.inference_mode():
            for start in range(0, len(new), self._batch_size):
                batch = new[start : start + self._batch_size]
                encoded = self._clip.encode_texts([PROMPT + text for text in batch]).cpu()
                self._known.update(zip(batch, encoded, strict=True))
        return torch.stack([self._known[text] for text in texts])


@dataclass(frozen=True)
class _Kind:
    """Measures the pictures of one kind against the reference."""

    kind: str
    embedded: Embedded
    reference: Embedded
    settings: ImageSettings
    encoders: Mapping[str, Encoder]
    each: dict[str, np.ndarray]

    def distances(
        self, name: str, encoder: str, radii: Sequence[float], width: int | None = None, remark: str = ""
    ) -> list[Figure]:
        """The Frechet distance, for every blur, in the first `width` numbers of an encoder's space."""
        settings, count = self.settings, int(self.embedded.readable.sum())
        figures = []
        for radius in radii:
            full = f"{self.kind}.{_blurred(name, radius)}"
            by = self.encoders.get(_blurred(encoder, radius))
            if by is None:  # a CLIP is always there
                figures.append(not_run(full, f"needs Inception: {MEND}", count))
                continue
            rows, others = (
                torch.from_numpy(each.rows(by.name)[each.readable][:, :width])
                for each in (self.embedded, self.reference)
            )
            try:
                value = frechet_distance(rows, others)
                bounds: tuple[float | None, float | None] = (None, None)
                if settings.frechet_resamples:
                    bounds = frechet_interval(rows, others, settings.seed, settings.frechet_resamples)
            except UserError as error:
                figures.append(not_run(full, str(error), count))
                continue
            detail = f"against {len(others)} pictures{remark}"
            figures.append(
                Figure(full, value, len(rows), *bounds, seed=settings.seed, resize=by.rule(settings), model=by.model,
                       reference_sha256=self.reference.sha256, detail=detail)
            )  # fmt: skip
        return figures

    def inception_score(self, inception: Inception | None) -> Figure:
        """IS of these pictures alone."""
        name, count = f"{self.kind}.inception_score", int(self.embedded.readable.sum())
        if inception is None:
            return not_run(name, f"needs Inception: {MEND}", count)
        logits = self.embedded.rows("inception")[self.embedded.readable][:, FEATURES:]
        settings, model = self.settings, self.encoders["inception"].model
        return inception_score_figure(
            name, logits, settings.seed, settings.resamples, resize=settings.rule, model=model
        )

    def matches(
        self,
        name: str,
        encode: Callable[[Sequence[str]], Tensor],
        captions: Sequence[str | None] | None,
        words: WordLists | None,
    ) -> list[Figure]:
        """CLIPScore and both R-precisions by one CLIP."""
        settings, by = self.settings, self.encoders[name]
        model, rule = by.model, by.rule(self.settings)
        chosen = [
            index
            for index, caption in enumerate(captions or ())
            if caption is not None and self.embedded.readable[index]
        ]
        names = [f"clip_score_{name}", f"r_precision_{name}", f"r_precision_hard_{name}"]
        if not chosen:
            return [not_run(f"{self.kind}.{each}", "needs the captions of these pictures") for each in names]
        texts = [str(captions[index]) for index in chosen]  # type: ignore[index]
        images = torch.from_numpy(self.embedded.rows(name)[chosen])
        embeddings = encode(texts)

        def figure(each: str, values: np.ndarray, of: Sequence[int] = chosen, **facts: Any) -> Figure:
            self.each[f"{self.kind}.{each}"] = np.full(len(self.embedded.names), np.nan)
            self.each[f"{self.kind}.{each}"][list(of)] = values
            return mean_figure(
                f"{self.kind}.{each}", values, settings.seed, settings.resamples, resize=rule, model=model,
                reference_sha256=sha256_of_json(texts), scale=100.0, **facts,
            )  # fmt: skip

        scores = clip_scores(images, embeddings).numpy()
        figures = [figure(names[0], scores, detail=f"prompt {PROMPT!r}")]
        if len(chosen) > settings.negatives:
            wins = r_precision_wins(images, embeddings, settings.seed, settings.negatives, settings.folds)
            deviation = fold_deviation(wins, settings.seed, settings.folds)
            detail = f"{settings.negatives} negatives, {settings.folds} drawings, deviation over {settings.folds} parts"
            figures.append(figure(names[1], wins, deviation=deviation, detail=detail))
        else:
            reason = f"{settings.negatives} negatives need {settings.negatives + 1} pictures with captions; lower negatives"
            figures.append(not_run(f"{self.kind}.{names[1]}", reason, len(chosen)))
        if words is None:
            return [*figures, not_run(f"{self.kind}.{names[2]}", "needs word lists", len(chosen))]
        return [*figures, *self._hard(name, chosen, images, embeddings, texts, encode, words, figure)]

    def _hard(
        self,
        name: str,
        chosen: Sequence[int],
        images: Tensor,
        embeddings: Tensor,
        texts: list[str],
        encode: Callable[[Sequence[str]], Tensor],
        words: WordLists,
        figure: Callable[..., Figure],
    ) -> list[Figure]:
        settings = self.settings
        figures, wins_of, indices_of = [], [], []
        for category in CATEGORIES:
            swapped = swapped_captions(
                texts, words, category, settings.seed, settings.hard_negatives, settings.hard_captions
            )
            each = f"r_precision_hard_{category}_{name}"
            if not swapped:
                reason = f"no caption holds one of the {category} of the word lists '{words.name}'"
                figures.append(not_run(f"{self.kind}.{each}", reason))
                continue
            wrong = encode([text for one in swapped for text in one.negatives])
            wins = hard_wins(images, embeddings, swapped, wrong)
            wins_of.append(wins)
            indices_of.append([one.index for one in swapped])
            of = [chosen[one.index] for one in swapped]
            detail = f"{_negatives(swapped)} negatives, words '{words.name}'"
            figures.append(figure(each, wins, of, detail=detail))
        full = f"{self.kind}.r_precision_hard_{name}"
        if not wins_of:
            return [not_run(full, f"no caption holds a word of the lists '{words.name}'"), *figures]
        drawn, pictures = _resampled_hard(indices_of, wins_of, settings)
        first = next(found for found in figures if found.value is not None)
        mean = Figure(
            full, float(np.mean([wins.mean() for wins in wins_of])), pictures, *interval(drawn),
            seed=settings.seed, resize=first.resize, model=first.model, reference_sha256=first.reference_sha256,
            scale=first.scale, detail=f"mean of {len(wins_of)} categories, words '{words.name}'",
        )  # fmt: skip
        return [mean, *figures]


def _resampled_hard(
    indices_of: Sequence[Sequence[int]], wins_of: Sequence[np.ndarray], settings: ImageSettings
) -> tuple[np.ndarray, int]:
    """The mean of the categories' shares in every resample, and how many pictures are drawn: all that are in a category, each
    with all its categories, for these are not independent."""
    pictures, places = np.unique(np.concatenate(indices_of), return_inverse=True)
    categories = np.repeat(np.arange(len(wins_of)), [len(wins) for wins in wins_of])
    won, there = np.zeros((2, len(pictures), len(wins_of)))
    won[places, categories], there[places, categories] = np.concatenate(wins_of), 1
    means = resampled_means(np.concatenate([won, there], 1), settings.seed, settings.resamples)
    won, there = np.split(means, 2, axis=1)
    with np.errstate(invalid="ignore"):  # a resample may be without a category, which then has no part in it
        return np.nanmean(won / there, axis=1), len(pictures)


def _negatives(swapped: Sequence[Swapped]) -> str:
    counts = sorted({len(one.negatives) for one in swapped})
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
