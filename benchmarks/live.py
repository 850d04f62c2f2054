"""A catalogue that changes while it is asked.

    python benchmarks/live.py [--seconds 600] [--items 50000]

200 queries, 50 upserts and 50 deletes a second, on loopback; beside them the same queries without writes.
Every answer is held against what was acknowledged: it has ``k`` different items, none that was gone before
it was asked for, and an item that was just put in is found by a filter for its id. First of all, ids are
replaced in a catalogue of a million, in memory alone. ``server_kills.py`` kills a server while it is
written to.
"""

import http.client
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from common import report
from processes import free_port
from server import TWOTOWER, bundle_of
from twotower.serving.live_items import LiveIds
from twotower.serving.retriever import Retriever
from twotower.vocab import Vocabulary

TOKEN = "benchmark"
K = 20
FIRST_NEW = 10**6
REPLACED = (1, 100, 10_000, 100_000)


class Asker:
    """One connection."""

    def __init__(self, port: int) -> None:
        self._http = http.client.HTTPConnection("127.0.0.1", port, timeout=30)

    def ask(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        """Return the answer.

        Raises:
            OSError: There was none, or it was a refusal.
        """
        told = None if body is None else json.dumps(body)
        headers = {"content-type": "application/json", "authorization": f"Bearer {TOKEN}"}
        try:
            self._http.request(method, path, told, headers)
            answer = self._http.getresponse()
            text = answer.read()
        except http.client.HTTPException as error:
            raise OSError(str(error)) from error
        if answer.status != 200:
            raise OSError(f"{answer.status}: {text[:200]!r}")
        found: dict[str, Any] = json.loads(text)
        return found


@contextmanager
def served(bundle: Path, journal: Path) -> Iterator[int]:
    """Run a server, and give its port."""
    port = free_port()
    process = subprocess.Popen(
        [TWOTOWER, "serve", str(bundle), "--port", str(port), "--journal", str(journal)],
        env={**os.environ, "TWOTOWER_TOKEN": TOKEN},
        stderr=subprocess.DEVNULL,
    )
    try:
        until = time.monotonic() + 120
        while time.monotonic() < until:
            try:
                Asker(port).ask("GET", "/health")
                break
            except OSError:
                time.sleep(0.05)
        yield port
    finally:
        process.kill()
        process.wait(30)


def at_rate(rate: float, is_over: threading.Event, work: Callable[[int], None]) -> None:
    """Call ``work`` so many times a second, with a number that grows."""
    started = time.perf_counter()
    number = 0
    while not is_over.is_set():
        work(number)
        number += 1
        time.sleep(max(0.0, started + number / rate - time.perf_counter()))


class Run:
    """Queries and writes against one server, and what was wrong."""

    def __init__(self, port: int, num_queries: int, line: dict[str, Any], key: str) -> None:
        self.port, self.num_queries, self.line, self.key = port, num_queries, line, key
        self.gone: dict[int, float] = {}  # when the deletion was acknowledged
        self.wrong: list[str] = []
        self.times: list[float] = []
        self.writes = 0

    def query(self, rate: float, is_over: threading.Event) -> None:
        """Ask random queries."""
        asker, rng = Asker(self.port), random.Random(threading.get_ident())

        def one(_: int) -> None:
            body = {"query_id": rng.randint(1, self.num_queries), "k": K}
            started = time.perf_counter()
            found = [item["item_id"] for item in asker.ask("POST", "/recommend", body)["items"]]
            self.times.append(time.perf_counter() - started)
            if len(set(found)) != K:
                self.wrong.append(f"{len(set(found))} items for {K}")
            for item in found:
                if self.gone.get(item, started) < started:
                    self.wrong.append(f"{item} was gone")

        at_rate(rate, is_over, one)

    def write(self, rate: float, is_over: threading.Event) -> None:
        """Put items in, look for some of them, and take out those of a second before."""
        asker = Asker(self.port)

        def one(number: int) -> None:
            item = FIRST_NEW + number
            asker.ask("PUT", "/items", {"items": [{**self.line, self.key: item}]})
            if number % 25 == 0:
                body = {"query_id": 1, "k": 1, "filter": f"`{self.key}` = {item}"}
                answer = asker.ask("POST", "/recommend", body)
                if [each["item_id"] for each in answer["items"]] != [item]:
                    self.wrong.append(f"{item} was not found")
            if number >= rate:
                old = FIRST_NEW + number - int(rate)
                asker.ask("DELETE", f"/items?item_id={old}")
                self.gone[old] = time.perf_counter()
            self.writes += 2

        at_rate(rate, is_over, one)

    def go(self, seconds: float, *, writes: bool) -> dict[str, Any]:
        """Ask for so long, and return the times in milliseconds."""
        self.times, is_over = [], threading.Event()
        threads = [
            threading.Thread(target=self.query, args=(50, is_over), daemon=True) for _ in range(4)
        ]
        if writes:
            threads.append(threading.Thread(target=self.write, args=(50, is_over), daemon=True))
        for thread in threads:
            thread.start()
        time.sleep(seconds)
        is_over.set()
        for thread in threads:
            thread.join(30)
        milliseconds = 1e3 * np.array(self.times)
        return {
            "": "with 50 upserts and 50 deletes/s" if writes else "queries alone",
            "queries/s": len(self.times) / seconds,
            **{f"p{p} ms": float(np.percentile(milliseconds, p)) for p in (50, 99, 99.9)},
            "writes": self.writes,
            "wrong": len(self.wrong),
        }


def replacements(num_rows: int, times: Sequence[int]) -> list[dict[str, Any]]:
    """Return how long it takes to replace so many ids of a catalogue at once, in computing time."""
    ids, rows = LiveIds(Vocabulary(pl.Series("id", range(num_rows)))), []
    for number in times:
        keys = pl.Series(range(number))
        taken = []
        for _ in range(3):
            started = time.process_time()
            ids.with_rows(keys)
            taken.append(time.process_time() - started)
        rows.append({"": f"{number:,} of {num_rows:,}", "ms": 1e3 * min(taken)})
    return rows


def main() -> None:
    """Measure, and print."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--items", type=int, default=50_000)
    given = parser.parse_args()
    report("Ids that are replaced at once", replacements(1_000_000, REPLACED), as_json=False)
    bundle = bundle_of(given.items).resolve()
    retriever = Retriever.open(bundle)
    line = retriever.contents.items.frame.row(0, named=True)
    num_queries, key = len(retriever.contents.queries.ids), retriever.item_column
    with (
        tempfile.TemporaryDirectory() as folder,
        served(bundle, Path(folder) / "live.journal") as port,
    ):
        run = Run(port, num_queries, line, key)
        run.go(10, writes=False)
        rows = [run.go(min(60, given.seconds), writes=False)]
        rows.append(run.go(given.seconds, writes=True))
    print(run.wrong[:5], file=sys.stderr)
    report(f"{given.items:,} items that change", rows, as_json=False)


if __name__ == "__main__":
    main()
