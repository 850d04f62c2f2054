"""``twotower update``."""

from pathlib import Path

import typer

import twotower
from twotower.cli import exits, options, output


def command(
    bundle: Path,
    *,
    interactions: Path,
    items: Path | None = None,
    queries: Path | None = None,
    out: Path,
    journal: Path | None = None,
    expire_days: float | None = None,
    force: bool = False,
    lang: options.Language = "en",
    json: bool = False,
) -> None:
    """Learn the events of a new day, check the model on them, and write it as the next bundle.

    If the model is worse than that of the bundle, or the events do not fit their queries, no bundle is
    written: the exit code is 3.

    Example: twotower update model --interactions today.parquet --out model-tomorrow

    Args:
        bundle: Folder of the bundle of yesterday.
        interactions: Table of the new events.
        items: Columns of new or changed items.
        queries: Columns of new or changed queries.
        out: Folder of the new bundle.
        journal: File of a server's changes; BUNDLE.journal, if it is there.
        expire_days: Drop queries, and no longer offer items, that had no event for so many days.
        force: Write the bundle even if the check refuses it.
        json: Print the figures of the check as JSON.
    """
    output.check_report_beside(out)
    screen = output.console(json_wanted=json)

    from twotower.evaluation.screen import update_table
    from twotower.training.progress import ProgressBar

    updated = twotower.update(
        bundle,
        interactions,
        items=items,
        queries=queries,
        out=out,
        journal=journal,
        expire_days=expire_days,
        force=force,
        progress=ProgressBar(screen),
    )
    figures = updated.figures
    refused = output.refused_path(out)
    if json:
        output.print_json(figures | {"refused": list(updated.refused)})
    else:
        screen.print(update_table(figures))
        output.say(screen, *updated.told())
    if updated.refused:
        output.say(
            screen, *updated.refused, "No bundle was written; --force writes it all the same."
        )
        updated.report(refused, language=lang)
        output.say(screen, f"The report of the refused model is at {refused}.")
        raise typer.Exit(exits.FOUND)
    refused.unlink(missing_ok=True)
    output.say(screen, f"The bundle is at {out}.")
    output.write_report_beside(out, output.report_path(out), updated, lang, screen)
