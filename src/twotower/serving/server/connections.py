"""Limits on a connection before a request is read: bytes, headers, time, and number.

The parser beneath has no limit of its own. It appends each piece of an unfinished URL, header or chunk
trailer to the pieces before, so that an endless one costs time by the square of its length, on the thread
that answers everyone. This module counts each piece before it is parsed, and limits the time of a client.
"""

import asyncio
import time
import uuid
from math import inf
from typing import Any
from weakref import WeakKeyDictionary

from starlette.exceptions import HTTPException
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from twotower.serving.server.descriptors import most_connections
from twotower.serving.server.refusals import refusal
from twotower.serving.server.telemetry import LOG

MOST_HEAD = 2**16
"""Bytes of a request without its body: the address, the headers, the framing of chunks, and trailers."""
MOST_HEADERS = 100
MOST_QUEUED = 100
"""Requests of one connection that may wait for the answer to an earlier one."""
SECONDS_FOR_A_HEAD = 10.0
"""How long a client may take to send its headers, from its first byte and from the last answer."""
SECONDS_TO_READ = 30.0
"""How long a client may take to read enough of its answers for the next one to be written."""
SECONDS_TO_CLOSE = 5.0
"""How long a closed connection may take to send the rest of its answers."""
SECONDS_TO_DISCARD = 10.0
"""How long the server reads the rest of a body that it has refused."""
MOST_DISCARDED = 2**24
"""Most bytes of such a rest. A client may read its refusal only after it has sent everything."""
MOST_UNREAD = 2**25
"""Bytes of answers that all clients together may leave unread."""
_PIECE = 2**13
"""Bytes that are parsed at once. The limits are exact to this number."""
_FREE_FRAMING = 8
"""Bytes of framing that are not counted, for each byte of a body. A chunk of one byte has five."""
_SECONDS_BETWEEN_LOOKS = 1.0
_SECONDS_BETWEEN_WARNINGS = 10.0


class Guard:
    """The connections of one server in one process.

    Args:
        state: The state of the server.
        loop: The loop that serves the connections.
    """

    def __init__(self, state: ServerState, loop: asyncio.AbstractEventLoop) -> None:
        self._limit = most_connections()
        self.waiting: dict[GuardedProtocol, None] = {}
        """Connections that wait for their client, the longest wait first."""
        self._open: set[GuardedProtocol] = set()
        self._connections: set[Any] = state.connections
        self._loop = loop
        self._looks = False
        self._counts: dict[str, int] = {}
        self._warns_from = 0.0

    def admit(self, connection: "GuardedProtocol") -> bool:
        """Let a connection in and return True, or return False if there is no room.

        If there are too many connections, the new one takes the place of the one that waits longest.
        """
        if not self._looks:
            self._looks = True
            self._loop.call_later(_SECONDS_BETWEEN_LOOKS, self._look)
        if len(self._open) >= self._limit:
            oldest = next(iter(self.waiting), None)
            if oldest is None:
                self.warn("refused: too many connections")
                return False
            self.warn("closed for a new connection")
            self.forget(oldest)
            oldest.transport.abort()
        self._open.add(connection)
        self.waiting[connection] = None
        return True

    def forget(self, connection: "GuardedProtocol") -> None:
        """Stop counting a connection."""
        self._open.discard(connection)
        self.waiting.pop(connection, None)

    def warn(self, reason: str) -> None:
        """Count a connection that was refused or closed; the log gets the counts now and then."""
        self._counts[reason] = self._counts.get(reason, 0) + 1
        self._tell()

    def _tell(self) -> None:
        now = time.monotonic()
        if self._counts and now >= self._warns_from:
            self._warns_from = now + _SECONDS_BETWEEN_WARNINGS
            counts, self._counts = self._counts, {}
            LOG.warning(
                "connections refused or closed",
                connections=counts,
                open=len(self._open),
                limit=self._limit,
            )

    def _look(self) -> None:
        """Close connections that have waited too long, once a second while there are any."""
        self._tell()
        now = self._loop.time()
        unread = 0
        for connection in [c for c in self._connections if isinstance(c, GuardedProtocol)]:
            connection.look(now)
            unread += connection.transport.get_write_buffer_size()
        for connection in list(self.waiting):
            if unread <= MOST_UNREAD:
                break
            left = connection.transport.get_write_buffer_size()
            if left:
                unread -= left
                self.warn("closed: answers were not read")
                connection.transport.abort()
        self._looks = bool(self._connections)
        if self._looks:
            self._loop.call_later(_SECONDS_BETWEEN_LOOKS, self._look)


