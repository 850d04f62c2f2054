"""What an expensive reader does to the others, to writes, and to readers of another worker.

    python benchmarks/server_fairness.py [--seconds 15] [--items 50000] [--bundle FOLDER] [--code FOLDER]

A bundle of a synthetic world, or the one that ``--bundle`` names, is served on loopback. Ordinary readers
ask for the 10 best items of random queries, each over its own connection, as soon as the last answer is
there. The expensive readers ask in the same way for 64 queries at once, with k = 1000 and diversity.

1. Readers: the median time of the ordinary requests without and with the expensive readers, and the longest
   time of any request until its answer or its refusal. Targets: 5 times, and --timeout plus half a second.
2. Writes: items are put in beside both, until 100 of them are in the catalogue. Target: no error for them.
3. Two processes with one journal, which is what two workers are: an item is put in by one and then looked
   up by its title in the other. Target: each is found.

``--code`` names the ``src`` folder of other code to serve with; given several times, all take their turn.
Without it the installed code is served. Clients and server share the machine's cores.
"""

import http.client
import json
import os
import random
import subprocess
import tempfile
import threading
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from common import report
from processes import free_port
from server import TWOTOWER, bundle_of
from twotower.serving.retriever import Retriever

TOKEN = "benchmark"
FIRST_NEW = 10**6
APPLIED = 100
"""Writes that are to be in the catalogue at the end."""


class Asker:
    """One connection, which is opened again after an error."""

    def __init__(self, port: int) -> None:
        self._http = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

    def ask(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes, float]:
        """Return the status, or 0 where there was none, the body, and the seconds that it took."""
        headers = {"content-type": "application/json", "authorization": f"Bearer {TOKEN}"}
        started = time.perf_counter()
        try:
            self._http.request(method, path, body, headers)
            answer = self._http.getresponse()
            text = answer.read()
        except (OSError, http.client.HTTPException):
            self._http.close()
            return 0, b"", time.perf_counter() - started
        return answer.status, text, time.perf_counter() - started


class Requests:
    """What became of requests of one kind."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.statuses: Counter[int] = Counter()

    def note(self, status: int, seconds: float) -> None:
        """Note one of them."""
        self.seconds.append(seconds)
        self.statuses[status] += 1

    def milliseconds(self, share: float) -> float:
        """Return a percentile of their times."""
        return float(1e3 * np.percentile(self.seconds, share)) if self.seconds else 0.0

    @property
    def said(self) -> str:
        """How many had each status."""
        return ", ".join(f"{status}: {num}" for status, num in sorted(self.statuses.items()))


@contextmanager
def served(bundle: Path, code: str | None, timeout: float, num: int = 1) -> Iterator[list[int]]:
    """Run servers of some code that share a journal, and give their ports."""
    own = {"TWOTOWER_TOKEN": TOKEN} | ({} if code is None else {"PYTHONPATH": code})
    ports, processes = [], []
    with tempfile.TemporaryDirectory() as folder:
        told = ["--journal", str(Path(folder) / "journal"), "--timeout", str(timeout)]
        try:
            for _ in range(num):
                ports.append(free_port())
                processes.append(
                    subprocess.Popen(
                        [TWOTOWER, "serve", str(bundle), "--port", str(ports[-1]), *told],
                        env={**os.environ, **own},
                        stdout=subprocess.DEVNULL,
                        stderr=subprocess.DEVNULL,
                    )
                )
                until = time.monotonic() + 180
                while Asker(ports[-1]).ask("GET", "/health")[0] != 200:
                    assert time.monotonic() < until
                    time.sleep(0.1)
            yield ports
        finally:
            for process in processes:
                process.terminate()
            for process in processes:
                process.wait(60)


@contextmanager
def loops(*works: Callable[[], None]) -> Iterator[threading.Event]:
    """Call each again and again, in a thread of its own, until the block ends."""
    is_over = threading.Event()

    def loop(work: Callable[[], None]) -> None:
        while not is_over.is_set():
            work()

    threads = [threading.Thread(target=loop, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    try:
        yield is_over
    finally:
        is_over.set()
        for thread in threads:
            thread.join()


def reader(port: int, num_queries: int, found: Requests) -> Callable[[], None]:
    """Return what asks for the 10 best items of a random query."""
    asker, rng = Asker(port), random.Random(threading.active_count())

    def one() -> None:
        body = json.dumps({"query_id": rng.randint(1, num_queries), "k": 10}).encode()
        status, _, seconds = asker.ask("POST", "/recommend", body)
        found.note(status, seconds)

    return one


def expensive_reader(port: int, num_queries: int, found: Requests) -> Callable[[], None]:
    """Return what asks for the 1,000 best items of 64 random queries, with diversity."""
    asker, rng = Asker(port), random.Random(threading.active_count())

    def one() -> None:
        queries = [{"query_id": rng.randint(1, num_queries)} for _ in range(64)]
        body = {"queries": queries, "k": 1000, "rules": {"diversify": 0.5}}
        status, _, seconds = asker.ask("POST", "/recommend/many", json.dumps(body).encode())
        found.note(status, seconds)

    return one


class Writer:
    """Puts items in, and remembers what it was told of each."""

    def __init__(self, port: int, line: dict[str, Any], key: str, first: int) -> None:
        self._asker = Asker(port)
        self._line, self._key, self._next = line, key, first
        self.statuses: dict[int, int] = {}

    def __call__(self) -> None:
        """Put one in."""
        item, self._next = self._next, self._next + 1
        body = json.dumps({"items": [{**self._line, self._key: item}]}, default=str).encode()
        self.statuses[item], _, _ = self._asker.ask("PUT", "/items", body)


def readers(
    bundle: Path, code: str | None, num_queries: int, given: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the lines without and with the expensive readers."""
    lines = []
    with served(bundle, code, given.timeout) as (port,):
        for num_expensive in (0, given.expensive):
            found, costly = Requests(), Requests()
            ordinary = [reader(port, num_queries, found) for _ in range(given.readers)]
            others = [expensive_reader(port, num_queries, costly) for _ in range(num_expensive)]
            with loops(*ordinary, *others):
                time.sleep(3)
                found.seconds.clear()
                costly.seconds.clear()
                time.sleep(given.seconds)
            lines.append(
                {
                    "expensive": num_expensive,
                    "p50 ms": found.milliseconds(50),
                    "p99 ms": found.milliseconds(99),
                    "longest ms": found.milliseconds(100),
                    "statuses": found.said,
                    "expensive, longest ms": costly.milliseconds(100),
                    "expensive, statuses": costly.said,
                }
            )
    return lines[0], lines[1]


