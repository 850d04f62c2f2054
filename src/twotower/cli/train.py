"""``twotower train``."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, Unpack

import typer
from rich.console import Console

from twotower.caller import flag
from twotower.cli import exits, options
from twotower.cli.output import (
    check_report_beside,
    console,
    print_json,
    print_limits,
    report_path,
    write_report_beside,
)
from twotower.config import Config
from twotower.errors import ConfigError
from twotower.keywords import Keywords, configured, events_of, parts_of


@options.with_keywords()
def command(
    out: Annotated[Path, typer.Option(help="Folder of the bundle to write.")],
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
        bool, typer.Option("--resume", help="Go on with a training that was interrupted.")
    ] = False,
    seeds: Annotated[int, typer.Option(help="Train so often, and show the spread.")] = 1,
    baselines: options.Baselines = "auto",
    refit: Annotated[
        bool,
        typer.Option(
            "--refit", help="Train once more on training and validation events; test that model."
        ),
    ] = False,
    refit_all: Annotated[
        bool,
        typer.Option(
            "--refit-all",
            help="For production: train once more on all events, the test's included; no figures of it.",
        ),
    ] = False,
    tensorboard: Annotated[
        Path | None, typer.Option(help="Log for TensorBoard, to a folder in this one.")
    ] = None,
    mlflow: Annotated[
        str | None, typer.Option(help="Log to this experiment of an MLflow server.")
    ] = None,
    lang: options.Lang = "en",
    json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
    **keywords: Unpack[Keywords],
) -> None:
    """Train a model on a table of interactions, evaluate it, and write it as a bundle with a report.

    Several kinds of item that share the queries are stated as [[views]] in the --config file, with their
    tables; --out is then a folder with a bundle of each.

    Example: twotower train --interactions ratings.csv --items movies.csv --out model
    """
    recipe = keywords.pop("recipe", None)
    tree = configured(config, recipe=recipe).with_settings(settings or [])
    if refit and refit_all:
        raise ConfigError("--refit and --refit-all must not both be given; leave one out.")
    again: Literal["all"] | bool = "all" if refit_all else refit

    screen = console(json_wanted=json)
    parts = parts_of(train, valid, valid_sessions, test, test_sessions)
    if tree.views:
        alone = {"interactions": interactions, "items": items, "tensorboard": tensorboard, **parts}
        _refuse(alone | {"mlflow": mlflow, "seeds": None if seeds == 1 else seeds})
        _train_views(
            tree,
            queries,
            out,
            screen,
            histories=not no_histories,
            private=private,
            resume=resume,
            lang=lang,
            baselines=baselines,
            refit=again,
            json=json,
            keywords=keywords,
        )
        return
    events = events_of("train needs either", interactions, parts, split=keywords.get("split"))
    check_report_beside(out)

    from twotower.training.pipeline import train as train_model
    from twotower.training.progress import ProgressBar

    trained = train_model(
        events,
        items=items,
        queries=queries,
        out=out,
        config=tree,
        histories=not no_histories,
        private=private,
        resume=resume,
        seeds=seeds,
        baselines=options.baselines_of(baselines),
        refit=again,
        progress=ProgressBar(screen),
        tensorboard=tensorboard,
        mlflow=mlflow,
        **keywords,
    )
    if json:
        print_json(trained.figures)
    screen.print(f"The bundle is at {out}.", highlight=False, markup=False, soft_wrap=True)
    write_report_beside(out, report_path(out), partial(trained.report, language=lang), screen)
    if private:
        print_limits(screen)
    if trained.stopped_early:
        raise typer.Exit(exits.STOPPED_EARLY)


def _refuse(given: Mapping[str, object]) -> None:
    """Refuse options that are of one kind of item where the settings state several."""
    flags = [flag(name) for name, value in given.items() if value is not None]
    if flags:
        raise ConfigError(
            f"{', '.join(flags)} must not stand beside [[views]], whose tables --config names; "
            "leave it out."
        )


def _train_views(
    tree: Config,
    queries: Path | None,
    out: Path,
    screen: Console,
    *,
    histories: bool,
    private: bool,
    resume: bool,
    lang: options.Language,
    baselines: str,
    refit: Literal["all"] | bool,
    json: bool,
    keywords: Keywords,
) -> None:
    from twotower.training.pipeline import train_views, views_of
    from twotower.training.progress import ProgressBar

    beside = {
        view.name: out.resolve().with_name(f"{out.resolve().name}-{view.name}")
        for view in tree.views
    }
    for place in beside.values():
        check_report_beside(place)
    trained = train_views(
        views_of(tree),
        queries=queries,
        out=out,
        config=tree,
        histories=histories,
        private=private,
        resume=resume,
        baselines=options.baselines_of(baselines),
        refit=refit,
        progress=ProgressBar(screen),
        **keywords,
    )
    if json:
        print_json({name: view.figures for name, view in trained.views.items()})
    screen.print(f"The bundles are in {out}.", highlight=False, markup=False, soft_wrap=True)
    for name, view in trained.views.items():
        page = report_path(beside[name])
        said = f"The report of {name}"
        write = partial(view.report, language=lang)
        write_report_beside(out / name, page, write, screen, name=said)
    if private:
        print_limits(screen)
    if any(view.stopped_early for view in trained.views.values()):
        raise typer.Exit(exits.STOPPED_EARLY)
