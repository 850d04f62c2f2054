"""Waiting requests are answered in batches, in turns that no large request can take from the others."""

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

_SHARES = 8
"""Turns in which one request earns the cost of a whole batch."""
_PATIENCE = 0.003
"""Seconds that the thread stays free for small requests before a question that is a batch of its own."""


class TooManyWaitingError(Exception):
    """The queue is full."""


class WaitedTooLongError(Exception):
    """The answer did not come in time."""


class ClosedError(Exception):
    """The server is shutting down."""


@dataclass(slots=True, eq=False)
class _Request(Generic[Question, Answer]):
    """The questions of one caller.

    Args:
        questions: At least one question.
        costs: The cost of each question.
        credit: The cost that the request may spend in its next turn.
        future: Gets all answers, or the first error.
        next: The place of the first question that the thread has not seen.
        answers: The answers so far, in the order of the questions.
    """

    questions: Sequence[Question]
    costs: Sequence[int]
    credit: int
    future: "asyncio.Future[list[Answer]]"
    next: int = 0
    answers: "list[Answer]" = field(default_factory=list)
    since: float = field(default_factory=time.perf_counter)


class Batcher(Generic[Question, Answer]):
    """Hands questions to one thread, as many at once as came while the thread was busy.

    No question waits for others: the thread takes the waiting questions as soon as it is free. A lone
    question runs alone, and the more questions come at once, the cheaper each is.

    Each call of ``ask_all`` is one request. Requests take turns. In each turn a request earns a credit, and
    it pays for its questions by their cost. A batch holds questions up to a total cost, so a question of at
    least that cost runs alone. Many cheap requests are therefore answered between two expensive questions,
    and a request with 64 questions gets no larger share than a request with one.

    A client often asks again a moment after its answer. An expensive question therefore waits a few
    milliseconds after a batch of small ones, so that it does not take the thread in that moment.

    Args:
        answer: Called in the thread with at least one question; returns an answer or an exception for each.
        most: Questions in one batch, which is also the largest total cost of several questions in a batch.
        waiting: Requests that may wait; None is any number.
        timeout: Seconds after which a request without its answer is refused; None never refuses.
        cost: Of a question, at least 1: its time in units of the cheapest question.
        finishes: Whether a request that the thread has begun is never refused. Set this if the thread
            changes something: a refusal means that nothing was changed.
        thread: An executor with one thread, which calls ``answer``; None makes one.
        seen: Called with how long each question of a batch waited, in seconds, and how long the batch took.

    Source: the adaptive batching of Crankshaw et al., NSDI 2017 (Clipper), section 4.3; the deficit round
        robin of Shreedhar and Varghese, SIGCOMM 1995, section 3; the waiting in deceptive idleness of Iyer
        and Druschel, SOSP 2001, section 3. Differs: batches have no delay, since questions come while
        another batch runs; a packet is a question, a flow is a request, and one batch serves several flows.
    """

    def __init__(
        self,
        answer: Callable[[Sequence[Question]], Sequence[Answer | Exception]],
        *,
        most: int,
        waiting: int | None,
        timeout: float | None,
        cost: Callable[[Question], int] = lambda _question: 1,
        finishes: bool = False,
        thread: ThreadPoolExecutor | None = None,
        seen: Callable[[Sequence[float], float], None] = lambda _waits, _took: None,
    ) -> None:
        self._answer = answer
        self._most = most
        self._limit = waiting
        self._timeout = timeout
        self._cost = cost
        self._finishes = finishes
        self._seen = seen
        self._share = max(1, most // _SHARES)
        # The requests with questions that no thread has seen, the one whose turn is next first.
        self._ring: deque[_Request[Question, Answer]] = deque()
        self._open: set[_Request[Question, Answer]] = set()  # all without an answer
        self._has_arrived = asyncio.Event()
        self._is_running = False
        self._is_closed = False
        self.thread = thread or ThreadPoolExecutor(1, "twotower-answers")

    def __len__(self) -> int:
        """The number of waiting requests. A request waits until the thread has its last question."""
        return len(self._ring)

    async def ask(self, question: Question) -> Answer:
        """Return the answer, or raise the error in its place; see ``ask_all``."""
        return (await self.ask_all([question]))[0]

    async def ask_all(self, questions: Sequence[Question]) -> list[Answer]:
        """Return the answers, or raise the first error among them.

        Raises:
            ClosedError: The batcher is closed; no question of the caller is in the thread.
            TooManyWaitingError: The queue is full.
            WaitedTooLongError: The answers did not come in time; questions that wait are dropped.
        """
        if self._is_closed:
            raise ClosedError
        if self._limit is not None and len(self._ring) >= self._limit:
            raise TooManyWaitingError
        if not questions:
            return []
        loop = asyncio.get_running_loop()
        costs = [self._cost(question) for question in questions]
        request: _Request[Question, Answer] = _Request(
            questions, costs, self._share, loop.create_future()
        )
        self._ring.append(request)
        self._open.add(request)
        timer = None
        if self._timeout is not None:
            timer = loop.call_later(self._timeout, self._refuse_late, request)
        self._has_arrived.set()
        if not self._is_running:
            self._is_running = True
            loop.create_task(self._run())  # noqa: RUF006 - ends itself, and is kept by its await
        try:
            return await request.future
        finally:
            self._drop(request)  # the caller may have hung up
            if timer is not None:
                timer.cancel()

    def close(self) -> None:
        """Shut the thread down after its batch. Requests that still wait get a ``ClosedError``."""
        self._is_closed = True
        self.thread.shutdown(wait=True)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        was_small = False
        try:
            while self._ring and not self._is_closed:
                batch = self._next(skips=not was_small)
                if not batch:  # stay free for small requests, but not for long
                    was_small = False
                    self._has_arrived.clear()
                    with suppress(TimeoutError):
                        await asyncio.wait_for(self._has_arrived.wait(), _PATIENCE)
                    continue
                was_small = sum(r.costs[place] for r, place in batch) <= self._most
                started = time.perf_counter()
                questions = [request.questions[place] for request, place in batch]
                try:
                    work = loop.run_in_executor(self.thread, self._answered, questions)
                except RuntimeError:  # another batcher closed the thread
                    self._is_closed = True
                    continue
                answers = await work
                took = time.perf_counter() - started
                for (request, _), answer in zip(batch, answers, strict=True):
                    if isinstance(answer, Exception):
                        self._settle(request, answer)
                        continue
                    request.answers.append(answer)
                    if len(request.answers) == len(request.questions):
                        self._settle(request, None)
                self._seen([started - request.since for request, _ in batch], took)
        except BaseException as error:  # no request may wait for ever
            told = error if isinstance(error, Exception) else ClosedError()
            for request in list(self._open):
                self._settle(request, told)
            raise
        finally:
            self._is_running = False
            for request in list(self._open) if self._is_closed else ():
                self._settle(request, ClosedError())

    def _next(self, *, skips: bool) -> list[tuple[_Request[Question, Answer], int]]:
        """Return the questions of the next batch, each as a request and a place in it.

        Args:
            skips: Whether to skip the turns in which no request can pay. If not, the batch is empty when
                each question would be a batch of its own.
        """
        batch: list[tuple[_Request[Question, Answer], int]] = []
        ring, room, num_poor = self._ring, self._most, 0
        while ring and len(batch) < self._most:
            request = ring[0]
            cost = request.costs[request.next]
            if cost <= request.credit:
                if batch and cost > room:
                    break  # the next batch begins with it
                batch.append((request, request.next))
                room -= cost
                request.credit -= cost
                request.next += 1
                num_poor = 0
                if request.next == len(request.questions):
                    ring.popleft()
                continue
            request.credit += self._share
            ring.rotate(-1)
            num_poor += 1
            if num_poor > len(ring):  # all had a turn, and none can pay
                if batch or not (skips or self._has_small()):
                    break
                self._skip_turns()
                num_poor = 0
        return batch

    def _has_small(self) -> bool:
        return any(request.costs[request.next] <= self._most for request in self._ring)

    def _skip_turns(self) -> None:
        """Give all requests the credit of the turns in which none of them can pay."""
        lacking = min(request.costs[request.next] - request.credit for request in self._ring)
        turns = max(0, -(-lacking // self._share))
        for request in self._ring:
            request.credit += turns * self._share

    def _settle(self, request: _Request[Question, Answer], error: Exception | None) -> None:
        """Give a caller its answers, or an error in their place."""
        self._drop(request)
        with suppress(asyncio.InvalidStateError):  # the caller hung up, or was refused before
            if error is None:
                request.future.set_result(request.answers)
            else:
                request.future.set_exception(error)

    def _drop(self, request: _Request[Question, Answer]) -> None:
        """Forget a request with its questions that no thread has seen."""
        self._open.discard(request)
        if request.next < len(request.questions):
            request.next = len(request.questions)
            self._ring.remove(request)

    def _refuse_late(self, request: _Request[Question, Answer]) -> None:
        """Refuse a request whose time is over."""
        if not self._is_closed and not (self._finishes and request.next):
            self._settle(request, WaitedTooLongError())

    def _answered(self, questions: Sequence[Question]) -> Sequence[Answer | Exception]:
        try:
            answers = self._answer(questions)
            assert len(answers) == len(questions)
            return answers
        except Exception as error:  # whatever it is, somebody waits for it
            return [error] * len(questions)
