"""One call that prepares: reads the tables by blocks, sorts them, and puts the result in its place."""

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
from polars.exceptions import PolarsError

from twotower.config import DataConfig, FeaturesConfig
from twotower.data.assembly import check_catalogue, check_positives, check_shared, side_table
from twotower.data.columns import Role
from twotower.data.event_reader import EventBlock, check_rows
from twotower.data.input_files import (
    BLOCK_BYTES,
    BLOCK_CELLS,
    MANIFEST,
    SCHEMA,
    blocks_of,
    check_columns,
    read_files,
)
from twotower.data.prepared.inputs import (
    Events,
    Input,
    check_alike,
    digest_of_table,
    input_files,
    new_ones,
    understood,
)
from twotower.data.prepared.manifest import (
    FORMAT,
    Manifest,
    Partition,
    check_settings,
    digests_of,
    read_manifest,
    write_manifest,
)
from twotower.data.prepared.pieces import all_ids, in_order, merge_pieces, piece_of, write_piece
from twotower.data.refusal import after_rows
from twotower.data.split_files import PARTS
from twotower.data.tables import Table
from twotower.dataclass_trees import plain
from twotower.errors import ConfigError, DataError
from twotower.version import __version__
from twotower.vocab import Vocabulary

NO_ID = "without an id"
"""Why a row is left out."""
_WHAT = {"query": "queries", "item": "items"}
"""How messages name the table of a side."""
Tell = Callable[[str], None]


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


@dataclass(frozen=True)
class Tables:
    """The tables of a call, and how they are to be read.

    Args:
        interactions: Paths of the events.
        items: The items' table.
        queries: The queries' table.
        config: Which column is what.
        features: Kinds of columns that are stated.
    """

    interactions: Events
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
class Call:
    """One call: what it reads, and how.

    Args:
        given: Its tables.
        files: The files of events that the folder does not hold yet.
        manifest: Of the folder; of a new one, without partitions.
        is_append: Whether the folder is there already.
        task: Digest of all that decides the result.
    """

    given: Tables
    files: tuple[Input, ...]
    manifest: Manifest
    is_append: bool
    task: str

    @classmethod
    def of(cls, given: Tables, before: Manifest | None) -> "Call":
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
        found = input_files(given.interactions)
        if before is not None:
            check_settings(config, before)
            check_alike(found, before)
        inputs = tuple(Input.of(file, part) for file, part in found)
        if before is not None:
            inputs = new_ones(inputs, before)
        manifest = before or understood(found, config, given.features)
        told = {
            "version": [FORMAT, __version__, BLOCK_CELLS, BLOCK_BYTES],
            "files": [each.as_source(0).identity for each in inputs],
            "data": plain(manifest.reader.config),
            "features": plain(given.features),
            "sides": {
                side: digest_of_table(table, _WHAT[side]) for side, table in given.sides.items()
            },
            "before": "" if before is None else before.key,
        }
        task = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
        return cls(given, inputs, manifest, before is not None, task)

    def blocks(
        self, tell: Tell, start_of: Callable[[int], int]
    ) -> Iterator[tuple[Input, str, EventBlock, dict[str, Any]]]:
        """Yield blocks of events: their file, the name of their piece, the events, and their counts.

        Args:
            tell: Called with a sentence for each file.
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

    def _read(self, each: Input, start: int, frame: pl.DataFrame) -> EventBlock:
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

    def check(self, tell: Tell) -> Manifest:
        """Read everything, write nothing, and return what the manifest would be.

        Args:
            tell: Called with the name of each phase.
        """
        own = self._own_ids()
        counts, ids = _Counts(), {"query": _no_ids(), "item": _no_ids()}
        for each, _, block, told in self.blocks(tell, lambda _: 0):
            counts.add(each.file.path, told)
            for side, found in (("query", block.query_ids), ("item", block.item_ids)):
                ids[side] = _together([ids[side], found.rename("id").unique()])
        self._check_shared(own, ids)
        num = {side: len(_together([seen, *own[side]])) for side, seen in ids.items()}
        return self._finished(counts, num, "0000")

    def run(self, out: Path, work: Path, tell: Tell) -> Manifest:
        """Do the work, put its result in its place, and return the new manifest.

        Args:
            out: The folder.
            work: Where what is done is kept until all is.
            tell: Called with the name of each phase.
        """
        manifest, roles = self.manifest, self.manifest.reader.roles
        own = self._own_ids(out if self.is_append else None)
        pieces = work / "pieces"
        pieces.mkdir(exist_ok=True)
        counts = _Counts()

        def done(number: int) -> int:
            return len(list(pieces.glob(f"{number:05}-*")))

        for number, each in enumerate(self.files):
            for place in range(done(number)):
                folder = pieces / f"{number:05}-{place:05}"
                counts.add(each.file.path, json.loads((folder / "counts.json").read_text("utf-8")))
        for each, name, block, told in self.blocks(tell, done):
            given = self._given(each.part, len(block.frame))
            piece = piece_of(block, given, (roles.query, roles.item), by_time=manifest.by_time)
            write_piece(piece, new := pieces / "writing")
            (new / "counts.json").write_text(json.dumps(told), encoding="utf-8", newline="\n")
            new.rename(pieces / name)
            counts.add(each.file.path, told)
        if self.is_append and not counts.rows:
            return manifest  # files without a row
        check_rows(counts.events, sum(counts.rows.values()))
        tell("sorting")
        folders = in_order(pieces.glob("*-*"))
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

    def _own_ids(self, out: Path | None = None) -> dict[str, list[pl.Series]]:
        """Return the ids of each side's table, which is checked before the events are read.

        Args:
            out: The folder whose tables they are added to, if there is one.
        """
        reader = self.manifest.reader
        own: dict[str, list[pl.Series]] = {}
        for side, role in (("query", Role.QUERY), ("item", Role.ITEM)):
            own[side] = []
            if side in self.given.sides:
                column = getattr(reader.roles, side)
                frame = read_files(self.given.sides[side], what=_WHAT[side])
                found = side_table(frame, column, role, reader.config, self.given.features)
                if out is not None:
                    self._check_types(side, frame.drop(found.key), out)
                own[side].append(found.ids)
        return own

    def _check_types(self, side: str, frame: pl.DataFrame, out: Path) -> None:
        """Refuse a table of a side whose columns cannot follow those that the folder holds.

        Raises:
            DataError: A column has another type.
        """
        for partition in self.manifest.partitions:
            if side not in partition.sides:
                continue
            before = pl.read_parquet_schema(out / partition.name / f"{side}_table.parquet")
            for name, dtype in frame.schema.items():
                if not _go_together(before.get(name, dtype), dtype):
                    raise DataError(
                        f"{_WHAT[side]} must have {name!r} of the type that it has in the prepared folder, "
                        f"{before[name]}, got {dtype}; write the column alike, or prepare all files anew."
                    )

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


def _go_together(one: pl.DataType, other: pl.DataType) -> bool:
    """Return whether columns of two types become one: numbers and text do, lists and text do not."""
    if pl.Null in (one, other):
        return True
    frames = [pl.DataFrame(schema={"column": dtype}) for dtype in (one, other)]
    try:
        pl.concat(frames, how="diagonal_relaxed")
    except PolarsError:
        return False
    return one.is_nested() == other.is_nested()


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
