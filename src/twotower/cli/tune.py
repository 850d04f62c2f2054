"""``twotower tune``."""

from pathlib import Path
from typing import Any

import typer

import twotower
from twotower.cli import exits, options, output


@options.reads_tables(after="minutes")
def command(
    *,
    out: Path,
    minutes: float = 30.0,
    resume: bool = False,
    lang: options.Language = "en",
    json: bool = False,
    **given: Any,
) -> None:
    """Search settings on validation for some minutes, and write the best model as a bundle.

    What --set names, or --config has otherwise than the defaults, is kept and not searched.

    Example: twotower tune --interactions ratings.csv --items movies.csv --out model --minutes 30

    Args:
        out: Folder of the bundle to write.
        minutes: How long to search.
        resume: Continue the search whose folder is next to the bundle.
        json: Print the figures and the trials as JSON.
    """
    events = options.take_events(given, "tune needs either")
    output.check_report_beside(out)
    named = {setting.partition("=")[0].strip() for setting in given["settings"] or []}
    tree = options.take_settings(given)

    from twotower.training.progress import TuningBar
    from twotower.training.study import SEARCHED

    screen = output.console(json_wanted=json)
    tuned = twotower.tune(
        events,
        out=out,
        minutes=minutes,
        config=tree,
        fixed=named & set(SEARCHED),
        histories=not given.pop("no_histories"),
        resume=resume,
        progress=TuningBar(screen),
        **given,
    )
    if json:
        trials = [vars(trial) for trial in tuned.trials]
        output.print_json({**tuned.trained.figures, "trials": trials})
    output.say(screen, f"The bundle is at {out}.")
    output.write_report_beside(out, output.report_path(out), tuned.trained, lang, screen)
    output.say(screen, f"All trials are in {tuned.folder.name}; --resume goes on from there.")
    if given["private"]:
        output.print_limits(screen)
    if tuned.stopped_early:
        raise typer.Exit(exits.STOPPED_EARLY)
