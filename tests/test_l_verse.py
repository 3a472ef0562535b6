"""L-Verse's pipeline with smoke parameters: it runs from the finished clone, measures, packages, and reruns no more than it must."""

from __future__ import annotations

import io
import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from cluster_clone import on_cluster
from cluster_clone import run as run_stage
from PIL import Image
from pipeline_clone import Clone
from ray_nodes import cluster_of_nodes
from safetensors.numpy import load_file, save_file
from test_resume import digest, watched_trainings

from diptych.features.pictures import TokenizedPictures
from diptych.model import Diptych
from diptych.model.errors import UserError
from pipelines.runner import check
from pipelines.runner.writing import remove
from pipelines.tables import biart, compared
from pipelines.tables.item import run

PIPELINE = "pipelines/l_verse/dvc.yaml"
STAGES = ["autoencoder_ml", "autoencoder_sl", "tokens", "biart", "generate", "evaluate", "package", "report"]


@pytest.fixture(scope="module")
def made(finished_clone: Clone, tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A clone after `make l-verse`."""
    clone = finished_clone.copy(tmp_path_factory.mktemp("l_verse") / "clone")
    clone.set_params("machine.workers=0")  # Ray extracts elsewhere
    assert clone.repro_of(PIPELINE) == STAGES
    return clone


def test_it_measures_and_shows_what_it_promises(made: Clone) -> None:
    figures = json.loads((made.folder / "metrics/l_verse.json").read_text())
    for kind in ("real", "multi_level", "reconstruction", "painted"):
        assert 0 <= figures[f"{kind}.main_object"] <= 1
    for name in ("multi_level.frechet_judge", "reconstruction.frechet_judge", "painted.r_precision_judge", "caption.cider_d"):
        assert figures[name] >= 0
    assert 1 <= figures["tokens.perplexity"] <= figures["tokens.used"] <= 64
    rows = pq.read_table(made.folder / "data/l_verse/generated/test.parquet").to_pylist()
    assert all(row["painted"] and row["reconstruction"] and row["multi_level"] and len(row["codes"]) == 32 for row in rows)
    page = (made.folder / "ablations/l_verse/index.html").read_text()
    assert rows[0]["caption"] and "L-Verse" in page and "autoencoder_sl" in page
    assert {"contact_sheet.png", "reconstructions.png"} <= {path.name for path in (made.folder / "ablations/l_verse").iterdir()}
    card = (made.folder / "models/l_verse/package/README.md").read_text()
    assert "BiART" in card and "make l-verse" in card and "lxmert" not in card.lower()


def test_the_package_does_what_the_pipeline_did(made: Clone, tmp_path: Path, module_here) -> None:
    """Captions and paintings of the test split by the packaged model's defaults, whose samples the scorer chooses among; in float32, as
    `auto` is bfloat16 on some processors, where near ties are many."""
    exact = made.copy(tmp_path / "clone")
    exact.set_params("machine.precision=float32")
    done = module_here(exact.folder, "pipelines.l_verse.generate")
    assert done.status == 0, done.stderr[-3000:]
    data = exact.folder / "data"
    rows = pq.read_table(data / "l_verse/generated/test.parquet").to_pylist()[:4]
    d = Diptych.from_pretrained(made.folder / "models/l_verse/package", device="cpu", precision="float32")
    tokens = TokenizedPictures(data / "dataset/manifest.parquet", "test", data / "l_verse/tokens", "make l-verse")
    real = [row["real"] for row in rows]
    np.testing.assert_array_equal(d.codes(real).numpy(), tokens.codes(range(4)))
    # the noise of the pipeline's pictures is that of their numbers in their split
    seeds = [tokens.keys.index(row["image_id"]) for row in rows]
    assert [str(caption) for caption in d.caption(real, seed=seeds)] == [row["caption"] for row in rows]
    painted = d.paint([row["prompt"] for row in rows], seed=seeds)
    assert [painting.codes.tolist() for painting in painted] == [np.frombuffer(row["codes"], "<u2").tolist() for row in rows]
    again = d.reconstruct(real)
    for picture, row in zip(again, rows, strict=True):
        np.testing.assert_array_equal(np.asarray(picture), np.asarray(Image.open(io.BytesIO(row["reconstruction"]))))
    attended = d.caption(real[0], seed=0, return_attention=True)[0].attention
    assert attended is not None and attended.weights.shape == (len(attended.words), d.grid_size**2)
    with pytest.raises(UserError, match="models of its family answer no questions"):
        d.answer(real[0], "is there a red kite?")
    assert not d.can_answer and not d.can_verify and not d.has_examples


def test_a_parameter_runs_what_depends_on_it(made: Clone, tmp_path: Path) -> None:
    clone = made.copy(tmp_path / "clone")
    assert clone.stale(PIPELINE) == set()
    clone.set_params("l_verse.generate.paint.guidance=1.0")
    assert clone.stale(PIPELINE) == {"generate", "package", "report"}, "card and page show parameters"
    store = clone.folder / ".cache/features"
    parts = {path for path in store.rglob("part-*.parquet")}
    clone.set_params("l_verse.generate.paint.guidance=1.0", "l_verse.tokens.batch_size=8", "machine.workers=0")
    assert clone.repro_of(PIPELINE, "tokens") == ["tokens"]
    assert clone.stale(PIPELINE) == {"generate", "package", "report"}, "nobody trains, as the tokens are the same"
    assert {path for path in store.rglob("part-*.parquet")} == parts, "pictures are tokenized once"


# the codebook moves beside gradients; the transformer is trained by the loop as all others are
@pytest.mark.parametrize("stage", ["autoencoder_ml", pytest.param("biart", marks=pytest.mark.slow)])
def test_a_killed_training_goes_on(
    made: Clone, tmp_path: Path, stage: str, module_here, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And ends as the undisturbed one did."""
    clone = made.copy(tmp_path / "clone")
    clone.set_params("machine.checkpoint_seconds=0", "machine.processes=1")
    file = clone.folder / f"models/l_verse/{stage}/model.safetensors"
    command = ("python", "-m", f"pipelines.l_verse.{stage}")
    undisturbed = file.read_bytes()
    clone.kill_held(clone.folder / f".cache/training/l_verse/{stage}", *command)
    assert file.read_bytes() == undisturbed
    remove(file)  # so that what is compared is what the resumed run wrote
    went_on = watched_trainings(monkeypatch)
    done = module_here(clone.folder, f"pipelines.l_verse.{stage}")
    assert done.status == 0, done.stderr[-2000:]
    assert went_on(), "it began anew"
    assert file.read_bytes() == undisturbed


@pytest.mark.slow
def test_a_cluster_generates_the_same(made: Clone, tmp_path: Path) -> None:
    """By both autoencoders."""
    outs = ["data/l_verse/generated"]
    undisturbed = digest(made, outs)
    with cluster_of_nodes(2) as cluster:
        clone = on_cluster(made, tmp_path / "clone", cluster, outs, processes=1)
        run_stage(clone, "l_verse.generate")
    assert digest(clone, outs) == undisturbed


def test_tokens_of_another_autoencoder_are_refused(made: Clone, tmp_path: Path, module_here) -> None:
    clone = made.copy(tmp_path / "clone")
    model = clone.folder / "models/l_verse/autoencoder_sl/model.safetensors"
    tensors = load_file(model)
    tensors["quantizer.embedding"] = tensors["quantizer.embedding"] + 1
    remove(model)
    save_file(tensors, model)
    done = module_here(clone.folder, "pipelines.l_verse.biart")
    assert done.status == 1 and "tokens of another autoencoder" in done.stderr and "Traceback" not in done.stderr


def test_pictures_that_cannot_be_read_are_left_out_and_told(made: Clone, tmp_path: Path, module_here) -> None:
    """Both by the training and by the tokens, up to the share that the parameters allow."""
    clone = made.copy(tmp_path / "clone")
    picture = next((clone.folder / "data/dataset/images").rglob("*.*"))
    remove(picture)
    picture.write_bytes(b"no picture")
    shutil.rmtree(clone.folder / ".cache/features")  # which knows the picture by what it was
    shares = ("l_verse.tokens.max_failed_share", "l_verse.autoencoder.max_failed_share")
    clone.set_params(*(f"{share}=0.0" for share in shares), "machine.workers=0")
    for stage, said in (("tokens", "l_verse.tokens.max_failed_share = 0.0"), ("autoencoder_ml", "autoencoder.max_failed_share is 0")):
        told = module_here(clone.folder, f"pipelines.l_verse.{stage}")
        assert told.status == 1 and said in told.stderr and "Traceback" not in told.stderr, told.stderr[-2000:]
    clone.set_params(*(f"{share}=0.1" for share in shares), "machine.workers=0")
    for stage in ("autoencoder_ml", "tokens"):
        done = module_here(clone.folder, f"pipelines.l_verse.{stage}")
        assert done.status == 0, done.stderr[-2000:]
    failed = pq.read_table(clone.folder / "data/l_verse/tokens/failures.parquet").to_pylist()
    assert [row["path"] for row in failed] == [str(picture.relative_to(clone.folder / "data/dataset"))]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("l_verse.biart.vocabulary.pieces=400", "give one of min_count and pieces"),
        ("l_verse.autoencoder.multi_level.candidates=0", "give both of dead_share and candidates"),
        ("l_verse.generate.sets.test.answer={splits: [test], limit: null}", "L-Verse does not answer questions"),
        ("l_verse.generate.paint.method=random", "L-Verse paints token by token, by rows, not random"),
        ("l_verse.package.scorer=false", "package.scorer: the package chooses among samples"),
        ("l_verse.package.weights=int4", "params.yaml: l_verse.package.weights"),
    ],
)
def test_a_slip_is_one_line(clone: Clone, override: str, message: str, run_here) -> None:
    clone.set_params(override)
    done = run_here(clone.folder, check.main)
    assert done.status == 1 and message in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_it_is_a_row_of_the_table_of_systems(made: Clone, tmp_path: Path, run_here, costs_here) -> None:
    """BiART with a seed of its own, on the tokens that are there; measured with what both autoencoders cost."""
    clone = made.copy(tmp_path / "clone")
    for module, keys, values in ((biart, ("seed",), ("1",)), (compared, ("system", "seed"), ("l_verse", "1"))):
        kind = module.__name__.rpartition(".")[2]
        ended = run_here(clone.folder, partial(run, kind, keys, module.main), "table2", *values)
        assert ended.status == 0, ended.stderr[-3000:]
    folder = clone.folder / "ablations/table2/measured/l_verse-1"
    figures = {one["name"]: one["value"] for one in json.loads((folder / "figures.json").read_text())}
    own, *others = (
        json.loads((clone.folder / path).read_text())["minutes"]
        for path in (
            "ablations/table2/costs/biart_1.json",
            "metrics/stages/l_verse/autoencoder_ml.json",
            "metrics/stages/l_verse/autoencoder_sl.json",
        )
    )
    assert figures["painted.minutes"] == pytest.approx(own + sum(others))
    assert figures["painted.milliseconds"] > 0 and figures["caption.cider_d"] >= 0
