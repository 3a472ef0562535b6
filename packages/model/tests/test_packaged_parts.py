"""The parts of a packaged model with another family than ours: nothing in them knows which it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from diptych.model.decoding.caption import Captions
from diptych.model.decoding.options import CaptionOptions, PaintOptions
from diptych.model.decoding.paint import Paintings
from diptych.model.errors import UserError
from diptych.model.packaged.arguments import seed_list
from diptych.model.packaged.attention import WordAttention
from diptych.model.packaged.captioning import CaptioningPart
from diptych.model.packaged.machine import Machine
from diptych.model.packaged.painting import PaintingPart
from diptych.model.packaged.pictures import read_batches
from diptych.model.packaged.scoring import ScoringPart
from diptych.model.packaged.seeing import SeeingPart
from diptych.model.tokenizer import build_tokenizer

MACHINE = Machine(torch.device("cpu"), "float32")
CELLS, SHADES = 4, 8  # two by two cells of eight greys
WORDS = ["dark", "bright"]


class Greys:
    """An image tokenizer whose codes are shades: pictures of 4x4 pixels, a cell of 2x2 each."""

    cells, codebook_size = CELLS, SHADES

    def features(self, images) -> Tensor:
        assert torch.is_inference_mode_enabled()
        pixels = [np.asarray(image.resize((2, 2), Image.Resampling.BOX))[..., 0] for image in images]
        return torch.from_numpy(np.stack(pixels)).float().reshape(-1, CELLS, 1) / 255

    def codes(self, images) -> Tensor:
        return (self.features(images)[..., 0] * (SHADES - 1)).round().long()

    def pixels(self, codes: Tensor) -> Tensor:
        shades = codes.clamp(min=0).float() / (SHADES - 1) * 2 - 1
        small = shades.reshape(-1, 1, 2, 2).expand(-1, 3, -1, -1)
        return small.repeat_interleave(2, 2).repeat_interleave(2, 3)


class Namer:
    """Captions a picture by one word: `dark` or `bright`."""

    def __init__(self, greys: Greys, tokenizer) -> None:
        self.greys, self.tokenizer = greys, tokenizer

    def see(self, images) -> Tensor:
        return self.greys.features(images)

    def write(self, seen, options, seeds) -> Captions:
        assert len(seeds) == len(seen)
        texts = [WORDS[int(row.mean() > 0.5)] for row in seen for _ in range(options.samples)]
        ids = self.tokenizer.encode(texts, options.length)
        return Captions(ids, torch.zeros(ids.shape))

    def attention(self, seen, ids) -> list[WordAttention]:
        return [WordAttention(("word",), torch.full((1, CELLS), 0.25)) for _ in ids]


class Shader:
    """Paints `bright` white and everything else black; its sample number is the code of the first cell."""

    def paint(self, captions, options, seeds, given, keep_steps) -> Paintings:
        shades = [7 if text == "bright" else 0 for text in captions]
        codes = torch.tensor([[row, *[shade] * 3] for shade in shades for row in range(options.samples)])
        if given is not None:
            codes = torch.where(given.fixed, given.codes, codes)
        return Paintings(codes, torch.stack([torch.full_like(codes, -1), codes], 1) if keep_steps else None)


@pytest.fixture(scope="module")
def greys() -> list[Image.Image]:
    return [Image.new("RGB", (4, 4), (value,) * 3) for value in (0, 255, 73)]


def test_seeing(greys) -> None:
    part = SeeingPart(Greys(), MACHINE)
    assert part.codes(greys, 2).tolist() == [[0] * 4, [7] * 4, [2] * 4]
    assert part.features(greys[1], 1).tolist() == [[[1.0]] * 4]
    drawn = part.draw([[7, 0, -1, 7], [0] * 4], 1)
    assert np.asarray(drawn[0])[::2, ::2, 0].tolist() == [[255, 0], [0, 255]] and len(drawn) == 2
    with pytest.raises(UserError, match=r"shape \[n, 4\]"):
        part.draw([[0] * 64], 1)
    with pytest.raises(UserError, match="from -1 to 7"):
        part.draw([[8] * 4], 1)


def test_captioning(greys) -> None:
    tokenizer = build_tokenizer(["dark bright."], min_count=1)
    scoring = ScoringPart(None, MACHINE)
    part = CaptioningPart(Namer(Greys(), tokenizer), tokenizer, CaptionOptions(length=6), scoring, MACHINE)
    found = part.captions(greys, 2, None, 0, True, 2, {})
    words = [caption.text.rstrip(".") for caption in found]
    assert words == ["dark", "dark", "bright", "bright", "dark", "dark"]
    assert [caption.sample for caption in found] == [0, 1] * 3
    assert all(caption.attention is not None and caption.score is None for caption in found)
    assert part.changed(None, {"beams": 3}).method == "beam"
    seen: list[int] = []
    part.decoder.see = lambda images: seen.append(len(images)) or part.decoder.greys.features(images)
    assert len(part.attention(greys, ["dark"] * 3, 2)) == 3 and part.attention([], [], 2) == []
    assert seen == [2, 1]
    with pytest.raises(UserError, match="has no scorer"):
        part.captions(greys, 2, True, 0, False, 2, {})


def test_painting() -> None:
    part = PaintingPart(Shader(), Greys(), PaintOptions(), ScoringPart(None, MACHINE), MACHINE)
    found = part.paintings(["bright", "dark"], 2, None, [4, 5], True, None, None, None, 2, {})
    assert [painting.codes.tolist() for painting in found] == [
        [0, 7, 7, 7],
        [1, 7, 7, 7],
        [0] * 4,
        [1, 0, 0, 0],
    ]
    assert [(painting.seed, painting.sample) for painting in found] == [(4, 0), (4, 1), (5, 0), (5, 1)]
    assert [step.codes.tolist() for step in found[1].steps] == [[-1] * 4, [1, 7, 7, 7]]
    assert np.asarray(found[0].image)[::2, ::2, 0].tolist() == [[0, 255], [255, 255]]
    (kept,) = part.paintings("dark", None, None, 0, False, [3, 4, 5, 6], None, [1], 1, {})
    assert kept.codes.tolist() == [3, 0, 5, 6]
    assert part.changed(3, {}).temperature == 1 and part.changed(None, {}).temperature == 0
    with pytest.raises(UserError, match="has no scorer"):
        part.paintings("dark", 2, True, 0, False, None, None, None, 1, {})


@pytest.mark.parametrize(
    ("own", "samples", "changes", "temperature", "made"),
    [
        ({}, None, {}, 0, 1),
        ({}, 2, {}, 1, 2),
        ({}, 2, {"method": "random"}, 0, 2),
        ({}, 2, {"confidence_noise": 2.0}, 0, 2),
        ({}, 1, {"top_k": 3}, 1, 1),
        ({}, None, {"method": "gibbs"}, 1, 1),
        # chance that the package has by itself is enough for several
        ({"confidence_noise": 4.5}, 4, {}, 0, 4),
        ({"method": "random"}, 4, {}, 0, 4),
        ({"method": "random"}, 4, {"method": "rows"}, 1, 4),
        # and without any its own several would all be the same
        ({"method": "rows", "temperature": 0.7, "samples": 16}, None, {}, 0.7, 16),
        ({"method": "rows", "temperature": 0.7, "samples": 16}, None, {"temperature": 0}, 0, 1),
        ({"method": "rows", "temperature": 0.7, "samples": 16}, 3, {}, 0.7, 3),
    ],
)
def test_several_paintings_come_of_chance(own, samples, changes, temperature, made) -> None:
    part = PaintingPart(Shader(), Greys(), PaintOptions(**own), ScoringPart(None, MACHINE), MACHINE)
    options = part.changed(samples, changes)
    assert (options.temperature, options.samples) == (temperature, made)
    with pytest.raises(UserError, match="paints the same every time"):
        part.changed(2, {"method": "rows", "temperature": 0})


def test_one_sample_needs_no_scorer(greys) -> None:
    tokenizer, scoring = build_tokenizer(["dark bright."], min_count=1), ScoringPart(None, MACHINE)
    several = CaptionOptions(length=6, method="sample", samples=4)
    captioning = CaptioningPart(Namer(Greys(), tokenizer), tokenizer, several, scoring, MACHINE)
    assert len(captioning.captions(greys, None, None, 0, False, 2, {"method": "greedy"})) == 3
    own = PaintOptions(method="rows", temperature=0.7, samples=4)
    painting = PaintingPart(Shader(), Greys(), own, scoring, MACHINE)
    wanted = {"temperature": 0.0}
    assert len(painting.paintings("dark", None, None, 0, False, None, None, None, 1, wanted)) == 1
    for call in (
        lambda: captioning.captions(greys, None, None, 0, False, 2, {}),
        lambda: painting.paintings("dark", None, None, 0, False, None, None, None, 1, {}),
    ):
        with pytest.raises(UserError, match="has no scorer"):
            call()


@pytest.mark.parametrize("size", [0, -1])
def test_batches_have_at_least_one(greys, size: int) -> None:
    tokenizer, scoring = build_tokenizer(["dark bright."], min_count=1), ScoringPart(None, MACHINE)
    captioning = CaptioningPart(
        Namer(Greys(), tokenizer), tokenizer, CaptionOptions(length=6), scoring, MACHINE
    )
    painting = PaintingPart(Shader(), Greys(), PaintOptions(), scoring, MACHINE)
    seeing = SeeingPart(Greys(), MACHINE)
    for call in (
        lambda: captioning.captions(greys, None, None, 0, False, size, {}),
        lambda: captioning.attention(greys, ["dark"] * 3, size),
        lambda: painting.paintings("dark", None, None, 0, False, None, None, None, size, {}),
        lambda: seeing.codes(greys, size),
        lambda: seeing.draw([[0] * 4], size),
        lambda: scoring.score(greys, ["dark"] * 3, size),
    ):
        with pytest.raises(UserError, match=f"batch_size: {size} at a time; at least 1"):
            call()


@pytest.mark.parametrize("rerank", [False, True])
def test_pictures_are_drawn_a_batch_at_a_time(monkeypatch, package: Path, rerank: bool) -> None:
    """However many samples of one caption were decoded together."""
    drawn: list[int] = []
    own = Greys.pixels
    monkeypatch.setattr(Greys, "pixels", lambda self, codes: drawn.append(len(codes)) or own(self, codes))
    part = PaintingPart(Shader(), Greys(), PaintOptions(), ScoringPart(package / "scorer", MACHINE), MACHINE)
    found = part.paintings(["bright"], 7, rerank, 0, True, None, None, None, 3, {})
    assert max(drawn) == 3 and len(found) == (1 if rerank else 7)
    assert len(found[0].steps) == 2


def test_seeds() -> None:
    for one in (5, np.int64(5), np.uint8(5), np.array(5), torch.tensor(5)):
        assert seed_list(one, 2) == [5, 5]
    for several in ([5, 6], (np.int32(5), 6), np.array([5, 6]), torch.tensor([5, 6]), range(5, 7)):
        found = seed_list(several, 2)
        assert found == [5, 6] and all(type(seed) is int for seed in found)
    truths = (True, np.True_, torch.tensor(True), [True, 2])
    for seed in (*truths, 1.0, np.float64(1), "12", [1.5, 2], [None, 1], -1, 2**63, object()):
        with pytest.raises(UserError, match="^seed: .* is no whole number from 0"):
            seed_list(seed, 2)
    with pytest.raises(UserError, match="3 seeds for 2 items"):
        seed_list(np.arange(3), 2)


def test_what_is_no_array_of_whole_numbers_is_said() -> None:
    part = PaintingPart(Shader(), Greys(), PaintOptions(), ScoringPart(None, MACHINE), MACHINE)

    def paint(codes, **cells):
        given = cells.get("locked"), cells.get("repaint")
        return part.paintings("dark", None, None, 0, False, codes, *given, 1, {})

    for wrong in ("abc", [[1], [2, 3]], [None], ["a"], [1j], object()):
        with pytest.raises(UserError, match="^codes: .*whole numbers"):
            paint(wrong, locked=[1])
        for name in ("locked", "repaint"):
            with pytest.raises(UserError, match=f"^{name}: .*whole numbers"):
                paint([0] * 4, **{name: wrong})
    for cells in (np.array([1], np.uint16), [], np.zeros(4, bool)):
        assert len(paint(np.zeros(4, np.uint16), locked=cells)) == 1


def test_the_scorer_chooses_for_any_family(greys, package: Path) -> None:
    scoring = ScoringPart(package / "scorer", MACHINE)
    assert scoring.exists
    part = PaintingPart(Shader(), Greys(), PaintOptions(), scoring, MACHINE)
    every = part.paintings(["bright"], 3, False, 0, False, None, None, None, 3, {})
    (best,) = part.paintings(["bright"], 3, True, 0, False, None, None, None, 3, {})
    scores = scoring.score([painting.image for painting in every], ["bright"] * 3, 2)
    assert best.codes.equal(every[best.sample].codes)
    assert best.score == pytest.approx(float(scores.max()), abs=0.02)  # images are rounded to 8 bits


def test_pictures_are_read_when_it_is_their_turn(greys) -> None:
    batches = read_batches([*greys, "nowhere.png"], 2)
    part, images = next(batches)
    assert part == slice(0, 2) and len(images) == 2
    with pytest.raises(UserError, match="nowhere.png"):
        next(batches)
    with pytest.raises(UserError, match="picture 2"):
        list(read_batches([greys[0], greys[1], b""], 2))
