"""Every way to paint against plain rewrites; fixed cells, seeds and batches."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from diptych.model.decoding.decode import order_of, paint_captions
from diptych.model.decoding.noise import gumbel_noise, sample_seeds, uniform_noise
from diptych.model.decoding.options import PaintOptions
from diptych.model.decoding.paint import FixedCells
from diptych.model.decoding.schedules import cosine_counts, schedule_counts
from diptych.model.devices import Places
from diptych.model.errors import UserError

CELLS = 16
OPTIONS = {
    "mask_predict": PaintOptions(guidance=1.7),
    "cosine": PaintOptions(steps=5, schedule="cosine"),
    "noisy": PaintOptions(steps=6, guidance=1.3, temperature=1.1, confidence_noise=0.5),
    "rows": PaintOptions(method="rows", guidance=1.7),
    "random": PaintOptions(method="random", extra_steps=9),
    "random sampled": PaintOptions(method="random", temperature=1.0),
    "easiest": PaintOptions(method="easiest", guidance=1.7),
    "easiest noisy": PaintOptions(method="easiest", temperature=0.8, confidence_noise=1.0),
    "gibbs": PaintOptions(method="gibbs", sweeps=2, temperature=1.0),
    "gibbs of blocks": PaintOptions(method="gibbs", sweeps=2, cells_at_once=5, temperature=0.9, guidance=2.0),
}


@pytest.fixture
def double(tiny) -> SimpleNamespace:
    """In float64, and without a code that is the likeliest of all cells: codes depend on text, place and neighbours."""
    model = tiny.model.double()
    tiny.codebook = tiny.codebook.double()
    generator = torch.Generator().manual_seed(1)
    codes = torch.randint(0, 12, (30, CELLS), generator=generator)
    masked = torch.rand(30, CELLS, generator=generator) < torch.rand(30, 1, generator=generator)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter *= 2
        text, bias = model.encode_text(tiny.ids.repeat(10, 1), tiny.ids.repeat(10, 1) != tiny.tokenizer.pad)
        visual = model.encode_visual(tiny.codebook[codes], masked)
        logits = model.paint_logits(text, bias, visual, torch.ones_like(masked))
        model.code_head.codes.bias -= logits.mean(0)
        model.code_head.codes.weight /= logits.std()
        model.code_head.codes.bias /= logits.std()
    return tiny


def fixed_cells(share: float = 0.4) -> FixedCells:
    """For three paintings: some cells, no cell, all but one."""
    generator = torch.Generator().manual_seed(8)
    fixed = torch.rand(3, CELLS, generator=generator) < share
    fixed[1] = False
    fixed[2] = True
    fixed[2, 5] = False
    return FixedCells(torch.randint(0, 12, (3, CELLS), generator=generator), fixed)


def logits_at(tiny, ids, codes, masked, guidance):
    """Logits ``[cells, K]`` of one painting by full forward passes."""
    model, tokenizer = tiny.model, tiny.tokenizer

    def passes(ids):
        text, bias = model.encode_text(ids, ids != tokenizer.pad)
        visual = model.encode_visual(tiny.codebook[codes.clamp(min=0)][None], masked[None])
        return model.paint_logits(text, bias, visual, torch.ones(1, CELLS, dtype=torch.bool)).float()

    with torch.no_grad():
        logits = passes(ids[None])
        if guidance != 1:
            empty = passes(tokenizer.no_text(1))
            logits = empty + guidance * (logits - empty)
    return logits


def draw(logits, temperature, noise):
    if temperature == 0:
        return int(logits.argmax())
    shares = (logits.double() / temperature).softmax(-1).cumsum(-1)
    return int((shares <= noise * shares[-1]).sum())


def plain_painting(tiny, ids, options, seed, codes, free):
    """One painting, cell by cell in Python; returns the codes after each step."""
    codes = torch.where(free, -1, codes)
    masked = free.clone()
    cells = free.nonzero()[:, 0].tolist()
    history = []
    if options.method == "mask_predict":
        steps = options.steps
        noise = uniform_noise([seed], 2, steps, CELLS, device=torch.device("cpu"))[0]
        chances = dict.fromkeys(cells, 0.0)
        for step in range(steps):
            if options.schedule == "linear":
                count = int(len(cells) * (steps - step) / steps)
            else:
                count = math.ceil(len(cells) * math.cos(math.pi / 2 * step / steps))
            rank = dict(chances)
            if options.confidence_noise and step:
                gumbel = gumbel_noise(noise[1, step])
                rank = {
                    c: chances[c] + options.confidence_noise * (1 - step / steps) * gumbel[c] for c in cells
                }
            now = sorted(cells, key=lambda cell: rank[cell])[:count]
            masked[:] = False
            masked[now] = True
            logits = logits_at(tiny, ids, codes, masked, options.guidance)
            for cell in now:
                codes[cell] = draw(logits[cell], options.temperature, noise[0, step, cell])
                chances[cell] = logits[cell].log_softmax(-1)[codes[cell]].item()
            history.append(codes.clone())
    elif options.method == "easiest":
        noise = uniform_noise([seed], 2, CELLS, CELLS, device=torch.device("cpu"))[0]
        for step in range(len(cells)):
            logits = logits_at(tiny, ids, codes, masked, options.guidance)
            best = None
            for cell in masked.nonzero()[:, 0].tolist():
                code = draw(logits[cell], options.temperature, noise[0, step, cell])
                chance = logits[cell].log_softmax(-1)[code].item()
                chance += (
                    options.confidence_noise * (1 - step / len(cells)) * gumbel_noise(noise[1, step, cell])
                )
                if best is None or chance > best[0]:
                    best = chance, cell, code
            codes[best[1]] = best[2]
            masked[best[1]] = False
            history.append(codes.clone())
    else:
        raise AssertionError(options.method)
    return history


@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize("name", ["mask_predict", "cosine", "noisy", "easiest", "easiest noisy"])
def test_ranked_paintings_equal_a_plain_rewrite(double, name, partial):
    options, given = OPTIONS[name], fixed_cells() if partial else None
    result = paint_captions(
        double.model,
        double.tokenizer,
        double.codebook,
        double.ids,
        options,
        [4, 5, 6],
        given,
        keep_steps=True,
    )
    for row in range(3):
        free = torch.ones(CELLS, dtype=torch.bool) if given is None else ~given.fixed[row]
        codes = torch.zeros(CELLS, dtype=torch.int64) if given is None else given.codes[row]
        history = plain_painting(double, double.ids[row], options, 4 + row, codes, free)
        for step, expected in enumerate(history):
            shown = result.steps[row, step]
            assert shown[expected >= 0].equal(expected[expected >= 0])
            if options.method == "easiest":
                assert shown.equal(expected)
        assert result.steps[row, len(history) - 1].equal(history[-1])
        assert result.codes[row].equal(history[-1])
    assert len(set(result.codes[0].tolist())) > 1 and not result.codes[0].equal(result.codes[1])


@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize("name", ["rows", "random", "random sampled", "gibbs", "gibbs of blocks"])
def test_ordered_paintings_equal_a_plain_rewrite(double, name, partial):
    """The order is read off the model's calls; then every step is painted anew from full forward passes."""
    options, given = OPTIONS[name], fixed_cells() if partial else None
    masks: list[torch.Tensor] = []
    encode_visual = double.model.encode_visual

    def recording(features, masked=None):
        masks.append(Places.of(masked).mask.clone())
        return encode_visual(features, masked)

    double.model.encode_visual = recording
    result = paint_captions(
        double.model,
        double.tokenizer,
        double.codebook,
        double.ids,
        options,
        [4, 5, 6],
        given,
        keep_steps=True,
    )
    del double.model.encode_visual
    at_once = options.cells_at_once
    assert len(masks) == result.steps.shape[1]
    noise = uniform_noise([4, 5, 6], len(masks), at_once, device=torch.device("cpu"))
    orders = []
    for row in range(3):
        free = torch.ones(CELLS, dtype=torch.bool) if given is None else ~given.fixed[row]
        none = torch.full((CELLS,), -1)
        codes = none if given is None else torch.where(free, none, given.codes[row])
        masked, visits = free.clone(), []
        for step, mask in enumerate(masks):
            shown = result.steps[row, step]
            # Painted now: what is masked and will be shown; cells painted later keep their -1.
            now = [cell for cell in mask[row].nonzero()[:, 0].tolist() if shown[cell] >= 0]
            visits.append(now)
            masked[now] = True
            assert masked.equal(mask[row])
            logits = logits_at(double, double.ids[row], codes, masked, options.guidance)
            # In which order a block has its noise is not seen: some order gives the codes.
            drawn = [
                [draw(logits[cell], options.temperature, number) for number in noise[row, step, : len(now)]]
                for cell in now
            ]
            assert any(
                all(
                    shown[cell] == drawn[i][place]
                    for i, (cell, place) in enumerate(zip(now, places, strict=True))
                )
                for places in itertools.permutations(range(len(now)))
            )
            codes = codes.clone()
            codes[now] = shown[now]
            masked[now] = False
            assert shown.equal(codes)
        flat = [cell for now in visits for cell in now]
        cells = free.nonzero()[:, 0].tolist()
        orders.append(flat)
        if options.method == "rows":
            assert flat == cells
        elif options.method == "random":
            assert sorted(flat[: len(cells)]) == cells
            assert len(flat) == len(cells) + options.extra_steps
        else:
            sweeps = [flat[: len(cells)], flat[len(cells) :]]
            assert [sorted(sweep) for sweep in sweeps] == [cells, cells]
            assert max(map(len, visits)) <= at_once
        assert (result.codes[row] >= 0).all()
    assert len(set(result.codes[0].tolist())) > 1 and not result.codes[0].equal(result.codes[1])
    if options.method != "rows":
        assert orders[0] != orders[1] and orders[0] != sorted(orders[0])


