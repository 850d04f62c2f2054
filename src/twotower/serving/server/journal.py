"""The journal of catalogue changes: on disk before a change is acknowledged, and read by every worker.

``journal_format.py`` has the bytes of header and records, ``catalogue.py`` the JSON of a record.
"""

import errno
import os
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Literal

import orjson

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

from twotower.abandoned import put, sync, writing
from twotower.errors import JournalError
from twotower.serving.server import journal_format
from twotower.serving.server.journal_format import FORMAT_3, START, Header, Piece
from twotower.serving.server.telemetry import LOG

LOCK_SECONDS = 5.0
"""How long a write waits for the lock: less than a server may take to stop."""
_LOOKS_EVERY = 0.001
_SECTOR = 4096
_AT_ONCE = 1000
"""Items in a record of a compacted journal."""
# A pipe at the path does not block. Windows has none of the three.
_OPENS = sum(getattr(os, name, 0) for name in ("O_CLOEXEC", "O_NOFOLLOW", "O_NONBLOCK"))


def check_locks() -> None:
    """Refuse a journal on a system that cannot lock one, such as Windows; return nothing elsewhere.

    Raises:
        JournalError: The system has no ``flock``.
    """
    if fcntl is None:
        raise JournalError(
            "a journal needs the file locks of Linux or macOS, which this system lacks; serve without a "
            "token and a journal, which answers and changes nothing, or serve in WSL or in a container."
        )


class _File:
    """An open journal. Another process may delete it, or put another file in its place.

    Args:
        path: The path of the file, without links.
        flags: ``os.O_RDONLY`` or ``os.O_RDWR``, and ``os.O_CREAT`` to make a missing file.
        locks: Whether to lock the file at once.

    Raises:
        JournalError: The file cannot be opened, is not a journal, or is locked by another process.
    """

    def __init__(self, path: Path, flags: int, *, locks: bool = False) -> None:
        self.path = path
        check_locks()
        place = ". Name a journal in a place that exists and is writable."
        with self.failing("cannot be opened", place):
            self.descriptor = os.open(path, flags | _OPENS, 0o600)
        try:
            self.status = os.fstat(self.descriptor)
            is_file = stat.S_ISREG(self.status.st_mode)
            form = journal_format.format_of(self.read, self.size) if is_file else None
            if form is None:
                raise JournalError(
                    f"{str(path)!r} must be a journal, got another file; name another."
                )
            self.form = form
            if locks:
                self.lock()
        except BaseException:
            self.close()
            raise

    @contextmanager
    def failing(self, what: str, end: str = ".") -> Iterator[None]:
        """Raise errors of the system as a ``JournalError`` that says what failed."""
        try:
            yield
        except OSError as error:
            raise self.failed(what, error, end) from error

    def failed(self, what: str, error: OSError, end: str = ".") -> JournalError:
        """Return the error for an error of the system."""
        return JournalError(f"the journal {str(self.path)!r} {what}: {error.strerror}{end}")

    def close(self) -> None:
        """Close the file, and release its lock."""
        os.close(self.descriptor)

    @property
    def size(self) -> int:
        return os.fstat(self.descriptor).st_size

    def place(self) -> Literal["here", "gone", "other"]:
        """Return what is at the path now: this file, another file, or nothing (or an empty file)."""
        try:
            found = os.lstat(self.path)
        except (FileNotFoundError, NotADirectoryError):
            return "gone"
        except OSError as error:
            raise self.failed("cannot be looked up", error) from error
        if os.path.samestat(found, self.status):
            return "here"
        return "other" if found.st_size else "gone"

    def read(self, length: int, at: int) -> bytes:
        """Return ``length`` bytes, or fewer at the end of the file."""
        found = []
        while length and (piece := self._read_some(length, at)):
            found.append(piece)
            length, at = length - len(piece), at + len(piece)
        return b"".join(found)

    def _read_some(self, length: int, at: int) -> bytes:
        """Return bytes. A sector that the disk cannot read is zeros, which count as damage."""
        try:
            return os.pread(self.descriptor, length, at)
        except OSError as error:
            if error.errno != errno.EIO:
                raise self.failed("cannot be read", error) from error
        sector = min(length, _SECTOR - at % _SECTOR)
        return bytes(sector) if sector == length else self._read_some(sector, at)

    def whole_header(self) -> Header | None:
        """Return the header; None if both copies are damaged."""
        if self.form is not FORMAT_3:
            return journal_format.header_of_2(self.read, self.size)
        for _ in range(10):  # a writer may be halfway through either copy
            header = journal_format.header_of(self.read)
            if header is not None:
                return header
        return None

    def header(self) -> Header:
        """Return the header. If both copies are damaged, return one with which the whole file is read."""
        found = self.whole_header()
        return found or Header(journal_format.UNKNOWN, START, max(START, self.size), 0)

    def pieces(self, header: Header, at: int, number: int) -> Iterator[Piece]:
        """Yield the records from a place on, and the damaged parts between them."""
        end = header.end if self.form is FORMAT_3 else self.size
        return journal_format.pieces(self.form, self.read, at, end, number, header.number)

    @property
    def is_blank(self) -> bool:
        """Whether the file has never had a record."""
        return self.size <= self.form.start

    def write(self, data: bytes, at: int) -> None:
        """Write, and return when the data is on the disk."""
        with self.failing("could not be written", "; nothing was changed."):
            self._put(data, at)
            os.fsync(self.descriptor)

    def write_header(self, header: Header) -> None:
        """Write both copies of the header, one after the other: one of them is whole at any moment."""
        with self.failing("could not be written"):
            for slot in journal_format.SLOTS:
                self._put(header.to_bytes(), slot)

    def _put(self, data: bytes, at: int) -> None:
        view = memoryview(data)
        while view:
            done = os.pwrite(self.descriptor, view, at)
            view, at = view[done:], at + done

    def lock(self) -> None:
        """Lock the file.

        Raises:
            JournalError: Another process keeps it locked.
        """
        until = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except OSError as error:
                if error.errno != errno.EWOULDBLOCK:
                    raise self.failed("could not be locked", error) from error
            if time.monotonic() > until:
                raise JournalError(
                    f"the journal {str(self.path)!r} has been locked by another process for "
                    f"{LOCK_SECONDS:g} s; nothing was changed. Try again later, or end that process."
                )
            time.sleep(_LOOKS_EVERY)

    def unlock(self) -> None:
        """Release the lock."""
        fcntl.flock(self.descriptor, fcntl.LOCK_UN)

    def keeps_writers_out(self) -> bool:
        """Keep writers out until ``unlock``; return False if one is writing at this moment."""
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return False
        return True

    def report(self, damaged: Piece) -> None:
        """Log a damaged part."""
        held: dict[str, Any] = {"records": damaged.number} if damaged.number else {}
        LOG.error(
            "part of the journal is damaged and was skipped",
            file=str(self.path),
            at=damaged.at,
            bytes=damaged.after - damaged.at,
            **held,
        )


