"""The journal: what is acknowledged is there, whatever happens; what is torn is gone."""

import errno
import fcntl
import json
import logging
import os
import random
import resource
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from damaged_journals import KINDS, START_OF, bytes_of_version_2, damaged, outcome, sample
from sandbox import NoDiskError, loggers_kept, small_disk
from servers import running
from twotower.abandoned import LOCK
from twotower.errors import BundleError, JournalError
from twotower.serving.bundle import open_bundle
from twotower.serving.client import Client
from twotower.serving.server import journal as rooms
from twotower.serving.server import run
from twotower.serving.server.catalogue import Change, Changed, Written
from twotower.serving.server.engine import Engine, Model
from twotower.serving.server.journal import Journal, JournalReader
from twotower.serving.server.journal_format import START, frames_of
from twotower.serving.server.options import ServerSettings
from twotower.serving.server.worker import SECONDS_TO_FINISH


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
    assert reader.more() == []
    written(path, {"a": 1}, {"a": 2})
    assert reader.more() == [{"a": 1}, {"a": 2}]
    assert reader.more() == []
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
    path.write_bytes(before[:START] + after[START:])  # written, but the header is that of before
    reader = JournalReader(path)
    assert reader.more() == [{"a": 1}, {"b": 2}]  # no process writes: it stays
    late = JournalReader(path)
    fcntl.flock(lock := os.open(path, os.O_RDWR), fcntl.LOCK_EX)
    assert late.more() == [{"a": 1}]  # another process writes it just now
    os.close(lock)
    journal.append([{"c": 3}])
    assert reader.more() == [{"c": 3}]
    assert late.more() == [{"b": 2}, {"c": 3}]


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
    assert reader.more() == [changes[3]]  # what it had not read of the old one, and nothing twice
    assert reader.more() == []
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
        while not path.is_file() or path.stat().st_size < START + 500 * (round_ + 1):
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


COMPACTS = """
import sys
from twotower.serving.server.journal import Journal
journal = Journal(sys.argv[1])
for number in range(10**6):
    journal.append([{"column": "id", "put": [{"id": number % 500, "number": number}]}])
    print(number, flush=True)
    journal.compact()
"""


