"""What runs a table's items side by side: with a stand-in for dvc, and with dvc in a clone."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from pipeline_clone import REPOSITORY, Clone
from table_measurements import TABLE, write_measured
from waiting import HANG_SECONDS, wait_until

from pipelines.runner.params import ParameterError, read_params
from pipelines.runner.profile import write_profile
from pipelines.tables.__main__ import leave_out_if_stale
from pipelines.tables.__main__ import main as driver
from pipelines.tables.items import SHARED, TableItems, table_items
from pipelines.tables.jobs import one_line, run_items
from pipelines.tables.table import read_table, table_names
from pipelines.tables.verdicts import measured_seeds

ONE_ITEM = """
from pipelines.runner.params import read_params
from pipelines.tables.items import table_items
from pipelines.tables.jobs import run_items
from pipelines.tables.table import read_table
table = read_table("table1")
plan = table_items(table, read_params(), [0])
run_items(table, plan, [item for item in plan.work if item.name == "token@ours-0"], 1, 0)
"""
# Where there is a file `hold`, so many may end as it says, and the next ones wait at a pipe to which nobody
# writes.
STAND_IN = """#!/bin/sh
for item; do :; done
item=${item##*:}
case "$*" in *" status "*)
  [ -e "broken-${item##*-}" ] && echo "ERROR: unreadable dvc.lock" >&2 && exit 1
  if [ -e "stale-${item##*-}" ]; then echo '{"dvc.yaml:code": [{"changed deps": {}}], "measured": [{"changed deps": {}}]}'
  elif [ -e "code-${item##*-}" ]; then echo '{"dvc.yaml:code": [{"changed deps": {"pipelines": "modified"}}]}'
  else echo '{}'; fi
  exit;;
esac
[ -e "$item.done" ] && echo "Stage $item didn't change, skipping" && exit 0
if [ -e "$item.busy" ]; then rm "$item.busy"; echo "ERROR: 'a' is busy, it is being blocked by:"; exit 1; fi
echo "Running stage '$item'"
echo "$item" >> ran
case $item in *${FAIL:-nothing}*) echo "token dense 0: params.yaml: no such thing"; echo "ERROR: failed to reproduce '$item'"; exit 1;; esac
if [ -e hold ] && [ "$(ls | grep -c 'done$')" -ge "$(cat hold)" ]; then echo $$ >> held; read line < gate; fi
echo "$DIPTYCH_CORES" > "$item.done"
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with the smoke profile, where `dvc` is a script that notes what ran; items named
    $FAIL fail."""
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bin/dvc"
    script.write_text(STAND_IN)
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    write_profile("smoke", tmp_path / "params.yaml")
    for pipeline in (SHARED, *(read_table(name).pipeline for name in table_names())):
        (tmp_path / pipeline).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / pipeline, tmp_path / pipeline)
    return tmp_path


def planned(seed: int) -> TableItems:
    return table_items(TABLE, read_params(), [seed])


def total() -> int:
    """What a whole table of one seed runs: once what is shared, all items, the page."""
    return 1 + len(planned(0).work) + 1


def lines(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []


def gone(process: psutil.Process) -> bool:
    """Whether it has ended; nobody may have waited for it yet."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_a_failed_item_leaves_the_others(stand_in: Path, capfd, monkeypatch) -> None:
    monkeypatch.setenv("FAIL", "dense")
    monkeypatch.setattr("pipelines.tables.jobs.available_cores", lambda: 4)
    (stand_in / "token@ours-0.busy").touch()
    plan = planned(0)
    items = [item for item in plan.work if item.seed is not None]
    with pytest.raises(
        ParameterError, match=r"token@dense-0: token dense 0: params.yaml: no such thing"
    ) as caught:
        run_items(TABLE, plan, items, 2, 0)
    assert "and 2 more" in str(caught.value) and "\n" not in str(caught.value)
    ran = lines(stand_in / "ran")
    assert "sequence@dense-0" not in ran and "measured@sequence_dense-0" not in ran
    assert len(ran) == len(items) - 2 and len(set(ran)) == len(ran)
    assert (stand_in / "token@ours-0.done").read_text().strip() == "2", "four cores for two items"
    printed = capfd.readouterr()
    assert "min left" in printed.out and "sequence@dense-0 not run" in printed.err


