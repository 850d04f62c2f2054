"""``prepare_folder()``: tables of any size -> a folder of sorted events."""

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from shlex import quote
from typing import Any, Unpack

import numpy as np
import numpy.typing as npt
import polars as pl
from polars.exceptions import PolarsError

from twotower.caller import argument
from twotower.config import Config, DataConfig, FeaturesConfig
from twotower.data.assembly import (
    check_catalogue,
    check_positives,
    check_shared,
    order_of,
    side_table,
)
from twotower.data.columns import Role
from twotower.data.event_reader import EventBlock, EventReader, check_rows
from twotower.data.input_files import (
    BLOCK_BYTES,
    BLOCK_CELLS,
    MANIFEST,
    SCHEMA,
    blocks_of,
    check_columns,
    digest_of,
    files_of,
    is_prepared,
    read_files,
    schema_of,
)
from twotower.data.positions import unstated_position
from twotower.data.prepared.manifest import (
    FORMAT,
    Manifest,
    Partition,
    Source,
    check_settings,
    digests_of,
    read_manifest,
    write_manifest,
)
from twotower.data.prepared.pieces import all_ids, merge_pieces, piece_of, write_piece
from twotower.data.refusal import after_rows
from twotower.data.split_files import PARTS, check_names
from twotower.data.tables import Table, read_table, reading
from twotower.data.unused import unstated_kinds, unused_columns
from twotower.dataclass_trees import plain
from twotower.errors import ConfigError, DataError
from twotower.keywords import Keywords, configured, takes_keywords
from twotower.paths import check_folder_of, check_new_name, reason_of
from twotower.table_files import TableFile, types_of_keys
from twotower.version import __version__
from twotower.vocab import Vocabulary

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]

NO_ID = "without an id"
"""Why a row is left out."""
SAMPLE_ROWS = 1 << 20
"""Rows, at least, that decide how the columns are read: the first of the table."""
_LOCK = "lock"
_WHAT = {"query": "queries", "item": "items"}
"""How messages name the table of a side."""
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Prepared:
    """What a prepared folder holds.

    Args:
        path: The folder; None after a check, which writes nothing.
        manifest: How the table is read, and what was read.
        is_changed: Whether this call added anything.
    """

    path: Path | None
    manifest: Manifest
    is_changed: bool = True

    @property
    def num_events(self) -> int:
        """Number of events in all partitions."""
        return sum(partition.events for partition in self.manifest.partitions)

    def told(self) -> list[str]:
        """Return what was read and written, in sentences."""
        if self.path is not None and not self.is_changed:
            return [f"{self.path} holds these files already; nothing was changed."]
        last = self.manifest.partitions[-1]
        left_out = [f"{count:,} rows left out, {why}" for why, count in last.left_out.items()]
        files = "1 file" if len(last.files) == 1 else f"{len(last.files):,} files"
        said = ", ".join([f"{last.rows:,} rows of {files}", *left_out])
        sides = f"{last.num_queries:,} queries and {last.num_items:,} items"
        sentences = [
            f"{said}: {last.events:,} events.",
            f"There are {sides}, those without events included.",
        ]
        if self.path is not None and len(self.manifest.partitions) > 1:
            sentences.append(f"{self.path} now holds {self.num_events:,} events.")
        if self.path is None:
            sentences.append("Nothing was written.")
        else:
            sentences.append(
                f"Next: twotower train --interactions {quote(str(self.path))} --out model"
            )
        return sentences

    def as_json(self) -> dict[str, Any]:
        """Return the counts for a program."""
        last = self.manifest.partitions[-1]
        return {
            "path": None if self.path is None else str(self.path),
            "is_changed": self.is_changed,
            "rows": last.rows,
            "events": last.events,
            "left_out": dict(last.left_out),
            "queries": last.num_queries,
            "items": last.num_items,
            "files": [{"path": each.path, "rows": each.rows} for each in last.files],
            "events_in_all": self.num_events,
        }


