"""`diptych-eval` on plain files and folders."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from diptych.eval.command import app
from diptych.eval.command.app import main
from diptych.eval.command.coco import ids_of_files, read_captions
from diptych.eval.command.shared_store import SharedStore
from diptych.eval.errors import UserError
from diptych.eval.figures import Figure
from diptych.eval.images.embeddings import CHUNK
from diptych.eval.scorers.clip import ClipConfig, build_clip, save_clip

TINY_CLIP = ClipConfig(32, 32, (1, 1, 1, 1), 8, 4, 8, 32, 1, 2, 20, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
COCO_MINI = Path(__file__).resolve().parents[3].parent / "shared" / "coco-mini"


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Predictions and references in COCO's formats."""
    predictions = [
        {"image_id": 1, "caption": "a red kite flies"},
        {"image_id": 2, "caption": "two boats rest"},
    ]
    references = {
        "images": [
            {"id": 1, "file_name": "x/kite.jpg"},
            {"id": 2, "file_name": "COCO_val2014_000000000002.jpg"},
        ],
        "annotations": [
            {"id": 5, "image_id": number, "caption": caption}
            for number, caption in ((1, "A red kite flies."), (1, "A kite."), (2, "Two boats."), (3, "No."))
        ],
    }
    (tmp_path / "predictions.json").write_text(json.dumps(predictions))
    (tmp_path / "references.json").write_text(json.dumps(references))
    return tmp_path


def test_captions_of_coco_s_files(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "captions",
        str(files / "predictions.json"),
        str(files / "references.json"),
        "--java",
        "never",
    ]
    assert main([*arguments, "-o", str(files / "out.json")]) == 0
    shown = capsys.readouterr()
    assert "cider_d" in shown.out and "not run: meteor, spice" in shown.out
    assert "1 pictures" in shown.err and "left out" in shown.err
    records = {record["name"]: record for record in json.loads((files / "out.json").read_text())}
    assert records["bleu_1"]["n"] == 2 and records["bleu_1"]["low"] is not None
    assert records["meteor"]["value"] is None and records["meteor"]["reason"]


