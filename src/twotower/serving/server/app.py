"""The application: routes, and what every error becomes."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from twotower.serving.server import page
from twotower.serving.server.direct import Direct
from twotower.serving.server.gate import Gate
from twotower.serving.server.openapi import describe
from twotower.serving.server.options import ServerSettings
from twotower.serving.server.refusals import TOLD, refusal
from twotower.serving.server.routes import router
from twotower.serving.server.service import Service
from twotower.serving.server.telemetry import LOG
from twotower.version import __version__


def create_app(settings: ServerSettings) -> ASGIApp:
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
        LOG.info("ready", model=service.engine.model.digest, pid=os.getpid())
        yield
        following.cancel()
        service.close()

    app = FastAPI(
        title="twotower",
        version=__version__,
        description="Items for queries, from a trained two-tower model.",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,  # ``describe`` gives the page
        redirect_slashes=False,  # whose address would come from the request's Host header
        lifespan=lifespan,
        separate_input_output_schemas=False,
    )
    app.state.service = service
    app.include_router(router)
    page.mount(app)
    describe(app, service)
    _tell_errors(app)
    gate = Gate(Direct(app, service), settings, service.figures, _methods())
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


def _methods() -> dict[str, set[str]]:
    """Return the methods that each address takes."""
    found: dict[str, set[str]] = {}
    for route in router.routes:
        if isinstance(route, APIRoute):
            found.setdefault(route.path, set()).update(route.methods or ())
    return found


def _tell_errors(app: FastAPI) -> None:
    """Turn every error that a client can cause into a status and a sentence."""

    async def told(request: Request, error: Exception) -> Response:
        response = refusal(error, request.state.request_id)
        if isinstance(error, HTTPException):
            response.headers.update(error.headers or {})
            if error.status_code == 405:
                methods = _methods().get(request.scope["path"], set())
                methods |= {"HEAD"} if "GET" in methods else set()
                response.headers["allow"] = ", ".join(sorted(methods))
        return response

    for kind in (*TOLD, Exception):  # whose trace goes to the log
        app.add_exception_handler(kind, told)