@pytest.mark.parametrize("name", OPTIONS)
def test_fixed_cells_stay_and_text_is_encoded_once(double, name):
    given = fixed_cells()
    texts = []
    encode_text = double.model.encode_text
    double.model.encode_text = lambda *arguments: texts.append(len(arguments[0])) or encode_text(*arguments)
    result = paint_captions(
        double.model,
        double.tokenizer,
        double.codebook,
        double.ids,
        OPTIONS[name],
        [1, 2, 3],
        given,
        keep_steps=True,
    )
    assert texts == ([3] if OPTIONS[name].guidance == 1 else [3, 1])
    fixed = given.fixed[:, None].expand_as(result.steps)
    codes = given.codes[:, None].expand_as(result.steps)
    assert result.steps[fixed].equal(codes[fixed])
    assert result.codes[given.fixed].equal(given.codes[given.fixed])
    assert result.codes.equal(result.steps[:, -1])
    everything = FixedCells(given.codes, torch.ones_like(given.fixed))
    same = paint_captions(
        double.model, double.tokenizer, double.codebook, double.ids, OPTIONS[name], [1, 2, 3], everything
    )
    assert same.codes.equal(given.codes)
    nothing = FixedCells(given.codes, torch.zeros_like(given.fixed))
    free, plain = (
        paint_captions(
            double.model, double.tokenizer, double.codebook, double.ids, OPTIONS[name], [1, 2, 3], cells
        )
        for cells in (nothing, None)
    )
    assert free.codes.equal(plain.codes)