@dataclass
class _Counts:
    """What the pieces of a call hold."""

    rows: dict[str, int] = field(default_factory=dict)
    events: int = 0
    positives: int = 0
    kinds: set[str] = field(default_factory=set)
    left_out: Counter[str] = field(default_factory=Counter)

    def add(self, file: str, told: Mapping[str, Any]) -> None:
        """Count one block of a file."""
        self.rows[file] = self.rows.get(file, 0) + told["rows"]
        self.events += told["events"]
        self.positives += told["positives"]
        self.kinds |= set(told["kinds"])
        if told["rows"] > told["events"]:
            self.left_out[NO_ID] += told["rows"] - told["events"]


@takes_keywords
def prepare_folder(
    interactions: str | Path | Mapping[str, str | Path],
    *,
    items: Table | None = None,
    queries: Table | None = None,
    out: str | Path | None,
    append: bool = False,
    config: Config | Mapping[str, object] | str | Path | None = None,
    tell: Tell = lambda _: None,
    **keywords: Unpack[Keywords],
) -> Prepared:
    """Write a prepared folder, or add a partition to one; ``train`` takes it in place of tables.

    It needs memory for a block of rows, and for the ids of all queries and items. A call that was killed
    goes on where it was when it is repeated.

    Args:
        interactions: A file, a folder, a glob pattern or an address in an object store; or a mapping of
            ``train``, ``test`` and perhaps ``valid`` to such, as ``train`` takes it. CSV and JSON are read
            whole, one file at a time.
        items: The items' table.
        queries: The queries' table.
        out: The folder. None reads all tables and writes nothing.
        append: Whether to add to a folder that exists. Files that it holds already are passed over.
        config: Settings; ``[data]`` says which column is what, and ``append`` takes what the folder was
            prepared with.
        tell: Is told how it goes.
        **keywords: Single settings; see ``keywords.Keywords``.

    Raises:
        DataError: A table cannot be used; the first bad row is named. Or the folder cannot be written, and
            nothing is left behind.
        ConfigError: ``out`` is there already, or is no prepared folder to be added to.
    """
    settings = configured(config, **keywords)
    given = _Given(interactions, items, queries, settings.data, settings.features)
    if out is None:
        if append:
            raise ConfigError(
                f"{argument('append')} must go with {argument('out')}, got no folder; name it."
            )
        return _Call.of(given, None).check(tell)
    place = Path(os.path.realpath(Path(out).expanduser()))
    check_new_name(place)
    if not append and not is_prepared(place):
        _check_new(place, interactions)
    with _working(place, append=append) as work:
        before = _before(place) if append else None
        call = _Call.of(given, before)
        if is_prepared(place) and not append:
            known = read_manifest(place)
            if [each.task for each in known.partitions] == [call.task]:
                return Prepared(Path(out), known, is_changed=False)
            _check_new(place, interactions)
        if before is not None and not call.files:
            if items is not None or queries is not None:
                raise ConfigError(
                    f"{argument('append')} must add events beside tables of items and queries, got none "
                    f"that '{out}' does not hold; give a new file of events, or prepare the folder anew."
                )
            return Prepared(Path(out), before, is_changed=False)
        work.begin(call.task)
        manifest = call.run(place, work.path, tell)
        return Prepared(Path(out), manifest, is_changed=manifest != before)


@dataclass(frozen=True)
class _Given:
    """The tables of a call, and how they are to be read."""

    interactions: str | Path | Mapping[str, str | Path]
    items: Table | None
    queries: Table | None
    config: DataConfig
    features: FeaturesConfig

    @property
    def sides(self) -> dict[str, Table]:
        """The tables of sides that are given."""
        tables = {"query": self.queries, "item": self.items}
        return {side: table for side, table in tables.items() if table is not None}


