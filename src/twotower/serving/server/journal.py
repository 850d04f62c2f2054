"""What was written to a catalogue, on disk before it is acknowledged, and read by every worker."""

import fcntl
import os
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from twotower.errors import BundleError
from twotower.serving.server.telemetry import LOG

_MAGIC = b"twotower jrnl 2\n"
_HEADER = struct.Struct("<16sQQQ")
_END_AT = _HEADER.size - 8
_FRAME = struct.Struct("<II")  # length and CRC-32 of a record
_LONGEST = 2**30
_AT_ONCE = 1000
"""Items in a record of a journal that is written anew."""


class _Header(NamedTuple):
    """The first bytes of a journal.

    Args:
        generation: How often it was written anew.
        compacted: Where what was written anew ends, and what came since begins.
        end: Where what is on the disk ends: readers read no further.
    """

    generation: int
    compacted: int
    end: int

    def to_bytes(self) -> bytes:
        return _HEADER.pack(_MAGIC, *self)


class _File:
    """An open journal, which another process may put a new one in the place of."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).resolve()  # a link stays, and what it points to is written anew
        self.number = self._opened()

    def _opened(self) -> int:
        try:
            return os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise BundleError(
                f"the journal {str(self.path)!r} cannot be opened: {error.strerror}."
            ) from error

    def reopen(self) -> None:
        """Go on with what lies at the path now; where that fails, with what was open."""
        before, self.number = self.number, self._opened()
        os.close(before)  # and its lock with it

    def close(self) -> None:
        os.close(self.number)

    @property
    def size(self) -> int:
        return os.fstat(self.number).st_size

    def header(self) -> _Header:
        start = os.pread(self.number, _HEADER.size, 0)
        if len(start) < _HEADER.size or not start.startswith(_MAGIC):
            raise BundleError(
                f"{str(self.path)!r} must be a journal, got another file; name another."
            )
        _, generation, compacted, end = _HEADER.unpack(start)
        return _Header(generation, compacted, end)

    def is_replaced(self) -> bool:
        try:
            return self.path.stat().st_ino != os.fstat(self.number).st_ino
        except FileNotFoundError:
            return False

    def records(self, at: int, end: int) -> Iterator[tuple[Any, int]]:
        """Yield records and where each ends; None for one that was acknowledged and is damaged.

        It ends where a record is not whole that nobody was told of, or where lengths make no sense.
        """
        told = self.header().end
        while at + _FRAME.size <= end:
            length, crc = _FRAME.unpack(_whole(self.number, _FRAME.size, at))
            after = at + _FRAME.size + length
            if length > _LONGEST or after > end:
                return
            body = _whole(self.number, length, at + _FRAME.size)
            if zlib.crc32(body) == crc:
                yield orjson.loads(body), after
            elif after <= told:
                LOG.error(
                    "a record of the journal is damaged and was left out",
                    extra={"fields": {"at": at, "bytes": length}},
                )
                yield None, after
            else:
                return
            at = after

    def write(self, data: bytes, at: int) -> int:
        """Write, and return where that ends once it is on the disk."""
        try:
            view = memoryview(data)
            while view:
                at += (done := os.pwrite(self.number, view, at))
                view = view[done:]
            os.fsync(self.number)
        except OSError as error:
            raise BundleError(
                f"the journal {str(self.path)!r} could not be written: {error.strerror}; "
                "nothing was changed."
            ) from error
        return at


class Journal:
    """A file of changes that are only ever added, by one process at a time.

    A record is its length, its CRC-32 and JSON. Where what is on the disk ends stands at the file's
    beginning, so that readers see nothing that a crash could still take back. Whoever writes holds a lock:
    what it finds behind that end, a crash left there; nobody was told that it was written. The lock keeps
    other objects out, not other threads of this one.

    Args:
        path: Of the file, which is made where there is none.

    Raises:
        BundleError: The file is not a journal, or cannot be opened.
    """

    def __init__(self, path: str | Path) -> None:
        self._file = _File(path)
        with self._locked():
            start = os.pread(self._file.number, _HEADER.size, 0)
            is_new = len(start) < _HEADER.size  # or a crash came while it was made
            is_journal = start.startswith(_MAGIC) or (is_new and _MAGIC.startswith(start[:16]))
            if is_journal and is_new:
                os.ftruncate(self._file.number, 0)
                header = _Header(0, _HEADER.size, _HEADER.size)
                self._file.write(header.to_bytes(), 0)
                _sync_folder(self._file.path)
            elif is_journal:
                self._mend()
        if not is_journal:
            self.close()
            raise BundleError(f"{str(path)!r} must be a journal, got another file; name another.")

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def append(self, records: Sequence[Any]) -> None:
        """Add records, and return when they are on the disk.

        Raises:
            BundleError: The disk is full, say; nothing was added then.
        """
        if not records:
            return
        pieces = []
        for record in records:
            body = orjson.dumps(record, default=str)
            pieces.append(_FRAME.pack(len(body), zlib.crc32(body)) + body)
        with self._locked():
            end = self._file.header().end
            if self._file.size != end:
                end = self._mend()
            try:
                after = self._file.write(b"".join(pieces), end)
            except BundleError:
                os.ftruncate(self._file.number, end)
                raise
            self._mark(after)

    def compact(self) -> None:
        """Write the journal anew with the last change of each item; whole, or not at all.

        Raises:
            BundleError: There is no room.
        """
        with self._locked():
            header = self._file.header()
            found, end = [], _HEADER.size
            for record, after in self._file.records(end, header.end):
                found.append(record)
                end = after
            if end != header.end:
                raise BundleError(
                    f"the journal {str(self._file.path)!r} is damaged at byte {end}; "
                    "it stays as it is."
                )
            records = map(orjson.dumps, _last_of_each(found))
            body = b"".join(_FRAME.pack(len(each), zlib.crc32(each)) + each for each in records)
            end = _HEADER.size + len(body)
            fresh = _Header(header.generation + 1, end, end).to_bytes() + body
            path = self._file.path
            temporary = Path(f"{path}.{os.getpid()}")
            try:
                _write_whole(temporary, fresh)
                temporary.replace(path)
                _sync_folder(path)
            except OSError as error:
                raise BundleError(
                    f"the journal {str(path)!r} could not be written anew: {error.strerror}; "
                    "it stays as it is."
                ) from error
            finally:
                temporary.unlink(missing_ok=True)

    def _mend(self) -> int:
        """Leave out what is not whole at the end; return where the rest ends."""
        told, end = self._file.header().end, _HEADER.size
        for _, after in self._file.records(end, self._file.size):
            end = after
        if end < told:
            lost = _whole(self._file.number, self._file.size - end, end)
            copy = f"{self._file.path}.damaged-{end}"
            _write_whole(Path(copy), lost)
            LOG.error(
                "the end of the journal is damaged; it was put aside",
                extra={"fields": {"bytes": told - end, "file": copy}},
            )
        os.ftruncate(self._file.number, end)
        if end != told:
            os.fsync(self._file.number)
            self._mark(end)
        return end

    def _mark(self, end: int) -> None:
        os.pwrite(self._file.number, end.to_bytes(8, "little"), _END_AT)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        fcntl.flock(self._file.number, fcntl.LOCK_EX)
        while self._file.is_replaced():
            self._file.reopen()
            fcntl.flock(self._file.number, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._file.number, fcntl.LOCK_UN)


class JournalReader:
    """Reads what was written to a journal, by whichever process, while it goes on.

    Args:
        path: Of a journal that is there.

    Raises:
        BundleError: It cannot be opened, or is no journal.
    """

    def __init__(self, path: str | Path) -> None:
        self._file = _File(path)
        self._file.header()
        self._read = _HEADER.size

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def has_more(self) -> bool:
        """Return whether something was written that ``more`` has not given yet."""
        return self._file.header().end > self._read or self._file.is_replaced()

    def more(self) -> list[Any]:
        """Return what was written since the last call, by whoever it was, the oldest first.

        A journal that was written anew goes on where that ends; only who missed one that was written anew
        since begins again.
        """
        found = []
        while True:
            is_replaced = self._file.is_replaced()  # whose end is then the last
            header = self._file.header()
            self._read = min(self._read, header.end)  # a damaged end was put aside
            for record, after in self._file.records(self._read, header.end):
                if record is not None:
                    found.append(record)
                self._read = after
            self._read = max(self._read, header.end)  # what cannot be read was told
            if not is_replaced:
                return found
            self._file.reopen()
            fresh = self._file.header()
            is_next = fresh.generation == header.generation + 1
            self._read = fresh.compacted if is_next else _HEADER.size


def _last_of_each(records: Iterable[Any]) -> list[Any]:
    """Return records that change each item once, as the last did."""
    items: dict[str, dict[str, Any] | None] = {}
    column = ""
    for record in records:
        if record is None:  # damaged
            continue
        if "put" in record:
            column = record["column"]
            for line in record["put"]:
                items.pop(str(line[column]), None)
                items[str(line[column])] = line
        for item_id in record.get("delete", ()):
            items.pop(str(item_id), None)
            items[str(item_id)] = None
    gone = [item_id for item_id, line in items.items() if line is None]
    there = [line for line in items.values() if line is not None]
    parts = [there[start : start + _AT_ONCE] for start in range(0, len(there), _AT_ONCE)]
    puts: list[Any] = [{"column": column, "put": part} for part in parts]
    return [{"delete": gone}, *puts] if gone else puts


def _write_whole(path: Path, data: bytes) -> None:
    """Write a file that is on the disk when this returns."""
    with path.open("wb") as opened:
        opened.write(data)
        opened.flush()
        os.fsync(opened.fileno())


def _sync_folder(path: Path) -> None:
    """See that the name of a file is on the disk, too."""
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _whole(file: int, length: int, at: int) -> bytes:
    pieces = []
    while length:
        piece = os.pread(file, length, at)
        if not piece:
            break
        pieces.append(piece)
        length, at = length - len(piece), at + len(piece)
    return b"".join(pieces)