@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize("name", OPTIONS)
def test_a_painting_does_not_depend_on_its_batch(double, name, partial):
    given = fixed_cells()

    def paint(rows):
        cells = FixedCells(given.codes[rows], given.fixed[rows]) if partial else None
        seeds = [30 + row for row in rows]
        return paint_captions(
            double.model,
            double.tokenizer,
            double.codebook,
            double.ids[rows],
            OPTIONS[name],
            seeds,
            cells,
            keep_steps=True,
        )

    together = paint([0, 1, 2])
    for rows in ([0], [1], [2], [2, 0]):
        part = paint(rows)
        assert part.codes.equal(together.codes[rows])
        assert part.steps.equal(together.steps[rows])


@pytest.mark.parametrize("name", [name for name, options in OPTIONS.items() if options.is_random])
def test_samples_are_those_of_their_seeds(double, name):
    def paint(ids, options, seeds, given=None):
        return paint_captions(
            double.model, double.tokenizer, double.codebook, ids, options, seeds, given
        ).codes

    options = replace(OPTIONS[name], samples=3)
    given = fixed_cells()
    samples = paint(double.ids, options, [1, 2, 3], given).view(3, 3, CELLS)
    first = paint(double.ids, OPTIONS[name], [1, 2, 3], given)
    assert samples[:, 0].equal(first)
    seeds = sample_seeds([1, 2, 3], 3)
    assert seeds[0::3] == [1, 2, 3] and len(set(seeds)) == 9
    third = paint(double.ids, OPTIONS[name], seeds[2::3], given)
    assert samples[:, 2].equal(third)
    assert not samples[1, 0].equal(samples[1, 1]) or not samples[1, 0].equal(samples[1, 2])