@dataclass(frozen=True)
class _Input:
    """A file that is read."""

    file: TableFile
    part: str | None
    digest: str
    stamp: tuple[int, int] | None

    @classmethod
    def of(cls, file: TableFile, part: str | None) -> "_Input":
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


@dataclass(frozen=True)
class _Call:
    """One call: what it reads, and how."""

    given: _Given
    files: tuple[_Input, ...]
    manifest: Manifest
    is_append: bool
    task: str

    @classmethod
    def of(cls, given: _Given, before: Manifest | None) -> "_Call":
        """Return what there is to do.

        Raises:
            DataError: A file cannot be read, or one changed since it was prepared.
            ConfigError: A setting does not go with the folder, or with any prepared folder.
        """
        config = given.config
        if config.impressions_column is not None:
            raise ConfigError(
                "data.impressions_column must not be set for a prepared folder, got "
                f"{config.impressions_column!r}; train on the table itself."
            )
        found = _files_of(given.interactions)
        if before is not None:
            check_settings(config, before)
            _check_alike(found, before)
        inputs = tuple(_Input.of(file, part) for file, part in found)
        if before is not None:
            inputs = _new_ones(inputs, before)
        manifest = before or _understood(found, config, given.features)
        told = {
            "version": [FORMAT, __version__, BLOCK_CELLS, BLOCK_BYTES],
            "files": [each.as_source(0).identity for each in inputs],
            "data": plain(manifest.reader.config),
            "features": plain(given.features),
            "sides": {side: _digest_of(table, _WHAT[side]) for side, table in given.sides.items()},
            "before": "" if before is None else before.key,
        }
        task = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
        return cls(given, inputs, manifest, before is not None, task)

    def blocks(
        self, tell: Tell, start_of: Callable[[int], int]
    ) -> Iterator[tuple[_Input, str, EventBlock, dict[str, Any]]]:
        """Yield blocks of events: their file, the name of their piece, the events, and their counts.

        Args:
            tell: Is told of each file.
            start_of: Number of blocks of a file that are done.
        """
        for number, each in enumerate(self.files):
            tell(f"{number + 1} of {len(self.files)}: {each.file.path}")
            first = start_of(number)
            blocks = blocks_of(each.file, dict(self.manifest.key_types), start=first)
            for place, (start, frame) in enumerate(blocks, start=first):
                if len(frame):
                    block = self._read(each, start, frame)
                    yield each, f"{number:05}-{place:05}", block, self._counts_of(block)
            each.check_unchanged()

    def _read(self, each: _Input, start: int, frame: pl.DataFrame) -> EventBlock:
        """Return the events of a block of rows.

        Raises:
            DataError: A row cannot be used; its file and number are named.
        """
        reader, path = self.manifest.reader, each.file.path
        position = reader.config.position_column
        if (
            each.part not in (None, "train")
            and position is not None
            and position not in frame.columns
        ):
            dtype = self.manifest.schema[position]
            frame = frame.with_columns(pl.lit(None, dtype).alias(position))
        frame = check_columns(frame, self.manifest.schema, path)
        is_learnt = None if each.part is None else np.full(len(frame), each.part == "train")
        try:
            with after_rows(start):
                return reader.read(frame, is_learnt=is_learnt, is_block=True)
        except DataError as error:
            raise DataError(f"{path!r}: {error}") from error

    def _counts_of(self, block: EventBlock) -> dict[str, Any]:
        kind = self.manifest.reader.roles.event
        kinds = [] if kind is None else block.frame[kind].cast(pl.String).unique().to_list()
        is_positive = (
            np.ones(len(block.frame), np.bool_) if block.labels is None else block.labels > 0
        )
        if block.is_target is not None:
            is_positive &= block.is_target
        return {
            "rows": len(block.is_kept),
            "events": len(block.frame),
            "positives": int(is_positive.sum()),
            "kinds": kinds,
        }

    def check(self, tell: Tell) -> Prepared:
        """Read everything, and write nothing.

        Args:
            tell: Is told how it goes.
        """
        own = self._own_ids()
        counts, ids = _Counts(), {"query": _no_ids(), "item": _no_ids()}
        for each, _, block, told in self.blocks(tell, lambda _: 0):
            counts.add(each.file.path, told)
            for side, found in (("query", block.query_ids), ("item", block.item_ids)):
                ids[side] = _together([ids[side], found.rename("id").unique()])
        self._check_shared(own, ids)
        num = {side: len(_together([seen, *own[side]])) for side, seen in ids.items()}
        return Prepared(None, self._finished(counts, num, "0000"), is_changed=False)

    def run(self, out: Path, work: Path, tell: Tell) -> Manifest:
        """Do the work, put its result in its place, and return the new manifest.

        Args:
            out: The folder.
            work: Where what is done is kept until all is.
            tell: Is told how it goes.
        """
        manifest, roles = self.manifest, self.manifest.reader.roles
        own = self._own_ids()
        pieces = work / "pieces"
        pieces.mkdir(exist_ok=True)
        counts = _Counts()

        def done(number: int) -> int:
            return len(list(pieces.glob(f"{number:05}-?????")))

        for number, each in enumerate(self.files):
            for place in range(done(number)):
                folder = pieces / f"{number:05}-{place:05}"
                counts.add(each.file.path, json.loads((folder / "counts.json").read_text("utf-8")))
        for each, name, block, told in self.blocks(tell, done):
            given = self._given(each.part, len(block.frame))
            piece = piece_of(block, given, (roles.query, roles.item), by_time=manifest.by_time)
            write_piece(piece, new := pieces / "writing")
            (new / "counts.json").write_text(json.dumps(told), encoding="utf-8")
            new.rename(pieces / name)
            counts.add(each.file.path, told)
        if self.is_append and not counts.rows:
            return manifest  # files without a row
        check_rows(counts.events, sum(counts.rows.values()))
        tell("sorting")
        folders = sorted(pieces.glob("?????-?????"))
        partition = work / f"{len(manifest.partitions):04}"
        shutil.rmtree(partition, ignore_errors=True)  # half of a merge that was killed
        first = out / manifest.partitions[0].name if self.is_append else None
        ids = {side: _vocabulary(folders, side, own[side], first) for side in ("query", "item")}
        if not self.is_append:
            self._check_shared(own, {side: all_ids(folders, side) for side in own})
        num = {side: len(vocabulary) for side, vocabulary in ids.items()}
        finished = self._finished(counts, num, partition.name)
        merge_pieces(folders, ids["query"], ids["item"], partition, by_time=manifest.by_time)
        for side, table in self.given.sides.items():
            frame = read_files(table, what=_WHAT[side])
            frame.write_parquet(partition / f"{side}_table.parquet")
        files = digests_of(partition, work)
        if self.is_append:
            _add(partition, out, replace(finished, files={**manifest.files, **files}))
        else:
            new = work / "new"
            shutil.rmtree(new, ignore_errors=True)
            new.mkdir()
            pl.DataFrame(schema=manifest.schema).write_parquet(new / SCHEMA)
            files |= digests_of(new, new)
            partition.rename(new / partition.name)
            write_manifest(replace(finished, files=files), new)
            new.rename(out)
        return read_manifest(out)

    @staticmethod
    def _given(part: str | None, num: int) -> dict[str, npt.NDArray[Any]]:
        """Return the parts that a file gives its events."""
        if part is None:
            return {}
        return {
            "parts": np.full(num, PARTS[part], np.uint8),
            "is_session": np.full(num, part.endswith("_sessions")),
        }

    def _own_ids(self) -> dict[str, list[pl.Series]]:
        """Return the ids of each side's table, which is checked before the events are read."""
        reader = self.manifest.reader
        own: dict[str, list[pl.Series]] = {}
        for side, role in (("query", Role.QUERY), ("item", Role.ITEM)):
            own[side] = []
            if side in self.given.sides:
                column = getattr(reader.roles, side)
                table = self.given.sides[side]
                found = side_table(table, column, role, reader.config, self.given.features)
                own[side].append(found.ids)
        return own

    def _check_shared(
        self, own: Mapping[str, Sequence[pl.Series]], seen: Mapping[str, pl.Series]
    ) -> None:
        """Refuse a table of a side that has no id of the events.

        Raises:
            DataError: One has none.
        """
        for side, tables in own.items():
            for ids in tables:
                check_shared(
                    ids, seen[side], _WHAT[side], getattr(self.manifest.reader.roles, side)
                )

    def _finished(self, counts: _Counts, num: Mapping[str, int], name: str) -> Manifest:
        """Return the manifest with what was read.

        Raises:
            DataError: The table cannot be learnt from.
        """
        manifest, reader = self.manifest, self.manifest.reader
        check_rows(counts.events, sum(counts.rows.values()))
        if not self.is_append:
            reader.check_targets(counts.kinds)
            check_positives(counts.positives, counts.events, reader)
            check_catalogue(num["item"])
        partition = Partition(
            name=name,
            task=self.task,
            files=tuple(each.as_source(counts.rows.get(each.file.path, 0)) for each in self.files),
            rows=sum(counts.rows.values()),
            events=counts.events,
            left_out=dict(counts.left_out),
            kinds=tuple(sorted(counts.kinds)),
            sides=tuple(self.given.sides),
            num_queries=num["query"],
            num_items=num["item"],
        )
        return replace(manifest, partitions=(*manifest.partitions, partition))


