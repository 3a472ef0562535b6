"""What people give a study: tables of spreadsheets, ids, odd options, a pipe that closes."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from diptych.eval.errors import UserError
from diptych.eval.study.captions import match_pictures, read_captions
from diptych.eval.study.command import main
from diptych.eval.study.pictures import find_pictures
from diptych.eval.study.store import Study


def table(folder: Path, text: str | bytes, name: str = "c.csv") -> Path:
    (folder / name).write_bytes(text.encode() if isinstance(text, str) else text)
    return folder / name


def test_a_cell_may_hold_line_breaks_and_separators(tmp_path: Path) -> None:
    for end in ("\n", "\r\n", "\r"):
        text = f'image,caption{end}1,"a cat{end}on a mat"{end}2,"one, ""two"""{end}3,a\u2028b\x0bc{end}{end}'
        assert read_captions(table(tmp_path, text)) == {
            "1": "a cat on a mat",
            "2": 'one, "two"',
            "3": "a b c",
        }


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("name", ["c.csv", "c.tsv", "c.txt", "c.CSV"])
def test_separators(tmp_path: Path, separator: str, name: str) -> None:
    text = (
        separator.join(("Image", "who", " Caption ")) + "\n" + separator.join(("a.png", "me", "a cat, a dog"))
    )
    if separator == ",":
        text = text.replace("a cat, a dog", '"a cat, a dog"')
    assert read_captions(table(tmp_path, text, name)) == {"a": "a cat, a dog"}


def test_excels_line_that_names_the_separator(tmp_path: Path) -> None:
    assert read_captions(table(tmp_path, "sep=;\r\nimage;caption\r\n1;a cat\r\n")) == {"1": "a cat"}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
@pytest.mark.parametrize("packed", [False, True])
def test_encodings_that_say_what_they_are(tmp_path: Path, encoding: str, packed: bool) -> None:
    content = "image,caption\n1,ein Käfer\n".encode(encoding)
    path = table(tmp_path, gzip.compress(content) if packed else content, "c.csv.gz" if packed else "c.csv")
    assert read_captions(path) == {"1": "ein Käfer"}


def test_encodings_that_do_not(tmp_path: Path) -> None:
    path = table(tmp_path, "image,caption\n1,ein Käfer\n".encode("latin-1"))
    with pytest.raises(
        UserError,
        match=r"c\.csv: not in UTF-8 \(byte 0xe4 in line 2\); save it as UTF-8 or .*--encoding.*latin-1",
    ):
        read_captions(path)
    assert read_captions(path, "latin-1") == read_captions(path, "cp1252") == {"1": "ein Käfer"}
    with pytest.raises(UserError, match="nowhere: no encoding of that name"):
        read_captions(path, "nowhere")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "image,caption\n7,three, four\n",
            "line 2 has 3 cells in 2 columns; put a caption with ',' into quotation marks",
        ),
        ("image,caption\n7\n", r"line 2 has no image \(or image_id\) and caption"),
        ("image,caption\n,a cat\n", "line 2 has no image .or image_id. and caption: the image is '', empty"),
        ('image,caption\n7,"a cat\n8,a dog\n', r"no readable captions \(line 3: unexpected end of data"),
        ("7,a cat\n", "no columns image and caption in its first line '7,a cat'"),
        ("", "no columns image and caption"),
        ("image,caption\n", "holds no captions"),
        (b"PK\x03\x04", "Excel workbook; .*export it as CSV"),
        ("image,caption\n7,a cat\n007.png,a dog\n", r"007 has two captions \(line 2 and line 3\)"),
        ("image,caption\na/1.png,a cat\nb/1.png,a dog\n", r"1 has two captions \(line 2 and line 3\)"),
        (f"image,caption\n1,{'x' * 200_000}\n", "no readable captions .*field larger"),
    ],
)
def test_tables_that_cannot_be_read(tmp_path: Path, text: str | bytes, words: str) -> None:
    with pytest.raises(UserError, match=rf"c\.csv: .*{words}"):
        read_captions(table(tmp_path, text))


