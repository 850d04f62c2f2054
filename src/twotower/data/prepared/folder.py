"""``prepare_folder()``: tables of any size -> a folder of sorted events."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

from twotower.caller import argument
from twotower.config import Config
from twotower.data.input_files import is_prepared
from twotower.data.prepared.call import Call, Tables, Tell
from twotower.data.prepared.inputs import Events
from twotower.data.prepared.manifest import Manifest, read_manifest
from twotower.data.prepared.work_folder import working
from twotower.data.tables import Table
from twotower.errors import ConfigError
from twotower.keywords import Keywords, configured, takes_keywords
from twotower.paths import check_folder_of, check_new_name


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
        is_added = len(self.manifest.partitions) > 1
        there = "These files and tables name" if is_added else "There are"
        sentences = [
            f"{said}: {last.events:,} events.",
            f"{there} {sides}, those without events included.",
        ]
        if self.path is not None and is_added:
            sentences.append(f"{self.path} now holds {self.num_events:,} events.")
        if self.path is None:
            sentences.append("Nothing was written.")
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


@takes_keywords
def prepare_folder(
    interactions: Events,
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
        tell: Called with the name of each phase.
        **keywords: Single settings; see ``keywords.Keywords``.

    Raises:
        DataError: A table cannot be used; the first bad row is named. Or the folder cannot be written, and
            nothing is left behind.
        ConfigError: ``out`` is there already, or is no prepared folder to be added to.
    """
    settings = configured(config, **keywords)
    given = Tables(interactions, items, queries, settings.data, settings.features)
    if out is None:
        if append:
            raise ConfigError(
                f"{argument('append')} must go with {argument('out')}, got no folder; name it."
            )
        return Prepared(None, Call.of(given, None).check(tell), is_changed=False)
    place = Path(os.path.realpath(Path(out).expanduser()))
    check_new_name(place)
    if not append and not is_prepared(place):
        _check_new(place, interactions)
    with working(place, append=append) as work:
        before = _before(place) if append else None
        call = Call.of(given, before)
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


def _before(out: Path) -> Manifest:
    if not is_prepared(out):
        raise ConfigError(
            f"{argument('append')} must go with a prepared folder, got '{out}'; prepare one first."
        )
    return read_manifest(out)


def _check_new(out: Path, interactions: Events) -> None:
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
