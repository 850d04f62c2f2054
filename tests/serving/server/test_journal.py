"""The journal: what is acknowledged is there, whatever happens; what is torn is gone."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from twotower.errors import BundleError
from twotower.serving.server.journal import Journal, compact


def written(path: Path, *records: Any) -> Journal:
    journal = Journal(path)
    with journal.writing():
        journal.more()
        journal.append(records)
    return journal


def test_what_one_writes_the_others_read_in_order_and_once(tmp_path: Path) -> None:
    path = tmp_path / "j"
    other = Journal(path)
    first = written(path, {"a": 1}, {"a": 2})
    assert first.more() == []
    assert other.has_more()
    assert other.more() == [{"a": 1}, {"a": 2}]
    assert not other.has_more()
    with other.writing():
        assert other.more() == []
        other.append([{"b": "ü" * 1000}])
    assert first.more() == [{"b": "ü" * 1000}]
    assert Journal(path).more() == [{"a": 1}, {"a": 2}, {"b": "ü" * 1000}]


def test_a_torn_end_is_left_out_and_written_over(tmp_path: Path) -> None:
    path = tmp_path / "j"
    written(path, {"a": 1})
    whole = path.read_bytes()
    written(path, {"b": 2})
    both = path.read_bytes()
    for end in range(len(whole), len(both)):
        path.write_bytes(both[:end])
        assert Journal(path).more() == [{"a": 1}]
        written(path, {"c": 3})
        assert Journal(path).more() == [{"a": 1}, {"c": 3}], end
    damaged = both[:-3] + bytes([both[-3] ^ 1]) + both[-2:]
    path.write_bytes(damaged)
    assert Journal(path).more() == [{"a": 1}]
    for end in range(5):
        path.write_bytes(whole[:end])
        assert Journal(path).more() == []


def test_another_file_is_refused_and_stays(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("not a journal at all")
    with pytest.raises(BundleError, match="must be a journal, got another file"):
        Journal(path)
    assert path.read_text() == "not a journal at all"
    with pytest.raises(BundleError, match="cannot be opened: No such file or directory"):
        Journal(tmp_path / "nowhere" / "j")


def test_a_full_disk_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = written(tmp_path / "j", {"a": 1})
    before = (tmp_path / "j").read_bytes()
    real, calls = os.pwrite, []

    def full(file: int, data: Any, at: int) -> int:
        calls.append(at)
        if len(calls) > 1:
            raise OSError(28, "No space left on device")
        return real(file, bytes(data)[:5], at)

    with journal.writing():
        monkeypatch.setattr(os, "pwrite", full)
        with pytest.raises(BundleError, match="No space left on device; nothing was changed"):
            journal.append([{"b": 2}])
        monkeypatch.undo()
        assert (tmp_path / "j").read_bytes() == before
        journal.append([{"c": 3}])
    assert Journal(tmp_path / "j").more() == [{"a": 1}, {"c": 3}]


def test_compacting_keeps_the_last_of_each_item_and_who_reads_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "j"
    lines = [{"id": i, "title": f"t{i}"} for i in range(4)]
    reader = Journal(path)
    written(
        path,
        {"column": "id", "put": lines},
        {"delete": ["1", "9"]},
        {"column": "id", "put": [{"id": "2", "title": "new"}, {"id": 9, "title": "back"}]},
        {"delete": ["0"]},
    )
    assert len(reader.more()) == 4
    compact(path)
    assert reader.has_more()
    (deleted, put) = reader.more()
    assert deleted == {"delete": ["1", "0"]}
    assert put["put"] == [lines[3], {"id": "2", "title": "new"}, {"id": 9, "title": "back"}]
    assert list(tmp_path.iterdir()) == [path]
    with reader.writing():
        reader.append([{"delete": ["3"]}])
    assert len(Journal(path).more()) == 3


WRITES = """
import sys
from pathlib import Path
from twotower.serving.server.journal import Journal
journal = Journal(sys.argv[1])
for number in range(10**6):
    with journal.writing():
        journal.more()
        journal.append([{"writer": sys.argv[2], "number": number}])
    print(number, flush=True)
"""


def test_what_was_acknowledged_survives_kill_9(tmp_path: Path) -> None:
    """Two writers at once, ended at any moment, time and again."""
    path, said = tmp_path / "j", {}
    for round_ in range(4):
        writers = {
            f"{round_}-{name}": subprocess.Popen(
                [sys.executable, "-c", WRITES, str(path), f"{round_}-{name}"],
                stdout=subprocess.PIPE,
            )
            for name in "ab"
        }
        until = time.monotonic() + 30
        while not path.is_file() or path.stat().st_size < 500 * (round_ + 1):
            assert time.monotonic() < until
            time.sleep(0.01)
        time.sleep(0.05 * round_)
        for process in writers.values():
            process.kill()
        for name, process in writers.items():
            out, _ = process.communicate()
            said[name] = [int(line) for line in out.split(b"\n")[:-1]]
    records = Journal(path).more()
    for name, numbers in said.items():
        there = [record["number"] for record in records if record["writer"] == name]
        assert there[: len(numbers)] == numbers  # none lost, none twice, in order
        assert len(there) - len(numbers) in (0, 1)
    assert sum(map(len, said.values())) > 20
