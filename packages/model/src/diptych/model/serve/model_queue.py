"""The queue before the model: one request is worked on, a bounded number waits, all others are sent away at once."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

Result = TypeVar("Result")
THREAD = "model"
LOOK_FOR_CLIENT = 0.5  # seconds between looks whether who waits is still there


class Busy(Exception):
    """All places are taken; ``retry_after``: seconds after which some should be free, at least 1."""

    def __init__(self, retry_after: int) -> None:
        super().__init__("all places are taken")
        self.retry_after = retry_after


class ClientGone(Exception):
    """Whoever asked has closed the connection; nobody reads the answer."""


class Ending(Exception):
    """The server ends before the work is done."""


class UploadMemory:
    """The bytes of all uploads in memory, bounded together: who has sent nothing yet takes nothing from others.

    Its methods are called from the event loop.
    """

    def __init__(self, most: int) -> None:
        """``most``: bytes."""
        self.most, self.taken = most, 0

    @contextmanager
    def share(self) -> Iterator[Callable[[int], None]]:
        """What counts so many more bytes of one upload, until the block ends. It raises Busy where there is no room."""
        own = 0

        def count(size: int) -> None:
            nonlocal own
            if self.taken + size > self.most:
                raise Busy(1)
            self.taken += size
            own += size

        try:
            yield count
        finally:
            self.taken -= own


class ModelQueue:
    """Runs work on one thread in the order of arrival.

    One thread because the model's products use all cores anyhow: two at a time would each take twice as long, and memory
    would hold both.

    Its methods are called from the event loop.
    """

    def __init__(self, waiting: int) -> None:
        """``waiting``: requests that may wait besides the one that is worked on, at least 0."""
        self.places = waiting + 1
        self.taken = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=THREAD)
        self._mean_seconds = 1.0

    def check_free(self) -> None:
        """Raise Busy where there is no place: also before an upload is read in vain."""
        if self.taken >= self.places:
            raise Busy(max(1, math.ceil(self.taken * self._mean_seconds)))

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place in the queue for as long as the block lasts.

        Raises:
            Busy: there is none.
        """
        self.check_free()
        self.taken += 1
        try:
            yield
        finally:
            self.taken -= 1

    async def run(self, work: Callable[[], Result], is_gone: Callable[[], Awaitable[bool]]) -> Result:
        """Return what ``work`` returns, after all work that came earlier.

        Raises:
            ClientGone: ``is_gone`` became true while it waited; it was not begun.
            Ending: it was cancelled, which is what the server does with those who still wait at its end.
        """
        # a turn that is cancelled stays with the thread until that looks at it, and must not keep the upload meanwhile
        held = [work]
        del work

        def timed() -> Result:
            start = time.perf_counter()
            try:
                return held.pop()()
            finally:
                self._mean_seconds += 0.1 * (time.perf_counter() - start - self._mean_seconds)

        turn = self._thread.submit(timed)
        future = asyncio.wrap_future(turn)
        try:
            while not (await asyncio.wait({future}, timeout=LOOK_FOR_CLIENT))[0]:
                # what has begun keeps its place until it ends, whoever reads it
                if not turn.running() and await is_gone() and turn.cancel():
                    raise ClientGone
            return future.result()
        except asyncio.CancelledError:
            raise Ending from None
        finally:
            if turn.cancel():  # without effect on what is done or has begun
                held.clear()

    def close(self) -> None:
        """Drop what waits; what has begun ends."""
        self._thread.shutdown(wait=False, cancel_futures=True)
