"""What a pretrained CLIP is shown equals open_clip's own preprocessing, on pictures of odd sizes."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from diptych.eval.errors import UserError
from diptych.eval.images.embeddings import FolderPictures
from diptych.eval.images.metrics import ImageSettings, measure_images
from diptych.eval.scorers.clip import Clip, ClipConfig, build_clip, load_pretrained_clip
from diptych.eval.scorers.preprocessing import Preprocessing, preprocessing_of

SIZES = ((37, 90), (91, 40), (33, 33), (32, 32), (20, 51), (17, 19))
OURS = ClipConfig(16, 32, 1, 32, 2, 16, 16, 1, 2, 20, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def picture(size: tuple[int, int], seed: int = 0) -> Image.Image:
    """Sharp edges, at which bicubic resizing overshoots, and fine grain."""
    generator = np.random.default_rng(seed)
    pixels = np.repeat(
        np.repeat(generator.choice([0, 255], (size[1] // 4 + 1, size[0] // 4 + 1, 3)), 4, 0), 4, 1
    )
    grain = generator.integers(-30, 31, (size[1], size[0], 3))
    return Image.fromarray((pixels[: size[1], : size[0]] + grain).clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of an architecture of open_clip's that is small enough to make here."""
    import open_clip

    folder = tmp_path_factory.mktemp("open_clip")
    tiny = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    (folder / "tiny-odd.json").write_text(json.dumps(tiny))
    open_clip.add_model_config(folder)
    torch.manual_seed(0)
    torch.save(open_clip.create_model("tiny-odd").state_dict(), folder / "weights.pt")
    return folder / "weights.pt"


@pytest.fixture(scope="module")
def clip(weights: Path) -> Clip:
    return load_pretrained_clip("tiny-odd", weights)


def test_pixels_and_embeddings_are_those_of_open_clip(clip: Clip, weights: Path) -> None:
    import open_clip

    model, _, preprocess = open_clip.create_model_and_transforms("tiny-odd", pretrained=str(weights))
    for size in SIZES:
        image = picture(size)
        expected = preprocess(image)
        shown = clip.fitted(image)
        assert shown.dtype == torch.uint8
        assert torch.equal((shown.float() / 255 - clip.mean) / clip.std, expected), size
        with torch.inference_mode():
            theirs = model.eval().encode_image(expected[None], normalize=True)
            ours = clip.encode_images(shown[None].float() / 255)
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


def test_openai_s_resizing_is_bicubic_and_keeps_the_middle(clip: Clip) -> None:
    """Restated by Pillow: the shorter side to 32 pixels, then the middle."""
    image = picture((90, 37))
    resized = image.resize((int(32 * 90 / 37), 32), Image.Resampling.BICUBIC)
    left = round((resized.width - 32) / 2)
    expected = np.asarray(resized)[:, left : left + 32]
    np.testing.assert_array_equal(clip.fitted(image).permute(1, 2, 0), expected)


@pytest.mark.parametrize("resize_mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("shape", [(32, 32), (24, 40)])
def test_pixels_in_a_tensor_are_fitted_alike_and_pass_gradients(
    resize_mode: str, interpolation: str, shape: tuple[int, int]
) -> None:
    from open_clip.transform import PreprocessCfg, image_transform_v2

    config = PreprocessCfg(size=shape, interpolation=interpolation, resize_mode=resize_mode, fill_color=0)
    found = Preprocessing(*shape, config.mean, config.std, interpolation, resize_mode)
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (config.mean, config.std))
    for size in SIZES:
        image = picture(size)
        assert torch.equal(
            (found.fitted(image) / 255 - mean) / std, image_transform_v2(config, is_train=False)(image)
        )
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
        pixels.requires_grad_()
        fitted = found.fitted_pixels(pixels)
        assert fitted.shape == (1, 3, *shape) and fitted.min() >= 0 and fitted.max() <= 1
        # Pillow rounds twice, and takes the columns first, in some versions, where height shrinks more
        difference = (fitted[0] - found.fitted(image) / 255).detach().abs()
        assert difference.mean() < 1.5 / 255, size
        if shape == (32, 32) and image.width >= image.height:
            assert difference.max() < 2.5 / 255, size
        fitted.sum().backward()
        assert pixels.grad is not None and (pixels.grad != 0).float().mean() > 0.1


