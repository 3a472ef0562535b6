"""The paper's table 1: rows, their cost, the driver that runs them, the verdicts and the page."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pipeline_clone import REPOSITORY, Clone
from ruamel.yaml import YAML

from pipelines.evaluate import EvaluateParams, caption_figures
from pipelines.runner.params import Machine, ParameterError, provided_by, read_params, read_section
from pipelines.runner.profile import write_profile
from pipelines.runner.stage import Stage
from pipelines.tables import __main__ as driver
from pipelines.tables import table1
from pipelines.tables.item import DRIVER_VARIABLE, Table1Params
from pipelines.tables.sampler import SAMPLERS
from pipelines.tables.sequence import sequence_params
from pipelines.tables.table import CLAIMS, COLUMNS, SAMPLER_TITLES, TABLE, models
from pipelines.tables.token import token_params
from pipelines.tables.trainings import TRAININGS, tasks_of
from pipelines.train_sequence import TrainSequenceParams
from pipelines.train_token import TrainTokenParams

MATRICES = YAML(typ="safe").load(REPOSITORY / "pipelines/tables/dvc.yaml")["stages"]
ONE_ITEM = "from pipelines.tables import __main__ as d; d.run_items([d.Item('token@ours-0')], 1, 0, 1)"
BLACK_PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108000000003a7e9b550000000a49444154789c6360000000020001e221bc330000000049"
    "454e44ae426082"
)


@pytest.fixture
def sections(tmp_path: Path) -> tuple[TrainTokenParams, TrainSequenceParams]:
    """train_token and train_sequence of the default profile."""
    write_profile("toybox", tmp_path / "params.yaml")
    params = read_params(tmp_path / "params.yaml")
    provided = provided_by(read_section(Machine, "machine", params), 0)
    token = read_section(TrainTokenParams, "train_token", params, provided=provided)
    return token, read_section(TrainSequenceParams, "train_sequence", params, provided=provided)


# --- rows ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [None, 333])
def test_two_models_of_one_task_cost_what_ours_costs(sections, steps: int | None) -> None:
    token, sequence = sections
    rows = {row: token_params(row, token, steps, 7).training for row in ("ours", "captions", "paintings")}
    assert rows["ours"].steps == (steps or token.training.steps)
    assert rows["captions"].steps + rows["paintings"].steps == rows["ours"].steps
    assert rows["captions"].steps == int(rows["ours"].steps * token.training.caption_share)
    assert (rows["captions"].caption_share, rows["paintings"].caption_share) == (1, 0)
    second = {row: sequence_params(row, sequence, steps, 7).training for row in rows}
    assert second["captions"].steps + second["paintings"].steps == second["ours"].steps
    assert set(second["captions"].cycle) == {"scst"} and set(second["paintings"].cycle) == {"clip", "paint"}
    assert {config.seed for config in (*rows.values(), *second.values())} == {7}


def test_too_few_steps_for_a_row_are_named(sections) -> None:
    token, sequence = sections
    assert sequence.training.cycle[0] == "scst"
    with pytest.raises(ParameterError, match="table1.sequence_steps 1 leaves no step to row paintings"):
        sequence_params("paintings", sequence, 1, 0)
    token = replace(token, training=replace(token.training, steps=1200, caption_share=0.25))
    assert token_params("ours", token, 3, 0).training.steps == 3
    with pytest.raises(
        ParameterError, match=r"table1.token_steps 3 with .*caption_share 0.25 leaves no step to row captions"
    ):
        token_params("captions", token, 3, 0)
    captions_alone = replace(token, training=replace(token.training, caption_share=1.0))
    with pytest.raises(
        ParameterError, match=r"train_token.training.steps 1200 with .* leaves no step to row paintings"
    ):
        token_params("paintings", captions_alone, None, 0)


def test_rows_differ_from_ours_in_one_thing(sections) -> None:
    token, sequence = sections
    of_token = {
        row: token_params(row, token, None, token.training.seed) for row in ("ours", "dense", "discrete")
    }
    assert of_token["ours"] == replace(token, training=replace(token.training, evaluation=None))
    assert of_token["ours"].image_features == "two_level"
    for row in ("dense", "discrete"):
        assert of_token[row] == replace(of_token["ours"], image_features=row)
    ours = sequence_params("ours", sequence, None, sequence.training.seed)
    assert ours == replace(sequence, training=replace(sequence.training, evaluation=None))
    features = sequence_params("features", sequence, None, sequence.training.seed)
    assert features == replace(ours, training=replace(ours.training, painting_loss="features"))
    for row in ("dense", "discrete"):
        assert sequence_params(row, sequence, None, sequence.training.seed) == ours


def test_the_driver_runs_the_whole_matrix_in_order() -> None:
    items = driver.work([0, 5])
    wanted = {
        f"{name}@{'-'.join(filter(None, (value, str(seed))))}"
        for name in ("token", "sequence", "features", "measured")
        for value in next((v for k, v in MATRICES[name]["matrix"].items() if k != "seed"), [""])
        for seed in (0, 5)
    }
    assert {item.name for item in items} == wanted and len(items) == len(wanted)
    for place, item in enumerate(items):
        assert set(item.needs) <= {earlier.name for earlier in items[:place]}
    assert {item.name for item in driver.samplers()} == {
        f"sampler@{name}" for name in MATRICES["sampler"]["matrix"]["sampler"]
    }
    assert list(SAMPLERS) == list(SAMPLER_TITLES) and set(models()) == set(
        MATRICES["measured"]["matrix"]["model"]
    )
    assert {tasks_of(model) for model in models()} == {"both", "captions", "paintings"}
    assert {training.token for training in TRAININGS.values()} == set(MATRICES["token"]["matrix"]["row"])


def test_samplers_are_timed_alone_on_a_gpu() -> None:
    items = driver.work([0])
    assert driver.rounds(items, 2, 0) == [([*items, *driver.samplers()], 2)]
    assert driver.rounds(items, 4, 1) == [(items, 4), (driver.samplers(), 1)]
    assert driver.rounds(items, 2, 4) == [(items, 2), (driver.samplers(), 2)]


@pytest.mark.parametrize("seeds", [(), (1, 1), (-1,)])
def test_wrong_seeds_are_named(seeds) -> None:
    with pytest.raises(ValueError, match="seeds must be different whole numbers"):
        Table1Params(seeds, None, None, None, None, 1, None)


# --- the driver, with a stand-in for dvc ------------------------------------------------------------------------------

STAND_IN = """#!/bin/sh
for item; do :; done
item=${item##*:}
case "$*" in *" status "*)
  [ -e "broken-${item##*-}" ] && echo "ERROR: unreadable dvc.lock" >&2 && exit 1
  if [ -e "stale-${item##*-}" ]; then echo '{"measured": [{"changed deps": {}}]}'; else echo '{}'; fi
  exit;;
