"""Tables larger than memory: time and memory of preparing, adding a day, and training, by number of events.

    python benchmarks/large_data.py [--events 1e6,1e7,1e8] [--queries 1e7] [--items 1e6] [--folder FOLDER]
        [--train] [--json]

Makes ``events`` of ``queries`` and ``items``, with ids that are strings, in 20 Parquet files of a day each.
A query likes one of a thousand clusters of items; within one the popularity falls steeply. Each step is a
process of its own with one thread: ``prepare``; with ``--train``, one epoch of a pooled history, its
evaluation and the bundle; another day of a million events by itself; the same day added to the others.

Memory is the peak of anonymous memory, which only swapping could free, and of resident memory, with the
pages of files that the system can drop. It is read from ``/proc``, so that this runs on Linux alone.

Targets at 100 million events: under 6 GB anonymous in each step; preparing costs at most 1.5 times as much
an event as at 10 million, and training 1.2 times; a day is added within twice the time that it takes by
itself.
"""

import os
import shutil
import subprocess
import sys
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from common import OUT, report

DAYS = 20
ADDED = 1_000_000
"""Events of the day that is added."""
CLUSTERS = 1_000
START = 1_700_000_000
DAY = 86_400


def make(folder: Path, num_events: int, num_queries: int, num_items: int) -> Path:
    """Write the files of a table that is not there yet, and return their folder."""
    place = folder / f"events-{num_events}"
    if place.is_dir():
        return place
    of_cluster = np.random.default_rng(0).integers(0, CLUSTERS, num_items)
    by_cluster = np.argsort(of_cluster, kind="stable")
    starts = np.searchsorted(of_cluster[by_cluster], np.arange(CLUSTERS + 1))
    for day in range(DAYS + 1):
        num = num_events // DAYS if day < DAYS else ADDED
        rng = np.random.default_rng([1, day])
        queries = rng.integers(0, num_queries, num)
        own = (queries * 2_654_435_761) % CLUSTERS
        clusters = np.where(rng.random(num) < 0.8, own, rng.integers(0, CLUSTERS, num))
        sizes = starts[clusters + 1] - starts[clusters]
        places = starts[clusters] + (sizes * rng.random(num) ** 2.5).astype(np.int64)
        folder = place / "days" if day < DAYS else place / "added"
        at = folder / f"day=2026-11-{day + 1:02}"
        at.mkdir(parents=True)
        pl.DataFrame(
            {
                "user_id": "user-" + pl.Series(queries).cast(pl.String).str.zfill(8),
                "item_id": "item-" + pl.Series(by_cluster[places]).cast(pl.String).str.zfill(7),
                "timestamp": START + day * DAY + np.sort(rng.integers(0, DAY, num)),
            }
        ).write_parquet(at / "part-0.parquet")
    return place


def measured(*arguments: object) -> dict[str, Any]:
    """Run a command of ours, and return its seconds and its peaks of memory in GB."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1"}
    command = [sys.executable, "-m", "twotower", *map(str, arguments)]
    before, started = os.times(), time.perf_counter()
    peaks = {"RssAnon": 0, "VmRSS": 0}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            try:
                status = Path(f"/proc/{process.pid}/status").read_text()
            except OSError:
                break
            for line in status.splitlines():
                name, _, value = line.partition(":")
                if name in peaks:
                    peaks[name] = max(peaks[name], int(value.split()[0]))
            time.sleep(0.02)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}.")
    after = os.times()
    used = after.children_user + after.children_system
    used -= before.children_user + before.children_system
    return {
        "s": round(time.perf_counter() - started, 1),
        "processor s": round(used, 1),
        "anonymous GB": round(peaks["RssAnon"] / 2**20, 2),
        "resident GB": round(peaks["VmRSS"] / 2**20, 2),
    }


def rows_of(folder: Path, events: Path, num: int, *, trains: bool) -> list[dict[str, Any]]:
    """Return a line for each step."""
    whole, alone, model = (folder / f"{name}-{num}" for name in ("data", "added", "model"))
    for place in (whole, alone, model):
        shutil.rmtree(place, ignore_errors=True)
    days, day = events / "days", events / "added"
    steps: list[tuple[str, int, tuple[object, ...]]] = [
        ("prepare", num, ("prepare", "--interactions", days, "--out", whole))
    ]
    if trains:
        settings = ("training.epochs=1", "training.threads=1", "towers.history=pooled")
        more = ("towers.question_time=on", "towers.spectral_dim=0")
        flags = [each for setting in (*settings, *more) for each in ("--set", setting)]
        trained = ("train", "--interactions", whole, "--out", model, *flags)
        steps.append(("train one epoch", num, trained))
    by_itself = ("prepare", "--interactions", day, "--out", alone)
    added = ("prepare", "--interactions", day, "--out", whole, "--append")
    steps += [("a day by itself", ADDED, by_itself), ("the day added", ADDED, added)]
    found = []
    for name, count, command in steps:
        line = {"": name, "events": f"{count:,}", **measured(*command)}
        line["processor µs an event"] = round(line["processor s"] / count * 1e6, 2)
        found.append(line)
        print(line, file=sys.stderr, flush=True)
    return found


def main() -> None:
    """Make the tables, run the steps, and print."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--events", default="1e6,1e7")
    parser.add_argument("--queries", type=float, default=1e7)
    parser.add_argument("--items", type=float, default=1e6)
    parser.add_argument("--folder", type=Path, default=OUT / "large_data")
    parser.add_argument("--train", action="store_true", help="train on each as well")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args()
    for text in given.events.split(","):
        num = int(float(text))
        events = make(given.folder, num, int(given.queries), int(given.items))
        rows = rows_of(given.folder, events, num, trains=given.train)
        report(f"{num:,} events", rows, as_json=given.json)


if __name__ == "__main__":
    main()
