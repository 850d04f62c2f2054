"""``twotower train``."""

from pathlib import Path
from typing import Annotated

import typer

from twotower.cli.output import console, print_json, report_path
from twotower.config import Config
from twotower.errors import ConfigError

NAME = "train"


def command(
    out: Annotated[Path, typer.Option(help="Folder of the bundle to write.")],
    interactions: Annotated[Path | None, typer.Option(help="Table of events.")] = None,
    items: Annotated[Path | None, typer.Option(help="Table of the items' columns.")] = None,
    queries: Annotated[Path | None, typer.Option(help="Table of the queries' columns.")] = None,
    train: Annotated[Path | None, typer.Option(help="Given split: training events.")] = None,
    valid: Annotated[Path | None, typer.Option(help="Given split: validation events.")] = None,
    test: Annotated[Path | None, typer.Option(help="Given split: test events.")] = None,
    split: Annotated[
        str | None, typer.Option(help="leave-last-out, random, temporal or cold-items.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file of settings.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="One setting: section.field=value.")
    ] = None,
    query_column: Annotated[str | None, typer.Option(help="Column of the query ids.")] = None,
    item_column: Annotated[str | None, typer.Option(help="Column of the item ids.")] = None,
    time_column: Annotated[str | None, typer.Option(help="Column of the times.")] = None,
    label_column: Annotated[str | None, typer.Option(help="Column of labels or ratings.")] = None,
    weight_column: Annotated[str | None, typer.Option(help="Column of counts.")] = None,
    drop_null_ids: Annotated[
        bool, typer.Option("--drop-null-ids", help="Leave out rows without an id.")
    ] = False,
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
    given = {"train": train, "valid": valid, "test": test}
    files = {part: path for part, path in given.items() if path is not None}
    if (interactions is None) == (not files):
        raise ConfigError("train needs either --interactions, or --train and --test.")
    if files and not {"train", "test"} <= set(files):
        raise ConfigError(
            f"--train and --test must both be given, got --{' and --'.join(files)} only."
        )
    if files and split is not None:
        raise ConfigError(f"--split must not go with given files, got {split!r}; leave it out.")
    columns = {
        "query_column": query_column,
        "item_column": item_column,
        "time_column": time_column,
        "label_column": label_column,
        "weight_column": weight_column,
    }
    tree = Config() if config is None else Config.from_toml(config)
    tree = tree.with_settings(settings or [])
    flags: dict[str, dict[str, object]] = tree.to_dict()
    flags["data"] |= {name: column for name, column in columns.items() if column is not None}
    if drop_null_ids:
        flags["data"]["drop_null_ids"] = True
    if split is not None:
        flags["split"]["kind"] = split
    tree = Config.from_dict(flags)

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
        interactions if interactions is not None else files,
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
