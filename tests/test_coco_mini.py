"""The whole pipeline on real photographs in COCO's format, with the small networks of the smoke profile."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from pipeline_clone import REPOSITORY, make_clone

from diptych.features.shards.reading import ShardDataset

COCO = REPOSITORY.parent / "shared/coco-mini"


def overrides() -> list[str]:
    """The smoke profile's parameters, with photographs for pictures."""
    sources = ",".join(
        f"{{split: {split}, images: {COCO}/{name}, captions: {COCO}/annotations/captions_{name}.json,"
        f" instances: {COCO}/annotations/instances_{name}.json}}"
        for split, name in (("train", "train2017"), ("val/test", "val2017"))
    )
    return [
        f"dataset.source={COCO}",
        "dataset.toybox=null",
        f"dataset.coco={{sources: [{sources}], karpathy: null, images: null, instances: [], restval: false, limit: null}}",
        # instances have no attributes: nothing to learn colours from, nothing for the inspector to read
        "detector.training.grid_attribute_weight=0",
        "judge.inspector=null",
        # other pictures are painted than captioned, as the papers do
        "~generate.sets.compositional",
        # nobody has asked about them
        "train_token.training.questions=null",
        "train_sequence.training.answer_steps=0",
        "generate.sets.test.answer=null",
        "generate.sets.test.paint={splits: [val, test], limit: 60}",
        # other tests extract through Ray
        "machine.workers=0",
        # half a minute that test_pipeline.py spends already
        "package.export=none",
    ]


needs_coco = pytest.mark.skipif(not COCO.is_dir(), reason=f"{COCO} is not on this machine")


@needs_coco
def test_photographs_become_shards(tmp_path: Path, module_here) -> None:
    """All that the pipeline does with photographs before it trains on shards as on any others."""
    clone = make_clone(tmp_path / "clone")
    clone.set_params(*overrides())
    for stage in ("dataset", "detector", "extract", "cluster", "shard"):
        done = module_here(clone.folder, f"pipelines.{stage}")
        assert done.status == 0, done.stderr[-3000:]
    counts = {}
    for split in ("train", "val", "test"):
        dataset = ShardDataset(clone.folder / "data/shards", split)
        counts[split] = len(dataset)
        assert dataset.captions(0) and dataset.grid([0]).shape == (1, 64, 32)
    assert counts == {"train": 80, "val": 40, "test": 39}
    assert pq.read_table(clone.folder / "data/features/failures.parquet").num_rows == 0


@needs_coco
@pytest.mark.slow
def test_the_pipeline_runs_on_coco(tmp_path: Path) -> None:
    clone = make_clone(tmp_path / "clone")
    clone.set_params(*overrides())
    assert clone.repro()[-1] == "report"
    rows = pq.read_table(clone.folder / "data/generated/test.parquet")
    captioned, painted = (len(rows) - rows[column].null_count for column in ("caption", "painted"))
    assert (captioned, painted) == (39, 60)
    figures = json.loads((clone.folder / "metrics/evaluate.json").read_text())
    assert {
        "caption.cider_d",
        "painted.r_precision_judge",
        "reconstruction.clip_score_scorer",
    } <= figures.keys()
    assert "painted.main_object" not in figures, "COCO's objects have no colours to be right about"
