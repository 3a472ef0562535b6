"""Commands in process groups of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from pipeline_clone import REPOSITORY

from pipelines.runner.groups import run_group

# a command whose own command notes its number and stays, as a stage under `dvc repro`
OUTER = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"
INNER = "import os, time; open('unnamed', 'w').write(str(os.getpid())); os.rename('unnamed', 'number'); time.sleep(600)"
DRIVER = (
    "import sys\nfrom pipelines.runner.errors import one_line_errors\nfrom pipelines.runner.groups import run_group\n"
    f"with one_line_errors('x'): run_group([sys.executable, '-c', {OUTER!r}, {INNER!r}])"
)


def test_the_status_is_the_commands(tmp_path: Path) -> None:
    assert run_group(["sh", "-c", 'test "$HERE" = "$(pwd)" && exit 3'], tmp_path, {"HERE": str(tmp_path)}) == 3


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_nothing_outlives_who_started_it(tmp_path: Path, sent: signal.Signals, status: int) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), *sys.path])}
    script = f"import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n{DRIVER}"
    driver = subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path, env=environment)
    end = time.monotonic() + 120
    while not (tmp_path / "number").exists():
        assert driver.poll() is None and time.monotonic() < end
        time.sleep(0.05)
    inner = psutil.Process(int((tmp_path / "number").read_text()))
    driver.send_signal(sent)
    assert driver.wait(timeout=60) == status
    _, alive = psutil.wait_procs([inner], timeout=30)
    assert not alive or alive[0].status() == psutil.STATUS_ZOMBIE
