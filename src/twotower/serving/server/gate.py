"""What every request passes: a name, a size, a time, a token; and what is written down of it."""

import asyncio
import hmac
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Collection, Mapping, MutableMapping
from typing import Any

import orjson
from starlette.exceptions import HTTPException
from starlette.responses import Response

from twotower.serving.server.hosts import Hosts
from twotower.serving.server.options import ServerSettings
from twotower.serving.server.refusals import refusal_of
from twotower.serving.server.telemetry import LOG, Figures, log_request

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Scope = MutableMapping[str, Any]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN = ("/", "/docs", "/health", "/ready")
"""What is told to everyone."""
PAGE = "/page/"
"""Where the files of the page lie; they hold nothing of the model."""
SECONDS_FOR_A_BODY = 10.0
"""How long a client may take to send what it asks."""
MOST_BODIES = 64
"""Bodies of the largest size that a process holds at once."""
_READING = ("GET", "HEAD", "OPTIONS", "POST")  # POST asks, PUT and DELETE change
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
)


class Gate:
    """Wraps an application of the standard interface (ASGI); what fails inside is told without its trace.

    Args:
        app: What answers.
        settings: How much is let in, and by which tokens.
        figures: Where requests are counted.
        routes: The methods that each address takes.
    """

    def __init__(
        self,
        app: App,
        settings: ServerSettings,
        figures: Figures,
        routes: Mapping[str, Collection[str]],
    ) -> None:
        self._app = app
        self._settings = settings
        self._routes = routes
        self._figures = figures
        self._hosts = Hosts(settings)
        self._num_held = 0
        """Bytes of bodies that are held now."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let one request through."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        request_id = _name_of(headers)
        is_head = scope["method"] == "HEAD"
        if is_head:  # what GET says; the server beneath leaves the body out
            scope = {**scope, "method": "GET"}
        scope.setdefault("state", {})["request_id"] = request_id
        started, status = time.perf_counter(), 499  # who hangs up before an answer gets none

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                took = f"total;dur={1e3 * (time.perf_counter() - started):.2f}"
                own = [
                    *message["headers"],
                    (b"x-request-id", request_id.encode()),
                    (b"server-timing", took.encode()),
                ]
                there = {name.lower() for name, _ in own}
                own += [header for header in HEADERS if header[0] not in there]
                message = {**message, "headers": own}
            await send(message)

        try:
            refused = self._hosts.refusal(scope) or self._refusal(scope, headers)
            if refused is not None:
                raise HTTPException(*refused)
            await self._held(scope, headers, receive, answer)
        except HTTPException as error:
            told = refusal(error.status_code, error.detail, request_id)
            await told(scope, receive, answer)
        except _HungUpError:
            pass
        except Exception as error:
            LOG.exception("failed", request_id=request_id)
            if status == 499:
                await refusal(*refusal_of(error), request_id)(scope, receive, answer)
        finally:
            seconds = time.perf_counter() - started
            route = getattr(scope.get("route"), "path", "other")
            self._figures.requests.labels(route, str(status)).inc()
            self._figures.seconds.labels(route).observe(seconds)
            log_request(route, "HEAD" if is_head else scope["method"], status, seconds, request_id)

    async def _held(
        self, scope: Scope, headers: dict[bytes, bytes], receive: Receive, answer: Send
    ) -> None:
        """Let the application answer, and count the body as held until then."""
        held = _Held()
        try:
            body = await self._body(headers, receive, held)
            await self._while_there(scope, body, receive, answer)
        finally:
            self._num_held -= held.num_bytes

    async def _while_there(self, scope: Scope, body: bytes, receive: Receive, answer: Send) -> None:
        """Let the application answer, unless the client hangs up before: then nothing is done for it."""
        task = asyncio.current_task()
        assert task is not None
        is_given = has_gone = False

        async def given() -> Message:
            nonlocal is_given
            if is_given:
                await asyncio.Event().wait()  # until the task is cancelled
            is_given = True
            return {"type": "http.request", "body": body, "more_body": False}

        async def watch() -> None:
            nonlocal has_gone
            while (await receive())["type"] != "http.disconnect":
                pass
            has_gone = True
            task.cancel()

        watcher = asyncio.ensure_future(watch())
        try:
            await self._app(scope, given, answer)
        except asyncio.CancelledError:
            if not has_gone:
                raise
            task.uncancel()
            raise _HungUpError from None
        finally:
            watcher.cancel()

    def _refusal(self, scope: Scope, headers: dict[bytes, bytes]) -> tuple[int, str] | None:
        path, method = scope["path"], scope["method"]
        # An address that is not known may be one in another spelling, to whatever comes after.
        taken = self._routes.get(path)
        writes = method not in _READING and (taken is None or method in taken)
        if writes and self._settings.token is None:
            return 403, "writing is switched off; start the server with TWOTOWER_TOKEN."
        token = self._settings.token if writes else self._settings.read_token
        is_open = path in OPEN or path.startswith(PAGE) or method == "OPTIONS"
        if token is None or (is_open and not writes):
            return None
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() == b"bearer" and hmac.compare_digest(given, token.encode()):
            return None
        return 401, "the request must bear the token: Authorization: Bearer TOKEN."

    async def _body(self, headers: dict[bytes, bytes], receive: Receive, held: "_Held") -> bytes:
        """Return the whole body, before anything is done for it."""
        most = self._settings.max_body
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > most:
            raise HTTPException(413, f"the body must be at most {most} bytes, got {int(length)}.")
        pieces: list[bytes] = []
        try:
            async with asyncio.timeout(SECONDS_FOR_A_BODY):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _HungUpError
                    pieces.append(message.get("body", b""))
                    held.num_bytes += len(pieces[-1])
                    self._num_held += len(pieces[-1])
                    if held.num_bytes > most:
                        raise HTTPException(
                            413, f"the body must be at most {most} bytes, got more."
                        )
                    if self._num_held > MOST_BODIES * most:
                        raise HTTPException(
                            503, "the server holds too many bodies; ask again later."
                        )
                    if not message.get("more_body", False):
                        return b"".join(pieces)
        except TimeoutError:
            raise HTTPException(
                408, f"the body must be there within {SECONDS_FOR_A_BODY:g} seconds."
            ) from None


def refusal(status: int, message: str, request_id: str, kind: str | None = None) -> Response:
    """Return the answer that says in a sentence why there is none."""
    told = {"error": message, "request_id": request_id}
    headers = {}
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    if status in (429, 503):
        headers["retry-after"] = "1"
    body = orjson.dumps(told if kind is None else {**told, "kind": kind})
    return Response(body, status, headers, "application/json")


class _Held:
    """How many bytes of a body are held."""

    num_bytes = 0


class _HungUpError(Exception):
    """The client has gone."""


def _name_of(headers: dict[bytes, bytes]) -> str:
    """Return the name that the client gave its request, if it is one, or a new one."""
    given = headers.get(b"x-request-id", b"").decode("latin-1")
    return given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
