"""A study as one SQLite file: plan, pictures, links and answers.

Every answer is a row of its own, committed with a full sync before it is confirmed; nothing is updated or deleted.
"""

from __future__ import annotations

import json
import os
import secrets
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from functools import lru_cache
from pathlib import Path
from typing import Any

from tqdm import tqdm

from diptych.eval.errors import UserError
from diptych.eval.study.pictures import read_picture, scramble
from diptych.eval.study.plan import Item, Plan

_APPLICATION, _VERSION = 0x44505453, 1  # "DPTS"
_SCHEMA = """
CREATE TABLE study (title TEXT NOT NULL, seed INTEGER NOT NULL, systems TEXT NOT NULL, admin TEXT NOT NULL,
                    created TEXT NOT NULL);
CREATE TABLE pictures (id INTEGER PRIMARY KEY, token TEXT NOT NULL UNIQUE, system TEXT NOT NULL, image TEXT NOT NULL,
                       png BLOB NOT NULL, UNIQUE (system, image));
CREATE TABLE items (id INTEGER PRIMARY KEY, kind TEXT NOT NULL, checks INTEGER NOT NULL, content TEXT NOT NULL,
                    picture INTEGER NOT NULL REFERENCES pictures, other INTEGER REFERENCES pictures);
CREATE TABLE annotators (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, token TEXT NOT NULL UNIQUE);
CREATE TABLE questions (id INTEGER PRIMARY KEY, annotator INTEGER NOT NULL REFERENCES annotators,
                        position INTEGER NOT NULL, item INTEGER NOT NULL REFERENCES items,
                        system_first INTEGER NOT NULL, UNIQUE (annotator, position), UNIQUE (annotator, item));
CREATE TABLE answers (question INTEGER NOT NULL REFERENCES questions, revision INTEGER NOT NULL, answer TEXT NOT NULL,
                      seconds REAL, answered TEXT NOT NULL, PRIMARY KEY (question, revision)) WITHOUT ROWID;
"""
# through the primary key, question by question
_LAST_ANSWER = """LEFT JOIN answers AS last ON last.question = questions.id
  AND last.revision = (SELECT max(revision) FROM answers WHERE question = questions.id)"""


@dataclass(frozen=True)
class Annotator:
    """Somebody with a personal link."""

    id: int
    name: str
    token: str


@dataclass(frozen=True)
class Asked:
    """A question as it is shown.

    position: place in the annotator's order, from 0; total: how many there are.
    pictures: tokens of one (hummus) or two pictures, first (left) to second (right).
    revision: how many answers it has; answer: the last of them: "first", "second", "tie" or a word.
    """

    id: int
    position: int
    total: int
    item: Item
    system_first: bool
    pictures: tuple[str, ...]
    revision: int
    answer: str | None


@dataclass(frozen=True)
class Answered:
    """A question with its last answer (None: not yet)."""

    annotator: str
    position: int
    item_id: int
    item: Item
    system_first: bool
    answer: str | None
    revision: int | None
    seconds: float | None
    answered: str | None


def create_study(
    path: Path,
    plan: Plan,
    pictures: Mapping[str, Mapping[str, Path]],
    *,
    title: str,
    seed: int,
) -> None:
    """Write a new study file, readable by its owner only.

    pictures: per system the files by key; those that the plan needs are read. Raises UserError if the file exists or a
    picture is unreadable; then nothing is written.
    """
    if path.exists():
        raise UserError(f"{path} exists: its answers are not overwritten; choose another name")
    if not path.parent.is_dir():
        raise UserError(f"{path}: its folder does not exist")
    partial = path.with_name(f".partial-{path.name}-{secrets.token_hex(4)}")
    try:
        os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        with closing(sqlite3.connect(partial)) as connection, connection:
            connection.executescript(_SCHEMA)
            connection.execute(f"PRAGMA application_id = {_APPLICATION}")
            connection.execute(f"PRAGMA user_version = {_VERSION}")
            _write(connection, plan, pictures, title, seed)
        os.replace(partial, path)
    except (OSError, sqlite3.Error) as error:
        raise UserError(f"{path} could not be written ({error})") from None
    finally:
        for ending in ("", "-journal", "-wal", "-shm"):  # SQLite's own files
            partial.with_name(partial.name + ending).unlink(missing_ok=True)


