"""A prepared folder -> ``Dataset``, whose events stay on disk."""

import errno
import json
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
from polars.exceptions import PolarsError

from twotower.abandoned import put, temporary_folder, writing
from twotower.arrays import Ints, Rows
from twotower.caller import argument
from twotower.config import DataConfig, FeaturesConfig
from twotower.data import mapped
from twotower.data.assembly import (
    BLOCK_EVENTS,
    Preparation,
    Seen,
    check_catalogue,
    entities,
    repeats_of,
    settled,
    side_table,
)
from twotower.data.columns import Role
from twotower.data.dataset import Dataset, Part
from twotower.data.events_on_disk import in_memory, open_events
from twotower.data.prepared.manifest import (
    Manifest,
    check_files,
    check_settings,
    digests_of,
    read_manifest,
)
from twotower.data.prepared.pieces import merge_pieces, open_given, read_ids, scan_columns
from twotower.data.split_files import SplitFiles, parts_of
from twotower.errors import ConfigError, DataError
from twotower.paths import reason_of
from twotower.vocab import FIRST_ROW, UNKNOWN_ROW, Vocabulary

_DIGESTS = "digests.json"
_NOT_OURS = (errno.EACCES, errno.EPERM, errno.EROFS)
"""Errors of a folder that somebody else may write."""


def open_prepared(
    folder: str | Path,
    *,
    config: DataConfig | None = None,
    features: FeaturesConfig | None = None,
    name: str | None = None,
) -> Preparation:
    """Return the data set of a prepared folder.

    Partitions that were added are merged when they are first read; the result is kept in the folder, where
    that can be written.

    Args:
        folder: The folder.
        config: None, the defaults, or what the folder was prepared with.
        features: Kinds of columns that are stated. Of the columns of the interactions only those are read
            that ``features.event`` names, and the kinds of event.
        name: What the data is called in reports.

    Raises:
        DataError: The folder is damaged, or of another version.
        ConfigError: ``config`` differs from what the folder was prepared with.
    """
    folder = Path(folder).expanduser()
    features = features or FeaturesConfig()
    manifest = read_manifest(folder)
    check_settings(config, manifest)
    check_files(folder, manifest.files)
    with _merged(folder, manifest) as place:
        return _opened(folder, place, manifest, features, name or folder.name)


def read_prepared(folder: str | Path) -> pl.DataFrame:
    """Return the events of a prepared folder as a table, whole, in the order of queries.

    Raises:
        DataError: The folder is damaged, or of another version.
    """
    folder = Path(folder).expanduser()
    manifest = read_manifest(folder)
    check_files(folder, manifest.files)
    roles = manifest.reader.roles
    with _merged(folder, manifest) as place:
        events = open_events(place / "events")
        ids = {
            roles.query: read_ids(place, "query").ids_of(events.query_rows),
            roles.item: read_ids(place, "item").ids_of(events.item_rows),
        }
        scan = scan_columns(place)
        others = [] if scan is None else scan.collect().get_columns()
    return pl.DataFrame([*(each.rename(name) for name, each in ids.items()), *others])


def refuse_tables(**tables: object) -> None:
    """Refuse tables of sides beside a prepared folder, which has its own.

    Raises:
        ConfigError: One is given.
    """
    for name, table in tables.items():
        if table is not None:
            raise ConfigError(
                f"{argument(name)} must not be given with a prepared folder, which holds its tables; leave "
                "it out, or prepare the folder with it."
            )