def test_gibbs_sampling_draws_from_the_models_distribution(double):
    """One free cell: the shares of its codes are its probabilities."""
    number = 600
    ids = double.ids[:1].expand(number, -1)
    fixed = torch.ones(number, CELLS, dtype=torch.bool)
    fixed[:, 5] = False
    codes = torch.arange(CELLS).remainder(12).expand(number, -1)
    options = PaintOptions(method="gibbs", temperature=1.5)
    result = paint_captions(
        double.model, double.tokenizer, double.codebook, ids, options, range(number), FixedCells(codes, fixed)
    )
    logits = logits_at(double, double.ids[0], codes[0], ~fixed[0], 1.0)[5]
    shares = torch.bincount(result.codes[:, 5], minlength=12) / number
    torch.testing.assert_close(shares, (logits / 1.5).softmax(-1), rtol=0, atol=0.06)


def test_no_more_cells_at_once_than_there_are():
    free = torch.ones(1, 64, dtype=torch.bool)
    options = PaintOptions(method="gibbs", temperature=1.0, sweeps=2, cells_at_once=64)
    wide = replace(options, cells_at_once=10**7)
    assert order_of(wide, free, [3]).equal(order_of(options, free, [3]))


def test_schedules():
    assert cosine_counts(64, 4) == [64, 60, 46, 25]
    assert cosine_counts(64, 1) == [64]
    assert cosine_counts(64, 3) == [64, 56, 32] and cosine_counts(64, 6)[4] == 32
    assert schedule_counts(64, 4, "linear", 64) == [64, 48, 32, 16]
    assert schedule_counts(3, 4, "linear", 64) == [3, 2, 1, 0]
    for steps in range(1, 65):
        counts = schedule_counts(64, steps, "cosine", 64)
        assert len(counts) == steps and counts[0] == 64 and min(counts) >= 1
        assert counts == sorted(counts, reverse=True)
    for steps in (0, 65):
        with pytest.raises(UserError, match=f"steps must be from 1 to 64, the number of cells, is {steps}"):
            schedule_counts(64, steps, "linear", 64)


def test_fixed_cells_that_do_not_fit(double):
    def paint(codes, fixed):
        paint_captions(
            double.model,
            double.tokenizer,
            double.codebook,
            double.ids,
            PaintOptions(method="rows"),
            given=FixedCells(codes, fixed),
        )

    codes, fixed = torch.zeros(3, CELLS, dtype=torch.int64), torch.ones(3, CELLS, dtype=torch.bool)
    with pytest.raises(UserError, match=r"fixed has to be torch.bool \[3, 16\].*is torch.bool \[3, 4, 4\]"):
        paint(codes, fixed.view(3, 4, 4))
    with pytest.raises(UserError, match=r"codes has to be torch.int64 \[3, 16\].*is torch.int64 \[2, 16\]"):
        paint(codes[:2], fixed)
    with pytest.raises(UserError, match="fixed has to be torch.bool.*is torch.int64"):
        paint(codes, codes)
    with pytest.raises(UserError, match="codes are from 0 to 11, found 0 to 12"):
        paint(codes.scatter(1, codes, 12), fixed)
    paint(codes - 1, ~fixed)  # codes of free cells do not matter
    with pytest.raises(UserError, match="steps must be from 1 to 16"):
        paint_captions(double.model, double.tokenizer, double.codebook, double.ids, PaintOptions(steps=17))
