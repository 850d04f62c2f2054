"""``twotower train``."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

import twotower
from twotower.caller import flag
from twotower.cli import exits, options, output
from twotower.errors import ConfigError
from twotower.keywords import PARTS

if TYPE_CHECKING:
    from twotower.training.trained import Trained


@options.reads_tables(after="out")
def command(
    *,
    out: Path,
    resume: bool = False,
    minutes: float | None = None,
    teacher: Path | None = None,
    seeds: int = 1,
    baselines: str = "auto",
    refit: bool = False,
    refit_all: bool = False,
    tensorboard: Path | None = None,
    mlflow: str | None = None,
    lang: options.Language = "en",
    json: bool = False,
    **given: Any,
) -> None:
    """Train a model on a table of interactions, evaluate it, and write it as a bundle with a report.

    Several kinds of item that share the queries are stated as [[views]] in the --config file, with their
    tables; --out is then a folder with a bundle of each.

    Example: twotower train --interactions ratings.csv --items movies.csv --out model

    Args:
        out: Folder of the bundle to write.
        resume: Go on with a training that Ctrl-C or --minutes ended. A killed one goes on by itself.
        minutes: End the training after so many minutes, as Ctrl-C does.
        teacher: Folder of a bundle with a second stage, whose ranking the model learns, too.
        seeds: Train so often, and show the spread.
        refit: Train once more on training and validation events; test that model.
        refit_all: For production: train once more on all events, the test's included; no figures of it.
        tensorboard: Log for TensorBoard, to a folder in this one.
        mlflow: Log to this experiment of an MLflow server.
        json: Print the figures as JSON.
    """
    tree = options.take_settings(given)
    if refit and refit_all:
        raise ConfigError("--refit and --refit-all must not both be given; leave one out.")
    if tree.views:
        alone = {name: given.pop(name) for name in ("interactions", "items", *PARTS)}
        alone |= {"tensorboard": tensorboard, "mlflow": mlflow, "teacher": teacher}
        alone["seeds"] = None if seeds == 1 else seeds
        flags = [flag(name) for name, value in alone.items() if value is not None]
        if flags:
            raise ConfigError(
                f"{', '.join(flags)} cannot be combined with [[views]], whose tables --config names; "
                "leave it out."
            )
        folder = out.resolve()
        places = {view.name: folder.with_name(f"{folder.name}-{view.name}") for view in tree.views}
    else:
        events = options.take_events(given, "train needs either")
        places = {"": out}
    for place in places.values():
        output.check_report_beside(place)

    from twotower.training.pipeline import views_of
    from twotower.training.progress import ProgressBar

    screen = output.console(json_wanted=json)
    given |= {
        "out": out,
        "config": tree,
        "histories": not given.pop("no_histories"),
        "resume": resume,
        "minutes": minutes,
        "baselines": options.baselines_of(baselines),
        "refit": "all" if refit_all else refit,
        "progress": ProgressBar(screen),
    }
    trained: Mapping[str, Trained]
    if tree.views:
        trained = twotower.train_views(views_of(tree), **given).views
    else:
        trained = {
            "": twotower.train(
                events,
                seeds=seeds,
                teacher=teacher,
                tensorboard=tensorboard,
                mlflow=mlflow,
                **given,
            )
        }
    if json:
        figures = {name: model.figures for name, model in trained.items()}
        output.print_json(figures if tree.views else figures[""])
    output.say(screen, f"The bundles are in {out}." if tree.views else f"The bundle is at {out}.")
    for name, model in trained.items():
        page = output.report_path(places[name])
        called = f"The report of {name}" if name else "Its report"
        output.write_report_beside(out / name, page, model, lang, screen, name=called)
    if given["private"]:
        output.print_limits(screen)
    if any(model.stopped_early for model in trained.values()):
        raise typer.Exit(exits.STOPPED_EARLY)
