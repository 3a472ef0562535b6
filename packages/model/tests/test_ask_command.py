"""`diptych ask` and `diptych verify`: what they print, which questions go with which pictures, what is wrong in one line."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from diptych.model import Diptych
from diptych.model.command import app

pytestmark = pytest.mark.parametrize("parts", ["prefix"], indirect=True)
QUESTIONS = [
    "is there a red kite?",
    "how many boats are there?",
    "what color is the house?",
]  # as in conftest.py
KITE, BOATS, HOUSE = QUESTIONS


@pytest.fixture
def run(capsys, monkeypatch, answering_package: Path, tmp_path: Path):
    """Run a command line in an empty folder: (status, lines of stdout, stderr)."""
    monkeypatch.setenv("DIPTYCH_MODEL", str(answering_package))
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str, stdin: str = "") -> tuple[int, list[str], str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        with pytest.raises(SystemExit) as ended:
            app.main([*arguments, "--precision", "float32"])
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out.splitlines(), err

    return call


@pytest.fixture
def photos(tmp_path: Path, pictures) -> list[str]:
    """Four files of pictures, one of them in a folder below, beside a text."""
    folder = tmp_path / "photos"
    (folder / "below").mkdir(parents=True)
    for number, image in enumerate(pictures[:3]):
        image.save(folder / f"{number}.png")
    pictures[4].save(folder / "below" / "COCO_val2014_000000000042.png")
    (folder / "notes.txt").write_text("no picture")
    return ["photos/0.png", "photos/1.png", "photos/2.png", "photos/below/COCO_val2014_000000000042.png"]


def write(name: str, content: object) -> str:
    Path(name).write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return name


def test_one_question_about_files_and_folders(run, photos, answering: Diptych) -> None:
    answers = [str(answer) for answer in answering.answer(photos, KITE)]
    expected = [f"{name}\t{answer}" for name, answer in zip(photos, answers, strict=True)]
    status, lines, err = run("ask", "photos", "photos/0.png", KITE, "--batch-size", "2")
    assert (status, lines, err) == (0, [*expected, expected[0]], "diptych: photos: left out 1 .txt\n")


def test_ranked_answers(run, photos, answering: Diptych) -> None:
    [answer] = answering.answer(photos[1], BOATS, most=3)
    status, lines, _ = run("ask", photos[1], BOATS, "--most", "3")
    expected = [f"{photos[1]}\t{one.answer}\t{one.probability:.4f}" for one in answer.ranked]
    assert (status, lines) == (0, expected) and len(lines) == 3
    status, lines, _ = run("ask", photos[1], BOATS, "--most", "3", "--json")
    [found] = map(json.loads, lines)
    assert (found["image"], found["question"], found["answer"]) == (photos[1], BOATS, answer.text)
    assert [one["answer"] for one in found["answers"]] == [one.answer for one in answer.ranked]
    shares = [one.probability for one in answer.ranked]
    assert [one["probability"] for one in found["answers"]] == pytest.approx(shares, abs=1e-5)
    assert found["probability"] == found["answers"][0]["probability"]
    assert "answers" not in json.loads(run("ask", photos[1], BOATS, "--json")[1][0])


def test_questions_one_a_line(run, photos, answering: Diptych) -> None:
    file = write("questions.txt", f"\ufeff{KITE}\n\n  {BOATS}\r\n")
    expected = [
        f"{name}\t{text}\t{answering.answer(name, text)[0]}" for name in photos[:2] for text in (KITE, BOATS)
    ]
    assert run("ask", *photos[:2], "--questions", file) == (0, expected, "")


def test_pictures_from_stdin(answering_package: Path, photos, tmp_path: Path) -> None:
    """An answer comes before the next picture is named."""
    command = [sys.executable, "-m", "diptych.model.command.app", "ask", "-", KITE]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "DIPTYCH_MODEL": str(answering_package)},
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        for name in photos[:2]:
            process.stdin.write(f"{name}\n")
            process.stdin.flush()
            assert process.stdout.readline().startswith(f"{name}\t")
        process.stdin.close()
        assert process.wait(120) == 0


@pytest.mark.parametrize("form", ["list", "vqa"])
def test_results_as_vqa_has_them(run, photos, answering: Diptych, form: str) -> None:
    """The pictures by name or by number, in a folder that is named; several questions about each."""
    rows: list[dict]
    if form == "list":
        images = ["1.png", "below/COCO_val2014_000000000042.png", "1.png", "photos/0.png"]
        rows = [
            {"question_id": f"q{number}", "image": image, "question": QUESTIONS[number % 3]}
            for number, image in enumerate(images)
        ]
        file = write("questions.json", rows)
        files = [photos[1], photos[3], photos[1], photos[0]]
    else:
        rows = [
            {"question_id": 42000 + number, "image_id": image, "question": QUESTIONS[number % 3]}
            for number, image in enumerate([42, "000000000042", 2])
        ]
        file = write("questions.json", {"info": {}, "questions": rows})
        files = [photos[3], photos[3], photos[2]]
    status, lines, _ = run("ask", "photos", "--questions", file)
    found = {row["question_id"]: row for row in map(json.loads, lines)}
    assert status == 0 and len(lines) == len(rows)
    for row, name in zip(rows, files, strict=True):
        answer = str(answering.answer(name, row["question"])[0])
        assert found[row["question_id"]] == {"question_id": row["question_id"], "answer": answer}
    status, lines, _ = run("ask", "photos", "--questions", file, "--json")
    for row in map(json.loads, lines):
        assert row["answer"] == found[row["question_id"]]["answer"] and 0 < row["probability"] < 1
        assert row["image"] in files and row["question"] in QUESTIONS


def test_pictures_beside_the_file(run, photos, answering: Diptych) -> None:
    file = write("photos/questions.json", [{"id": 7, "image": "below/../0.png", "question": KITE}])
    status, lines, err = run("ask", "--questions", file)
    assert (status, err) == (0, "")
    assert json.loads(lines[0]) == {"question_id": 7, "answer": str(answering.answer(photos[0], KITE)[0])}


def test_each_picture_is_seen_once(run, photos, monkeypatch) -> None:
    from diptych.model.packaged import unified

    seen = []
    own = unified.GridTokenizer.features
    monkeypatch.setattr(
        unified.GridTokenizer, "features", lambda self, images: seen.append(len(images)) or own(self, images)
    )
    rows = [
        {"question_id": number, "image": f"{number % 2}.png", "question": QUESTIONS[number % 3]}
        for number in range(40)
    ]
    status, lines, _ = run("ask", "photos", "-q", write("many.json", rows))
    assert status == 0 and len(lines) == 40 and sum(seen) == 2


def test_a_picture_named_by_half_a_character_is_missing_alone(run, photos, answering: Diptych) -> None:
    rows = [
        {"question_id": 1, "image": "\ud83d.png", "question": KITE},
        {"question_id": 2, "image": "0.png", "question": KITE},
    ]
    for folder in ("photos", None):
        file = write("photos/halves.json", rows)
        arguments = ["ask", *([folder] if folder else []), "-q", file, "--json"]
        status, lines, _ = run(*arguments)
        wrong, right = map(json.loads, lines)
        assert (status, wrong["question_id"], right["question_id"]) == (1, 1, 2)
        assert "picture \ufffd.png is not" in wrong["error"]
        assert right["answer"] == str(answering.answer(photos[0], KITE)[0])


def test_what_fails_alone(run, photos) -> None:
    """A picture that cannot be read; of a file, also a question without its picture or with unknown words."""
    Path(photos[1]).write_bytes(Path(photos[1]).read_bytes()[:60])
    status, lines, err = run("ask", *photos[:3], "nowhere.png", KITE)
    assert status == 1 and [line.split("\t")[0] for line in lines] == [photos[0], photos[2]]
    assert "photos/1.png: the image is damaged" in err and "nowhere.png: no such image file" in err
    status, lines, _ = run("ask", photos[1], photos[0], KITE, "--json")
    assert status == 1 and "damaged" in json.loads(lines[0])["error"] and "answer" in json.loads(lines[1])
    rows = [
        {"question_id": 1, "image": "0.png", "question": "is there a zeppelin?"},
        {"question_id": 2, "image": "0.png", "question": KITE},
        {"question_id": 3, "image": "9.png", "question": KITE},
        {"question_id": 4, "image": "1.png", "question": KITE},
        {"question_id": 5, "image": "2.png", "question": "is there a zeppelin?"},
    ]
    status, lines, err = run("ask", "photos", "-q", write("some.json", rows))
    assert status == 1 and [json.loads(line)["question_id"] for line in lines] == [2]
    assert "question 1: " in err and "question 5: " in err and err.count("never read: zeppelin") == 2
    assert (
        "question 3: picture 9.png is not among the pictures" in err and "1.png: the image is damaged" in err
    )
    status, lines, _ = run("ask", "photos", "-q", "some.json", "--json")
    found = list(map(json.loads, lines))
    assert {row.get("question_id") for row in found if "error" in row} == {1, 3, 5, None} and len(found) == 5


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["photos/0.png", ""], 1, "has no word"),
        (["photos/0.png", "?"], 1, "has no word"),
        (["photos/0.png", "is there a zeppelin?"], 1, "has words that the model has never read: zeppelin"),
        (["photos/0.png", "is there " + "a red kite " * 9 + "?"], 1, "word pieces, this model reads 18"),
        (["photos/0.png", KITE, "--model", "nowhere"], 1, "nowhere: no such folder"),
        (["photos/0.png", KITE, "--most", "0"], 2, "--most"),
        (["photos/0.png"], 2, "the question comes last"),
        ([KITE], 2, "give pictures and a question"),
        ([], 2, "give pictures and a question"),
        ([KITE, "photos/0.png"], 2, "the question comes last, and photos/0.png is a file"),
        (["below", KITE], 1, "no picture below this folder"),
        (["photos", "-q", "nowhere.txt"], 1, "nowhere.txt: the questions cannot be read (No such file"),
        (["photos", "-q", "blank.txt"], 1, "blank.txt: no question in it"),
        (["photos", "-q", "latin.txt"], 1, "latin.txt: no UTF-8"),
        (["-q", "lines.txt"], 2, "name the pictures"),
        (["photos", "-q", "unknown.txt"], 1, "never read: zeppelin"),
        (["photos", "-q", "cut.json"], 1, "cut.json: not valid JSON"),
        (["photos", "-q", "none.json"], 1, "none.json: no list of questions"),
        (["photos", "-q", "twice.json"], 1, "entries 0 and 1 both have question_id 5"),
        (["photos", "-q", "number.json"], 1, "entry 0 is no object"),
        (["photos", "-q", "silent.json"], 1, "entry 0 (question_id 5) has no question"),
        (["photos", "-q", "blind.json"], 1, "entry 0: image or image_id is neither"),
        (["photos", "-q", "strange.json"], 1, "entry 0: question_id is neither"),
        (
            ["photos", "-q", "elsewhere.json"],
            1,
            "none of the 1 questions has its picture here: picture 9.png",
        ),
        (["-q", "elsewhere.json"], 1, "picture 9.png is not in the folder of elsewhere.json"),
        (["-q", "long.json"], 1, "is not in the folder of long.json"),
        (["photos", "other", "a" * 300, "-q", "same.json"], 1, "picture 0.png may be other/0.png"),
        (["-", "-q", "elsewhere.json"], 2, "give their folder instead of -"),
        (["photos", "other", "-q", "same.json"], 1, "picture 0.png may be other/0.png or photos/0.png"),
    ],
)
def test_what_is_wrong_is_one_line(run, photos, arguments: list[str], status: int, message: str) -> None:
    Path("below").mkdir()
    Path("other").mkdir()
    Path("photos/notes.txt").unlink()
    Path("other/0.png").write_bytes(Path(photos[0]).read_bytes())
    Path("latin.txt").write_bytes("café?".encode("latin-1"))
    row = {"question_id": 5, "image": "0.png", "question": KITE}
    for name, content in {
        "blank.txt": " \n\n",
        "lines.txt": KITE,
        "unknown.txt": f"{KITE}\nis there a zeppelin?\n",
        "cut.json": '[{"question_id": 5',
        "none.json": {"annotations": []},
        "twice.json": [row, {**row, "question_id": "005"}],
        "number.json": [5],
        "silent.json": [{"question_id": 5, "image": "0.png"}],
        "blind.json": [{"question_id": 5, "question": KITE}],
        "strange.json": [{**row, "question_id": [5]}],
        "elsewhere.json": [{**row, "image": "9.png"}],
        "same.json": [row],
        "long.json": [{**row, "image": "a" * 300}],
    }.items():
        write(name, content)
    found, lines, err = run("ask", *arguments)
    message_on_one_line = " ".join(err.replace("│", " ").split())
    assert found == status and message in message_on_one_line and "Traceback" not in err and lines == []
    assert status == 2 or len(err.splitlines()) == 1


def test_without_an_answer_head(run, photos, package: Path) -> None:
    rows = [{"question_id": 1, "image": "0.png", "question": KITE}]
    for asked in (["photos/0.png", KITE], ["photos", "-q", write("one.json", rows)]):
        status, lines, err = run("ask", *asked, "--model", str(package))
        assert (status, lines) == (1, []) and "this package has no answer head" in err.splitlines()[-1]
    status, lines, err = run("verify", *photos[:2], "a red kite.", "--model", str(package))
    assert (status, lines, err.count("\n")) == (1, [], 1) and "no head for pairs of pictures" in err


def test_statements_about_two_pictures(run, photos, answering: Diptych) -> None:
    statement = "there is a red kite."
    [expected] = answering.verify((photos[0], photos[1]), statement)
    assert run("verify", photos[0], photos[1], statement) == (0, [str(expected)], "")
    found = json.loads(run("verify", photos[0], photos[1], statement, "--json")[1][0])
    assert (found["left"], found["right"], found["statement"]) == (photos[0], photos[1], statement)
    assert found["true"] is expected.true
    assert found["probability"] == pytest.approx(expected.probability, abs=1e-5)
    for arguments, message in (
        ((photos[0], "nowhere.png", statement), "nowhere.png: no such image file"),
        (
            (photos[0], photos[1], "a zeppelin."),
            "the statement 'a zeppelin.' has words that the model has never read",
        ),
        ((photos[0], photos[1], " "), "has no word"),
    ):
        status, lines, err = run("verify", *arguments)
        assert (status, lines, err.count("\n")) == (1, [], 1) and message in err
    assert run("verify", photos[0], statement)[0] == 2


def test_names_that_are_no_text(run, photos, answering: Diptych) -> None:
    name = os.fsdecode(b"photos/caf\xe9.png")
    try:
        Path(name).write_bytes(Path(photos[0]).read_bytes())
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    status, lines, _ = run("ask", name, KITE, "--json")
    found = json.loads(lines[0])
    assert status == 0 and found["image"] == "photos/caf\ufffd.png"
    assert bytes.fromhex(found["image_bytes"]) == b"photos/caf\xe9.png"
    assert found["answer"] == str(answering.answer(photos[0], KITE)[0])