def _opened(
    folder: Path, place: Path, manifest: Manifest, features: FeaturesConfig, name: str
) -> Preparation:
    reader, roles = manifest.reader, manifest.reader.roles
    notes = list(manifest.notes)
    rows = sum(part.rows for part in manifest.partitions)
    if rows > manifest.sample:
        notes.append(f"The first {manifest.sample:,} rows say how the columns are read.")
    left_out = sum(n for part in manifest.partitions for n in part.left_out.values())
    if left_out:
        notes.append(f"Left out {left_out} of {rows} rows without an id.")
    events = open_events(place / "events")
    if len(events) < mapped.MAPPED_FROM:
        events = in_memory(events)
    labels, weights = settled(reader, events.labels, events.weights, events.is_target, notes)
    events = replace(events, labels=labels, weights=weights)
    tables = []
    for side, column, role, counts in (
        ("query", roles.query, Role.QUERY, np.diff(events.offsets)),
        ("item", roles.item, Role.ITEM, None),
    ):
        vocabulary = read_ids(place, side)
        if counts is None:
            counts = _counts(events.item_rows, vocabulary.num_rows)
        is_seen = counts[FIRST_ROW:] > 0
        seen = Seen(vocabulary.ids.filter(pl.Series(is_seen)), counts[FIRST_ROW:][is_seen])
        frames = [
            pl.read_parquet(folder / part.name / f"{side}_table.parquet")
            for part in reversed(manifest.partitions)
            if side in part.sides
        ]
        own = None
        if frames:
            keys = [side_table(each, column, role, reader.config, features).key for each in frames]
            frames = [each.rename({key: keys[-1]}) for each, key in zip(frames, keys, strict=True)]
            dtype = vocabulary.ids.dtype
            if len(frames) > 1:  # the newest line of an id counts
                cast = [each.with_columns(pl.col(keys[-1]).cast(dtype)) for each in frames]
                together = pl.concat(cast, how="diagonal_relaxed")
                frames = [together.unique(keys[-1], keep="first", maintain_order=True)]
            own = side_table(frames[0], column, role, reader.config, features)
        tables.append(entities(own, seen, column, role, notes, vocabulary))
    query_table, item_table = tables
    check_catalogue(len(item_table))
    parts = np.full(len(events), Part.TRAIN, np.uint8)
    if manifest.is_split:
        given = SplitFiles(**open_given(place))
        parts = np.array(parts_of(given, events, query_table.ids, notes))
    scan, read = scan_columns(place), [*features.event]
    if roles.event is not None:
        read.append(roles.event)
    dataset = Dataset(
        queries=query_table,
        items=item_table,
        interactions=events,
        parts=parts,
        ordered=manifest.ordered,
        repeats=False,
        event_columns=_columns(scan, read),
        name=name,
    )
    repeats = repeats_of(dataset, reader.config, notes)
    return Preparation(
        replace(dataset, repeats=repeats, notes=tuple(notes)),
        (
            *roles.decisions,
            *(each for each in manifest.unused if each.column not in features.event),
        ),
        is_split=manifest.is_split,
        is_rated=roles.label_kind == "rating",
        config=reader.config,
    )


def _columns(scan: pl.LazyFrame | None, names: Collection[str]) -> pl.DataFrame:
    """Return the columns that are read, of those that there are."""
    if scan is None:
        return pl.DataFrame()
    there = scan.collect_schema().names()
    return scan.select(name for name in dict.fromkeys(names) if name in there).collect()


def _counts(rows: Rows, num: int) -> Ints:
    """Return how often each row occurs in a column, which is read by blocks: ``(num,)`` int64."""
    counts = np.zeros(num, np.int64)
    for start in range(0, len(rows), BLOCK_EVENTS):
        counts += np.bincount(rows[start : start + BLOCK_EVENTS], minlength=num)
    return counts


@contextmanager
def _merged(folder: Path, manifest: Manifest) -> Iterator[Path]:
    """Give the folder of all partitions' events as one.

    Its files may be gone afterwards: what is mapped of them stays until nobody has it any more.
    """
    first, *later = manifest.partitions
    if not later:
        yield folder / first.name
        return
    place = folder / f"merged-{manifest.key}"
    if _is_whole(place):
        yield place
        return
    try:
        with writing(place) as new:
            _merge(folder, manifest, new)
            digests = digests_of(new, new)
            (new / _DIGESTS).write_text(json.dumps(digests), encoding="utf-8", newline="\n")
            put(new, place)
        for old in folder.glob("merged-*"):
            if old != place:
                shutil.rmtree(old, ignore_errors=True)
    except (OSError, PolarsError) as error:
        if getattr(error, "errno", None) not in _NOT_OURS:
            raise DataError(
                f"the partitions of the prepared folder '{folder}' could not be merged: "
                f"{reason_of(error)}; free some space."
            ) from error
        with temporary_folder() as own:
            _merge(folder, manifest, own / "merged")
            yield own / "merged"
        return
    yield place


def _is_whole(place: Path) -> bool:
    """Return whether a merge is there as it was written; one that is damaged is made again."""
    try:
        digests = json.loads((place / _DIGESTS).read_text(encoding="utf-8"))
        files = (each for each in place.rglob("*") if each.is_file() and each.name != _DIGESTS)
        if set(digests) != {each.relative_to(place).as_posix() for each in files}:
            return False
        check_files(place, digests)
    except (OSError, ValueError, TypeError):  # a DataError, too
        return False
    return True


def _merge(folder: Path, manifest: Manifest, out: Path) -> None:
    """Write all partitions as one. New ids come after the earlier ones, so that these keep their rows."""
    folders = [folder / part.name for part in manifest.partitions]
    vocabularies = {}
    for side in ("query", "item"):
        ids = read_ids(folders[0], side)
        for later in folders[1:]:
            own = read_ids(later, side).ids
            is_new = pl.Series(ids.rows_of(own) == UNKNOWN_ROW)
            ids = Vocabulary(pl.concat([ids.ids, own.filter(is_new)]))
        vocabularies[side] = ids
    query_ids, item_ids = vocabularies.values()
    merge_pieces(folders, query_ids, item_ids, out, by_time=manifest.by_time)
