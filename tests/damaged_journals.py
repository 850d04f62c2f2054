"""Journals, damaged at random as disks and power losses do, and the rule by which none may lose more.

The rule: a start (the journal is opened to be read, opened to be written, compacted and read) succeeds.
Each record whose bytes are as they were is found by it, and nothing is found that was not written. The
tests try a few damages, ``benchmarks/journal.py`` a thousand.
"""

import random
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from twotower.serving.server.journal import Journal, JournalReader

KINDS = ("zeroed tail", "zeroed 512 bytes", "zeroed 4096 bytes", "flipped bit", "cut")
NUM_RECORDS = 200
START_OF = {2: 40, 3: 8192}
"""Where the first record is in each version of the format."""
LEAD_OF = {2: 8, 3: 24}
"""Bytes of a record before its JSON."""


class Sample(NamedTuple):
    """A journal.

    Args:
        version: Of the format.
        data: Its bytes.
        records: In order.
        places: Where the bytes of each record begin and end.
    """

    version: int
    data: bytes
    records: list[dict[str, Any]]
    places: list[tuple[int, int]]


class Outcome(NamedTuple):
    """What became of a damaged journal.

    Args:
        touched: Records whose bytes are damaged.
        lost: Records whose bytes are as they were, and which were not found.
        strange: Changes that were found and never written.
    """

    touched: int
    lost: int
    strange: int


def some_records(number: int = NUM_RECORDS) -> list[dict[str, Any]]:
    """Return changes of as many different items, by records of different lengths."""
    rng = random.Random(number)
    records: list[dict[str, Any]] = []
    for item_id in range(number):
        if item_id % 10 == 9:
            records.append({"delete": [item_id], "token": f"{rng.getrandbits(128):032x}"})
            continue
        title = "ÿþJ3 \x00" + "".join(rng.choices('abcdefgh {}"ü\n', k=rng.randint(10, 300)))
        line = {"item_id": item_id, "title": title, "year": rng.randint(1900, 2030)}
        token = f"{rng.getrandbits(128):032x}"
        records.append({"column": "item_id", "put": [line], "token": token})
    return records


def bytes_of_version_2(records: Sequence[Any]) -> bytes:
    """Return a journal of the format before decision 0025."""
    bodies = [orjson.dumps(record) for record in records]
    frames = b"".join(struct.pack("<II", len(b), zlib.crc32(b)) + b for b in bodies)
    return struct.pack("<16sQQQ", b"twotower jrnl 2\n", 0, 40, 40 + len(frames)) + frames


def sample(version: int, path: Path, number: int = NUM_RECORDS) -> Sample:
    """Write a journal in several calls, and return it."""
    records = some_records(number)
    if version == 2:
        path.write_bytes(bytes_of_version_2(records))
    else:
        journal = Journal(path)
        for start in range(0, number, 8):
            journal.append(records[start : start + 8])
        journal.close()
    data = path.read_bytes()
    places = []
    for record in records:
        body = orjson.dumps(record)
        assert data.count(body) == 1
        at = data.index(body)
        places.append((at - LEAD_OF[version], at + len(body)))
    return Sample(version, data, records, places)


def damaged(data: bytes, kind: str, rng: random.Random, upto: int | None = None) -> bytes:
    """Return bytes with one damage somewhere before ``upto``, by default the end."""
    at = rng.randrange(len(data) if upto is None else upto)
    if kind == "cut":
        return data[:at]
    if kind == "flipped bit":
        return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
    if kind == "zeroed tail":
        return data[:at] + bytes(len(data) - at)
    size = int(kind.split()[1])
    at -= at % size
    length = min(size, len(data) - at)
    return data[:at] + bytes(length) + data[at + length :]


def changes_of(records: Sequence[dict[str, Any]]) -> dict[int, Any]:
    """Return what each item is changed to; None where it is taken out."""
    found: dict[int, Any] = {}
    for record in records:
        found |= {line["item_id"]: line for line in record.get("put", ())}
        found |= {int(item_id): None for item_id in record.get("delete", ())}
    return found


def outcome(before: Sample, data: bytes, path: Path) -> Outcome:
    """Start on damaged bytes, and hold what is found against the rule of this module."""
    path.write_bytes(data)
    whole = [
        record
        for record, (at, after) in zip(before.records, before.places, strict=True)
        if data[at:after] == before.data[at:after]
    ]
    reader = JournalReader(path)  # a server that only reads
    views = [reader.more()]
    reader.close()
    assert path.read_bytes() == data
    journal = Journal(path)
    journal.compact()
    new = {"column": "item_id", "put": [{"item_id": 10**6}]}
    journal.append([new])
    journal.close()
    reader = JournalReader(path)
    views.append(reader.more())
    reader.close()
    assert views[1].pop() == new
    written, expected = changes_of(before.records), changes_of(whole)
    lost = strange = 0
    for view in views:
        found = changes_of(view)
        lost = max(lost, sum(found.get(i, "nothing") != line for i, line in expected.items()))
        strange = max(strange, sum(written.get(i, "nothing") != line for i, line in found.items()))
    return Outcome(len(before.records) - len(whole), lost, strange)
