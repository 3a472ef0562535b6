"""Paintings cell by cell: in rows, in random order, easiest first, and by Gibbs sampling (X-LXMERT 5.2)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from diptych.model.decoding.noise import derived_seed, gumbel_noise, uniform_noise
from diptych.model.decoding.paint import FixedCells, Paintings, PaintText, free_cells
from diptych.model.decoding.sampling import LIKELIEST, CodeSampling
from diptych.model.devices import Places, sent


def unpainted(free: Tensor, given: FixedCells | None) -> Tensor:
    """Return the codes to start from, int64 ``[n, cells]``: -1 in free cells."""
    none = torch.full(free.shape, -1, device=free.device)
    return none if given is None else torch.where(free, none, given.codes)


# Orders: which cells each step paints, int64 [n, steps, cells at a time]. There are as many steps as an image needs that
# is all free; places that others do not need name the cell after the last.


def stack_orders(orders: Sequence[Sequence[Sequence[int]]], steps: int, at_once: int, free: Tensor) -> Tensor:
    """Stack the steps of n images, lists of cells, to int64 ``[n, steps, at_once]``, on the CPU."""
    stacked = torch.full((len(orders), steps, at_once), free.shape[1])
    for row, order in zip(stacked, orders, strict=True):
        for places, step in zip(row, order, strict=False):
            places[: len(step)] = torch.tensor(step)
    return stacked


def row_order(free: Tensor) -> Tensor:
    """Return the free cells (bool ``[n, cells]``) from the top left to the bottom right, one at a time."""
    orders = [[[cell] for cell in row.nonzero()[:, 0].tolist()] for row in free]
    return stack_orders(orders, free.shape[1], 1, free)


def random_order(free: Tensor, seeds: Sequence[int], extra_steps: int = 0) -> Tensor:
    """Return the free cells in random order, one at a time; then ``extra_steps`` of them again, in another random
    order, then in a third, ... (X-LXMERT's figure 4 has 64 + 76 steps)."""
    orders = []
    for row, seed in zip(free, seeds, strict=True):
        number = int(row.sum())
        sweeps = shuffled(row, seed, 1 + math.ceil(extra_steps / max(1, number)))
        orders.append([[cell] for sweep in sweeps for cell in sweep][: number + extra_steps])
    return stack_orders(orders, free.shape[1] + extra_steps, 1, free)


def sweep_order(free: Tensor, seeds: Sequence[int], sweeps: int, at_once: int) -> Tensor:
    """Return ``sweeps`` passes through the free cells, each in a new random order, ``at_once`` cells at a time."""
    orders = [
        [
            sweep[start : start + at_once]
            for sweep in shuffled(row, seed, sweeps)
            for start in range(0, len(sweep), at_once)
        ]
        for row, seed in zip(free, seeds, strict=True)
    ]
    return stack_orders(orders, sweeps * math.ceil(free.shape[1] / at_once), at_once, free)


def shuffled(free: Tensor, seed: int, times: int) -> list[list[int]]:
    """Return the free cells (bool ``[cells]``) of one image in several random orders."""
    generator = torch.Generator().manual_seed(derived_seed(seed, "order"))
    cells = free.cpu().nonzero()[:, 0]
    return [cells[torch.randperm(len(cells), generator=generator)].tolist() for _ in range(times)]


@torch.no_grad()
def paint_in_order(
    text: PaintText,
    codebook: Tensor,
    order: Tensor,
    sampling: CodeSampling = LIKELIEST,
    seeds: Sequence[int] | None = None,
    keep_steps: bool = False,
    given: FixedCells | None = None,
) -> Paintings:
    """Paint one image per text in a given order.

    Every free cell starts masked. A step masks its cells, also those painted before, predicts them from all that is
    painted and writes them.

    Args:
        codebook: float ``[K, D]``, the centroids that written cells show.
        order: int64 ``[n, steps, cells at a time]``, from one of the functions above; it names every free cell. It says which cells
            are masked when, which is counted on the CPU.
        sampling: how codes are taken.
        seeds: one whole number >= 0 per painting, needed for sampling.
        keep_steps: also return the codes after each step.
        given: the cells that are painted already.
    """
    free = free_cells(text, codebook, given)
    n, cells = free.shape
    steps, at_once = order.shape[1:]
    if sampling.temperature > 0 and (seeds is None or len(seeds) != n):
        raise ValueError("sampling needs one seed per painting")
    noise = (
        uniform_noise(seeds or [], steps, at_once, device=free.device) if sampling.temperature > 0 else None
    )
    order, on_host = order.cpu(), torch.ones(n, cells, dtype=torch.bool) if given is None else free.cpu()
    # One cell more than there are: that of steps that paint nothing.
    masked = torch.cat([on_host, torch.zeros_like(on_host[:, :1])], 1)
    codes = unpainted(free, given)
    codes = torch.cat([codes, torch.zeros_like(codes[:, :1])], 1)
    used = (order < cells).any(0).any(1).tolist()
    history = []
    for step in range(steps):
        if used[step]:
            masked.scatter_(1, order[:, step], True)
            hidden, positions = (
                Places.of(masked[:, :cells]).to(free.device),
                sent(order[:, step], free.device),
            )
            features = codebook[codes[:, :cells].clamp(min=0)]
            logits = text.logits(features, hidden, positions.clamp(max=cells - 1))
            chosen = sampling.take(logits, None if noise is None else noise[:, step])
            codes.scatter_(1, positions, chosen)
            masked.scatter_(1, order[:, step], False)
        history.append(codes[:, :cells].clone())
    return Paintings(history[-1], torch.stack(history, 1) if keep_steps else None)


@torch.no_grad()
def paint_features_in_order(text: PaintText, order: Tensor) -> Tensor:
    """Predict the grid features of one image per text in a given order: float32 ``[n, cells, D]``. As :func:`paint_in_order`,
    where a step writes the features that the transformer predicts, and no code.

    Args:
        order: int64 ``[n, steps, cells at a time]``, which names every cell.

    Raises:
        UserError: the transformer has no head that regresses features.
    """
    config, (n, steps, _) = text.model.config, order.shape
    device, order = text.text.device, order.cpu()
    masked = torch.ones(n, config.cells, dtype=torch.bool)
    features = torch.zeros(n, config.cells, config.feature_dim, device=device)
    rows = torch.arange(n, device=device)[:, None]
    for step in range(steps):
        masked.scatter_(1, order[:, step], True)
        positions = sent(order[:, step], device)
        features[rows, positions] = text.regressed(features, Places.of(masked).to(device), positions)
        masked.scatter_(1, order[:, step], False)
    return features


@torch.no_grad()
def paint_easiest_first(
    text: PaintText,
    codebook: Tensor,
    sampling: CodeSampling = LIKELIEST,
    confidence_noise: float = 0.0,
    seeds: Sequence[int] | None = None,
    keep_steps: bool = False,
    given: FixedCells | None = None,
) -> Paintings:
    """Paint one image per text, one cell at a time, always the one that is most certain now.

    Every free cell starts masked. A step predicts all masked cells and writes one code: the most confident, of equally
    confident ones the first from the top left. Confidence is that of :func:`diptych.model.decoding.paint.mask_predict`.

    Args:
        confidence_noise: scale of Gumbel noise added to log-confidences, falling linearly with the cells that are left.
        The others are those of :func:`paint_in_order`.
    """
    free = free_cells(text, codebook, given)
    n, cells = free.shape
    noisy = sampling.temperature > 0 or confidence_noise > 0
    if noisy and (seeds is None or len(seeds) != n):
        raise ValueError("sampling needs one seed per painting")
    noise = uniform_noise(seeds or [], 2, cells, cells, device=free.device) if noisy else None
    masked, codes = free.clone(), unpainted(free, given)
    numbers_free = free.sum(1)
    most_free = cells if given is None else int(numbers_free.max())
    history = []
    for step in range(cells):
        if step < most_free:
            # The masked cells of each image, as many as the image with most of them has.
            order = masked.byte().argsort(dim=1, descending=True, stable=True)
            positions = order[:, : most_free - step]
            # without given cells these are all that are masked, and nothing has to be counted
            hidden = masked if given is not None else Places.split(order, most_free - step)[0]
            logits = text.logits(codebook[codes.clamp(min=0)], hidden, positions)
            chosen = sampling.take(logits, None if noise is None else noise[:, 0, step].gather(1, positions))
            ranking = logits.log_softmax(-1).gather(-1, chosen[..., None])[..., 0]
            if noise is not None and confidence_noise > 0:
                scale = confidence_noise * (1 - step / numbers_free[:, None].clamp(min=1)).clamp(min=0)
                ranking = ranking + scale * gumbel_noise(noise[:, 1, step].gather(1, positions))
            candidates = masked.gather(1, positions)
            ranking = ranking.masked_fill(~candidates, -torch.inf)
            best = ranking.argsort(dim=1, descending=True, stable=True)[:, :1]
            cell = positions.gather(1, best)
            code = torch.where(candidates, chosen, codes.gather(1, positions)).gather(1, best)
            codes.scatter_(1, cell, code)
            masked.scatter_(1, cell, False)
        history.append(codes.clone())
    return Paintings(codes, torch.stack(history, 1) if keep_steps else None)
