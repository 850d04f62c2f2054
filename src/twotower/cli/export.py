"""``twotower export``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

import twotower
from twotower.errors import ConfigError
from twotower.exports.targets import EXPORTS, ExportSpec
from twotower.registry import resolved

if TYPE_CHECKING:
    _Target = str
else:
    _Target = Literal[tuple(EXPORTS)]


def command(
    target: _Target,
    bundle: Path,
    *,
    out: Path | None = None,
    dsn: str | None = None,
    table: str | None = None,
    url: str | None = None,
    api_key: Annotated[
        str | None,
        typer.Option(envvar="QDRANT_API_KEY", help="qdrant: its key; better by the variable."),
    ] = None,
    collection: str | None = None,
) -> None:
    """Hand a model, its items and its queries to another system.

    Example: twotower export faiss model --out model-faiss

    Args:
        target: What to export to.
        out: A new folder to write.
        dsn: pgvector: the database to load, as psql takes it; passwords better in PGPASSWORD.
        table: pgvector: the items' table; items.
        url: qdrant: the server to load.
        collection: qdrant: the items' collection; items.
    """
    spec = EXPORTS[target]
    places: dict[str, Any] = {"out": out, "dsn": dsn, "url": url}
    named = {"table": table, "collection": collection}
    _check_place(spec, [name for name, value in places.items() if value is not None])
    for option, value in named.items():
        if value is not None and option not in spec.options:
            able = " and ".join(name for name, spec in EXPORTS.items() if option in spec.options)
            raise ConfigError(f"--{option} is for {able}, got it for {target}; leave it out.")
    from twotower.exports.folder import check_folder

    if out is not None:
        check_folder(out)
    retriever = twotower.Retriever.open(bundle)
    told: dict[str, Any] = {name: value for name, value in named.items() if value is not None}
    if out is not None:
        exported = resolved(spec.export)(retriever, out, **told)
    else:
        secrets = {"api_key": api_key}
        told |= {name: value for name, value in secrets.items() if name in spec.server_options}
        exported = resolved(spec.load)(retriever, places[spec.server], **told)
    typer.echo(f"{exported.place}: {exported.num_items:,} items, {exported.num_queries:,} queries")
    for note in exported.notes:
        typer.echo(note)


def _check_place(spec: ExportSpec, given: list[str]) -> None:
    """Check that one place to export to is named, and one that the target has.

    Raises:
        ConfigError: None is, or several, or another.
    """
    choice = " or ".join(f"--{name}" for name in spec.places)
    wrong = [name for name in given if name not in spec.places]
    if wrong:
        raise ConfigError(f"--{wrong[0]} must not be given for {spec.name}; it takes {choice}.")
    if len(given) != 1:
        number = "neither" if not given and len(spec.places) > 1 else "both" if given else "none"
        raise ConfigError(f"export {spec.name} must be given {choice}, got {number}.")
