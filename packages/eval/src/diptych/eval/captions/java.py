"""The Java programs of COCO's caption evaluation: the PTB tokenizer, METEOR and SPICE.

Each is started once and ended when its work is done, when an exception passes, and when this process is killed: the
tokenizer and METEOR end with their standard input, and on Linux `setpriv` ends all of them with this process.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Self

import numpy as np

CORENLP_VARIABLE = "DIPTYCH_CORENLP"
CORENLP_JARS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")
CORENLP_ARCHIVE = "stanford-corenlp-full-2015-12-09.zip"
MEND_JAVA = "install Java (Debian: apt-get install default-jre-headless) or set JAVA_HOME"
# Java 9 and newer close what SPICE's libraries reach into; older ones do not know the option
_OPEN = tuple(
    f"--add-opens=java.base/{package}=ALL-UNNAMED"
    for package in (
        "java.lang",
        "java.lang.reflect",
        "java.util",
        "java.util.concurrent",
        "java.text",
        "java.io",
        "java.math",
        "java.net",
        "java.nio",
        "sun.nio.ch",
    )
)
# METEOR reads and lower-cases by the machine's language, and in German it cannot read its own numbers
_ENGLISH = ("-Duser.language=en", "-Duser.country=US")
# What ends a line for the tokenizer, and would end a caption
_LINE_ENDS = re.compile("[\\n\\r\\v\\f\\u2028\\u2029]")
# METEOR's counts: words of the caption and of the reference, function words of each, then per matcher the matched content
# words of each and function words of each, the chunks, and the matched words of each
_COUNTS = 23
_LENGTHS, _CHUNKS = slice(0, 2), 20
_MATCHES = (slice(4, 20, 2), slice(5, 20, 2))  # of the caption and of the reference
# What COCO's evaluation does not count as words
_PUNCTUATION = frozenset(
    ("''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";")
)


class NotRun(Exception):
    """Why a Java program cannot run here, and the mend."""


def find_java() -> str:
    """The `java` of JAVA_HOME or of PATH, tried once. Raises NotRun where there is none that starts."""
    home = os.environ.get("JAVA_HOME")
    candidates = ([str(Path(home) / "bin" / "java")] if home else []) + ["java"]
    found = next((path for path in map(shutil.which, candidates) if path), None)
    if found is None:
        raise NotRun(f"Java was not found; {MEND_JAVA}")
    try:
        done = subprocess.run([found, "-version"], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotRun(f"{found} does not start ({error}); {MEND_JAVA}") from None
    if done.returncode:
        said = " ".join(done.stderr.split())[:200]
        raise NotRun(f"{found} does not start ({said or f'status {done.returncode}'}); {MEND_JAVA}")
    return found


def ptb_tokenize(java: str, captions: Sequence[str]) -> list[list[str]]:
    """Words of each caption as Stanford's PTB tokenizer makes them, lower case, without punctuation.

    A word may hold a no-break space: "22 3/4" is one. All captions go through one process. Raises NotRun where it fails.
    """
    lines = [_LINE_ENDS.sub(" ", caption) for caption in captions]
    arguments = [
        "-cp",
        str(_package_folder("tokenizer") / "stanford-corenlp-3.4.1.jar"),
        "edu.stanford.nlp.process.PTBTokenizer",
        "-preserveLines",
        "-lowerCase",
        "-encoding",
        "utf-8",
    ]
    # an end of line after every caption, the last one too
    output = _output(java, arguments, "".join(line + "\n" for line in lines).encode(), "the PTB tokenizer")
    rows = output.decode().split("\n")[:-1]
    if len(rows) != len(lines):
        raise NotRun(f"the PTB tokenizer returned {len(rows)} lines for {len(lines)} captions")
    return [[word for word in row.rstrip().split(" ") if word and word not in _PUNCTUATION] for row in rows]


class Meteor:
    """METEOR 1.5 for English, normalised as COCO's evaluation runs it; use as a context manager."""

    def __init__(self, java: str) -> None:
        jar = _package_folder("meteor") / "meteor-1.5.jar"
        options = ["-Dfile.encoding=UTF-8", "-Xmx2G", "-jar", str(jar)]
        settings = ["-", "-", "-stdio", "-l", "en", "-norm"]
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 closed with the process
        self._process = subprocess.Popen(
            _command(java, [*options, *settings]),
            cwd=jar.parent,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):  # what was not written yet goes nowhere
                pipe.close()  # type: ignore[union-attr]
        self._process.wait()
        self._errors.close()

    @property
    def process_id(self) -> int:
        """The number of the Java process."""
        return self._process.pid

    def statistics(self, candidate: str, references: Sequence[str]) -> np.ndarray:
        """METEOR's counts float64 [23] of a caption of words against the reference that fits best; they add up over
        captions, and the sum over any of them, repeated ones too, scores as METEOR scores these captions together.

        Where it adds captions up, METEOR leaves out the chunk of one that is its reference from end to end
        (`MeteorStats.addStats`), so that such captions cost no order. It is left out here, before the adding.
        """
        parts = [_LINE_ENDS.sub(" ", part.replace("|||", " ")) for part in (*references, candidate)]
        # the space at the end of an empty caption stays: without it METEOR takes the last reference for the caption
        answer = self._ask("SCORE ||| " + " ||| ".join(parts))
        try:
            counts = np.array(answer.split(), np.float64)
        except ValueError:
            raise NotRun(f"METEOR answered: {answer[:200]}") from None
        if counts.shape != (_COUNTS,):
            raise NotRun(f"METEOR answered {len(counts)} counts for a caption, not {_COUNTS}")
        matched = [counts[columns].sum() for columns in _MATCHES]
        if counts[_CHUNKS] == 1 and np.array_equal(matched, counts[_LENGTHS]):
            counts[_CHUNKS] = 0
        return counts

    def score(self, statistics: np.ndarray) -> float:
        """The score 0..1 of counts [23]: of one caption, or of the sum over many."""
        counts = " ".join(
            str(int(count)) if count == int(count) else repr(float(count)) for count in statistics
        )
        self._ask(f"EVAL ||| {counts}")
        return float(self._line())  # of one segment, then of all

    def _ask(self, question: str) -> str:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # the answer says why
            self._process.stdin.write(f"{question}\n".encode())
            self._process.stdin.flush()
        return self._line()

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            raise NotRun(f"METEOR ended by itself: {_end_of(self._errors)}")
        return line.decode().strip()


