"""The state that the routes of one process share, and how the processes agree on the model."""

import asyncio
import gc
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from twotower.errors import BundleError
from twotower.serving.map import items_on_map
from twotower.serving.retriever import Retriever
from twotower.serving.server.batching import Batcher, TooManyWaitingError, WaitedTooLongError
from twotower.serving.server.catalogue import Change, Changed, Written
from twotower.serving.server.drawing import BEING_DRAWN, MOST_ITEMS, Drawing
from twotower.serving.server.engine import Answered, Engine, Model, Question, cost_of
from twotower.serving.server.options import ServerSettings
from twotower.serving.server.pointer import Pointer, digest_of
from twotower.serving.server.telemetry import LOG, Figures
from twotower.vocab import FIRST_ROW

LEAST_TO_SETTLE = 0.25
"""Seconds that a change may wait for its outcome after the write, however long it waited before."""
LOOKS_EVERY = 0.2
"""Seconds between two looks of a worker at the model that all workers answer from."""
MOST_DEAD = 2**17
"""Rows of items that came and went, from which on the bundle is opened again without them."""
SECONDS_BETWEEN_RENEWALS = 60.0


class Service:
    """The state that the routes of one process share.

    Args:
        settings: The settings of the server.

    Raises:
        BundleError: The bundle cannot be opened, or is not the one that the other workers answer from.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings
        self.figures = Figures(several=settings.workers > 1)
        pointer = Pointer.read(settings.pointer)
        path = settings.bundle if pointer is None else pointer.path
        journal, writes = settings.journal, settings.token is not None
        if journal is not None and not writes and not Path(journal).is_file():
            journal = None  # nobody writes it
        self.engine = Engine(path, journal, self.figures.ids_seen, writes=writes)
        if pointer is not None and self.engine.model.digest != pointer.digest:
            raise BundleError(
                f"the bundle {path!r} must be the one that the other workers answer from "
                f"({pointer.digest}), got {self.engine.model.digest}; exchange the model, or start anew."
            )
        self.figures.model_opened(self.engine.model.retriever.index_recall)
        answers = ThreadPoolExecutor(1, "twotower-answers")
        self.batcher: Batcher[Question, Answered] = self._batcher(
            self.engine.answer,
            answers,
            cost=lambda question: cost_of(question, self.engine.model.retriever.share_of_words),
            seen=self._batch_answered,
        )
        # All changes that came meanwhile wait for the disk at once, in a thread of their own.
        self.writer: Batcher[Change, Written] = self._batcher(
            self.engine.write, ThreadPoolExecutor(1, "twotower-journal"), finishes=True
        )
        # The changes are on the disk already, so none of them is refused.
        self.settler: Batcher[Written, Changed] = self._batcher(
            self.engine.changed, answers, waiting=None, timeout=None
        )
        self.follower = self._batcher(self._all_caught_up, answers, most=settings.waiting)
        # Other work with the model, in its own thread: two threads never use a model at once.
        self.asker = self._batcher(_each, answers, most=1)
        # Work that reads tables only, and need not wait for the model.
        self.lookups = self._batcher(_each, ThreadPoolExecutor(1, "twotower-lookups"), most=1)
        self.drawing = Drawing()
        self._sketching: asyncio.Future[None] | None = None
        self._exchanging = asyncio.Lock()
        self._works: set[asyncio.Future[Model]] = set()
        _spare_what_stays()

    def map(self) -> bytes:
        """Return the map of the catalogue as JSON, or a JSON that says that it is being drawn.

        The first request begins the map. It does not show later changes of the catalogue.
        """
        model = self.engine.model
        drawn = self.drawing.answer_of(model.digest)
        if drawn is not None:
            return drawn
        is_begun = self._sketching is not None and not self._sketching.done()
        if not is_begun and not self.drawing.is_busy:
            # A task of its own: the client may hang up, and others ask for the same map.
            self._sketching = asyncio.ensure_future(self._sketch(model.retriever, model.digest))
        return BEING_DRAWN

    async def _sketch(self, retriever: Retriever, digest: str) -> None:
        """Begin to draw the map, from a state of the model between two of its answers."""
        try:
            shown = await self.lookups.ask(lambda: items_on_map(retriever.contents, MOST_ITEMS))
            contents, vectors = await self.asker.ask(
                lambda: (
                    retriever.contents,
                    retriever.index.item_vectors[shown + FIRST_ROW].cpu().numpy(),
                )
            )
        except (TooManyWaitingError, WaitedTooLongError):
            return  # until somebody asks again
        except Exception:
            LOG.exception("the map could not be begun")
            return
        self.drawing.begin(digest, contents, shown, vectors)

    async def caught_up(self) -> Model:
        """Return the current model with all changes that any worker has acknowledged by now."""
        model: Model = await self.follower.ask(None)
        return model

    async def change(self, change: Change) -> Changed:
        """Make a change to the catalogue; see ``Engine.write``.

        A change may be refused before it is in the journal, and never after.
        """
        started = time.perf_counter()
        written = await self.writer.ask(change)
        left = self.settings.timeout - (time.perf_counter() - started)
        try:
            async with asyncio.timeout(max(left, LEAST_TO_SETTLE)):
                return await self.settler.ask(written)
        except Exception:
            LOG.warning("the outcome of a change is told from before it was written", exc_info=True)
            return written.expected

    async def exchange(self, path: str) -> Model:
        """Answer from another bundle from now on, and let the other workers know.

        Raises:
            BundleError: See ``Engine.exchange``.
        """
        # The client may hang up. The exchange still finishes, and the other workers hear of it.
        work = asyncio.ensure_future(self._exchange(path))
        self._works.add(work)
        work.add_done_callback(self._works.discard)
        return await asyncio.shield(work)

    async def _exchange(self, path: str) -> Model:
        async with self._exchanging:
            model = await self._open(path)
            if self.settings.pointer is not None:
                place = str(model.path.resolve())
                Pointer(place, model.digest, time.time_ns()).write(self.settings.pointer)
            return model

    async def follow(self) -> None:
        """Exchange the model whenever another worker did, and apply the changes of the others."""
        failed, renews_from = -1, 0.0
        while True:
            await asyncio.sleep(LOOKS_EVERY)
            try:
                with suppress(TooManyWaitingError, WaitedTooLongError):  # the next look will do
                    await self.caught_up()
                if (
                    self.engine.model.catalogue.num_dead > MOST_DEAD
                    and time.monotonic() > renews_from
                ):
                    renews_from = time.monotonic() + SECONDS_BETWEEN_RENEWALS
                    await self._renew()
                async with self._exchanging:
                    now = Pointer.read(self.settings.pointer)
                    if now is None or now.digest == self.engine.model.digest:
                        continue
                    if now.sequence != failed:
                        failed = now.sequence  # unless it works
                        model = await self._open(now.path)
                        if model.digest != now.digest:
                            LOG.error("the bundle has been replaced since another worker opened it")
            except Exception:
                LOG.exception("a worker could not follow the others")

    def close(self) -> None:
        """Shut the threads down, after their current work."""
        self.drawing.close()
        own = (self.writer, self.lookups, self.batcher, self.settler, self.follower, self.asker)
        for batcher in own:
            batcher.close()

    def _all_caught_up(self, asked: Sequence[None]) -> list[Model]:
        model = self.engine.model
        model.catalogue.catch_up()
        return [model] * len(asked)

    async def _renew(self) -> None:
        """Open the same bundle again, without the rows of items that came and went."""
        async with self._exchanging:
            model, loop = self.engine.model, asyncio.get_running_loop()
            if digest_of(model.path) != model.digest:
                LOG.warning("the bundle has been replaced, so that it cannot be opened anew")
                return
            if await loop.run_in_executor(self.writer.thread, self.engine.compact):
                await self._open(str(model.path))

    async def _open(self, path: str) -> Model:
        loop, old = asyncio.get_running_loop(), self.engine.model
        try:
            model = await loop.run_in_executor(None, self.engine.exchange, path)
        except Exception:
            self.figures.exchanges.labels("no").inc()
            raise
        self.batcher.thread.submit(old.catalogue.close)  # after its current work
        del old
        self.batcher.thread.submit(_spare_what_stays)
        self.figures.exchanges.labels("yes").inc()
        self.figures.model_opened(self.engine.model.retriever.index_recall)
        LOG.info("model exchanged", model=model.digest)
        return model

    def _batcher(
        self, answer: Callable[[Sequence[Any]], Any], thread: ThreadPoolExecutor, **own: Any
    ) -> Batcher[Any, Any]:
        """Return a batcher with the server's limits, unless it has its own."""
        told = self.settings
        limits = {"most": told.batch, "waiting": told.waiting, "timeout": told.timeout}
        return Batcher(answer, thread=thread, **(limits | own))

    def _batch_answered(self, waits: Sequence[float], took: float) -> None:
        self.figures.batch_answered(waits, took)
        self.figures.waiting.set(len(self.batcher))


def _spare_what_stays() -> None:
    """Keep the garbage collector from visiting the objects of the model again and again."""
    gc.unfreeze()
    gc.collect()
    gc.freeze()


def _each(works: Sequence[Callable[[], Any]]) -> list[Any]:
    return [work() for work in works]
