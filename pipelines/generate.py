"""Caption the test pictures and paint one reference caption of each (UMT 3.1; X-LXMERT 5.2)."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from diptych.features.shards import ShardDataset
from diptych.model.decoding.caption import decode_captions
from diptych.model.decoding.paint import paint_codes
from diptych.model.image_generator import load_image_generator
from diptych.model.precision import autocast_context
from diptych.model.pretrained import load_transformer
from pipelines.params import at_least
from pipelines.stage import Stage, run


@dataclass(frozen=True)
class CaptionParams:
    """length: tokens with [CLS] and [SEP]; temperature: 0 is greedy."""

    length: int
    temperature: float

    def __post_init__(self) -> None:
        at_least(self, 3, "length")
        at_least(self, 0, "temperature")


@dataclass(frozen=True)
class PaintParams:
    """steps: k of mask-predict-k; guidance: 1 is none; temperature: 0 is greedy; confidence_noise: see paint_codes."""

    steps: int
    guidance: float
    temperature: float
    confidence_noise: float

    def __post_init__(self) -> None:
        at_least(self, 1, "steps")
        at_least(self, 0, "temperature", "confidence_noise")


@dataclass(frozen=True)
class GenerateParams:
    """splits: one file each; limit: pictures per split at most, null for all; batch_size: pictures at a time."""

    splits: tuple[str, ...]
    limit: int | None
    batch_size: int
    caption: CaptionParams
    paint: PaintParams

    def __post_init__(self) -> None:
        at_least(self, 1, "batch_size", "limit")


def main(stage: Stage, params: GenerateParams) -> None:
    """Write data/generated/<split>.parquet, a row per picture in the order of the shards."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema(
        [
            ("image_id", pa.string()),
            ("caption", pa.string()),
            ("prompt", pa.string()),
            ("codes", pa.binary(128)),
            ("painted", pa.binary()),
            ("reconstruction", pa.binary()),
            ("real", pa.binary()),
        ]
    )
    with stage.write("data/generated") as folder:
        folder.mkdir()
        for split in params.splits:
            with pq.ParquetWriter(folder / f"{split}.parquet", schema, compression="none") as writer:
                for rows in generate(stage, params, ShardDataset(Path("data/shards"), split), split):
                    writer.write_table(pa.Table.from_pylist(rows, schema))


def generate(stage: Stage, params: GenerateParams, shards: ShardDataset, split: str) -> Iterator[list[dict]]:
    """Rows of the output, a batch at a time; an item's noise depends on the seed and its number only."""
    import torch
    from tqdm import tqdm

    device = stage.device
    model, tokenizer, codebook = load_transformer(Path("models/sequence"), device)
    generator = load_image_generator(Path("models/image_generator"), device)
    count = min(len(shards), params.limit or len(shards))
    for start in tqdm(range(0, count, params.batch_size), desc=split, unit="batch", mininterval=1):
        indices = list(range(start, min(start + params.batch_size, count)))
        seeds = [stage.seed * 1_000_003 + index for index in indices]
        # each picture's captions take turns, so that the painted ones are a fair sample of all
        references = [shards.captions(index) for index in indices]
        prompts = [texts[index % len(texts)] for index, texts in zip(indices, references, strict=True)]
        with torch.inference_mode(), autocast_context(device, stage.machine.precision):
            grid = torch.from_numpy(shards.grid(indices)).to(device).float()
            captions = decode_captions(
                model,
                tokenizer,
                model.encode_visual_prefix(grid),
                params.caption.length,
                params.caption.temperature,
                seeds,
            )
            codes = paint_codes(
                model,
                tokenizer,
                codebook,
                tokenizer.encode(prompts, params.caption.length).to(device),
                params.paint.steps,
                params.paint.guidance,
                params.paint.temperature,
                params.paint.confidence_noise,
                seeds,
            ).codes
            real_codes = torch.from_numpy(shards.codes(indices)).to(device)
            painted, reconstruction = (generator(codebook[c]).float().cpu() for c in (codes, real_codes))
        yield [
            {
                "image_id": shards.keys[index],
                "caption": tokenizer.decode(captions.ids[row]),
                "prompt": prompts[row],
                "codes": codes[row].cpu().numpy().astype("<u2").tobytes(),
                "painted": png(painted[row]),
                "reconstruction": png(reconstruction[row]),
                "real": shards.image_bytes(index),
            }
            for row, index in enumerate(indices)
        ]


def png(image) -> bytes:
    """PNG file content of an image, float [3, S, S] in -1..1."""
    from PIL import Image

    pixels = ((image + 1) * 127.5).round().clamp(0, 255).byte().permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


if __name__ == "__main__":
    run("generate", GenerateParams, main)
