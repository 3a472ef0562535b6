"""Commands in process groups of their own: Ctrl-C reaches them through the one that started them only, and none outlives it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

STOP_SECONDS = 20.0


def run_group(
    command: Sequence[str], folder: Path | None = None, environment: Mapping[str, str] | None = None
) -> int:
    """Run a command to its end and return its status; an exception here, such as that of Ctrl-C, ends all that it started."""
    process = subprocess.Popen(command, cwd=folder, env=environment, start_new_session=True)
    try:
        return process.wait()
    finally:
        stop([process])


def stop(processes: Collection[subprocess.Popen[bytes]]) -> None:
    """End those process groups that still run, as Ctrl-C would: trainings have their checkpoints."""
    for number in (signal.SIGINT, signal.SIGKILL):
        for process in processes:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, number)
        end = time.monotonic() + STOP_SECONDS
        while time.monotonic() < end and any(process.poll() is None for process in processes):
            time.sleep(0.1)
