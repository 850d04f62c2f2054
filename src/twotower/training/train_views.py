"""``train_views``: one query tower for several kinds of item, each with a bundle of its own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Unpack

from twotower import html
from twotower.baselines.specs import check_baselines, check_names
from twotower.caller import passing
from twotower.config import Config, ViewConfig
from twotower.errors import ConfigError
from twotower.keywords import Keywords, configured, takes_keywords
from twotower.serving.bundle import check_output
from twotower.training.callbacks import Callback
from twotower.training.choices import resolve
from twotower.training.default_progress import callback_of
from twotower.training.finish import finish, fit_in_folder
from twotower.training.indexing import check_index
from twotower.training.refit import Refit, learnt_by
from twotower.training.task import Given, Task, View
from twotower.training.trained import Trained
from twotower.training.trainer import Trainer


@dataclass(frozen=True, eq=False, repr=False)
class TrainedViews:
    """What ``train_views`` returns: by a view's name, what ``train`` returns.

    Args:
        views: The views, in their order.
        path: Where their bundles stand, or None where none was asked for.
    """

    views: Mapping[str, Trained]
    path: Path | None

    def __repr__(self) -> str:
        return f"TrainedViews({', '.join(f'{n}: {view!r}' for n, view in self.views.items())})"

    def _repr_html_(self) -> str:
        return html.block(
            *(html.text(name, bold=True) + view._repr_html_() for name, view in self.views.items())
        )

    def __getitem__(self, name: str) -> Trained:
        """Return one view.

        Raises:
            KeyError: There is none of this name.
        """
        return self.views[name]


@takes_keywords
def train_views(
    views: Mapping[str, View],
    *,
    queries: Given | None = None,
    out: str | Path | None = None,
    config: Config | Mapping[str, object] | str | Path | None = None,
    histories: bool = True,
    private: bool = False,
    resume: bool = False,
    baselines: Literal["auto"] | Sequence[str] = "auto",
    refit: Refit = False,
    progress: Callback | Literal["auto", "bar"] | None = "auto",
    **keywords: Unpack[Keywords],
) -> TrainedViews:
    """Train one query tower for several kinds of item, and write a bundle of each.

    A query's history holds its events in every view, so that one who is new in a view and known in
    another is answered by what is known. In a bundle the view's own items have their own ids, and items
    of another view, which histories may hold, are called ``view:id``.

    Args:
        views: Two or more, each under its name; queries are the same where their ids are.
        queries: A file or a frame of the queries' columns.
        out: Folder to write; None keeps all in memory. ``open_views`` reads it.
        config: Settings, as ``train`` takes them; ``data`` holds for every view.
        histories: Whether the bundles hold the queries' histories and test items.
        private: As ``train`` takes it.
        resume: Whether to go on from the checkpoint that an interrupted training left beside ``out``.
        baselines: As ``train`` takes it.
        refit: As ``train`` takes it.
        progress: As ``train`` takes it.
        **keywords: Single settings, which hold for every view; as ``train`` takes them.

    Raises:
        DataError: A table cannot be used as it is; the view is named.
        ConfigError: A setting is unknown, out of range, or does not go with the data.
        BundleError: ``out`` cannot be written.

    Source: Elkahky et al., WWW 2015 (MV-DNN). Differs: what a query did in other views is read as its
        history, as of the moment, in place of counts over all time.
    """
    learnt = learnt_by(refit)
    settings = configured(config, **keywords)
    told = tuple(_told(name, view) for name, view in views.items())
    if len(told) < 2:
        raise ConfigError(f"views must be two or more, got {len(told)}; use train for one.")
    settings = replace(settings, views=told)
    check_index(settings)
    check_names(baselines)
    target = None if out is None else check_output(out, views=True)
    teller = callback_of(progress)
    task = Task.of_views(views, queries=queries, config=settings, private=private)
    for view in task.dataset.all_views():
        check_baselines(view, baselines)
    teller.on_data(task.dataset, tuple(dict.fromkeys(task.decisions)), task.sides.features)
    settings, choices = resolve(task.config, task.dataset)
    teller.on_choices(choices, settings)
    trainer = Trainer(task.dataset, task.sides, settings)
    teller.on_phase("training")
    done, work = fit_in_folder(trainer, target, resume=resume, teller=teller)
    trained = finish(
        task,
        trainer,
        done,
        out=target,
        work=work,
        histories=histories,
        baselines=baselines,
        learnt=learnt,
        bar=teller,
    )
    return TrainedViews(dict(zip(task.dataset.views, trained, strict=True)), target)


def views_of(config: Config) -> dict[str, View]:
    """Return the views that a configuration describes by the paths of their tables.

    Raises:
        ConfigError: A view has no table, or one too many.
    """
    views = {}
    for view in config.views:
        parts = {"train": view.train, "valid": view.valid, "test": view.test}
        given = {part: Path(path) for part, path in parts.items() if path is not None}
        if (view.interactions is None) == (not given):
            raise ConfigError(
                f"view {view.name!r} must have either interactions, or train and test, "
                f"got {'both' if given else 'neither'}."
            )
        table = Path(view.interactions) if view.interactions is not None else given
        items = None if view.items is None else Path(view.items)
        views[view.name] = View(table, items, view.share)
    return views


def _told(name: str, view: View) -> ViewConfig:
    if not isinstance(view, View):
        raise ConfigError(
            f"views[{name!r}] must be a View, got {type(view).__name__}; write "
            f"twotower.View(interactions, {passing(items=...)})."
        )
    try:
        return ViewConfig(name=name, share=view.share, **_paths_of(view))
    except ConfigError as error:
        raise ConfigError(f"views[{name!r}]: {error}") from error


def _paths_of(view: View) -> dict[str, str]:
    """Return the tables that are files, as the configuration names them."""
    given = view.interactions
    tables = dict(given) if isinstance(given, Mapping) else {"interactions": given}
    tables["items"] = view.items
    names = ("interactions", "train", "valid", "test", "items")
    return {
        name: str(table)
        for name, table in tables.items()
        if name in names and isinstance(table, (str, Path))
    }
