"""Files of captions as people have them, for `diptych-eval`: ids, encodings, halves of characters, names; and its options."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from diptych.eval.command.app import main
from diptych.eval.command.coco import ids_of_files, read_captions, read_predictions
from diptych.eval.errors import UserError


def write(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


def measured(folder: Path, predictions: Any, references: Any) -> int:
    files = [str(write(folder / "p.json", predictions)), str(write(folder / "r.json", references))]
    return main(["captions", *files, "--java", "never", "--resamples", "5", "-o", str(folder / "o.json")])


# --- ids


@pytest.mark.parametrize("form", [int, str, float, lambda n: f"{n:012d}", lambda n: f"{n}.0"])
def test_predictions_find_their_references_however_ids_are_written(
    tmp_path: Path, form: Callable[[int], Any]
) -> None:
    predictions = [{"image_id": form(n), "caption": "a kite"} for n in (1, 139)]
    references = {"annotations": [{"image_id": n, "caption": "a red kite"} for n in (1, "000000000139", 1.0)]}
    assert measured(tmp_path, predictions, references) == 0
    records = {record["name"]: record for record in json.loads((tmp_path / "o.json").read_text())}
    assert records["bleu_1"]["n"] == 2
    assert read_captions(tmp_path / "r.json").captions == {"1": ["a red kite"] * 2, "139": ["a red kite"]}


def test_one_picture_under_two_spellings_has_two_captions(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"1 pictures have more than one caption \(first: 1\)"):
        read_predictions(write(tmp_path / "p.json", {"1": "a kite", "001": "a dog"}))


@pytest.mark.parametrize("value", [None, True, 1.5, [], {}, "", float("nan"), 1e60, 10**90])
def test_ids_that_are_none(tmp_path: Path, capsys: pytest.CaptureFixture[str], value: Any) -> None:
    assert measured(tmp_path, [{"image_id": value, "caption": "a kite"}], {"1": "a kite"}) == 1
    said = capsys.readouterr().err
    assert "p.json: entry 0 has the id" in said and said.count("\n") == 1


# --- files


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
@pytest.mark.parametrize("packed", [False, True])
def test_encodings_and_gzip(tmp_path: Path, encoding: str, packed: bool) -> None:
    content = json.dumps({"1": "ein Käfer"}, ensure_ascii=False).encode(encoding)
    (tmp_path / "c.json").write_bytes(gzip.compress(content) if packed else content)
    assert read_captions(tmp_path / "c.json").captions == {"1": ["ein Käfer"]}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not JSON: the file is empty"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of git-lfs"),
        (b"PK\x03\x04", "a ZIP archive"),
        (b"<html>", "not JSON: a web page"),
        (b'{"1": "a cat", "1": "a dog"}', "the key '1' is there twice"),
        (b"\x1f\x8bbroken", "packed by gzip, and damaged"),
        (b'{"1": "a"}\n{"2": "b"}\n', "one JSON value a line"),
        ('{"1": "Käfer"}'.encode("latin-1"), "not in UTF-8 .byte 0xe4 in line 1.; save it as UTF-8"),
        (b"[" * 200_000, "brackets within brackets"),
        (b'{"1": ' + b"1" * 5000 + b"}", "not JSON .*digits"),
        (b'[{"image": "a.jpg", "caption": "x"}]', "no image_id and caption but image and caption, as BLIP's"),
        (b'[{"image_id": 1, "bbox": []}]', "no image_id and caption but a box, as COCO's instances"),
        (b'{"images": [{"sentences": []}]}', "Karpathy's form"),
        (b"[3]", "entry 0 has no image_id and caption but is 3"),
        (b"3", "neither an object nor a list"),
    ],
)
def test_what_a_file_is_instead(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "c.json").write_bytes(content)
    with pytest.raises(UserError, match=rf"c\.json: .*{words}"):
        read_captions(tmp_path / "c.json")


def test_halves_of_characters_are_replaced_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = {"1": "a kite \ud83d", "2": "a \ud83d\ude00 kite", "3": "\udc80"}
    assert measured(tmp_path, broken, {"1": "a kite", "2": ["a kite \udfff"], "3": "a dog"}) == 0
    said = capsys.readouterr().err
    assert "p.json: halves of characters are replaced in 2 captions" in said
    assert "r.json: halves of characters are replaced in 1 captions" in said
    assert read_captions(tmp_path / "p.json").captions["1"] == ["a kite \ufffd"]


# --- names


def listing(**names: str) -> dict[str, Any]:
    """A caption file whose pictures have the captions of their names."""
    rows = list(names.items())
    return {
        "images": [{"id": n, "file_name": name} for n, (name, _) in enumerate(rows)],
        "annotations": [{"image_id": n, "caption": text} for n, (_, text) in enumerate(rows)],
    }


def found(folder: Path, content: Any, *names: str) -> list[str | None]:
    file = read_captions(write(folder / "c.json", content))
    several = [file.captions.get(image_id) for image_id in ids_of_files(names, file)]
    return [texts[0] if texts else None for texts in several]


def test_the_path_decides_between_pictures_of_one_name(tmp_path: Path) -> None:
    both = listing(**{"a/0001.png": "a cat", "b/0001.png": "a dog"})
    assert found(tmp_path, both, "a/0001.png", "b/0001.png") == ["a cat", "a dog"]
    assert found(tmp_path, both, "x/a/0001.jpg", "x/b/0001.jpg") == ["a cat", "a dog"]
    assert found(tmp_path, {"a/0001": "a cat", "b/0001": "a dog"}, "b/0001.png", "a/0001.png") == [
        "a dog",
        "a cat",
    ]
    root = listing(**{"a/0001.png": "a cat", "0001.png": "a dog"})
    assert found(tmp_path, root, "0001.png", "a/0001.png", "b/0001.png") == ["a dog", "a cat", "a dog"]
    # nothing says that the other folder's picture is this one
    assert found(tmp_path, listing(**{"a/0001.png": "a cat"}), "a/0001.png", "b/0001.png") == ["a cat", None]
    assert found(tmp_path, listing(**{"kite.jpg": "a cat", "kite.png": "a dog"}), "kite.png", "kite.jpg") == [
        "a dog",
        "a cat",
    ]


@pytest.mark.parametrize("name", ["0001.png", "c/0001.png", "0001.webp"])
def test_a_picture_that_could_be_two_is_refused(tmp_path: Path, name: str) -> None:
    both = listing(**{"a/0001.png": "a cat", "b/0001.png": "a dog"})
    with pytest.raises(
        UserError, match=r"0001\..*: a/0001\.png and b/0001\.png of the caption file could both be"
    ):
        found(tmp_path, both, name)
    same = listing(**{"a/0001.png": "a cat", "b/0001.png": "a cat"})
    assert found(tmp_path, same, name) == ["a cat"]


@pytest.mark.parametrize(
    ("listed", "stored"),
    [
        ("val\\KITE.PNG", "val/kite.png"),
        ("a%20kite.png", "a kite.png"),
        ("ka\u0308fer.png", "k\u00e4fer.png"),
        ("C:\\data\\val\\7.png", "val/7.png"),
        ("000007.png", "7.png"),
    ],
)
def test_names_that_are_spelled_otherwise(tmp_path: Path, listed: str, stored: str) -> None:
    assert found(tmp_path, listing(**{listed: "a cat"}), stored) == ["a cat"]


def test_pictures_that_share_a_caption_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("seed1", "seed2"):
        (tmp_path / "g" / folder).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "g" / folder / "7.png")
    captions = str(write(tmp_path / "c.json", {"7": "a cat"}))
    main(["images", str(tmp_path / "g"), str(tmp_path / "g"), "--captions", captions])
    said = capsys.readouterr().err
    assert (
        "1 captions belong to several generated pictures each (first: seed1/7.png and seed2/7.png are both picture 7)"
        in said
    )


# --- options


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seed", "-1"], "--seed: a whole number from 0 to 2**63 - 1, is -1"),
        (["--seed", str(2**63)], "--seed: a whole number from 0"),
        (["--device", "gpu"], "--device gpu: not there"),
        (["--device", ""], "--device : not there"),
        (["--device", "cpu:x"], "--device cpu:x: not there"),
        (["--max-damaged", "nan"], "--max-damaged: a share from 0 to 1, is nan"),
        (["--max-damaged", "2"], "--max-damaged: a share from 0 to 1"),
        (["--blur-radii", "nan"], "--blur-radii: must be 0 or more pixels"),
        (["--blur-radii", "0", "inf"], "--blur-radii: must be 0 or more pixels"),
        (["--frechet-resamples", "-1"], "--frechet-resamples: must be at least 0"),
        (["--image-size", "9000"], "--image-size: must be at most 8192"),
        (["--folds", str(10**30)], "--folds: must be at most 2147483647"),
    ],
)
def test_values_of_options(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    assert main(["images", str(tmp_path), str(tmp_path), *arguments]) == 1
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
def test_cuda_without_a_driver(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    assert main(["images", str(tmp_path), str(tmp_path), "--device", "cuda"]) == 1
    said = capsys.readouterr().err
    assert "--device cuda: not there" in said and "use cpu" in said and said.count("\n") == 1


def test_seeds_of_captions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(write(tmp_path / "c.json", {"1": "a kite"}))
    assert main(["captions", file, file, "--java", "never", "--seed", "-1"]) == 1
    assert "--seed: a whole number" in capsys.readouterr().err


def test_a_closed_pipe_ends_quietly(tmp_path: Path) -> None:
    file = str(write(tmp_path / "c.json", {"1": "a kite"}))
    command = [sys.executable, "-m", "diptych.eval.command.app", "captions", file, file, "--java", "never"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        said = process.stderr.read()
        assert (process.wait(), said) == (141, b"")
