"""`diptych-eval answers` on the files of VQA, GQA, NLVR2 and Diptych, and on what such files have wrong."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from diptych.eval.answers.question_files import read_question_file
from diptych.eval.answers.reading import read_predictions
from diptych.eval.command.app import main

VQA = {
    "data_subtype": "val2014",
    "annotations": [
        {
            "question_id": number,
            "image_id": 42,
            "answer_type": kind,
            "question_type": "what",
            "answers": [
                {"answer": answer, "answer_confidence": "yes", "answer_id": place + 1}
                for place, answer in enumerate(answers)
            ],
        }
        for number, kind, answers in (
            (42001, "yes/no", ["yes"] * 10),
            (42002, "other", ["The sea"] * 3 + ["water"] * 7),
        )
    ],
}
VQA_ANSWERS = [{"question_id": 42001, "answer": "yes"}, {"question_id": 42002, "answer": "sea."}]
GQA = {
    "02930152": {
        "question": "Which color is it?",
        "imageId": "n1",
        "isBalanced": True,
        "answer": "red",
        "entailed": ["02930152", "02930153"],
        "groups": {"global": "color", "local": "x"},
        "types": {"structural": "query", "semantic": "attr", "detailed": "categoryAttr"},
    },
    "02930153": {
        "question": "Is it red?",
        "imageId": "n1",
        "isBalanced": False,
        "answer": "yes",
        "entailed": [],
        "groups": {"global": None, "local": "x"},
        "types": {"structural": "verify", "semantic": "attr", "detailed": "verifyAttr"},
    },
    "02930154": {
        "question": "What do both have in common?",
        "imageId": "n2",
        "isBalanced": True,
        "answer": "color",
        "entailed": [],
        "groups": {"global": None, "local": None},
        "types": {"structural": "compare", "semantic": "attr", "detailed": "twoCommon"},
    },
}
GQA_ANSWERS = [
    {"questionId": "02930152", "prediction": "red"},
    {"questionId": "02930153", "prediction": "no"},
    {"questionId": "02930154", "prediction": "shape"},
]
NLVR2 = [
    {"identifier": f"dev-7-{pair}-0", "label": label, "sentence": "There are two."}
    for pair, label in enumerate(("True", "False"))
]


def write(path: Path, content: Any) -> str:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def lines(rows: list[Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def measured(folder: Path, predictions: Any, questions: Any, *options: str) -> dict[str, dict[str, Any]]:
    """The records by name. questions: content, or a path."""
    files = [
        write(folder / "p.json", predictions),
        str(questions) if isinstance(questions, Path) else write(folder / "q.json", questions),
    ]
    output = folder / "o.json"
    assert main(["answers", *files, "--resamples", "20", "-o", str(output), *options]) == 0
    return {record["name"]: record for record in json.loads(output.read_text())}


def values(records: dict[str, dict[str, Any]]) -> dict[str, float | None]:
    return {name: record["value"] for name, record in records.items()}


def parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet as files

    texts = arrow.list_(arrow.string())
    schema = arrow.schema(
        {
            "question_id": arrow.string(),
            "split": arrow.string(),
            "image_ids": texts,
            "question": arrow.string(),
            "answers": texts,
            "kind": arrow.string(),
            "group": arrow.string(),
            "entailed": texts,
            "choices": arrow.struct({"valid": texts, "plausible": texts}),
            "balanced": arrow.bool_(),
        }
    )
    files.write_table(arrow.Table.from_pylist(rows, schema), path)
    return path


def row(question_id: str, answers: list[str], **others: Any) -> dict[str, Any]:
    known = {"split": "test", "image_ids": ["9"], "question": "what is it ?", "kind": "what"}
    return {"question_id": question_id, "answers": answers, **known, **others}


# --- the forms


def test_vqa_s_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = measured(tmp_path, VQA_ANSWERS, VQA)
    assert values(records) == pytest.approx(
        {"vqa.accuracy": 0.95, "vqa.accuracy_other": 0.9, "vqa.accuracy_yes_no": 1}
    )
    assert records["vqa.accuracy"]["split"] == "val2014" and records["vqa.accuracy"]["n"] == 2
    assert "VQA v2's" in records["vqa.accuracy"]["normalisation"]
    shown = capsys.readouterr()
    assert "vqa.accuracy_yes_no" in shown.out and "95.0" in shown.out and shown.err == ""


def test_gqa_s_files(tmp_path: Path) -> None:
    choices = {number: {"valid": ["red"], "plausible": []} for number in GQA}
    records = measured(
        tmp_path, GQA_ANSWERS, GQA, "--choices", write(tmp_path / "c.json", choices), "--split", "val"
    )
    found = values(records)
    # what two things have in common has choices of its own: shape is among them
    expected = {"accuracy": 0.5, "accuracy_open": 1, "accuracy_binary": 0, "consistency": 0, "validity": 1}
    expected |= {"plausibility": 0.5, "distribution": 0, "accuracy_semantic_attr": 0.5}
    assert {name: found[f"gqa.{name}"] for name in expected} == expected
    assert records["gqa.accuracy"]["split"] == "val"
    bare = measured(tmp_path, GQA_ANSWERS, GQA)
    assert bare["gqa.validity"]["value"] is None and "q.json has no choices" in bare["gqa.validity"]["reason"]
    assert bare["gqa.accuracy"]["split"] is None


def test_the_balanced_file_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    balanced = {number: question for number, question in GQA.items() if question["isBalanced"]}
    record = measured(tmp_path, GQA_ANSWERS, balanced)["gqa.consistency"]
    assert (
        record["value"] is None
        and "q.json has no question 2930153, which question 2930152" in record["reason"]
    )
    assert "1 answers of" in capsys.readouterr().err


def test_nlvr2_s_files(tmp_path: Path) -> None:
    expected = {"nlvr2.accuracy": 0.5, "nlvr2.consistency": 0}
    forms = [
        "dev-7-0-0,True\ndev-7-1-0, true\n\n",
        lines([{"identifier": "dev-7-0-0", "prediction": True}, {"identifier": "dev-7-1-0", "prediction": "TRUE"}]),
        [{"question_id": f"dev-7-{pair}-0", "answer": "true"} for pair in (0, 1)],
    ]  # fmt: skip
    for form in forms:
        records = measured(tmp_path, form, lines(NLVR2))
        assert values(records) == expected and records["nlvr2.consistency"]["split"] == "dev"
    one = measured(tmp_path, "dev-7-0-0,True", lines(NLVR2[:1]))
    assert values(one) == {"nlvr2.accuracy": 1, "nlvr2.consistency": 1}


def test_diptych_s_questions(tmp_path: Path) -> None:
    path = parquet(
        tmp_path / "q.parquet",
        [
            row("1", ["sea"] * 8 + ["water"] * 2),
            row("2", ["2"] * 10, kind="how many"),
            row("3", ["no"] * 10, split="train"),
        ],
    )
    asked = lines(
        [{"question_id": "1", "answer": "water"}, {"question_id": 2, "answer": "2", "picture": "9.png"}]
    )
    records = measured(tmp_path, asked, path, "--split", "test")
    assert values(records) == pytest.approx(
        {"vqa.accuracy": 0.8, "vqa.accuracy_how_many": 1, "vqa.accuracy_what": 0.6}
    )
    assert records["vqa.accuracy"]["split"] == "test"
    assert "interval over 1 pictures" in records["vqa.accuracy"]["detail"]


def test_diptych_s_questions_with_gqa_s_columns_and_statements(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    colours = {"valid": ["red", "blue"], "plausible": ["red"]}
    rows = [
        row("1", ["red"], kind="query.attr", group="g", entailed=["2"], choices=colours, balanced=True),
        row("2", ["yes"], kind="verify.attr", entailed=[], balanced=False),
        row("3", ["no"], kind="verify.attr"),  # balanced is unknown: it counts
    ]
    predictions = {"1": "red", "2": "no", "3": "no"}
    given = [{"question_id": key, "answer": answer} for key, answer in predictions.items()]
    found = values(measured(tmp_path, given, parquet(tmp_path / "q.parquet", rows)))
    assert found["gqa.accuracy"] == 1 and found["gqa.consistency"] == 0 and found["gqa.validity"] == 1
    assert found["gqa.accuracy_structural_verify"] == 1 and found["gqa.distribution"] == 0
    statements = [
        row(f"test-1-{pair}-0", [answer], image_ids=["8", "9"], kind="statement")
        for pair, answer in enumerate(("true", "false"))
    ]
    mixed = parquet(tmp_path / "m.parquet", [*rows, *statements])
    judged = "test-1-0-0,True\ntest-1-1-0,False\n"
    assert main(["answers", write(tmp_path / "s.csv", judged), str(mixed)]) == 1
    assert "m.parquet: 3 questions and 2 statements; choose with --metric" in capsys.readouterr().err
    assert values(measured(tmp_path, judged, mixed, "--metric", "nlvr2")) == {
        "nlvr2.accuracy": 1,
        "nlvr2.consistency": 1,
    }
    assert "3 questions about one picture" in capsys.readouterr().err
    assert values(measured(tmp_path, given, mixed, "--metric", "gqa")) == found
    only = parquet(tmp_path / "only.parquet", statements)
    assert values(measured(tmp_path, judged, only))["nlvr2.consistency"] == 1


# --- ids, encodings


@pytest.mark.parametrize("spelled", [int, str, float, lambda number: f"{number:012d}"])
def test_ids_are_the_same_as_numbers_and_as_text(tmp_path: Path, spelled: Any) -> None:
    predictions = [{**entry, "question_id": spelled(entry["question_id"])} for entry in VQA_ANSWERS]
    assert values(measured(tmp_path, predictions, VQA))["vqa.accuracy"] == pytest.approx(0.95)


def test_numbers_as_ids_of_gqa_s_questions(tmp_path: Path) -> None:
    predictions = [{**entry, "questionId": int(entry["questionId"])} for entry in GQA_ANSWERS]
    assert values(measured(tmp_path, predictions, GQA))["gqa.consistency"] == 0


def test_packed_files_and_other_encodings(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_bytes(gzip.compress(lines(VQA_ANSWERS).encode("utf-16")))
    assert read_predictions(tmp_path / "p.json") == {"42001": "yes", "42002": "sea."}
    (tmp_path / "q.json").write_bytes(lines(NLVR2).replace("\n", "\r\n").encode("utf-8-sig"))
    file = read_question_file(tmp_path / "q.json")
    assert [question.question_id for question in file.questions] == ["dev-7-0-0", "dev-7-1-0"]


def test_halves_of_characters_and_empty_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = [{"question_id": 42001, "answer": "yes \ud83d"}, {"question_id": 42002, "answer": ""}]
    assert values(measured(tmp_path, broken, VQA))["vqa.accuracy"] == 0
    assert "p.json: halves of characters are replaced in 1 answers" in capsys.readouterr().err
    questions = json.loads(json.dumps(VQA))
    for record in questions["annotations"][1]["answers"][:4]:
        record["answer"] = "a"  # normalised it is empty, and four people said so
    questions["annotations"][1]["answers"][9]["answer"] = "\udc80"
    assert values(measured(tmp_path, broken, questions))["vqa.accuracy_other"] == 1
    assert "q.json: halves of characters are replaced in 1 answers" in capsys.readouterr().err


# --- what is wrong with a file


def changed(**change: Any) -> dict[str, Any]:
    """VQA's file with another first annotation."""
    first = {**VQA["annotations"][0], **change}  # type: ignore[index]
    return {**VQA, "annotations": [first, *VQA["annotations"][1:]]}


