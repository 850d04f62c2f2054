"""Requests whose body says all are answered without the layers of the framework.

The framework still declares these routes, and tells of them in its OpenAPI document. Its layers, which look
for dependencies, cookies and background work that such a route has none of, take two thirds of a request's
time where the model's part is a fifth of a millisecond.
"""

from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

import orjson
from fastapi import HTTPException, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute, APIRouter
from pydantic import BaseModel, ValidationError

from twotower.serving.server.gate import App, Receive, Send, refuse
from twotower.serving.server.refusals import TOLD, refusal_of
from twotower.serving.server.schemas import MOST_COLUMNS
from twotower.serving.server.service import Service

Endpoint = Callable[..., Awaitable[Response]]


class Direct:
    """Wraps an application of the standard interface (ASGI), and answers some of its routes itself.

    Args:
        app: What answers the others.
        router: The routes.
        service: What they share.
    """

    def __init__(self, app: App, router: APIRouter, service: Service) -> None:
        self._app = app
        self._service = service
        self._routes: dict[tuple[str, str], tuple[APIRoute, type[BaseModel]]] = {}
        for route in router.routes:
            if isinstance(route, APIRoute) and route.body_field is not None:
                model = route.body_field.field_info.annotation
                assert isinstance(model, type)
                assert issubclass(model, BaseModel)
                for method in route.methods or ():
                    self._routes[method, route.path] = route, model

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request."""
        known = self._routes.get((scope.get("method", ""), scope.get("path", "")))
        if known is None:
            await self._app(scope, receive, send)
            return
        route, model = known
        scope["route"] = route
        try:
            check_type(scope["headers"])
            body = body_of(model, (await receive())["body"])
            response = await route.endpoint(body=body, service=self._service)
        except TOLD as error:
            await refuse(send, *refusal_of(error), scope["state"]["request_id"])
            return
        await response(scope, receive, send)


def body_of(model: type[BaseModel], raw: bytes) -> BaseModel:
    """Return a body as its model has it.

    Raises:
        HTTPException: It is no JSON (NaN is none, nor is what is nested without end), or has an object of
            more keys than any table has columns.
        RequestValidationError: It is not what the model says.
    """
    try:
        value = orjson.loads(raw or b"null")
    except orjson.JSONDecodeError as error:
        raise HTTPException(422, f"the body must be JSON: {error}.") from error
    check_width(value)
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise RequestValidationError(
            error.errors(include_url=False, include_context=False)
        ) from error


def check_type(headers: Iterable[tuple[bytes, bytes]]) -> None:
    """Refuse bodies that do not say that they are JSON, among them all that a form of another site sends.

    Raises:
        HTTPException: It does not.
    """
    given = next((value for name, value in headers if name == b"content-type"), b"")
    if given.partition(b";")[0].strip().lower() != b"application/json":
        said = given.decode("latin-1") or "none"
        raise HTTPException(415, f"content-type must be application/json, got {said}.")


def check_width(value: Any) -> None:
    """Refuse objects of more keys than any table has columns, before each is looked at in every way.

    Raises:
        HTTPException: There is one.
    """
    waiting = [value]
    while waiting:
        inner = waiting.pop()
        if isinstance(inner, dict):
            if len(inner) > MOST_COLUMNS:
                said = f"an object must have at most {MOST_COLUMNS} keys, got {len(inner)}."
                raise HTTPException(422, said)
            waiting += inner.values()
        elif isinstance(inner, list):
            waiting += inner
