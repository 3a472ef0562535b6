"""The picture metrics together, and Inception with random weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diptych.eval.errors import UserError
from diptych.eval.figures import Figure
from diptych.eval.images.embeddings import FolderPictures
from diptych.eval.images.frechet import frechet_distance, frechet_interval
from diptych.eval.images.inception import Inception, inception_score_figure
from diptych.eval.images.metrics import ImageSettings, _resampled_hard, measure_images
from diptych.eval.scorers.clip import ClipConfig, build_clip
from diptych.eval.scorers.clip_score import PROMPT, clip_scores
from diptych.eval.words import WordLists

SETTINGS = ImageSettings(
    image_size=32, batch_size=50, threads=2, negatives=19, folds=5, resamples=100, frechet_resamples=10,
    blur_radii=(0.0, 2.0),
)  # fmt: skip
TINY_CLIP = ClipConfig(32, 32, (1, 1, 1, 1), 8, 4, 8, 32, 1, 2, 20, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
WORDS = WordLists(
    "drawn",
    (("disc", "discs"), ("box", "boxes")),
    (),
    (("red",), ("green",), ("blue",)),
    (("one",), ("two",)),
)


def save(pictures: torch.Tensor, folder: Path) -> FolderPictures:
    folder.mkdir()
    for number, picture in enumerate(pictures):
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(folder / f"{number:04d}.png")
    return FolderPictures(folder)


def by_name(figures: list[Figure]) -> dict[str, Figure]:
    assert len({figure.name for figure in figures}) == len(figures)
    return {figure.name: figure for figure in figures}


def test_figures_are_those_of_the_metrics_on_tensors(tmp_path: Path, drawn_test) -> None:
    pictures, captions, _ = drawn_test
    clip = build_clip(TINY_CLIP, captions, seed=0).eval().requires_grad_(False)
    texts: list[str | None] = [several[0] for several in captions]
    texts[5] = None
    kinds = {
        "real": save(pictures, tmp_path / "real"),
        "generated": save(pictures.flip(3), tmp_path / "flipped"),
    }
    figures, embedded = measure_images(
        kinds, {"generated": texts}, {"judge": clip}, WORDS, SETTINGS, tmp_path / "store"
    )
    found = by_name(figures)
    images, flipped = (
        clip.encode_images(pictures.float() / 255),
        clip.encode_images(pictures.flip(3).float() / 255),
    )
    np.testing.assert_allclose(embedded["real"].rows("judge"), images, atol=1e-5)
    assert found["generated.frechet_judge"].value == pytest.approx(
        frechet_distance(flipped, images), rel=1e-3
    )
    assert found["generated.frechet_judge_blur_2"].value != found["generated.frechet_judge"].value
    kept = [index for index, text in enumerate(texts) if text is not None]
    encoded = clip.encode_texts([PROMPT + str(texts[index]) for index in kept])
    score = found["generated.clip_score_judge"]
    assert score.value == pytest.approx(float(clip_scores(flipped[kept], encoded).mean()), abs=1e-5)
    assert score.n == 119 and score.scale == 100 and score.low <= score.value <= score.high
    assert 0 <= found["generated.r_precision_judge"].value <= 1
    hard = [found[f"generated.r_precision_hard_{part}_judge"] for part in ("nouns", "colors")]
    assert hard[0].detail == "1 negatives, words 'drawn'" and hard[1].detail == "2 negatives, words 'drawn'"
    mean = found["generated.r_precision_hard_judge"]
    assert mean.value == pytest.approx(np.mean([figure.value for figure in hard])) and mean.n == 119
    assert mean.low <= mean.value <= mean.high
    for name in ("fid", "inception_score", "r_precision_hard_verbs_judge"):
        assert found[f"generated.{name}"].value is None and found[f"generated.{name}"].reason
    assert found["real.clip_score_judge"].reason == "needs the captions of these pictures"
    for figure in figures:
        if figure.value is not None:
            facts = (
                figure.resize,
                figure.model,
                figure.reference_sha256,
                figure.seed,
                figure.low,
                figure.high,
            )
            assert None not in facts, figure.name


def test_same_pictures_are_at_no_distance_and_measured_again_the_same(tmp_path: Path, drawn_test) -> None:
    pictures, captions, _ = drawn_test
    clip = build_clip(TINY_CLIP, captions, seed=0).eval().requires_grad_(False)
    kinds = {"real": save(pictures, tmp_path / "a"), "generated": save(pictures, tmp_path / "b")}
    captioned = {kind: [several[0] for several in captions] for kind in kinds}
    first, _ = measure_images(kinds, captioned, {"judge": clip}, WORDS, SETTINGS, tmp_path / "store")
    found = by_name(first)
    assert found["generated.frechet_judge"].value == pytest.approx(0, abs=1e-9)
    assert found["generated.clip_score_judge"].value == found["real.clip_score_judge"].value
    again, _ = measure_images(kinds, captioned, {"judge": clip}, WORDS, SETTINGS, tmp_path / "other")
    assert again == first


def test_the_frechet_distance_is_symmetric_and_its_interval_holds_it() -> None:
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(300, 8, generator=generator)
    second = torch.randn(200, 8, generator=generator) @ torch.randn(8, 8, generator=generator) + 0.2
    value = frechet_distance(first, second)
    assert value == pytest.approx(frechet_distance(second, first), rel=1e-9)
    # both moved alike, or rotated alike, are as far from each other
    turn = torch.linalg.qr(torch.randn(8, 8, generator=generator)).Q
    assert frechet_distance(first @ turn + 3, second @ turn + 3) == pytest.approx(value, rel=1e-4)
    low, high = frechet_interval(first, second, seed=0, resamples=60)
    assert low < value < high
    # as wide as the distances of other samples of these sizes are apart
    others = []
    for seed in range(60):
        draw = torch.Generator().manual_seed(100 + seed)
        rows = second.mean(0) + torch.randn(200, 8, generator=draw) @ torch.linalg.cholesky(second.T.cov()).T
        others.append(frechet_distance(torch.randn(300, 8, generator=draw), rows))
    spread = np.percentile(others, 97.5) - np.percentile(others, 2.5)
    assert 0.5 < (high - low) / spread < 2


def test_nothing_to_measure_with_is_an_error(tmp_path: Path, drawn_test) -> None:
    pictures = save(drawn_test[0][:3], tmp_path / "a")
    with pytest.raises(UserError, match="nothing to measure"):
        measure_images({"real": pictures, "generated": pictures}, {}, {}, None, SETTINGS, tmp_path / "store")


def test_fid_and_inception_score_by_torch_fidelity_s_network(
    tmp_path: Path, drawn_test, inception_weights: Path
) -> None:
    pictures = drawn_test[0][:6]
    kinds = {
        "real": save(pictures[:3], tmp_path / "real"),
        "generated": save(pictures[3:], tmp_path / "generated"),
    }
    inception = Inception(inception_weights)
    settings = ImageSettings(
        image_size=32, batch_size=6, blur_radii=(0.0, 4.0), resamples=20, frechet_resamples=2
    )
    figures, _ = measure_images(kinds, {}, {}, None, settings, tmp_path / "store", inception=inception)
    found = by_name(figures)
    answers = inception(pictures)
    assert answers.shape == (6, 2048 + 1008)
    fid = found["generated.fid"]
    assert fid.value == pytest.approx(frechet_distance(answers[3:, :2048], answers[:3, :2048]), rel=1e-3)
    assert "Inception" in str(fid.model) and found["generated.fid_blur_4"].value != fid.value
    score = found["real.inception_score"]
    assert score.value is not None and 1 <= score.value < 1008 and score.deviation is not None
    assert found["generated.clip_score"].reason is not None


def test_other_files_are_refused_as_inception(tmp_path: Path) -> None:
    pytest.importorskip("torch_fidelity")
    with pytest.raises(UserError, match="is missing; download"):
        Inception(tmp_path / "none.pth")
    torch.save({"fc.weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="not the Inception weights"):
        Inception(tmp_path / "other.pth")
    torch.save(FolderPictures, tmp_path / "code.pth")
    with pytest.raises(UserError, match="not the Inception weights"):
        Inception(tmp_path / "code.pth")


def test_inception_score_of_known_answers() -> None:
    def score(logits: np.ndarray, splits: int = 1) -> Figure:
        return inception_score_figure("is", logits, seed=0, resamples=50, splits=splits)

    sure = np.eye(4)[np.arange(400) % 4] * 50
    assert score(sure).value == pytest.approx(4) and score(np.zeros((40, 4))).value == pytest.approx(1)
    # exp of the mean KL divergence, straight from the formula
    logits = np.random.default_rng(0).normal(size=(100, 5))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected = np.exp(np.mean([(row * np.log(row / p.mean(0))).sum() for row in p]))
    figure = score(logits)
    assert figure.value == pytest.approx(expected) and figure.low < figure.value < figure.high
    assert score(logits, splits=5).deviation > 0


def test_categories_of_one_picture_are_drawn_together() -> None:
    """What two categories say of the same pictures alike is no more certain than one of them."""
    wins = np.random.default_rng(0).random(200) < 0.5
    settings = ImageSettings(resamples=500)
    one, pictures = _resampled_hard([range(200)], [wins], settings)
    two, together = _resampled_hard([range(200), range(200)], [wins, wins], settings)
    assert pictures == together == 200
    np.testing.assert_allclose(two, one)
    # a category that a resample lacks has no part in it
    rare, _ = _resampled_hard([range(200), [7]], [wins, np.ones(1)], settings)
    assert np.isfinite(rare).all() and rare.min() < 0.6 < rare.max()


def test_no_picture_that_can_be_read_is_a_figure_with_a_reason() -> None:
    figure = inception_score_figure("x", np.zeros((0, 5)), seed=0, resamples=10)
    assert figure.value is None and "no picture could be read" in figure.reason


def test_a_caption_without_a_word_is_scored_as_the_prompt_alone(tmp_path: Path, drawn_test) -> None:
    """As CLIPScore's own code scores it: no caption is not a missing one."""
    pictures, captions, _ = drawn_test
    clip = build_clip(TINY_CLIP, captions, seed=0).eval().requires_grad_(False)
    wordless = ["", "   ", "\u00a0", ".", "?!"]
    texts: list[str | None] = [*wordless, *(several[0] for several in captions[5:40])]
    kinds = {"real": save(pictures[:40], tmp_path / "real")}
    each: dict[str, np.ndarray] = {}
    figures, _ = measure_images(
        kinds, {"real": texts}, {"judge": clip}, WORDS, SETTINGS, tmp_path / "store", each=each
    )
    score = by_name(figures)["real.clip_score_judge"]
    images = clip.encode_images(pictures[:40].float() / 255)
    expected = clip_scores(images, clip.encode_texts([PROMPT + str(text) for text in texts]))
    assert score.n == 40 and score.value == pytest.approx(float(expected.mean()), abs=1e-5)
    prompt = clip_scores(images[:3], clip.encode_texts([PROMPT] * 3))
    np.testing.assert_allclose(each["real.clip_score_judge"][:3], prompt, atol=1e-5)
    assert np.isfinite(each["real.clip_score_judge"]).all()
