"""The journal: what is acknowledged is there, whatever happens; what is torn is gone."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from twotower.errors import BundleError
from twotower.serving.server.journal import Journal, JournalReader


def written(path: Path, *records: Any) -> Journal:
    journal = Journal(path)
    journal.append(records)
    return journal


def read(path: Path) -> list[Any]:
    """What a process that begins now finds."""
    Journal(path).close()
    reader = JournalReader(path)
    records = reader.more()
    reader.close()
    return records


def test_what_one_writes_the_others_read_in_order_and_once(tmp_path: Path) -> None:
    path = tmp_path / "j"
    other = Journal(path)
    reader = JournalReader(path)
    assert not reader.has_more()
    written(path, {"a": 1}, {"a": 2})
    assert reader.has_more()
    assert reader.more() == [{"a": 1}, {"a": 2}]
    assert not reader.has_more()
    other.append([{"b": "ü" * 1000}])
    assert reader.more() == [{"b": "ü" * 1000}]
    assert read(path) == [{"a": 1}, {"a": 2}, {"b": "ü" * 1000}]


def test_a_torn_end_is_left_out_and_written_over(tmp_path: Path) -> None:
    path = tmp_path / "j"
    written(path, {"a": 1})
    whole = path.read_bytes()
    written(path, {"b": 2})
    both = path.read_bytes()
    for end in range(len(whole), len(both)):
        path.write_bytes(both[:end])
        assert read(path) == [{"a": 1}]
        written(path, {"c": 3})
        assert read(path) == [{"a": 1}, {"c": 3}], end
    damaged = both[:-3] + bytes([both[-3] ^ 1]) + both[-2:]
    path.write_bytes(damaged)
    assert read(path) == [{"a": 1}]
    for end in range(20):
        path.write_bytes(whole[:end])
        assert read(path) == []


def test_what_is_not_on_the_disk_yet_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "j"
    journal = written(path, {"a": 1})
    reader = JournalReader(path)
    seen = []
    real = os.fsync

    def slow(file: int) -> None:
        seen.append(reader.more())
        real(file)

    monkeypatch.setattr(os, "fsync", slow)
    journal.append([{"b": 2}])
    assert seen == [[{"a": 1}]]
    assert reader.more() == [{"b": 2}]


def test_what_a_crash_left_whole_is_kept_by_the_next_who_writes(tmp_path: Path) -> None:
    path = tmp_path / "j"
    journal = written(path, {"a": 1})
    before = path.read_bytes()
    journal.append([{"b": 2}])
    after = path.read_bytes()
    path.write_bytes(before[:40] + after[40:])  # written, but the end was not put down
    reader = JournalReader(path)
    assert reader.more() == [{"a": 1}]
    journal.append([{"c": 3}])
    assert reader.more() == [{"b": 2}, {"c": 3}]


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

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(BundleError, match="No space left on device; nothing was changed"):
        journal.append([{"b": 2}])
    monkeypatch.undo()
    assert (tmp_path / "j").read_bytes() == before
    journal.append([{"c": 3}])
    assert read(tmp_path / "j") == [{"a": 1}, {"c": 3}]


def test_compacting_keeps_the_last_of_each_item_and_who_reads_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "j"
    lines = [{"id": i, "title": f"t{i}"} for i in range(4)]
    writer = Journal(path)
    late, reader = JournalReader(path), JournalReader(path)
    changes = [
        {"column": "id", "put": lines},
        {"delete": ["1", "9"]},
        {"column": "id", "put": [{"id": "2", "title": "new"}, {"id": 9, "title": "back"}]},
        {"delete": ["0"]},
    ]
    written(path, *changes[:3])
    assert len(reader.more()) == 3
    written(path, changes[3])
    Journal(path).compact()
    assert reader.has_more()
    assert reader.more() == [changes[3]]  # what it had not read of the old one, and nothing twice
    assert not reader.has_more()
    (deleted, put) = read(path)
    assert deleted == {"delete": ["1", "0"]}
    assert put["put"] == [lines[3], {"id": "2", "title": "new"}, {"id": 9, "title": "back"}]
    assert list(tmp_path.iterdir()) == [path]
    writer.append([{"delete": ["3"]}])  # to the new one
    assert reader.more() == [{"delete": ["3"]}]
    Journal(path).compact()
    assert reader.more() == []
    assert late.more()[:4] == changes  # it missed one: then all of the newest follows
    assert len(read(path)) == 2


WRITES = """
import sys
from pathlib import Path
from twotower.serving.server.journal import Journal
journal = Journal(sys.argv[1])
for number in range(10**6):
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
        until = time.monotonic() + 300
        while not path.is_file() or path.stat().st_size < 500 * (round_ + 1):
            assert time.monotonic() < until
            time.sleep(0.01)
        time.sleep(0.05 * round_)
        for process in writers.values():
            process.kill()
        for name, process in writers.items():
            out, _ = process.communicate()
            said[name] = [int(line) for line in out.split(b"\n")[:-1]]
    records = read(path)
    for name, numbers in said.items():
        there = [record["number"] for record in records if record["writer"] == name]
        assert there[: len(numbers)] == numbers  # none lost, none twice, in order
        assert len(there) - len(numbers) in (0, 1)
    assert sum(map(len, said.values())) > 20


