"""The application: routes, and what every error becomes."""

import asyncio
import gc
import os
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from twotower.errors import BundleError, FilterError, TwoTowerError
from twotower.serving.server import page
from twotower.serving.server.batching import TooManyWaitingError, WaitedTooLongError
from twotower.serving.server.gate import App, Gate, refuse
from twotower.serving.server.openapi import describe
from twotower.serving.server.routes import router
from twotower.serving.server.run import SETTINGS
from twotower.serving.server.service import Service
from twotower.serving.server.settings import ServerSettings
from twotower.serving.server.telemetry import LOG, log_to_stderr
from twotower.version import __version__

_FORM = re.compile(r"constrained-\w+|(function-|list\[|dict\[|literal\[).*", re.S)
"""A step to one of several forms of a value, which says nothing to a person."""


def create_app(settings: ServerSettings) -> App:
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
        following.cancel()
        service.close()

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
    describe(app, service)
    _tell_errors(app)
    gate = Gate(app, settings, service.figures, _writes())
    if settings.origins:
        # Outermost, so that who may ask also sees why it was refused.
        return CORSMiddleware(
            gate,
            allow_origins=list(settings.origins),
            allow_methods=["*"],
            allow_headers=["authorization", "content-type", "x-request-id"],
            expose_headers=["x-request-id", "retry-after"],
        )
    return gate


def from_environment() -> App:
    """Return the application of a worker process, whose settings stand in the environment."""
    import torch

    log_to_stderr()
    settings = ServerSettings.from_json(os.environ[SETTINGS])
    # Workers share the cores, and the thread that speaks HTTP wants one of each worker's.
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // settings.workers - 1))
    app = create_app(settings)
    # The libraries are 200,000 objects, and looking through them for what nothing refers to any more stops
    # all threads for a third of a second, again and again. They stay.
    gc.collect()
    gc.freeze()
    return app


def _writes() -> frozenset[tuple[str, str]]:
    """Return the methods and addresses that change something: GET and POST ask."""
    routes = [route for route in router.routes if isinstance(route, APIRoute)]
    pairs = ((method, route.path) for route in routes for method in route.methods or ())
    return frozenset(pair for pair in pairs if pair[0] not in ("GET", "POST"))


def _tell_errors(app: FastAPI) -> None:
    """Turn every error that a client can cause into a status and a sentence."""

    async def told(
        request: Request,
        status: int,
        message: str,
        headers: Mapping[str, str] | None = None,
        kind: str | None = None,
    ) -> Response:
        answer = _Kept()
        await refuse(answer, status, message, request.state.request_id, kind)
        response = answer.response()
        response.headers.update(headers or {})
        return response

    @app.exception_handler(RequestValidationError)
    async def _(request: Request, error: RequestValidationError) -> Response:
        return await told(request, 422, _sentence(error))

    @app.exception_handler(HTTPException)
    async def _(request: Request, error: HTTPException) -> Response:
        said = {
            404: "there is nothing at this address; /docs lists what there is.",
            405: "this address does not take that method; /docs lists which it takes.",
        }
        own_words = str(error.detail)
        is_general = own_words in ("Not Found", "Method Not Allowed")
        message = said.get(error.status_code, own_words) if is_general else own_words
        headers = error.headers
        if error.status_code == 405:
            path = request.url.path
            own = (r for r in router.routes if isinstance(r, APIRoute) and r.path == path)
            methods = {m for r in own for m in r.methods or ()}
            methods |= {"HEAD"} if "GET" in methods else set()
            headers = {"allow": ", ".join(sorted(methods))}
        return await told(request, error.status_code, message, headers)

    @app.exception_handler(TooManyWaitingError)
    async def _(request: Request, _error: TooManyWaitingError) -> Response:
        return await told(request, 429, "too many queries wait for an answer; ask again later.")

    @app.exception_handler(WaitedTooLongError)
    async def _(request: Request, _error: WaitedTooLongError) -> Response:
        return await told(request, 503, "the answer did not come in time; ask again later.")

    @app.exception_handler(BundleError)
    async def _(request: Request, error: BundleError) -> Response:
        return await told(request, 409, str(error))

    @app.exception_handler(Exception)  # and its trace goes to the log
    async def _(request: Request, _error: Exception) -> Response:
        return await told(
            request, 500, "the server failed; its log says why under this request_id."
        )

    @app.exception_handler(FilterError)
    async def _(request: Request, error: FilterError) -> Response:
        return await told(request, 422, str(error), kind="filter")

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
    errors = error.errors()
    parent = errors[0]["loc"][:-1]
    # Of several forms that a value may have, the one that it nearly has says most.
    beside = (each for each in errors if each["loc"][: len(parent)] == parent)
    first = next((each for each in beside if not each["type"].endswith("_type")), errors[0])
    steps = [str(step) for step in first["loc"] if step not in ("body", "query")]
    place = ".".join(step for step in steps if not _FORM.fullmatch(step))
    if first["type"] == "json_invalid":
        return f"the body must be JSON: {first.get('ctx', {}).get('error', 'it cannot be read')}."
    got = first.get("input")
    said = orjson.dumps(got, default=str).decode() if got is not None else "nothing"
    if len(said) > 80:
        said = said[:77] + "..."
    return f"{place or 'the body'}: {first['msg'].rstrip('.')}, got {said}."