class Journal:
    """A file to which changes are appended, by one process at a time.

    The header holds the end of the records that are on the disk, so that readers see nothing that a crash
    could take back. After a crash, a writer keeps the whole records behind that end, and cuts off the rest,
    which was never acknowledged. Damaged records are skipped, and compaction puts their bytes aside
    (``JOURNAL.damaged-PLACE``). A journal of version 2 is compacted before the first write to it. A journal
    that was deleted is written again, from the file that is still open.

    The lock keeps other objects out, but not other threads that use this one. A link at the path is
    followed when the journal is opened, and not later.

    Args:
        path: The path of the file, which is made if it is missing.

    Raises:
        JournalError: The file is not a journal, cannot be opened, or is locked by another process.
    """

    def __init__(self, path: str | Path) -> None:
        self._file = _File(Path(path).resolve(), os.O_RDWR | os.O_CREAT)
        try:
            with self._locked():
                if self._file.form is FORMAT_3:
                    self._ready()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def append(self, records: Sequence[Any]) -> None:
        """Add records, and return when they are on the disk, in the file at the path.

        Raises:
            JournalError: The disk is full, say. Nothing was added then.
        """
        if not records:
            return
        bodies = [orjson.dumps(record, default=str) for record in records]
        with self._locked():
            if self._file.form is not FORMAT_3:
                self._rewrite()
                self._take()
            self._add(bodies)
            while self._file.place() != "here":  # it was deleted or replaced meanwhile
                if not self._take():
                    self._add(bodies)

    def compact(self) -> None:
        """Replace the journal by one with the last change of each item, in one step.

        Raises:
            JournalError: The disk is full, say. The journal stays as it is then.
        """
        with self._locked():
            self._rewrite()

    def tries_to_compact(self) -> bool:
        """Compact the journal, and return whether that was possible; the log says why it was not."""
        try:
            self.compact()
        except JournalError as error:
            LOG.warning("the journal was not compacted", error=str(error))
            return False
        return True

    def _add(self, bodies: Sequence[bytes]) -> None:
        header = self._ready()
        frames, end, number = journal_format.frames_of(bodies, header.end, header.number)
        try:
            self._file.write(frames, header.end)
        except JournalError:
            with suppress(OSError):
                os.ftruncate(self._file.descriptor, header.end)
            raise
        try:
            self._file.write_header(header._replace(end=end, number=number))
        except JournalError as error:
            # The records are on the disk. The next write mends the header.
            LOG.error("the journal's header is not current", error=str(error))

    def _ready(self) -> Header:
        """Return the header, whose end of the records is then the end of the file."""
        header, size = self._file.whole_header(), self._file.size
        if header is not None and header.end == size:
            return header
        with self._file.failing("could not be mended"):
            return self._mend(header, size)

    def _mend(self, header: Header | None, size: int) -> Header:
        """Make the header and the end of the file agree. No record is lost, even a damaged one."""
        path, is_new = self._file.path, size == 0
        kept, number = (START, 0) if header is None else (min(header.end, size), header.number)
        for piece in journal_format.pieces(self._file.form, self._file.read, kept, size, number):
            if piece.body is not None:
                kept, number = piece.after, piece.number + 1
        if header is None or size < header.end:
            if number and not is_new:
                what = "header of the journal is damaged" if header is None else "journal was cut"
                LOG.error(f"the {what}", file=str(path), bytes=size)
            # The bytes at the end may be acknowledged records, so they stay. Readers, which may be behind
            # that end, see another generation and begin again.
            kept = max(size, START)
            header = Header(time.time_ns(), START, kept, number)
        os.ftruncate(self._file.descriptor, kept)
        header = header._replace(end=kept, number=number)
        self._file.write_header(header)
        os.fsync(self._file.descriptor)
        if is_new:
            sync(path.parent)
        return header

    def _rewrite(self) -> None:
        """Replace the file by one with the last change of each item."""
        file = self._file
        header = self._ready() if file.form is FORMAT_3 else file.header()
        last_of_each, damaged, number = _LastOfEach(), [], 0
        for piece in file.pieces(header, file.form.start, 0):
            if piece.body is None:
                if piece.at >= header.end:
                    break  # left by a crash, and never acknowledged
                damaged.append(piece)
                continue
            number = piece.number + 1
            if not last_of_each.add(_decoded(piece.body)):
                damaged.append(piece._replace(number=1))
        for piece in damaged:
            file.report(piece)
        number = max(number, header.number)
        frames, end, number = journal_format.frames_of(last_of_each.bodies(), START, number)
        copy = Header(header.generation + 1, end, end, number).to_bytes()
        num_copies = len(journal_format.SLOTS)
        head = copy.ljust(START // num_copies, b"\0") * num_copies
        with (
            file.failing("could not be compacted", "; it stays as it is."),
            writing(file.path) as new,
        ):
            _write_new(new, [head, frames], os.fstat(file.descriptor))
            if damaged:
                self._put_aside(damaged)
            put(new, file.path)

    def _put_aside(self, damaged: Sequence[Piece]) -> None:
        """Write the damaged parts, one after the other, to a file of their own."""
        path = self._file.path
        parts = [self._file.read(piece.after - piece.at, piece.at) for piece in damaged]
        for times in count():
            place = f".damaged-{damaged[0].at}" + (f"-{times}" if times else "")
            aside = path.with_name(path.name + place)
            with suppress(FileExistsError):
                _write_new(aside, parts, os.fstat(self._file.descriptor))
                break
        size = sum(map(len, parts))
        LOG.error("damaged bytes of the journal were put aside", file=str(aside), bytes=size)

    def _take(self) -> bool:
        """Lock the journal at the path, and return whether it has all records of the open one."""
        has_all = True
        self._file.lock()
        while self._file.place() != "here":
            # Others who open the path meanwhile wait for the lock of this file, and then see it replaced.
            fresh = _File(self._file.path, os.O_RDWR | os.O_CREAT, locks=True)
            is_blank = fresh.is_blank and fresh.place() == "here"
            if is_blank and not self._file.is_blank:
                LOG.error("the journal was deleted and is written again", file=str(fresh.path))
                try:
                    self._rewrite()
                finally:
                    fresh.close()
                fresh = _File(self._file.path, os.O_RDWR, locks=True)
            self._file.close()  # and its lock with it
            self._file, has_all = fresh, has_all and is_blank
        return has_all

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self._take()
            yield
        finally:
            self._file.unlock()


class JournalReader:
    """Reads the records that any process writes to a journal, without writing or waiting.

    Args:
        path: The path of the journal, which is read as soon as it exists.

    Raises:
        JournalError: The file cannot be opened, or is not a journal.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path).resolve()
        self._file: _File | None = None
        self._found: list[dict[str, Any]] = []
        self._generation = self._read = self._number = self._end = 0
        self._is_fresh = True
        if self._path.exists():
            self._file = self._open(None)

    def close(self) -> None:
        """Close the file."""
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def more(self) -> list[dict[str, Any]]:
        """Return the records since the last call, by any process, the oldest first.

        After a compaction, a reader goes on with the records since. A reader that missed a compaction
        begins again, and so does one whose journal lost bytes or was replaced.

        Raises:
            JournalError: The file at the path cannot be read. Records that were read before are returned
                first.
        """
        while True:
            if self._file is None:
                if not self._path.exists():
                    return []
                self._file = self._open(None)
            place = self._file.place()  # nobody writes to a file that was replaced
            header = self._file.header()
            if self._is_other(header):
                self._begin(header, self._file.form.start)
            self._found += self._records(self._file, header)
            if place != "other":
                break
            try:
                fresh = self._open(header)
            except JournalError:
                if self._found:
                    break
                raise
            self._file.close()
            self._file = fresh
        found, self._found = self._found, []
        return found

    def _records(self, file: _File, header: Header) -> list[dict[str, Any]]:
        end, found, read, number = header.end, [], self._read, self._number
        has_rest = self._is_fresh and file.form is FORMAT_3 and file.size > end
        is_locked = has_rest and file.keeps_writers_out()
        try:
            if is_locked:
                # After a crash, the header may be older than the last records that were acknowledged.
                header = header._replace(end=file.size)
            for piece in file.pieces(header, read, number):
                if piece.body is None:
                    if piece.at < end:
                        file.report(piece)
                    continue
                read, number = piece.after, piece.number + 1
                record = _decoded(piece.body)
                if record is None:
                    file.report(piece._replace(number=1))
                else:
                    found.append(record)
        finally:
            if is_locked:
                file.unlock()
        self._is_fresh = self._is_fresh and not has_rest and end <= self._read
        self._read, self._number = max(read, end), max(number, header.number)
        self._end = end
        return found

    def _is_other(self, header: Header) -> bool:
        """Return whether the file lost bytes or was overwritten since the last read."""
        return header.generation != self._generation or header.end < self._end

    def _begin(self, header: Header, at: int) -> None:
        """Read from a place on, which is the start of a record."""
        self._generation = header.generation
        self._read = self._end = at
        self._number, self._is_fresh = 0, True

    def _open(self, before: Header | None) -> _File:
        """Return the file at the path."""
        fresh = _File(self._path, os.O_RDONLY)
        header = fresh.header()
        is_next = before is not None and header.generation == before.generation + 1
        self._begin(header, header.compacted if is_next else fresh.form.start)
        return fresh


class _LastOfEach:
    """The last change of each item."""

    def __init__(self) -> None:
        self._items: dict[str, dict[str, Any] | None] = {}
        self._column = ""

    def add(self, record: dict[str, Any] | None) -> bool:
        """Add a record; return False if it does not have the form of a change."""
        match record:
            case {"delete": list(item_ids)}:
                last: dict[str, Any] = dict.fromkeys(map(str, item_ids))
            case {"column": str(column), "put": list(lines)}:
                if not all(isinstance(line, dict) and column in line for line in lines):
                    return False
                self._column = column
                last = {str(line[column]): line for line in lines}
            case _:
                return False
        for item_id, line in last.items():
            self._items.pop(item_id, None)
            self._items[item_id] = line
        return True

    def bodies(self) -> Iterator[bytes]:
        """Yield the JSON of few records with the same effect."""
        gone = [item_id for item_id, line in self._items.items() if line is None]
        if gone:
            yield orjson.dumps({"delete": gone})
        there = [line for line in self._items.values() if line is not None]
        for start in range(0, len(there), _AT_ONCE):
            yield orjson.dumps({"column": self._column, "put": there[start : start + _AT_ONCE]})


def _decoded(body: bytes) -> dict[str, Any] | None:
    """Return a record; None if the bytes are not one."""
    try:
        record = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    return record if isinstance(record, dict) else None


def _write_new(path: Path, parts: Sequence[bytes], like: os.stat_result) -> None:
    """Write a new file with the owner and mode of another, and return when it is on the disk."""
    private = partial(os.open, mode=0o600)
    with open(path, "xb", opener=private) as opened:
        try:
            opened.writelines(parts)
            opened.flush()
            _make_like(opened.fileno(), like)
            os.fsync(opened.fileno())
        except OSError:
            path.unlink(missing_ok=True)
            raise


def _make_like(descriptor: int, like: os.stat_result) -> None:
    """Give a file the owner and the mode of another, as far as this process may."""
    mode, own = stat.S_IMODE(like.st_mode) & 0o777, os.fstat(descriptor)
    if (own.st_uid, own.st_gid) != (like.st_uid, like.st_gid):
        try:
            os.fchown(descriptor, like.st_uid, like.st_gid)
        except OSError:
            try:
                os.fchown(descriptor, -1, like.st_gid)
            except OSError:
                mode &= ~0o070  # they were meant for another group
    os.fchmod(descriptor, mode)
