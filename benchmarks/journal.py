"""Damaged journals, and our journal beside SQLite: decision 0025.

    python benchmarks/journal.py [--damages 1000] [--writes 500] [--folder FOLDER]

1,000 journals of 200 records each are damaged at random, a fifth of them in the header: zeroed tails,
zeroed sectors of 512 and 4,096 bytes, flipped bits, cuts. Each start must succeed, and must find each
record whose bytes are as they were (``tests/damaged_journals.py`` has the rule). The same damages are done
to journals of version 2, and to a SQLite database in WAL mode as a kill and as a clean end leave it. A
start of SQLite reads all rows; whatever can be read row by row counts as found. Then 1 and 16 records at a
time are written to each, and each is polled for new records. Exits with 1 if our journal fails.
"""

import random
import sqlite3
import sys
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import orjson

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from common import report
from damaged_journals import KINDS, NUM_RECORDS, START_OF, damaged, outcome, sample, some_records
from twotower.serving.server.journal import Journal, JournalReader
from twotower.serving.server.telemetry import LOG


class Sqlite:
    """A journal as a table of SQLite.

    Args:
        path: Of the database.
    """

    def __init__(self, path: Path) -> None:
        self._base = sqlite3.connect(path, isolation_level=None)
        self._base.execute("PRAGMA journal_mode = WAL")
        self._base.execute("PRAGMA synchronous = FULL")
        self._base.execute(
            "CREATE TABLE IF NOT EXISTS journal (number INTEGER PRIMARY KEY, body BLOB)"
        )

    def close(self) -> None:
        """Close the database, which empties the write-ahead log into it."""
        self._base.close()

    def append(self, records: Sequence[Any]) -> None:
        """Add records in one transaction."""
        self._base.execute("BEGIN IMMEDIATE")
        rows = [(orjson.dumps(record),) for record in records]
        self._base.executemany("INSERT INTO journal (body) VALUES (?)", rows)
        self._base.execute("COMMIT")

    def last(self) -> int:
        """Return the number of the newest record."""
        found: int = self._base.execute("SELECT max(number) FROM journal").fetchone()[0]
        return found

    def all(self) -> list[bytes]:
        """Return all records; those that can be read one by one where that fails."""
        return [row[0] for row in self._base.execute("SELECT body FROM journal")]

    def one(self, number: int) -> bytes | None:
        """Return a record, where it can be read."""
        try:
            found = self._base.execute(
                "SELECT body FROM journal WHERE number = ?", (number,)
            ).fetchone()
        except (sqlite3.Error, OverflowError):
            return None
        return found[0] if found else None