def test_a_kill_during_compaction_loses_and_leaves_nothing(tmp_path: Path) -> None:
    """A small form of ``benchmarks/server_kills.py``."""
    path, rng = tmp_path / "j", random.Random(0)
    for _ in range(2):
        command = [sys.executable, "-c", COMPACTS, str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            said = [process.stdout.readline() for _ in range(rng.randint(20, 60))]
            time.sleep(rng.uniform(0, 0.01))
            process.kill()
            said += process.stdout.read().splitlines()
        acknowledged = {int(number) % 500: int(number) for number in said}
        journal = Journal(path)
        journal.compact()
        journal.close()
        (record,) = read(path)
        found = {line["id"]: line["number"] for line in record["put"]}
        under_way = set(found.items()) - set(acknowledged.items())
        assert set(acknowledged.items()) <= set(found.items())
        assert under_way <= {(len(said) % 500, len(said))}
        assert list(tmp_path.iterdir()) == [path]
        path.unlink()


def logged(caplog: pytest.LogCaptureFixture) -> list[tuple[str, dict[str, Any]]]:
    return [(r.getMessage(), getattr(r, "fields", {})) for r in caplog.records]


@pytest.mark.parametrize("version", [3, 2])
def test_damage_costs_only_the_records_that_it_touches(version: int, tmp_path: Path) -> None:
    """A small form of ``benchmarks/journal.py``."""
    before, rng = sample(version, tmp_path / "whole", 40), random.Random(version)
    for number in range(40):
        upto = START_OF[version] if number % 4 == 3 else None
        data = damaged(before.data, KINDS[number // 4 % len(KINDS)], rng, upto)
        found = outcome(before, data, tmp_path / "j")
        assert (found.lost, found.strange) == (0, 0), number


@pytest.mark.parametrize("version", [3, 2])
def test_a_zeroed_header_or_tail_takes_no_record_with_it(version: int, tmp_path: Path) -> None:
    before = sample(version, tmp_path / "whole", 20)
    headless = bytes(START_OF[version]) + before.data[START_OF[version] :]
    assert outcome(before, headless, tmp_path / "a") == (0, 0, 0)
    assert outcome(before, before.data + bytes(5000), tmp_path / "b") == (0, 0, 0)
    assert outcome(before, bytes(len(before.data)), tmp_path / "c") == (20, 0, 0)
    cut = before.places[9][0]  # so that nothing is left of the second half
    assert outcome(before, before.data[:cut], tmp_path / "d") == (11, 0, 0)
    assert not list(tmp_path.glob("d.damaged*"))


@pytest.mark.parametrize("sector", [0, START, START + 4096])
def test_a_sector_that_the_disk_cannot_read_is_damage(
    sector: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, real = sample(3, tmp_path / "j", 40), os.pread

    def unreadable(file: int, length: int, at: int) -> bytes:
        if at < sector + 4096 and at + length > sector:
            raise OSError(5, "Input/output error")
        return real(file, length, at)

    monkeypatch.setattr(os, "pread", unreadable)
    whole = [
        record
        for record, (at, after) in zip(before.records, before.places, strict=True)
        if after <= sector or at >= sector + 4096
    ]
    assert read(tmp_path / "j") == whole
    assert len(whole) < 40 or sector == 0


def test_what_is_damaged_is_reported_and_put_aside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "j"
    before = sample(3, path, 20)
    data = bytearray(before.data)
    (at, _), (_, after) = before.places[4], before.places[6]
    data[at + 5] ^= 1  # the length of one record, and all of the two behind it
    data[at + 40 : after] = bytes(after - at - 40)
    last_at, last_after = before.places[19]
    data[last_after - 3] ^= 1
    path.write_bytes(data)
    path.chmod(0o640)
    (tmp_path / f"j.damaged-{at}").write_text("of an earlier damage")
    told = [
        {"file": str(path), "at": at, "bytes": after - at, "records": 3},
        {"file": str(path), "at": last_at, "bytes": last_after - last_at, "records": 1},
    ]
    said = "part of the journal is damaged and was skipped"
    assert len(read(path)) == 16
    assert logged(caplog) == [(said, each) for each in told]
    caplog.clear()
    Journal(path).compact()
    aside = tmp_path / f"j.damaged-{at}-1"
    size = after - at + last_after - last_at
    put = ("damaged bytes of the journal were put aside", {"file": str(aside), "bytes": size})
    assert logged(caplog) == [*((said, each) for each in told), put]
    assert aside.read_bytes() == data[at:after] + data[last_at:last_after]
    assert (tmp_path / f"j.damaged-{at}").read_text() == "of an earlier damage"
    assert {stat.S_IMODE(each.stat().st_mode) for each in (aside, path)} == {0o640}
    caplog.clear()
    assert sum(len(r.get("put", ())) + len(r.get("delete", ())) for r in read(path)) == 16
    assert not caplog.records


def test_bytes_of_a_record_elsewhere_are_no_record(tmp_path: Path) -> None:
    path = tmp_path / "j"
    before = sample(3, path, 3)
    (at, after), (second, _), _ = before.places
    copy = before.data[at:after]
    moved = before.data[:second] + copy + before.data[second + len(copy) :]
    path.write_bytes(moved)
    assert read(path) == [before.records[0], before.records[2]]
    path.write_bytes(before.data + copy)  # as an earlier use of the disk may have left it
    assert read(path) == before.records
    inside = {"delete": [frames_of([b'{"delete":[0]}'], START, 0)[0].decode("latin-1")]}
    written(path, inside)
    path.write_bytes(
        path.read_bytes()[: len(before.data) + 3] + b"?" + path.read_bytes()[len(before.data) + 4 :]
    )
    assert read(path) == before.records


def test_a_record_of_another_form_is_reported_and_takes_no_other_with_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "j"
    odd: list[Any] = [
        [1],
        7,
        None,
        {"delete": 7},
        {"put": [{"id": 1}]},
        {"column": "id", "put": [{}]},
    ]
    lines = [{"column": "id", "put": [{"id": 1}]}, *odd, {"delete": ["2"]}]
    Journal(path).append(lines)
    whole = path.read_bytes()
    at = START
    for number, body in enumerate([orjson.dumps(lines[0]), b"{not JSON}"]):
        frame = frames_of([body], at, number)[0]
        whole = whole[:at] + frame + whole[at + len(frame) :]
        at += len(frame)
    path.write_bytes(whole)  # the second record, not JSON, covers some of those behind it
    assert [r for r in read(path) if r in (lines[0], lines[-1])] == [lines[0], lines[-1]]
    assert logged(caplog)[0][1]["records"] == 1
    Journal(path).compact()
    assert read(path) == [{"delete": ["2"]}, lines[0]]
    (aside,) = tmp_path.glob("j.damaged-*")
    assert b'{"delete":7}' in aside.read_bytes()
    assert b"{not JSON}" in aside.read_bytes()


def test_a_journal_of_version_2_is_read_and_written_on(tmp_path: Path) -> None:
    path = tmp_path / "j"
    old = [{"column": "id", "put": [{"id": i}]} for i in range(3)]
    path.write_bytes(bytes_of_version_2(old))
    path.chmod(0o600)
    reader, journal, other = JournalReader(path), Journal(path), Journal(path)
    assert reader.more() == old
    assert path.read_bytes() == bytes_of_version_2(old)  # not changed before it is written to
    journal.append([{"delete": ["1"]}])
    assert reader.more() == [{"delete": ["1"]}]
    other.append([{"delete": ["2"]}])
    assert reader.more() == [{"delete": ["2"]}]
    both = {"column": "id", "put": [{"id": 0}, {"id": 1}, {"id": 2}]}
    assert read(path) == [both, {"delete": ["1"]}, {"delete": ["2"]}]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.write_bytes(bytes_of_version_2([]))
    assert read(path) == []


def test_compaction_keeps_mode_and_owner_and_follows_no_link(tmp_path: Path) -> None:
    path, victim = tmp_path / "j", tmp_path / "victim"
    victim.write_text("mine")
    old_umask = os.umask(0)
    try:
        journal = written(path, {"delete": ["1"]})
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        for mode in (0o600, 0o640, 0o604):
            path.chmod(mode)
            if os.geteuid() == 0:
                os.chown(path, 12345, 54321)
            before = path.stat()
            Path(f"{path}.{os.getpid()}").unlink(missing_ok=True)
            Path(f"{path}.{os.getpid()}").symlink_to(victim)  # the name that it used to have
            journal.compact()
            after = path.stat()
            assert (after.st_mode, after.st_uid, after.st_gid) == before[:1] + before[4:6]
            assert after.st_ino != before.st_ino
    finally:
        os.umask(old_umask)
    assert victim.read_text() == "mine"
    assert read(path) == [{"delete": ["1"]}]


def test_a_journal_that_another_process_keeps_locked_is_read_and_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "j"
    journal = written(path, {"delete": ["1"]})
    other = os.open(path, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    assert rooms.LOCK_SECONDS < SECONDS_TO_FINISH
    monkeypatch.setattr(rooms, "LOCK_SECONDS", 0.05)
    for work in (
        lambda: journal.append([{"delete": ["2"]}]),
        journal.compact,
        lambda: Journal(path),
    ):
        with pytest.raises(JournalError, match=r"has been locked by another process for 0\.05 s"):
            work()
    assert JournalReader(path).more() == [{"delete": ["1"]}]
    os.close(other)
    journal.append([{"delete": ["2"]}])
    assert len(read(path)) == 2


DELETED: dict[str, Callable[[Path], None]] = {
    "nothing": lambda _: None,
    "an empty file": lambda path: path.touch(),
    "a new journal": lambda path: Journal(path).close(),
}


@pytest.mark.parametrize("instead", DELETED)
def test_a_journal_that_was_deleted_is_written_again(
    instead: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "j"
    journal, other = Journal(path), Journal(path)
    journal.append([{"delete": ["1"]}, {"delete": ["2"]}])
    path.chmod(0o640)
    reader, late = JournalReader(path), JournalReader(path)
    assert len(reader.more()) == 2
    path.unlink()
    DELETED[instead](path)
    assert reader.more() == []
    journal.append([{"delete": ["3"]}])
    assert logged(caplog) == [("the journal was deleted and is written again", {"file": str(path)})]
    other.append([{"delete": ["4"]}])
    again = (
        [{"delete": ["1", "2"]}] if instead == "a new journal" else []
    )  # it had begun to read that
    assert reader.more() == [*again, {"delete": ["3"]}, {"delete": ["4"]}]
    assert late.more()[-2:] == [{"delete": ["3"]}, {"delete": ["4"]}]
    assert read(path) == [{"delete": ["1", "2"]}, {"delete": ["3"]}, {"delete": ["4"]}]
    assert [each.name for each in tmp_path.iterdir()] == ["j"]
    assert len(caplog.records) == 1


def test_a_journal_deleted_during_a_write_has_that_write_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "j"
    journal = written(path, {"delete": ["1"]})
    real = os.fsync

    def deleted(file: int) -> None:
        real(file)
        path.unlink(missing_ok=True)
        monkeypatch.setattr(os, "fsync", real)

    monkeypatch.setattr(os, "fsync", deleted)
    journal.append([{"delete": ["2"]}])
    assert read(path) == [{"delete": ["1", "2"]}]


def test_a_write_is_refused_where_the_journal_cannot_be_at_its_path(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    path = folder / "j"
    journal = written(path, {"delete": ["1"]})
    reader = JournalReader(path)
    folder.rename(tmp_path / "moved")
    with pytest.raises(JournalError, match="cannot be opened: No such file or directory"):
        journal.append([{"delete": ["2"]}])
    folder.mkdir()
    path.write_text("something else, and long enough to hold a header")
    with pytest.raises(JournalError, match="must be a journal, got another file"):
        journal.append([{"delete": ["3"]}])
    assert path.read_text().startswith("something else")
    assert reader.more() == [{"delete": ["1"]}]  # what was acknowledged is not withheld
    with pytest.raises(JournalError, match="must be a journal, got another file"):
        reader.more()
    path.unlink()
    journal.append([{"delete": ["4"]}])
    assert reader.more() == [{"delete": ["4"]}]
    assert read(path) == [{"delete": ["1"]}, {"delete": ["4"]}]


def test_a_journal_that_is_cut_or_overwritten_while_it_is_read_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "j"
    journal = written(path, *({"delete": [str(number)]} for number in range(4)))
    early = path.read_bytes()
    journal.append([{"delete": [str(number)]} for number in range(4, 9)])
    reader = JournalReader(path)
    assert len(reader.more()) == 9
    os.truncate(path, len(early) - 5)
    journal.append([{"delete": [str(number)]} for number in range(90, 99)])
    assert [r["delete"][0] for r in reader.more()] == [*"012", *map(str, range(90, 99))]
    with path.open("r+b") as opened:  # a copy is put back into the same file
        opened.write(early)
        opened.truncate()
    journal.append([{"delete": ["again"]}])
    assert [r["delete"][0] for r in reader.more()] == [*"0123", "again"]
    os.truncate(path, 0)
    journal.append([{"delete": ["new"]}])
    assert reader.more() == [{"delete": ["new"]}]


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    path = tmp_path / "j"
    path.symlink_to(tmp_path / "disk" / "real")
    journal = written(path, {"delete": ["1"]})
    journal.compact()
    journal.append([{"delete": ["2"]}])
    assert path.is_symlink()
    assert len(read(tmp_path / "disk" / "real")) == 2


def test_what_a_killed_compaction_left_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "j"
    journal = written(path, {"delete": ["1"]})
    leftover = tmp_path / ".j.writing-0a0a0a0a"
    leftover.mkdir(0o700)
    (leftover / LOCK).touch()
    (leftover / "new").write_bytes(path.read_bytes() * 9)
    others = [tmp_path / name for name in ("j.1", ".j.writing-0a", "j.new")]
    for other in others:
        other.touch()
    journal.compact()
    assert read(path) == [{"delete": ["1"]}]
    assert set(tmp_path.iterdir()) == {path, *others}


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
    assert reader.more() == [{"delete": ["1"]}]
    with pytest.raises(BundleError, match="Too many open files"):
        reader.more()
    monkeypatch.setattr(os, "open", real)
    written(path, {"delete": ["2"]}).close()
    assert reader.more() == [{"delete": ["2"]}]
    assert len(list(Path("/proc/self/fd").iterdir())) == num_open


def num_open() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_what_is_no_journal_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("something else, and long enough to hold a header")
    os.mkfifo(tmp_path / "pipe")
    before = num_open()
    for name in ("notes", "pipe", "."):
        with pytest.raises(BundleError, match="must be a journal, got another file"):
            JournalReader(tmp_path / name)
    assert JournalReader(tmp_path / "missing").more() == []
    assert not (tmp_path / "missing").exists()
    assert num_open() == before


def test_a_journal_that_need_not_exist_is_read_once_it_does(tmp_path: Path) -> None:
    reader = JournalReader(tmp_path / "j")
    assert reader.more() == []
    assert list(tmp_path.iterdir()) == []
    journal = Journal(tmp_path / "j")
    assert reader.more() == []
    journal.append([{"delete": ["1"]}])
    assert reader.more() == [{"delete": ["1"]}]


def line_of(bundle: Path, **given: Any) -> dict[str, Any]:
    return {**open_bundle(bundle).items.frame.row(0, named=True), **given}


def test_a_server_without_a_token_leaves_the_journal_as_it_is(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    path = tmp_path / "j"
    put = {"column": "item_id", "put": [line_of(tiny_bundle, item_id=9001)]}
    written(path, put)
    data = path.read_bytes() + b"torn"
    path.write_bytes(data)
    with running(tiny_bundle, journal=str(path)) as address, Client(address) as client:
        assert 9001 in client.recommend(7, k=300).item_ids
    assert path.read_bytes() == data
    assert list(tmp_path.iterdir()) == [path]


def test_a_server_whose_journal_cannot_be_written_answers_and_refuses_writes(
    tiny_bundle: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "later" / "j"
    put = {"items": [json.loads(json.dumps(line_of(tiny_bundle, item_id=9001), default=str))]}
    with running(tiny_bundle, token="t", journal=str(path)) as address, Client(address) as client:
        told = "changes are refused until the journal can be written"
        assert [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR] == [told]
        assert len(client.recommend(7).item_ids) == 10
        headers = {"authorization": "Bearer t"}
        refused = httpx.put(f"{address}/items", json=put, headers=headers)
        assert refused.status_code == 503
        assert "Name a journal in a place" in refused.json()["error"]
        path.parent.mkdir()
        assert httpx.put(f"{address}/items", json=put, headers=headers).json()["items"] == 1
        assert 9001 in client.recommend(7, k=300).item_ids
        path.unlink()
        path.write_text("something else, and long enough to hold a header")
        refused = httpx.delete(f"{address}/items?item_id=3", headers=headers)
        assert refused.status_code == 503
        assert 9001 in client.recommend(7, k=300).item_ids
        path.unlink()
        assert httpx.delete(f"{address}/items?item_id=3", headers=headers).status_code == 200
        assert 3 not in client.recommend(7, k=300, exclude_seen=False).item_ids
    assert [len(r.get("put", ())) for r in read(path)] == [1, 0]


@contextmanager
def no_file_longer_than(size: int) -> Iterator[None]:
    """Let writes fail as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_an_engine_whose_journal_cannot_be_compacted_goes_on(
    tiny_bundle: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "j"
    engine = Engine(tiny_bundle, path)
    assert engine.compact()
    before = path.read_bytes()
    with no_file_longer_than(100):
        assert not engine.compact()
        assert path.read_bytes() == before
        with pytest.raises(JournalError, match="File too large; nothing was changed"):
            engine.write([Change(item_ids=[3])])
    assert "the journal was not compacted" in [r.getMessage() for r in caplog.records]
    assert list(tmp_path.iterdir()) == [path]
    (told,) = engine.write([Change(item_ids=[3])])
    assert isinstance(told, Written)
    (changed,) = engine.changed([told])
    assert isinstance(changed, Changed)
    assert changed.items == 1
    assert not Engine(tiny_bundle, path, writes=False).compact()


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Bundles that ``serve`` would have served; nothing listens."""
    found: list[str] = []
    monkeypatch.setattr(
        "twotower.serving.server.worker.run_alone", lambda settings: found.append(settings.bundle)
    )
    with loggers_kept():
        yield found


@pytest.mark.parametrize("token", ["t", None])
@pytest.mark.parametrize("is_full", [True, False])
def test_a_server_starts_without_room_and_on_a_read_only_disk(
    token: str | None,
    is_full: bool,
    tiny_bundle: Path,
    tmp_path: Path,
    started: list[str],
    capfd: pytest.CaptureFixture[str],
) -> None:
    try:
        with small_disk(tmp_path, 2**20):
            disk = tmp_path / "disk"
            put = {"column": "item_id", "put": [line_of(tiny_bundle, item_id=9001)]}
            written(disk / "j", put).close()
            if is_full:
                with (disk / "rest").open("wb", 0) as rest, pytest.raises(OSError, match="space"):
                    rest.writelines(bytes(4096) for _ in range(2**20 // 4096))
            else:
                subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
            path = str(disk / "j")
            run.serve(ServerSettings(bundle=str(tiny_bundle), journal=path, token=token))
            assert len(started) == 1
            model = Model(tiny_bundle, disk / "j")
            assert 9001 in model.retriever.item_ids
            model.catalogue.close()
            if not is_full:
                with pytest.raises(JournalError, match="Read-only file system"):
                    Journal(disk / "j")
    except NoDiskError as reason:
        pytest.skip(str(reason))
    assert ("was not compacted" in capfd.readouterr().err) == (is_full and token is not None)


def test_a_server_does_not_start_with_a_file_that_is_no_journal(
    tiny_bundle: Path, tmp_path: Path, started: list[str]
) -> None:
    (tmp_path / "j").write_text("something else, and long enough to hold a header")
    for token in ("t", None):
        with pytest.raises(BundleError, match="must be a journal, got another file"):
            run.serve(
                ServerSettings(bundle=str(tiny_bundle), journal=str(tmp_path / "j"), token=token)
            )
    assert started == []


def test_a_write_on_the_disk_is_a_success_whatever_becomes_of_the_header(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "j"
    journal, pwrite = written(path, {"delete": ["1"]}), os.pwrite

    def fails_in_a_header(descriptor: int, data: bytes, at: int) -> int:
        if at < START:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return pwrite(descriptor, data, at)

    with monkeypatch.context() as patch:
        patch.setattr("os.pwrite", fails_in_a_header)
        journal.append([{"delete": ["2"]}])
    journal.append([{"delete": ["3"]}])
    assert read(path) == [{"delete": [item_id]} for item_id in "123"]


def test_damaged_bytes_that_were_put_aside_stay_where_no_file_can_be_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, real = tmp_path / "j", os.open
    journal = written(path, {"delete": ["1"]}, {"delete": ["2"]})
    data = bytearray(path.read_bytes())
    data[START + 20] ^= 1
    path.write_bytes(data)
    aside = tmp_path / f"j.damaged-{START}"
    aside.write_bytes(b"of an earlier compaction")

    def has_no_descriptor(name: Any, flags: int, *rest: Any, **options: Any) -> int:
        if str(name) == str(aside):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return real(name, flags, *rest, **options)

    monkeypatch.setattr("os.open", has_no_descriptor)
    with pytest.raises(JournalError, match="could not be compacted: Too many open files"):
        journal.compact()
    assert aside.read_bytes() == b"of an earlier compaction"
    assert read(path) == [{"delete": ["2"]}]