esac
[ -e "$item.done" ] && echo "Stage $item didn't change, skipping" && exit 0
if [ -e "$item.busy" ]; then rm "$item.busy"; echo "ERROR: 'a' is busy, it is being blocked by:"; exit 1; fi
echo "Running stage '$item'"
echo "$item" >> ran
case $item in *${FAIL:-nothing}*) echo "token dense 0: params.yaml: no such thing"; echo "ERROR: failed to reproduce '$item'"; exit 1;; esac
sleep ${PAUSE:-0}
echo "$DIPTYCH_CORES" > "$item.done"
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with the smoke profile, where `dvc` is a script that notes what ran; items named $FAIL fail."""
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bin/dvc"
    script.write_text(STAND_IN)
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    write_profile("smoke", tmp_path / "params.yaml")
    return tmp_path


def test_a_failed_item_leaves_the_others(stand_in: Path, capfd, monkeypatch) -> None:
    monkeypatch.setenv("FAIL", "dense")
    (stand_in / "token@ours-0.busy").touch()
    with pytest.raises(
        ParameterError, match=r"token@dense-0: token dense 0: params.yaml: no such thing"
    ) as caught:
        driver.run_items(driver.work([0]), 2, 0, 4)
    assert "and 2 more" in str(caught.value) and "\n" not in str(caught.value)
    ran = (stand_in / "ran").read_text().split()
    assert "sequence@dense-0" not in ran and "measured@sequence_dense-0" not in ran
    assert len(ran) == len(driver.work([0])) - 2 and len(set(ran)) == len(ran)
    assert (stand_in / "token@ours-0.done").read_text().strip() == "2", "four cores for two items"
    printed = capfd.readouterr()
    assert "min left" in printed.out and "sequence@dense-0 not run" in printed.err


def importing() -> dict[str, str]:
    """The environment of a process that imports this repository from any folder."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), *sys.path])}