def test_one_damaged_record_takes_no_other_with_it(tmp_path: Path) -> None:
    path = tmp_path / "j"
    written(path, {"delete": ["1"]})
    start = path.stat().st_size
    written(path, {"delete": ["2"]}, {"delete": ["3"]})
    whole = path.read_bytes()
    path.write_bytes(whole[: start + 12] + bytes([whole[start + 12] ^ 1]) + whole[start + 13 :])
    assert read(path) == [{"delete": ["1"]}, {"delete": ["3"]}]
    Journal(path).compact()
    assert read(path) == [{"delete": ["1", "3"]}]


def test_where_lengths_make_no_sense_the_rest_is_put_aside(tmp_path: Path) -> None:
    path = tmp_path / "j"
    journal = written(path, {"delete": ["1"]})
    start = path.stat().st_size
    journal.append([{"delete": ["2"]}])
    whole = path.read_bytes()
    path.write_bytes(whole[: start + 3] + b"\xff" + whole[start + 4 :])
    with pytest.raises(BundleError, match=f"is damaged at byte {start}; it stays as it is"):
        journal.compact()
    assert read(path) == [{"delete": ["1"]}]
    assert (tmp_path / f"j.damaged-{start}").stat().st_size == len(whole) - start


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    path = tmp_path / "j"
    path.symlink_to(tmp_path / "disk" / "real")
    journal = written(path, {"delete": ["1"]})
    journal.compact()
    journal.append([{"delete": ["2"]}])
    assert path.is_symlink()
    assert len(read(tmp_path / "disk" / "real")) == 2


def test_what_a_killed_compaction_left_does_not_come_back(tmp_path: Path) -> None:
    path = tmp_path / "j"
    journal = written(path, {"delete": ["1"]})
    leftover = Path(f"{path}.{os.getpid()}")
    leftover.write_bytes(path.read_bytes() * 9)
    journal.compact()
    assert read(path) == [{"delete": ["1"]}]
    assert not leftover.exists()


def test_no_file_left_to_open_is_told_once_and_then_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "j"
    written(path, {"delete": ["1"]})
    reader = JournalReader(path)
    Journal(path).compact()
    real, num_open = os.open, len(list(Path("/proc/self/fd").iterdir()))

    def full(*_: Any, **__: Any) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "open", full)
    with pytest.raises(BundleError, match="Too many open files"):
        reader.more()
    monkeypatch.setattr(os, "open", real)
    written(path, {"delete": ["2"]}).close()
    assert reader.more() == [{"delete": ["2"]}]
    assert len(list(Path("/proc/self/fd").iterdir())) == num_open


def test_what_is_no_journal_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("something else, and long enough to hold a header")
    with pytest.raises(BundleError, match="must be a journal, got another file"):
        JournalReader(tmp_path / "notes")
