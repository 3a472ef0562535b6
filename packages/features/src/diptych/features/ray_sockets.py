"""Where Ray puts its sockets, whose paths the system keeps short."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from diptych.features.errors import UserError

# sun_path of sockaddr_un, without the byte that ends it
LONGEST = 103 if sys.platform == "darwin" else 107


def check_room_for_sockets() -> None:
    """Raise UserError where the temporary folder's name is too long for an instance that Ray starts here.

    Ray takes RAY_TMPDIR, on Linux else TMPDIR, else /tmp (`ray._common.utils.get_default_system_temp_dir`), and makes
    ray/session_DATE_TIME_MICROSECONDS_PROCESS/sockets/plasma_store in it.
    """
    variables = ("RAY_TMPDIR", "TMPDIR") if sys.platform.startswith("linux") else ("RAY_TMPDIR",)
    variable = next((name for name in variables if name in os.environ), None)
    if variable is None:
        return
    folder = os.environ[variable]
    longest = os.path.join(folder, "ray", f"session_0000-00-00_00-00-00_000000_{'0' * _digits()}", "sockets")
    length = len(os.fsencode(os.path.join(longest, "plasma_store")))
    if length > LONGEST:
        raise UserError(
            f"{variable}={folder}: Ray's sockets would have names of {length} bytes there, and the system allows "
            f"{LONGEST}: `export RAY_TMPDIR=/tmp` (or another short folder), or set machine.workers to 0 to work without "
            "Ray"
        )


def _digits() -> int:
    """Digits of the longest process number."""
    try:
        return len(str(int(Path("/proc/sys/kernel/pid_max").read_text()) - 1))
    except (OSError, ValueError):
        return 7
