"""``twotower train``."""

from pathlib import Path
from typing import Annotated

import typer

from twotower.cli import tables
from twotower.cli.output import console, print_json, report_path

NAME = "train"


def command(
    out: Annotated[Path, typer.Option(help="Folder of the bundle to write.")],
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
    impressions_column: tables.ImpressionsColumn = None,
    event_column: tables.EventColumn = None,
    target_events: tables.TargetEvents = None,
    drop_null_ids: tables.DropNullIds = False,
    no_histories: Annotated[
        bool, typer.Option("--no-histories", help="Keep the queries' histories out of the bundle.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a training that was interrupted.")
    ] = False,
    seeds: Annotated[int, typer.Option(help="Train so often, and show the spread.")] = 1,
    tensorboard: Annotated[
        Path | None, typer.Option(help="Log for TensorBoard, to a folder in this one.")
    ] = None,
    mlflow: Annotated[
        str | None, typer.Option(help="Log to this experiment of an MLflow server.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Train a model on a table of interactions, evaluate it, and write it as a bundle with a report.

    Example: twotower train --interactions ratings.csv --items movies.csv --out model
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
        needs="train needs either --interactions, or --train and --test.",
    )
    columns = {
        "query_column": query_column,
        "item_column": item_column,
        "time_column": time_column,
        "label_column": label_column,
        "weight_column": weight_column,
        "impressions_column": impressions_column,
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

    from twotower.training.loggers import MLflowLogger, TensorBoardLogger
    from twotower.training.pipeline import Teller
    from twotower.training.pipeline import train as train_model
    from twotower.training.progress import ProgressBar

    loggers: list[Teller] = []
    if tensorboard is not None:
        loggers.append(TensorBoardLogger(tensorboard / out.resolve().name))
    if mlflow is not None:
        loggers.append(MLflowLogger(mlflow))
    screen = console(json_wanted=json)
    trained = train_model(
        events,
        items=items,
        queries=queries,
        out=out,
        config=tree,
        histories=not no_histories,
        resume=resume,
        seeds=seeds,
        progress=ProgressBar(screen),
        loggers=loggers,
    )
    if json:
        print_json(trained.figures)
    screen.print(f"The bundle is at {out}.", highlight=False, markup=False, soft_wrap=True)
    page = report_path(out)
    trained.report(page)
    screen.print(f"Its report is at {page}.", highlight=False, markup=False, soft_wrap=True)