def _write(
    connection: sqlite3.Connection,
    plan: Plan,
    pictures: Mapping[str, Mapping[str, Path]],
    title: str,
    seed: int,
) -> None:
    connection.execute(
        "INSERT INTO study VALUES (?, ?, ?, ?, ?)",
        (title, seed, json.dumps(list(pictures)), secrets.token_urlsafe(24), _now()),
    )
    written: dict[tuple[str, str], int] = {}

    def insert(system: str, image: str, png: bytes) -> int:
        row = connection.execute(
            "INSERT INTO pictures (token, system, image, png) VALUES (?, ?, ?, ?)",
            (secrets.token_urlsafe(16), system, image, png),
        )
        return row.lastrowid or 0

    def picture(system: str, image: str) -> int:
        if (system, image) not in written:
            written[system, image] = insert(system, image, read_picture(pictures[system][image]))
        return written[system, image]

    for index, item in enumerate(tqdm(plan.items, desc="pictures", disable=None, leave=False)):
        first, other = picture(item.system, item.image), None
        if item.other is not None:
            other = picture(item.other, item.image)
        elif item.kind == "fidelity":
            [png] = connection.execute("SELECT png FROM pictures WHERE id = ?", (first,)).fetchone()
            other = insert("", f"{index}", scramble(png, f"{seed} {index}"))
        connection.execute(
            "INSERT INTO items VALUES (?, ?, ?, ?, ?, ?)",
            (index, item.kind, item.check, json.dumps(asdict(item)), first, other),
        )
    for number, order in enumerate(plan.orders):
        row = connection.execute(
            "INSERT INTO annotators (name, token) VALUES (?, ?)",
            (f"A{number + 1:02}", secrets.token_urlsafe(24)),
        )
        connection.executemany(
            "INSERT INTO questions (annotator, position, item, system_first) VALUES (?, ?, ?, ?)",
            [(row.lastrowid, place, asked.item, asked.system_first) for place, asked in enumerate(order)],
        )


