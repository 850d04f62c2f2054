"""What every error becomes: a status and a sentence, and no trace outside the log."""

import re
from typing import Any

import orjson
from fastapi import HTTPException
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException as AnyHTTPException

from twotower.errors import BundleError, FilterError, JournalError, TwoTowerError
from twotower.serving.server.batching import (
    ClosedError,
    TooManyWaitingError,
    WaitedTooLongError,
)

TOLD: tuple[type[Exception], ...] = (
    RequestValidationError,
    AnyHTTPException,
    TooManyWaitingError,
    WaitedTooLongError,
    ClosedError,
    TwoTowerError,
)
"""Errors that a client can cause; any other is a bug, whatever its type."""
_FORM = re.compile(r"constrained-\w+|(function-|list\[|dict\[|literal\[).*", re.S)
"""A step to one of several forms of a value, which says nothing to a person."""
_GENERAL = {
    404: "there is nothing at this address; /docs lists what there is.",
    405: "this address does not take that method; /docs lists which it takes.",
}


def kind_of(error: Exception) -> str | None:
    """Return what a program may want to know of an error beside its status."""
    return "filter" if isinstance(error, FilterError) else None


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
        case ClosedError():
            return 503, "the server is shutting down; ask again later."
        case JournalError():
            return 503, str(error)
        case BundleError():
            return 409, str(error)
        case TwoTowerError():
            return 422, str(error)
    return 500, "the server failed; its log says why under this request_id."


def _first_mistake(error: RequestValidationError) -> str:
    """Return the first mistake of a request as one sentence."""
    errors: Any = error.errors()
    parent = errors[0]["loc"][:-1]
    # Of several forms that a value may have, the one that it nearly has says most.
    beside = (each for each in errors if each["loc"][: len(parent)] == parent)
    first = next((each for each in beside if not each["type"].endswith("_type")), errors[0])
    # The first step says where the request has it: in its body, its address, a header.
    steps = [str(step) for step in first["loc"][1:]]
    place = ".".join(step for step in steps if not _FORM.fullmatch(step))
    got = first.get("input")
    said = orjson.dumps(got, default=str).decode() if got is not None else "nothing"
    if len(said) > 80:
        said = said[:77] + "..."
    if first["type"] == "extra_forbidden":
        return f"{place}: nothing of this name is taken here, got {said}; /docs lists what is."
    return f"{place or 'the body'}: {first['msg'].rstrip('.')}, got {said}."
