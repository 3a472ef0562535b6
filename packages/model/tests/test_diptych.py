"""The packaged model in use: pictures of every kind, batches, samples, chance, locked cells, attention, threads."""

from __future__ import annotations

import io
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diptych.model import Diptych
from diptych.model.decoding.caption import encode_images
from diptych.model.decoding.decode import caption_images, paint_captions
from diptych.model.decoding.options import CaptionOptions, PaintOptions
from diptych.model.errors import UserError
from diptych.model.networks.image_generator import load_image_generator
from diptych.model.packaged.attention import piece_attention
from diptych.model.packaged.machine import Machine
from diptych.model.pretrained import load_transformer

pytestmark = pytest.mark.parametrize("parts", ["prefix", "masked", "single_stream"], indirect=True, scope="session")
TEXTS = ["a red kite floats.", "two blue boats rest on the sea.", "a green house stands alone."]


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    content = io.BytesIO()
    image.save(content, kind)
    return content.getvalue()


def test_every_kind_of_picture_is_the_same_picture(diptych: Diptych, pictures, tmp_path: Path) -> None:
    image = pictures[1]
    image.save(tmp_path / "picture.png")
    array = np.asarray(image)
    kinds = [
        image,
        str(tmp_path / "picture.png"),
        tmp_path / "picture.png",
        encoded(image),
        array,
        array.astype(np.float32) / 255,
        torch.from_numpy(array.copy()).permute(2, 0, 1),
        image.convert("RGBA"),
    ]
    features = diptych.features(kinds)
    assert features.shape == (8, 64, 12) and features.dtype == torch.float32
    assert features.equal(features.half().float())
    assert all(row.equal(features[0]) for row in features)
    stacked = torch.from_numpy(np.stack([array, array])).permute(0, 3, 1, 2)
    assert diptych.features(stacked).equal(features[:2])
    assert not diptych.features(pictures[0])[0].equal(features[0])


def test_a_rotated_photo_is_put_upright(diptych: Diptych, pictures) -> None:
    image = pictures[1]
    content = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: shown by a quarter turn clockwise
    image.rotate(90, expand=True).save(content, "PNG", exif=exif)
    assert diptych.features(content.getvalue()).equal(diptych.features(image))
    assert diptych.features(Image.open(content)).equal(diptych.features(image))


def test_captions_and_paintings_are_the_decoders(diptych: Diptych, package: Path, pictures) -> None:
    """What the parts give one by one, without the faster copies of transformer and image generator."""
    model, tokenizer, codebook = load_transformer(package)
    features = diptych.features(pictures)
    with torch.inference_mode():
        written = caption_images(model, tokenizer, features, CaptionOptions(length=12))
        ids = tokenizer.encode(TEXTS, 12)
        painted = paint_captions(model, tokenizer, codebook, ids, PaintOptions(steps=3, guidance=1.5))
        pixels = load_image_generator(package / "image_generator")(codebook[painted.codes])
    captions = diptych.caption(pictures, batch_size=2)
    assert [caption.text for caption in captions] == [tokenizer.decode(row) for row in written.ids]
    sums = written.log_probabilities.sum(1).tolist()
    assert [caption.log_probability for caption in captions] == pytest.approx(sums, abs=1e-4)
    assert str(captions[0]) == captions[0].text and len({caption.text for caption in captions}) > 1
    paintings = diptych.paint(TEXTS)
    assert torch.stack([painting.codes for painting in paintings]).equal(painted.codes)
    for painting, expected in zip(paintings, pixels, strict=True):
        shown = (expected.permute(1, 2, 0).numpy() + 1) * 127.5
        assert np.abs(np.asarray(painting.image) - shown).max() <= 0.51
        assert painting.image.size == (diptych.image_size,) * 2 == (16, 16)


def test_codes_are_the_nearest_centroids(diptych: Diptych, pictures) -> None:
    features, codes = diptych.features(pictures), diptych.codes(pictures)
    distances = torch.cdist(features.double(), diptych.parts.images.codebook.double())
    chosen = distances.gather(2, codes[..., None])[..., 0]
    assert (chosen - distances.amin(2)).max() < 1e-4 and len(codes.unique()) > 2
    drawn = diptych.draw(codes)
    again = diptych.reconstruct(pictures, batch_size=2)
    assert all(np.abs(np.asarray(a).astype(int) - b).max() <= 1 for a, b in zip(drawn, again, strict=True))


