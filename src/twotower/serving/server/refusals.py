"""Errors become answers: a status and one sentence. The trace goes to the log only."""

import re
from typing import Any

import orjson
from fastapi import HTTPException, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException as AnyHTTPException

from twotower.errors import BundleError, FilterError, JournalError, TwoTowerError
from twotower.serving.server import batching

TOLD: tuple[type[Exception], ...] = (
    RequestValidationError,
    AnyHTTPException,
    batching.TooManyWaitingError,
    batching.WaitedTooLongError,
    batching.ClosedError,
    TwoTowerError,
)
"""Errors that a client can cause. Any other error is a bug, whatever its type."""
_FORM = re.compile(r"constrained-\w+|(function-|list\[|dict\[|literal\[).*", re.S)
"""A step of pydantic's into one of several types of a value, which means nothing to a person."""
_GENERAL = {
    404: "there is nothing at this address; /docs lists what there is.",
    405: "this address does not take that method; /docs lists which it takes.",
}


def refusal(error: Exception, request_id: str) -> Response:
    """Return the answer that says in one sentence why a request failed.

    Args:
        error: Any error; one that is not in ``TOLD`` becomes a 500.
        request_id: Names the request in the log.
    """
    status, sentence = _status_and_sentence(error)
    told = {"error": sentence, "request_id": request_id}
    if isinstance(error, FilterError):  # a program may want to know
        told["kind"] = "filter"
    headers = {"www-authenticate": "Bearer"} if status == 401 else {}
    if status in (429, 503):
        headers["retry-after"] = "1"
    return Response(orjson.dumps(told), status, headers, "application/json")


def _status_and_sentence(error: Exception) -> tuple[int, str]:
    match error:
        case RequestValidationError():
            return 422, _first_mistake(error)
        case HTTPException():
            return error.status_code, str(error.detail)
        case AnyHTTPException():  # of the framework
            return error.status_code, _GENERAL.get(error.status_code, str(error.detail))
        case batching.TooManyWaitingError():
            return 429, "too many queries wait for an answer; ask again later."
        case batching.WaitedTooLongError():
            return 503, "the answer did not come in time; ask again later."
        case batching.ClosedError():
            return 503, "the server is shutting down; ask again later."
        case JournalError():
            return 503, str(error)
        case BundleError():
            return 409, str(error)
        case TwoTowerError():
            return 422, str(error)
    return 500, "the server failed; its log says why under this request_id."


def _first_mistake(error: RequestValidationError) -> str:
    """Return one sentence for the first mistake of a request."""
    errors: Any = error.errors()
    parent = errors[0]["loc"][:-1]
    # Where a value may have several types, the type that it nearly has explains most.
    beside = (each for each in errors if each["loc"][: len(parent)] == parent)
    first = next((each for each in beside if not each["type"].endswith("_type")), errors[0])
    # The first step is the part of the request: its body, its address, a header.
    steps = [str(step) for step in first["loc"][1:]]
    place = ".".join(step for step in steps if not _FORM.fullmatch(step))
    got = first.get("input")
    said = orjson.dumps(got, default=str).decode() if got is not None else "nothing"
    if len(said) > 80:
        said = said[:77] + "..."
    if first["type"] == "extra_forbidden":
        return f"{place}: nothing of this name is taken here, got {said}; /docs lists what is."
    return f"{place or 'the body'}: {first['msg'].rstrip('.')}, got {said}."
