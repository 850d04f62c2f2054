"""``prepare_folder()``: tables of any size -> a folder of sorted events, which is mapped and not loaded."""

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import numpy.typing as npt
import polars as pl
from polars.exceptions import PolarsError

from twotower.caller import argument
from twotower.config import Config, DataConfig, FeaturesConfig
from twotower.data.assembly import check_catalogue, check_positives, order_of, side_table
from twotower.data.columns import Role
from twotower.data.event_reader import EventBlock, EventReader, check_rows
from twotower.data.input_files import blocks_of, check_columns, digest_of, files_of, read_files
from twotower.data.positions import unstated_position
from twotower.data.prepared.manifest import (
    SCHEMA,
    Manifest,
    Partition,
    Source,
    digests_of,
    is_prepared,
    read_manifest,
    write_manifest,
)
from twotower.data.prepared.pieces import all_ids, merge_pieces, piece_of, write_piece
from twotower.data.refusal import after_rows
from twotower.data.split_files import PARTS, check_names
from twotower.data.tables import Table, read_table
from twotower.data.unused import unstated_kinds, unused_columns
from twotower.dataclass_trees import plain
from twotower.errors import ConfigError, DataError
from twotower.keywords import Keywords, configured, takes_keywords
from twotower.paths import check_folder_of, check_new_name, reason_of
from twotower.table_files import TableFile, types_of_keys
from twotower.vocab import Vocabulary

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]

NO_ID = "without an id"
"""Why a row is left out."""
_WHAT = {"query": "queries", "item": "items"}
"""How messages name the table of a side."""
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Prepared:
    """What a prepared folder holds.

    Args:
        path: The folder; None after a check, which writes nothing.
        manifest: How the table is read, and what was read.
        num_queries: Number of distinct queries that this call found.
        num_items: Number of distinct items that it found.
        is_changed: Whether this call added anything.
    """

    path: Path | None
    manifest: Manifest
    num_queries: int
    num_items: int
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
        said = ", ".join([f"{last.rows:,} rows of {len(last.files):,} files", *left_out])
        sentences = [
            f"{said}: {last.events:,} events of {self.num_queries:,} queries with {self.num_items:,} items."
        ]
        if self.path is not None and len(self.manifest.partitions) > 1:
            sentences.append(f"{self.path} now holds {self.num_events:,} events.")
        if self.path is None:
            sentences.append("Nothing was written.")
        else:
            sentences.append(f"Next: twotower train --interactions {self.path} --out model")
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
            "queries": self.num_queries,
            "items": self.num_items,
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
    if out is None and append:
        raise ConfigError(
            f"{argument('append')} must go with {argument('out')}, got no folder; name it."
        )
    place = None if out is None else Path(out).expanduser()
    before = _before(place, append=append)
    data = settings.data
    if before is not None:
        if data not in (DataConfig(), before.reader.config):
            raise ConfigError(
                f"[data] must be as the folder '{place}' was prepared with, got other settings; leave them "
                "out."
            )
        data = before.reader.config
    call = _Call.of(interactions, items, queries, data, settings.features, before)
    if place is None:
        return call.check(tell)
    if not append and is_prepared(place):
        known = read_manifest(place)
        if [each.task for each in known.partitions] == [call.task]:
            return Prepared(place, known, 0, 0, is_changed=False)
    if before is None:
        _check_new(place)
    elif not call.files:
        return Prepared(place, before, 0, 0, is_changed=False)
    with _working(place, call.task) as work:
        return call.run(place, work, tell)