def writes(
    bundle: Path, code: str | None, num_queries: int, line: dict[str, Any], key: str, given: Any
) -> dict[str, Any]:
    """Return how many writes were applied under load, and how many of those were told an error."""
    with served(bundle, code, given.timeout) as (port,):
        found, costly = Requests(), Requests()
        load = [reader(port, num_queries, found) for _ in range(given.readers)]
        load += [expensive_reader(port, num_queries, costly) for _ in range(given.expensive)]
        writers = [Writer(port, line, key, FIRST_NEW + 10_000 * n) for n in range(8)]
        until = time.monotonic() + 20 * given.seconds
        with loops(*load, *writers):
            while sum(len(w.statuses) for w in writers) < 1.5 * APPLIED:
                if time.monotonic() > until:
                    break
                time.sleep(0.1)
        told = {item: status for writer in writers for item, status in writer.statuses.items()}
        asker, applied = Asker(port), []
        for item in told:
            body = json.dumps({"query_id": 1, "k": 1, "filter": f"`{key}` = {item}"}).encode()
            status, text, _ = asker.ask("POST", "/recommend", body)
            if status == 200 and json.loads(text)["items"]:
                applied.append(item)
    lost = [item for item, status in told.items() if status == 200 and item not in applied]
    errors = Counter(told[item] for item in applied if told[item] != 200)
    return {
        "writes": len(told),
        "applied": len(applied),
        "applied, told an error": sum(errors.values()),
        "errors": ", ".join(f"{status}: {num}" for status, num in errors.items()),
        "told a success, not applied": len(lost),
    }


def stale_reads(
    bundle: Path, code: str | None, line: dict[str, Any], key: str, title: str
) -> dict[str, Any]:
    """Return how many look-ups right after a write did not show it, in another process."""
    num_stale, num_reads = 0, 180
    with served(bundle, code, 60.0, num=2) as ports:
        writer, asker = map(Asker, ports)
        for number in range(num_reads):
            name = f"fresh title {number}."
            item = {**line, key: FIRST_NEW + number, title: name}
            body = json.dumps({"items": [item]}, default=str).encode()
            assert writer.ask("PUT", "/items", body)[0] == 200
            status, text, _ = asker.ask("GET", f"/items?text={quote(name)}")
            assert status == 200
            num_stale += name.encode() not in text
    return {"look-ups": num_reads, "stale": num_stale}


def main() -> None:
    """Measure, and print."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=15)
    parser.add_argument("--items", type=int, default=50_000)
    parser.add_argument("--bundle", type=Path, help="in place of one with so many items")
    parser.add_argument("--readers", type=int, default=16)
    parser.add_argument("--expensive", type=int, default=4)
    parser.add_argument("--timeout", type=float, default=2.0)
    parser.add_argument("--code", action="append", default=[], metavar="FOLDER")
    parser.add_argument("--parts", default="readers,writes,workers", help="what to measure")
    given = parser.parse_args()
    parts = given.parts.split(",")
    bundle = (given.bundle or bundle_of(given.items)).resolve()
    contents = Retriever.open(bundle).contents
    frame, key = contents.items.frame, contents.items.id_column
    line = frame.row(0, named=True)
    title = next(name for name in frame.columns if name != key and isinstance(line[name], str))
    num_queries = len(contents.queries.ids)
    rows: dict[str, list[dict[str, Any]]] = {part: [] for part in parts}
    for code in given.code or [None]:
        name = {"": code or "installed"}
        if "readers" in parts:
            without, beside = readers(bundle, code, num_queries, given)
            ratio = beside["p50 ms"] / without["p50 ms"]
            rows["readers"] += [{**name, **without, "x": 1.0}, {**name, **beside, "x": ratio}]
            print(rows["readers"][-2:], flush=True)
        if "writes" in parts:
            rows["writes"].append({**name, **writes(bundle, code, num_queries, line, key, given)})
            print(rows["writes"][-1], flush=True)
        if "workers" in parts:
            rows["workers"].append({**name, **stale_reads(bundle, code, line, key, title)})
            print(rows["workers"][-1], flush=True)
    for part, lines in rows.items():
        report(f"{part}: {len(frame):,} items, {given.readers} readers", lines, as_json=False)


if __name__ == "__main__":
    main()
