"""Bodies that are JSON and nothing more."""

from collections.abc import Callable
from typing import Any

import orjson
from fastapi import HTTPException, Request, Response
from fastapi.routing import APIRoute

from twotower.serving.server.schemas import MOST_COLUMNS


class StrictRequest(Request):
    """A request whose JSON is JSON: without NaN, and not nested without end."""

    async def json(self) -> Any:
        """Return the body."""
        value = orjson.loads(await self.body() or b"null")
        check_width(value)
        return value


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


class StrictRoute(APIRoute):
    """A route that reads its body by ``StrictRequest``."""

    def get_route_handler(self) -> Callable[[Request], Any]:
        """Return what handles a request."""
        original = super().get_route_handler()

        async def handler(request: Request) -> Response:
            answer: Response = await original(StrictRequest(request.scope, request.receive))
            return answer

        return handler
