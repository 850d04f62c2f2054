"""What was written to a catalogue, on disk before it is acknowledged, and read by every worker."""

import fcntl
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson

from twotower.errors import BundleError

_HEADER = b"twotower journal 1\n"
_FRAME = struct.Struct("<II")  # length and CRC-32 of a record
_LONGEST = 2**30
_AT_ONCE = 1000
"""Items in a record of a journal that is written anew."""


class Journal:
    """A file of changes that are only ever added; each process reads what the others wrote.

    A record is its length, its CRC-32 and JSON. Whoever writes holds a lock, so that a record that is not
    whole, found with the lock in hand, is what a crash left: nobody was told that it was written.

    Args:
        path: Of the file, which is made where there is none.

    Raises:
        BundleError: The file is not a journal, or cannot be opened.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._open()
        self._read = len(_HEADER)
        with self._locked():
            start = os.pread(self._file, len(_HEADER), 0)
            is_journal = _HEADER.startswith(start)
            if is_journal and len(start) < len(_HEADER):  # new, or a crash while it was made
                os.ftruncate(self._file, 0)
                self._write(_HEADER, 0)
        if not is_journal:
            self.close()
            raise BundleError(f"{str(path)!r} must be a journal, got another file; name another.")

    def _open(self) -> None:
        try:
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise BundleError(
                f"the journal {str(self.path)!r} cannot be opened: {error.strerror}."
            ) from error

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def has_more(self) -> bool:
        """Return whether something was written that ``more`` has not given yet."""
        return os.fstat(self._file).st_size > self._read or self._is_replaced()

    def more(self) -> list[Any]:
        """Return what was written since the last call, by whoever it was, the oldest first.

        Where the file was written anew, with less to read, that is all of it.
        """
        if self._is_replaced():
            os.close(self._file)
            self._open()
            self._read = len(_HEADER)
        found = []
        for record, end in self._records():
            found.append(record)
            self._read = end
        return found

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Keep the others from writing; inside, ``more`` gives all there is, and ``append`` adds."""
        with self._locked():
            yield

    def append(self, records: Sequence[Any]) -> None:
        """Add records, and return when they are on the disk.

        Only within ``writing``, after ``more``: what lies behind what that gave is what a crash left.

        Raises:
            BundleError: The disk is full, say; nothing was added then.
        """
        pieces = []
        for record in records:
            body = orjson.dumps(record)
            pieces.append(_FRAME.pack(len(body), zlib.crc32(body)) + body)
        os.ftruncate(self._file, self._read)
        try:
            self._read = self._write(b"".join(pieces), self._read)
        except BundleError:
            os.ftruncate(self._file, self._read)
            raise

    def _write(self, data: bytes, at: int) -> int:
        try:
            view = memoryview(data)
            while view:
                at += (done := os.pwrite(self._file, view, at))
                view = view[done:]
            os.fsync(self._file)
        except OSError as error:
            raise BundleError(
                f"the journal {str(self.path)!r} could not be written: {error.strerror}; "
                "nothing was changed."
            ) from error
        return at

    def _records(self) -> Iterator[tuple[Any, int]]:
        size, at = os.fstat(self._file).st_size, self._read
        while at + _FRAME.size <= size:
            length, crc = _FRAME.unpack(os.pread(self._file, _FRAME.size, at))
            end = at + _FRAME.size + length
            if length > _LONGEST or end > size:
                return
            body = _whole(self._file, length, at + _FRAME.size)
            if zlib.crc32(body) != crc:
                return
            yield orjson.loads(body), end
            at = end

    @contextmanager
    def _locked(self) -> Iterator[None]:
        fcntl.flock(self._file, fcntl.LOCK_EX)
        while self._is_replaced():
            os.close(self._file)  # and its lock with it
            self._open()
            self._read = len(_HEADER)
            fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def _is_replaced(self) -> bool:
        try:
            return self.path.stat().st_ino != os.fstat(self._file).st_ino
        except FileNotFoundError:
            return False


def compact(path: str | Path) -> None:
    """Write a journal anew with the last change of each item; whole, or not at all.

    Raises:
        BundleError: It is no journal, or there is no room.
    """
    journal = Journal(path)
    try:
        with journal.writing():
            items: dict[str, dict[str, Any] | None] = {}
            column = ""
            for record in journal.more():
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
            records: list[Any] = [{"delete": gone}] if gone else []
            records += [
                {"column": column, "put": there[start : start + _AT_ONCE]}
                for start in range(0, len(there), _AT_ONCE)
            ]
            temporary = Path(f"{path}.{os.getpid()}")
            try:
                fresh = Journal(temporary)
                with fresh.writing():
                    fresh.append(records)
                fresh.close()
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)
    finally:
        journal.close()


def _whole(file: int, length: int, at: int) -> bytes:
    pieces = []
    while length:
        piece = os.pread(file, length, at)
        if not piece:
            break
        pieces.append(piece)
        length, at = length - len(piece), at + len(piece)
    return b"".join(pieces)