@pytest.mark.parametrize("finished", [0, 4])  # in what rows share, and among the items
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_stopped_driver_goes_on_where_it_was(stand_in: Path, sent: signal.Signals, finished: int) -> None:
    script = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a background job inherits it ignored
        "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"
        "from pipelines.tables.__main__ import main\n"
        "sys.argv[1:] = ['--seeds', '0', '--jobs', '2']\n"
        "main()"
    )
    environment = importing()
    pause = {"PAUSE": "0.3" if finished else "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", script], env={**environment, **pause}, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    started = stand_in / "ran"
    while not started.exists() or len(list(stand_in.glob("*.done"))) < finished:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(sent)
    said = process.communicate(timeout=30)[1]
    assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}[sent]
    assert "Traceback" not in said
    before = {path.name for path in stand_in.glob("*.done")}
    total = 1 + len(driver.work([0])) + len(driver.samplers()) + 1
    assert finished <= len(before) < (total if finished else 1)
    time.sleep(1)
    assert {path.name for path in stand_in.glob("*.done")} == before, "nothing goes on in the background"
    (stand_in / "ran").unlink()
    subprocess.run([sys.executable, "-c", script], env=environment, check=True)
    ran = (stand_in / "ran").read_text().split()
    after = {path.name for path in stand_in.glob("*.done")}
    assert len(after) == total and {f"{name}.done" for name in ran} | before == after
    assert not {f"{name}.done" for name in ran} & before, "what was done is not done again"


def test_stale_seeds_stay_out_of_the_table(stand_in: Path, monkeypatch, capsys) -> None:
    write_measured({}, 3)
    (stand_in / "stale-1").touch()
    for seed in (0, 1, 2):
        driver.leave_out_if_stale(seed)
    assert table1.measured_seeds((0, 1, 2)) == [0, 2]
    assert capsys.readouterr().out.count("seed 1 is left out") == 1
    (stand_in / "broken-2").touch()
    with pytest.raises(ParameterError, match="seed 2: ERROR: unreadable dvc.lock"):
        driver.leave_out_if_stale(2)
    assert table1.measured_seeds((0, 1, 2)) == [0, 2], "nothing is removed where nobody knows"


