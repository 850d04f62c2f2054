"""Questions that wait are answered together, and each gets its own answer."""

import asyncio
import threading
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from twotower.serving.server.batching import (
    Batcher,
    ClosedError,
    TooManyWaitingError,
    WaitedTooLongError,
)


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


def batcher(answer: Slow, **settings: Any) -> Batcher[int, int]:
    return Batcher(answer, **{"most": 4, "waiting": 100, "timeout": 600.0, **settings})


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
        own: Batcher[int, int] = Batcher(answer, most=4, waiting=10, timeout=600)
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


def test_requests_are_counted_whatever_they_hold() -> None:
    async def run() -> None:
        slow = Slow()
        own = batcher(slow, waiting=2)
        first = asyncio.create_task(own.ask(1))
        await until(lambda: slow.batches)
        many = asyncio.create_task(own.ask_all(list(range(2, 12))))
        one = asyncio.create_task(own.ask(12))
        await until(lambda: len(own) == 2)
        with pytest.raises(TooManyWaitingError):
            await own.ask(13)
        slow.may_go.set()
        expected = [number * 2 for number in range(2, 12)]
        assert (await first, await many, await one) == (2, expected, 24)
        assert await own.ask_all([]) == []
        own.close()

    finish(run())


def test_a_request_is_refused_by_the_clock_and_who_hung_up_costs_nothing() -> None:
    async def run() -> None:
        slow = Slow()
        own = batcher(slow, most=1, timeout=0.2)
        first, late, gone = (asyncio.create_task(own.ask(number)) for number in (1, 2, 3))
        await until(lambda: slow.batches)
        gone.cancel()
        for refused in (late, first):  # the thread is held: no batch ends meanwhile
            with pytest.raises(WaitedTooLongError):
                await refused
        await until(lambda: not len(own))
        slow.may_go.set()
        await until(lambda: not own._is_running)
        assert slow.batches == [[1]]
        own.close()

    finish(run())


def test_a_request_that_is_begun_is_finished_where_it_changes_something() -> None:
    async def run() -> None:
        slow = Slow()
        own = batcher(slow, timeout=0.2, finishes=True)
        begun = asyncio.create_task(own.ask(1))
        await until(lambda: slow.batches)
        with pytest.raises(WaitedTooLongError):
            await own.ask(2)
        assert not begun.done()
        slow.may_go.set()
        assert await begun == 2
        assert slow.batches == [[1]]
        own.close()

    finish(run())


def test_questions_of_a_refused_request_are_dropped() -> None:
    async def run() -> None:
        slow = Slow()
        own = batcher(slow, most=2, timeout=0.2)
        with pytest.raises(WaitedTooLongError):
            await own.ask_all([1, 2, 3, 4])
        assert len(own) == 0
        slow.may_go.set()
        await until(lambda: not own._is_running)
        assert slow.batches == [[1, 2]]
        own.close()
        other = batcher(slow, most=2)
        with pytest.raises(ValueError, match="-1 is below 0"):
            await other.ask_all([1, 2, -1, 4, 5, 6])
        await until(lambda: not other._is_running)
        assert slow.batches[1:] == [[1, 2], [-1, 4]]
        other.close()

    finish(run())


def turns(most: int, *requests: list[int]) -> list[list[int]]:
    """Return the batches of requests that came while the thread was busy; each question is its cost."""
    batches: list[list[int]] = []

    async def run() -> None:
        slow = Slow()
        own = batcher(slow, most=most, cost=abs)
        asked = [asyncio.create_task(own.ask(1))]
        await until(lambda: slow.batches)
        asked += [asyncio.create_task(own.ask_all(each)) for each in requests]  # type: ignore[arg-type]
        await until(lambda: len(own) == len(requests))
        slow.may_go.set()
        await asyncio.gather(*asked)
        batches.extend(slow.batches[1:])
        own.close()

    finish(run())
    return batches


def test_a_request_with_many_questions_gets_the_share_of_one_with_one() -> None:
    many = [1] * 20
    found = turns(16, many, [1], [1], [1])
    assert len(found[0]) == 16
    assert found == [[1] * 16, [1] * 7]
    places = turns(8, [2] * 6, [3], [1], [2])
    assert sorted(places[0]) == [
        1,
        2,
        2,
        3,
    ]  # of the first, one question: the others have their turn


def test_cheap_questions_are_answered_between_expensive_ones() -> None:
    expensive, cheap = [100] * 3, [[1] for _ in range(10)]
    found = turns(16, expensive, *cheap)
    assert found[0] == [1] * 10  # it came first, and had to save for its turn
    assert found[1:] == [[100]] * 3
    found = turns(16, [100, 1, 1], [100, 2], [40], [1])
    assert found[0] == [1]
    assert all(len(batch) == 1 or sum(batch) <= 16 for batch in found)
    assert [batch[0] for batch in found[1:]].index(40) == 0  # it has to save least


def test_the_thread_stays_free_for_who_asks_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that asks again a moment after its answer comes before an expensive question."""
    monkeypatch.setattr("twotower.serving.server.batching._PATIENCE", 60.0)

    async def run() -> None:
        slow = Slow()
        own = batcher(slow, most=16, cost=abs)
        small = asyncio.create_task(own.ask(1))
        await until(lambda: slow.batches)
        large = asyncio.create_task(own.ask_all([100, 101]))
        await until(lambda: len(own) == 1)
        slow.may_go.set()
        assert await small == 2
        while not large.done():
            await own.ask(3)
        assert await large == [200, 202]
        assert slow.batches[:4] == [[1], [3], [3], [3]]
        both = [slow.batches.index([cost]) for cost in (100, 101)]
        assert both[1] - both[0] > 5  # it saves for each
        own.close()

    finish(run())


def test_a_lone_expensive_request_is_answered_at_once() -> None:
    assert turns(64, [10**9, 5]) == [[10**9], [5]]
    assert turns(1, [3, 3], [1]) == [[1], [3], [3]]


def test_requests_that_wait_are_told_when_the_batcher_closes() -> None:
    async def run() -> None:
        slow = Slow()
        own = batcher(slow)
        first = asyncio.create_task(own.ask(1))
        await until(lambda: slow.batches)
        others = [asyncio.create_task(own.ask(number)) for number in (2, 3)]
        await until(lambda: len(own) == 2)
        slow.may_go.set()
        own.close()
        async with asyncio.timeout(300):
            assert await first == 2
            for each in others:
                with pytest.raises(ClosedError):
                    await each
            with pytest.raises(ClosedError):
                await own.ask(4)
        assert slow.batches == [[1]]

    finish(run())


def test_a_batch_that_a_closed_thread_refuses_is_told_so() -> None:
    """Several batchers may share a thread, which another one closes."""

    async def run() -> None:
        own = batcher(Slow(), most=1)
        own.thread.shutdown()
        async with asyncio.timeout(300):
            found = await asyncio.gather(own.ask(1), own.ask(2), return_exceptions=True)
        assert [type(each) for each in found] == [ClosedError, ClosedError]
        with pytest.raises(ClosedError):
            await own.ask(3)

    finish(run())


def test_figures_that_fail_keep_nobody_waiting() -> None:
    def seen(_waits: Sequence[float], _took: float) -> None:
        raise OSError("the disk is full")

    async def run() -> None:
        own: Batcher[int, int] = Batcher(
            lambda questions: list(questions), most=1, waiting=9, timeout=600, seen=seen
        )
        async with asyncio.timeout(300):
            found = await asyncio.gather(own.ask(1), own.ask(2), return_exceptions=True)
        assert found[0] == 1
        assert isinstance(found[1], OSError)
        own.close()

    finish(run())
