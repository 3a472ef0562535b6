"""Question files of others: every form gives the right rows, and what is wrong gives one line that names file and id."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from diptych.features.datasets.question_files import QuestionSource, read_question_files
from diptych.features.errors import UserError
from diptych.features.questions import write_questions

PICTURES = {
    "000000000139": "train",
    "000000000285": "val",
    "dev-850-0-img0": "val",
    "dev-850-0-img1": "val",
    "kite": "test",
    "boat": "test",
}


def save(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def vqa(folder: Path, questions: Sequence[Any], annotations: Sequence[Any] | None, **more: Any) -> list[dict]:
    files = {"questions": save(folder / "questions.json", {"questions": list(questions)})}
    if annotations is not None:
        files["annotations"] = save(folder / "annotations.json", {"annotations": list(annotations)})
    return read_question_files([QuestionSource(form="vqa", **files, **more)], PICTURES)


def question(number: int, image: Any = 139, **more: Any) -> dict[str, Any]:
    return {"question_id": number, "image_id": image, "question": f"What is number {number}?", **more}


def annotation(number: int, image: Any = 139, **more: Any) -> dict[str, Any]:
    answers = [{"answer": "tv", "answer_id": i + 1, "answer_confidence": "yes"} for i in range(9)]
    answers.append({"answer": "television", "answer_id": 10, "answer_confidence": "maybe"})
    return {"question_id": number, "image_id": image, "answers": answers, "answer_type": "other", **more}


def test_vqa_joins_questions_and_annotations_whatever_ids_are_written_as(tmp_path: Path) -> None:
    rows = vqa(
        tmp_path,
        [question(139000), question("285001", "COCO_val2014_000000000285")],
        [annotation(285001.0, "COCO_val2014_000000000285"), annotation("000139000", "139")],
    )
    assert [row["question_id"] for row in rows] == ["139000", "285001"]
    assert [row["image_ids"] for row in rows] == [["000000000139"], ["000000000285"]]
    assert [row["split"] for row in rows] == ["train", "val"]
    assert rows[0]["answers"] == ["tv"] * 9 + ["television"] and rows[0]["kind"] == "other"
    assert write_questions(rows, tmp_path / "vqa.parquet", PICTURES).num_rows == 2


def test_vqa_without_annotations_has_hidden_answers(tmp_path: Path) -> None:
    (row,) = vqa(tmp_path, [question(1)], None, split="test_dev")
    assert row["answers"] == [] and row["kind"] == "unknown" and row["split"] == "test_dev"


def test_an_empty_answer_of_ten_stays_and_ten_empty_ones_are_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = [*["tv"] * 9, ""]
    empty = [{"answer": ""} for _ in range(10)]
    rows = vqa(
        tmp_path,
        [question(n) for n in range(200)],
        [annotation(0, answers=answers), annotation(1, answers=empty), *map(annotation, range(2, 200))],
    )
    assert rows[0]["answers"] == answers and len(rows) == 199
    said = capsys.readouterr().err
    assert f"{tmp_path}/questions.json: left out 1 of 200 questions: 1 whose answers are empty (id 1;" in said


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"question_id": 7}, "whose id occurs before (id 7"),
        (
            {"question_id": None},
            "whose question_id cannot be used (neither a number nor text) (id none, entry 199",
        ),
        ({"question_id": 1.5}, "whose question_id cannot be used (no whole number"),
        ({"question": ""}, "whose question is empty (id 199"),
        ({"question": 5}, "whose question is not text (id 199"),
        ({"image_id": None}, "whose image cannot be used"),
        ("a string", "that are no objects (id none, entry 199"),
    ],
)
def test_a_row_that_cannot_be_used_is_left_out_and_told(
    row: Any, fault: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = {**question(199), **row} if isinstance(row, dict) else row
    rows = vqa(tmp_path, [*map(question, range(199)), bad], None)
    assert len(rows) == 199
    assert fault in capsys.readouterr().err


def test_more_than_one_in_a_hundred_refuses_the_file(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        vqa(tmp_path, [*map(question, range(50)), question(3)], None)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path}/questions.json: 1 of 51 questions cannot be used, more than 1%")
    assert "1 whose id occurs before (id 3;" in message and "\n" not in message


def test_annotations_of_other_questions_or_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"which the annotations do not answer \(id 1"):
        vqa(tmp_path, [question(1)], [annotation(2)])
    with pytest.raises(UserError, match=r"which the annotations have with another image \(id 1"):
        vqa(tmp_path, [question(1)], [annotation(1, 285)])
    with pytest.raises(UserError, match=r"annotations.json: 1 of 2 annotations .*not in the questions file"):
        vqa(tmp_path, [question(1)], [annotation(1), annotation(2)])
    with pytest.raises(UserError, match=r"annotations.json: 1 of 2 annotations .*is answered before"):
        vqa(tmp_path, [question(1)], [annotation(1), annotation("1")])


def test_questions_about_pictures_that_are_not_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [question(1), question(2, 4040), question(3)]
    with pytest.raises(UserError) as caught:
        vqa(tmp_path, asked, None)
    message = str(caught.value)
    assert message.startswith(
        f"{tmp_path}/questions.json: 1 of 3 questions are about pictures that are not there (4040), more than 1%"
    )
    assert "the first is question 2" in message
    rows = vqa(tmp_path, asked, None, missing_share=0.5)
    assert [row["question_id"] for row in rows] == ["1", "3"]
    assert (
        "left out: 1 of 3 questions are about pictures that are not there (4040)" in capsys.readouterr().err
    )


def test_gqa_keeps_structure_and_choices(tmp_path: Path) -> None:
    first = {
        "question": "What color is the sky?",
        "imageId": "139",
        "answer": "blue",
        "isBalanced": True,
        "groups": {"global": "color", "local": "10q-sky_color"},
        "types": {"structural": "query", "semantic": "attr", "detailed": "x"},
        "entailed": ["02930161"],
    }
    binary = {
        **first,
        "answer": "yes",
        "groups": {"global": None, "local": "06-x"},
        "types": {"structural": "verify", "semantic": "obj"},
        "isBalanced": False,
        "entailed": [],
    }
    path = save(tmp_path / "gqa.json", {"02930160": first, "02930161": binary})
    choices = save(tmp_path / "choices.json", {"2930160": {"valid": ["blue", "red"], "plausible": ["blue"]}})
    one, two = read_question_files([QuestionSource("gqa", path, choices=choices)], PICTURES)
    assert one == {
        "question_id": "2930160",
        "question": "What color is the sky?",
        "answers": ["blue"],
        "kind": "query.attr",
        "group": "color",
        "entailed": ["2930161"],
        "choices": {"valid": ["blue", "red"], "plausible": ["blue"]},
        "balanced": True,
        "image_ids": ["000000000139"],
        "split": "train",
    }
    assert (two["kind"], two["group"], two["choices"], two["balanced"]) == ("verify.obj", None, None, False)
    hidden = save(tmp_path / "test.json", {"1": {"question": "Is it?", "imageId": "139", "isBalanced": True}})
    (row,) = read_question_files([QuestionSource("gqa", hidden)], PICTURES)
    assert row["answers"] == [] and row["kind"] == "unknown"
    repeated = save(tmp_path / "twice.json", {"1": first, "001": first})
    with pytest.raises(UserError, match="whose id occurs before"):
        read_question_files([QuestionSource("gqa", repeated)], PICTURES)


def test_visual_genome_is_asked_by_picture(tmp_path: Path) -> None:
    pair = {"qa_id": 986769, "image_id": 139, "question": "What is on the wall?", "answer": "A clock."}
    path = save(tmp_path / "qa.json", [{"id": 139, "qas": [pair]}])
    (row,) = read_question_files([QuestionSource("visual_genome", path, split="train")], PICTURES)
    assert (row["question_id"], row["answers"], row["kind"]) == ("986769", ["A clock."], "what")


def test_nlvr2_has_a_statement_a_line_and_an_undecodable_one_is_named(tmp_path: Path) -> None:
    lines = [
        json.dumps({"sentence": "One dog.", "identifier": f"dev-850-0-{n}", "label": label})
        for n, label in enumerate(("True", "False", True, 0))
    ]
    path = save(tmp_path / "dev.json", "\n".join(lines) + "\n\n")
    rows = read_question_files([QuestionSource("nlvr2", path)], PICTURES)
    assert [row["answers"] for row in rows] == [["true"], ["false"], ["true"], ["false"]]
    assert rows[0]["image_ids"] == ["dev-850-0-img0", "dev-850-0-img1"]
    assert (rows[0]["kind"], rows[0]["split"], rows[0]["question_id"]) == ("statement", "val", "dev-850-0-0")
    save(path, "\n".join([lines[0], lines[1][:20]]))
    with pytest.raises(UserError, match=r"dev.json: 1 of 2 questions .*no JSON objects .*\(id none, line 2"):
        read_question_files([QuestionSource("nlvr2", path)], PICTURES)
    save(path, lines[0].replace('"True"', "2"))
    with pytest.raises(UserError, match=r"whose label is neither true nor false \(id 'dev-850-0-0'.* 2\)"):
        read_question_files([QuestionSource("nlvr2", path)], PICTURES)


def test_lxmert_s_aligned_sentences_and_labels(tmp_path: Path) -> None:
    row = {
        "img_id": "COCO_train2014_000000000139",
        "sentf": {"mscoco": ["a room"], "vqa": ["what is it?", "where?"], "gqa": ["is it red?"]},
        "labelf": {"vqa": [{"tv": 1, "screen": 0.6}, {}], "gqa": [{"yes": 1.0}]},
    }
    path = save(tmp_path / "train.json", [row])
    first, hidden, graph = read_question_files([QuestionSource("lxmert", path)], PICTURES)
    assert first["question_id"] == "COCO_train2014_000000000139-vqa-0"
    assert sorted(first["answers"]) == [""] * 4 + ["screen"] * 2 + ["tv"] * 4
    assert hidden["answers"] == [] and graph["answers"] == ["yes"] and graph["kind"] == "gqa"
    row["labelf"]["vqa"].pop()
    save(path, [row])
    with pytest.raises(UserError, match="whose sentences and labels are not as many"):
        read_question_files([QuestionSource("lxmert", path)], PICTURES)


def test_lxmert_s_labels_give_its_scores_again(tmp_path: Path) -> None:
    """0.3, 0.6, 0.9, 1: the mean over ten left out of min(n / 3, 1)."""
    label = {"a": 0.3, "b": 0.6, "c": 0.9, "d": 1}
    row = {"answer_type": "other", "img_id": "139", "label": label, "question_id": 5, "sent": "what?"}
    (read,) = read_question_files([QuestionSource("lxmert", save(tmp_path / "x.json", [row]))], PICTURES)
    answers = read["answers"]
    for answer, score in label.items():
        rest = [min((answers.count(answer) - (left == answer)) / 3, 1) for left in answers]
        assert len(answers) == 10 and sum(rest) / 10 == pytest.approx(score)


def test_lxmert_s_fine_tuning_rows(tmp_path: Path) -> None:
    graph = {"img_id": "139", "label": {"red": 1.0}, "question_id": "9", "sent": "which?"}
    pair = {
        "identifier": "dev-850-0-0",
        "img0": "dev-850-0-img0",
        "img1": "dev-850-0-img1",
        "label": 1,
        "sent": "two",
        "uid": "x",
    }
    path = save(tmp_path / "x.json", [graph, pair])
    one, two = read_question_files([QuestionSource("lxmert", path)], PICTURES)
    assert one["answers"] == ["red"] and two["answers"] == ["true"] and len(two["image_ids"]) == 2


def test_one_s_own_questions(tmp_path: Path) -> None:
    path = save(
        tmp_path / "own.json",
        [
            {"image": "photos/kite.jpg", "question": "What is it?", "answer": "a kite"},
            {"image": "kite.jpg", "question": "How many?", "answers": ["1", "one"], "id": 17, "split": "val"},
            {"image": "kite", "question": "Is it red?"},
            {"image": ["kite.jpg", "boat.png"], "question": "Both fly.", "answer": "true"},
        ],
    )
    rows = read_question_files([QuestionSource("plain", path)], PICTURES)
    assert [row["question_id"] for row in rows] == ["kite-0", "17", "kite-1", "kite-2"]
    assert [row["answers"] for row in rows] == [["a kite"], ["1", "one"], [], ["true"]]
    assert [row["split"] for row in rows] == ["test", "val", "test", "test"]
    assert rows[3]["image_ids"] == ["kite", "boat"] and rows[3]["kind"] == "statement"
    assert write_questions(rows, tmp_path / "own.parquet", PICTURES).num_rows == 4
    save(path, [{"image": "kite", "question": "What?", "answer": ["a", "b"]}])
    with pytest.raises(UserError, match="an answer that is neither text nor a number"):
        read_question_files([QuestionSource("plain", path)], PICTURES)
    save(path, [{"image": ["kite", "000000000139"], "question": "Both fly."}])
    with pytest.raises(UserError, match="whose pictures are of two splits"):
        read_question_files([QuestionSource("plain", path)], PICTURES)


def test_the_same_id_in_two_files_names_both(tmp_path: Path) -> None:
    row = {"image": "kite", "question": "What?", "id": 1}
    paths = [save(tmp_path / f"{name}.json", [row]) for name in ("a", "b")]
    with pytest.raises(UserError, match=r"a.json and .*b.json: both have the question 1;"):
        read_question_files([QuestionSource("plain", path) for path in paths], PICTURES)


@pytest.mark.parametrize("form", ("vqa", "gqa", "visual_genome", "nlvr2", "lxmert", "plain"))
def test_a_file_of_another_form_and_a_missing_one_are_named(form: Any, tmp_path: Path) -> None:
    path = save(tmp_path / "x.json", '"words"')
    with pytest.raises(UserError) as caught:
        read_question_files([QuestionSource(form, path)], PICTURES)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)
    with pytest.raises(UserError, match="missing.json: no such"):
        read_question_files([QuestionSource(form, tmp_path / "missing.json")], PICTURES)


def test_options_of_other_forms_are_refused() -> None:
    with pytest.raises(ValueError, match="annotations belong to the form vqa, not to gqa"):
        QuestionSource("gqa", Path("x"), annotations=Path("y"))
    with pytest.raises(ValueError, match="choices belong to the form gqa, not to vqa"):
        QuestionSource("vqa", Path("x"), choices=Path("y"))


def own(folder: Path, paths: dict[str, str], *images: Any) -> list[dict]:
    """Questions about `images` of one's own pictures, ids and paths."""
    path = save(folder / "own.json", [{"image": image, "question": "What?"} for image in images])
    source = QuestionSource("plain", path, missing_share=1.0)
    return read_question_files([source], dict.fromkeys(paths, "train"), paths)


