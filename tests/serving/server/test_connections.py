"""One connection may not cost the others: bytes, lines, time and descriptors are limited."""

import contextlib
import json
import resource
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from servers import running
from twotower.serving.server import connections, descriptors

LINE = b"GET /health HTTP/1.1\r\nhost: localhost\r\n"
CHUNKED = (
    b"POST /recommend HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)


@pytest.fixture(scope="module")
def port(tiny_bundle: Path) -> Iterator[int]:
    with running(tiny_bundle) as address:
        yield int(address.rpartition(":")[2])


@contextlib.contextmanager
def connected(port: int) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
        yield client


def told(client: socket.socket) -> bytes:
    """Return what the server says until it closes the connection."""
    pieces = []
    with contextlib.suppress(ConnectionError):
        while piece := client.recv(2**16):
            pieces.append(piece)
    return b"".join(pieces)


def is_healthy(client: socket.socket) -> bool:
    """Ask on a connection that stays open."""
    client.sendall(LINE + b"\r\n")
    answer = b""
    while piece := client.recv(2**16):
        answer += piece
        if answer.endswith(b"}"):
            break
    return answer.startswith(b"HTTP/1.1 200 ")


def send(client: socket.socket, start: bytes, more: bytes, times: int) -> int:
    """Send a start and then more and more; return the bytes of it that were taken."""
    sent = 0
    with contextlib.suppress(ConnectionError):
        client.sendall(start)
        for _ in range(times):
            client.sendall(more)
            sent += len(more)
    return sent


ENDLESS: dict[str, tuple[bytes, bytes, int]] = {
    "a header": (LINE + b"x: ", b"a" * 5000, 431),
    "a header's name": (LINE, b"a" * 5000, 431),
    "an address": (b"GET /health?", b"a" * 5000, 414),
    "many headers": (LINE, b"a:b\r\n" * 1000, 431),
    "a trailer": (CHUNKED + b"2\r\n{}\r\n0\r\nx: ", b"a" * 5000, 431),
    "many trailers": (CHUNKED + b"2\r\n{}\r\n0\r\n", b"a:b\r\n" * 1000, 431),
    "a chunk's extension": (CHUNKED + b"2;x=", b"a" * 5000, 431),
    "extensions of small chunks": (CHUNKED, b"1;" + b"x" * 4000 + b"\r\n \r\n", 431),
    "empty lines": (b"", b"\r\n" * 2500, 431),
}


BODY = b"GET /smuggled HTTP/1.1\r\nhost: localhost\r\n\r\n"


@pytest.mark.parametrize(
    "start",
    [
        pytest.param(
            b"POST /recommend HTTP/1.1\r\nhost: localhost\r\nconnection: Upgrade\r\nupgrade: h2c\r\n"
            b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(BODY),
            id="a body that would be taken for a request",
        ),
        pytest.param(b"GET http://localhost HTTP/1.1\r\nhost: localhost\r\n\r\n", id="no path"),
        pytest.param(b"CONNECT a:1 HTTP/1.1\r\nhost: localhost\r\n\r\n", id="a tunnel"),
    ],
)
def test_what_cannot_be_read_as_a_request_is_answered_once(port: int, start: bytes) -> None:
    with connected(port) as client:
        client.sendall(start)
        client.sendall(BODY)
        answer = told(client)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1 ") == 1


def test_an_offer_of_another_protocol_is_not_taken(port: int) -> None:
    with connected(port) as client:
        client.sendall(LINE + b"connection: Upgrade, close\r\nupgrade: h2c\r\n\r\n")
        assert told(client).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("case", ENDLESS)
def test_what_never_ends_is_refused(port: int, case: str) -> None:
    start, more, status = ENDLESS[case]
    with connected(port) as client:
        send(client, start, more, 40)  # 200 kB, which the server reads before it hangs up
        answer = told(client)
    assert answer.startswith(b"HTTP/1.1 %d " % status), answer[:200]
    assert set(json.loads(answer.rpartition(b"\r\n\r\n")[2])) == {"error", "request_id"}
    assert httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200


def test_large_but_allowed_requests_are_answered(port: int) -> None:
    with connected(port) as client:
        wide = b"".join(b"x%d: %s\r\n" % (n, b"v" * 600) for n in range(90))
        client.sendall(LINE + wide + b"\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 200 ")
    # A body is no header, however small its pieces are.
    body = json.dumps({"query_id": 5, "among": list(range(10_000))}).encode()
    assert len(body) > 50_000
    for size in (1, 7, 10_000):
        chunks = b"".join(
            b"%x\r\n%s\r\n" % (len(body[i : i + size]), body[i : i + size])
            for i in range(0, len(body), size)
        )
        with connected(port) as client:
            client.sendall(CHUNKED + chunks + b"0\r\n\r\n")
            assert client.recv(100).startswith(b"HTTP/1.1 200 "), size


def test_requests_in_one_packet_are_not_taken_for_one_long_header(port: int) -> None:
    one = LINE + b"x: " + b"v" * 3000 + b"\r\n\r\n"
    with connected(port) as client:
        client.sendall(one * 90 + LINE + b"connection: close\r\n\r\n")  # 270 kB
        answer = told(client)
    assert answer.count(b"HTTP/1.1 200 ") == 91


def test_too_many_requests_in_a_row_end_the_connection(port: int) -> None:
    with connected(port) as client:
        send(client, b"", (LINE + b"\r\n") * 1000, 20)
        answer = told(client)
    assert answer.count(b"HTTP/1.1 ") < 20_000
    assert b"HTTP/1.1 4" not in answer  # which would be taken for the answer to another one


def test_the_rest_of_a_refused_body_is_not_read_for_ever(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "MOST_DISCARDED", 2**20)
    with connected(port) as client:
        start = LINE + b"content-length: 99999999999\r\n\r\n"
        sent = send(client, start, b"a" * 2**16, 1000)
    assert sent < 60 * 2**20
    # One that ends is read, so that its client, which may not listen meanwhile, hears why.
    with connected(port) as client:
        client.sendall(LINE + b"content-length: 2000000\r\n\r\n" + b"a" * 2_000_000 + LINE)
        assert client.recv(100).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize("sent", [b"", b"\r\n", b"GE", LINE + b"x: "])
def test_headers_that_do_not_come_are_given_up(
    port: int, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr(connections, "SECONDS_FOR_A_HEAD", 0.2)
    with connected(port) as client:
        client.sendall(sent)
        answer = told(client)
    assert answer.startswith(b"HTTP/1.1 408 " if sent.strip() else b""), answer
    assert bool(answer) == bool(sent.strip())


def test_a_byte_now_and_then_keeps_no_connection(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "SECONDS_FOR_A_HEAD", 0.5)
    for start in (
        LINE + b"x: ",
        LINE + b"\r\n" + LINE + b"x: ",
    ):  # the first request, or the second
        with connected(port) as client:
            client.sendall(start)
            client.settimeout(0.05)
            until = time.monotonic() + 60
            answer, is_closed = b"", False
            while not is_closed and time.monotonic() < until:
                with contextlib.suppress(TimeoutError):
                    try:
                        client.sendall(b"a")
                        piece = client.recv(4096)
                    except ConnectionError:
                        piece = b""
                    answer += piece
                    is_closed = not piece
            assert is_closed
        assert b"HTTP/1.1 408 " in answer


def test_answers_that_nobody_reads_are_dropped(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "SECONDS_TO_READ", 0.5)
    monkeypatch.setattr(connections, "SECONDS_TO_CLOSE", 0.5)
    asked = b"GET /openapi.json HTTP/1.1\r\nhost: localhost\r\n\r\n"
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(60)
        client.connect(("127.0.0.1", port))
        client.sendall(asked * 90)
        until = time.monotonic() + 60
        while num_connected(port) and time.monotonic() < until:
            time.sleep(0.1)
        assert not num_connected(port)


def num_connected(port: int) -> int:
    """Return the connections that a server of this process still has."""
    states = list(connections._GUARDS)
    found = [each for state in states for each in state.connections]
    guarded = [each for each in found if isinstance(each, connections.GuardedProtocol)]
    return sum(each.server == ("127.0.0.1", port) for each in guarded)


def test_idle_connections_make_room_the_oldest_first(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "most_connections", lambda: 5)
    with running(tiny_bundle) as address, contextlib.ExitStack() as stack:
        port = int(address.rpartition(":")[2])
        clients = [stack.enter_context(connected(port)) for _ in range(5)]
        assert is_healthy(clients[0])  # so that it is the youngest of those that wait
        for _ in range(2):
            assert httpx.get(f"{address}/health").status_code == 200
        assert told(clients[1]) == b""
        assert is_healthy(clients[0])


def test_bodies_that_are_held_together_are_limited(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("twotower.serving.server.gate.MOST_BODIES", 1)  # of 1 MiB each
    body = b'{"query_id": "' + b"x" * 400_000 + b'"}'
    asked = {"content": body, "headers": {"content-type": "application/json"}}
    url = f"http://127.0.0.1:{port}/recommend"
    assert httpx.post(url, **asked).status_code == 422  # type: ignore[arg-type]
    with connected(port) as client:
        client.sendall(LINE + b"content-length: 900000\r\n\r\n" + b" " * 800_000)
        until = time.monotonic() + 9  # the server waits for ten seconds
        statuses = set()
        while 503 not in statuses and time.monotonic() < until:
            statuses.add(httpx.post(url, **asked).status_code)  # type: ignore[arg-type]
        assert 503 in statuses
    until = time.monotonic() + 60
    while httpx.post(url, **asked).status_code == 503:  # type: ignore[arg-type]
        assert time.monotonic() < until


@pytest.mark.skipif(sys.platform == "win32", reason="it has no such limit")
def test_connections_leave_descriptors_for_everything_else() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, before)
        for soft in (4096, 512, 256):
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, before[1]))
            # Some are open already, and as many as connections are left for files.
            assert 8 <= descriptors.most_connections() < soft / 2
            assert descriptors.most_connections() + 4 * descriptors.most_accepted() < soft
            assert descriptors.most_connections() <= 1024


