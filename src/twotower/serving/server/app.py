"""The application: routes, and what ties them to the model."""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from twotower.errors import BundleError, TwoTowerError
from twotower.serving.server import page
from twotower.serving.server.batching import Batcher, TooManyWaitingError, WaitedTooLongError
from twotower.serving.server.engine import Answered, Change, Changed, Engine, Model, Question
from twotower.serving.server.gate import Gate, refuse
from twotower.serving.server.routes import router
from twotower.serving.server.run import SETTINGS
from twotower.serving.server.settings import ServerSettings
from twotower.serving.server.telemetry import LOG, Figures, log_to_stderr
from twotower.version import __version__

LOOKS_EVERY = 0.2
"""Seconds after which a worker looks again which model all are to answer from."""


class Service:
    """What the routes of one process share.

    Args:
        settings: Of the server.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings
        several = settings.workers > 1
        self.figures = Figures(several=several)
        self.engine = Engine(_current(settings) or settings.bundle, _journal_of(settings))
        self.figures.model_opened(self.num_items)
        self.batcher: Batcher[Question, Answered] = Batcher(
            self.engine.answer,
            most=settings.batch,
            waiting=settings.waiting,
            timeout=settings.timeout,
            seen=self.figures.batch_answered,
        )
        self.writer: Batcher[Change, Changed] = Batcher(
            self.engine.write,
            most=settings.batch,
            waiting=settings.waiting,
            timeout=settings.timeout,
            thread=self.batcher.thread,
        )
        self.is_leaving = False
        self._exchanging = asyncio.Lock()

    @property
    def num_items(self) -> int:
        """Items that may be an answer now."""
        return self.engine.model.retriever.contents.num_items

    async def exchange(self, path: str) -> Model:
        """Answer from another bundle from now on, in all workers.

        Raises:
            BundleError: See ``Engine.exchange``.
        """
        async with self._exchanging:
            loop, old = asyncio.get_running_loop(), self.engine.model
            try:
                model = await loop.run_in_executor(None, self.engine.exchange, path)
            except BundleError:
                self.figures.exchanges.labels("no").inc()
                raise
            self.batcher.thread.submit(old.close)  # after what it is still asked
            self.figures.exchanges.labels("yes").inc()
            self.figures.model_opened(self.num_items)
            LOG.info("model exchanged", extra={"fields": {"model": model.digest}})
            return model

    def tell_the_others(self, path: Path) -> None:
        """Let the other workers know which bundle is current."""
        if self.settings.pointer is not None:
            pointer = Path(self.settings.pointer)
            temporary = pointer.with_name(f"{pointer.name}.{os.getpid()}")
            temporary.write_text(json.dumps(str(path.resolve())), encoding="utf-8")
            temporary.replace(pointer)

    async def follow(self) -> None:
        """Exchange the model whenever another worker was told to."""
        last = _current(self.settings)
        while True:
            await asyncio.sleep(LOOKS_EVERY)
            now = _current(self.settings)
            if now is None or now == last:
                continue
            last = now
            if Path(now) != self.engine.model.path.resolve():
                try:
                    await self.exchange(now)
                except BundleError:
                    LOG.exception("the model of another worker could not be opened")


def create_app(settings: ServerSettings) -> Gate:
    """Return the application.

    Args:
        settings: Of the server.

    Raises:
        BundleError: The bundle cannot be opened.
    """
    service = Service(settings)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        following = asyncio.create_task(service.follow())
        LOG.info("ready", extra={"fields": {"model": service.engine.model.digest}})
        yield
        service.is_leaving = True
        following.cancel()
        service.batcher.close()

    app = FastAPI(
        title="twotower",
        version=__version__,
        description="Items for queries, from a trained two-tower model.",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        separate_input_output_schemas=False,
    )
    app.state.service = service
    app.include_router(router)
    page.mount(app)
    if settings.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.origins),
            allow_methods=["*"],
            allow_headers=["authorization", "content-type", "x-request-id"],
            expose_headers=["x-request-id", "retry-after"],
        )
    _tell_errors(app)
    return Gate(app, settings, service.figures)


def from_environment() -> Gate:
    """Return the application of a worker process, whose settings stand in the environment."""
    import torch

    log_to_stderr()
    settings = ServerSettings.from_json(os.environ[SETTINGS])
    # Workers share the cores; a thread each is what they have.
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // settings.workers))
    return create_app(settings)


def _tell_errors(app: FastAPI) -> None:
    """Turn every error that a client can cause into a status and a sentence."""

    async def told(request: Request, status: int, message: str) -> Response:
        answer = _Kept()
        await refuse(answer, status, message, request.state.request_id)
        return answer.response()

    @app.exception_handler(RequestValidationError)
    async def _(request: Request, error: RequestValidationError) -> Response:
        return await told(request, 422, _sentence(error))

    @app.exception_handler(HTTPException)
    async def _(request: Request, error: HTTPException) -> Response:
        said = {
            404: "there is nothing at this address; /docs lists what there is.",
            405: "this address does not take that method; /docs lists which it takes.",
        }
        return await told(
            request, error.status_code, said.get(error.status_code, str(error.detail))
        )

    @app.exception_handler(TooManyWaitingError)
    async def _(request: Request, _error: TooManyWaitingError) -> Response:
        return await told(request, 429, "too many queries wait for an answer; ask again later.")

    @app.exception_handler(WaitedTooLongError)
    async def _(request: Request, _error: WaitedTooLongError) -> Response:
        return await told(request, 503, "the answer did not come in time; ask again later.")

    @app.exception_handler(BundleError)
    async def _(request: Request, error: BundleError) -> Response:
        return await told(request, 409, str(error))

    for kind in (ValueError, TwoTowerError):

        @app.exception_handler(kind)
        async def _(request: Request, error: Exception) -> Response:
            return await told(request, 422, str(error))


class _Kept:
    """Takes the messages of an answer and gives them back as one."""

    def __init__(self) -> None:
        self._messages: list[Any] = []

    async def __call__(self, message: Any) -> None:
        self._messages.append(message)

    def response(self) -> Response:
        start, body = self._messages
        headers = {name.decode(): value.decode() for name, value in start["headers"]}
        return Response(body["body"], start["status"], headers)


def _sentence(error: RequestValidationError) -> str:
    """Return the first mistake of a request as one sentence."""
    first = error.errors()[0]
    place = ".".join(str(step) for step in first["loc"] if step not in ("body", "query"))
    if first["type"] == "json_invalid":
        return f"the body must be JSON: {first.get('ctx', {}).get('error', 'it cannot be read')}."
    got = first.get("input")
    said = orjson.dumps(got, default=str).decode() if got is not None else "nothing"
    if len(said) > 80:
        said = said[:77] + "..."
    return f"{place or 'the body'}: {first['msg'].rstrip('.')}, got {said}."


def _journal_of(settings: ServerSettings) -> str | None:
    """Return the journal, where there is one or something may be written."""
    if settings.journal is None:
        return None
    is_wanted = settings.token is not None or Path(settings.journal).is_file()
    return settings.journal if is_wanted else None


def _current(settings: ServerSettings) -> str | None:
    """Return the bundle that all workers are to answer from, where it was exchanged."""
    if settings.pointer is None or not Path(settings.pointer).is_file():
        return None
    current: str = json.loads(Path(settings.pointer).read_text(encoding="utf-8"))
    return current