@pytest.mark.parametrize(
    "name,content,message",
    [
        ("predictions", None, "no such file"),
        ("predictions", "{", "not JSON"),
        ("predictions", "[]", "no captions"),
        ("predictions", '[{"image_id": 1}]', "entry 0 has no image_id and caption"),
        ("predictions", '[{"image_id": 1, "caption": 3}]', "not a text"),
        ("predictions", '{"1": ["a kite", "a boat"]}', "more than one caption"),
        ("predictions", '{"9": "a kite"}', "no caption of 1 predicted pictures (first: 9)"),
        ("references", '{"annotations": 3}', "annotations are no list"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_line(
    files: Path, capsys: pytest.CaptureFixture[str], name: str, content: str | None, message: str
) -> None:
    path = files / f"{name}.json"
    if content is None:
        path.unlink()
    else:
        path.write_text(content)
    status = main(
        ["captions", str(files / "predictions.json"), str(files / "references.json"), "--java", "never"]
    )
    shown = capsys.readouterr()
    assert status == 1 and message in shown.err and shown.err.count("\n") <= 2 and shown.out == ""


def test_captions_find_their_pictures(files: Path) -> None:
    file = read_captions(files / "references.json")
    names = [
        "a/kite.jpg",
        "kite.png",
        "COCO_val2014_000000000002.jpg",
        "000000000003.jpg",
        "3.png",
        "other.jpg",
    ]
    found = [file.captions.get(image_id, [])[:1] for image_id in ids_of_files(names, file)]
    assert found == [["A red kite flies."], ["A red kite flies."], ["Two boats."], ["No."], ["No."], []]


def test_pictures_of_two_folders(
    tmp_path: Path, drawn_test, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    pictures, captions, _ = drawn_test
    for folder, flip in (("real", False), ("generated", True)):
        (tmp_path / folder).mkdir()
        for number, picture in enumerate(pictures):
            image = picture.flip(2) if flip else picture
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / folder / f"{number}.png")
    save_clip(build_clip(TINY_CLIP, captions, seed=0), tmp_path / "judge")
    (tmp_path / "captions.json").write_text(
        json.dumps({str(n): several for n, several in enumerate(captions)})
    )
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    arguments = [
        "images", str(tmp_path / "generated"), str(tmp_path / "real"), "--captions", str(tmp_path / "captions.json"),
        "--clip", str(tmp_path / "judge"), "--image-size", "32", "--blur-radii", "0", "1", "--frechet-resamples", "5",
        "-o", str(tmp_path / "out.json"),
    ]  # fmt: skip
    assert main(arguments) == 0
    shown = capsys.readouterr()
    assert "120 generated pictures have several captions" in shown.err
    records = {record["name"]: record for record in json.loads((tmp_path / "out.json").read_text())}
    assert records["generated.frechet_judge"]["value"] > 0
    assert records["generated.clip_score_judge"]["n"] == records["real.r_precision_judge"]["n"] == 120
    assert "download weights-inception" in records["generated.fid"]["reason"]
    left = [path.name for path in (tmp_path / "cache" / "diptych-eval").iterdir()]
    assert left == ["ended"], "what was kept for a rerun is gone"

    (tmp_path / "generated" / "7.png").write_bytes(b"")
    assert main(arguments) == 1
    assert "7.png: the file is empty" in capsys.readouterr().err
    assert main([*arguments, "--max-damaged", "0.05", "--store", str(tmp_path / "kept")]) == 0
    assert "left out: generated 7.png" in capsys.readouterr().err
    records = {record["name"]: record for record in json.loads((tmp_path / "out.json").read_text())}
    assert records["generated.clip_score_judge"]["n"] == 119 and list((tmp_path / "kept").iterdir())


@pytest.mark.parametrize(
    "arguments,message",
    [
        (["--clip", "none"], "no such folder"),
        (["--clip", "RN5:weights.pt"], "no model 'RN5'"),
        (["--inception", "none.pth"], "none.pth is missing; download"),
        (["--words", "none.json"], "no such word lists"),
        (["--negatives", "0"], "--negatives: must be at least 1"),
        (["--batch-size", "257"], "--batch-size: must be at most 256"),
        (["-o", "."], ".: is a folder; give the name of a file"),
        (["-o", ""], ".: is a folder; give the name of a file"),
        (["-o", "nowhere/out.json"], "there is no folder nowhere"),
        ([], "nothing to measure pictures with"),
    ],
)
def test_wrong_options_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    assert main(["images", str(tmp_path), str(tmp_path), *arguments]) == 1
    shown = capsys.readouterr()
    assert message in shown.err and shown.err.startswith("diptych-eval: ") and shown.err.count("\n") == 1


def test_a_failed_write_costs_neither_the_table_nor_the_embeddings(
    files: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    deleted: list[bool] = []

    def measure(options) -> list[Figure]:
        options.when_written = lambda: deleted.append(True)
        return [Figure("bleu_1", 0.25, 4)]

    def full(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(app, "_captions", measure)
    command = ["captions", "p.json", "r.json", "-o", str(files / "out.json")]
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        assert main(command) == 1
    shown = capsys.readouterr()
    assert "bleu_1" in shown.out and deleted == []
    assert shown.err == f"diptych-eval: {files}/out.json could not be written (No space left on device)\n"
    assert {path.name for path in files.iterdir()} == {"predictions.json", "references.json"}
    assert main(command) == 0 and deleted == [True]


def test_embeddings_of_runs_side_by_side_go_with_the_last(tmp_path: Path) -> None:
    names = ["shared.npy", "own.npy", "other.npy", "killed.npy"]
    shared, own, other, killed = (tmp_path / name for name in names)
    first, second = SharedStore(tmp_path), SharedStore(tmp_path)
    for path in (shared, own, other, killed):
        path.touch()
    first.forget([shared, own])
    assert shared.exists() and own.exists()
    second.forget([shared, other])
    assert {path.name for path in tmp_path.iterdir()} == {"ended", "killed.npy"}
    SharedStore(tmp_path).forget([killed])
    assert [path.name for path in tmp_path.iterdir()] == ["ended"] and not (tmp_path / "ended").read_text()


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 8 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory\nframe"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 8 GiB"),
    ],
)
def test_too_little_memory_is_one_line(
    error: Exception, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(options) -> list[Figure]:
        raise error

    monkeypatch.setattr(app, "_captions", measure)
    assert main(["captions", "p.json", "r.json"]) == 1
    said = capsys.readouterr().err
    assert "not enough memory" in said and "smaller --resamples" in said and said.count("\n") == 1


def test_other_errors_are_not_taken_for_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(options) -> list[Figure]:
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(app, "_captions", measure)
    with pytest.raises(RuntimeError, match="shapes"):
        main(["captions", "p.json", "r.json"])


def test_the_largest_batch_is_a_file_of_the_store() -> None:
    assert app.MOST["batch_size"] == CHUNK


def test_a_clip_s_path_may_hold_an_equals_sign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from diptych.eval.scorers import clip

    monkeypatch.setattr(clip, "load_clip", lambda folder, device: str(folder))
    monkeypatch.setattr(clip, "load_pretrained_clip", lambda architecture, weights, device: f"{architecture} {weights}")
    folder = tmp_path / "lr=1"
    folder.mkdir()
    for spec, expected in {
        f"{folder}": ("lr=1", str(folder)),
        f"judge={folder}": ("judge", str(folder)),
        "ViT-B-32:a=b.pt": ("clip", "ViT-B-32 a=b.pt"),
        "b32=ViT-B-32:a=b.pt": ("b32", "ViT-B-32 a=b.pt"),
    }.items():
        assert app._read_clip(spec, "cpu") == expected
    with pytest.raises(UserError, match="no such folder"):
        app._read_clip(f"{tmp_path}/none=1", "cpu")


def test_help_and_usage() -> None:
    for arguments, status in (
        (["--help"], 0),
        (["captions", "--help"], 0),
        (["images", "--help"], 0),
        (["answers", "--help"], 0),
        ([], 2),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "diptych.eval.command.app", *arguments],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == status, done.stderr
        assert "diptych-eval" in done.stdout + done.stderr and "%%" not in done.stdout


@pytest.mark.skipif(not COCO_MINI.is_dir(), reason=f"{COCO_MINI} is not here")
def test_photographs_against_others(tmp_path: Path, drawn) -> None:
    """Folders of COCO's photographs of all sizes, captions by their numbers."""
    save_clip(build_clip(TINY_CLIP, drawn[1], seed=0), tmp_path / "judge")
    generated = tmp_path / "generated"
    generated.mkdir()
    for path in sorted((COCO_MINI / "val2017").iterdir())[:20]:
        shutil.copy(path, generated)
    status = main(
        ["images", str(generated), str(COCO_MINI / "val2017"), "--clip", str(tmp_path / "judge"), "--image-size", "64",
         "--captions", str(COCO_MINI / "annotations" / "captions_val2017.json"), "--negatives", "9",
         "--frechet-resamples", "2", "--resamples", "20", "--store", str(tmp_path), "-o", str(tmp_path / "out.json")]
    )  # fmt: skip
    assert status == 0
    records = {record["name"]: record for record in json.loads((tmp_path / "out.json").read_text())}
    assert records["generated.r_precision_judge"]["n"] == 20
    assert records["real.r_precision_hard_nouns_judge"]["n"] > 20
    assert records["generated.frechet_judge"]["detail"] == "against 79 pictures"
