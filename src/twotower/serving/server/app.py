"""The application: the routes with a fast path for most of them, and the answers to errors."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from twotower.serving.server import page
from twotower.serving.server.gate import Gate
from twotower.serving.server.openapi import describe
from twotower.serving.server.options import ServerSettings
from twotower.serving.server.refusals import TOLD, refusal
from twotower.serving.server.routes import router
from twotower.serving.server.service import Service
from twotower.serving.server.strict import body_of, check_media_type
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


class Direct:
    """Answers the routes that take a JSON body, without the layers of the framework.

    The framework still declares these routes and describes them in its OpenAPI document. Its layers look
    for dependencies, cookies and background work, which such a route does not have. If the model needs a
    fifth of a millisecond, these layers take two thirds of a request's time.

    Args:
        app: Answers the other routes.
        service: The object that the routes share.
    """

    def __init__(self, app: FastAPI, service: Service) -> None:
        self._app = app
        self._service = service
        self.routes: dict[tuple[str, str], APIRoute] = {}
        for route in router.routes:
            if isinstance(route, APIRoute) and route.body_field is not None:
                self.routes |= {(method, route.path): route for method in route.methods or ()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request. The gate answers its errors."""
        route = self.routes.get((scope.get("method", ""), scope.get("path", "")))
        if route is None:
            await self._app(scope, receive, send)
            return
        scope["route"] = route
        check_media_type(scope["headers"])
        model = route.endpoint.__annotations__["body"]
        body = body_of(model, (await receive())["body"])
        response = await route.endpoint(body=body, service=self._service)
        await response(scope, receive, send)


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