@dataclass(frozen=True)
class _Call:
    """One call: what it reads, and how."""

    files: tuple[tuple[TableFile, str | None, str], ...]
    items: Table | None
    queries: Table | None
    features: FeaturesConfig
    manifest: Manifest
    is_append: bool
    task: str

    @classmethod
    def of(
        cls,
        interactions: str | Path | Mapping[str, str | Path],
        items: Table | None,
        queries: Table | None,
        config: DataConfig,
        features: FeaturesConfig,
        before: Manifest | None,
    ) -> "_Call":
        """Return what there is to do.

        Raises:
            DataError: A file cannot be read, or one changed since it was prepared.
        """
        if config.impressions_column is not None:
            raise ConfigError(
                "data.impressions_column must not be set for a prepared folder, got "
                f"{config.impressions_column!r}; train on the table itself."
            )
        found = _files_of(interactions)
        digests = [(file, part, digest_of(file)) for file, part in found]
        if before is not None:
            digests = _new_ones(digests, before)
        manifest = before or _understood(found, config, features)
        told = {
            "files": [[digest, part] for _, part, digest in digests],
            "data": plain(config),
            "features": plain(features),
            "sides": {
                what: None if table is None else _digest_of(table, what)
                for what, table in (("items", items), ("queries", queries))
            },
            "before": "" if before is None else before.key,
        }
        task = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
        return cls(tuple(digests), items, queries, features, manifest, before is not None, task)

    def blocks(
        self, tell: Tell, start_of: Callable[[int], int]
    ) -> Iterator[tuple[TableFile, str, int, pl.DataFrame]]:
        """Yield blocks of rows: their file, the name of their piece, the rows before, and the rows.

        Args:
            tell: Is told of each file.
            start_of: Number of blocks of a file that are done.
        """
        for number, (file, _, _) in enumerate(self.files):
            tell(f"{number + 1} of {len(self.files)}: {file.path}")
            first = start_of(number)
            blocks = blocks_of(file, dict(self.manifest.key_types), start=first)
            for place, (start, frame) in enumerate(blocks, start=first):
                yield file, f"{number:05}-{place:05}", start, frame

    def read(self, file: TableFile, start: int, frame: pl.DataFrame) -> EventBlock:
        """Return the events of a block of rows.

        Raises:
            DataError: A row cannot be used; its file and number are named.
        """
        part = self.part_of(file)
        reader, position = self.manifest.reader, self.manifest.reader.config.position_column
        if part not in (None, "train") and position is not None and position not in frame.columns:
            dtype = self.manifest.schema[position]
            frame = frame.with_columns(pl.lit(None, dtype).alias(position))
        frame = check_columns(frame, self.manifest.schema, file.path)
        is_learnt = None if part is None else np.full(len(frame), part == "train")
        try:
            with after_rows(start):
                return reader.read(frame, is_learnt=is_learnt)
        except DataError as error:
            raise DataError(f"{file.path!r}: {error}") from error

    def part_of(self, file: TableFile) -> str | None:
        """Return the part that a file gives."""
        return next(part for each, part, _ in self.files if each is file)

    def told(self, block: EventBlock) -> dict[str, Any]:
        """Return the counts of a block."""
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

    def run(self, out: Path, work: Path, tell: Tell) -> Prepared:
        """Do the work, and put its result in its place.

        Args:
            out: The folder.
            work: Where what is done is kept until all is.
            tell: Is told how it goes.
        """
        pieces = work / "pieces"
        pieces.mkdir(exist_ok=True)
        counts = _Counts()

        def done(number: int) -> int:
            return len(list(pieces.glob(f"{number:05}-?????")))

        for number, (file, _, _) in enumerate(self.files):
            for place in range(done(number)):
                folder = pieces / f"{number:05}-{place:05}"
                counts.add(file.path, json.loads((folder / "counts.json").read_text("utf-8")))
        roles = self.manifest.reader.roles
        for file, name, start, frame in self.blocks(tell, done):
            block = self.read(file, start, frame)
            told = self.told(block)
            piece = piece_of(
                block,
                self.given(file, len(block.frame)),
                (roles.query, roles.item),
                by_time=self.manifest.by_time,
            )
            write_piece(piece, new := pieces / "writing")
            (new / "counts.json").write_text(json.dumps(told), encoding="utf-8")
            new.rename(pieces / name)
            counts.add(file.path, told)
        tell("sorting")
        folders = sorted(pieces.glob("?????-?????"))
        manifest = self.manifest
        partition = work / f"{len(manifest.partitions):04}"
        shutil.rmtree(partition, ignore_errors=True)  # half of a merge that was killed
        sides = {}
        for side, table, role in (
            ("query", self.queries, Role.QUERY),
            ("item", self.items, Role.ITEM),
        ):
            sides[side] = [] if table is None else [self.own_ids(table, role)]
        query_ids, item_ids = (
            _vocabulary(folders, side, sides[side]) for side in ("query", "item")
        )
        finished = self.finished(counts, len(item_ids), partition.name)
        merge_pieces(folders, query_ids, item_ids, partition, by_time=manifest.by_time)
        for side, table in (("query", self.queries), ("item", self.items)):
            if table is not None:
                read_files(table, what=_WHAT[side]).write_parquet(
                    partition / f"{side}_table.parquet"
                )
        root = out if self.is_append else work / "new"
        if not self.is_append:
            shutil.rmtree(root, ignore_errors=True)
            root.mkdir()
            pl.DataFrame(schema=manifest.schema).write_parquet(root / SCHEMA)
        files = digests_of(partition, work)
        if not self.is_append:
            files |= digests_of(root, root)
        shutil.rmtree(root / partition.name, ignore_errors=True)  # of a call that was killed
        partition.rename(root / partition.name)
        write_manifest(replace(finished, files={**manifest.files, **files}), root)
        if not self.is_append:
            root.rename(out)
        return Prepared(out, read_manifest(out), len(query_ids), len(item_ids))

    def check(self, tell: Tell) -> Prepared:
        """Read everything, and write nothing.

        Args:
            tell: Is told how it goes.
        """
        counts, ids = _Counts(), {"query": _no_ids(), "item": _no_ids()}
        for file, _, start, frame in self.blocks(tell, lambda _: 0):
            block = self.read(file, start, frame)
            counts.add(file.path, self.told(block))
            for side, found in (("query", block.query_ids), ("item", block.item_ids)):
                known, new = ids[side], found.rename("id").unique()
                ids[side] = pl.concat([known, new]).unique() if len(known) else new
        for side, table, role in (
            ("query", self.queries, Role.QUERY),
            ("item", self.items, Role.ITEM),
        ):
            if table is not None:
                own = self.own_ids(table, role).rename("id")
                ids[side] = pl.concat([each.cast(pl.String) for each in (ids[side], own)]).unique()
        manifest = self.finished(counts, len(ids["item"]), "0000")
        return Prepared(None, manifest, len(ids["query"]), len(ids["item"]), is_changed=False)

    def given(self, file: TableFile, num: int) -> dict[str, npt.NDArray[Any]]:
        """Return the parts that a file gives its events."""
        part = self.part_of(file)
        if part is None:
            return {}
        return {
            "parts": np.full(num, PARTS[part], np.uint8),
            "is_session": np.full(num, part.endswith("_sessions")),
        }

    def own_ids(self, table: Table, role: Role) -> pl.Series:
        """Return the ids of a side's table, which is checked."""
        reader = self.manifest.reader
        column = reader.roles.query if role == Role.QUERY else reader.roles.item
        return side_table(table, column, role, reader.config, self.features).ids

    def finished(self, counts: _Counts, num_items: int, name: str) -> Manifest:
        """Return the manifest with what was read.

        Raises:
            DataError: The table cannot be learnt from.
        """
        manifest, reader = self.manifest, self.manifest.reader
        check_rows(counts.events, sum(counts.rows.values()))
        if not self.is_append:
            reader.check_targets(counts.kinds)
            check_positives(counts.positives, counts.events, reader)
            check_catalogue(num_items)
        files = tuple(
            Source(file.path, digest, counts.rows.get(file.path, 0), part)
            for file, part, digest in self.files
        )
        sides = tuple(
            side
            for side, table in (("query", self.queries), ("item", self.items))
            if table is not None
        )
        partition = Partition(
            name=name,
            task=self.task,
            files=files,
            rows=sum(counts.rows.values()),
            events=counts.events,
            left_out=dict(counts.left_out),
            kinds=tuple(sorted(counts.kinds)),
            sides=sides,
        )
        return replace(manifest, partitions=(*manifest.partitions, partition))