def test_a_file_name_is_no_number(tmp_path: Path) -> None:
    paths = {"000000000010": "../photos/0001.jpg", "000000000001": "../photos/0010.jpg"}
    asked = ("0001.jpg", "photos/0010.png", 1, "1", "photo_10.jpg", "0002.jpg", "10.jpg")
    assert [row["image_ids"] for row in own(tmp_path, paths, *asked)] == [
        ["000000000010"], ["000000000001"], ["000000000001"], ["000000000001"]
    ]  # fmt: skip
    with pytest.raises(UserError, match=r"the id of one picture and the file name of another \(id '0001-0'"):
        own(tmp_path, paths, "0001")


def test_folders_decide_between_files_of_one_name(tmp_path: Path) -> None:
    paths = {"a": "../photos/left/1.jpg", "b": "../photos/right/1.jpg", "c": "../photos/left/2.png"}
    rows = own(tmp_path, paths, "right/1.jpg", "photos\\left\\1.jpg", "2.jpg", "c")
    assert [row["image_ids"] for row in rows] == [["b"], ["a"], ["c"], ["c"]]
    assert own(tmp_path, paths, "middle/1.jpg") == []
    with pytest.raises(UserError, match="whose image is the name of several files"):
        own(tmp_path, paths, "1.jpg")


def test_lines_end_at_line_feeds_alone(tmp_path: Path) -> None:
    line = json.dumps(
        {"sentence": "One\u2028dog\x85.", "identifier": "dev-850-0-0", "label": "True"}, ensure_ascii=False
    )
    path = tmp_path / "dev.json"
    path.write_bytes(f"{line}\r\n".encode())
    (row,) = read_question_files([QuestionSource("nlvr2", path)], PICTURES)
    assert row["question"] == "One\u2028dog\x85."


@pytest.mark.parametrize("score", ("NaN", "Infinity"))
def test_scores_that_are_no_numbers(score: str, tmp_path: Path) -> None:
    row = (
        '[{"answer_type": "other", "img_id": "139", "label": {"tv": %s}, "question_id": 5, "sent": "what?"}]'
    )
    with pytest.raises(UserError, match=r"whose label has scores that are no numbers \(id 5"):
        read_question_files([QuestionSource("lxmert", save(tmp_path / "x.json", row % score))], PICTURES)
