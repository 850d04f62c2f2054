"""The bytes of a journal: its header, its records, and how to find the next record after damage.

Nothing here opens, locks or writes a file. Decision 0025 says why the format is what it is.
"""

import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

Read = Callable[[int, int], bytes]
"""Returns so many bytes from so far into a file; fewer where the file ends."""

MAGIC = b"twotower jrnl 3\n"
_MAGIC_2 = b"twotower jrnl 2\n"
_HEADER = struct.Struct("<16sQQQQ")
_HEADER_2 = struct.Struct("<16sQQQ")
_CRC = struct.Struct("<I")
_SLOT = _HEADER.size + _CRC.size
SLOTS = (0, 4096)
"""Where the two copies of the header are: no sector of 4,096 bytes holds both."""
START = 8192
"""Where the first record is."""
_MARKER = b"\xff\xfeJ3"  # no text in UTF-8 holds these bytes, so no record's JSON does
_FRAME = struct.Struct("<4sIQI")  # marker, length and number of the record, CRC-32 of its JSON
_LEAD = _FRAME.size + _CRC.size
_FRAME_2 = struct.Struct("<II")  # length and CRC-32
_LONGEST = 2**30
_WINDOW = 2**20
UNKNOWN = 0
"""Generation of a journal both of whose headers are damaged."""


class Header(NamedTuple):
    """The state of a journal.

    Args:
        generation: Grows by one when the journal is compacted. A journal that is new, or that lost bytes,
            gets a number that no other has.
        compacted: Where the compacted records end, and the records written since begin.
        end: Where the records end that are on the disk. Readers read no further.
        number: Number of the next record.
    """

    generation: int
    compacted: int
    end: int
    number: int

    def to_bytes(self) -> bytes:
        """Return one copy of the header, with its checksum."""
        head = _HEADER.pack(MAGIC, *self)
        return head + _CRC.pack(zlib.crc32(head))


class Piece(NamedTuple):
    """A part of a journal: one record, or bytes in which there is none.

    Args:
        at: Where it begins.
        after: Where it ends.
        body: JSON of the record; None where the bytes are damaged.
        number: Number of the record; of a damaged part, how many records it held, as far as that is known.
    """

    at: int
    after: int
    body: bytes | None
    number: int


class Format(NamedTuple):
    """A version of the format.

    Args:
        start: Where the first record is.
        frame: Returns the record at a place, where a whole one is there.
        pattern: Bytes that each record has.
        lead: How far into a record they are.
    """

    start: int
    frame: Callable[[Read, int, int, int], Piece | None]
    pattern: bytes
    lead: int


def frames_of(bodies: Iterable[bytes], at: int, number: int) -> tuple[bytes, int, int]:
    """Return records as a journal has them, where they end, and the number of the next.

    Their checksums cover where they are and their numbers, so that bytes of another place or time are no
    record.

    Args:
        bodies: JSON of each.
        at: Where the first will be.
        number: Of the first.
    """
    frames = []
    for body in bodies:
        head = _FRAME.pack(_MARKER, len(body), number, zlib.crc32(body))
        frames.append(head + _CRC.pack(_crc_of_head(head, at)) + body)
        at, number = at + len(frames[-1]), number + 1
    return b"".join(frames), at, number


def header_of(read: Read) -> Header | None:
    """Return the first whole copy of the header; None where both are damaged."""
    for slot in SLOTS:
        copy = read(_SLOT, slot)
        if len(copy) == _SLOT and copy.startswith(MAGIC):
            (crc,) = _CRC.unpack_from(copy, _HEADER.size)
            if zlib.crc32(copy[: _HEADER.size]) == crc:
                return Header(*_HEADER.unpack_from(copy)[1:])
    return None


def header_of_2(read: Read, size: int) -> Header:
    """Return the header of a journal of version 2, which has no checksum: what it says is checked."""
    start = read(_HEADER_2.size, 0)
    if len(start) == _HEADER_2.size and start.startswith(_MAGIC_2):
        _, generation, compacted, end = _HEADER_2.unpack(start)
        if FORMAT_2.start <= compacted <= end <= size:
            return Header(generation, compacted, end, 0)
    return Header(UNKNOWN, FORMAT_2.start, size, 0)


