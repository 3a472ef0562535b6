"""The model card: README.md of a packaged model, as the Hugging Face Hub reads it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from diptych.model.decoding.options import CaptionOptions, PaintOptions
from diptych.model.networks.aug_vae import read_config as read_aug_vae_config
from diptych.model.networks.biart import read_config as read_biart_config
from diptych.model.networks.config import read_config
from diptych.model.networks.image_generator import read_config as read_generator_config
from diptych.model.pretrained import CONFIG_FILE, IMAGE_TOKENIZER_FOLDER, WEIGHTS_FILE
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
        command: what makes the package.
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
    exported: bool = False
    command: str = "dvc repro package"


@dataclass(frozen=True)
class FamilyFacts:
    """What a card tells of a family.

    Attributes:
        does: "One transformer that ...".
        papers: after which papers.
        tags: for the Hub.
        parts: what the package is made of, sentences.
        answers: whether it answers questions.
    """

    does: str
    papers: str
    tags: tuple[str, ...]
    parts: str
    answers: bool = False


def millions(*folders: Path) -> list[str]:
    """Parameters of the models in these folders, in millions."""
    return [
        f"{sum(tensor.numel() for tensor in read_tensors(folder / WEIGHTS_FILE).values()) / 1e6:.1f} M"
        for folder in folders
    ]


def unified_facts(transformer: Path, image_generator: Path) -> FamilyFacts:
    """Of a package of the family `unified` that is made of these folders."""
    config = read_config(transformer / CONFIG_FILE)
    painter = read_generator_config(image_generator / CONFIG_FILE)
    sizes = millions(transformer, image_generator)
    does = "captions pictures and paints captions"
    tags: tuple[str, ...] = ("image-captioning", "text-to-image", "lxmert")
    if config.answers:
        does = "captions pictures, paints captions and answers questions about pictures"
        tags = (*tags, "visual-question-answering")
    return FamilyFacts(
        does,
        '"Unifying Multimodal\nTransformer for Bi-directional Image and Text Generation" (Huang et al., ACM MM 2021) and X-LXMERT (Cho '
        "et al., EMNLP 2020)",
        tags,
        f"the transformer ({sizes[0]} parameters, {config.caption_attention} attention), the image generator\n"
        f"({sizes[1]}, {painter.image_size}x{painter.image_size} pixels), a codebook of {config.codebook_size:,} codes, the detector\n"
        f"whose 8x8 grid features the captioner reads{' by their codes' if config.image_features == 'discrete' else ''}",
        config.answers > 0,
    )


def l_verse_facts(folder: Path) -> FamilyFacts:
    """Of a package of the family `l_verse` that is made of this model directory."""
    config = read_biart_config(folder / CONFIG_FILE)
    autoencoder = read_aug_vae_config(folder / IMAGE_TOKENIZER_FOLDER / CONFIG_FILE)
    sizes = millions(folder, folder / IMAGE_TOKENIZER_FOLDER)
    return FamilyFacts(
        "captions pictures and paints captions",
        '"L-Verse: Bidirectional Generation Between Image and Text" (Kim et al., 2022)',
        ("image-captioning", "text-to-image", "l-verse"),
        f"BiART ({sizes[0]} parameters) and the AugVAE whose {config.grid_size}x{config.grid_size} tokens of\n"
        f"{config.codebook_size:,} codes it reads and writes ({sizes[1]}, {autoencoder.image_size}x{autoencoder.image_size} pixels)",
    )


def model_card(facts: CardFacts, family: FamilyFacts) -> str:
    """Write the card of a package."""
    figures = [
        f"| {text} | {facts.figures[name]} |" for name, text in FIGURES.items() if name in facts.figures
    ]
    splits = ", ".join(f"{count:,} {split}" for split, count in facts.pictures.items())
    programs = (
        " `exported/` holds captioner and painter as programs of torch.export." if facts.exported else ""
    )
    question = '\nprint(d.answer("photo.jpg", "is there a red kite?")[0])' if family.answers else ""
    return f"""---
library_name: diptych
pipeline_tag: image-to-text
tags: [{", ".join(family.tags)}]
---
# {facts.title}

One transformer that {family.does}, after {family.papers}.

```python
from diptych.model import Diptych

d = Diptych.from_pretrained("FOLDER_OR_REPOSITORY")
print(d.caption("photo.jpg")[0])
d.paint("two red kites over the sea.")[0].image.save("painting.png"){question}
```

Parts: {family.parts}. Matrices are stored as {facts.weights}.{programs} `sha256sum -c SHA256SUMS`
verifies all files, and so does loading.

## Data

{facts.data} Pictures: {splits}.

## Figures

On the test split, captioned{", asked" if family.answers else ""} and painted with this package's own defaults (`{options(facts.captioning)}`,
`{options(facts.painting)}`){"" if facts.weights == "float32" else ", before matrices were rounded"}:

| figure | measured (95% interval) |
| --- | --- |
{chr(10).join(figures)}

The judge is a CLIP that no training saw. A real picture's figures are what a perfect painter would reach.

## Limits

{chr(10).join(f"- {limit}" for limit in facts.limits)}
- Captions repeat what the training captions say and how they say it. Nothing filters what is captioned or painted.

## Reproduce

Commit `{facts.commit}` of the repository with these parameters in `params.yaml`, then `{facts.command}`:

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
