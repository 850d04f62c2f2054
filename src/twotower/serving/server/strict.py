"""Bodies that are JSON and nothing more."""

from collections.abc import Callable
from typing import Any

import orjson
from fastapi import Request, Response
from fastapi.routing import APIRoute


class StrictRequest(Request):
    """A request whose JSON is JSON: without NaN, and not nested without end."""

    async def json(self) -> Any:
        """Return the body."""
        return orjson.loads(await self.body() or b"null")


class StrictRoute(APIRoute):
    """A route that reads its body by ``StrictRequest``."""

    def get_route_handler(self) -> Callable[[Request], Any]:
        """Return what handles a request."""
        original = super().get_route_handler()

        async def handler(request: Request) -> Response:
            answer: Response = await original(StrictRequest(request.scope, request.receive))
            return answer

        return handler
