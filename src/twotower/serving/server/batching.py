"""Requests that wait are answered together: one pass over the catalogue serves all of them."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Question = TypeVar("Question")
Answer = TypeVar("Answer")


class TooManyWaitingError(Exception):
    """As many wait as may wait."""


class WaitedTooLongError(Exception):
    """The answer did not come in time."""


@dataclass
class _Waiting(Generic[Question, Answer]):
    question: Question
    answer: "asyncio.Future[Answer]"
    since: float = field(default_factory=time.perf_counter)


class Batcher(Generic[Question, Answer]):
    """Hands questions to one thread, as many at once as came while it was busy.

    Nobody is kept waiting for company: the thread takes what is there as soon as it is free, so a lone
    question goes alone, and the more come at once, the cheaper each is.

    Args:
        answer: Called in the thread with at least one question; returns an answer or an exception for each.
        most: Questions that are handed over at once.
        waiting: Questions that may wait.
        timeout: Seconds that one may wait before its turn.
        thread: Of one worker, in which ``answer`` is called; None makes one.
        seen: Called with how long each question of a batch waited, in seconds, and how long the batch took.

    Source: the adaptive batching of Crankshaw et al., NSDI 2017 (Clipper), section 4.3. Differs: without a
        delay, since what comes while a batch runs is company enough.
    """

    def __init__(
        self,
        answer: Callable[[Sequence[Question]], Sequence[Answer | Exception]],
        *,
        most: int,
        waiting: int,
        timeout: float,
        thread: ThreadPoolExecutor | None = None,
        seen: Callable[[Sequence[float], float], None] = lambda _waits, _took: None,
    ) -> None:
        self._answer = answer
        self._most = most
        self._limit = waiting
        self._timeout = timeout
        self._seen = seen
        self._queue: deque[_Waiting[Question, Answer]] = deque()
        self._is_running = False
        self.thread = thread or ThreadPoolExecutor(1, "twotower-answers")

    def __len__(self) -> int:
        """How many wait."""
        return len(self._queue)

    async def ask(self, question: Question) -> Answer:
        """Return the answer, or raise the exception that stands for it; see ``ask_all``."""
        return (await self.ask_all([question]))[0]

    async def ask_all(self, questions: Sequence[Question]) -> list[Answer]:
        """Return the answers, or raise the exception that stands for one of them.

        Raises:
            TooManyWaitingError: With these more would wait than may; none of them does then.
            WaitedTooLongError: The turn of one did not come in time.
        """
        if len(self._queue) + len(questions) > self._limit:
            raise TooManyWaitingError
        loop = asyncio.get_running_loop()
        entries: list[_Waiting[Question, Answer]] = [
            _Waiting(question, loop.create_future()) for question in questions
        ]
        self._queue += entries
        if not self._is_running:
            self._is_running = True
            loop.create_task(self._run())  # noqa: RUF006 - ends itself, and is kept by its await
        return list(await asyncio.gather(*(entry.answer for entry in entries)))

    def close(self) -> None:
        """Let go of the thread, after the batch it is at."""
        self.thread.shutdown(wait=True)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._queue:
                batch = self._next()
                if not batch:
                    continue
                started = time.perf_counter()
                questions = [entry.question for entry in batch]
                answers = await loop.run_in_executor(self.thread, self._answered, questions)
                took = time.perf_counter() - started
                for entry, answer in zip(batch, answers, strict=True):
                    _settle(entry.answer, answer)
                self._seen([started - entry.since for entry in batch], took)
        except Exception as error:  # who waits must not wait for ever
            for entry in self._queue:
                _settle(entry.answer, error)
            self._queue.clear()
            raise
        finally:
            self._is_running = False

    def _next(self) -> list[_Waiting[Question, Answer]]:
        """Return the next questions, without those that nobody waits for or that waited too long."""
        batch: list[_Waiting[Question, Answer]] = []
        oldest = time.perf_counter() - self._timeout
        while self._queue and len(batch) < self._most:
            entry = self._queue.popleft()
            if entry.answer.done():
                continue
            if entry.since < oldest:
                _settle(entry.answer, WaitedTooLongError())
                continue
            batch.append(entry)
        return batch

    def _answered(self, questions: Sequence[Question]) -> Sequence[Answer | Exception]:
        try:
            answers = self._answer(questions)
            assert len(answers) == len(questions)
            return answers
        except Exception as error:  # whatever it is, somebody waits for it
            return [error] * len(questions)


def _settle(future: "asyncio.Future[Answer]", answer: Answer | Exception) -> None:
    with suppress(asyncio.InvalidStateError):  # who asked has hung up
        if isinstance(answer, Exception):
            future.set_exception(answer)
        else:
            future.set_result(answer)
