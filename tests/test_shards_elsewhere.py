"""Shards and features at an address: what a stage makes from there is what it makes from here."""

from __future__ import annotations

import shutil
from pathlib import Path

from pipeline_clone import Clone

from diptych.features.files import sha256_of


def test_a_training_reads_published_shards(finished_clone: Clone, tmp_path: Path, module_here) -> None:
    """The tars are gone from the clone, and a folder behind a file:// address stands for the storage."""
    clone = finished_clone.copy(tmp_path / "clone")
    model, address = clone.folder / "models/token/model.safetensors", f"file://{tmp_path}/there"
    before = sha256_of(model)
    done = module_here(clone.folder, "pipelines.commands.publish_shards", address)
    assert done.status == 0 and f"machine.shards: {address}" in done.stdout, done.stderr
    for tar in (clone.folder / "data/shards").glob("*.tar"):
        tar.unlink()
    model.unlink()
    clone.set_params(f"machine.shards={address}")
    done = module_here(clone.folder, "pipelines.train_token")
    assert done.status == 0, done.stderr[-3000:]
    assert sha256_of(model) == before
    assert (clone.folder / ".cache/shards/cache.db").is_file()
    clone.set_params(f"machine.shards=file://{tmp_path}/nowhere")
    failed = module_here(clone.folder, "pipelines.train_token")
    assert failed.status and "nowhere/index.json: there is no such file" in failed.stderr
    assert "Traceback" not in failed.stderr
    index = tmp_path / "there/index.json"
    index.write_text(index.read_text() + " ")
    clone.set_params(f"machine.shards={address}")
    failed = module_here(clone.folder, "pipelines.train_token")
    assert failed.status and "has other shards than data/shards/index.json" in failed.stderr


def test_an_extraction_brings_published_features(finished_clone: Clone, tmp_path: Path, module_here) -> None:
    """The store of the clone is gone; a second clone publishes nothing that is there already."""
    clone, address = finished_clone.copy(tmp_path / "clone"), f"file://{tmp_path}/there"
    features, store = clone.folder / "data/features", clone.folder / ".cache/features"
    before = {path.name: sha256_of(path) for path in features.iterdir()}
    publish = (clone.folder, "pipelines.commands.publish_features", address)
    done = module_here(*publish)
    assert done.status == 0 and f"machine.features_at: {address}" in done.stdout, done.stderr
    shutil.rmtree(store)
    clone.set_params(f"machine.features_at={address}", "machine.workers=0")
    failed = module_here(*publish)
    assert failed.status == 1 and "the store has nothing of data/features" in failed.stderr
    assert failed.stderr.strip().count("\n") == 0
    shutil.rmtree(features)
    done = module_here(clone.folder, "pipelines.extract")
    assert done.status == 0 and "extracted: 0, brought: " in done.stdout, done.stderr[-3000:]
    assert {path.name: sha256_of(path) for path in features.iterdir()} == before
    done = module_here(*publish)
    assert done.status == 0 and ": 0 parts written, " in done.stdout
