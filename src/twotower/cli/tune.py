"""``twotower tune``."""

from functools import partial
from pathlib import Path
from typing import Annotated, Unpack

import typer

from twotower.cli import exits, options
from twotower.cli.output import (
    check_report_beside,
    console,
    print_json,
    print_limits,
    report_path,
    write_report_beside,
)
from twotower.keywords import Keywords, configured, events_of, parts_of


@options.with_keywords()
def command(
    out: Annotated[Path, typer.Option(help="Folder of the bundle to write.")],
    minutes: Annotated[float, typer.Option(help="How long to search.")] = 30.0,
    interactions: options.Interactions = None,
    items: options.Items = None,
    queries: options.Queries = None,
    train: options.TrainPart = None,
    valid: options.ValidPart = None,
    valid_sessions: options.ValidSessions = None,
    test: options.TestPart = None,
    test_sessions: options.TestSessions = None,
    config: options.ConfigFile = None,
    settings: options.Settings = None,
    no_histories: options.NoHistories = False,
    private: options.Private = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the search that stands beside the bundle.")
    ] = False,
    lang: options.Lang = "en",
    json: Annotated[
        bool, typer.Option("--json", help="Print the figures and the trials as JSON.")
    ] = False,
    **keywords: Unpack[Keywords],
) -> None:
    """Search settings on validation for some minutes, and write the best model as a bundle.

    What --set names, or --config has otherwise than the defaults, is kept and not searched.

    Example: twotower tune --interactions ratings.csv --items movies.csv --out model --minutes 30
    """
    parts = parts_of(train, valid, valid_sessions, test, test_sessions)
    events = events_of("tune needs either", interactions, parts, split=keywords.get("split"))
    check_report_beside(out)
    recipe = keywords.pop("recipe", None)
    tree = configured(config, recipe=recipe).with_settings(settings or [])

    from twotower.training.progress import TuningBar
    from twotower.training.search_space import SEARCHED
    from twotower.training.tune import tune as tune_model

    named = {setting.partition("=")[0].strip() for setting in settings or []}
    screen = console(json_wanted=json)
    tuned = tune_model(
        events,
        out=out,
        minutes=minutes,
        items=items,
        queries=queries,
        config=tree,
        fixed=named & set(SEARCHED),
        histories=not no_histories,
        private=private,
        resume=resume,
        progress=TuningBar(screen),
        **keywords,
    )
    if json:
        trials = [vars(trial) for trial in tuned.trials]
        print_json({**tuned.trained.figures, "trials": trials})
    screen.print(f"The bundle is at {out}.", highlight=False, markup=False, soft_wrap=True)
    report = partial(tuned.trained.report, language=lang)
    write_report_beside(out, report_path(out), report, screen)
    screen.print(
        f"All trials are in {tuned.folder.name}; --resume goes on from there.",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    if private:
        print_limits(screen)
    if tuned.stopped_early:
        raise typer.Exit(exits.STOPPED_EARLY)