def test_chance_belongs_to_the_seed_and_not_to_the_batch(diptych: Diptych, pictures) -> None:

    def captions(images, seed) -> list[tuple[int, str]]:
        found = diptych.caption(images, samples=3, temperature=1.5, seed=seed)
        return [(caption.sample, caption.text) for caption in found]

    whole = captions(pictures, 5)
    assert [sample for sample, _ in whole] == [0, 1, 2] * 5
    assert captions(pictures[1], 5) == whole[3:6] != captions(pictures[1], 6)
    assert captions(pictures, [9, 5, 9, 9, 9])[3:6] == whole[3:6]
    painted = diptych.paint(TEXTS, samples=2, seed=5, batch_size=1)
    one = diptych.paint(TEXTS[1], samples=2, seed=5)
    assert [painting.sample for painting in painted] == [0, 1] * 3
    assert all(a.codes.equal(b.codes) for a, b in zip(painted[2:4], one, strict=True))
    assert not painted[0].codes.equal(painted[1].codes)
    drawn = diptych.paint(TEXTS[0], temperature=1.0, seed=None)[0]
    assert diptych.paint(TEXTS[0], temperature=1.0, seed=drawn.seed)[0].codes.equal(drawn.codes)


def test_methods_are_implied_by_their_options(diptych: Diptych, pictures) -> None:
    image = pictures[0]
    assert diptych.caption(image, beams=3) == diptych.caption(image, method="beam", beams=3)
    assert diptych.caption(image, top_k=4, seed=2) == diptych.caption(image, method="sample", top_k=4, seed=2)
    assert diptych.caption(image, start="two boats")[0].text.startswith("two boats")
    assert len(diptych.paint(TEXTS[0], method="gibbs", sweeps=2)) == 1
    assert len(diptych.caption(image, method="beam", beams=4, samples=4)) == 4


def test_the_scorer_chooses(diptych: Diptych, pictures) -> None:
    all_of_them = diptych.caption(pictures, samples=4, temperature=2.0)
    best = diptych.caption(pictures, samples=4, temperature=2.0, rerank=True)
    for number, caption in enumerate(best):
        own = all_of_them[4 * number : 4 * number + 4]
        scores = diptych.score([pictures[number]] * 4, [one.text for one in own])
        assert caption.text == own[caption.sample].text
        assert caption.score == pytest.approx(float(scores.max()), abs=1e-5)
    painted = diptych.paint(TEXTS, samples=3, rerank=True)
    every = diptych.paint(TEXTS, samples=3)
    for number, painting in enumerate(painted):
        own = every[3 * number : 3 * number + 3]
        assert painting.codes.equal(own[painting.sample].codes) and painting.caption == TEXTS[number]
        assert painting.score is not None and 0 <= painting.score <= 2.5
    assert {painting.sample for painting in painted} | {caption.sample for caption in best} > {0}


def test_a_package_that_reranks_does_so_unasked(diptych: Diptych, package, pictures) -> None:
    config = diptych.config
    several = CaptionOptions(length=12, method="sample", temperature=2.0, samples=4)
    own = Diptych(
        diptych.folder,
        type(config)(several, config.painting, config.weights, config.origin),
        diptych.parts,
        Machine(diptych.device, diptych.precision),
    )
    assert own.caption(pictures) == diptych.caption(pictures, temperature=2.0, samples=4, rerank=True)
    assert len(own.caption(pictures[0], samples=2)) == 2


def test_steps_end_in_the_painting(diptych: Diptych) -> None:
    painting = diptych.paint(TEXTS[0], return_steps=True)[0]
    assert len(painting.steps) == 3 and painting.steps[-1].codes.equal(painting.codes)
    assert np.asarray(painting.steps[-1].image).tolist() == np.asarray(painting.image).tolist()
    painting.steps[0].codes[0] = -1  # a tensor like any other
    row_by_row = diptych.paint(TEXTS[0], method="rows", return_steps=True)[0]
    assert [int((step.codes < 0).sum()) for step in row_by_row.steps] == list(range(63, -1, -1))
    assert np.asarray(row_by_row.steps[0].image).shape == (16, 16, 3)
    assert diptych.paint(TEXTS[0])[0].steps == ()


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": 5},
        {"method": "rows"},
        {"method": "easiest"},
        {"method": "random", "extra_steps": 7},
        {"method": "gibbs", "sweeps": 2, "cells_at_once": 10},
    ],
)
def test_the_number_of_steps_is_known_before(diptych: Diptych, changes) -> None:
    painting = diptych.paint(TEXTS[0], return_steps=True, **changes)[0]
    assert diptych.parts.paintings.step_count(diptych.paint_options(**changes)) == len(painting.steps)


