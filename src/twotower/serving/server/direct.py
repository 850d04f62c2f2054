"""Answers routes that take one JSON body and nothing else, without the layers of the framework.

The framework still declares these routes and describes them in its OpenAPI document. Its layers look for
dependencies, cookies and background work, which such a route does not have. If the model needs a fifth of a
millisecond, these layers take two thirds of a request's time. A route that has anything else goes through
the framework: see ``bare_routes``.
"""

import inspect
from collections.abc import Awaitable, Callable
from typing import Any, get_type_hints

from fastapi import FastAPI, Response, routing
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.types import Receive, Scope, Send

from twotower.serving.server.refusals import TOLD, refusal
from twotower.serving.server.routes import provide_service
from twotower.serving.server.service import Service
from twotower.serving.server.strict import StrictRoute, body_of, check_media_type

Route = tuple[Any, Callable[..., Awaitable[Response]], type[BaseModel]]
"""A route of the framework, its function, and the model of its body."""


class Direct:
    """Wraps an application of the standard interface (ASGI), and answers some of its routes itself.

    Args:
        app: Answers the other routes. Its routes are read now, so all must be there.
        service: What the routes share.
    """

    def __init__(self, app: FastAPI, service: Service) -> None:
        self._app = app
        self._service = service
        self.routes = bare_routes(app)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        known = self.routes.get((scope.get("method", ""), scope.get("path", "")))
        if known is None or self._app.user_middleware or self._app.dependency_overrides:
            await self._app(scope, receive, send)
            return
        route, endpoint, model = known
        scope["route"] = route
        try:
            check_media_type(scope["headers"])
            body = body_of(model, (await receive())["body"])
            response = await endpoint(body=body, service=self._service)
        except TOLD as error:
            response = refusal(error, scope["state"]["request_id"])
        await response(scope, receive, send)


def bare_routes(app: FastAPI) -> dict[tuple[str, str], Route]:
    """Return the routes that are no more than a body and a function, by method and path.

    A route that declares anything else is left to the framework, and so is one that an earlier route hides.

    Args:
        app: The application. What it and its routers add to a route counts, too.
    """
    found: dict[tuple[str, str], Route] = {}
    earlier: list[Any] = []
    # Newer versions keep an included router in one piece, and merge what applies to a route on request.
    for route in getattr(routing, "iter_route_contexts", iter)(app.routes):
        model = _model_of_bare(route)
        for method in route.methods if model is not None else ():
            if not any(_takes(other, method, route.path) for other in earlier):
                found[method, route.path] = route, route.endpoint, model
        earlier.append(route)
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
    model, returned = hints["body"], hints.get("return")
    is_object = isinstance(model, type) and issubclass(model, BaseModel)
    if not is_object or parameters["body"].default is not inspect.Parameter.empty:
        return None
    # The framework checks and writes what is no response yet.
    is_whole = isinstance(returned, type) and issubclass(returned, Response)
    return model if is_whole else None
