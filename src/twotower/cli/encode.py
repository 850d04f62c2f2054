"""``twotower encode``."""

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from twotower.cli.recommend import moment_of

if TYPE_CHECKING:
    from twotower.exports.table_blocks import Table


def command(
    bundle: Path,
    *,
    items: Path | None = None,
    queries: Path | None = None,
    out: Path,
    shard: str | None = None,
    dtype: str = "float32",
    at: str | None = None,
) -> None:
    """Write the vectors of any number of items or queries, by shards; run it again to go on.

    Example: twotower encode model --items items/ --shard 3/16 --out vectors

    Args:
        items: Table of items: a file, a folder of Parquet files, or a quoted pattern.
        queries: The same for queries.
        out: Folder for the Parquet files; the shards of a job share it.
        dtype: Type of the numbers: float32 or float16.
        at: Of --queries: when they ask, as for recommend. Needed if the model reads it.
    """
    from twotower.exports.bulk import encode_table

    exported = encode_table(
        bundle,
        out,
        items=_table(items, "items"),
        queries=_table(queries, "queries"),
        shard=shard,
        dtype=dtype,
        at=moment_of(at),
    )
    num = exported.num_items or exported.num_queries
    typer.echo(f"{exported.place}: {num:,} {'queries' if items is None else 'items'}")
    for note in exported.notes:
        typer.echo(note)


def _table(path: Path | None, what: str) -> "Table | None":
    """Return a table that is read by blocks, or all of one in another format."""
    from twotower.data.tables import read_table
    from twotower.exports.table_blocks import is_read_by_blocks

    if path is None or is_read_by_blocks(path):
        return path
    return read_table(path, what=what)