def importing() -> dict[str, str]:
    """The environment of a process that imports this repository from any folder."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), *sys.path])}


# in what rows share, and among the items
@pytest.mark.parametrize(
    ("finished", "sent"), [(0, signal.SIGINT), (0, signal.SIGTERM), (4, signal.SIGTERM), (4, signal.SIGHUP)]
)
def test_a_stopped_driver_goes_on_where_it_was(stand_in: Path, finished: int, sent: signal.Signals, run_here) -> None:
    script = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a background job inherits it ignored
        "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"
        "from pipelines.tables.__main__ import main\n"
        "sys.argv[1:] = ['table1', '--seeds', '0', '--jobs', '2']\n"
        "main()"
    )
    environment = importing()
    (stand_in / "hold").write_text(f"{finished}\n")
    os.mkfifo(stand_in / "gate")
    process = subprocess.Popen(
        [sys.executable, "-c", script], env=environment, stderr=subprocess.PIPE, text=True
    )

    def done() -> set[str]:
        return {path.name for path in stand_in.glob("*.done")}

    held = 2 if finished else 1  # two items side by side, and the shared stages in one process
    wait_until(lambda: len(lines(stand_in / "held")) == held, process)
    waiting = [psutil.Process(int(number)) for number in lines(stand_in / "held")]
    assert not any(map(gone, waiting))
    process.send_signal(sent)
    said = process.communicate(timeout=HANG_SECONDS)[1]
    assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}[sent]
    assert "Traceback" not in said
    before = done()
    assert finished <= len(before) < (total() if finished else 1)
    assert all(map(gone, waiting)), "nothing goes on in the background"
    (stand_in / "hold").unlink()
    (stand_in / "ran").unlink()
    assert run_here(stand_in, driver, "table1", "--seeds", "0", "--jobs", "2").status == 0
    ran = lines(stand_in / "ran")
    after = done()
    assert len(after) == total() and {f"{name}.done" for name in ran} | before == after
    assert not {f"{name}.done" for name in ran} & before, "what was done is not done again"


def test_stale_seeds_stay_out_of_the_table(stand_in: Path, capsys) -> None:
    write_measured({}, 3)
    (stand_in / "stale-1").touch()
    for seed in (0, 1, 2):
        leave_out_if_stale(TABLE, planned_of_three(seed), seed)
    assert measured_seeds(TABLE, (0, 1, 2)) == [0, 2]
    assert capsys.readouterr().out.count("seed 1 is left out") == 1
    # one of whose measurements something is missing is asked about, too
    shutil.rmtree(TABLE.measured / f"{next(iter(TABLE.models))}-2")
    (stand_in / "stale-2").touch()
    leave_out_if_stale(TABLE, planned_of_three(2), 2)
    assert not list(TABLE.measured.glob("*-2"))
    (stand_in / "stale-2").unlink()
    write_measured({}, 3)
    (stand_in / "broken-2").touch()
    with pytest.raises(ParameterError, match="seed 2: ERROR: unreadable dvc.lock"):
        leave_out_if_stale(TABLE, planned_of_three(2), 2)
    assert measured_seeds(TABLE, (0, 1, 2)) == [0, 1, 2], "nothing is removed where nobody knows"


def test_a_lock_file_among_the_code_makes_no_seed_stale(stand_in: Path, capsys) -> None:
    """Items write it, and then DVC takes the stage `code` for changed, whose outputs stay the same."""
    write_measured({}, 3)
    (stand_in / "code-1").touch()
    leave_out_if_stale(TABLE, planned_of_three(1), 1)
    assert measured_seeds(TABLE, (0, 1, 2)) == [0, 1, 2] and "left out" not in capsys.readouterr().out


def planned_of_three(seed: int) -> TableItems:
    """The smoke profile has two seeds."""
    return table_items(TABLE, {**read_params(), "table1": {"seeds": [0, 1, 2]}}, [seed])


def test_seeds_are_run_once(stand_in: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.tables", "table1", "--seeds", "0", "0", "--jobs", "2"],
        env=importing(), check=False,
    )  # fmt: skip
    assert done.returncode == 0
    ran = lines(stand_in / "ran")
    assert len(ran) == len(set(ran)) == total()
    assert ran[0] == "train_sequence" and ran[-1] == "table1"


def test_no_item_runs_where_what_all_share_fails(stand_in: Path, monkeypatch, run_here) -> None:
    monkeypatch.setenv("FAIL", "train_sequence")
    done = run_here(stand_in, driver, "table1", "--seeds", "0")
    assert done.status == 1 and "table1: a stage that all rows share failed, see above" in done.stderr
    assert lines(stand_in / "ran") == ["train_sequence"]


def test_what_is_asked_wrongly_is_named(stand_in: Path, run_here) -> None:
    for arguments, message in (
        (("table0",), "table0: no such table (known: table1"),
        (("table1", "--seeds", "7"), "--seeds: [7] are not among table1.seeds of params.yaml; add them there"),
        (("table1", "--jobs", "0"), "--jobs must be at least 1, is 0"),
    ):
        done = run_here(stand_in, driver, *arguments)
        assert done.status == 1 and message in done.stderr and done.stderr.strip().count("\n") == 0
    assert not (stand_in / "ran").exists()


def test_missing_java_ends_before_the_trainings(stand_in: Path, monkeypatch, run_here) -> None:
    before, section, after = (stand_in / "params.yaml").read_text().partition("table1:")
    wanted = re.sub(r"java: \w+", "java: true", after, count=1)
    (stand_in / "params.yaml").write_text(before + section + wanted)
    monkeypatch.setenv("PATH", str(stand_in / "bin"))
    monkeypatch.setenv("JAVA_HOME", "")
    done = run_here(stand_in, driver, "table1")
    assert done.status == 1 and done.stderr.strip().count("\n") == 0
    assert "Java was not found" in done.stderr and "set table1.java to null in params.yaml" in done.stderr
    assert not (stand_in / "ran").exists()


@pytest.mark.parametrize("status", [126, 127])
def test_what_cannot_be_run_was_not_killed(status: int) -> None:
    log = f"python: not found\nERROR: failed to reproduce 'a': failed to run: python -m a, exited with {status}\n"
    assert one_line(log, TABLE) == "python: not found"
    assert "killed by signal 9" in one_line(log.replace(f"with {status}", "with 137"), TABLE)


def test_a_killed_item_is_named(finished_clone: Clone, tmp_path: Path) -> None:
    """Where memory runs out, the kernel kills: what is left of the item is a progress bar and DVC's line."""
    clone = finished_clone.copy(tmp_path / "clone")
    pipeline = clone.folder / TABLE.pipeline
    cmd = "cmd: python -m pipelines.tables.token table1 ${item.row} ${item.seed}"
    text = pipeline.read_text()
    assert cmd in text
    pipeline.write_text(text.replace(cmd, "cmd: 'echo \"rows: 45%|###\"; kill -9 $$'"))
    done = clone.run("python", "-c", ONE_ITEM)
    assert "token@ours-0: killed by signal 9; where memory ran out, run fewer items" in done.stderr, (
        done.stderr
    )


