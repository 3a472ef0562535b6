"""Texts that a pretrained model writes of test pictures from their first words (X-LXMERT's figure 5)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diptych.model.decoding.gibbs import gibbs_texts
from diptych.model.precision import autocast_context
from diptych.model.pretrained import load_transformer
from pipelines.measuring.drawn import Sample, draw
from pipelines.measuring.shards import shards_of
from pipelines.tables.item import TableItem, only_one_in, run
from pipelines.tables.table import data_of

if TYPE_CHECKING:
    from pipelines.tables.params import PretrainingTableParams

SPLIT = "test"


def main(item: TableItem, section: PretrainingTableParams) -> None:
    """Write started/SEED.parquet in the table's folder: `image_id`, `real` and a column for each of the data's STARTS, with a text
    that begins so. The pictures are drawn by the item's seed, and so are the words."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    import torch

    stage, starts = item.stage, data_of(item.table.name).STARTS
    model, tokenizer, codebook = load_transformer(only_one_in(item.deps, item.path("models")), stage.device)
    shards = shards_of(SPLIT)
    drawn = draw(Sample((SPLIT,), section.examples), {SPLIT: shards.keys}, stage.seed)
    indices = [index for index, key in enumerate(shards.keys) if key in drawn]
    columns: dict[str, list[str] | list[bytes]] = {
        "image_id": [shards.keys[index] for index in indices],
        "real": [shards.image_bytes(index) for index in indices],
    }
    with torch.inference_mode(), autocast_context(stage.device, stage.machine.precision):
        # as its pretraining, which sees codebook vectors
        seen = codebook[torch.from_numpy(shards.codes(indices)).to(stage.device)]
        for start, words in starts.items():
            ids = gibbs_texts(model, tokenizer, seen, start, words, [stage.seed + index for index in indices])
            columns[start] = [tokenizer.decode(row) for row in ids]
    with stage.write(item.path(f"started/{stage.seed}.parquet")) as path:
        pq.write_table(pa.table(columns), path)


if __name__ == "__main__":
    run("started", ("seed",), main)