def drive(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`make table1` with arguments, and what it said."""
    return subprocess.run(
        [sys.executable, "-m", "pipelines.tables", *arguments],
        env={**importing(), **environment},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_seeds_are_run_once(stand_in: Path) -> None:
    assert drive("--seeds", "0", "0", "--jobs", "2").returncode == 0
    ran = (stand_in / "ran").read_text().split()
    assert len(ran) == len(set(ran)) == 1 + len(driver.work([0])) + len(driver.samplers()) + 1


def test_missing_java_ends_before_the_trainings(stand_in: Path) -> None:
    before, section, after = (stand_in / "params.yaml").read_text().partition("table1:")
    wanted = re.sub(r"java: \w+", "java: true", after, count=1)
    (stand_in / "params.yaml").write_text(before + section + wanted)
    done = drive(PATH=str(stand_in / "bin"), JAVA_HOME="")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "Java was not found" in done.stderr and "set table1.java to null in params.yaml" in done.stderr
    assert not (stand_in / "ran").exists()


def test_a_killed_item_is_named(finished_clone: Clone, tmp_path: Path) -> None:
    """Where memory runs out, the kernel kills: what is left of the item is a progress bar and DVC's line."""
    clone = finished_clone.copy(tmp_path / "clone")
    pipeline = clone.folder / "pipelines/tables/dvc.yaml"
    cmd = "cmd: python -m pipelines.tables.token ${item.row} ${item.seed}"
    text = pipeline.read_text()
    assert cmd in text
    pipeline.write_text(text.replace(cmd, "cmd: 'echo \"rows: 45%|###\"; kill -9 $$'"))
    done = clone.run("python", "-c", ONE_ITEM)
    assert "token@ours-0: killed by signal 9; where memory ran out, run fewer items" in done.stderr, (
        done.stderr
    )


def test_a_locked_repository_costs_no_work(finished_clone: Clone, tmp_path: Path) -> None:
    """An item whose end meets the lock of another command waits for it."""
    clone = finished_clone.copy(tmp_path / "clone")
    holder = (
        "import sys, time, zc.lockfile\n"
        "lock = zc.lockfile.LockFile('.dvc/tmp/lock'); print('held', flush=True); time.sleep(8); lock.close()"
    )
    process = subprocess.Popen(
        **clone.command("python", "-c", ONE_ITEM), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    log = clone.folder / ".cache/ablations/logs/token@ours-0.log"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (log.exists() and "Running stage" in log.read_text()):
        time.sleep(0.05)
    with subprocess.Popen(
        [sys.executable, "-c", holder], cwd=clone.folder, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        out, _ = process.communicate(timeout=120)
    assert process.returncode == 0, out
    assert log.read_text().count("Running stage") == 1
    assert "token@ours-0" in (clone.folder / "pipelines/tables/dvc.lock").read_text()


# --- the table, on synthetic measurements -----------------------------------------------------------------------------


def write_measured(gains: dict[str, dict[str, float]], seeds: int, noise: float = 0.02) -> None:
    """Measurements in which ours is better than a row's models by `gains` in a column, a share of 1; elsewhere equal."""
    generator = np.random.default_rng(1)
    base = {column: generator.uniform(0.5, 1.5, (seeds, 60)) for column in COLUMNS}
    for row in TABLE.values():
        for model in row.models:
            worse = next((g for name, g in gains.items() if model in TABLE[name].models), {})
            for seed in range(seeds):
                folder = Path(f"ablations/measured/{model}-{seed}")
                folder.mkdir(parents=True, exist_ok=True)
                records: list[dict[str, Any]] = []
                columns: dict[str, Any] = {"image_id": [f"{number}" for number in range(60)]}
                for column, what in COLUMNS.items():
                    own = base[column][seed] - worse.get(column, 0.0) + generator.normal(0, noise, 60)
                    for name in what.parts or (column,):
                        columns[name] = own
                    missing = column in ("caption.meteor", "caption.spice")
                    value, reason = (None, "no Java") if missing else (float(own.mean()), None)
                    records.append({"name": column, "value": value, "reason": reason})
                (folder / "figures.json").write_text(json.dumps(records))
                (folder / "parameters.txt").write_text("1000\n")
                pq.write_table(pa.table(columns), folder / "pictures.parquet")
                rows = [
                    {
                        "image_id": "0",
                        "prompt": "a <red> kite",
                        "caption": "c",
                        "painted": BLACK_PNG,
                        "real": BLACK_PNG,
                    }
                ]
                pq.write_table(pa.Table.from_pylist(rows), folder / "examples.parquet")  # fmt: skip
    Path("ablations/samplers").mkdir(parents=True, exist_ok=True)
    for name in SAMPLER_TITLES:
        record = {"name": "painted.seconds", "value": 0.5, "low": None, "high": None}
        Path(f"ablations/samplers/{name}.json").write_text(json.dumps([record]))


def made_table(tmp_path: Path, seeds: int) -> dict[str, Any]:
    machine = Machine(1, 0, "cpu", "float32", 1.0, "features")
    table1.main(
        Stage("ablations/table1", 0, machine, {}),
        Table1Params(tuple(range(seeds)), None, None, None, None, 1, None),
    )
    return json.loads((tmp_path / "metrics/table1.json").read_text())


GOOD = {
    "dense": {"painted.clip_score_judge": 0.1, "painted.r_precision_judge": 0.1},
    "discrete": {"caption.cider_d": 0.1},
    "without_sequence": {"caption.cider_d": 0.1, "painted.clip_score_judge": 0.1},
    "without_clip": {"painted.clip_score_judge": 0.1, "painted.r_precision_judge": 0.1},
}


def opposite(gains: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    return {row: {column: -gain for column, gain in columns.items()} for row, columns in gains.items()}


@pytest.mark.parametrize(
    ("gains", "noise", "seeds", "wanted"),
    [
        (GOOD, 0.02, 3, dict.fromkeys(CLAIMS, "holds")),
        (
            opposite({**GOOD, "without_unified": {"caption.cider_d": 0.1}}),
            0.02,
            3,
            dict.fromkeys(CLAIMS, "fails"),
        ),
        ({}, 0.6, 3, dict.fromkeys(CLAIMS, "undecided")),
        (GOOD, 0.02, 1, dict.fromkeys(CLAIMS, "undecided")),
        # what does not count
        ({**GOOD, "without_clip": GOOD["without_clip"] | {"painted.r_precision_hard_judge": -0.1}}, 0.02, 3, dict.fromkeys(CLAIMS, "holds")),
        # nothing is lost, so that no interval excludes zero
        ({}, 0.02, 3, {"unified": "holds", "two_level": "undecided", "sequence_level": "undecided", "clip_loss": "undecided"}),
    ],
)  # fmt: skip
def test_claims_have_three_outcomes(
    gains, noise: float, seeds: int, wanted: dict[str, str], tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_measured(gains, seeds, noise)
    figures = made_table(tmp_path, seeds)
    assert {name: figures[f"claim.{name}"] for name in CLAIMS} == wanted
    assert figures["seeds"] == seeds and figures["without_unified.parameters"] == 2000
    assert "ours.caption.meteor.mean" not in figures
    page = (tmp_path / "ablations/table1/index.html").read_text()
    lost = gains.get("without_clip", {}).get("painted.r_precision_hard_judge", 0) < 0
    assert not lost or '<span class="verdict fails">' in page
    assert "no Java" in page and "a &lt;red&gt; kite" in page and "http" not in page
    for verdict in set(wanted.values()):
        assert f'<span class="verdict {verdict}">{verdict}</span>' in page
    assert ("Likely" in page or "too few" in page or "one seed has no interval" in page) == (
        set(wanted.values()) != {"holds"}
    )


def test_only_like_is_compared_with_like(tmp_path: Path, monkeypatch) -> None:
    """Models of one task see only their pictures; other pictures and other tokens than ours' are refused."""
    monkeypatch.chdir(tmp_path)
    write_measured(GOOD, 3)
    for seed in range(3):
        for model in ("sequence_captions", "sequence_paintings", "sequence_ours", "token_ours"):
            path = Path(f"ablations/measured/{model}-{seed}/pictures.parquet")
            table = pq.read_table(path).to_pylist()
            for number, row in enumerate(table):
                own = "caption." if number < 20 else "painted."  # each picture is captioned or painted for
                row |= {name: None for name in row if "." in name and not name.startswith(own)}
            kept = {"sequence_captions": table[:20], "sequence_paintings": table[20:]}.get(model, table[::-1])
            pq.write_table(pa.Table.from_pylist(kept), path)
    for model in ("dense", "discrete", "features"):
        for seed in range(3):
            shutil.copy(
                f"ablations/measured/sequence_ours-{seed}/pictures.parquet",
                f"ablations/measured/sequence_{model}-{seed}",
            )
    assert made_table(tmp_path, 3)["claim.unified"] == "holds"
    assert "on 20 captioned and 40 painted pictures" in (tmp_path / "ablations/table1/index.html").read_text()

    figures = Path("ablations/measured/sequence_dense-1/figures.json")
    before = figures.read_text()
    records = json.loads(before)
    records[0]["model"], records[2]["model"] = "words", "words"
    figures.write_text(json.dumps(records))
    made_table(tmp_path, 3)
    other = Path("ablations/measured/sequence_ours-1/figures.json")
    other.write_text(
        other.read_text().replace('"name": "caption.bleu_4"', '"name": "caption.bleu_4", "model": "PTB"')
    )
    with pytest.raises(
        ParameterError, match=r"B@4 was measured in different ways \(PTB; words\); remove ablations/measured"
    ):
        made_table(tmp_path, 3)
    figures.write_text(before)
    fewer = Path("ablations/measured/sequence_dense-2/pictures.parquet")
    pq.write_table(pq.read_table(fewer).slice(1), fewer)
    with pytest.raises(
        ParameterError, match="sequence_dense-2 was measured on other pictures than sequence_dense-0"
    ):
        made_table(tmp_path, 3)


def test_samplers_that_have_not_run_are_left_out_and_named(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_measured({}, 1, 0.02)
    made_table(tmp_path, 1)
    assert "Not run: " not in sampler_note(tmp_path)
    Path("ablations/samplers/rows.json").unlink()
    made_table(tmp_path, 1)
    assert "Not run: top left to bottom right; `make table1` runs them." in sampler_note(tmp_path)
    figures = json.loads((tmp_path / "metrics/samplers.json").read_text())
    assert len(figures) == len(SAMPLER_TITLES) - 1 and "samplers.rows.painted.seconds" not in figures


def sampler_note(folder: Path) -> str:
    """What the page says about its table of samplers."""
    page = (folder / "ablations/table1/index.html").read_text()
    return page[page.index("Samplers, as in") :].partition("<table")[0]


def test_unfinished_seeds_are_left_out_and_none_is_an_error(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ParameterError, match=r"no seed of \[0\] has all its rows: run `make table1`"):
        made_table(tmp_path, 1)
    write_measured({}, 2)
    shutil.rmtree("ablations/measured/token_ours-1")
    machine = Machine(1, 0, "cpu", "float32", 1.0, "features")
    table1.main(
        Stage("ablations/table1", 0, machine, {}), Table1Params((0, 1), None, None, None, None, 1, None)
    )
    assert json.loads(Path("metrics/table1.json").read_text())["seeds"] == 1
    assert "seeds 1 are not finished" in Path("ablations/table1/index.html").read_text()


# --- real items -------------------------------------------------------------------------------------------------------


def run_item(clone: Clone, *item: str) -> str:
    """What it says on stderr, progress bars included."""
    done = clone.run("python", "-m", f"pipelines.tables.{item[0]}", *item[1:])
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


def digest(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_an_unknown_row_is_named(clone: Clone) -> None:
    for arguments, message in (
        (
            ("token", "our", "0"),
            "token our-0: our: no such row (known: ours, captions, paintings, dense, discrete)",
        ),
        (
            ("sampler", "mask_predict"),
            "sampler mask_predict: mask_predict: no such sampler (known: mask_predict_1,",
        ),
    ):
        done = clone.run("python", "-m", f"pipelines.tables.{arguments[0]}", *arguments[1:])
        assert done.returncode == 1 and message in done.stderr and "Traceback" not in done.stderr


def test_a_row_is_trained_measured_and_compared(finished_clone: Clone, tmp_path: Path) -> None:
    """Both stages and the measurement of ours for two seeds; stand-ins for other rows are copies, equal to ours."""
    clone = finished_clone.copy(tmp_path / "clone")
    outputs = clone.folder / "ablations"
    for seed in ("0", "1"):
        run_item(clone, "token", "ours", seed)
        run_item(clone, "sequence", "ours", seed)
        run_item(clone, "measured", "sequence_ours", seed)
        for model in models():
            if model != "sequence_ours":
                shutil.copytree(
                    outputs / f"measured/sequence_ours-{seed}", outputs / f"measured/{model}-{seed}"
                )
    ours = digest(outputs / "models/token_ours-0")
    assert ours == digest(clone.folder / "models/token"), "seed 0 of ours is the pipeline's own model"
    assert ours != digest(outputs / "models/token_ours-1")
    assert digest(outputs / "models/sequence_ours-0") == digest(clone.folder / "models/sequence")
    run_item(clone, "sampler", "mask_predict_1")
    for name in SAMPLER_TITLES:
        if name != "mask_predict_1":
            shutil.copy(outputs / "samplers/mask_predict_1.json", outputs / f"samplers/{name}.json")
    run_item(clone, "table1")
    figures = json.loads((clone.folder / "metrics/table1.json").read_text())
    measured = json.loads((clone.folder / "metrics/evaluate.json").read_text())
    records = json.loads((outputs / "measured/sequence_ours-0/figures.json").read_text())
    assert {r["name"]: r["value"] for r in records}["caption.cider_d"] == pytest.approx(
        measured["caption.cider_d"], abs=1e-6
    )
    assert figures["dense.caption.cider_d.difference"] == 0 == figures["dense.caption.cider_d.low"]
    assert figures["claim.unified"] in ("holds", "undecided")
    samplers = json.loads((clone.folder / "metrics/samplers.json").read_text())
    assert samplers["samplers.mask_predict_1.painted.seconds"] > 0
    shown = clone.run("dvc", "metrics", "show", "metrics/table1.json", "--json")
    assert shown.returncode == 0 and "claim.unified" in shown.stdout
    assert clone.repro() == [], "the pipeline knows nothing of it"
    assert list((clone.folder / ".cache/training").rglob("*.pt")) == []
    clone.set_params("table1.pictures={splits: [test, ablation], limit: 36}")
    run_item(clone, "measured", "sequence_ours", "0")
    pictures = pq.read_table(outputs / "measured/sequence_ours-0/pictures.parquet")
    assert len(pictures) == 36 and pictures["caption.cider_d"].null_count == 0
    assert {name.split("-")[0] for name in pictures["image_id"].to_pylist()} == {"test", "ablation"}


def test_a_row_ends_with_its_driver_and_goes_on(finished_clone: Clone, tmp_path: Path) -> None:
    clones = [finished_clone.copy(tmp_path / name) for name in ("undisturbed", "killed")]
    for clone in clones:
        clone.set_params("table1.token_steps=300", "machine.checkpoint_seconds=0")
    run_item(clones[0], "token", "dense", "1")
    driving = subprocess.Popen(["sleep", "300"])
    command = clones[1].command("python", "-m", "pipelines.tables.token", "dense", "1")
    command["env"] = {**command["env"], DRIVER_VARIABLE: str(driving.pid)}
    process = subprocess.Popen(**command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    store = clones[1].folder / ".cache/training/ablations/token@dense-1"
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        if any(int(path.stem.split("-")[1]) >= 5 for path in store.rglob("checkpoint-*.pt")):
            break
        time.sleep(0.01)
    assert process.poll() is None, "the row ended before it could be killed"
    driving.kill()  # and nobody waits for it yet
    assert process.wait(30) == 1
    driving.wait()
    begins = re.search(r"(\d+)/300", run_item(clones[1], "token", "dense", "1"))
    assert begins and int(begins[1]) >= 5, "it goes on from a checkpoint"
    ends = [digest(clone.folder / "ablations/models/token_dense-1") for clone in clones]
    assert ends[0] == ends[1] and list(store.rglob("*.pt")) == []


@pytest.mark.parametrize(
    ("java", "mend"), [(None, "default-jre-headless"), (False, "set table1.java in params.yaml")]
)
def test_the_reason_without_meteor_says_what_mends_it(java, mend: str, monkeypatch) -> None:
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", "")
    machine = Machine(1, 0, "cpu", "float32", 1.0, "features")
    params = EvaluateParams(64, 8, 1, 1, "toybox", java, None, None)
    figures = caption_figures(
        Stage("evaluate", 0, machine, {}),
        params,
        [{"image_id": "a", "caption": "a red kite ."}],
        {"a": {"captions": ["a red kite ."]}},
        pa.table({"split": ["train"], "captions": [["a blue kite ."]]}),
        "table1.java",
    )
    reasons = {figure.name: figure.reason or "" for figure in figures if figure.value is None}
    assert mend in reasons["caption.meteor"]
    assert ("params.yaml" in reasons["caption.meteor"]) == (java is False)
    assert "set table1.java and evaluate.corenlp in params.yaml" in reasons["caption.spice"]
