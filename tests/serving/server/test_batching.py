"""Questions that wait are answered together, and each gets its own answer."""

import asyncio
import threading
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from twotower.serving.server.batching import Batcher, TooManyWaitingError, WaitedTooLongError


def finish(work: Coroutine[Any, Any, None]) -> None:
    """Run it in a thread of its own: a browser that another test has left open runs a loop in this one."""
    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, work).result()


class Slow:
    """Doubles numbers, but not before it is let go; notes what came together."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.may_go = threading.Event()

    def __call__(self, questions: Sequence[int]) -> list[int | Exception]:
        self.batches.append(list(questions))
        assert self.may_go.wait(300)
        return [q * 2 if q >= 0 else ValueError(f"{q} is below 0") for q in questions]


def batcher(answer: Slow, **settings: float) -> Batcher[int, int]:
    told = {"most": 4, "waiting": 100, "timeout": 300.0, **settings}
    return Batcher(
        answer, most=int(told["most"]), waiting=int(told["waiting"]), timeout=told["timeout"]
    )


async def until(condition: object) -> None:
    async with asyncio.timeout(300):
        while not condition():  # type: ignore[operator]
            await asyncio.sleep(0.001)


def test_what_comes_while_a_batch_runs_goes_together() -> None:
    async def run() -> None:
        slow = Slow()
        own = batcher(slow)
        first = asyncio.create_task(own.ask(1))
        await until(lambda: slow.batches)
        others = [asyncio.create_task(own.ask(number)) for number in range(2, 8)]
        await until(lambda: len(own) == 6)
        slow.may_go.set()
        assert await asyncio.gather(first, *others) == [2, 4, 6, 8, 10, 12, 14]
        assert slow.batches == [[1], [2, 3, 4, 5], [6, 7]]
        own.close()

    finish(run())


def test_an_error_is_told_to_who_made_it_alone() -> None:
    async def run() -> None:
        slow = Slow()
        own = batcher(slow)
        slow.may_go.set()
        found = await asyncio.gather(own.ask(3), own.ask(-1), own.ask(4), return_exceptions=True)
        assert [found[0], found[2]] == [6, 8]
        assert str(found[1]) == "-1 is below 0"
        own.close()

    finish(run())


def test_what_fails_as_a_whole_is_told_to_all_and_the_next_are_answered() -> None:
    calls = 0

    def answer(questions: Sequence[int]) -> list[int | Exception]:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise RuntimeError("broken")
        return list(questions)

    async def run() -> None:
        own: Batcher[int, int] = Batcher(answer, most=4, waiting=10, timeout=10)
        with pytest.raises(RuntimeError, match="broken"):
            await own.ask(1)
        assert await own.ask(2) == 2
        own.close()

    finish(run())


def test_more_than_may_wait_are_refused() -> None:
    async def run() -> None:
        slow = Slow()
        own = batcher(slow, waiting=2)
        first = asyncio.create_task(own.ask(1))
        await until(lambda: slow.batches)
        waiting = [asyncio.create_task(own.ask(number)) for number in (2, 3)]
        await until(lambda: len(own) == 2)
        with pytest.raises(TooManyWaitingError):
            await own.ask(4)
        slow.may_go.set()
        assert await asyncio.gather(first, *waiting) == [2, 4, 6]
        own.close()

    finish(run())


def test_who_waits_too_long_is_given_up_and_who_hung_up_costs_nothing() -> None:
    async def run() -> None:
        slow = Slow()
        own = batcher(slow, timeout=0.05)
        first = asyncio.create_task(own.ask(1))
        await until(lambda: slow.batches)
        late, gone = asyncio.create_task(own.ask(2)), asyncio.create_task(own.ask(3))
        await until(lambda: len(own) == 2)
        await asyncio.sleep(0.1)
        gone.cancel()
        fresh = asyncio.create_task(own.ask(4))
        await until(lambda: len(own) == 3)
        slow.may_go.set()
        assert await first == 2
        with pytest.raises(WaitedTooLongError):
            await late
        assert await fresh == 8
        assert slow.batches == [[1], [4]]
        own.close()

    finish(run())


def test_several_are_taken_together_or_not_at_all() -> None:
    async def run() -> None:
        slow = Slow()
        own = batcher(slow, waiting=3)
        first = asyncio.create_task(own.ask(1))
        await until(lambda: slow.batches)
        two = asyncio.create_task(own.ask_all([2, 3]))
        await until(lambda: len(own) == 2)
        with pytest.raises(TooManyWaitingError):
            await own.ask_all([4, 5])
        assert len(own) == 2
        slow.may_go.set()
        assert (await first, await two) == (2, [4, 6])
        own.close()

    finish(run())


def test_figures_that_fail_keep_nobody_waiting() -> None:
    def seen(_waits: Sequence[float], _took: float) -> None:
        raise OSError("the disk is full")

    async def run() -> None:
        own: Batcher[int, int] = Batcher(
            lambda questions: list(questions), most=1, waiting=9, timeout=9, seen=seen
        )
        async with asyncio.timeout(300):
            found = await asyncio.gather(own.ask(1), own.ask(2), return_exceptions=True)
        assert found[0] == 1
        assert isinstance(found[1], OSError)
        own.close()

    finish(run())