def test_locked_cells_stay_and_others_are_painted_anew(diptych: Diptych) -> None:
    before = diptych.paint(TEXTS[0])[0]
    cells = [0, 9, 63]
    after = diptych.paint(TEXTS[0], codes=before.codes, repaint=cells, temperature=2.0, seed=4)[0]
    changed = (after.codes != before.codes).nonzero()[:, 0].tolist()
    assert changed and set(changed) <= set(cells)
    mask = torch.ones(64, dtype=torch.bool)
    mask[cells] = False
    same = diptych.paint(TEXTS[0], codes=before.codes.tolist(), locked=mask, temperature=2.0, seed=4)[0]
    assert same.codes.equal(after.codes)
    kept = diptych.paint(TEXTS, codes=before.codes, locked=range(64), samples=2, return_steps=True)
    assert len(kept) == 6 and all(painting.codes.equal(before.codes) for painting in kept)
    free = diptych.paint(TEXTS[1], codes=before.codes, locked=[])[0]
    assert free.codes.equal(diptych.paint(TEXTS[1])[0].codes)


def test_attention_of_words(diptych: Diptych, pictures) -> None:
    captions = diptych.caption(pictures, return_attention=True)
    for caption, image in zip(captions, pictures, strict=True):
        found = caption.attention
        assert found is not None and found.weights.shape == (len(found.words), 64)
        assert torch.allclose(found.weights.sum(1), torch.ones(len(found.words)), atol=1e-5)
        written = "".join(found.words)
        assert written == caption.text.replace(" ", "")
        if written.endswith("."):  # a caption that was cut would be given a full stop
            again = diptych.attention(image, caption.text)[0]
            assert again.words == found.words and torch.allclose(again.weights, found.weights, atol=1e-5)
        found.weights.div_(found.weights.max())  # a tensor like any other
    spelled = diptych.attention(pictures[0], "two zebras")[0]
    assert spelled.words == ("two", "zebras", ".")
    assert not torch.allclose(spelled.weights[0], spelled.weights[1], atol=1e-4)


def test_attention_in_bfloat16_is_summed_in_float32(package: Path, pictures) -> None:
    narrow = Diptych.from_pretrained(package, device="cpu", precision="bfloat16")
    for caption in narrow.caption(pictures, return_attention=True):
        assert caption.attention is not None
        sums = caption.attention.weights.numpy().sum(1)
        assert sums.dtype == np.float32 and np.allclose(sums, 1, atol=1e-5)


def test_attention_is_what_the_network_reads(diptych: Diptych, package: Path, pictures) -> None:
    """Recomputed by spying on the attention of the plain network, word by word."""
    model, tokenizer, _ = load_transformer(package)
    if model.config.architecture == "single_stream":
        pytest.skip("has no layers for it alone: test_single_stream.py")
    features = diptych.features(pictures[:1])
    ids = tokenizer.encode(TEXTS[:1], 8)
    seen: list[torch.Tensor] = []

    with torch.inference_mode():
        images = encode_images(model, features)
        found = piece_attention(model, tokenizer, images, ids)
        attends = type(model.cross_layers[0].cross_attention).attend
        for layer in model.cross_layers:
            own = layer.cross_attention

            def attend(states, queries, keys, values, bias=None, own=own):
                if keys.shape[2] == 64:
                    scores = queries @ keys.transpose(-1, -2) / queries.shape[-1] ** 0.5
                    seen.append(scores.softmax(-1).mean(1))
                return attends(own, states, queries, keys, values, bias)

            own.attend = attend
        if model.config.caption_attention == "prefix":
            model.caption_logits(ids[:, :-1], images)
            expected = torch.stack(seen).mean(0)
        else:
            rows = []
            for step in range(1, ids.shape[1]):
                seen.clear()
                masked = torch.cat([ids[:, :step], torch.tensor([[tokenizer.mask]])], 1)
                model.masked_caption_logits(masked, None, images[0], torch.tensor([step]))
                rows.append(torch.stack([weights[:, -1] for weights in seen]).mean(0))
            expected = torch.stack(rows, 1)
    assert torch.allclose(found, expected, atol=1e-5)


def test_examples_of_a_code(diptych: Diptych) -> None:
    assert [len(diptych.examples(code)) for code in (0, 1, 15)] == [1, 2, 1]
    assert diptych.examples(1)[0].size == (8, 8)
    with pytest.raises(UserError, match="codes are from 0 to 15"):
        diptych.examples(16)