_GUARDS: WeakKeyDictionary[ServerState, Guard] = WeakKeyDictionary()


class GuardedProtocol(HttpToolsProtocol):
    """One connection: uvicorn's protocol, with limits. Uvicorn gives the arguments."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        guard = _GUARDS.get(self.server_state)
        if guard is None:
            guard = _GUARDS[self.server_state] = Guard(self.server_state, self.loop)
        self.guard = guard
        self._refusal: HTTPException | None = None
        self._is_over = False
        self._in_message = self._in_head = False
        self._has_turned = False
        self._num_headers = self._num_body = self._beside_body = self._num_discarded = 0
        # Since when the client owes each of these, by the loop's clock; inf if it does not.
        self._owes_head = self._owes_rest = self._owes_reading = self._owes_closing = inf

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Let the client in, or turn it away."""
        super().connection_made(transport)
        self._owes_head = self.loop.time()
        if not self.guard.admit(self):
            self._owes_head = inf
            said = "the server has too many connections; ask again later."
            self._tell(HTTPException(503, said))
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Count the client no longer."""
        super().connection_lost(exc)
        self._unset_keepalive_if_required()
        self.guard.forget(self)

    def data_received(self, data: bytes) -> None:
        """Parse the data in pieces, as long as the limits allow."""
        if self._is_over:
            self._discard(len(data))
            return
        for start in range(0, len(data), _PIECE):
            if self._is_over or self.transport.is_closing():
                return
            piece = data[start : start + _PIECE]
            self._num_body, self._has_turned = 0, False
            super().data_received(piece)
            if self._has_turned:  # a message began or ended somewhere in the piece
                self._beside_body = 0
                continue
            counted = len(piece) - (1 + _FREE_FRAMING) * self._num_body
            self._beside_body = max(0, self._beside_body + counted)
            if self._beside_body > MOST_HEAD and not self._is_over:
                is_address = self._in_head and len(self.url) > MOST_HEAD // 2
                said = f"the address and the headers must be at most {MOST_HEAD} bytes."
                self._refuse(414 if is_address else 431, said)

    def on_message_begin(self) -> None:
        """Start the clock of a request."""
        if len(self.pipeline) >= MOST_QUEUED:
            said = f"at most {MOST_QUEUED} requests of a connection may wait."
            raise self._refused(429, said)
        self._in_message = self._in_head = self._has_turned = True
        self._num_headers = 0
        self._owes_head = self.loop.time()
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep one header. Trailers, which come after the body, are counted and dropped."""
        self._num_headers += 1
        if self._num_headers > MOST_HEADERS:
            raise self._refused(431, f"the headers must be at most {MOST_HEADERS}.")
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Start the request, while its body still arrives."""
        self._owes_head = inf
        if self.parser.should_upgrade() and self._has_body():
            # The parser would take the body for the next request.
            said = (
                "a request with a body must not ask for another protocol (Upgrade); use HTTP/1.1."
            )
            raise self._refused(400, said)
        if self.url[:1] not in (b"/", b"*"):
            self._take_host_from_address()
        super().on_headers_complete()
        self._in_head = False  # an address that cannot be read is refused above, as a head

    def on_body(self, body: bytes) -> None:
        """Keep a part of the body, unless the request was already answered."""
        self._num_body += len(body)
        if self.cycle.response_complete:
            self._discard(len(body))
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Wait for the answer."""
        self._in_message, self._has_turned, self._owes_rest = False, True, inf
        if not self.cycle.response_complete:
            self.guard.waiting.pop(self, None)
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Wait for the next request, unless it has already arrived."""
        super().on_response_complete()
        if self.cycle.response_complete:  # and no other one is under way
            self.guard.waiting[self] = None
            if self._in_message and not self._in_head:
                self._owes_rest = self.loop.time()
                self._num_discarded = 0
            elif self._owes_head == inf:
                self._owes_head = self.loop.time()

    def pause_writing(self) -> None:
        """Wait for the client to read."""
        self._owes_reading = self.loop.time()
        self.guard.waiting[self] = None
        super().pause_writing()

    def resume_writing(self) -> None:
        """Go on, now that the client has read."""
        self._owes_reading = inf
        if self._is_answering():
            self.guard.waiting.pop(self, None)
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002
        """Refuse a request that cannot be read, or that is not read to its end."""
        refused = self._refusal or HTTPException(400, "the request must be HTTP/1.1.")
        self.guard.warn(f"refused: {refused.status_code}")
        if self.transport.is_closing():
            return
        is_answered = self._in_message and not self._in_head and not self._is_answering()
        is_between = self._is_answering() and (
            self.cycle.response_started or self._in_head or self.pipeline
        )
        if is_answered or is_between:  # this answer would be taken for another one
            self.transport.close()
            return
        if self.cycle is not None:
            self.cycle.disconnected = True  # nobody is to answer any more
            self.cycle.message_event.set()
        self._tell(refused)
        # A client that is still sending would lose the answer if the connection were closed at once.
        self._is_over = True
        self._num_discarded = 0
        self._owes_head = self._owes_rest = inf
        self._owes_closing = self.loop.time()
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()

    def look(self, now: float) -> None:
        """Close the connection if its client is late.

        Args:
            now: The time by the loop's clock.
        """
        if self._owes_closing == inf and self.transport.is_closing():
            self._owes_closing = now
        if now - self._owes_closing > SECONDS_TO_CLOSE:
            self.transport.abort()
        elif now - self._owes_reading > SECONDS_TO_READ:
            self.guard.warn("closed: answers were not read")
            self.transport.abort()
        elif self._is_answering() or self._owes_closing < inf:
            return
        elif now - self._owes_head > SECONDS_FOR_A_HEAD:
            if self._in_head:
                said = f"the headers must be there within {SECONDS_FOR_A_HEAD:g} seconds."
                self._refuse(408, said)
            else:
                self.transport.close()
        elif now - self._owes_rest > SECONDS_TO_DISCARD:
            self.transport.close()

    def _has_body(self) -> bool:
        return any(
            name == b"transfer-encoding" or (name == b"content-length" and value.strip() != b"0")
            for name, value in self.headers
        )

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _refused(self, status: int, message: str) -> HTTPException:
        """Return an error to raise in a callback of the parser, so that it parses no further."""
        self._refusal = HTTPException(status, message)
        return self._refusal

    def _refuse(self, status: int, message: str) -> None:
        self._refused(status, message)
        self.send_400_response("")

    def _discard(self, num_bytes: int) -> None:
        self._num_discarded += num_bytes
        if self._num_discarded > MOST_DISCARDED:
            self.transport.abort()

    def _take_host_from_address(self) -> None:
        """Take the host from a whole URL, which replaces the ``Host`` header (RFC 9112, 3.2.2)."""
        _, scheme_ends, rest = self.url.partition(b"://")
        if scheme_ends:
            for end in (b"/", b"?", b"#"):
                rest = rest.partition(end)[0]
            self.headers[:] = [header for header in self.headers if header[0] != b"host"]
            self.headers.append((b"host", rest))

    def _tell(self, refused: HTTPException) -> None:
        told = refusal(refused, uuid.uuid4().hex)
        headers = (*self.server_state.default_headers, *told.raw_headers, (b"connection", b"close"))
        lines = (name + b": " + value + b"\r\n" for name, value in headers)
        head = STATUS_LINE[refused.status_code] + b"".join(lines)
        self.transport.write(head + b"\r\n" + told.body)