def test_what_belongs_to_published_weights_holds_for_a_file_of_them() -> None:
    openai = preprocessing_of("ViT-B-32-quickgelu", 224)
    assert (openai.interpolation, openai.resize_mode) == ("bicubic", "shortest")
    assert openai.mean == (0.48145466, 0.4578275, 0.40821073)
    # open_clip itself treats every file as OpenAI's
    siglip = preprocessing_of("ViT-B-16-SigLIP", 224)
    assert siglip == Preprocessing(224, 224, (0.5,) * 3, (0.5,) * 3, "bicubic", "squash")
    with pytest.warns(UserWarning, match="ViT-L-14@laion2b_s32b_b82k"):
        assert preprocessing_of("ViT-L-14", 224) == openai
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert preprocessing_of("ViT-L-14@openai", 224) == openai
        assert preprocessing_of("ViT-L-14@laion2b_s32b_b82k", 224).mean == (0.5, 0.5, 0.5)
    with pytest.raises(UserError, match="no weights 'laion' of ViT-B-16-SigLIP; it has webli"):
        preprocessing_of("ViT-B-16-SigLIP@laion", 224)
    with pytest.raises(UserError, match="no model 'RN5'"):
        preprocessing_of("RN5@openai", 224)


def test_figures_show_a_pretrained_clip_the_pictures_themselves(
    tmp_path: Path, clip: Clip, weights: Path
) -> None:
    """Not what the common square leaves of them; ours, in the same run, get the square."""
    import open_clip

    ours = build_clip(OURS, [["a kite"]], seed=0).eval().requires_grad_(False)
    for kind, seed in (("real", 0), ("generated", 9)):
        (tmp_path / kind).mkdir()
        for number, size in enumerate(SIZES):
            picture(size, seed + number).save(tmp_path / kind / f"{number}.jpg")
    kinds = {kind: FolderPictures(tmp_path / kind) for kind in ("real", "generated")}
    settings = ImageSettings(
        image_size=48, batch_size=4, threads=2, resamples=10, frechet_resamples=0, blur_radii=(2.0,)
    )
    figures, embedded = measure_images(
        kinds, {}, {"b32": clip, "own": ours}, None, settings, tmp_path / "store"
    )
    model, _, preprocess = open_clip.create_model_and_transforms("tiny-odd", pretrained=str(weights))
    for number, name in enumerate(kinds["real"].names):
        image = Image.open(tmp_path / "real" / name)
        square = image.resize((48, 48), Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.array(square)).permute(2, 0, 1)[None].float() / 255
        pixels = functional.interpolate(pixels, (32, 32), mode="bilinear", antialias=True)
        with torch.inference_mode():
            theirs = model.eval().encode_image(preprocess(image)[None], normalize=True)
            own = functional.normalize(ours.model.encode_image((pixels - 0.5) / 0.25), dim=-1)
        np.testing.assert_allclose(embedded["real"].rows("b32")[number], theirs[0], atol=1e-5)
        np.testing.assert_allclose(embedded["real"].rows("own")[number], own[0], atol=1e-5)
    found = {figure.name: figure for figure in figures}
    rule = "open_clip's, 32 x 32, bicubic, antialiased, shorter side fitted, the middle cut out"
    square_rule = "stretch to 48 x 48, bicubic, antialiased (Pillow)"
    assert found["generated.frechet_b32"].resize == rule
    assert found["generated.frechet_own"].resize == square_rule
    blurred = f"{square_rule}, then blurred by a Gaussian of 2 pixels (Pillow)"
    assert found["generated.frechet_b32_blur_2"].resize == f"{blurred}, then {rule}"
    assert found["generated.frechet_own_blur_2"].resize == blurred


def test_ours_are_shown_what_they_were_trained_with() -> None:
    ours = build_clip(OURS, [["a kite"]], seed=0).eval()
    image = picture((37, 90))
    expected = np.asarray(image.resize((32, 32), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(ours.fitted(image).permute(1, 2, 0), expected)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
    small = functional.interpolate(pixels, (32, 32), mode="bilinear", antialias=True)
    assert torch.equal(ours.encode_images(pixels), ours.encode_images(small))