TWICE = [{"answer": "yes", "answer_id": 1}, {"answer": "yes", "answer_id": 1}]


@pytest.mark.parametrize(
    ("predictions", "questions", "message"),
    [
        (VQA_ANSWERS[:1], VQA, "p.json: no answer to 1 of 2 questions of"),
        (VQA_ANSWERS[:1], VQA, "(first: 42002)"),
        ([{"question_id": 7, "answer": "x"}], VQA, "(first: 42001; its own first: 7)"),
        ([*VQA_ANSWERS, {"question_id": "042001", "answer": "no"}], VQA, "p.json: question 42001 is answered twice (entry 0 and entry 2)"),
        ([{"question_id": 42001}], VQA, "p.json: entry 0 has no question_id and answer but is"),
        ([{"question_id": 42001, "answer": 2}], VQA, "p.json: the answer to question 42001 is 2, not a text"),
        ([{"question_id": 42001, "answer": True}], VQA, "p.json: question 42001 is answered by True"),
        ([{"question_id": None, "answer": "x"}], VQA, "p.json: entry 0 has the id None"),
        ('{"question_id": 1, "answer": "x", "question_id": 2}', VQA, "the key 'question_id' is there twice"),
        (lines(VQA_ANSWERS) + '{"question_id', VQA, "p.json: line 3: not JSON"),
        ("[]", VQA, "p.json: no answers in it"),
        ("", VQA, "p.json: not JSON: the file is empty"),
        ({"1": "yes"}, VQA, "p.json: no list of answers"),
        ("dev-7-0-0;True", lines(NLVR2), "p.json: line 1 is 'dev-7-0-0;True', not identifier,True"),
        ("dev-7-0-0,True\ndev-7-1-0,yes", lines(NLVR2), "p.json: line 2 is 'dev-7-1-0,yes'"),
        ([{"question_id": "dev-7-0-0", "answer": "yes"}], lines(NLVR2), "statement dev-7-0-0 is judged 'yes'"),
        (VQA_ANSWERS, {**VQA, "annotations": VQA["annotations"] * 2}, "q.json: question 42001 is there twice"),
        (VQA_ANSWERS, changed(answers=TWICE), "q.json: question 42001 has the answer_id 1 twice"),
        (VQA_ANSWERS, changed(answers=[]), "q.json: question 42001 has 0 answers"),
        (VQA_ANSWERS, changed(answers=[{"answer": 2}]), "q.json: question 42001: its answer is 2, not a text"),
        (VQA_ANSWERS, changed(answers="yes"), "q.json: question 42001: its answers are 'yes', no list"),
        (VQA_ANSWERS, {"annotations": [3]}, "q.json: entry 0 is 3, no object"),
        (VQA_ANSWERS, {"annotations": [{"answers": []}]}, "q.json: entry 0 has no question_id"),
        (VQA_ANSWERS, {"annotations": []}, "q.json: no questions in it"),
        (VQA_ANSWERS, {"questions": []}, "q.json: VQA's questions without their answers"),
        (VQA_ANSWERS, [3], "q.json: no questions that are known here"),
        (GQA_ANSWERS, {"1": {"imageId": "n", "isBalanced": True}}, "q.json: question 1 has no answer"),
        (GQA_ANSWERS, {**GQA, "2930152": GQA["02930152"]}, "q.json: question 2930152 is there twice"),
        (GQA_ANSWERS, json.dumps(GQA).replace('"02930153": {', '"02930152": {'), "the key '02930152' is there twice"),
        (GQA_ANSWERS, {**GQA, "1": {**GQA["02930154"], "entailed": "12"}}, "question 1: its entailed are '12', no list"),
        (GQA_ANSWERS, {**GQA, "1": {**GQA["02930154"], "entailed": 12}}, "question 1: its entailed are 12, no list"),
        (f"dev-7-0-0,True\ndev-7-1-0,{'x' * 200_000}", lines(NLVR2), "p.json: line 2: field larger than"),
        ("dev-7-0-0,True", lines([NLVR2[0], NLVR2[0]]), "q.json: question dev-7-0-0 is there twice"),
        ("dev-7-0-0,True", lines([{"identifier": "dev-7-0-0"}]), "q.json: statement dev-7-0-0 has no label"),
        ("dev-7-0-0,True", lines(NLVR2) + "{", "q.json: line 3: not JSON"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_line_that_names_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], predictions: Any, questions: Any, message: str
) -> None:
    files = [write(tmp_path / "p.json", predictions), write(tmp_path / "q.json", questions)]
    assert main(["answers", *files]) == 1
    shown = capsys.readouterr()
    errors = [line for line in shown.err.splitlines() if line.startswith("diptych-eval: ")]
    assert message in errors[0] and len(errors) == 1 and shown.out == ""
    assert len([line for line in shown.err.splitlines() if line not in errors]) <= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--split", "train"], "--split train: "),
        (["--resamples", "0"], "--resamples: must be at least 1, is 0"),
        (["--metric", "gqa"], "question 42001 has 10 answers; GQA compares with one"),
        (["--choices", "none.json"], "none.json: no such file"),
        (["-o", "none/o.json"], "there is no folder none"),
    ],
)
def test_wrong_options_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    files = [write(tmp_path / "p.json", VQA_ANSWERS), write(tmp_path / "q.json", VQA)]
    assert main(["answers", *files, *options]) == 1
    shown = capsys.readouterr()
    assert message in shown.err and shown.err.count("\n") == 1 and shown.out == ""


