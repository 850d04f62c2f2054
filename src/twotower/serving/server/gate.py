"""The gate that every request passes: host, token, size and time of its body. It writes the log, too.

A body above ``ServerSettings.max_body`` (1 MiB by default, see ``options.py``) is answered by 413.
"""

import asyncio
import hmac
import re
import time
import uuid
from collections.abc import Collection, Mapping
from ipaddress import AddressValueError, IPv4Address, IPv6Address

from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from twotower.serving.server.options import ANY_HOST, ServerSettings
from twotower.serving.server.refusals import TOLD, refusal
from twotower.serving.server.telemetry import LOG, Figures

OPEN = ("/", "/docs", "/health", "/ready")
"""Addresses that need no token to read."""
PAGE = "/page/"
"""Folder of the page's files, which hold nothing of the model."""
SECONDS_FOR_A_BODY = 10.0
"""How long a client may take to send the body of a request."""
MOST_BODIES = 64
"""Bodies of the largest size that a process may hold at once."""
_READING = ("GET", "HEAD", "OPTIONS", "POST")  # POST asks, PUT and DELETE change
_HOST = re.compile(r"(?P<name>\[[0-9a-f:.]+\]|[a-z0-9_.-]+)(:[0-9]{0,5})?", re.I)
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}
"""Headers of an answer, unless it has other values."""


class Gate:
    """Wraps an ASGI application. The client sees no trace of an error inside it.

    Args:
        app: Answers the requests that pass.
        settings: The limits and tokens.
        figures: Counts the requests.
        routes: The methods that each address takes.
    """

    def __init__(
        self,
        app: ASGIApp,
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
        """Bytes of all bodies that are held now."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let one request through."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"").decode("latin-1")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        method = scope["method"]
        if method == "HEAD":  # the answer to GET, of which uvicorn leaves the body out
            scope = {**scope, "method": "GET"}
        scope.setdefault("state", {})["request_id"] = request_id
        started = time.perf_counter()
        status = 499  # if the client hangs up before an answer

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                own = MutableHeaders(raw=list(message["headers"]))
                own["x-request-id"] = request_id
                own["server-timing"] = f"total;dur={1e3 * (time.perf_counter() - started):.2f}"
                for name, value in HEADERS.items():
                    own.setdefault(name, value)
                message = {**message, "headers": own.raw}
            await send(message)

        body = bytearray()
        try:
            refused = self._hosts.refusal(scope) or self._refusal(scope, headers)
            if refused is not None:
                raise HTTPException(*refused)
            await self._read(headers, receive, body)
            await self._while_there(scope, body, receive, answer)
        except TOLD as error:
            await refusal(error, request_id)(scope, receive, answer)
        except _HungUpError:
            pass
        except Exception as error:
            LOG.exception("failed", request_id=request_id)
            if status == 499:
                await refusal(error, request_id)(scope, receive, answer)
        finally:
            self._num_held -= len(body)
            seconds = time.perf_counter() - started
            # The log and the figures name the route, which holds no id, and nothing that the client sent.
            route = getattr(scope.get("route"), "path", "other")
            self._figures.requests.labels(route, str(status)).inc()
            self._figures.seconds.labels(route).observe(seconds)
            LOG.info(
                "request",
                method=method,
                route=route,
                status=status,
                ms=round(1e3 * seconds, 2),
                request_id=request_id,
            )

    async def _while_there(
        self, scope: Scope, body: bytearray, receive: Receive, answer: Send
    ) -> None:
        """Let the application answer, and cancel its work if the client hangs up before."""
        task = asyncio.current_task()
        assert task is not None
        given: asyncio.Queue[Message] = asyncio.Queue()  # a second message never comes
        given.put_nowait({"type": "http.request", "body": body, "more_body": False})
        has_gone = False

        async def watch() -> None:
            nonlocal has_gone
            while (await receive())["type"] != "http.disconnect":
                pass
            has_gone = True
            task.cancel()

        watcher = asyncio.ensure_future(watch())
        try:
            await self._app(scope, given.get, answer)
        except asyncio.CancelledError:
            if not has_gone:
                raise
            task.uncancel()
            raise _HungUpError from None
        finally:
            watcher.cancel()

    def _refusal(self, scope: Scope, headers: dict[bytes, bytes]) -> tuple[int, str] | None:
        path, method = scope["path"], scope["method"]
        # The framework may take an unknown address for another spelling of one that writes.
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

    async def _read(self, headers: dict[bytes, bytes], receive: Receive, body: bytearray) -> None:
        """Read the whole body, and count its bytes as held. Nothing is done for a request before."""
        most = self._settings.max_body
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > most:
            raise HTTPException(413, f"the body must be at most {most} bytes, got {int(length)}.")
        try:
            async with asyncio.timeout(SECONDS_FOR_A_BODY):
                has_more = True
                while has_more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _HungUpError
                    piece = message.get("body", b"")
                    body += piece
                    self._num_held += len(piece)
                    if len(body) > most:
                        raise HTTPException(
                            413, f"the body must be at most {most} bytes, got more."
                        )
                    if self._num_held > MOST_BODIES * most:
                        raise HTTPException(
                            503, "the server holds too many bodies; ask again later."
                        )
                    has_more = message.get("more_body", False)
        except TimeoutError:
            raise HTTPException(
                408, f"the body must be there within {SECONDS_FOR_A_BODY:g} seconds."
            ) from None


class _HungUpError(Exception):
    """The client has gone."""


class Hosts:
    """The host names that one server answers to.

    Any site can let its own name point at this machine (DNS rebinding). A browser then lets the pages of
    that site read the answers of this server. It sends the name as ``Host``, so the server refuses unknown
    names. An IP address cannot be rebound, so the server accepts all of them.

    Args:
        settings: The settings of the server: ``allowed_hosts``, and the name in ``host``.
    """

    def __init__(self, settings: ServerSettings) -> None:
        names = ("localhost", settings.host, *settings.allowed_hosts)
        self._names = {name.lower().removesuffix(".") for name in names}

    def refusal(self, scope: Scope) -> tuple[int, str] | None:
        """Return a status and a sentence for a request to an unknown name; None if the name is known."""
        given = [value for name, value in scope["headers"] if name == b"host"]
        if len(given) == 1:
            return self._check(given[0])
        if not given and scope.get("http_version") == "1.0":  # it knew no such header
            return None
        return 400, f"the request must have one Host header, got {len(given) or 'none'}."

    def _check(self, header: bytes) -> tuple[int, str] | None:
        text = header.decode("latin-1").strip()
        found = _HOST.fullmatch(text)
        if found is None:
            return 400, f"the Host header must be a name or an address, got {text[:80]!r}."
        name = found["name"].lower().removesuffix(".")
        if ANY_HOST in self._names or name in self._names or _is_address(name):
            return None
        return 421, (
            f"the server does not answer to the name {name[:80]!r}; start it with "
            "TWOTOWER_ALLOWED_HOSTS=NAME."
        )


def _is_address(name: str) -> bool:
    """Return whether a host is an IP address; IPv6 has brackets."""
    try:
        if name.startswith("["):
            IPv6Address(name[1:-1])
        else:
            IPv4Address(name)
    except AddressValueError:
        return False
    return True
