"""Strict requests: bodies are plain JSON, and parameters are as the OpenAPI page describes them."""

import re
from collections.abc import Callable, Iterable
from typing import Any

import orjson
from fastapi import HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, BeforeValidator, TypeAdapter, ValidationError

from twotower.errors import ArgumentError
from twotower.serving.arguments import DEEPEST, levels_of
from twotower.serving.server.schemas import MOST_COLUMNS, Id

ID: TypeAdapter[Id] = TypeAdapter(Id)


def _only(pattern: str, what: str) -> BeforeValidator:
    """Return a check of a parameter in an address, since pydantic also reads ``1_0`` and ``yes``."""

    def check(given: object) -> object:
        if isinstance(given, str) and not re.fullmatch(pattern, given):
            raise ArgumentError(f"the value must be {what}")
        return given

    return BeforeValidator(check)


WHOLE = _only("-?[0-9]{1,18}", "a whole number")
TRUTH = _only("true|false", "true or false")


def body_of(model: type[BaseModel], raw: bytes) -> BaseModel:
    """Return a validated body.

    Raises:
        HTTPException: See ``json_of``.
        RequestValidationError: The body does not fit the model.
    """
    try:
        return model.model_validate(json_of(raw))
    except ValidationError as error:
        mistakes = error.errors(include_url=False)
        raise RequestValidationError(
            [each | {"loc": ("body", *each["loc"])} for each in mistakes]
        ) from error


def json_of(raw: bytes) -> Any:
    """Return the value of a body.

    Raises:
        HTTPException: The body is not JSON (NaN is not), is nested too deeply, or has an object with more
            keys than any table has columns.
    """
    try:
        value = orjson.loads(raw or b"null")
    except orjson.JSONDecodeError as error:
        raise HTTPException(422, f"the body must be JSON: {error}.") from error
    # This comes before functions that try several types for each value, or call themselves for each level.
    for depth, level in enumerate(levels_of(value)):
        if depth > DEEPEST:
            said = f"the body must be nested at most {DEEPEST} levels deep, got more."
            raise HTTPException(422, said)
        for inner in level:
            if isinstance(inner, dict) and len(inner) > MOST_COLUMNS:
                said = f"an object must have at most {MOST_COLUMNS} keys, got {len(inner)}."
                raise HTTPException(422, said)
    return value


class StrictRoute(APIRoute):
    """A route that refuses unknown parameters, and bodies that are not plain JSON.

    ``app.Direct`` answers most requests with a body before they come here; another spelling of an address
    does come here.
    """

    def get_route_handler(self) -> Callable[[Request], Any]:
        """Return the function that handles a request."""
        original = super().get_route_handler()

        async def handler(request: Request) -> Response:
            # In a route that takes parameters, a misspelt one would have no effect.
            known = [field.alias for field in self.dependant.query_params]
            unknown = [name for name in request.query_params if name not in known]
            if known and unknown:
                said = f"parameters must be of {', '.join(known)}, got {unknown[0][:80]!r}."
                raise HTTPException(422, said)
            if self.body_field is not None:
                check_media_type(request.scope["headers"])
                json_of(await request.body())
            return await original(request)

        return handler


def check_ids(lines: Iterable[object], column: str) -> None:
    """Refuse lines with an invalid id: null, a list, a truth value. An id of 7.0 becomes 7.

    Args:
        lines: Objects with the id of an item, and plain ids, which are left alone.
        column: The key of the id.

    Raises:
        ArgumentError: A line has no valid id.
    """
    for line in lines:
        if not isinstance(line, dict):
            continue
        item_id = line.get(column)
        try:
            line[column] = ID.validate_python(item_id)
        except ValueError as error:
            raise ArgumentError(
                f"each line must name its item under {column!r}, by a whole number or a string, "
                f"got {orjson.dumps(item_id).decode()[:80]}."
            ) from error


def check_media_type(headers: Iterable[tuple[bytes, bytes]]) -> None:
    """Refuse a body whose content type is missing or is not JSON.

    A form on a page of another origin cannot send this type, unless the server allows that page to ask.

    Raises:
        HTTPException: The content type is not JSON.
    """
    raw = next((value for name, value in headers if name == b"content-type"), b"")
    given = raw.decode("latin-1")
    media_type = given.partition(";")[0].strip().lower()
    if media_type != "application/json" and not re.fullmatch(r"application/.+\+json", media_type):
        said = repr(given[:80]) if given else "nothing"
        raise HTTPException(415, f"content-type must be application/json, got {said}.")
