"""Reading a step's data while the step before it runs."""

from __future__ import annotations

import faulthandler
import queue
import sys
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from diptych.model.errors import UserError

T = TypeVar("T")
STALL_SECONDS = 600.0
# Without any step for this long the process ends itself, see ReadAhead.
HANG_SECONDS = 3 * STALL_SECONDS


class ReadAhead(Generic[T]):
    """Calls ``read(step)`` for every step from ``first`` to before ``last``, in a thread, one step ahead of its use.

    ``read`` must be a function of the step alone; so reading ahead changes nothing but the waiting time.

    A network drive that stops answering must not leave a run that waits for ever: after 10 minutes :meth:`take` raises
    a UserError. While a page of a memory-mapped shard is fetched, the reading thread may hold Python's lock, and then
    no Python code at all can raise anything: for that case faulthandler's watchdog, which needs no lock, prints where
    every thread is and ends the process after 30 minutes without a step.
    """

    def __init__(self, read: Callable[[int], T], first: int, last: int) -> None:
        self._read, self._first, self._last = read, first, last
        self._wanted = threading.Semaphore(1)
        self._results: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()
        self._closed = False
        self._watched_at = -HANG_SECONDS
        # A thread that hangs in a read must not keep the process from ending, hence a daemon.
        threading.Thread(target=self._run, daemon=True, name="reader").start()

    def _run(self) -> None:
        for step in range(self._first, self._last):
            self._wanted.acquire()
            if self._closed:
                return
            try:
                result: tuple[T | None, BaseException | None] = (self._read(step), None)
            except BaseException as error:  # noqa: BLE001 - whoever takes the data raises it
                result = (None, error)
            self._results.put(result)
            if result[1] is not None:
                return

    def take(self) -> T:
        """Return the data of the next step, and let the step after it be read.

        Raises:
            UserError: nothing came for 10 minutes. Whatever ``read`` raised is raised here.
        """
        now = time.monotonic()
        if (
            now - self._watched_at > HANG_SECONDS / 30
        ):  # starting its timer anew costs a fraction of a millisecond
            # the process's own stderr: what stands in its place, as in notebooks, may be no file
            faulthandler.dump_traceback_later(HANG_SECONDS, exit=True, file=sys.__stderr__ or sys.stderr)
            self._watched_at = now
        try:
            data, error = self._results.get(timeout=STALL_SECONDS)
        except queue.Empty:
            raise UserError(
                f"no training data came for {STALL_SECONDS / 60:g} minutes; check the disk, network drive or address "
                "that holds them"
            ) from None
        if error is not None:
            raise error
        self._wanted.release()
        return data  # type: ignore[return-value]  # it is None only beside an error

    def close(self) -> None:
        """End the thread after the read it is in."""
        self._closed = True
        self._wanted.release()
        faulthandler.cancel_dump_traceback_later()
