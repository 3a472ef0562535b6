"""The model card: README.md of a packaged model, as the Hugging Face Hub reads it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from diptych.model.decoding.options import CaptionOptions, PaintOptions
from diptych.model.networks.config import read_config
from diptych.model.networks.image_generator import read_config as read_generator_config
from diptych.model.weight_files import read_tensors

# name of a figure, what it is
FIGURES = {
    "caption.cider_d": "captions: CIDEr-D (1.0 is the papers' 100%)",
    "caption.bleu_4": "captions: BLEU-4",
    "caption.main_fact": "captions that name the main object with its colour",
    "answer.accuracy": "answers: VQA's accuracy",
    "words_alone.accuracy": "the same of who reads the question and sees no picture",
    "real.r_precision_judge": "R-precision by the judge, real pictures",
    "reconstruction.r_precision_judge": "R-precision by the judge, pictures repainted from their codes",
    "painted.r_precision_judge": "R-precision by the judge, painted captions",
    "painted.clip_score_judge": "CLIPScore by the judge, painted captions",
    "painted.frechet_judge": "Fréchet distance to real pictures in the judge's space, painted captions",
    "painted.main_object": "paintings whose main object has the right class and colour",
    "painted.second_object": "paintings whose second object has",
    "painted.main_object_unseen": "the same for pairs of class and colour that training never showed",
}


@dataclass(frozen=True)
class CardFacts:
    """What a card tells.

    Attributes:
        title: its heading.
        data: what the model was trained on, in a sentence.
        pictures: number of pictures by split.
        figures: measured on the test split: text by name; unknown names are left out.
        limits: what the model cannot do, a sentence each.
        commit: of the repository that made it.
        parameters: those of the whole run.
        captioning, painting: how the test split was captioned and painted.
        weights: how matrices are stored.
        exported: whether there are programs of torch.export.
    """

    title: str
    data: str
    pictures: Mapping[str, int]
    figures: Mapping[str, str]
    limits: tuple[str, ...]
    commit: str
    parameters: Mapping[str, Any]
    captioning: CaptionOptions
    painting: PaintOptions
    weights: str
    exported: bool


def model_card(facts: CardFacts, transformer: Path, image_generator: Path) -> str:
    """Write the card of a package made of these folders."""
    config = read_config(transformer / "config.json")
    painter = read_generator_config(image_generator / "config.json")
    sizes = [
        sum(tensor.numel() for tensor in read_tensors(folder / "model.safetensors").values()) / 1e6
        for folder in (transformer, image_generator)
    ]
    figures = [
        f"| {text} | {facts.figures[name]} |" for name, text in FIGURES.items() if name in facts.figures
    ]
    splits = ", ".join(f"{count:,} {split}" for split, count in facts.pictures.items())
    programs = (
        " `exported/` holds captioner and painter as programs of torch.export." if facts.exported else ""
    )
    does = "captions pictures and paints captions"
    tags, question = "image-captioning, text-to-image, lxmert", ""
    if config.answers:
        does = "captions pictures, paints captions and answers questions about pictures"
        tags += ", visual-question-answering"
        question = '\nprint(d.answer("photo.jpg", "is there a red kite?")[0])'
    return f"""---
library_name: diptych
pipeline_tag: image-to-text
tags: [{tags}]
---
# {facts.title}

One transformer that {does}, after "Unifying Multimodal
Transformer for Bi-directional Image and Text Generation" (Huang et al., ACM MM 2021) and X-LXMERT (Cho et al., EMNLP 2020).

```python
from diptych.model import Diptych

d = Diptych.from_pretrained("FOLDER_OR_REPOSITORY")
print(d.caption("photo.jpg")[0])
d.paint("two red kites over the sea.")[0].image.save("painting.png"){question}
```

Parts: the transformer ({sizes[0]:.1f} M parameters, {config.caption_attention} attention), the image generator
({sizes[1]:.1f} M, {painter.image_size}x{painter.image_size} pixels), a codebook of {config.codebook_size:,} codes, the detector
whose 8x8 grid features the captioner reads{" by their codes" if config.image_features == "discrete" else ""}. Matrices are stored as {facts.weights}.{programs} `sha256sum -c SHA256SUMS`
verifies all files, and so does loading.

## Data

{facts.data} Pictures: {splits}.

## Figures

On the test split, captioned{", asked" if config.answers else ""} and painted with this package's own defaults (`{options(facts.captioning)}`,
`{options(facts.painting)}`){"" if facts.weights == "float32" else ", before matrices were rounded"}:

| figure | measured (95% interval) |
| --- | --- |
{chr(10).join(figures)}

The judge is a CLIP that no training saw. A real picture's figures are what a perfect painter would reach.

## Limits

{chr(10).join(f"- {limit}" for limit in facts.limits)}
- Captions repeat what the training captions say and how they say it. Nothing filters what is captioned or painted.

## Reproduce

Commit `{facts.commit}` of the repository with these parameters in `params.yaml`, then `dvc repro package`:

```json
{json.dumps(facts.parameters, indent=1)}
```
"""


def options(chosen: CaptionOptions | PaintOptions) -> str:
    """The method, and what is not as it would be without saying."""
    usual = CaptionOptions(length=3) if isinstance(chosen, CaptionOptions) else PaintOptions()
    return ", ".join(
        f"{name}={value}"
        for name, value in asdict(chosen).items()
        if name == "method" or value != getattr(usual, name)
    )