def test_a_busy_server_turns_connections_away(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "most_connections", lambda: 0)
    with running(tiny_bundle) as address:
        answer = httpx.get(f"{address}/health")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")


@pytest.mark.parametrize(
    ("address", "host", "status"),
    [
        ("/health", "localhost", 200),
        ("/health", "evil.example", 421),
        ("http://evil.example/health", "localhost", 421),  # the address is what counts
        ("http://LOCALHOST:8000/health", "evil.example", 200),
        ("http://u@localhost/health", "localhost", 400),
    ],
)
def test_the_name_in_a_request_is_one_of_the_servers(
    port: int, address: str, host: str, status: int
) -> None:
    with connected(port) as client:
        client.sendall(
            f"GET {address} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n".encode()
        )
        answer = told(client)
    assert answer.startswith(b"HTTP/1.1 %d " % status), answer
    if status == 421:
        assert b"start it with TWOTOWER_ALLOWED_HOSTS=NAME." in answer


def test_no_address_is_made_from_the_name_in_a_request(port: int) -> None:
    answer = httpx.get(f"http://127.0.0.1:{port}/health/", headers={"host": "localhost:1"})
    assert (answer.status_code, answer.headers.get("location")) == (404, None)
    assert "servers" not in httpx.get(f"http://127.0.0.1:{port}/openapi.json").json()
