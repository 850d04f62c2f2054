"""What one hostile client does to all others: ``/health`` under attack, and seconds to start and to stop.

    python benchmarks/server_attacks.py [--seconds 6] [--bundle FOLDER] [--only NAME ...]

A real server on loopback, with one worker. Another process attacks it for some seconds, with at most
30 MB a connection. Meanwhile a well-behaved client asks for ``/health``, by a new connection each time.
Targets under each attack: a p99 below 250 ms, and less than 50 MB of memory more than before. Then, with
1, 2 and 4 workers: the seconds until all are ready, and from SIGTERM to the end; and, after ``kill -9`` of
the parent, until its workers are gone. Exits with 1 if a target is missed.
"""

import http.client
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from processes import family, free_port, megabytes

MOST_BYTES = 30_000_000
"""That an attacker sends by one connection."""
MOST_P99_MS = 250.0
MOST_GROWTH_MB = 50.0
SECONDS_TO_START = 300.0
LINE = b"GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\n"
CHUNKED = (
    b"POST /recommend HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)
ENDLESS: dict[str, tuple[bytes, bytes]] = {
    "endless header": (LINE + b"x: ", b"a" * 2**16),
    "endless URL": (b"GET /health?", b"a" * 2**16),
    "endless trailer": (CHUNKED + b"2\r\n{}\r\n0\r\nx: ", b"a" * 2**16),
    "endless chunk extension": (CHUNKED + b"2;x=", b"a" * 2**16),
    "short header lines": (LINE, b"a:b\r\n" * 13_000),
    "endless body": (LINE + b"content-length: 99999999999\r\n\r\n", b"a" * 2**16),
}
OTHERS = ("slow headers", "never reads", "idle sockets")
FEW_DESCRIPTORS = 256


def attack(name: str, port: int, seconds: float) -> None:
    """Attack a server, and print how many connections it has closed in the end."""
    until = time.monotonic() + seconds
    if name in ENDLESS:
        start, more = ENDLESS[name]
        while time.monotonic() < until:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), 10) as client:
                client.sendall(start)
                for _ in range(MOST_BYTES // len(more)):
                    client.sendall(more)
        return
    number, start = {
        "slow headers": (1000, LINE + b"x: "),
        "idle sockets": (300, b""),
        "never reads": (4, b"GET /openapi.json HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n" * 90),
    }[name]
    clients = []
    for _ in range(number):
        with suppress(OSError):
            client = socket.socket()
            if name == "never reads":
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.settimeout(10)
            client.connect(("127.0.0.1", port))
            client.sendall(start)
            client.setblocking(False)
            clients.append(client)
    closed: set[socket.socket] = set()
    while time.monotonic() < until:
        for client in clients:
            try:
                if name == "slow headers":
                    client.send(b"a")
                # Who never reads hears of the end by what it cannot send.
                if (client.send(b"\r\n") if name == "never reads" else client.recv(4096)) == b"":
                    closed.add(client)
            except BlockingIOError:
                pass
            except OSError:
                closed.add(client)
        time.sleep(1)
    print(len(clients), len(closed))


class Server:
    """``twotower serve``, from its start on.

    Args:
        bundle: What it serves.
        workers: How many.
        descriptors: What it may open; None for as many as we may.
    """

    def __init__(self, bundle: Path, workers: int = 1, descriptors: int | None = None) -> None:
        self.port = free_port()
        self.workers = workers
        self._folder = tempfile.TemporaryDirectory()
        self._log = Path(self._folder.name) / "log"

        def limit() -> None:
            if descriptors is not None:
                resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))

        started = time.monotonic()
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    str(Path(sys.executable).with_name("twotower")),
                    "serve",
                    str(bundle),
                    "--port",
                    str(self.port),
                    "--workers",
                    str(workers),
                ],
                stderr=log,
                stdout=subprocess.DEVNULL,
                env={**os.environ, "TMPDIR": self._folder.name},
                preexec_fn=limit,
            )
        self.is_ready = False
        while not self.is_ready and time.monotonic() - started < SECONDS_TO_START:
            if self.process.poll() is not None:
                print(self._log.read_text()[-2000:])
                break
            self.is_ready = self._log.read_bytes().count(b'"ready"') >= workers
            time.sleep(0.02)
        self.seconds_to_start = time.monotonic() - started

    def stop(self) -> float:
        """End it, and return the seconds that this took."""
        started = time.monotonic()
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            for pid in family(self.process.pid):
                os.kill(pid, signal.SIGKILL)
            self.process.wait()
        seconds = time.monotonic() - started
        self._folder.cleanup()
        return seconds

    def kill_parent(self) -> float:
        """Kill the first process alone, and return the seconds until its workers are gone, 15 at most."""
        # The others have no children: the one that forks them is gone once they are.
        family_of = family(self.process.pid)[1:]
        others = [pid for pid in family_of if len(family(pid)) == 1 and _listens(pid)]
        self.process.kill()
        self.process.wait()
        started = time.monotonic()
        while time.monotonic() - started < 15 and any(_is_there(pid) for pid in others):
            time.sleep(0.02)
        seconds = time.monotonic() - started
        for pid in filter(_is_there, family_of):
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        self._folder.cleanup()
        return seconds