def test_choices_belong_to_gqa(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [write(tmp_path / "p.json", VQA_ANSWERS), write(tmp_path / "q.json", VQA)]
    assert main(["answers", *files, "--choices", write(tmp_path / "c.json", {})]) == 1
    assert "only GQA's JSON has its choices elsewhere" in capsys.readouterr().err
    files = [write(tmp_path / "p.json", GQA_ANSWERS), write(tmp_path / "q.json", GQA)]
    assert (
        main(["answers", *files, "--choices", write(tmp_path / "c.json", {"02930152": {"valid": []}})]) == 1
    )
    assert "c.json: question 2930152 has {'valid': []}" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["column", "cut", "splits", "twice", "id"])
def test_what_is_wrong_with_parquet(tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str) -> None:
    rows = [row("1", ["a"] * 10), row("1" if damage == "twice" else "2", ["a"] * 10)]
    if damage == "splits":
        rows[0]["split"] = "train"
    if damage == "id":
        rows[1]["question_id"] = " "
    path = parquet(tmp_path / "q.parquet", rows)
    if damage == "column":
        from pyarrow import parquet as files

        files.write_table(files.read_table(path).drop_columns(["answers"]), path)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-20])
    assert main(["answers", write(tmp_path / "p.json", VQA_ANSWERS), str(path)]) == 1
    message = {
        "column": "q.parquet: no column answers",
        "cut": "q.parquet: not a readable Parquet file",
        "splits": "q.parquet: has the splits test, train; choose one with --split",
        "twice": "q.parquet: question 1 is there twice",
        "id": "q.parquet: row 1 has the id ' ': empty",
    }[damage]
    shown = capsys.readouterr().err
    assert message in shown and shown.count("\n") == 1
