"""``twotower tune``."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from twotower.cli import exits, tables
from twotower.cli.output import (
    check_report_beside,
    console,
    print_json,
    print_limits,
    report_path,
    write_report_beside,
)

NAME = "tune"


def command(
    out: Annotated[Path, typer.Option(help="Folder of the bundle to write.")],
    minutes: Annotated[float, typer.Option(help="How long to search.")] = 30.0,
    interactions: tables.Interactions = None,
    items: tables.Items = None,
    queries: tables.Queries = None,
    train: tables.TrainPart = None,
    valid: tables.ValidPart = None,
    valid_sessions: tables.ValidSessions = None,
    test: tables.TestPart = None,
    test_sessions: tables.TestSessions = None,
    split: tables.Split = None,
    config: tables.ConfigFile = None,
    recipe: tables.Recipe = None,
    settings: tables.Settings = None,
    query_column: tables.QueryColumn = None,
    item_column: tables.ItemColumn = None,
    time_column: tables.TimeColumn = None,
    label_column: tables.LabelColumn = None,
    weight_column: tables.WeightColumn = None,
    position_column: tables.PositionColumn = None,
    event_column: tables.EventColumn = None,
    target_events: tables.TargetEvents = None,
    drop_null_ids: tables.DropNullIds = False,
    no_histories: tables.NoHistories = False,
    private: tables.Private = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the search that stands beside the bundle.")
    ] = False,
    lang: tables.Lang = "en",
    json: Annotated[
        bool, typer.Option("--json", help="Print the figures and the trials as JSON.")
    ] = False,
) -> None:
    """Search settings on validation for some minutes, and write the best model as a bundle.

    What --set names, or --config has otherwise than the defaults, is kept and not searched.

    Example: twotower tune --interactions ratings.csv --items movies.csv --out model --minutes 30
    """
    events = tables.events_of(
        interactions,
        {
            "train": train,
            "valid": valid,
            "valid_sessions": valid_sessions,
            "test": test,
            "test_sessions": test_sessions,
        },
        split,
        needs="tune needs either --interactions, or --train and --test.",
    )
    check_report_beside(out)
    columns = {
        "query_column": query_column,
        "item_column": item_column,
        "time_column": time_column,
        "label_column": label_column,
        "weight_column": weight_column,
        "position_column": position_column,
        "event_column": event_column,
    }
    tree = tables.config_of(
        config,
        settings,
        recipe=recipe,
        columns=columns,
        target_events=target_events,
        drop_null_ids=drop_null_ids,
        split=split,
    )

    from twotower.training.search_space import SEARCHED
    from twotower.training.tune import tune as tune_model
    from twotower.training.tuning_bar import TuningBar

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
