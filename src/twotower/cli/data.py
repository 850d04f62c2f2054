"""``twotower data``."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from twotower.cli.output import console, print_json, say, write_tables
from twotower.errors import ConfigError, DataError
from twotower.paths import reason_of

if TYPE_CHECKING:
    import polars as pl


def command(
    source: Literal["movielens-100k", "movielens-1m", "synthetic"],
    *,
    out: Path | None = None,
    from_dir: Path | None = None,
    json: bool = False,
) -> None:
    """Fetch MovieLens, or generate a synthetic world, as three Parquet tables.

    Example: twotower data movielens-100k --out movielens-100k

    Args:
        source: Which data.
        out: Folder for the tables; by default one of that name.
        from_dir: A copy of MovieLens got from GroupLens by hand.
        json: Print the paths as JSON.
    """
    screen = console(json_wanted=json)
    found: Any
    if source == "synthetic":
        if from_dir is not None:
            raise ConfigError("--from-dir must go with MovieLens, got synthetic.")
        from twotower.data.sources.synthetic import World, WorldConfig

        found = World(WorldConfig()).generate()
    else:
        from twotower.data.sources import movielens

        found = movielens.fetch(source, from_dir=from_dir)
        if not movielens.terms_were_shown():
            screen.print(movielens.terms(), highlight=False)
            movielens.mark_terms_shown()
    tables = {name: getattr(found, name) for name in ("interactions", "items", "queries")}
    paths = _write(tables, Path(source) if out is None else out)
    if json:
        print_json(paths)
    else:
        flags = " ".join(f"--{name} {path}" for name, path in paths.items())
        events, items, queries = (f"{len(table):,}" for table in tables.values())
        say(
            screen,
            f"{events} events, {items} items, {queries} queries. Next:",
            f"  twotower train {flags} --out model",
        )


def _write(tables: "dict[str, pl.DataFrame]", folder: Path) -> dict[str, str]:
    paths = {name: folder / f"{name}.parquet" for name in tables}
    is_new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"--out must be a folder, got {reason_of(error)!r} for {str(folder)!r}; choose another."
        ) from error
    try:
        write_tables({paths[name]: table for name, table in tables.items()})
    except DataError:
        if is_new:
            folder.rmdir()
        raise
    return {name: str(path) for name, path in paths.items()}