def test_a_picture_that_json_names_twice(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"c\.json: .*the key '7' is there twice"):
        read_captions(table(tmp_path, '{"7": "a cat", "7": "a dog"}', "c.json"))


@pytest.mark.parametrize("image", ["null", "true", "1.5", "[]", "{}", '""', "NaN", "1e60", "1" * 5000])
def test_json_whose_images_are_none(tmp_path: Path, image: str) -> None:
    with pytest.raises(UserError, match=r"c\.json: "):
        read_captions(table(tmp_path, f'[{{"image_id": {image}, "caption": "a cat"}}]', "c.json"))


def test_json_of_other_forms_and_halves_of_characters(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    coco = {"images": [], "annotations": [{"image_id": 7.0, "caption": "a cat \ud83d"}]}
    assert read_captions(table(tmp_path, json.dumps(coco), "c.json")) == {"7": "a cat \ufffd"}
    assert "halves of characters are replaced in 1 captions" in capsys.readouterr().err


def test_numbers_are_pictures_however_they_are_written(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "000000000139.png")
    pictures = find_pictures(tmp_path)
    for key in ("139", "000000000139", "139.0"):
        assert match_pictures({key: "a cat"}, pictures, tmp_path) == {key: tmp_path / "000000000139.png"}
    Image.new("RGB", (8, 8)).save(tmp_path / "0139.png")
    pictures = find_pictures(tmp_path)
    assert match_pictures({"0139": "a cat"}, pictures, tmp_path) == {"0139": tmp_path / "0139.png"}
    with pytest.raises(UserError, match=r"000000000139\.png and 0139\.png are both picture 139"):
        match_pictures({"139": "a cat"}, pictures, tmp_path)


def study_arguments(folder: Path) -> list[str]:
    for system in ("ours", "theirs"):
        (folder / system).mkdir()
        for number in range(4):
            Image.new("RGB", (8, 8)).save(folder / system / f"{number:04}.png")
    rows = "".join(f'{number},"a red dog\non a mat"\r\n' for number in range(4))
    captions = table(folder, f"image,caption\r\n{rows}")
    systems = [f"--system={name}={folder / name}" for name in ("ours", "theirs")]
    return ["create", str(folder / "study.db"), "--captions", str(captions), *systems]


def test_a_study_of_a_spreadsheet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*study_arguments(tmp_path), "--seed", str(2**63 - 1)]) == 0
    assert "4 of 4 captions have a picture of every system" in capsys.readouterr().out
    shown = {
        row.item.caption for row in Study(tmp_path / "study.db").answered() if row.item.kind == "semantics"
    }
    assert "a red dog on a mat" in shown


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--seed", "-1"), "--seed: a whole number from 0 to 2**63 - 1, is -1"),
        (("--seed", str(2**63)), "--seed: a whole number from 0 to 2**63 - 1"),
        (("--annotators", "0"), "--annotators"),
        (("--annotators", str(10**12)), "--annotators can be 10000 at most"),
        (("--checks", str(10**12)), "--checks 1000"),
        (("--items", "0"), "--items"),
        (("--encoding", "nowhere"), "no encoding of that name"),
    ],
)
def test_values_of_options(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: tuple[str, str], message: str
) -> None:
    assert main([*study_arguments(tmp_path), *option]) == 1
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
    assert not (tmp_path / "study.db").exists()


def test_titles_with_halves_of_characters(tmp_path: Path) -> None:
    assert main([*study_arguments(tmp_path), "--title", "Trial \ud83d"]) == 0
    assert Study(tmp_path / "study.db").title == "Trial \ufffd"


def test_a_closed_pipe_ends_quietly(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "diptych.eval.study", *study_arguments(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        said = process.stderr.read()
        assert (process.wait(), said) == (141, b"")
    assert len(Study(tmp_path / "study.db").annotators()) == 10
