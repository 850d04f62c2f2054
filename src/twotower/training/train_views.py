"""``train_views``: one query tower for several kinds of item, each with a bundle of its own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, Unpack

import polars as pl

from twotower import html
from twotower.baselines.specs import check_baselines, check_names
from twotower.caller import passing
from twotower.config import Config, ViewConfig
from twotower.data.views import qualified
from twotower.errors import ConfigError
from twotower.evaluation.figures import measure
from twotower.evaluation.refit_notes import tell
from twotower.features.schema import VIEW
from twotower.features.transforms import SideTransforms
from twotower.keywords import Keywords, configured, takes_keywords
from twotower.losses.loss_kinds import LOSSES
from twotower.serving.bundle import Contents, SideContents, check_output
from twotower.serving.views_folder import write_views
from twotower.training.bundle_contents import contents_of
from twotower.training.callbacks import Callback
from twotower.training.choices import resolve
from twotower.training.default_progress import callback_of
from twotower.training.indexing import check_index, indexed
from twotower.training.pipeline import (
    Trained,
    fit_in_folder,
    refitted_and_told,
    untrained,
    write_after,
)
from twotower.training.private import groups_of_many, without_queries
from twotower.training.refit import Refit, learnt_by
from twotower.training.task import Given, Task, View
from twotower.training.trainer import Trainer
from twotower.vocab import Vocabulary


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
    if done.best_epoch == 0:
        teller.on_choices((untrained(done, settings.training.metric),), settings)
    interrupted = done.log[-1].get("event") == "interrupted"
    again = None
    if learnt is not None and not interrupted:
        again = refitted_and_told(trainer, done, task, learnt, bar=teller)
        interrupted = again is None
    is_refit = again is not None and learnt == "valid"
    model = trainer if again is None or learnt == "all" else again.trainer
    final = trainer if again is None else again.trainer
    trained: dict[str, Trained] = {}
    for place, name in enumerate(task.dataset.views):
        dataset = task.dataset.view(name)
        figures = measure(
            model.objectives[place].scorer(),
            dataset,
            calibrated=LOSSES[settings.loss.kind].takes_labels,
            baselines=baselines,
            refit=is_refit,
            tell=partial(_tell, teller, name),
        )
        figures["protocol"]["view"] = name
        if again is not None and learnt is not None:
            tell(figures, learnt, done.best_epoch)
        if private:
            groups_of_many(figures)
        objective = final.objectives[place]
        contents = contents_of(
            objective,
            task.sides if again is None else again.task.sides,
            figures,
            done,
            histories=histories,
            private=private,
            dataset=dataset if is_refit else None,
        )
        contents, said = indexed(contents, objective.scorer(), dataset)
        if said:
            teller.on_choices(said, contents.config)
        teller.on_figures(figures, interrupted)
        path = None if target is None else target / name
        contents = _of_view(contents, name)
        trained[name] = Trained(
            without_queries(contents) if private else contents,
            path,
            figures,
            dataset,
            task.decisions,
            before=contents if private else None,
        )
    if target is not None and work is not None:
        every = {name: each.contents for name, each in trained.items()}
        write_after(work, lambda: write_views(target, every), is_done=not interrupted)
    return TrainedViews(trained, target)


def _tell(teller: Callback, view: str, phase: str) -> None:
    teller.on_phase(f"{view}: {phase}")


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


def _of_view(contents: Contents, name: str) -> Contents:
    """Return what the bundle of one view holds: its own items have their own ids."""
    items = contents.items
    key = items.id_column
    is_own = items.frame[VIEW] == name
    own = items.frame[key].filter(is_own).str.strip_prefix(f"{name}:")
    renamed = dict(zip(qualified(own, name), own, strict=True))

    def as_called(ids: pl.Series) -> pl.Series:
        return ids.replace(renamed)

    transforms = SideTransforms(
        items.transforms.features,
        tuple(
            type(each)(each.feature, Vocabulary(as_called(each.own_vocabulary().ids)), each.numbers)
            if each.feature.meaning == "id"
            else each
            for each in items.transforms.transforms
        ),
    )
    frame = items.frame.with_columns(as_called(items.frame[key]))
    return replace(
        contents,
        items=SideContents(Vocabulary(as_called(items.ids.ids)), key, frame, transforms),
        view=name,
    )
