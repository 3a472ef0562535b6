"""Waiting for another process, however fast the machine is: for what it did, never for a time.

A process that a test kills in its middle stops there by itself: it prints `here` and reads its input until the test
ends it or closes the pipe. Deadlines are only there so that a hang ends.
"""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pytest

HANG_SECONDS = 900.0
# Python of a process: stop here
HOLD = "print('here', flush=True); sys.stdin.readline()"

# Ray gives up where a machine needs half a minute for one of its steps; these are for its processes ...
RAY_ENVIRONMENT = {
    "RAY_gcs_server_port_wait_time_s": "900",
    "RAY_gcs_server_request_timeout_seconds": "900",
    "RAY_gcs_rpc_server_connect_timeout_s": "900",
    "RAY_py_gcs_connect_timeout_s": "900",
    "RAY_worker_register_timeout_seconds": "900",
    "RAY_agent_register_timeout_ms": "900000",
    "RAY_health_check_timeout_ms": "300000",
    "RAY_DASHBOARD_STARTUP_TIMEOUT_S": "900",
}


def be_patient_with_ray() -> None:
    """... and this is for the process that starts it, where Ray's number is fixed."""
    import time

    from ray._private import services

    get_node = services.get_node

    def get_node_patiently(*arguments):
        end = time.monotonic() + 900
        while True:
            try:
                return get_node(*arguments)
            except RuntimeError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.1)

    services.get_node = get_node_patiently


# the same for a process of its own
PATIENT_RAY = f"{inspect.getsource(be_patient_with_ray)}\nbe_patient_with_ray()\n"


def wait_until(condition: Callable[[], object], process: subprocess.Popen | None = None) -> None:
    """Return once `condition` is true. Fails where `process` ends before, or nothing happens for very long."""
    deadline = time.monotonic() + HANG_SECONDS
    while not condition():
        if process is not None and process.poll() is not None and not condition():
            pytest.fail(f"the process ended with status {process.returncode} before what was waited for")
        if time.monotonic() > deadline:
            if process is not None:
                process.kill()
            pytest.fail(f"what was waited for has not come in {HANG_SECONDS:g} seconds")
        time.sleep(0.02)


def wait_for_hold(process: subprocess.Popen[str]) -> None:
    """Return once `process` has printed `here` and nothing before."""
    assert process.stdout is not None
    watch = threading.Timer(HANG_SECONDS, process.kill)
    watch.start()
    try:
        said = process.stdout.readline()
    finally:
        watch.cancel()
    if said != "here\n":
        process.kill()
        reason = process.communicate()[1]
        pytest.fail(f"the process did not come to where it was to be held: {said}{(reason or '')[-3000:]}")


def environment_with_modules() -> dict[str, str]:
    """This process's environment for another Python process, which then finds all modules that a test finds."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def held(script: str, *arguments: object) -> subprocess.Popen[str]:
    """A Python process that runs `script` with the test's module path, once it waits at its HOLD."""
    process = subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment_with_modules(),
    )
    wait_for_hold(process)
    return process


def kill(process: subprocess.Popen[str]) -> None:
    """SIGKILL, of a process that has not ended by itself."""
    assert process.poll() is None
    process.kill()
    process.communicate()