def of_journals(version: int, damages: int, folder: Path) -> dict[str, Any]:
    """Return how journals of a version stand so many damages."""
    before, rng, path = (
        sample(version, folder / f"sample-{version}"),
        random.Random(version),
        folder / "j",
    )
    starts = touched = lost = strange = 0
    for number in range(damages):
        upto = START_OF[version] if number % 5 == 4 else None
        data = damaged(before.data, KINDS[number // 5 % len(KINDS)], rng, upto)
        try:
            found = outcome(before, data, path)
        except Exception as error:
            print(f"damage {number}: {error!r}", file=sys.stderr)
            continue
        starts, touched = starts + 1, touched + found.touched
        lost, strange = lost + found.lost, strange + found.strange
        for each in folder.glob("j.*"):
            each.unlink()
    return {
        "": f"journal, version {version}",
        "damages": damages,
        "starts": starts,
        "records damaged": touched,
        "lost undamaged": lost,
        "read wrong": strange,
    }


def of_sqlite(is_killed: bool, damages: int, folder: Path) -> dict[str, Any]:
    """Return how a database stands the same damages, with or without its write-ahead log."""
    path, records = folder / f"sample-{is_killed}.db", some_records()
    base = Sqlite(path)
    for start in range(0, NUM_RECORDS, 8):
        base.append(records[start : start + 8])
    files = {name: Path(f"{path}{name}").read_bytes() for name in ("", "-wal")}
    base.close()
    if not is_killed:
        files = {"": path.read_bytes()}
    bodies = [orjson.dumps(record) for record in records]
    names, sizes = list(files), [len(data) for data in files.values()]
    rng = random.Random(4)
    starts = touched = lost = strange = 0
    for number in range(damages):
        name = rng.choices(names, sizes)[0]
        upto = min(4096, len(files[name])) if number % 5 == 4 else None
        data = {**files, name: damaged(files[name], KINDS[number // 5 % len(KINDS)], rng, upto)}
        for old in folder.glob("damaged.db*"):
            old.unlink()
        for suffix, content in data.items():
            (folder / f"damaged.db{suffix}").write_bytes(content)
        # SQLite breaks long records into pages: one counts as whole only where it lies in one piece.
        whole = {body for body in bodies if any(body in content for content in data.values())}
        touched += NUM_RECORDS - len(whole)
        found: list[bytes] = []
        try:
            base = Sqlite(folder / "damaged.db")
        except sqlite3.Error:
            lost += len(whole)
            continue
        try:
            found = base.all()
            starts += 1
        except (sqlite3.Error, OverflowError):
            found = [body for n in range(1, NUM_RECORDS + 1) if (body := base.one(n)) is not None]
        base.close()
        lost += len(whole - set(found))
        strange += len(set(found) - set(bodies))
    return {
        "": f"SQLite, {'killed' if is_killed else 'closed'}",
        "damages": damages,
        "starts": starts,
        "records damaged": touched,
        "lost undamaged": lost,
        "read wrong": strange,
    }


def rates(writes: int, folder: Path) -> list[dict[str, Any]]:
    """Return how fast each is written to, and polled."""
    journal, base = Journal(folder / "rate"), Sqlite(folder / "rate.db")
    reader, other = JournalReader(folder / "rate"), Sqlite(folder / "rate.db")
    records = some_records()
    taken: dict[str, dict[int, list[float]]] = {
        "journal": {1: [], 16: []},
        "SQLite": {1: [], 16: []},
    }
    for _ in range(writes):  # they take turns
        for size in (1, 16):
            for name, store in (("journal", journal), ("SQLite", base)):
                started = time.perf_counter()
                store.append(records[:size])
                taken[name][size].append(time.perf_counter() - started)
    reader.more()
    polls = {"journal": _microseconds(reader.more), "SQLite": _microseconds(other.last)}
    for each in (journal, base, reader, other):
        each.close()
    return [
        {
            "": name,
            **{f"ms for {n}": 1e3 * sorted(taken[name][n])[writes // 2] for n in (1, 16)},
            "us a poll": polls[name],
        }
        for name in taken
    ]


def _microseconds(poll: Callable[[], object]) -> float:
    times = 2000
    started = time.perf_counter()
    for _ in range(times):
        poll()
    return 1e6 * (time.perf_counter() - started) / times


def main() -> int:
    """Measure, print, and return whether our journal failed."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--damages", type=int, default=1000)
    parser.add_argument("--writes", type=int, default=500)
    parser.add_argument("--folder", help="on the disk to measure; one that is temporary")
    given = parser.parse_args()
    LOG.logger.disabled = True
    with TemporaryDirectory(dir=given.folder) as scratch:
        folder = Path(scratch)
        ours = [of_journals(version, given.damages, folder) for version in (3, 2)]
        theirs = [of_sqlite(is_killed, given.damages, folder) for is_killed in (True, False)]
        report(f"{NUM_RECORDS} records, damaged once each time", [*ours, *theirs], as_json=False)
        if given.writes:
            report("On the disk, the median of a write", rates(given.writes, folder), as_json=False)
    return int(
        any(r["starts"] < r["damages"] or r["lost undamaged"] or r["read wrong"] for r in ours)
    )


if __name__ == "__main__":
    sys.exit(main())