def _add(partition: Path, out: Path, manifest: Manifest) -> None:
    """Move a new partition into its folder, and name it in the manifest.

    Raises:
        OSError: That cannot be written; the folder is as it was.
    """
    place = out / partition.name
    shutil.rmtree(place, ignore_errors=True)  # of a call that was killed before it was named
    try:
        partition.rename(place)
        write_manifest(manifest, out)
    except OSError:
        shutil.rmtree(place, ignore_errors=True)
        (out / f"{MANIFEST}.writing").unlink(missing_ok=True)
        raise


def _no_ids() -> pl.Series:
    return pl.Series("id", [], pl.Null)


def _together(columns: Sequence[pl.Series]) -> pl.Series:
    """Return the distinct ids of several columns; as strings where they differ in type."""
    columns = [column for column in columns if len(column)]
    if not columns:
        return _no_ids()
    if len({column.dtype for column in columns}) > 1:
        columns = [column.cast(pl.String) for column in columns]
    return pl.concat(column.rename("id") for column in columns).unique()


def _vocabulary(
    folders: Sequence[Path], side: str, own: Sequence[pl.Series], first: Path | None
) -> Vocabulary:
    """Return the ids of pieces and of a side's table, sorted.

    Args:
        folders: Of the pieces.
        side: ``query`` or ``item``.
        own: The ids of the table, if there is one.
        first: Of the first partition, whose type of ids all have; None where this is it.

    Raises:
        DataError: An id cannot be written in that type.
    """
    types = {ids.dtype for ids in own}
    types |= {pl.read_parquet_schema(folder / f"{side}_ids.parquet")["id"] for folder in folders}
    wanted = types.pop() if len(types) == 1 else pl.String()
    if first is not None:
        wanted = pl.read_parquet_schema(first / f"{side}_ids.parquet")["id"]
    if not types and all(ids.dtype == wanted for ids in own):
        found = all_ids(folders, side, own)
        if found.dtype == wanted:
            return Vocabulary(found)
    else:
        found = _together([all_ids(folders, side), *own])
    cast = found.cast(wanted, strict=False)
    if cast.null_count():
        bad = found.filter(cast.is_null())[0]
        raise DataError(
            f"ids of {_WHAT[side]} must be of the type {wanted} as in the prepared folder, got {bad!r}; "
            "write them alike, or prepare all files anew."
        )
    return Vocabulary(cast.unique().sort())


