"""``twotower prepare``."""

from pathlib import Path
from shlex import quote
from typing import Any

import twotower
from twotower.cli import options
from twotower.cli.output import console, print_json, say
from twotower.errors import ConfigError


@options.reads_tables(
    after="check", leave_out=("recipe", "split", "recall", "no_histories", "private")
)
def command(
    *,
    out: Path | None = None,
    append: bool = False,
    check: bool = False,
    json: bool = False,
    **given: Any,
) -> None:
    """Sort tables of any size into a folder that train reads without loading it.

    Example: twotower prepare --interactions events/ --items items.parquet --out data

    Args:
        out: Folder to write.
        append: Add to a prepared folder; files that it holds are passed over.
        check: Read all tables, say what they hold, and write nothing.
        json: Print the counts as JSON.
    """
    if check == (out is not None):
        raise ConfigError("prepare needs either --out or --check.")
    events = options.take_events(given, "prepare needs either")
    tree = options.take_settings(given)
    screen = console(json_wanted=json)
    from twotower.training.progress import columns_table

    found = twotower.prepare_folder(
        events,
        out=out,
        append=append,
        config=tree,
        tell=lambda told: screen.print(told, markup=False),
        **given,
    )
    if json:
        print_json(found.as_json())
        return
    manifest = found.manifest
    if not append:
        screen.print(columns_table((*manifest.reader.roles.decisions, *manifest.unused)))
    say(screen, *manifest.notes, *found.told())
    if out is not None and found.is_changed:
        say(screen, f"Next: twotower train --interactions {quote(str(out))} --out model")
