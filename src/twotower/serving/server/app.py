"""The application: the routes with a fast path for most of them, and the answers to errors."""

import asyncio
import inspect
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, get_type_hints

from fastapi import FastAPI, Request, Response, routing
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from twotower.serving.server import page
from twotower.serving.server.gate import Gate
from twotower.serving.server.openapi import describe
from twotower.serving.server.options import ServerSettings
from twotower.serving.server.refusals import TOLD, refusal
from twotower.serving.server.routes import provide_service, router
from twotower.serving.server.service import Service
from twotower.serving.server.strict import StrictRoute, body_of, check_media_type
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
    """Answers the routes that take one JSON body and nothing else, without the layers of the framework.

    The framework still declares these routes and describes them in its OpenAPI document. Its layers look
    for dependencies, cookies and background work, which such a route does not have. If the model needs a
    fifth of a millisecond, these layers take two thirds of a request's time. A route that has anything else
    goes through the framework: see ``bare_routes``.

    Args:
        app: Answers the other routes. Its routes are read now, so all must be there.
        service: The object that the routes share.
    """

    def __init__(self, app: FastAPI, service: Service) -> None:
        self._app = app
        self._service = service
        self.routes = bare_routes(app)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request. The gate answers its errors."""
        known = self.routes.get((scope.get("method", ""), scope.get("path", "")))
        if known is None or self._app.user_middleware or self._app.dependency_overrides:
            await self._app(scope, receive, send)
            return
        scope["route"], model = known
        check_media_type(scope["headers"])
        body = body_of(model, (await receive())["body"])
        response = await scope["route"].endpoint(body=body, service=self._service)
        await response(scope, receive, send)


def bare_routes(app: FastAPI) -> dict[tuple[str, str], tuple[Any, type[BaseModel]]]:
    """Return the routes that are no more than a body and a function, with the models of their bodies.

    A route that declares anything else is left to the framework, and so is one that an earlier route hides.

    Args:
        app: The application. What it and its routers add to a route counts, too.
    """
    found: dict[tuple[str, str], tuple[Any, type[BaseModel]]] = {}
    # Newer versions keep an included router in one piece, and merge what applies to a route on request.
    routes: list[Any] = list(getattr(routing, "iter_route_contexts", iter)(app.routes))
    for number, route in enumerate(routes):
        model = _model_of_bare(route)
        if model is not None:
            for method in route.methods:
                if not any(_takes(other, method, route.path) for other in routes[:number]):
                    found[method, route.path] = route, model
    return found


def _takes(route: Any, method: str, path: str) -> bool:
    """Return whether a route answers a request."""
    methods = getattr(route, "methods", None)
    if methods and method not in methods:
        return False
    pattern = getattr(route, "path_regex", None)
    return pattern is None or pattern.match(path) is not None


def _model_of_bare(route: Any) -> type[BaseModel] | None:
    """Return the model of a route's body, or None if the route is more than a body and a function."""
    # Another kind of route may do more. A limit of its own for bodies comes with newer versions.
    is_plain = type(getattr(route, "original_route", route)) in (APIRoute, StrictRoute)
    if not is_plain or route.param_convertors or getattr(route, "max_body_size", None) is not None:
        return None
    # The service comes by a dependency, the only one that is known here.
    needs = route.dependant.dependencies
    if [(each.name, each.call) for each in needs] != [("service", provide_service)]:
        return None
    parameters = inspect.signature(route.endpoint).parameters
    if list(parameters) != ["body", "service"] or not inspect.iscoroutinefunction(route.endpoint):
        return None
    # A default or an annotation beside the type, such as ``embed``, changes what the body is.
    hints = get_type_hints(route.endpoint, include_extras=True)
    model, returned = hints.get("body"), hints.get("return")
    is_object = isinstance(model, type) and issubclass(model, BaseModel)
    if not is_object or parameters["body"].default is not inspect.Parameter.empty:
        return None
    # The framework checks and writes what is no response yet.
    is_whole = isinstance(returned, type) and issubclass(returned, Response)
    return model if is_whole else None


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
