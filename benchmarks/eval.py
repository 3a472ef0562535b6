"""Caption metrics against the libraries that the papers' code uses, both sides in turns.

`python -m benchmarks.eval [--rounds 15]` writes `benchmarks/results/eval.json`.

| figure | ratio of |
| --- | --- |
| cider.vs_pycocoevalcap | `Cider().compute_score` / `CiderDReward.reward`, 160 captions with 5 references each |
| cider.batch_vs_pycocoevalcap | the same with document frequencies of the batch, prepared anew at each call |
| images.vs_loop | one picture after the other / `embed`: 96 JPEGs of 640 x 480, the same open_clip ViT-B-32 with random weights |

The reward's references are prepared once, as for a training; `compute_score` has no such preparation. Both sides of
`images.vs_loop` read, decode and resize the same files and use all cores.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from pycocoevalcap.cider.cider import Cider

from benchmarks.alternate import alternate, median_ratio, seconds
from benchmarks.figures import record
from diptych.eval.captions.cider import CiderDReward
from diptych.eval.images.embeddings import EmbedSettings, FolderPictures, embed, read_picture, resized
from diptych.eval.images.metrics import clip_encoder
from diptych.eval.scorers.clip import Clip

PICTURES, REFERENCES, VOCABULARY = 160, 5, 2000
JPEGS = 96
AIMS = {"cider.vs_pycocoevalcap": 20, "cider.batch_vs_pycocoevalcap": None, "images.vs_loop": 1.5}


def captions(generator: np.random.Generator, count: int) -> list[list[int]]:
    """Captions of COCO's length with words as unequally frequent as in a language (Zipf)."""
    lengths = generator.normal(10.5, 2.4, count).round().clip(6, 20).astype(int)
    return [(generator.zipf(1.3, length) % VOCABULARY).tolist() for length in lengths]


def caption_rewards(rounds: int) -> dict[str, float]:
    """CIDEr-D of a batch of captions."""
    generator = np.random.default_rng(0)
    references = [captions(generator, REFERENCES) for _ in range(PICTURES)]
    candidates = captions(generator, PICTURES)
    truth = {
        index: [" ".join(map(str, words)) for words in several] for index, several in enumerate(references)
    }
    results = {index: [" ".join(map(str, words))] for index, words in enumerate(candidates)}
    corpus, batch = CiderDReward(references), CiderDReward(references, "batch")
    pictures = range(PICTURES)
    difference = np.abs(corpus.reward(pictures, candidates) - Cider().compute_score(truth, results)[1]).max()
    times = alternate(
        {
            "pycocoevalcap": lambda: seconds(lambda: Cider().compute_score(truth, results)),
            "corpus": lambda: seconds(lambda: corpus.reward(pictures, candidates)),
            "batch": lambda: seconds(lambda: batch.reward(pictures, candidates)),
        },
        rounds,
    )
    figures = {
        "cider.vs_pycocoevalcap": median_ratio(times["pycocoevalcap"], times["corpus"]),
        "cider.batch_vs_pycocoevalcap": median_ratio(times["pycocoevalcap"], times["batch"]),
    }
    print(f"largest difference {difference:.1e}")
    print({name: f"{1000 * statistics.median(measured):.1f} ms" for name, measured in times.items()})
    return figures


def streamed_images(rounds: int) -> dict[str, float]:
    """Embeddings of a folder of photographs' size."""
    import open_clip

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    model = open_clip.create_model("ViT-B-32").eval().requires_grad_(False)
    clip = Clip(
        model,
        open_clip.get_tokenizer("ViT-B-32"),
        224,
        open_clip.OPENAI_DATASET_MEAN,
        open_clip.OPENAI_DATASET_STD,
    )
    encoder = clip_encoder("clip", clip)
    settings = EmbedSettings(image_size=256, threads=len(os.sched_getaffinity(0)))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "pictures"
        draw_photographs(folder)
        pictures = FolderPictures(folder)

        def loop() -> np.ndarray:
            rows = []
            for picture in pictures.names:
                image = resized(read_picture((folder / picture).read_bytes()), settings)
                pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
                with torch.inference_mode():
                    rows.append(clip.encode_images(pixels.float() / 255))
            return torch.cat(rows).numpy()

        def streamed() -> np.ndarray:
            with tempfile.TemporaryDirectory(dir=name) as store:
                return embed(pictures, [encoder], settings, Path(store)).rows("clip")

        print(f"largest difference {np.abs(loop() - streamed()).max():.1e}")  # and both are warm
        times = alternate({"loop": lambda: seconds(loop), "streamed": lambda: seconds(streamed)}, rounds)
    print({name: f"{JPEGS / statistics.median(measured):.1f} images/s" for name, measured in times.items()})
    return {"images.vs_loop": median_ratio(times["loop"], times["streamed"])}


def draw_photographs(folder: Path) -> None:
    """JPEGs of 640 x 480 with detail of all sizes, as large as photographs of that size."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(JPEGS):
        layers = [
            np.asarray(
                Image.fromarray(
                    generator.integers(0, 255, (480 // scale, 640 // scale, 3), dtype=np.uint8)
                ).resize((640, 480), Image.Resampling.BICUBIC),
                np.float32,
            )
            for scale in (4, 16, 80)
        ]
        pixels = (0.15 * layers[0] + 0.25 * layers[1] + 0.6 * layers[2]).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03d}.jpg", quality=90)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    figures = {**caption_rewards(rounds), **streamed_images(max(1, rounds // 3))}
    print("| figure | median | aim |\n| --- | --- | --- |")
    for name, value in figures.items():
        print(f"| {name} | {value:.1f} | {AIMS[name] or ''} |")
    record("eval", figures)


if __name__ == "__main__":
    main()