def _no_ids() -> pl.Series:
    return pl.Series("id", [], pl.String)


def _vocabulary(folders: list[Path], side: str, more: list[pl.Series]) -> Vocabulary:
    """Return the ids of pieces and of a table, sorted; as strings where the two differ in type."""
    types = {ids.dtype for ids in more}
    types |= {pl.read_parquet_schema(folder / f"{side}_ids.parquet")["id"] for folder in folders}
    if len(types) == 1:
        return Vocabulary(all_ids(folders, side, more))
    seen = all_ids(folders, side).cast(pl.String)
    return Vocabulary(
        pl.concat([seen, *(ids.rename("id").cast(pl.String) for ids in more)]).unique().sort()
    )


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


def _understood(
    found: list[tuple[TableFile, str | None]], config: DataConfig, features: FeaturesConfig
) -> Manifest:
    """Return how the table is read, by its first block.

    Raises:
        DataError: It cannot be read.
    """
    types = types_of_keys([file for file, _ in found])
    first = next((frame for file, _ in found for _, frame in blocks_of(file, types)), None)
    if first is None or not len(first):
        raise DataError("interactions must hold rows, got files without any.")
    reader = EventReader.of(first, config)
    unused = unused_columns(first, reader.roles, read=features.event)
    has_sessions = any(part is not None and part.endswith("_sessions") for _, part in found)
    ordered, by_time = order_of(
        config, has_times=reader.roles.time is not None, has_sessions=has_sessions
    )
    return Manifest(
        reader=reader,
        schema=first.schema,
        key_types=types,
        by_time=by_time and reader.roles.time is not None,
        ordered=ordered,
        unused=unused,
        notes=(*unstated_kinds(first, unused), *unstated_position(first, reader.roles)),
        sample=len(first),
    )


