"""Bodies that are JSON and nothing more, and parameters that are what the OpenAPI page says."""

import re
from collections.abc import Callable, Iterable
from typing import Any

import orjson
from fastapi import HTTPException, Request, Response
from fastapi.routing import APIRoute
from pydantic import BeforeValidator, TypeAdapter

from twotower.serving.server.schemas import MOST_COLUMNS, Id

ID: TypeAdapter[Id] = TypeAdapter(Id)
_WHOLE = re.compile(r"-?[0-9]{1,18}")


def _whole(given: object) -> object:
    if isinstance(given, str) and not _WHOLE.fullmatch(given):
        raise ValueError("the value must be a whole number")
    return given


def _truth(given: object) -> object:
    if isinstance(given, str) and given not in ("true", "false"):
        raise ValueError("the value must be true or false")
    return given


WHOLE = BeforeValidator(_whole)
"""Of a parameter in an address: digits, and not all that Python reads as a number."""
TRUTH = BeforeValidator(_truth)
"""The same, of ``true`` or ``false``."""


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
            if self.body_field is not None:
                _check_media_type(request)
            _check_parameters(request, [field.alias for field in self.dependant.query_params])
            answer: Response = await original(StrictRequest(request.scope, request.receive))
            return answer

        return handler


def check_ids(lines: Iterable[object], column: str) -> None:
    """Refuse lines whose id is none: nothing, a list, a truth value. An id of 7.0 becomes 7.

    Args:
        lines: Objects that name an item, and ids, which are left alone.
        column: Under which they name it.

    Raises:
        ValueError: There is one.
    """
    for line in lines:
        if not isinstance(line, dict):
            continue
        item_id = line.get(column)
        try:
            line[column] = ID.validate_python(item_id)
        except ValueError as error:
            raise ValueError(
                f"each line must name its item under {column!r}, by a whole number or a string, "
                f"got {orjson.dumps(item_id).decode()[:80]}."
            ) from error


def _check_media_type(request: Request) -> None:
    """Refuse a body that says it is something else than JSON, or does not say what it is.

    Raises:
        HTTPException: It does.
    """
    given = request.headers.get("content-type", "")
    media_type = given.partition(";")[0].strip().lower()
    is_json = media_type == "application/json" or re.fullmatch(r"application/.+\+json", media_type)
    if not is_json:
        said = repr(given[:80]) if given else "nothing"
        raise HTTPException(415, f"content-type must be application/json, got {said}.")


def _check_parameters(request: Request, known: list[str]) -> None:
    """Refuse parameters that a route does not take, where it takes some: a misspelt one would do nothing.

    Raises:
        HTTPException: There is one.
    """
    unknown = [name for name in request.query_params if name not in known]
    if known and unknown:
        said = f"parameters must be of {', '.join(known)}, got {unknown[0][:80]!r}."
        raise HTTPException(422, said)
