"""Tables that are too large to be held in memory are prepared before they are used."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import polars as pl

from twotower.abandoned import remove, temporary_folder
from twotower.caller import argument
from twotower.config import Config
from twotower.data import mapped
from twotower.data.input_files import files_of, is_prepared
from twotower.data.prepared.call import Call, Tables
from twotower.data.prepared.folder import prepare_folder
from twotower.data.prepared.manifest import check_files, read_manifest
from twotower.data.tables import Table, reading
from twotower.errors import ConfigError, DataError
from twotower.processes.job import here

Given = Any
"""A table, or an array of features."""
Events = Table | Mapping[str, Table]


@contextmanager
def prepared_if_large(
    interactions: Events,
    items: Given,
    queries: Given,
    config: Config,
    *,
    out: Path | None,
    tell: Callable[[str], None],
) -> Iterator[tuple[Events, Given, Given]]:
    """Give the tables as they are, or a prepared folder in their place where they are large Parquet files.

    The folder is ``OUT.training-data``, where an equal call that was killed finds it. One of other tables
    is replaced. It is removed at the end, unless a training can go on from a checkpoint.

    Args:
        interactions: As ``train`` takes it.
        items: As ``train`` takes it.
        queries: As ``train`` takes it.
        config: The settings.
        out: The bundle to be; None makes the folder a temporary one.
        tell: Called with the name of each phase.
    """
    paths = _paths_of(interactions)
    are_tables = all(each is None or isinstance(each, str | Path) for each in (items, queries))
    no_impressions = config.data.impressions_column is None
    if not (paths and are_tables and no_impressions and _is_large(paths)):
        yield interactions, items, queries
        return
    with ExitStack() as stack:
        job = here()
        if out is None:
            if not job.is_alone:
                raise ConfigError(
                    f"{argument('out')} must be given where several processes train on large tables, which "
                    "the first one prepares for all; or prepare a folder of them before."
                )
            place = stack.enter_context(temporary_folder()) / "data"
        else:
            place = out.resolve().with_name(f"{out.resolve().name}.training-data")
            if job.is_first:
                stack.callback(
                    _remove, place, out.resolve().with_name(f"{out.resolve().name}.training")
                )
        events: Any = paths if isinstance(interactions, Mapping) else paths[""]
        tell(f"sorting the events into {place}, since there are many")

        def prepare() -> None:
            if is_prepared(place):
                given = Tables(events, items, queries, config.data, config.features)
                if not _is_of(place, given):
                    remove(place)
            prepare_folder(events, items=items, queries=queries, out=place, config=config)

        job.from_first(prepare)
        yield place, None, None


def _is_of(folder: Path, given: Tables) -> bool:
    """Return whether a prepared folder holds these tables as they are now, and is not damaged."""
    try:
        manifest = read_manifest(folder)
        check_files(folder, manifest.files)
    except DataError:
        return False
    return [each.task for each in manifest.partitions] == [Call.of(given, None).task]


def _remove(place: Path, work: Path) -> None:
    if not any(work.glob("*.pt")):  # a checkpoint needs the events again
        remove(place)


def _paths_of(interactions: Events) -> dict[str, str | Path]:
    """Return the paths of tables, each by its part; none where one is no path."""
    given = interactions if isinstance(interactions, Mapping) else {"": interactions}
    paths = {name: each for name, each in given.items() if isinstance(each, str | Path)}
    if len(paths) < len(given) or any(is_prepared(each) for each in paths.values()):
        return {}
    return paths


def _is_large(paths: Mapping[str, str | Path]) -> bool:
    """Return whether files of Parquet hold as many rows as stay on disk."""
    num = 0
    for source in paths.values():
        for file in files_of(source):
            with reading(
                f"interactions {file.path!r}", None if file.is_remote else Path(file.path)
            ):
                if file.is_parquet:
                    num += int(file.scan().select(pl.len()).collect().item())
    return num >= mapped.MAPPED_FROM