def _new_ones(
    digests: list[tuple[TableFile, str | None, str]], before: Manifest
) -> list[tuple[TableFile, str | None, str]]:
    """Return the files that a folder does not hold.

    Raises:
        DataError: A file of the same path has other bytes now.
    """
    known = {source.sha256 for part in before.partitions for source in part.files}
    by_path = {source.path: source.sha256 for part in before.partitions for source in part.files}
    for file, _, digest in digests:
        if by_path.get(file.path, digest) != digest:
            raise DataError(
                f"{file.path!r} must be as it was when it was prepared, got other bytes; what is there "
                "cannot be taken back: prepare all files anew."
            )
    return [each for each in digests if each[2] not in known]


def _digest_of(table: Table, what: str) -> str:
    if isinstance(table, str | Path):
        digests = [digest_of(file, what) for file in files_of(table, what=what)]
        return hashlib.sha256("".join(digests).encode()).hexdigest()
    return hashlib.sha256(_bytes_of(read_table(table, what=what))).hexdigest()


def _bytes_of(frame: pl.DataFrame) -> bytes:
    return frame.write_ipc(None, compat_level=pl.CompatLevel.oldest()).getvalue()


def _before(out: Path | None, *, append: bool) -> Manifest | None:
    if out is None or not append:
        return None
    if not is_prepared(out):
        raise ConfigError(
            f"{argument('append')} must go with a prepared folder, got '{out}'; prepare one first."
        )
    return read_manifest(out)


def _check_new(out: Path) -> None:
    check_new_name(out)
    if out.exists() or out.is_symlink():
        raise ConfigError(
            f"{argument('out')} must be new, got '{out}', which is there; remove it, name another folder, "
            f"or pass {argument('append')}."
        )
    check_folder_of(out)


@contextmanager
def _working(out: Path, task: str) -> Iterator[Path]:
    """Give the folder ``OUT.preparing`` with what an equal call that was killed had done.

    Raises:
        DataError: Another process works there, or the folder cannot be written.
    """
    work = out.with_name(f"{out.name}.preparing")
    lock = None
    try:
        work.mkdir(exist_ok=True)
        lock = os.open(work / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        if fcntl is not None:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                os.close(lock)
                lock = None
                raise ConfigError(
                    f"{argument('out')} must be written by one process, got '{out}', which another is "
                    "preparing; wait for it."
                ) from error
        file = work / "task"
        if not file.is_file() or file.read_text(encoding="utf-8") != task:
            for entry in work.iterdir():
                if entry.name != "lock":
                    shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
            file.write_text(task, encoding="utf-8")
        shutil.rmtree(work / "pieces" / "writing", ignore_errors=True)
        yield work
    except (OSError, PolarsError) as error:
        shutil.rmtree(work, ignore_errors=True)
        raise DataError(
            f"the prepared folder '{out}' could not be written: {reason_of(error)}; free some space or "
            f"choose another {argument('out')}; nothing was left behind."
        ) from error
    except DataError:
        shutil.rmtree(work, ignore_errors=True)
        raise
    else:
        shutil.rmtree(work, ignore_errors=True)
    finally:
        if lock is not None:
            os.close(lock)
