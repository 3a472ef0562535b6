"""Paintings: the codes of an image from a caption by mask-predict-k (X-LXMERT 5.2; UMT 4.2.1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from diptych.model.decoding.decisions import PAPER, Decisions
from diptych.model.decoding.noise import gumbel_noise, uniform_noise
from diptych.model.decoding.sampling import LIKELIEST, CodeSampling
from diptych.model.devices import Places, Texts, sent
from diptych.model.errors import UserError
from diptych.model.networks.unified import UnifiedTransformer
from diptych.model.pretrained import check_codebook
from diptych.model.tokenizer import CaptionTokenizer


@dataclass(frozen=True)
class Paintings:
    """Painted codes.

    Attributes:
        codes: int64 ``[n, cells]``, row-major from the top left.
        steps: int64 ``[n, k, cells]``, the codes after each step, if asked for; -1 where a cell has none yet.
    """

    codes: Tensor
    steps: Tensor | None


@dataclass(frozen=True)
class FixedCells:
    """The part of n images that is there already; the other cells are free.

    Attributes:
        codes: int64 ``[n, cells]``; those of free cells do not matter.
        fixed: bool ``[n, cells]``, the cells that keep their codes.
    """

    codes: Tensor
    fixed: Tensor

    def check(self, n: int, cells: int, codebook_size: int) -> None:
        """Raises UserError unless the cells are those of n images and fixed codes are in the codebook."""
        for name, part, dtype in (("codes", self.codes, torch.int64), ("fixed", self.fixed, torch.bool)):
            if part.shape != (n, cells) or part.dtype != dtype:
                raise UserError(
                    f"fixed cells: {name} has to be {dtype} [{n}, {cells}], one row per painting and one column per "
                    f"cell, is {part.dtype} {list(part.shape)}"
                )
        codes = self.codes[self.fixed]
        if len(codes) and not 0 <= int(codes.min()) <= int(codes.max()) < codebook_size:
            raise UserError(
                f"fixed cells: codes are from 0 to {codebook_size - 1}, found {int(codes.min())} to {int(codes.max())}"
            )


def mask_predict_counts(cells: int, steps: int) -> list[int]:
    """Return how many cells each step predicts: cells * (k - i) / k for i = 0 .. k - 1 (64, 48, 32, 16)."""
    return [cells * (steps - step) // steps for step in range(steps)]


def texts_to_paint(tokenizer: CaptionTokenizer, ids: Tensor | Texts) -> Texts:
    """Encoded captions int64 ``[n, t]``, cut to the longest. Those that are cut are taken as they are; of others a GPU is asked once.

    Raises:
        UserError: there is no caption, or one is all padding.
    """
    if len(ids) == 0:
        raise UserError("there is no caption to paint")
    if isinstance(ids, Texts):
        return ids
    visible = ids != tokenizer.pad
    empty = (~visible.any(1)).nonzero()[:, 0]
    if len(empty):
        raise UserError(f"caption {int(empty[0])} of {len(ids)} has no token; write at least one word")
    return Texts.of(ids, tokenizer.pad, int(visible.any(0).nonzero()[-1]) + 1)


class PaintText:
    """The encoded text of a batch of paintings: it and, for guidance, "no text"; used by all steps.

    ``ids`` int64 ``[n, t]`` are encoded captions; with ``guidance`` 1 only they count, otherwise logits are
    unconditional + guidance * (conditional - unconditional) (classifier-free guidance).

    Raises:
        UserError: there is no caption, or one is all padding.
    """

    def __init__(
        self,
        model: UnifiedTransformer,
        tokenizer: CaptionTokenizer,
        ids: Tensor | Texts,
        guidance: float = 1.0,
    ) -> None:
        ids = texts_to_paint(tokenizer, ids).ids
        self.model = model
        self.guidance = guidance
        self.text, self.bias = model.encode_text(ids, ids != tokenizer.pad)
        if guidance != 1:
            no_text = sent(tokenizer.no_text(1), ids.device)
            text, self.empty_bias = model.encode_text(no_text, torch.ones_like(no_text, dtype=torch.bool))
            self.empty_text = text.expand(len(ids), -1, -1)

    def repeat(self, samples: int) -> PaintText:
        """Return the text of several paintings of each caption, those of one caption side by side."""
        repeated = copy(self)
        repeated.text = self.text.repeat_interleave(samples, 0)
        repeated.bias = None if self.bias is None else self.bias.repeat_interleave(samples, 0)
        if self.guidance != 1:
            repeated.empty_text = self.empty_text[:1].expand(len(repeated.text), -1, -1)
        return repeated

    def logits(self, features: Tensor, masked: Tensor | Places, positions: Tensor) -> Tensor:
        """Return guided logits float32 ``[n, p, K]`` at cells ``positions`` (int64 ``[n, p]``) of features
        ``[n or 1, cells, D]``, hidden where ``masked`` (bool ``[n, cells]``)."""
        visual, projection = self.seen(features, masked)
        logits = self.model.paint_logits(self.text, self.bias, visual, positions, projection).float()
        if self.guidance != 1:
            empty = self.model.paint_logits(
                self.empty_text, self.empty_bias, visual, positions, projection
            ).float()
            logits = empty + self.guidance * (logits - empty)
        return logits

    def regressed(self, features: Tensor, masked: Tensor | Places, positions: Tensor) -> Tensor:
        """Return the grid features float32 ``[n, p, D]`` that a transformer with such a head predicts at cells; arguments as of
        :meth:`logits`. There is no guidance: it is of logits.

        Raises:
            UserError: the transformer has no head that regresses features.
        """
        if self.model.feature_head is None:
            raise UserError("this transformer has no head that regresses features: it predicts codes")
        visual, projection = self.seen(features, masked)
        states = self.model.visual_states(self.text, self.bias, visual, positions, projection)
        embedding = self.model.visual_embedding
        predicted = self.model.feature_head(states)
        return (predicted * embedding.feature_scale + embedding.feature_mean).float()

    def seen(self, features: Tensor, masked: Tensor | Places) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Visual states ``[n, cells, h]`` and their projection, which serves both texts and, of one image, all captions."""
        visual = self.model.encode_visual(features, masked)
        projection = self.model.visual_projection(visual)
        n = len(self.text)
        return visual.expand(n, -1, -1), tuple(part.expand(n, -1, -1, -1) for part in projection)