def test_threads_share_one_model(package: Path, pictures) -> None:
    """Each from a fresh object, so that the scorer, too, is loaded by several threads at once."""

    def work(diptych: Diptych, number: int) -> tuple:
        image, text = pictures[number % 5], TEXTS[number % 3]
        return (
            diptych.caption(image, samples=2, temperature=1.0, seed=number, rerank=True)[0].text,
            diptych.paint(text, seed=number, samples=2, rerank=True)[0].codes.tolist(),
            diptych.codes(image).tolist(),
            [*diptych.attention(image, text)[0].weights[0].tolist(), float(diptych.score(image, text))],
        )

    alone, shared = (Diptych.from_pretrained(package, device="cpu", precision="float32") for _ in range(2))
    expected = [work(alone, number) for number in range(12)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda number: work(shared, number), range(12)))
    for one, other in zip(found, expected, strict=True):
        assert one[:3] == other[:3] and one[3] == pytest.approx(other[3], abs=1e-4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d: d.caption("nowhere.png"), "nowhere.png: no such image file"),
        (lambda d: d.caption(b""), "picture 0: the file is empty"),
        (lambda d: d.caption([b"GIF89a nothing"]), "picture 0: not an image"),
        (lambda d: d.caption(3.5), "not iterable|is no picture"),
        (lambda d: d.caption([object()]), "object is no picture"),
        (lambda d: d.features([]), "no picture"),
        (lambda d: d.codes(np.zeros((4, 4, 2), np.uint8)), r"shape \[4, 4, 2\]"),
        (lambda d: d.codes(np.full((4, 4, 3), 2.0)), r"0\.\.1"),
        (lambda d: d.codes(np.zeros((4, 4, 3), np.int64)), "type int64"),
        (lambda d: d.caption("x.png", lenght=3), "lenght: no such option"),
        (lambda d: d.paint("a kite", steps=0), "steps must be at least 1"),
        (lambda d: d.paint("a kite", steps=65), "from 1 to 64"),
        (lambda d: d.paint(""), "has no word"),
        (lambda d: d.paint("風"), "only characters"),
        (lambda d: d.paint("a kite", seed=-1), "seed: -1"),
        (lambda d: d.paint("a kite", seed=[1, 2]), "2 seeds for 1 items"),
        (lambda d: d.paint("a kite", seed=True), "seed: True"),
        (lambda d: d.paint("a kite", locked=[1]), "codes of a painting"),
        (lambda d: d.paint("a kite", codes=[0] * 64), "either `locked` or `repaint`"),
        (lambda d: d.paint("a kite", codes=[0] * 63, locked=[1]), r"\[n, 64\]"),
        (lambda d: d.paint("a kite", codes=[16] * 64, locked=[1]), "from 0 to 15"),
        (lambda d: d.paint("a kite", codes=[0] * 64, locked=[64]), "from 0 .top left. to 63"),
        (lambda d: d.paint("a kite", codes=[0] * 64, locked=[0.5]), "whole numbers"),
        (lambda d: d.paint("a kite", codes=[0] * 64, repaint=torch.ones(3, dtype=torch.bool)), "64 cells"),
        (lambda d: d.draw([[0.5] * 64]), "whole numbers"),
        (lambda d: d.draw([[-2] * 64]), "from -1 to 15"),
        (lambda d: d.score([], ["a kite"]), "1 captions for 0 pictures"),
    ],
)
def test_what_is_wrong_is_said(diptych: Diptych, call, message: str) -> None:
    with pytest.raises((UserError, TypeError), match=message) as caught:
        call(diptych)
    assert not isinstance(caught.value, TypeError) or "not iterable" in str(caught.value)


def test_a_device_that_is_not_there(package: Path) -> None:
    with pytest.raises(UserError, match="device cuda:99: not there"):
        Diptych.from_pretrained(package, device="cuda:99")
    with pytest.raises(UserError, match="device teapot"):
        Diptych.from_pretrained(package, device="teapot")
    with pytest.raises(UserError, match="precision.*float16"):
        Diptych.from_pretrained(package, precision="float16")


def test_bfloat16_is_near(diptych: Diptych, package: Path, pictures) -> None:
    other = Diptych.from_pretrained(package, device="cpu", precision="bfloat16")
    exact, rounded = diptych.features(pictures), other.features(pictures)
    assert 0 < (exact - rounded).abs().max() < 0.1 * exact.abs().max()
    assert len(other.caption(pictures)) == 5 and len(other.paint(TEXTS)) == 3


def test_nothing_heavy_is_imported_before_it_is_needed(package: Path) -> None:
    """Neither by the import nor by captions and paintings: Ray, FAISS, transformers; open_clip only for scores."""
    code = f"""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {{"ray", "faiss", "pycocotools", "webdataset", "dvc", "pycocoevalcap", "matplotlib"}}:
            raise ModuleNotFoundError(f"{{name}} is absent on this machine", name=name)
sys.meta_path.insert(0, Absent())
import diptych.model
assert "torch" not in sys.modules
from diptych.model import Diptych
d = Diptych.from_pretrained({str(package)!r}, device="cpu")
image = d.paint("a red kite.")[0].image
d.caption(image)
print(sorted({{"transformers", "open_clip", "huggingface_hub"}} & set(sys.modules)))
d.score(image, "a red kite.")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
