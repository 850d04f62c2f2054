"""``twotower export``."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from twotower.cli import options
from twotower.errors import ConfigError

NAME = "export"

_OPTIONS = {
    "onnx": ("--out",),
    "faiss": ("--out",),
    "pgvector": ("--out", "--dsn"),
    "qdrant": ("--out", "--url"),
    "parquet": ("--out",),
    "npy": ("--out",),
}


def command(
    target: Annotated[
        Literal["onnx", "faiss", "pgvector", "qdrant", "parquet", "npy"],
        typer.Argument(help="What to export to."),
    ],
    bundle: options.Bundle,
    out: Annotated[Path | None, typer.Option(help="A new folder to write.")] = None,
    dsn: Annotated[
        str | None,
        typer.Option(
            help="pgvector: the database to load, as psql takes it; passwords better in PGPASSWORD."
        ),
    ] = None,
    table: Annotated[str | None, typer.Option(help="pgvector: the items' table; items.")] = None,
    url: Annotated[str | None, typer.Option(help="qdrant: the server to load.")] = None,
    api_key: Annotated[
        str | None,
        typer.Option(envvar="QDRANT_API_KEY", help="qdrant: its key; better by the variable."),
    ] = None,
    collection: Annotated[
        str | None, typer.Option(help="qdrant: the items' collection; items.")
    ] = None,
) -> None:
    """Hand a model, its items and its queries to another system.

    Example: twotower export faiss model --out model-faiss
    """
    given = {"--out": out, "--dsn": dsn, "--url": url}
    _check_place(target, [name for name, value in given.items() if value is not None])
    for option, value, owner in (
        ("--table", table, "pgvector"),
        ("--collection", collection, "qdrant"),
    ):
        if value is not None and target != owner:
            raise ConfigError(f"{option} is for {owner}, got it for {target}; leave it out.")
    from twotower import exports
    from twotower.exports.folder import check_folder
    from twotower.serving.retriever import Retriever

    if out is not None:
        check_folder(out)
    retriever = Retriever.open(bundle)
    named = {"table": table, "collection": collection}
    name = {key: value for key, value in named.items() if value is not None}
    if dsn is not None:
        exported = exports.load_pgvector(retriever, dsn, **name)
    elif url is not None:
        client = exports.connect_qdrant(url, api_key)
        exported = exports.load_qdrant(retriever, client, **name)
    else:
        exported = getattr(exports, f"export_{target}")(retriever, out, **name)
    typer.echo(f"{exported.place}: {exported.num_items:,} items, {exported.num_queries:,} queries")
    for note in exported.notes:
        typer.echo(note)


def _check_place(target: str, given: list[str]) -> None:
    """Check that one place to export to is named, and one that the target has.

    Raises:
        ConfigError: None is, or several, or another.
    """
    known = _OPTIONS[target]
    choice = " or ".join(known)
    wrong = [name for name in given if name not in known]
    if wrong:
        raise ConfigError(f"{wrong[0]} must not be given for {target}; it takes {choice}.")
    if len(given) != 1:
        number = "neither" if not given and len(known) > 1 else "both" if given else "none"
        raise ConfigError(f"export {target} must be given {choice}, got {number}.")