def free_cells(text: PaintText, codebook: Tensor, given: FixedCells | None) -> Tensor:
    """Return the cells to paint, bool ``[n, cells]``: all but those that ``given`` fixes.

    Raises:
        UserError: ``given`` or ``codebook`` does not fit the transformer.
    """
    check_codebook(text.model, codebook, "codebook")
    n, cells = len(text.text), text.model.config.cells
    if given is None:
        return torch.ones(n, cells, dtype=torch.bool, device=codebook.device)
    given.check(n, cells, len(codebook))
    return ~given.fixed


@torch.no_grad()
def mask_predict(
    text: PaintText,
    codebook: Tensor,
    schedule: Callable[[int], Sequence[int]],
    sampling: CodeSampling = LIKELIEST,
    confidence_noise: float = 0.0,
    seeds: Sequence[int] | None = None,
    keep_steps: bool = False,
    decisions: Decisions = PAPER,
    given: FixedCells | None = None,
) -> Paintings:
    """Paint one image per text.

    Every free cell starts masked. Each step predicts its masked cells, then masks again the least confident free
    ones, as many as the next step predicts. The confidence of a cell is the probability that its code had in the
    (guided, temperature 1) distribution it was taken from: that of the step that wrote it, as in Mask-Predict
    (Ghazvininejad et al. 2019). With ``decisions.fresh_confidence`` it is, for every cell, the largest probability
    that the last step found for any code, which for a cell that was kept is not the probability of its code.

    Args:
        codebook: float ``[K, D]``, the centroids that written cells show.
        schedule: the number of free cells of an image to how many of them each step predicts; the first step all.
        confidence_noise, seeds, keep_steps: as in :func:`paint_codes`.
        given: the cells that are painted already; none: all are free.

    Raises:
        UserError: ``given`` or ``codebook`` does not fit the transformer.
    """
    free = free_cells(text, codebook, given)
    (n, cells), device = free.shape, codebook.device
    noisy = sampling.temperature > 0 or confidence_noise > 0
    if noisy and (seeds is None or len(seeds) != n):
        raise ValueError("sampling needs one seed per painting")
    codes = torch.zeros(n, cells, dtype=torch.int64, device=device)
    confidences = torch.zeros(n, cells, device=device)
    if given is not None:
        codes = torch.where(free, codes, given.codes)
        confidences.masked_fill_(~free, torch.inf)
    numbers_free = [cells] * n if given is None else free.sum(1).tolist()
    schedules = {number: list(schedule(number)) for number in set(numbers_free)}
    counts = sent(torch.tensor([schedules[number] for number in numbers_free]), device)  # [n, steps]
    most = [max(step) for step in zip(*schedules.values(), strict=True)]
    steps = len(most)
    noise = uniform_noise(seeds or [], 2, steps, cells, device=device) if noisy else None
    everywhere = torch.arange(cells, device=device).expand(n, cells)
    history = []
    for step in range(steps):
        if most[step] == 0:  # nothing is free, or more steps than free cells
            history.append(codes.clone())
            continue
        if step == 0 and given is None:  # all cells hold the mask feature, in every image: encode one image
            positions, predicted = everywhere, torch.ones_like(everywhere, dtype=torch.bool)
            features = torch.zeros(1, cells, codebook.shape[1], device=device)
            masked: Tensor | Places = Places.all(1, cells, device)
        else:
            ranking = confidences
            if noise is not None and confidence_noise > 0:
                ranking = confidences + confidence_noise * (1 - step / steps) * gumbel_noise(
                    noise[:, 1, step]
                )
            # As many cells of every image as the image with most of them needs; those past its own number are read,
            # but neither masked nor written.
            order = ranking.argsort(dim=1, stable=True)
            features = codebook[codes]
            if given is None:  # equally many of every image: nothing is counted
                masked, positions = Places.split(order, most[step])
                predicted = torch.ones_like(positions, dtype=torch.bool)
            else:
                predicted = torch.arange(most[step], device=device) < counts[:, step, None]
                positions, order = order[:, : most[step]].sort(1)
                predicted = predicted.gather(1, order)
                masked = torch.zeros_like(codes, dtype=torch.bool).scatter_(1, positions, predicted)
        # Confidences of all cells take logits of all cells; after the last step nobody ranks.
        fresh = decisions.fresh_confidence and step < steps - 1
        read = everywhere if fresh else positions
        logits = text.logits(features, masked, read)
        chosen = sampling.take(logits, None if noise is None else noise[:, 0, step].gather(1, read))
        if fresh:
            confidences = logits.amax(-1) - logits.logsumexp(-1)
            confidences.masked_fill_(~free, torch.inf)
            chosen = chosen.gather(1, positions)
        elif not decisions.fresh_confidence:
            chances = logits.log_softmax(-1).gather(-1, chosen[..., None])[..., 0]
            confidences.scatter_(
                1, positions, torch.where(predicted, chances, confidences.gather(1, positions))
            )
        codes.scatter_(1, positions, torch.where(predicted, chosen, codes.gather(1, positions)))
        history.append(codes.clone())
    return Paintings(codes, torch.stack(history, 1) if keep_steps else None)


