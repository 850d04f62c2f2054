"""The byte format of a journal: the header, the records, and the search for the next record after damage.

This module opens, locks and writes no file. Decision 0025 gives the reasons for the format.
"""

import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

Read = Callable[[int, int], bytes]
"""Takes a length and a place, and returns the bytes there, or fewer at the end of the file."""

MAGIC = b"twotower jrnl 3\n"
_MAGIC_2 = b"twotower jrnl 2\n"
_HEADER = struct.Struct("<16sQQQQ")
_HEADER_2 = struct.Struct("<16sQQQ")
_CRC = struct.Struct("<I")
_SLOT = _HEADER.size + _CRC.size
SLOTS = (0, 4096)
"""The places of the two copies of the header: no sector of 4,096 bytes holds both."""
START = 8192
"""The place of the first record."""
_MARKER = b"\xff\xfeJ3"  # no text in UTF-8 holds these bytes, so no record's JSON does
_FRAME = struct.Struct("<4sIQI")  # marker, length and number of the record, CRC-32 of its JSON
_LEAD = _FRAME.size + _CRC.size
_FRAME_2 = struct.Struct("<II")  # length and CRC-32
_LONGEST = 2**30
_WINDOW = 2**20
UNKNOWN = 0
"""The generation of a journal if both copies of its header are damaged."""


class Header(NamedTuple):
    """The state of a journal.

    Args:
        generation: Grows by one when the journal is compacted. A journal that is new, or that lost bytes,
            gets a number that no other has.
        compacted: The end of the compacted records, and the start of the records since.
        end: The end of the records that are on the disk. Readers read no further.
        number: The number of the next record.
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
    """A part of a journal: one record, or damaged bytes.

    Args:
        at: Where the part begins.
        after: Where the part ends.
        body: The JSON of the record; None for damaged bytes.
        number: The number of the record; for damaged bytes, the number of their records as far as known.
    """

    at: int
    after: int
    body: bytes | None
    number: int


class Format(NamedTuple):
    """A version of the format.

    Args:
        start: The place of the first record.
        frame: Returns the record at a place, if there is a whole one.
        pattern: Bytes that each record has.
        lead: The offset of these bytes in a record.
    """

    start: int
    frame: Callable[[Read, int, int, int], Piece | None]
    pattern: bytes
    lead: int


def frames_of(bodies: Iterable[bytes], at: int, number: int) -> tuple[bytes, int, int]:
    """Return the bytes of records, where they end, and the number of the next record.

    The checksums cover the places and numbers of the records, so that bytes of another place or time are
    not taken for a record.

    Args:
        bodies: The JSON of each record.
        at: The place of the first record.
        number: The number of the first record.
    """
    frames = []
    for body in bodies:
        head = _FRAME.pack(_MARKER, len(body), number, zlib.crc32(body))
        frames.append(head + _CRC.pack(_crc_of_head(head, at)) + body)
        at, number = at + len(frames[-1]), number + 1
    return b"".join(frames), at, number


def header_of(read: Read) -> Header | None:
    """Return the first whole copy of the header; None if both are damaged."""
    for slot in SLOTS:
        copy = read(_SLOT, slot)
        if len(copy) == _SLOT and copy.startswith(MAGIC):
            (crc,) = _CRC.unpack_from(copy, _HEADER.size)
            if zlib.crc32(copy[: _HEADER.size]) == crc:
                return Header(*_HEADER.unpack_from(copy)[1:])
    return None


def header_of_2(read: Read, size: int) -> Header:
    """Return the header of a journal of version 2, which has no checksum: its numbers are checked."""
    start = read(_HEADER_2.size, 0)
    if len(start) == _HEADER_2.size and start.startswith(_MAGIC_2):
        _, generation, compacted, end = _HEADER_2.unpack(start)
        if FORMAT_2.start <= compacted <= end <= size:
            return Header(generation, compacted, end, 0)
    return Header(UNKNOWN, FORMAT_2.start, size, 0)


def format_of(read: Read, size: int) -> Format | None:
    """Return the format of a journal, however damaged; None if the file is not one."""
    start = read(len(MAGIC), 0)
    if start == _MAGIC_2:
        return FORMAT_2
    if start == MAGIC or header_of(read) is not None:
        return FORMAT_3
    for form in (FORMAT_3, FORMAT_2):
        if next_record(form, read, form.start, size, 0) is not None:
            return form
    # The file has no record. It may still be a journal whose header is damaged, cut or zeroed.
    alike = sum(a == b for a, b in zip(start, MAGIC, strict=False))
    is_begun = MAGIC.startswith(start.rstrip(b"\0")) and _is_zero(read, len(start), size)
    return FORMAT_3 if alike >= len(MAGIC) - 2 or is_begun else None


def pieces(
    form: Format, read: Read, at: int, end: int, number: int = 0, after_last: int = 0
) -> Iterator[Piece]:
    """Yield the records from one place to another, and the damaged parts between them.

    Args:
        form: The format of the file.
        read: Reads the file.
        at: The start of a record.
        end: The end of the last record.
        number: The number of the first record; bytes with a smaller number are not a record.
        after_last: The number of the next record after the last one, if known.
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
    """Return the first whole record that begins at a place or after it."""
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
    # The records of version 2 have no number.
    return Piece(at, after, body, number) if zlib.crc32(body) == crc else None


FORMAT_2 = Format(_HEADER_2.size, _frame_2, b'{"', _FRAME_2.size)
FORMAT_3 = Format(START, _frame_3, _MARKER, 0)


def _crc_of_head(head: bytes, at: int) -> int:
    return zlib.crc32(head + at.to_bytes(8, "little"))


def _is_zero(read: Read, at: int, size: int) -> bool:
    return not any(read(_WINDOW, place).strip(b"\0") for place in range(at, size, _WINDOW))