class Study:
    """An existing study file. Every call opens its own connection, so threads and processes may share it."""

    def __init__(self, path: Path) -> None:
        """Raises UserError if `path` is no study file."""
        self.path = path
        if not path.is_file():
            raise UserError(f"{path}: no such study; make one with `study create`")
        try:
            with self._connected() as connection:
                [application] = connection.execute("PRAGMA application_id").fetchone()
                [version] = connection.execute("PRAGMA user_version").fetchone()
                if application != _APPLICATION or version != _VERSION:
                    raise UserError(f"{path}: no study file of this version")
                # readers and the writer do not wait for each other; the mode stays with the file
                connection.execute("PRAGMA journal_mode = WAL")
                row = connection.execute("SELECT title, seed, systems, admin, created FROM study").fetchone()
        except sqlite3.Error as error:
            raise UserError(f"{path}: no readable study file ({error})") from None
        self.title, self.seed, systems, self.admin_token, self.created = row
        self.systems: tuple[str, ...] = tuple(json.loads(systems))

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        # autocommit: a statement is committed, and with FULL on the disk, when it returns
        connection = sqlite3.connect(
            f"{self.path.absolute().as_uri()}?mode=rw", uri=True, isolation_level=None
        )
        try:
            connection.execute("PRAGMA busy_timeout = 10000")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA foreign_keys = ON")
            yield connection
        finally:
            connection.close()

    def is_admin(self, token: str) -> bool:
        """Whether this is the token of the admin's link."""
        return secrets.compare_digest(token.encode(), self.admin_token.encode())

    def annotators(self) -> list[Annotator]:
        """Everybody who has a link, in order."""
        with self._connected() as connection:
            return [Annotator(*row) for row in connection.execute("SELECT id, name, token FROM annotators")]

    def annotator(self, token: str) -> Annotator | None:
        """Whose link this is."""
        with self._connected() as connection:
            row = connection.execute(
                "SELECT id, name, token FROM annotators WHERE token = ?", (token,)
            ).fetchone()
        return Annotator(*row) if row else None

    def kinds(self) -> tuple[str, ...]:
        """The kinds of questions that are asked."""
        with self._connected() as connection:
            return tuple(kind for (kind,) in connection.execute("SELECT DISTINCT kind FROM items"))

    def picture(self, token: str) -> bytes | None:
        """A picture as PNG."""
        with self._connected() as connection:
            row = connection.execute("SELECT png FROM pictures WHERE token = ?", (token,)).fetchone()
        return row[0] if row else None

    def next_question(self, annotator: Annotator) -> Asked | None:
        """The first question without an answer; None when all have one."""
        return self._question(annotator, "last.answer IS NULL", "questions.position")

    def last_question(self, annotator: Annotator) -> Asked | None:
        """The question before the next one, if it is of the same kind or the last of all: it may be answered anew.

        Not across kinds: whole captions must not lead back to hidden words.
        """
        upcoming = self.next_question(annotator)
        if upcoming is None:
            return self._question(annotator, "last.answer IS NOT NULL", "questions.position DESC")
        before = self.question(annotator, upcoming.position - 1)
        return before if before is not None and before.item.kind == upcoming.item.kind else None

    def question(self, annotator: Annotator, position: int) -> Asked | None:
        """The question at a place of the annotator's order."""
        return self._question(annotator, "questions.position = :position", "1", position)

    def _question(self, annotator: Annotator, where: str, order: str, position: int = -1) -> Asked | None:
        with self._connected() as connection:
            row = connection.execute(
                f"""SELECT questions.id, questions.position, questions.system_first, items.content,
                           own.token, others.token, last.revision, last.answer,
                           (SELECT count(*) FROM questions WHERE annotator = :annotator)
                    FROM questions JOIN items ON items.id = questions.item
                    JOIN pictures AS own ON own.id = items.picture
                    LEFT JOIN pictures AS others ON others.id = items.other
                    {_LAST_ANSWER}
                    WHERE questions.annotator = :annotator AND {where} ORDER BY {order} LIMIT 1""",
                {"annotator": annotator.id, "position": position},
            ).fetchone()
        if row is None:
            return None
        question, position, system_first, content, own, other, revision, answer, total = row
        pictures = (own,) if other is None else (own, other) if system_first else (other, own)
        return Asked(
            question,
            position,
            total,
            _item(content),
            bool(system_first),
            pictures,
            0 if revision is None else revision + 1,
            answer,
        )

    def add_answer(self, asked: Asked, revision: int, answer: str, seconds: float | None) -> bool:
        """Keep an answer; it is on the disk when this returns. False if that revision is kept already.

        The first of two submissions of one revision counts, whatever the second says; a later revision replaces.
        A revision that skips one is refused with ValueError.
        """
        with self._connected() as connection:
            # one statement, so that two processes cannot come between
            done = connection.execute(
                """INSERT INTO answers SELECT :question, :revision, :answer, :seconds, :now
                   WHERE :revision = (SELECT count(*) FROM answers WHERE question = :question)""",
                {
                    "question": asked.id,
                    "revision": revision,
                    "answer": answer,
                    "seconds": seconds,
                    "now": _now(),
                },
            )
            if done.rowcount:
                return True
            [count] = connection.execute(
                "SELECT count(*) FROM answers WHERE question = ?", (asked.id,)
            ).fetchone()
        if revision > count:
            raise ValueError(f"revision {revision} of an answer that has {count}")
        return False

    def answered(self) -> list[Answered]:
        """All questions of all annotators with their last answers."""
        with self._connected() as connection:
            rows = connection.execute(
                f"""SELECT annotators.name, questions.position, items.id, items.content, questions.system_first,
                          last.answer, last.revision, last.seconds, last.answered
                   FROM questions JOIN annotators ON annotators.id = questions.annotator
                   JOIN items ON items.id = questions.item
                   {_LAST_ANSWER}
                   ORDER BY annotators.id, questions.position"""
            ).fetchall()
        return [
            Answered(name, position, item, _item(content), bool(first), *rest)
            for name, position, item, content, first, *rest in rows
        ]


@lru_cache(maxsize=100_000)
def _item(content: str) -> Item:
    fields: dict[str, Any] = json.loads(content)
    return Item(**{**fields, "accepted": tuple(fields["accepted"])})


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")  # noqa: UP017 (Python 3.10)