def test_a_locked_repository_costs_no_work(finished_clone: Clone, tmp_path: Path) -> None:
    """An item whose end meets the lock of another command waits for it, however long: by itself DVC does for 3 s."""
    clone = finished_clone.copy(tmp_path / "clone")
    # waits in its beginning and tells its end; the command itself names the item, and stays
    program = clone.folder / "pipelines/tables/token.py"
    text, start = program.read_text(), 'if __name__ == "__main__":\n'
    assert start in text
    waiting = "    import pathlib, time\n    while not pathlib.Path('go').exists():\n        time.sleep(0.05)\n"
    program.write_text(text.replace(start, start + waiting) + "    pathlib.Path('ended').touch()\n")
    holder = """
import sys, time, zc.lockfile
while True:
    try:
        lock = zc.lockfile.LockFile(".dvc/tmp/lock")
        break
    except zc.lockfile.LockError:
        time.sleep(0.05)
print("held", flush=True)
sys.stdin.readline()
lock.close()
"""
    process = subprocess.Popen(
        **clone.command("python", "-c", ONE_ITEM), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    log = clone.folder / ".cache/ablations/logs/token@ours-0.log"
    wait_until(lambda: log.exists() and "Running stage" in log.read_text(), process)
    (item,) = psutil.Process(process.pid).children()
    assert "--wait-for-lock" in item.cmdline()
    with subprocess.Popen(
        [sys.executable, "-c", holder],
        cwd=clone.folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        (clone.folder / "go").touch()
        wait_until((clone.folder / "ended").exists, process)
        time.sleep(3.5)
        other.communicate("\n")
        out, _ = process.communicate(timeout=HANG_SECONDS)
    assert process.returncode == 0, out
    assert log.read_text().count("Running stage") == 1
    assert "token@ours-0" in (clone.folder / "pipelines/tables/table1/dvc.lock").read_text()


def test_items_are_called_as_dvc_calls_them(clone: Clone) -> None:
    listed = clone.run("dvc", "stage", "list", "--name-only", str(TABLE.pipeline))
    names = {line.rpartition(":")[2] for line in listed.stdout.split()}
    params = read_params(clone.folder / "params.yaml")
    plan = table_items(TABLE, params, params["table1"]["seeds"])
    assert names == {item.name for item in [*plan.work, plan.last]}, listed.stderr
