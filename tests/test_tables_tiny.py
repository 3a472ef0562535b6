"""A second table is a module of data and a dvc.yaml: one of stand-ins, run by the machinery of all tables in
a clone."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from pathlib import Path

import pytest
from pipeline_clone import Clone
from waiting import HANG_SECONDS, wait_until

DATA = '''
from pipelines.tables.params import TableParams
from pipelines.tables.table import Claim, Column, Comparison, Row, Table

CHANGES = {"ours": {"level": 0.5}, "other": {"level": 0.25}}
SHARE, DISTANCE = "answer.share", "answer.distance"
TABLE = Table(
    name="tiny",
    section=TableParams,
    folder="ablations/tiny",
    title="A tiny table",
    introduction="Stand-ins.",
    rows={name: Row(f"Row {name}", {"answer": name}) for name in CHANGES},
    columns={SHARE: Column("share right"), DISTANCE: Column("distance", higher_is_better=False)},
    done={"answer": "answered"},
    claims={
        "right": Claim("Ours is right more often.", (Comparison(SHARE, "other", "better"),)),
        "near": Claim(
            "Ours is nearer.", (Comparison(DISTANCE, "other", "better"),), {(DISTANCE, "other"): "it is a stand-in"}
        ),
    },
)
'''
PIPELINE = """
vars:
  - ../../../params.yaml:tiny

stages:
  trained:
    matrix:
      row: [ours, other]
      seed: ${tiny.seeds}
    wdir: ../../..
    cmd: python stand_in.py trained ${item.row} ${item.seed}
    deps:
      - stand_in.py
    params:
      - pipelines/tables/tiny/table.py:
          - CHANGES.${item.row}
    outs:
      - ablations/tiny/models/${item.row}-${item.seed}:
          cache: false

  measured:
    matrix:
      row: [ours, other]
      seed: ${tiny.seeds}
    wdir: ../../..
    cmd: python stand_in.py measured ${item.row} ${item.seed}
    deps:
      - ablations/tiny/models/${item.row}-${item.seed}
    outs:
      - ablations/tiny/measured/${item.row}-${item.seed}:
          cache: false

  tiny:
    wdir: ../../..
    cmd: python -m pipelines.tables.page tiny
    deps:
      - ablations/tiny/measured
      - code/tables/page.json
      - code/tables/tiny/table.json
    params:
      - tiny
    outs:
      - ablations/tiny/index.html:
          cache: false
      - ablations/tiny/costs/tiny.json:
          cache: false
    metrics:
      - metrics/tiny.json:
          cache: false
"""
# While there is a file `hold`, measurements wait.
STAND_IN = """
import ast, json, sys, time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

# importing it would take seconds
data = Path("pipelines/tables/tiny/table.py").read_text()
CHANGES = ast.literal_eval(data.partition("CHANGES = ")[2].splitlines()[0])

kind, row, seed = sys.argv[1:]
model, folder = Path(f"ablations/tiny/models/{row}-{seed}"), Path(f"ablations/tiny/measured/{row}-{seed}")
with open("ran", "a") as file:
    file.write(f"{kind}@{row}-{seed}\\n")
if kind == "trained":
    model.parent.mkdir(parents=True, exist_ok=True)
    model.write_text(f"{CHANGES[row]['level']}")
else:
    Path(f"waiting-{row}-{seed}").touch()
    while Path("hold").exists():
        time.sleep(0.05)
    values = [float(model.read_text()) + (number + int(seed)) / 100 for number in range(10)]
    folder.mkdir(parents=True)
    table = {"image_id": [f"{number}" for number in range(10)], "answer.share": values, "answer.distance": values}
    pq.write_table(pa.table(table), folder / "pictures.parquet")
    figures = [{"name": name, "value": sum(values) / 10} for name in ("answer.share", "answer.distance")]
    (folder / "figures.json").write_text(json.dumps(figures))
    (folder / "parameters.txt").write_text("2000000")
