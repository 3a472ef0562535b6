"""The queue before the model, on its own."""

from __future__ import annotations

import asyncio
import functools
import gc
import itertools
import threading
import time
import weakref

import pytest
from waiting import HANG_SECONDS

from diptych.model.serve import model_queue
from diptych.model.serve.model_queue import Busy, ClientGone, Ending, ModelQueue, UploadMemory


async def here() -> bool:
    return False


def test_work_is_done_in_its_order_on_one_thread() -> None:
    queue, done = ModelQueue(9), []

    def work(number: int) -> tuple[int, str]:
        time.sleep(0.01 * (5 - number))  # the later the quicker
        done.append(number)
        return number, threading.current_thread().name

    async def all_of_it() -> list[tuple[int, str]]:
        return await asyncio.gather(*(queue.run(lambda n=n: work(n), here) for n in range(5)))

    results = asyncio.run(all_of_it())
    assert [number for number, _ in results] == done == [0, 1, 2, 3, 4]
    assert len({name for _, name in results}) == 1 and results[0][1] != threading.current_thread().name


def test_places_are_bounded_and_come_back() -> None:
    queue = ModelQueue(1)
    with queue.place():
        with pytest.raises(ZeroDivisionError), queue.place():
            raise ZeroDivisionError
        with queue.place(), pytest.raises(Busy) as refused, queue.place():
            pass
        assert refused.value.retry_after >= 1 and queue.taken == 1
    assert queue.taken == 0


def test_the_time_to_wait_follows_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    queue, clock = ModelQueue(3), itertools.count()
    # a clock that is read twice for each work, which takes a thousandth of a second by it
    monkeypatch.setattr(model_queue.time, "perf_counter", lambda: next(clock) * 0.001)

    async def slow() -> None:
        for _ in range(30):
            await queue.run(lambda: None, here)

    def wait() -> int:
        places = [queue.place() for _ in range(5)]
        try:
            for place in places:
                place.__enter__()
        except Busy as busy:
            return busy.retry_after
        finally:
            for place in places[:4]:
                place.__exit__(None, None, None)
        raise AssertionError

    before = wait()
    asyncio.run(slow())
    assert before == 4 and wait() == 1


def test_who_has_gone_is_skipped() -> None:
    queue, free, done = ModelQueue(9), threading.Event(), []

    async def gone() -> bool:
        return True

    async def all_of_it() -> None:
        first = asyncio.create_task(queue.run(lambda: done.append("first") or free.wait(HANG_SECONDS), here))
        await asyncio.sleep(0.05)
        with pytest.raises(ClientGone):
            await queue.run(lambda: done.append("gone"), gone)
        last = asyncio.create_task(queue.run(lambda: done.append("last"), here))
        free.set()
        await asyncio.gather(first, last)

    asyncio.run(all_of_it())
    assert done == ["first", "last"]


def test_nothing_is_kept_of_who_has_gone() -> None:
    """Its turn stays with the thread, which is busy, and must not keep the picture that came with it."""
    queue, free = ModelQueue(9), threading.Event()

    class Upload:
        pass

    async def gone() -> bool:
        return True

    async def skipped() -> weakref.ref[Upload]:
        upload = Upload()
        with pytest.raises(ClientGone):
            await queue.run(functools.partial(id, upload), gone)
        return weakref.ref(upload)

    async def all_of_it() -> None:
        first = asyncio.create_task(queue.run(lambda: free.wait(HANG_SECONDS), here))
        await asyncio.sleep(0.05)
        kept = await skipped()
        gc.collect()
        assert not free.is_set() and kept() is None
        free.set()
        await first

    asyncio.run(all_of_it())


def test_uploads_share_the_memory_that_there_is() -> None:
    memory = UploadMemory(10)
    with memory.share() as first, memory.share() as second, memory.share():
        first(6)
        second(3)
        second(1)
        with pytest.raises(Busy):
            first(1)
    assert memory.taken == 0
    with memory.share() as again:
        again(10)


def test_who_goes_while_it_works_keeps_the_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_queue, "LOOK_FOR_CLIENT", 0.01)
    queue, begun, free = ModelQueue(0), threading.Event(), threading.Event()

    async def gone() -> bool:
        return begun.is_set()

    async def asking() -> bool:
        with queue.place():
            return await queue.run(lambda: begun.set() or free.wait(HANG_SECONDS), gone)

    async def all_of_it() -> None:
        task = asyncio.create_task(asking())
        async with asyncio.timeout(HANG_SECONDS):
            while not begun.is_set():
                await asyncio.sleep(0.001)
        await asyncio.sleep(0.05)  # several looks
        taken = queue.taken
        free.set()
        assert await task is True and (taken, queue.taken) == (1, 0)

    asyncio.run(all_of_it())


def test_failures_are_those_of_the_work() -> None:
    queue = ModelQueue(0)

    async def fails() -> None:
        with pytest.raises(ZeroDivisionError):
            await queue.run(lambda: 1 / 0, here)
        assert await queue.run(lambda: 5, here) == 5

    asyncio.run(fails())


def test_who_waits_at_the_end_is_told() -> None:
    queue, free, done = ModelQueue(9), threading.Event(), []

    async def all_of_it() -> None:
        first = asyncio.create_task(queue.run(lambda: free.wait(HANG_SECONDS), here))
        second = asyncio.create_task(queue.run(lambda: done.append("second"), here))
        await asyncio.sleep(0.05)
        for task in (first, second):
            task.cancel()
            with pytest.raises(Ending):
                await task
        queue.close()
        free.set()

    asyncio.run(all_of_it())
    assert done == []