@torch.no_grad()
def paint_codes(
    model: UnifiedTransformer,
    tokenizer: CaptionTokenizer,
    codebook: Tensor,
    ids: Tensor | Texts,
    steps: int = 4,
    guidance: float = 1.0,
    temperature: float = 0.0,
    confidence_noise: float = 0.0,
    seeds: Sequence[int] | None = None,
    keep_steps: bool = False,
    decisions: Decisions = PAPER,
) -> Paintings:
    """Paint one image per caption by mask-predict-k with the papers' schedule (:func:`mask_predict`).

    Args:
        codebook: float ``[K, D]``, the centroids that written cells show.
        ids: int64 ``[n, t]`` from ``tokenizer.encode``.
        steps: k of mask-predict-k.
        guidance: scale of classifier-free guidance; 1 is none.
        temperature: 0 takes the likeliest code, above 0 samples from softmax(logits / temperature).
        confidence_noise: scale of Gumbel noise added to log-confidences, times (k - i) / k where step
            i = 1 .. k - 1 chooses its cells.
        seeds: one whole number >= 0 per caption, needed for either noise; the same seed gives a caption the same
            painting in every batch.
        keep_steps: also return the codes after each step.

    The model should be in eval mode.
    """
    text = PaintText(model, tokenizer, ids, guidance)
    schedule = partial(mask_predict_counts, steps=steps)
    sampling = CodeSampling(temperature)
    return mask_predict(text, codebook, schedule, sampling, confidence_noise, seeds, keep_steps, decisions)