"""
TINY = Path("pipelines/tables/tiny")


@pytest.fixture
def tiny(clone: Clone) -> Clone:
    """A clone with that table."""
    for path, text in (
        (TINY / "table.py", DATA),
        (TINY / "dvc.yaml", PIPELINE),
        (Path("stand_in.py"), STAND_IN),
    ):
        (clone.folder / path).parent.mkdir(exist_ok=True)
        (clone.folder / path).write_text(text)
    with (clone.folder / "params.yaml").open("a") as params:
        params.write("tiny:\n  seeds: [0, 1]\n")
    return clone


def driving(clone: Clone) -> dict:
    """How the driver starts, the repository being where stand-ins import from."""
    command = clone.command("python", "-m", "pipelines.tables", "tiny", "--jobs", "2")
    command["env"]["PYTHONPATH"] += f":{clone.folder}"
    return command


def drive(clone: Clone) -> str:
    """The driver's lines."""
    done = subprocess.run(**driving(clone), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


@pytest.mark.slow  # test_tables_driver.py stops drivers, test_table_x_lxmert.py is a second table
def test_a_second_table_is_data(tiny: Clone) -> None:
    """It runs, is stopped, goes on, and runs again only what a changed row changes; no other file knows of
    it."""
    assert "python -m pipelines.tables tiny" in tiny.run("make", "--dry-run", "tiny").stdout
    (tiny.folder / "hold").touch()
    process = subprocess.Popen(**driving(tiny), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_until(lambda: len(list(tiny.folder.glob("waiting-*"))) >= 2, process)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=HANG_SECONDS)[0]
    assert process.returncode == 143 and "Traceback" not in said, said
    assert not (tiny.folder / "metrics/tiny.json").exists()
    before = (tiny.folder / "ran").read_text().split()
    started = [name for name in before if name.startswith("measured")]
    assert {name for name in before if name.endswith("-0")} >= {"trained@ours-0", "trained@other-0"}
    assert len(started) == 2 and not (tiny.folder / "ablations/tiny/measured").exists()

    (tiny.folder / "hold").unlink()
    (tiny.folder / "ran").unlink()
    said = drive(tiny)
    assert said.rstrip().endswith("tiny: metrics/tiny.json, ablations/tiny/index.html")
    ran = (tiny.folder / "ran").read_text().split()
    every = {f"{kind}@{row}-{seed}" for kind in ("trained", "measured") for row in ("ours", "other") for seed in (0, 1)}
    finished = {name for name in before if name not in started}
    assert len(ran) == len(set(ran)) and set(ran) | finished == every, "what was stopped is run again"
    assert not set(ran) & finished, "and what was finished is not"
    figures = json.loads((tiny.folder / "metrics/tiny.json").read_text())
    assert figures["claim.right"] == "holds" and figures["claim.near"] == "fails"
    assert figures["seeds"] == 2 and figures["ours.parameters"] == 2_000_000
    assert figures["other.answer.share.difference"] == figures["other.answer.share.low"] == -0.25
    page = (tiny.folder / "ablations/tiny/index.html").read_text()
    assert "<title>A tiny table" in page and "Row other" in page and "on 10 answered pictures" in page
    assert "Likely, it is a stand-in." in page and "Samplers" not in page
    assert (tiny.folder / ".cache/ablations/tiny/logs/tiny.log").is_file()
    assert (tiny.folder / "ablations/tiny/costs/tiny.json").is_file()

    data = tiny.folder / TINY / "table.py"
    data.write_text(data.read_text().replace('"other": {"level": 0.25}', '"other": {"level": 0.75}'))
    (tiny.folder / "ran").unlink()
    said = drive(tiny)
    assert sorted((tiny.folder / "ran").read_text().split()) == sorted(name for name in every if "other" in name)
    assert len(re.findall(r"ours-\d was up to date", said)) == 4
    assert json.loads((tiny.folder / "metrics/tiny.json").read_text())["claim.right"] == "fails"
    page = (tiny.folder / "ablations/tiny/index.html").read_text()
    told = re.search(r"share right, Row other: ours is 31\.\d% worse, within ± 0\.0%\.(.*)", page)
    assert told and "Likely" not in told[1], "no likely reason is given"


# One process, as importing all stages takes seconds: runner.check with the params.yaml of each of its arguments.
CHECKS = """
import sys
from pathlib import Path

from pipelines.runner.check import main

for text in sys.argv[1:]:
    Path("params.yaml").write_text(text)
    try:
        main()
        print("right", file=sys.stderr)
    except SystemExit as ended:
        print(ended, file=sys.stderr)
"""


def test_a_tables_section_is_checked_with_the_others(tiny: Clone) -> None:
    right = (tiny.folder / "params.yaml").read_text()
    wrong = right.replace("tiny:\n  seeds: [0, 1]", "tiny:\n  seeds: [0, 0]")
    unknown = right.replace("tiny:\n", "tinny:\n")
    done = tiny.run("python", "-c", CHECKS, right, wrong, unknown)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    said = done.stderr.splitlines()
    assert said[0] == "right" and len(said) == 3
    assert "params.yaml: tiny: seeds must be different whole numbers" in said[1]
    assert "params.yaml: tinny: unknown section" in said[2]
