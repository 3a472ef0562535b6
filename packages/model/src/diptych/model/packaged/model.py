"""Captions and paintings from a packaged model, in one call each."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypedDict, Unpack

import torch
from PIL import Image
from torch import Tensor

from diptych.eval.scorers.clip_score import PROMPT, scores_of_cosines
from diptych.features.assignment import nearest_codes
from diptych.features.errors import UserError as FeaturesError
from diptych.features.images import resize_square, to_uint8_tensor
from diptych.features.precision import autocast_context as detector_context
from diptych.model.decoding.caption import Captions, encode_images
from diptych.model.decoding.decode import caption_images, paint_captions
from diptych.model.decoding.options import CaptionOptions, PaintOptions, with_changes
from diptych.model.decoding.paint import FixedCells, Paintings
from diptych.model.decoding.rerank import rerank as pick_best
from diptych.model.errors import UserError
from diptych.model.image_features import caption_input
from diptych.model.inference.image_generator import InferenceImageGenerator
from diptych.model.inference.transformer import InferenceTransformer
from diptych.model.networks.image_generator import load_image_generator
from diptych.model.packaged.attention import WordAttention, word_attention
from diptych.model.packaged.directory import (
    DETECTOR,
    IMAGE_GENERATOR,
    SCORER,
    PackageConfig,
    copy_package,
    read_package_config,
    read_scorer,
    read_sums,
    verify_package,
)
from diptych.model.packaged.examples import EXAMPLES_FILE, read_examples
from diptych.model.packaged.pictures import Pictures, listed, read_picture
from diptych.model.packaged.source import find_package
from diptych.model.precision import autocast_context, resolve_precision
from diptych.model.pretrained import CODEBOOK_FOLDER, load_transformer
from diptych.model.tokenizer import CaptionTokenizer

if TYPE_CHECKING:
    from diptych.eval.scorers.clip import Clip
    from diptych.features.detector.grid_detector import PyramidGridDetector

BATCH_SIZE = 32
SAMPLING_TEMPERATURE = 1.0  # of several paintings of a caption, where nobody asks for another


class CaptionChanges(TypedDict, total=False):
    """Options of :class:`diptych.model.decoding.options.CaptionOptions` that a call may change."""

    length: int
    method: Literal["greedy", "sample", "beam"]
    start: str
    no_repeat: int
    temperature: float
    top_k: int | None
    top_p: float
    beams: int
    groups: int
    diversity: float
    length_power: float


class PaintChanges(TypedDict, total=False):
    """Options of :class:`diptych.model.decoding.options.PaintOptions` that a call may change."""

    method: Literal["mask_predict", "rows", "random", "easiest", "gibbs"]
    steps: int
    schedule: Literal["linear", "cosine"]
    extra_steps: int
    sweeps: int
    cells_at_once: int
    guidance: float
    temperature: float
    confidence_noise: float


@dataclass(frozen=True)
class Caption:
    """One caption of a picture; ``str(caption)`` is its text.

    Attributes:
        text: ``a red kite over the sea.``
        log_probability: of its words, under the distribution they were taken from.
        sample: its number among the captions of the picture.
        score: CLIPScore with the picture, from 0 to 2.5; only of captions that were reranked.
        attention: where each word looks, if asked for.
    """

    text: str
    log_probability: float
    sample: int
    score: float | None = None
    attention: WordAttention | None = None

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class PaintingStep:
    """A painting after one step: the picture, and codes int64 ``[64]``, -1 where a cell has none yet (such a cell is
    shown as the mean of the codebook)."""

    image: Image.Image
    codes: Tensor


@dataclass(frozen=True)
class Painting:
    """One painting of a caption.

    Attributes:
        caption: what was painted.
        image: RGB, ``image_size`` pixels a side.
        codes: int64 ``[64]``, the cells row-major from the top left.
        seed: of its caption; with the same options it gives the same painting.
        sample: its number among the paintings of the caption.
        steps: the painting after each step, the last included, if asked for.
        score: CLIPScore with the caption, from 0 to 2.5; only of paintings that were reranked.
    """

    caption: str
    image: Image.Image
    codes: Tensor
    seed: int
    sample: int
    steps: tuple[PaintingStep, ...] = ()
    score: float | None = None


class Diptych:
    """A packaged model that captions pictures and paints captions.

    ::

        d = Diptych.from_pretrained("models/package")
        print(d.caption("photo.jpg")[0])
        d.paint("two red kites over the sea.")[0].image.save("kites.png")

    Pictures are paths, encoded bytes, Pillow images, arrays (uint8, or floats in 0..1; ``[H, W, 3]``) or tensors
    (``[3, H, W]``): one, or any number of them. Results are lists, one entry for each picture or caption (several where
    several samples are asked for), whatever their number is. Tensors that are returned are on the CPU.

    Threads may share one object: nothing in it changes after loading but the scorer, which is loaded at its first
    use. Two things are locked: that loading, and every use of the scorer, since open_clip's attention is steered by a setting
    of the whole process. Chance comes from the seeds of a call alone.
    """

    def __init__(
        self,
        folder: Path,
        config: PackageConfig,
        transformer: InferenceTransformer,
        tokenizer: CaptionTokenizer,
        codebook: Tensor,
        generator: InferenceImageGenerator,
        detector: PyramidGridDetector,
        device: torch.device,
        precision: str,
    ) -> None:
        """Take loaded parts; :meth:`from_pretrained` loads them."""
        self.folder, self.config = folder, config
        self.device, self.precision = device, precision
        self.transformer, self.tokenizer, self.codebook = transformer, tokenizer, codebook
        self.generator, self.detector = generator, detector
        self._scorer: Clip | None = None
        self._scorer_lock = threading.RLock()

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        device: str | torch.device | None = None,
        precision: str = "auto",
        *,
        revision: str | None = None,
        verify: bool = True,
    ) -> Diptych:
        """Load a package from a folder, or from a repository of the Hugging Face Hub (``OWNER/NAME``).

        Args:
            device: such as ``cpu`` or ``cuda:1``; None takes CUDA where there is a device.
            precision: of matrix products: ``float32``, ``bfloat16``, or ``auto``, which takes bfloat16 on CUDA and on
                processors that multiply it fast.
            revision: branch, tag or commit of a repository.
            verify: compare all files with SHA256SUMS (about a second per gigabyte).

        Raises:
            UserError: there is no such package, it is of a newer format, a file is missing or another than its sum
                says, or there is no such device.
        """
        place = resolve_device(device)
        dtype = resolve_precision(place, precision)
        folder = find_package(source, revision)
        config = read_package_config(folder)
        read_sums(folder)
        if verify:
            verify_package(folder)
        from diptych.features.detector.load import load_detector

        model, tokenizer, codebook = load_transformer(folder, place)
        generator = load_image_generator(folder / IMAGE_GENERATOR, place)
        try:
            detector = load_detector(folder / DETECTOR, place)
        except FeaturesError as error:
            raise UserError(str(error)) from None
        return cls(
            folder,
            config,
            InferenceTransformer(model, dtype),
            tokenizer,
            codebook.float(),
            InferenceImageGenerator(generator),
            detector,
            place,
            precision,
        )

    def __repr__(self) -> str:
        return f"Diptych({str(self.folder)!r}, device={str(self.device)!r}, precision={self.precision!r})"

    @property
    def image_size(self) -> int:
        """Pixels a side of what is painted."""
        return self.generator.config.image_size

    @property
    def grid_size(self) -> int:
        """Cells a side of the grid: 8."""
        return self.transformer.config.grid_size

    @property
    def codebook_size(self) -> int:
        """Number of codes, K."""
        return len(self.codebook)

    @property
    def has_scorer(self) -> bool:
        """Whether the package can rerank and score."""
        return (self.folder / SCORER).is_dir()

    @property
    def has_examples(self) -> bool:
        """Whether the package knows what its codes look like (:meth:`examples`)."""
        return (self.folder / CODEBOOK_FOLDER / EXAMPLES_FILE).is_file()

    # Pictures to features, codes and pictures

    def features(self, pictures: Pictures, batch_size: int = BATCH_SIZE) -> Tensor:
        """Return grid features float32 ``[n, 64, D]``, cells row-major from the top left, rounded to float16 as the
        feature store has them.

        Raises:
            UserError: a picture is missing, damaged or of a wrong kind.
        """
        return self._over_pictures(pictures, batch_size, self._features)

    def codes(self, pictures: Pictures, batch_size: int = BATCH_SIZE) -> Tensor:
        """Return the nearest centroid of each cell, int64 ``[n, 64]``. Errors: :meth:`features`."""
        return self._over_pictures(pictures, batch_size, self._codes)

    def reconstruct(self, pictures: Pictures, batch_size: int = BATCH_SIZE) -> list[Image.Image]:
        """Paint what the codes of the pictures tell: the best that the painter can reach. Errors: :meth:`features`."""
        return self.draw(self.codes(pictures, batch_size), batch_size)

    def draw(
        self, codes: Tensor | Sequence[Sequence[int]], batch_size: int = BATCH_SIZE
    ) -> list[Image.Image]:
        """Turn codes, whole numbers ``[n, 64]``, into pictures; -1 stands for the mean of the codebook.

        Raises:
            UserError: another shape, or a code that is not in the codebook.
        """
        rows = self._checked_codes(codes, least=-1)
        images = []
        for part in rows.split(batch_size):
            with self._inference():
                images += as_images(self._pixels(part))
        return images

    # Pictures to captions

    def caption(
        self,
        pictures: Pictures,
        *,
        samples: int | None = None,
        rerank: bool | None = None,
        seed: int | Sequence[int] | None = 0,
        return_attention: bool = False,
        batch_size: int = BATCH_SIZE,
        **changes: Unpack[CaptionChanges],
    ) -> list[Caption]:
        """Caption pictures.

        Args:
            samples: captions of each picture; None: as the package's options say, of which the best is returned if
                they are several.
            rerank: draw ``samples`` and return the one of each picture that the scorer likes best.
            seed: of sampling, a whole number >= 0: one for all pictures, or one each; None draws one. The same seed
                gives a picture the same captions in every batch.
            return_attention: also tell where each word looks (:meth:`attention`).
            batch_size: pictures at a time.
            changes: options other than the package's (:class:`diptych.model.decoding.options.CaptionOptions`).
                ``temperature``, ``top_k`` and ``top_p`` imply the method ``sample``, ``beams`` and its companions ``beam``,
                ``samples`` above 1 ``sample``, unless a method is named.

        Returns:
            The captions of the first picture, then those of the second, ...: one each if reranked.

        Raises:
            UserError: a picture, option or seed is wrong, or the package has no scorer to rerank by.
        """
        items = listed(pictures)
        options = self._caption_options(samples, changes)
        rerank = self._reranks(rerank, samples, self.config.captioning)
        seeds = seed_list(seed, len(items))
        found: list[Caption] = []
        for start in range(0, len(items), batch_size):
            part = slice(start, start + batch_size)
            images = [read_picture(item, start + number) for number, item in enumerate(items[part])]
            found += self._caption_batch(images, options, seeds[part], rerank, return_attention)
        return found

    def attention(self, pictures: Pictures, captions: str | Sequence[str]) -> list[WordAttention]:
        """Tell where in its picture each word of a caption looks: the weights over the 64 cells with which the text
        reads the visual stream when it predicts the word, mean over all heads of all cross-modality layers
        (:mod:`diptych.model.packaged.attention`).

        Raises:
            UserError: not as many captions as pictures, or one of them is wrong.
        """
        items = listed(pictures)
        texts = [captions] if isinstance(captions, str) else list(captions)
        check_pairs(items, texts)
        if not items:
            return []
        images = [read_picture(item, number) for number, item in enumerate(items)]
        ids = self.tokenizer.encode(texts, self.config.captioning.length).to(self.device)
        with self._inference():
            encoded = encode_images(self.transformer, self._caption_input(images))
            return word_attention(self.transformer, self.tokenizer, encoded, ids)

    # Captions to pictures

    def paint(
        self,
        captions: str | Sequence[str],
        *,
        samples: int | None = None,
        rerank: bool | None = None,
        seed: int | Sequence[int] | None = 0,
        return_steps: bool = False,
        codes: Tensor | Sequence[int] | None = None,
        locked: Sequence[int] | Tensor | None = None,
        repaint: Sequence[int] | Tensor | None = None,
        batch_size: int = BATCH_SIZE,
        **changes: Unpack[PaintChanges],
    ) -> list[Painting]:
        """Paint captions.

        Args:
            samples: paintings of each caption; None: as the package's options say, of which the best is returned if they
                are several. Several need chance: where the options have none, a temperature of 1 is taken.
            rerank: paint ``samples`` and return the one of each caption that the scorer likes best.
            seed: as in :meth:`caption`.
            return_steps: also return the painting after each step.
            codes: int ``[64]``, a painting to start from, with one of:
            locked: the cells that keep their codes, as numbers from 0 (top left) to 63 or as bool ``[64]``;
            repaint: the cells that do not.
            batch_size: paintings at a time.
            changes: options other than the package's, such as ``steps``, ``temperature`` and ``guidance``
                (:class:`diptych.model.decoding.options.PaintOptions`).

        Returns:
            The paintings of the first caption, then those of the second, ...: one each if reranked.

        Raises:
            UserError: a caption has no known word; an option, seed, code or cell is wrong; or the package has no scorer
                to rerank by.
        """
        texts = [captions] if isinstance(captions, str) else list(captions)
        options = self._paint_options(samples, changes)
        rerank = self._reranks(rerank, samples, self.config.painting)
        seeds = seed_list(seed, len(texts))
        given = self._given_cells(codes, locked, repaint)
        found: list[Painting] = []
        step = max(1, batch_size // options.samples)
        for start in range(0, len(texts), step):
            part = slice(start, start + step)
            found += self._paint_batch(texts[part], options, seeds[part], given, rerank, return_steps)
        return found

    # Judging, and looking into it

    def score(
        self, pictures: Pictures, captions: str | Sequence[str], batch_size: int = BATCH_SIZE
    ) -> Tensor:
        """Return the CLIPScore of each picture with its caption by the package's scorer, 2.5 max(cos, 0) (UMT 5.1):
        float32 ``[n]``. The scorer rewarded training, so it flatters this model's own work.

        Raises:
            UserError: not as many captions as pictures, one of them is wrong, or the package has no scorer.
        """
        items = listed(pictures)
        texts = [captions] if isinstance(captions, str) else list(captions)
        check_pairs(items, texts)
        scores = [torch.zeros(0)]
        for start in range(0, len(items), batch_size):
            part = slice(start, start + batch_size)
            images = [read_picture(item, start + number) for number, item in enumerate(items[part])]
            with self._scoring() as scorer:
                embedded = self._embed_images(scorer, images)
                scores.append(
                    scores_of_cosines((embedded * self._embed_texts(scorer, texts[part])).sum(-1)).cpu()
                )
        return torch.cat(scores)

    def examples(self, code: int) -> list[Image.Image]:
        """Return patches of training pictures whose features are nearest to a centroid, nearest first: the cell in the
        middle and the cells around it.

        Raises:
            UserError: no such code, or the package has no examples.
        """
        if not 0 <= code < self.codebook_size:
            raise UserError(f"code {code}: codes are from 0 to {self.codebook_size - 1}")
        return read_examples(self.folder / CODEBOOK_FOLDER, code)

    # The package itself

    def save_pretrained(self, folder: str | Path) -> None:
        """Copy the package to a new folder.

        Raises:
            UserError: the folder exists, or a file of the package has changed since.
        """
        copy_package(self.folder, Path(folder))

    def push_to_hub(
        self,
        repository: str,
        *,
        private: bool | None = None,
        revision: str | None = None,
        message: str = "Upload a Diptych model",
        token: str | None = None,
    ) -> str:
        """Upload the package to a repository of the Hugging Face Hub (``OWNER/NAME``), made if there is none; returns
        the commit's address.

        Raises:
            UserError: a file of the package has changed since it was made, or the Hub refuses.
        """
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError

        verify_package(self.folder)
        names = [*read_sums(self.folder), "SHA256SUMS"]
        api = HfApi(token=token)
        try:
            api.create_repo(repository, private=private, exist_ok=True)
            done = api.upload_folder(
                repo_id=repository,
                folder_path=self.folder,
                allow_patterns=names,
                revision=revision,
                commit_message=message,
            )
        except (HfHubHTTPError, HFValidationError, OSError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"{repository}: cannot be uploaded ({reason}); log in with `hf auth login`"
            ) from None
        return str(done.commit_url)

    # Steps of the above

    @contextmanager
    def _inference(self) -> Iterator[None]:
        """No gradients, and the precision of products."""
        with torch.inference_mode(), autocast_context(self.device, self.precision):
            yield

    @contextmanager
    def _scoring(self) -> Iterator[Clip]:
        """The scorer, for one thread at a time.

        Raises:
            UserError: the package has none.
        """
        with ExitStack() as stack:
            stack.enter_context(self._scorer_lock)
            if self._scorer is None:
                if not self.has_scorer:
                    raise UserError(
                        f"{self.folder}: this package has no scorer, so that it cannot rerank or score"
                    )
                self._scorer = read_scorer(self.folder / SCORER, str(self.device))
            stack.enter_context(self._inference())
            yield self._scorer

    def _over_pictures(self, pictures: Pictures, batch_size: int, work) -> Tensor:
        items = listed(pictures)
        if not items:
            raise UserError("there is no picture")
        results = []
        for start in range(0, len(items), batch_size):
            part = items[start : start + batch_size]
            images = [read_picture(item, start + number) for number, item in enumerate(part)]
            with self._inference():
                results.append(work(images).cpu())
        return torch.cat(results)

    def _features(self, images: Sequence[Image.Image]) -> Tensor:
        """Grid features float32 ``[n, 64, D]`` on the device; images of one input size go through the detector together."""
        prepared = [self.detector.prepare(image) for image in images]
        groups: dict[torch.Size, list[int]] = {}
        for number, pixels in enumerate(prepared):
            groups.setdefault(pixels.shape, []).append(number)
        cells = self.transformer.config.cells
        features = torch.empty(len(images), cells, self.codebook.shape[1], device=self.device)
        with (
            torch.autocast(self.device.type, enabled=False),
            detector_context(self.device, self.precision),
        ):
            for numbers in groups.values():
                batch = torch.stack([prepared[number] for number in numbers]).to(self.device)
                features[numbers] = self.detector.grid_features(batch).half().float()
        return features

    def _caption_input(self, images: Sequence[Image.Image]) -> Tensor:
        """What captioning sees of the images, float32 ``[n, 64, D]``."""
        return caption_input(self.transformer.config, self.codebook, self._features(images))

    def _codes(self, images: Sequence[Image.Image]) -> Tensor:
        features = self._features(images)
        with torch.autocast(self.device.type, enabled=False):  # near centroids are told apart in float32
            return nearest_codes(features, self.codebook)

    def _pixels(self, codes: Tensor) -> Tensor:
        """Codes int64 ``[n, 64]`` to pixels float32 ``[n, 3, S, S]`` in -1..1."""
        codes = codes.to(self.device)
        grid = self.codebook[codes.clamp(min=0)]
        unpainted = codes < 0
        if unpainted.any():
            grid[unpainted] = self.codebook.mean(0)
        return self.generator(grid).float()

    def _caption_options(self, samples: int | None, changes: CaptionChanges) -> CaptionOptions:
        wanted = dict(changes)
        if "method" not in wanted:
            if {"temperature", "top_k", "top_p"} & wanted.keys():
                wanted["method"] = "sample"
            elif {"beams", "groups", "diversity", "length_power"} & wanted.keys():
                wanted["method"] = "beam"
            elif (samples or 1) > 1 and self.config.captioning.method == "greedy":
                wanted["method"] = "sample"
        if samples is not None:
            wanted["samples"] = samples
        return with_changes(self.config.captioning, wanted)

    def _paint_options(self, samples: int | None, changes: PaintChanges) -> PaintOptions:
        wanted = dict(changes)
        if samples is not None:
            wanted["samples"] = samples
        if "temperature" not in wanted and self.config.painting.temperature == 0:
            gibbs = wanted.get("method") == "gibbs"
            random = wanted.get("method") == "random" or wanted.get("confidence_noise", 0)
            if gibbs or ((samples or 1) > 1 and not random):
                wanted["temperature"] = SAMPLING_TEMPERATURE
        return with_changes(self.config.painting, wanted)

    def _reranks(
        self, rerank: bool | None, samples: int | None, options: CaptionOptions | PaintOptions
    ) -> bool:
        """Whether the scorer chooses; without being asked, where the package's own options have several samples."""
        return samples is None and options.samples > 1 if rerank is None else rerank

    def _caption_batch(
        self,
        images: list[Image.Image],
        options: CaptionOptions,
        seeds: list[int],
        rerank: bool,
        return_attention: bool,
    ) -> list[Caption]:
        count = options.samples
        with self._inference():
            seen = self._caption_input(images)
            written = caption_images(self.transformer, self.tokenizer, seen, options, seeds)
        numbers, scores = list(range(count)) * len(images), None
        if rerank:
            with self._scoring() as scorer:
                embedded = self._embed_images(scorer, images).repeat_interleave(count, 0)

                def cosines(captions: Captions) -> Tensor:
                    texts = [self.tokenizer.decode(ids) for ids in captions.ids]
                    return (embedded * self._embed_texts(scorer, texts)).sum(-1)

                best = pick_best(written, count, cosines)
            written, numbers = best.best, best.chosen.tolist()
            scores = scores_of_cosines(best.scores.gather(1, best.chosen[:, None])[:, 0]).tolist()
        attentions: list[WordAttention] | None = None
        if return_attention:
            with self._inference():
                encoded = encode_images(self.transformer, seen)
                each = len(written.ids) // len(images)
                encoded = [states.repeat_interleave(each, 0) for states in encoded]
                attentions = word_attention(self.transformer, self.tokenizer, encoded, written.ids)
        sums = written.log_probabilities.double().sum(1).tolist()
        return [
            Caption(
                self.tokenizer.decode(ids),
                sums[row],
                numbers[row],
                scores[row] if scores else None,
                attentions[row] if attentions else None,
            )
            for row, ids in enumerate(written.ids)
        ]

    def _paint_batch(
        self,
        texts: list[str],
        options: PaintOptions,
        seeds: list[int],
        given: FixedCells | None,
        rerank: bool,
        return_steps: bool,
    ) -> list[Painting]:
        count = options.samples
        ids = self.tokenizer.encode(texts, self.config.captioning.length).to(self.device)
        if given is not None:
            given = FixedCells(given.codes.expand(len(texts), -1), given.fixed.expand(len(texts), -1))
        with self._inference():
            painted = paint_captions(
                self.transformer,
                self.tokenizer,
                self.codebook,
                ids,
                options,
                seeds,
                given,
                keep_steps=return_steps,
            )
        numbers, scores = list(range(count)) * len(texts), None
        each = count
        if rerank:
            with self._scoring() as scorer:
                embedded = self._embed_texts(scorer, texts).repeat_interleave(count, 0)

                def cosines(paintings: Paintings) -> Tensor:
                    pixels = (self._pixels(paintings.codes) + 1) / 2
                    return (scorer.encode_images(pixels) * embedded).sum(-1)

                best = pick_best(painted, count, cosines)
            painted, numbers, each = best.best, best.chosen.tolist(), 1
            scores = scores_of_cosines(best.scores.gather(1, best.chosen[:, None])[:, 0]).tolist()
        with self._inference():
            images = as_images(self._pixels(painted.codes))
            steps: list[tuple[PaintingStep, ...]] = [()] * len(images)
            if painted.steps is not None:
                for row, history in enumerate(painted.steps):
                    drawn = as_images(self._pixels(history))
                    steps[row] = tuple(
                        PaintingStep(image, codes)
                        for image, codes in zip(drawn, history.cpu().clone(), strict=True)
                    )
        codes = painted.codes.cpu()
        return [
            Painting(
                texts[row // each],
                image,
                codes[row].clone(),
                seeds[row // each],
                numbers[row],
                steps[row],
                scores[row] if scores else None,
            )
            for row, image in enumerate(images)
        ]

    def _embed_images(self, scorer: Clip, images: Sequence[Image.Image]) -> Tensor:
        sized = (to_uint8_tensor(resize_square(image, scorer.image_size)) for image in images)
        return scorer.encode_images(torch.stack(list(sized)).to(self.device).float() / 255)

    def _embed_texts(self, scorer: Clip, texts: Sequence[str]) -> Tensor:
        return scorer.encode_texts([PROMPT + text for text in texts])

    def _given_cells(
        self,
        codes: Tensor | Sequence[int] | None,
        locked: Sequence[int] | Tensor | None,
        repaint: Sequence[int] | Tensor | None,
    ) -> FixedCells | None:
        """The cells that are there already, ``[1, 64]``; None: no painting was given."""
        if codes is None and locked is None and repaint is None:
            return None
        if codes is None or (locked is None) == (repaint is None):
            raise UserError(
                "locked cells: give the codes of a painting together with either `locked` or `repaint`"
            )
        rows = self._checked_codes(torch.as_tensor(codes)[None], least=0)
        chosen = cell_mask(locked if repaint is None else repaint, rows.shape[1])
        fixed = chosen if repaint is None else ~chosen
        return FixedCells(rows.to(self.device), fixed[None].to(self.device))

    def _checked_codes(self, codes: Tensor | Sequence[Sequence[int]], least: int) -> Tensor:
        """Codes as int64 ``[n, 64]``, each from ``least`` to K - 1."""
        try:
            rows = torch.as_tensor(codes)
        except (TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"codes: not an array of whole numbers ({error})") from None
        cells = self.transformer.config.cells
        if rows.ndim != 2 or rows.shape[1] != cells or rows.is_floating_point() or rows.dtype == torch.bool:
            raise UserError(
                f"codes: whole numbers of shape [n, {cells}] ({cells} of one painting), "
                f"these are {rows.dtype} {list(rows.shape)}"
            )
        if rows.numel() and not least <= int(rows.min()) <= int(rows.max()) < self.codebook_size:
            raise UserError(
                f"codes: from {least} to {self.codebook_size - 1}, these are {int(rows.min())} to {int(rows.max())}"
            )
        return rows.long()


def resolve_device(device: str | torch.device | None) -> torch.device:
    """Return the device; None takes CUDA where there is a device.

    Raises:
        UserError: there is no such device.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"device {device}: not there ({reason}); use cpu, or leave it out") from None
    return place


def seed_list(seed: int | Sequence[int] | None, count: int) -> list[int]:
    """Return one seed per item: the given ones, or the same for all; None draws one.

    Raises:
        UserError: not one per item, or one is no whole number from 0 to 2**63 - 1.
    """
    if seed is None:
        seed = secrets.randbelow(2**31)
    seeds = [seed] * count if isinstance(seed, int) else list(seed)
    if len(seeds) != count:
        raise UserError(f"seed: {len(seeds)} seeds for {count} items; give one for all, or one each")
    for number in seeds:
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < 2**63:
            raise UserError(f"seed: {number!r} is no whole number from 0 to 2**63 - 1")
    return seeds


def cell_mask(cells: Sequence[int] | Tensor | None, count: int) -> Tensor:
    """Return cells, given by number or as bool ``[count]``, as bool ``[count]``.

    Raises:
        UserError: there is no such cell.
    """
    chosen = torch.as_tensor(cells)
    if chosen.dtype == torch.bool:
        if chosen.shape != (count,):
            raise UserError(f"cells: a mask of shape {list(chosen.shape)}, the grid has {count} cells")
        return chosen.cpu()
    mask = torch.zeros(count, dtype=torch.bool)
    if chosen.numel():
        if chosen.ndim != 1 or chosen.is_floating_point():
            raise UserError("cells: a list of whole numbers, or a mask of bool")
        if not 0 <= int(chosen.min()) <= int(chosen.max()) < count:
            raise UserError(
                f"cells: from 0 (top left) to {count - 1}, these are {int(chosen.min())} to {int(chosen.max())}"
            )
        mask[chosen.cpu()] = True
    return mask


def check_pairs(pictures: Sequence[object], captions: Sequence[str]) -> None:
    """Raise a UserError unless there are as many captions as pictures."""
    if len(pictures) != len(captions):
        raise UserError(f"{len(captions)} captions for {len(pictures)} pictures; give one caption for each")


def as_images(pixels: Tensor) -> list[Image.Image]:
    """Pixels float ``[n, 3, S, S]`` in -1..1 as pictures."""
    values = ((pixels + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(value) for value in values]
