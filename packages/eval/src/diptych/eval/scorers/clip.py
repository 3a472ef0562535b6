"""CLIP scorers: a small one with open_clip's model (:mod:`diptych.eval.scorers.clip_training` trains it), or a pretrained one.

The scorer rewards the painter in sequence-level training (UMT section 4.2.2), so its embeddings are
differentiable with respect to pixels; the judge is another such network that only evaluates.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from diptych.eval.errors import UserError
from diptych.eval.scorers.clip_score import PROMPT
from diptych.eval.scorers.open_clip_weights import filled_model
from diptych.eval.scorers.preprocessing import Preprocessing, architecture_of, preprocessing_of
from diptych.eval.scorers.stored import fill, read_description

FORMAT = "diptych-clip/1"
_PAD, _UNKNOWN, _START, _END = "[PAD]", "[UNK]", "[START]", "[END]"
# open_clip's ModifiedResNet halves a picture five times and works with 32 heads per 64 channels.
_RESNET_HEAD_WIDTH = 64


@dataclass(frozen=True)
class ClipConfig:
    """Architecture of a small CLIP; the vocabulary comes from the captions.

    embedding_dim: width E of the shared space.
    image_size: pixels per side that the vision tower sees; other sizes are resized (bilinear, antialiased).
    vision_layers: a number of transformer layers (ViT) or four numbers of residual blocks (ResNet).
    vision_width: ViT width, or channels of the ResNet's stem.
    vision_heads: attention heads of the ViT; the ResNet's are vision_width / 2.
    patch_size: pixels per side of a ViT patch; the ResNet ignores it.
    text_width, text_layers, text_heads: the text transformer.
    context_length: tokens per text with start and end; longer texts are cut.
    pixel_mean, pixel_std: normalisation of pixels in 0..1, per channel.
    """

    embedding_dim: int
    image_size: int
    vision_layers: int | tuple[int, ...]
    vision_width: int
    vision_heads: int
    patch_size: int
    text_width: int
    text_layers: int
    text_heads: int
    context_length: int
    pixel_mean: tuple[float, float, float]
    pixel_std: tuple[float, float, float]


class Clip(nn.Module):
    """A CLIP that takes plain pictures and plain texts.

    `config` is None for pretrained open_clip models, whose tokenizer cannot be saved by `save_clip`. They have a
    `preprocessing`, which says how pictures of other sizes are fitted, and mean and std; ours stretch them, as they were
    trained.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenize: Callable[[list[str]], Tensor],
        image_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        config: ClipConfig | None = None,
        tokenizer: Tokenizer | None = None,
        preprocessing: Preprocessing | None = None,
    ) -> None:
        super().__init__()
        self.model, self.tokenize, self.image_size = model, tokenize, image_size
        self.config, self.tokenizer, self.preprocessing = config, tokenizer, preprocessing
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def encode_images(self, images: Tensor) -> Tensor:
        """Pictures float [n, 3, H, W] in 0..1 to unit vectors float32 [n, E]; differentiable."""
        if not images.is_floating_point():
            raise TypeError("encode_images takes float pictures in 0..1; divide uint8 pictures by 255")
        size = self.image_size
        if self.preprocessing is not None:
            images = self.preprocessing.fitted_pixels(images)
        elif images.shape[-2:] != (size, size):
            images = functional.interpolate(images, (size, size), mode="bilinear", antialias=True)
        # Flash attention is several times slower than plain products for short sequences on a CPU.
        with sdpa_kernel(SDPBackend.MATH if images.device.type == "cpu" else list(_ALL_BACKENDS)):
            pixels = ((images - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
            embeddings = self.model.encode_image(pixels)
        return functional.normalize(embeddings.float(), dim=-1)

    def fitted(self, image: Image.Image) -> Tensor:
        """An RGB picture of any size as uint8 [3, S, S], which `encode_images` takes as it is: the pixels that open_clip
        shows a pretrained model; for ours the picture stretched to its square (bicubic, antialiased), as in its training."""
        if self.preprocessing is not None:
            return self.preprocessing.fitted(image)
        size = (self.image_size, self.image_size)
        stretched = image if image.size == size else image.resize(size, Image.Resampling.BICUBIC)
        return torch.from_numpy(np.array(stretched)).permute(2, 0, 1)

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Texts to unit vectors float32 [n, E]; the caller puts PROMPT before captions."""
        tokens = self.tokenize(list(texts)).to(self.mean.device)
        with sdpa_kernel(SDPBackend.MATH if tokens.device.type == "cpu" else list(_ALL_BACKENDS)):
            embeddings = self.model.encode_text(tokens)
        return functional.normalize(embeddings.float(), dim=-1)


_ALL_BACKENDS = (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH)


def build_clip(config: ClipConfig, captions: Sequence[Sequence[str]], seed: int) -> Clip:
    """An untrained CLIP whose vocabulary is every word of `captions` (per picture a list)."""
    return _assemble(config, _word_tokenizer(captions, config.context_length), seed)


def _word_tokenizer(captions: Sequence[Sequence[str]], context_length: int) -> Tokenizer:
    normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    splitter = pre_tokenizers.Whitespace()
    words = {
        word
        for text in (PROMPT, *(caption for several in captions for caption in several))
        for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))
    }
    specials = (_PAD, _UNKNOWN, _START, _END)
    vocabulary = {word: number for number, word in enumerate((*specials, *sorted(words)))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=_UNKNOWN))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    tokenizer.add_special_tokens(list(specials))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{_START} $A {_END}", special_tokens=[(word, vocabulary[word]) for word in (_START, _END)]
    )
    tokenizer.enable_truncation(context_length)
    tokenizer.enable_padding(length=context_length, pad_id=vocabulary[_PAD], pad_token=_PAD)
    return tokenizer


def _assemble(config: ClipConfig, tokenizer: Tokenizer, seed: int) -> Clip:
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    residual = not isinstance(config.vision_layers, int)
    vision = CLIPVisionCfg(
        layers=config.vision_layers,  # type: ignore[arg-type]
        width=config.vision_width,
        head_width=_RESNET_HEAD_WIDTH if residual else config.vision_width // config.vision_heads,
        patch_size=config.patch_size,
        image_size=config.image_size,
    )
    text = CLIPTextCfg(
        context_length=config.context_length,
        vocab_size=tokenizer.get_vocab_size(),
        width=config.text_width,
        heads=config.text_heads,
        layers=config.text_layers,
        pad_id=tokenizer.token_to_id(_PAD),
        eos_id=tokenizer.token_to_id(_END),
        pool_type="eos",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CLIP(config.embedding_dim, vision, text)
    # Convolutions with few channels are nearly twice as fast in this layout, on CPUs and on GPUs.
    model.visual.to(memory_format=torch.channels_last)

    def tokenize(texts: list[str]) -> Tensor:
        return torch.tensor([encoding.ids for encoding in tokenizer.encode_batch(texts)], dtype=torch.int64)

    return Clip(model, tokenize, config.image_size, config.pixel_mean, config.pixel_std, config, tokenizer)


def save_clip(clip: Clip, folder: Path | str) -> None:
    """Write config.json, model.safetensors and tokenizer.json into `folder`."""
    if clip.config is None or clip.tokenizer is None:
        raise UserError("a pretrained open_clip model is not saved again; keep its checkpoint file")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: value.contiguous() for name, value in clip.model.state_dict().items()},
        folder / "model.safetensors",
    )
    clip.tokenizer.save(str(folder / "tokenizer.json"))
    content = {"format": FORMAT, "architecture": dataclasses.asdict(clip.config)}
    (folder / "config.json").write_text(json.dumps(content, indent=2) + "\n")


def load_clip(folder: Path | str, device: torch.device | str = "cpu") -> Clip:
    """Read what `save_clip` wrote: in eval mode, with frozen weights. UserError where that fails."""
    folder = Path(folder)
    content = read_description(folder, FORMAT, ("model.safetensors", "tokenizer.json"))
    try:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # noqa: BLE001 - tokenizers raises no kind of its own
        raise UserError(
            f"{folder / 'tokenizer.json'}: not a tokenizer ({error}); copy it again, or train it again"
        ) from None
    try:
        clip = _assemble(_config_from_json(content["architecture"]), tokenizer, seed=0)
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        raise UserError(f"{folder / 'config.json'}: no architecture of a CLIP ({error!r})") from None
    fill(clip.model, folder)
    return clip.to(device).eval().requires_grad_(False)


def load_pretrained_clip(model_name: str, checkpoint: Path | str, device: torch.device | str = "cpu") -> Clip:
    """A model of open_clip, such as "ViT-B-32" or "ViT-L-14@laion2b_s32b_b82k", with weights from a local file, frozen.

    Pictures are prepared as open_clip prepares them for the published weights of that name
    (:func:`diptych.eval.scorers.preprocessing.preprocessing_of`). Raises UserError when open_clip does not know the name, the
    file is missing or unreadable, or its weights do not fit; nothing is downloaded and nothing in the file is executed.
    """
    import open_clip

    architecture = architecture_of(model_name)
    if not Path(checkpoint).is_file():
        raise UserError(
            f"{checkpoint} is missing; download the weights of open_clip's {model_name} and put them there"
        )
    model = filled_model(architecture, Path(checkpoint), device)
    size, preprocessing = model.visual.image_size, preprocessing_of(model_name, model.visual.image_size)
    clip = Clip(
        model,
        open_clip.get_tokenizer(architecture),
        size if isinstance(size, int) else size[0],
        preprocessing.mean,
        preprocessing.std,
        preprocessing=preprocessing,
    )
    return clip.to(device).eval().requires_grad_(False)


def _config_from_json(content: dict[str, Any]) -> ClipConfig:
    # JSON has no tuples, and a frozen config should hold nothing that can change.
    fields: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in content.items()
    }
    return ClipConfig(**fields)
