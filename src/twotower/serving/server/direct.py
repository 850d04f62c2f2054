"""Answers routes whose request is one JSON body without the layers of the framework.

The framework still declares these routes and describes them in its OpenAPI document. Its layers look for
dependencies, cookies and background work, which such a route does not have. They take two thirds of a
request's time where the model's part is a fifth of a millisecond. A route that does have any of these goes
through the framework: ``bare_routes`` decides.
"""

import inspect
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from typing import Any, get_type_hints

from fastapi import FastAPI, Response, routing
from fastapi.routing import APIRoute
from pydantic import BaseModel

from twotower.serving.server.gate import Receive, Send, refusal
from twotower.serving.server.refusals import TOLD, kind_of, refusal_of
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

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
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
            request_id = scope["state"]["request_id"]
            response = refusal(*refusal_of(error), request_id, kind_of(error))
        await response(scope, receive, send)


def bare_routes(app: FastAPI) -> dict[tuple[str, str], Route]:
    """Return the routes, by method and path, that are nothing but a body and a function.

    A route that declares anything else is left to the framework, and so is one that an earlier route hides.

    Args:
        app: Whose routes it reads, with what the application and its routers add to each.
    """
    found: dict[tuple[str, str], Route] = {}
    earlier: list[Any] = []
    for route in _routes_of(app):
        model = _model_of_bare(route)
        for method in getattr(route, "methods", None) or ():
            is_hidden = any(_takes(other, method, route.path) for other in earlier)
            if model is not None and not is_hidden:
                found[method, route.path] = route, route.endpoint, model
        earlier.append(route)
    return found


def _routes_of(app: FastAPI) -> Iterator[Any]:
    """Yield the routes in the order in which they are tried, each with all that applies to it."""
    # Newer versions keep an included router in one piece, and merge what applies on request.
    merged = getattr(routing, "iter_route_contexts", iter)
    yield from merged(app.routes)


def _takes(route: Any, method: str, path: str) -> bool:
    """Return whether a route answers a request."""
    methods = getattr(route, "methods", None)
    if methods and method not in methods:
        return False
    pattern = getattr(route, "path_regex", None)
    return pattern is None or pattern.match(path) is not None


def _model_of_bare(route: Any) -> type[BaseModel] | None:
    """Return the model of a route's body, or None where the route is more than a body."""
    original = getattr(route, "original_route", route)
    if type(original) not in (APIRoute, StrictRoute):  # another kind may do more
        return None
    if route.param_convertors:
        return None
    needs = route.dependant
    others = (
        needs.path_params,
        needs.query_params,
        needs.header_params,
        needs.cookie_params,
        needs.request_param_name,
        needs.websocket_param_name,
        needs.http_connection_param_name,
        needs.response_param_name,
        needs.background_tasks_param_name,
        needs.security_scopes_param_name,
    )
    # A limit of its own for bodies is an option of newer versions of the framework.
    if any(others) or getattr(route, "max_body_size", None) is not None:
        return None
    if [each.name for each in needs.body_params] != ["body"]:
        return None
    # The service comes by a dependency of its own, the only one that is known here.
    if [(each.name, each.call) for each in needs.dependencies] != [("service", provide_service)]:
        return None
    if not inspect.iscoroutinefunction(route.endpoint):
        return None
    # What is no response yet would still have to be checked and written by the framework.
    returned = get_type_hints(route.endpoint).get("return")
    (given,) = needs.body_params
    if getattr(given.field_info, "embed", None):
        return None
    model = given.field_info.annotation
    is_whole = isinstance(returned, type) and issubclass(returned, Response)
    is_object = isinstance(model, type) and issubclass(model, BaseModel)
    return model if is_whole and is_object else None