def find_corenlp(folder: Path | None = None) -> list[Path]:
    """The two jars of Stanford CoreNLP 3.6.0 that SPICE needs.

    They are looked for in `folder`, else in the folder that DIPTYCH_CORENLP names, else where pycocoevalcap keeps
    them. Raises NotRun where one of them is missing.
    """
    named = folder or (Path(os.environ[CORENLP_VARIABLE]) if os.environ.get(CORENLP_VARIABLE) else None)
    place = named or _package_folder("spice") / "lib"
    jars = [place / name for name in CORENLP_JARS]
    for jar in jars:
        if not jar.is_file():
            raise NotRun(
                f"SPICE needs Stanford CoreNLP 3.6.0 and {jar} is missing; unpack {' and '.join(CORENLP_JARS)} of "
                f"{CORENLP_ARCHIVE} (nlp.stanford.edu/software) into a folder and name it in {CORENLP_VARIABLE}"
            )
    return jars


def spice_scores(
    java: str, jars: Sequence[Path], candidates: Mapping[str, str], references: Mapping[str, Sequence[str]]
) -> dict[str, float]:
    """SPICE's F-score 0..1 of each caption. A caption without a word has nothing that a reference could hold too, so it is
    0 as SPICE counts; it and references without a word are not given to the parser.

    Raises NotRun where the program fails.
    """
    spoken = {image_id: [text for text in references[image_id] if text.strip()] for image_id in candidates}
    items = [
        {"image_id": image_id, "test": caption, "refs": spoken[image_id]}
        for image_id, caption in candidates.items()
        if caption.strip() and spoken[image_id]
    ]
    if not items:
        return dict.fromkeys(candidates, 0.0)
    spice = _package_folder("spice")
    classpath = os.pathsep.join(
        map(str, [spice / "spice-1.0.jar", *sorted((spice / "lib").glob("*.jar")), *jars])
    )
    with tempfile.TemporaryDirectory(prefix="diptych-spice-") as name:
        folder = Path(name)
        (folder / "in.json").write_text(json.dumps(items), encoding="utf-8")
        arguments = [*_OPEN, "-Dfile.encoding=UTF-8", "-Xmx8G", "-cp", classpath, "edu.anu.spice.SpiceScorer"]
        arguments += [str(folder / "in.json"), "-out", str(folder / "out.json"), "-subset", "-silent"]
        _output(java, arguments, b"", "SPICE", cwd=spice)
        try:
            rows = json.loads((folder / "out.json").read_text(encoding="utf-8"))
            scores = {str(row["image_id"]): _number(row["scores"]["All"]["f"]) for row in rows}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise NotRun(f"SPICE ended without a result ({error})") from None
    missing = [item["image_id"] for item in items if item["image_id"] not in scores]
    if missing:
        raise NotRun(f"SPICE gave no score for {len(missing)} pictures (first: {missing[0]})")
    return {image_id: scores.get(image_id, 0.0) for image_id in candidates}


def _number(value: float | None) -> float:
    # its JSON has null where a number is none
    return math.nan if value is None else float(value)


def _package_folder(part: str) -> Path:
    # not imported: pycocoevalcap's spice package downloads when it is used
    from importlib.util import find_spec

    spec = find_spec("pycocoevalcap")
    if spec is None or not spec.submodule_search_locations:
        raise NotRun("pycocoevalcap, which brings the Java programs, is missing; pip install pycocoevalcap")
    return Path(next(iter(spec.submodule_search_locations))) / part


def _command(java: str, arguments: Sequence[str]) -> list[str]:
    ending = shutil.which("setpriv")
    return [*([ending, "--pdeathsig", "KILL"] if ending else []), java, *_ENGLISH, *arguments]


def _output(java: str, arguments: Sequence[str], content: bytes, name: str, cwd: Path | None = None) -> bytes:
    """Standard output of a run to its end; `subprocess.run` kills it when an exception passes."""
    done = subprocess.run(_command(java, arguments), input=content, capture_output=True, cwd=cwd, check=False)
    if done.returncode:
        said = [line for line in done.stderr.decode(errors="replace").splitlines() if line.strip()]
        raise NotRun(f"{name} failed with status {done.returncode}: {' '.join(said[:2])[:300]}")
    return done.stdout


def _end_of(file: IO[bytes]) -> str:
    file.seek(0)
    lines = [line for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    return " ".join(lines[-2:])[:300] or "it said nothing"
