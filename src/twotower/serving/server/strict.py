"""Bodies that are JSON and nothing more, and parameters that are what the OpenAPI page says."""

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
_WHOLE = re.compile(r"-?[0-9]{1,18}")


def _whole(given: object) -> object:
    if isinstance(given, str) and not _WHOLE.fullmatch(given):
        raise ArgumentError("the value must be a whole number")
    return given


def _truth(given: object) -> object:
    if isinstance(given, str) and given not in ("true", "false"):
        raise ArgumentError("the value must be true or false")
    return given


WHOLE = BeforeValidator(_whole)
"""Of a parameter in an address: digits, and not all that Python reads as a number."""
TRUTH = BeforeValidator(_truth)
"""The same, of ``true`` or ``false``."""


def body_of(model: type[BaseModel], raw: bytes) -> BaseModel:
    """Return a body as its model has it.

    Raises:
        HTTPException: See ``json_of``.
        RequestValidationError: It is not what the model says.
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
        HTTPException: It is no JSON (NaN is none), is nested too deeply, or has an object of more keys than
            any table has columns.
    """
    try:
        value = orjson.loads(raw or b"null")
    except orjson.JSONDecodeError as error:
        raise HTTPException(422, f"the body must be JSON: {error}.") from error
    check_shape(value)
    return value


def check_shape(value: Any) -> None:
    """Refuse JSON that is too wide or too deep, before functions that read it in many ways or by recursion.

    Raises:
        HTTPException: An object has more keys than any table has columns, or lists and objects lie in one
            another too deeply.
    """
    for depth, level in enumerate(levels_of(value)):
        if depth > DEEPEST:
            said = f"the body must be nested at most {DEEPEST} levels deep, got more."
            raise HTTPException(422, said)
        for inner in level:
            if isinstance(inner, dict) and len(inner) > MOST_COLUMNS:
                said = f"an object must have at most {MOST_COLUMNS} keys, got {len(inner)}."
                raise HTTPException(422, said)


class StrictRoute(APIRoute):
    """A route that refuses parameters which it does not take, and bodies that are not plain JSON."""

    def get_route_handler(self) -> Callable[[Request], Any]:
        """Return what handles a request."""
        original = super().get_route_handler()

        async def handler(request: Request) -> Response:
            _check_parameters(request, [field.alias for field in self.dependant.query_params])
            if self.body_field is not None:
                check_media_type(request.scope["headers"])
                json_of(await request.body())
            answer: Response = await original(request)
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
            raise ArgumentError(
                f"each line must name its item under {column!r}, by a whole number or a string, "
                f"got {orjson.dumps(item_id).decode()[:80]}."
            ) from error


def check_media_type(headers: Iterable[tuple[bytes, bytes]]) -> None:
    """Refuse a body that says it is something else than JSON, or does not say what it is.

    No form of a page of another origin says so, unless the server lets that page ask.

    Raises:
        HTTPException: It does.
    """
    given = next((value for name, value in headers if name == b"content-type"), b"").decode(
        "latin-1"
    )
    media_type = given.partition(";")[0].strip().lower()
    if media_type != "application/json" and not re.fullmatch(r"application/.+\+json", media_type):
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
