"""What every error becomes: a status and a sentence, and no trace outside the log."""

from typing import Any

import orjson
from fastapi import HTTPException
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException as AnyHTTPException

from twotower.errors import BundleError, TwoTowerError
from twotower.serving.server.batching import TooManyWaitingError, WaitedTooLongError

TOLD: tuple[type[Exception], ...] = (
    RequestValidationError,
    AnyHTTPException,
    TooManyWaitingError,
    WaitedTooLongError,
    TwoTowerError,
    ValueError,
)
"""Errors that a client can cause."""
_GENERAL = {
    404: "there is nothing at this address; /docs lists what there is.",
    405: "this address does not take that method; /docs lists which it takes.",
}


def refusal_of(error: Exception) -> tuple[int, str]:
    """Return the status and the sentence for an error."""
    match error:
        case RequestValidationError():
            return 422, _first_mistake(error)
        case HTTPException():
            return error.status_code, str(error.detail)
        case AnyHTTPException():  # of the framework
            return error.status_code, _GENERAL.get(error.status_code, str(error.detail))
        case TooManyWaitingError():
            return 429, "too many queries wait for an answer; ask again later."
        case WaitedTooLongError():
            return 503, "the answer did not come in time; ask again later."
        case BundleError():
            return 409, str(error)
        case TwoTowerError() | ValueError():
            return 422, str(error)
    return 500, "the server failed; its log says why under this request_id."


def _first_mistake(error: RequestValidationError) -> str:
    """Return the first mistake of a request as one sentence."""
    first: Any = error.errors()[0]
    place = ".".join(str(step) for step in first["loc"] if step not in ("body", "query"))
    got = first.get("input")
    said = orjson.dumps(got, default=str).decode() if got is not None else "nothing"
    if len(said) > 80:
        said = said[:77] + "..."
    return f"{place or 'the body'}: {first['msg'].rstrip('.')}, got {said}."
