"""The files of a call that prepares: which are new, and how their columns are read."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from twotower.config import DataConfig, FeaturesConfig
from twotower.data.assembly import order_of
from twotower.data.event_reader import EventReader
from twotower.data.input_files import blocks_of, check_columns, digest_of, files_of, schema_of
from twotower.data.positions import unstated_position
from twotower.data.prepared.manifest import Manifest, Source
from twotower.data.split_files import PARTS, check_names
from twotower.data.tables import Table, read_table, reading
from twotower.data.unused import unstated_kinds, unused_columns
from twotower.errors import DataError
from twotower.table_files import TableFile, types_of_keys

SAMPLE_ROWS = 1 << 20
"""Rows, at least, that decide how the columns are read: the first of the table."""
Events = str | Path | Mapping[str, str | Path]
"""Paths of the interactions: of one table, or of those that give the parts."""


@dataclass(frozen=True)
class Input:
    """A file that is read.

    Args:
        file: The file.
        part: The part that it gives, such as ``train``; None where the split is drawn later.
        digest: SHA-256 of what it holds.
        stamp: Its size and when it was changed; None in an object store.
    """

    file: TableFile
    part: str | None
    digest: str
    stamp: tuple[int, int] | None

    @classmethod
    def of(cls, file: TableFile, part: str | None) -> "Input":
        """Return a file with the digest of what it holds now."""
        stamp = _stamp(file)
        return cls(file, part, digest_of(file), stamp)

    def as_source(self, rows: int) -> Source:
        """Return what the manifest keeps of it."""
        path = self.file.path if self.file.is_remote else os.path.realpath(self.file.path)
        return Source(path, self.digest, rows, self.part, self.file.keys)

    def check_unchanged(self) -> None:
        """Refuse a file that somebody wrote to since its digest was taken.

        Raises:
            DataError: It changed.
        """
        if _stamp(self.file) != self.stamp:
            raise DataError(
                f"{self.file.path!r} must not change while it is read; prepare it when it is complete."
            )


def _stamp(file: TableFile) -> tuple[int, int] | None:
    if file.is_remote:
        return None
    with reading(f"interactions {file.path!r}", Path(file.path)):
        about = Path(file.path).stat()
    return about.st_size, about.st_mtime_ns


def input_files(
    interactions: Events,
) -> list[tuple[TableFile, str | None]]:
    """Return all files, each with the part that it gives, in the order of the parts."""
    if not isinstance(interactions, Mapping):
        _check_path(interactions, "interactions")
        return [(file, None) for file in files_of(interactions)]
    check_names(interactions)
    found: list[tuple[TableFile, str | None]] = []
    for name in (name for name in PARTS if name in interactions):
        _check_path(interactions[name], name)
        found += [(file, name) for file in files_of(interactions[name], what=name)]
    return found


def _check_path(source: object, what: str) -> None:
    if not isinstance(source, str | Path):
        raise DataError(
            f"{what} must be a path to be prepared, got {type(source).__name__}; write it to a file, or "
            "train on it as it is."
        )


def check_alike(found: Sequence[tuple[TableFile, str | None]], before: Manifest) -> None:
    """Refuse files that cannot be added to a folder.

    Raises:
        DataError: They give parts and the folder has none, or the reverse; or their folders have other
            keys.
    """
    gives_parts = any(part is not None for _, part in found)
    if gives_parts != before.is_split:
        said = ("files of train and test", "a table without parts")
        raise DataError(
            f"the files must be {said[not before.is_split]} as those of the prepared folder, got "
            f"{said[not gives_parts]}; prepare all files anew."
        )
    for file, _ in found:
        if set(file.keys) != set(before.key_types):
            raise DataError(
                f"{file.path!r} must lie in folders with the keys of the prepared folder, "
                f"{', '.join(before.key_types) or 'none'}, got {', '.join(file.keys) or 'none'}; move it."
            )


def understood(
    found: Sequence[tuple[TableFile, str | None]], config: DataConfig, features: FeaturesConfig
) -> Manifest:
    """Return how the table is read, by its first rows.

    Raises:
        DataError: It cannot be read.
    """
    types = types_of_keys([file for file, _ in found])
    frames: list[pl.DataFrame] = []
    paths: list[str] = []
    blocks = ((file.path, frame) for file, _ in found for _, frame in blocks_of(file, types))
    while sum(map(len, frames)) < SAMPLE_ROWS:
        path, frame = next(blocks, ("", None))
        if frame is None:
            break
        if len(frame):
            frames.append(frame)
            paths.append(path)
    if not frames:
        raise DataError("interactions must hold rows, got files without any; check the path.")
    schema = schema_of(frames)
    position = config.position_column
    for place, frame in enumerate(frames):  # of files of a test, which need not have positions
        if position is not None and position in schema and position not in frame.columns:
            frames[place] = frame.with_columns(pl.lit(None, schema[position]).alias(position))
    first = pl.concat(
        check_columns(frame, schema, path) for path, frame in zip(paths, frames, strict=True)
    )
    reader = EventReader.of(first, config)
    unused = unused_columns(first, reader.roles, read=features.event)
    has_sessions = any(part is not None and part.endswith("_sessions") for _, part in found)
    has_times = reader.roles.time is not None
    ordered, by_time = order_of(config, has_times=has_times, has_sessions=has_sessions)
    return Manifest(
        reader=reader,
        schema=schema,
        key_types=types,
        by_time=by_time and has_times,
        ordered=ordered,
        unused=unused,
        notes=(*unstated_kinds(first, unused), *unstated_position(first, reader.roles)),
        sample=len(first),
    )


def new_ones(inputs: Sequence[Input], before: Manifest) -> tuple[Input, ...]:
    """Return the files that a folder does not hold.

    Raises:
        DataError: A file of the same path has other bytes now.
    """
    known = [source for part in before.partitions for source in part.files]
    identities = {source.identity for source in known}
    by_path = {source.path: source.sha256 for source in known}
    for each in inputs:
        source = each.as_source(0)
        if by_path.get(source.path, source.sha256) != source.sha256:
            raise DataError(
                f"{each.file.path!r} must be as it was when it was prepared, got other bytes; what is "
                "there cannot be taken back: prepare all files anew."
            )
    return tuple(each for each in inputs if each.as_source(0).identity not in identities)


def digest_of_table(table: Table, what: str) -> str:
    """Return a digest of what a side's table holds.

    Raises:
        DataError: It cannot be read.
    """
    if isinstance(table, str | Path):
        digests = [digest_of(file, what) for file in files_of(table, what=what)]
        return hashlib.sha256("".join(digests).encode()).hexdigest()
    frame = read_table(table, what=what)
    mixed = [name for name, dtype in frame.schema.items() if dtype == pl.Object]
    if mixed:
        raise DataError(
            f"{what} must have values of one type in {mixed[0]!r}, got Python objects; write text."
        )
    told = frame.write_ipc(None, compat_level=pl.CompatLevel.oldest()).getvalue()
    return hashlib.sha256(told).hexdigest()
