"""Captions, paintings and answers from a packaged model, in one call each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Unpack

import torch
from PIL import Image
from torch import Tensor

from diptych.model.decoding.options import PaintOptions
from diptych.model.errors import UserError
from diptych.model.packaged.answering import Answer, AnsweringPart, Verdict, two_of
from diptych.model.packaged.attention import WordAttention
from diptych.model.packaged.captioning import Caption, CaptionChanges, CaptioningPart
from diptych.model.packaged.directory import (
    SCORER,
    SUMS_FILE,
    PackageConfig,
    copy_package,
    read_package_config,
    read_sums,
    verify_package,
)
from diptych.model.packaged.examples import EXAMPLES_FILE, read_examples
from diptych.model.packaged.l_verse import load_l_verse
from diptych.model.packaged.machine import Machine, resolve_device
from diptych.model.packaged.painting import PaintChanges, Painting, PaintingPart
from diptych.model.packaged.parts import Parts
from diptych.model.packaged.pictures import Picture, Pictures
from diptych.model.packaged.scoring import ScoringPart
from diptych.model.packaged.seeing import SeeingPart
from diptych.model.packaged.source import find_package, reason_of, transfer_errors
from diptych.model.packaged.unified import load_unified
from diptych.model.precision import resolve_precision
from diptych.model.pretrained import CODEBOOK_FOLDER

BATCH_SIZE = 32
# What loads the parts of a family, as the config names it.
FAMILIES = {"unified": load_unified, "l_verse": load_l_verse}


class Diptych:
    """A packaged model that captions pictures, paints captions and, where it learned to, answers questions.

    ::

        d = Diptych.from_pretrained("models/package")
        print(d.caption("photo.jpg")[0])
        d.paint("two red kites over the sea.")[0].image.save("kites.png")
        print(d.answer("photo.jpg", "how many kites are there?")[0])

    Pictures are paths, encoded bytes, Pillow images, arrays (uint8, or floats in 0..1; ``[H, W, 3]``) or tensors
    (``[3, H, W]``): one, or any number of them. Results are lists, one entry for each picture or caption (several where
    several samples are asked for), whatever their number is. Tensors that are returned are on the CPU.

    Threads may share one object: nothing in it changes after loading but the scorer, which is loaded at its first
    use. Two things are locked: that loading, and every use of the scorer, since open_clip's attention is steered by a setting
    of the whole process. Chance comes from the seeds of a call alone.
    """

    def __init__(self, folder: Path, config: PackageConfig, parts: Parts, machine: Machine) -> None:
        """Take loaded parts; :meth:`from_pretrained` loads them.

        Raises:
            UserError: ``folder`` has no SHA256SUMS.
        """
        self.folder, self.config, self.parts = folder, config, parts
        self.device, self.precision = machine.device, machine.precision
        self.tokenizer = parts.tokenizer
        self._files = read_sums(folder)  # what else lies in the folder is no part of the package
        self._seeing = SeeingPart(parts.images, machine)
        scores = any(name.startswith(f"{SCORER}/") for name in self._files)
        self._scoring = ScoringPart(folder / SCORER if scores else None, machine)
        self._captioning = CaptioningPart(
            parts.captions, parts.tokenizer, config.captioning, self._scoring, machine
        )
        self._painting = PaintingPart(parts.paintings, parts.images, config.painting, self._scoring, machine)
        length = config.answering.length
        self._answering = AnsweringPart(parts.answers, parts.tokenizer, parts.table, length, machine)

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
            revision: branch, tag or commit of a repository; a folder has none.
            verify: compare all files with SHA256SUMS (about a second per gigabyte).

        Raises:
            UserError: there is no such package, it is of a newer format, a file is missing or another than its sum
                says, or there is no such device.
        """
        machine = Machine(resolve_device(device), precision)
        resolve_precision(machine.device, precision)  # a wrong one is found before anything is read
        folder = find_package(source, revision)
        config = read_package_config(folder)
        if verify:
            verify_package(folder)
        return cls(folder, config, FAMILIES[config.family](folder, config, machine), machine)

    def __repr__(self) -> str:
        return f"Diptych({str(self.folder)!r}, device={str(self.device)!r}, precision={self.precision!r})"

    @property
    def image_size(self) -> int:
        """Pixels a side of what is painted."""
        return self.parts.images.image_size

    @property
    def grid_size(self) -> int:
        """Cells a side of the grid, such as 8."""
        return self.parts.images.grid_size

    @property
    def codebook_size(self) -> int:
        """Number of codes, K."""
        return self.parts.images.codebook_size

    @property
    def has_scorer(self) -> bool:
        """Whether the package can rerank and score."""
        return self._scoring.exists

    @property
    def can_answer(self) -> bool:
        """Whether the package can answer questions about a picture (:meth:`answer`)."""
        return self.parts.answers is not None and self.parts.answers.answers

    @property
    def can_verify(self) -> bool:
        """Whether the package can say if a statement is true of two pictures (:meth:`verify`)."""
        return self.parts.answers is not None and self.parts.answers.verifies

    @property
    def has_examples(self) -> bool:
        """Whether the package knows what its codes look like (:meth:`examples`)."""
        return f"{CODEBOOK_FOLDER}/{EXAMPLES_FILE}" in self._files

    # Pictures to features, codes and pictures

    def features(self, pictures: Pictures, batch_size: int = BATCH_SIZE) -> Tensor:
        """Return what is quantized of each cell, float32 ``[n, cells, D]``, row-major from the top left: grid features,
        rounded to float16 as the feature store has them, or the features of L-Verse's AugVAE.

        Raises:
            UserError: a picture is missing, damaged or of a wrong kind, or ``batch_size`` is below 1.
        """
        return self._seeing.features(pictures, batch_size)

    def codes(self, pictures: Pictures, batch_size: int = BATCH_SIZE) -> Tensor:
        """Return the nearest centroid of each cell, int64 ``[n, cells]``. Errors: :meth:`features`."""
        return self._seeing.codes(pictures, batch_size)

    def reconstruct(self, pictures: Pictures, batch_size: int = BATCH_SIZE) -> list[Image.Image]:
        """Paint what the codes of the pictures tell: the best that the painter can reach. Errors: :meth:`features`."""
        return self.draw(self.codes(pictures, batch_size), batch_size)

    def draw(
        self, codes: Tensor | Sequence[Sequence[int]], batch_size: int = BATCH_SIZE
    ) -> list[Image.Image]:
        """Turn codes, whole numbers ``[n, cells]``, into pictures; -1 stands for the mean of the codebook.

        Raises:
            UserError: another shape, a code that is not in the codebook, or ``batch_size`` is below 1.
        """
        return self._seeing.draw(codes, batch_size)

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
        return self._captioning.captions(
            pictures, samples, rerank, seed, return_attention, batch_size, changes
        )

    def attention(
        self, pictures: Pictures, captions: str | Sequence[str], batch_size: int = BATCH_SIZE
    ) -> list[WordAttention]:
        """Tell where in its picture each word of a caption looks: the weights over the cells with which the text
        reads the picture when it predicts the word, mean over all heads of all layers in which it sees it
        (:mod:`diptych.model.packaged.attention`).

        Raises:
            UserError: not as many captions as pictures, or one of them is wrong.
        """
        return self._captioning.attention(pictures, captions, batch_size)

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
            codes: int ``[cells]``, a painting to start from, with one of:
            locked: the cells that keep their codes, as numbers from 0 (top left) or as bool ``[cells]``;
            repaint: the cells that do not.
            batch_size: paintings at a time. Those of one caption are decoded together, however many they are, and drawn so
                many at a time.
            changes: options other than the package's, such as ``steps``, ``temperature`` and ``guidance``
                (:class:`diptych.model.decoding.options.PaintOptions`).

        Returns:
            The paintings of the first caption, then those of the second, ...: one each if reranked.

        Raises:
            UserError: a caption has no known word; an option, seed, code or cell is wrong; or the package has no scorer
                to rerank by.
        """
        return self._painting.paintings(
            captions,
            samples,
            rerank,
            seed,
            return_steps,
            codes,
            locked,
            repaint,
            batch_size,
            changes,
        )

    def paint_options(self, samples: int | None = None, **changes: Unpack[PaintChanges]) -> PaintOptions:
        """Return all options that :meth:`paint` takes for these arguments.

        Raises:
            UserError: an option is wrong.
        """
        return self._painting.changed(samples, changes)

    # Pictures and questions to answers

    def answer(
        self,
        pictures: Pictures,
        questions: str | Sequence[str],
        *,
        most: int = 5,
        return_attention: bool = False,
        batch_size: int = BATCH_SIZE,
    ) -> list[Answer]:
        """Answer questions about pictures.

        Args:
            questions: one for each picture; or one for all of them; or any number about one picture, which is seen once.
            most: answers to rank.
            return_attention: also tell where the words of the question look.
            batch_size: pictures at a time.

        Returns:
            An answer for each question, with the likeliest ones of the answer table and their probabilities.

        Raises:
            UserError: the package has no answer head; a picture is wrong; a question is empty, too long or has words that
                the model has never read; or they are not as many as the pictures.
        """
        return self._answering.answer(pictures, questions, most, return_attention, batch_size)

    def check_question(self, question: str) -> None:
        """Find out, without any picture, whether a question can be answered.

        Raises:
            UserError: the package has no answer head, or the question is empty, too long or has words that the model has
                never read.
        """
        self._answering.check(question)

    def verify(
        self,
        pictures: tuple[Picture, Picture] | Sequence[tuple[Picture, Picture]],
        statements: str | Sequence[str],
        *,
        batch_size: int = BATCH_SIZE,
    ) -> list[Verdict]:
        """Say whether statements are true of pairs of pictures, left and right (NLVR2).

        Args:
            pictures: one pair with one statement, or several pairs with one statement each.

        Raises:
            UserError: as :meth:`answer`; the package has no head for pairs.
        """
        if isinstance(statements, str):
            return self._answering.verify([two_of(pictures)], [statements], batch_size)
        return self._answering.verify([two_of(pair) for pair in pictures], list(statements), batch_size)

    # Judging, and looking into it

    def score(
        self, pictures: Pictures, captions: str | Sequence[str], batch_size: int = BATCH_SIZE
    ) -> Tensor:
        """Return the CLIPScore of each picture with its caption by the package's scorer, 2.5 max(cos, 0) (UMT 5.1):
        float32 ``[n]``. The scorer rewarded training, so it flatters this model's own work.

        Raises:
            UserError: not as many captions as pictures, one of them is wrong, or the package has no scorer.
        """
        return self._scoring.score(pictures, captions, batch_size)

    def examples(self, code: int) -> list[Image.Image]:
        """Return patches of training pictures whose features are nearest to a centroid, nearest first: the cell in the
        middle and the cells around it.

        Raises:
            UserError: no such code, or the package has no examples.
        """
        if not 0 <= code < self.codebook_size:
            raise UserError(f"code {code}: codes are from 0 to {self.codebook_size - 1}")
        if not self.has_examples:
            raise UserError(f"{self.folder}: this package has no examples of codes; package it with examples")
        return read_examples(self.folder / CODEBOOK_FOLDER, code)

    # The package itself

    def save_pretrained(self, folder: str | Path) -> None:
        """Copy the package to a new folder.

        Raises:
            UserError: the folder exists or cannot be made, or a file of the package has changed since.
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
        the commit's address. The revision then holds the package and nothing else: other files of it are deleted, since
        they would be taken for parts of this package.

        Raises:
            UserError: a file of the package has changed since it was made, or the Hub refuses or cannot be reached.
        """
        from huggingface_hub import HfApi

        verify_package(self.folder)
        names = [*read_sums(self.folder), SUMS_FILE]
        api = HfApi(token=token)
        try:
            api.create_repo(repository, private=private, exist_ok=True)
            done = api.upload_folder(
                repo_id=repository,
                folder_path=self.folder,
                allow_patterns=names,
                delete_patterns="*",
                revision=revision,
                commit_message=message,
            )
        except transfer_errors() as error:
            raise UserError(
                f"{repository}: cannot be uploaded ({reason_of(error)}); log in with `hf auth login`"
            ) from None
        return str(done.commit_url)
