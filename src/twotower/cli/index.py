"""``twotower index``."""

from pathlib import Path

import twotower
from twotower.cli.output import console, say
from twotower.keywords import configured


def command(
    items: Path,
    *,
    out: Path,
    text: str | None = None,
    encoder: str | None = None,
    config: Path | None = None,
    settings: list[str] | None = None,
    item_column: str | None = None,
    drop_null_ids: bool = False,
) -> None:
    """Make a bundle that searches items by their texts, without any events and any training.

    Example: twotower index articles.parquet --text title,body --out model

    Args:
        items: File of the items: an id, texts, other columns.
        out: Folder of the bundle to write.
        text: Columns to search: title,body; by default all that are text.
        encoder: Folder or name of a sentence encoder to search by, too (extra text).
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
    columns = [] if text is None else [name.strip() for name in text.split(",")]
    retriever = twotower.index_items(items, text=columns, out=out, config=tree)
    notes = retriever.contents.provenance["notes"]
    say(console(json_wanted=False), *notes, f"The bundle is at {out}.")
