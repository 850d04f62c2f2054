"""``twotower index``."""

from pathlib import Path
from typing import Annotated

import typer

from twotower.cli import options
from twotower.cli.output import console, say
from twotower.keywords import configured, help_of


def command(
    items: Annotated[Path, typer.Argument(help="File of the items: an id, texts, other columns.")],
    out: Annotated[Path, typer.Option(help="Folder of the bundle to write.")],
    text: Annotated[
        str | None,
        typer.Option(help="Columns to search: title,body; by default all that are text."),
    ] = None,
    encoder: Annotated[
        str | None,
        typer.Option(help="Folder or name of a sentence encoder to search by, too (extra text)."),
    ] = None,
    config: options.ConfigFile = None,
    settings: options.Settings = None,
    item_column: Annotated[str | None, typer.Option(help=help_of("item_column"))] = None,
    drop_null_ids: Annotated[
        bool, typer.Option("--drop-null-ids", help=help_of("drop_null_ids"))
    ] = False,
) -> None:
    """Make a bundle that searches items by their texts, without any events and any training.

    Example: twotower index articles.parquet --text title,body --out model
    """
    of_encoder = []
    if encoder is not None:
        of_encoder = ["features.text=sentence", f"features.sentence_encoder={encoder}"]
    tree = configured(
        config,
        recipe="search" if config is None else None,
        item_column=item_column,
        drop_null_ids=drop_null_ids,
    ).with_settings([*of_encoder, *(settings or [])])
    from twotower.training.zero_shot import index_items

    columns = [] if text is None else [name.strip() for name in text.split(",")]
    retriever = index_items(items, text=columns, out=out, config=tree)
    notes = retriever.contents.provenance["notes"]
    say(console(json_wanted=False), *notes, f"The bundle is at {out}.")
