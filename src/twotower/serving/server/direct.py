"""Requests whose body says all are answered without the layers of the framework.

The framework still declares these routes, and tells of them in its OpenAPI document. Its layers, which look
for dependencies, cookies and background work that such a route has none of, take two thirds of a request's
time where the model's part is a fifth of a millisecond.
"""

from collections.abc import MutableMapping
from typing import Any

from fastapi.routing import APIRoute, APIRouter
from pydantic import BaseModel

from twotower.serving.server.gate import App, Receive, Send, refuse
from twotower.serving.server.refusals import TOLD, kind_of, refusal_of
from twotower.serving.server.service import Service
from twotower.serving.server.strict import body_of, check_media_type


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
            check_media_type(scope["headers"])
            body = body_of(model, (await receive())["body"])
            response = await route.endpoint(body=body, service=self._service)
        except TOLD as error:
            request_id = scope["state"]["request_id"]
            await refuse(send, *refusal_of(error), request_id, kind_of(error))
            return
        await response(scope, receive, send)
