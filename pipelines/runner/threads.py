"""Threads and memory of a process that works, and its end with the one that started it."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable

from diptych.features.processor import usable_cores

# where set, how many cores a process may take: several that run side by side share them
CORES_VARIABLE = "DIPTYCH_CORES"


def available_cores() -> int:
    """Cores for this process (`taskset`, a container's quota or what started it may allow fewer than the machine has)."""
    return at_most_given(usable_cores())


def at_most_given(cores: int) -> int:
    """`cores`, or fewer where what started this process has given it a share of them."""
    return min(cores, int(os.environ.get(CORES_VARIABLE, cores)))


def prepare_process(threads: int) -> None:
    """Threads and memory of a process that is about to work, a stage's own or one that it starts."""
    if multiprocessing.parent_process() is not None:
        end_with_parent()
    keep_freed_memory()
    set_threads(threads)


def end_with_parent() -> None:
    """End this process when its stage is killed: a rerun must not meet it at the same checkpoints."""
    parent = os.getppid()
    end_when(lambda: os.getppid() != parent)


def end_when(gone: Callable[[], bool]) -> None:
    """End this process as soon as `gone`, which a thread asks five times a second."""

    def watch() -> None:
        while not gone():
            time.sleep(0.2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def set_threads(threads: int) -> None:
    """Say once how many threads tensor work takes: libraries loaded later and child processes read the environment."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    # idle OpenMP threads spin by default and take the cores from a second process of this stage
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)


def keep_freed_memory() -> None:
    """Tell glibc to keep freed memory instead of handing it back to the kernel after every step.

    A training step frees and allocates the same large blocks again and again. By default each of them is a fresh
    `mmap` whose pages fault in one by one, at about 9 microseconds each where it was measured: small training steps
    were up to 2.8 times slower for it. Other C libraries lack `mallopt`; there nothing happens.
    """
    mmap_max, trim_threshold, top_pad = -4, -1, -2  # M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD of <malloc.h>
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, 2**31 - 1)  # mallopt takes an int: the largest one
        mallopt(top_pad, 64 << 20)
