"""The contract of questions: what is written is read again, and what is wrong is named with file and question."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from diptych.features.errors import UserError
from diptych.features.questions import QUESTIONS, questions_of, read_questions, write_questions

ROW: dict[str, Any] = {
    "question_id": "262148000",
    "split": "val",
    "image_ids": ["000000262148"],
    "question": "Where is he looking?",
    "answers": ["down", "down", "at table"],
    "kind": "other",
}
STATEMENT = {
    **ROW,
    "question_id": "dev-850-0-0",
    "image_ids": ["dev-850-0-img0", "dev-850-0-img1"],
    "answers": ["true"],
    "kind": "statement",
    "split": "dev",
}
GRAPH = {
    **ROW,
    "question_id": "201640614",
    "answers": ["red"],
    "kind": "query.attr",
    "group": "color",
    "entailed": ["201640615"],
    "choices": {"valid": ["red", "blue"], "plausible": ["red"]},
    "balanced": True,
}


def test_rows_are_read_as_they_were_written_and_what_is_left_out_is_null(tmp_path: Path) -> None:
    path = tmp_path / "questions" / "all.parquet"
    table = write_questions([ROW, STATEMENT, GRAPH], path)
    assert read_questions(path).equals(table)
    nothing = {"group": None, "entailed": None, "choices": None, "balanced": None}
    assert table.to_pylist() == [{**ROW, **nothing}, {**STATEMENT, **nothing}, GRAPH]
    first = path.read_bytes()
    write_questions([ROW, STATEMENT, GRAPH], path)
    assert path.read_bytes() == first


def test_hidden_answers_and_no_questions_at_all_are_no_mistake(tmp_path: Path) -> None:
    hidden = write_questions([{**ROW, "answers": []}], tmp_path / "hidden.parquet")
    assert hidden["answers"].to_pylist() == [[]]
    one_said_nothing = write_questions([{**ROW, "answers": ["down", ""]}], tmp_path / "nothing.parquet")
    assert one_said_nothing["answers"].to_pylist() == [["down", ""]]
    assert write_questions([], tmp_path / "none.parquet").num_rows == 0
    with pytest.raises(UserError, match=r"none.parquet: no question is in the splits test; it has none"):
        questions_of(read_questions(tmp_path / "none.parquet"), ["test"], tmp_path / "none.parquet")


def test_questions_of_some_splits(tmp_path: Path) -> None:
    table = write_questions([ROW, STATEMENT], tmp_path / "q.parquet")
    assert [row["question_id"] for row in questions_of(table, ["dev"], Path("q"))] == ["dev-850-0-0"]
    assert len(questions_of(table, ["dev", "val"], Path("q"))) == 2
    with pytest.raises(UserError, match="q: no question is in the splits test; it has dev, val"):
        questions_of(table, ["test"], Path("q"))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"question_id": 262148000}, "question 262148000: 262148000 is no question's id"),
        ({"question_id": "007"}, "'007' is no question's id"),
        ({"image_ids": ["a", "b", "c"]}, "has 3 pictures; a question is about one, a statement about two"),
        ({"image_ids": []}, "has 0 pictures"),
        ({"image_ids": "000000262148"}, "image_ids is a string instead of a list"),
        ({"image_ids": ["a.jpg"]}, "'a.jpg' is no picture's id"),
        ({"image_ids": ["elsewhere"]}, "is about picture elsewhere, which is not there"),
        ({"question": "  "}, "its question is '  '"),
        ({"answers": ["", " "]}, "its answers are all empty"),
        ({"answers": [2]}, r"its answers \[2\] are not all text"),
        ({"answers": None}, "lacks answers"),
        ({"split": "val/test"}, "split 'val/test': use letters"),
        ({"kind": ""}, "its kind is ''"),
        ({"entailed": [1]}, "1 is no question's id"),
        ({"balanced": "yes"}, "column balanced must be bool"),
        ({"choices": ["red"]}, "column choices must be struct"),
    ],
)
def test_a_wrong_row_is_named_with_file_and_question(
    wrong: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "vqa.parquet"
    with pytest.raises(UserError, match=message) as caught:
        write_questions([{**ROW, **wrong}], path, {"000000262148", "a", "b", "c"})
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)
    assert not path.exists()


def test_an_id_that_occurs_twice_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="question 262148000 occurs twice"):
        write_questions([ROW, STATEMENT, ROW], tmp_path / "q.parquet")


def test_foreign_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "q.parquet"
    with pytest.raises(UserError, match=r"q.parquet: no such file; `dvc repro dataset`"):
        read_questions(path)
    path.write_text("not Parquet")
    with pytest.raises(UserError, match="not a readable Parquet file"):
        read_questions(path)
    pq.write_table(pa.table({"question_id": ["1"]}), path)
    with pytest.raises(UserError, match="questions version none, this version of diptych reads 1"):
        read_questions(path)
    kept = QUESTIONS.remove(QUESTIONS.get_field_index("answers")).with_metadata(QUESTIONS.metadata)
    pq.write_table(kept.empty_table(), path)
    with pytest.raises(UserError, match="column answers is missing"):
        read_questions(path)