def _listens(pid: int) -> bool:
    return b"resource_tracker" not in Path(f"/proc/{pid}/cmdline").read_bytes()


def _is_there(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@contextmanager
def watched(pid: int) -> Iterator[Callable[[], float]]:
    """Give what returns the most memory that a process and all below it held during the block."""
    most, is_over = megabytes(pid), threading.Event()

    def watch() -> None:
        nonlocal most
        while not is_over.wait(0.1):
            most = max(most, megabytes(pid))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield lambda: most
    finally:
        is_over.set()
        thread.join()


def asked(port: int) -> float:
    """Return the milliseconds until ``/health`` was answered, infinite where it was not."""
    started = time.perf_counter()
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        client.request("GET", "/health")
        is_well = client.getresponse().read() == b'{"status":"ok"}'
    except (OSError, http.client.HTTPException):
        is_well = False
    finally:
        client.close()
    return 1e3 * (time.perf_counter() - started) if is_well else float("inf")


def under(name: str, server: Server, seconds: float) -> dict[str, Any]:
    """Return how the server does under an attack."""
    for _ in range(20):
        asked(server.port)
    before = megabytes(server.process.pid)
    command = [sys.executable, __file__, "--attack", name, str(server.port), str(seconds)]
    times: list[float] = []
    with watched(server.process.pid) as most:
        attacker = subprocess.Popen(
            command if name else [sys.executable, "-c", f"import time; time.sleep({seconds})"],
            stdout=subprocess.PIPE,
            text=True,
        )
        while attacker.poll() is None:
            times.append(asked(server.port))
            time.sleep(0.01)
        growth = most() - before
    told = attacker.communicate()[0].split()
    times.sort()
    return {
        "attack": name or "none",
        "requests": len(times),
        "failed": times.count(float("inf")),
        "p50 ms": times[len(times) // 2],
        "p99 ms": times[min(len(times) - 1, int(0.99 * len(times)))],
        "slowest ms": times[-1],
        "MB more": growth,
        "closed": f"{told[1]} of {told[0]}" if told else "",
    }


def main() -> None:
    """Attack, measure, and print."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=6.0, help="of each attack")
    parser.add_argument("--bundle", type=Path, help="what is served; a small one by default")
    parser.add_argument("--only", nargs="*", help="names of attacks, or start")
    parser.add_argument("--attack", nargs=3, metavar=("NAME", "PORT", "SECONDS"), help="be it")
    given = parser.parse_args()
    if given.attack:
        attack(given.attack[0], int(given.attack[1]), float(given.attack[2]))
        return
    from common import report
    from server import bundle_of

    bundle = (given.bundle or bundle_of(1000)).resolve()
    rows = []
    for name in ("", *ENDLESS, *OTHERS):
        if given.only and (name or "none") not in given.only:
            continue
        server = Server(bundle, descriptors=FEW_DESCRIPTORS if name == "idle sockets" else None)
        # Headers may take 10 seconds, and reading 30: clients must be seen to be closed after that.
        more = {"slow headers": 10, "idle sockets": 10, "never reads": 32}.get(name, 0)
        rows.append(under(name, server, given.seconds + more))
        server.stop()
        print(rows[-1], flush=True)
    if rows:
        report("/health under attack", rows, as_json=False)
    starts = []
    for workers in (1, 2, 4) if not given.only or "start" in given.only else ():
        server = Server(bundle, workers)
        to_start, memory = server.seconds_to_start, megabytes(server.process.pid)
        to_stop = server.stop()
        again = Server(bundle, workers)
        starts.append(
            {
                "workers": workers,
                "seconds to start": to_start,
                "to stop": to_stop,
                "until gone after kill -9": again.kill_parent(),
                "MB": memory,
            }
        )
        print(starts[-1], flush=True)
    if starts:
        report("seconds to start and to stop", starts, as_json=False)
    attacks = [row for row in rows if row["attack"] != "none"]
    if any(row["p99 ms"] > MOST_P99_MS or row["MB more"] > MOST_GROWTH_MB for row in attacks):
        sys.exit(1)


if __name__ == "__main__":
    main()