def _files_of(
    interactions: str | Path | Mapping[str, str | Path],
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


def _check_alike(found: Sequence[tuple[TableFile, str | None]], before: Manifest) -> None:
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


def _understood(
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


def _new_ones(inputs: Sequence[_Input], before: Manifest) -> tuple[_Input, ...]:
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


def _digest_of(table: Table, what: str) -> str:
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


def _before(out: Path) -> Manifest:
    if not is_prepared(out):
        raise ConfigError(
            f"{argument('append')} must go with a prepared folder, got '{out}'; prepare one first."
        )
    return read_manifest(out)


def _check_new(out: Path, interactions: str | Path | Mapping[str, str | Path]) -> None:
    if out.exists():
        raise ConfigError(
            f"{argument('out')} must be new, got '{out}', which is there; remove it, name another folder, "
            f"or pass {argument('append')}."
        )
    check_folder_of(out)
    given = interactions.values() if isinstance(interactions, Mapping) else (interactions,)
    for each in given:
        if isinstance(each, str | Path) and Path(os.path.realpath(each)) in out.parents:
            raise ConfigError(
                f"{argument('out')} must be outside the folder of events, got '{out}'; name another."
            )


@dataclass(frozen=True)
class _Work:
    """The folder ``OUT.preparing``, which this process holds.

    Args:
        path: Where it is.
    """

    path: Path

    def begin(self, task: str) -> None:
        """Keep what an equal call that was killed had done, and remove anything else."""
        file = self.path / "task"
        if not file.is_file() or file.read_text(encoding="utf-8") != task:
            for entry in self.path.iterdir():
                if entry.name != _LOCK:
                    shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
            file.write_text(task, encoding="utf-8")
        shutil.rmtree(self.path / "pieces" / "writing", ignore_errors=True)


@contextmanager
def _working(out: Path, *, append: bool) -> Iterator[_Work]:
    """Give the folder ``OUT.preparing``, which is removed unless the process is killed.

    Raises:
        ConfigError: Another process works there, or somebody else's folder has that name.
        DataError: Something cannot be written.
    """
    work = out.with_name(f"{out.name}.preparing")
    lock = None
    try:
        is_new = not work.exists()
        if work.is_symlink() or (not is_new and not (work / _LOCK).is_file()):
            raise ConfigError(
                f"{argument('out')} must leave the name {work.name!r} free, got '{work}', which is not "
                "ours; rename it, or name another folder."
            )
        work.mkdir(exist_ok=True)
        lock = _locked(work / _LOCK, out)
        yield _Work(work)
    except ConfigError:
        if lock is not None and is_new:
            shutil.rmtree(work, ignore_errors=True)
        raise
    except (OSError, PolarsError) as error:
        shutil.rmtree(work, ignore_errors=True)
        left = "it is as it was" if append else "nothing was left behind"
        raise DataError(
            f"the prepared folder '{out}' could not be written: {reason_of(error)}; free some space or "
            f"choose another {argument('out')}; {left}."
        ) from error
    except DataError:
        shutil.rmtree(work, ignore_errors=True)
        raise
    else:
        shutil.rmtree(work, ignore_errors=True)
    finally:
        if lock is not None:
            os.close(lock)


def _locked(file: Path, out: Path) -> int:
    """Return the descriptor of a lock file, which is held.

    Raises:
        ConfigError: Another process holds it.
    """
    lock = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
    if fcntl is None:
        return lock
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        is_ours = os.path.samestat(os.fstat(lock), file.stat())
    except OSError:
        is_ours = False  # held, or removed by the process that held it
    if not is_ours:
        os.close(lock)
        raise ConfigError(
            f"{argument('out')} must be written by one process, got '{out}', which another is preparing; "
            "wait for it."
        )
    return lock