def format_of(read: Read, size: int) -> Format | None:
    """Return the format of a file, however damaged; None where it is no journal."""
    start = read(len(MAGIC), 0)
    if start == _MAGIC_2:
        return FORMAT_2
    if start == MAGIC or header_of(read) is not None:
        return FORMAT_3
    for form in (FORMAT_3, FORMAT_2):
        if next_record(form, read, form.start, size, 0) is not None:
            return form
    # What is left has no record: a header that is damaged, cut or zeroed.
    alike = sum(a == b for a, b in zip(start, MAGIC, strict=False))
    is_begun = MAGIC.startswith(start.rstrip(b"\0")) and _is_zero(read, len(start), size)
    return FORMAT_3 if alike >= len(MAGIC) - 2 or is_begun else None


def pieces(
    form: Format, read: Read, at: int, end: int, number: int = 0, after_last: int = 0
) -> Iterator[Piece]:
    """Yield the records from one place to another, and what is damaged between them.

    Args:
        form: Format of the file.
        read: See ``Read``.
        at: Where a record begins.
        end: Where the last one ends.
        number: Of the first record; a record of a smaller number is none.
        after_last: Number of the record behind the last, where that is known.
    """
    while at < end:
        found = form.frame(read, at, end, number)
        if found is None:
            found = next_record(form, read, at + 1, end, number)
            after, upto = (end, after_last) if found is None else (found.at, found.number)
            yield Piece(at, after, None, max(0, upto - number))
            if found is None:
                return
        yield found
        at, number = found.after, found.number + 1


def next_record(form: Format, read: Read, at: int, end: int, number: int) -> Piece | None:
    """Return the first whole record that begins at a place or behind it."""
    at += form.lead
    while at < end:
        window = read(min(_WINDOW, end - at), at)
        place = window.find(form.pattern)
        while place >= 0:
            found = form.frame(read, at + place - form.lead, end, number)
            if found is not None:
                return found
            place = window.find(form.pattern, place + 1)
        if len(window) < len(form.pattern):
            return None
        at += len(window) - len(form.pattern) + 1
    return None


def _frame_3(read: Read, at: int, end: int, number: int) -> Piece | None:
    head = read(_LEAD, at)
    if len(head) < _LEAD or not head.startswith(_MARKER):
        return None
    (crc,) = _CRC.unpack_from(head, _FRAME.size)
    if crc != _crc_of_head(head[: _FRAME.size], at):
        return None
    _, length, found, crc = _FRAME.unpack_from(head)
    after = at + _LEAD + length
    if not 0 < length <= _LONGEST or after > end or found < number:
        return None
    body = read(length, at + _LEAD)
    return Piece(at, after, body, found) if zlib.crc32(body) == crc else None


def _frame_2(read: Read, at: int, end: int, number: int) -> Piece | None:
    head = read(_FRAME_2.size, at)
    if len(head) < _FRAME_2.size:
        return None
    length, crc = _FRAME_2.unpack(head)
    after = at + _FRAME_2.size + length
    if not 0 < length <= _LONGEST or after > end or read(1, after - 1) != b"}":
        return None
    body = read(length, at + _FRAME_2.size)
    # The records of version 2 bear no number.
    return Piece(at, after, body, number) if zlib.crc32(body) == crc else None


FORMAT_2 = Format(_HEADER_2.size, _frame_2, b'{"', _FRAME_2.size)
FORMAT_3 = Format(START, _frame_3, _MARKER, 0)


def _crc_of_head(head: bytes, at: int) -> int:
    return zlib.crc32(head + at.to_bytes(8, "little"))


def _is_zero(read: Read, at: int, size: int) -> bool:
    while at < size:
        window = read(_WINDOW, at)
        if not window:
            return True
        if window.strip(b"\0"):
            return False
        at += len(window)
    return True
