"""``train`` and ``train_views``: from tables to trained, evaluated bundles."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Unpack

from torch import nn

from twotower.baselines.specs import check_baselines, check_names
from twotower.caller import argument, passing
from twotower.config import Config, ViewConfig
from twotower.data.prepared.large_tables import prepared_if_large
from twotower.data.tables import Table
from twotower.errors import ArgumentError, ConfigError, check_least
from twotower.keywords import PARTS, Keywords, configured, events_of, takes_keywords
from twotower.processes.job import alone, joined
from twotower.processes.started import check_one_process
from twotower.runtime import choose_device
from twotower.serving.bundle import check_output
from twotower.serving.retriever import Bundle
from twotower.training.baselines_ahead import BaselinesAhead
from twotower.training.best import train_best
from twotower.training.callbacks import Callback, Callbacks, check_minutes
from twotower.training.checkpoints import holding
from twotower.training.choices import resolve
from twotower.training.clock import Clock
from twotower.training.finish import finish
from twotower.training.heats import open_heats, told_with
from twotower.training.indexing import check_index
from twotower.training.loggers import MLflowLogger, TensorBoardLogger
from twotower.training.notebook import callback_of
from twotower.training.retraining import Refit, learnt_by, refitted
from twotower.training.second_stage import check_second_stage
from twotower.training.several_processes import check_alike, check_settings
from twotower.training.task import Given, Task, View, name_of
from twotower.training.teaching import Teacher
from twotower.training.trained import Trained, TrainedViews
from twotower.training.trainer import Trainer


@takes_keywords
def train(
    interactions: Table | Mapping[str, Table] | None = None,
    *,
    items: Given | None = None,
    queries: Given | None = None,
    train: Table | None = None,
    valid: Table | None = None,
    valid_sessions: Table | None = None,
    test: Table | None = None,
    test_sessions: Table | None = None,
    out: str | Path | None = None,
    config: Config | Mapping[str, object] | str | Path | None = None,
    query_tower: nn.Module | None = None,
    item_tower: nn.Module | None = None,
    histories: bool = True,
    private: bool = False,
    resume: bool = False,
    minutes: float | None = None,
    teacher: "Bundle | None" = None,
    seeds: int = 1,
    baselines: Literal["auto"] | Sequence[str] = "auto",
    refit: Refit = False,
    progress: Callback | Literal["auto", "bar"] | None = "auto",
    loggers: Sequence[Callback] = (),
    tensorboard: str | Path | None = None,
    mlflow: str | None = None,
    name: str | None = None,
    **keywords: Unpack[Keywords],
) -> Trained:
    """Train a two-tower model on a table of interactions, evaluate it, and write it as a bundle.

    Where ``torchrun`` started several processes, all of them train, and each step is that of one process
    with the same batch. The first one evaluates and writes; the others end here.

    Args:
        interactions: A file or a frame of events; a folder or a glob pattern of such files; or the folder
            of ``prepare_folder``, which holds all tables. Or a mapping with ``train``, ``test`` and
            optionally ``valid``, which are then taken as they are; ``test_sessions`` and ``valid_sessions``
            in their place hold new queries, each with the events before the one to predict.
        items: A file or a frame of the items' columns; or an ``(I, d)`` array or tensor, whose ids
            are 0 to I - 1.
        queries: The same for the queries.
        train: Training events, where the parts are given, in place of ``interactions``.
        valid: Validation events; without any, some of the training events become it.
        valid_sessions: New sessions in their place; the model predicts the last event of each.
        test: Test events.
        test_sessions: New sessions in their place.
        out: Where to write the bundle; None keeps it in memory.
        config: Settings: a ``Config``, a nested dictionary of what differs from the defaults, or
            the path of a TOML file.
        query_tower: A module of your own in the query tower's place: it is called with a dictionary
            of the transformed query features, or with the one tensor where there is just one, and
            returns ``(n, dim)``.
        item_tower: The same for the items.
        histories: Whether the bundle holds the queries' histories and test items.
        private: Whether the bundle holds nothing of any one query: no id, no history, no column that the
            model does not read, and no value that few queries have. ``training.private.LIMITS`` says what
            it cannot answer then; see docs/security.md.
        resume: Whether to go on from the checkpoint that a training left beside ``out`` when Ctrl-C or
            ``minutes`` ended it; there must be one. A training that was killed goes on without it, when the
            same call is repeated.
        minutes: Budget of the training on the wall clock, above 0; None has no limit. When the time is up,
            the training ends as by Ctrl-C: the best weights so far are kept, and ``resume`` goes on. The
            race counts; reading the data, the closed form and the evaluation come on top. ``refit`` is
            then left out.
        teacher: A bundle with a second stage on the same items, whose ranking the model learns beside the
            events; see ``Retriever.of``. How much is said by ``[teacher]`` in ``config``.
        seeds: How many times to train, each with another seed, at least 1. The bundle is that of the
            first; the figures then say how far the others spread, under ``seeds``.
        baselines: What the model is held against; see ``fit_baselines``.
        refit: Whether to train once more, after the choice of epochs and for as many, on training and
            validation events together; the figures are those of that model. ``"all"``, for production,
            learns the test events, too, and puts them into the histories: the figures are then those of the
            model before, and say so.
        progress: ``"auto"`` shows a bar in a terminal and in a notebook, and nothing elsewhere; ``"bar"``
            shows one everywhere, None nowhere; or a ``Callback`` of your own.
        loggers: More callbacks for the training with the first seed: ``TensorBoardLogger``,
            ``MLflowLogger``, your own. Where there is a race, they follow the winner of it.
        tensorboard: Folder in which the training is logged for TensorBoard, in a folder of its own.
        mlflow: Experiment of an MLflow server to which it is logged.
        name: What the data is called in reports; by default the file's name.
        **keywords: Single settings, which win over ``config``: ``recipe``, ``split``, ``query_column``,
            ``item_column``, ``time_column``, ``label_column``, ``weight_column``, ``position_column``,
            ``impressions_column``, ``event_column``, ``target_events``, ``drop_null_ids``, ``recall``. See
            ``keywords.Keywords``.

    Raises:
        DataError: A table cannot be used as it is, or the teacher's items are others.
        ConfigError: A setting is unknown, out of range, or does not go with the data, or a baseline.
        MissingExtraError: The library of a baseline that is named is not installed.
        BundleError: ``out`` cannot be written, or the teacher has no second stage.
        ValueError: Two towers of different widths, ``seeds`` is below 1, ``minutes`` is not above 0 or is
            given with several seeds, or ``refit`` is something else.
    """
    learnt = learnt_by(refit)
    check_least(1, seeds=seeds)
    check_minutes(minutes)
    if minutes is not None and seeds > 1:
        raise ArgumentError(
            f"{argument('minutes')} must be left out where {argument('seeds')} is above 1, got {minutes:g}."
        )
    parts = dict(zip(PARTS, (train, valid, valid_sessions, test, test_sessions), strict=True))
    interactions = events_of("train needs either", interactions, parts, split=keywords.get("split"))
    settings = configured(config, **keywords)
    if settings.views:
        raise ConfigError(
            f"{argument('config')} must hold no views for train, got some; use train_views."
        )
    check_index(settings)
    check_second_stage(settings, private=private)
    check_names(baselines)
    target = None if out is None else check_output(out)
    name = name or name_of(interactions)
    with (
        joined(choose_device(settings.training.device)) as job,
        ExitStack() as stack,
    ):
        if not job.is_alone:
            check_settings(settings, minutes=minutes, has_teacher=teacher is not None)
        taught_by = None if teacher is None else Teacher.of(teacher)
        if not job.is_first:
            progress, loggers, tensorboard, mlflow = None, (), None, None
        job.all_of(lambda: stack.enter_context(holding(target if job.is_first else None)))
        clock = Clock()
        bar = Callbacks([callback_of(progress), clock])
        # A budget is the training's alone, and several processes rank together.
        ahead = BaselinesAhead(baselines, refit=learnt == "valid")
        if minutes is None and job.is_alone:
            bar = Callbacks([bar, ahead])
        stack.enter_context(closing(ahead))
        told = [bar, *loggers]
        if tensorboard is not None:
            run = "model" if target is None else target.resolve().name
            told.append(TensorBoardLogger(Path(tensorboard) / run))
        if mlflow is not None:
            told.append(MLflowLogger(mlflow))
        teller = Callbacks(told)
        events, items, queries = stack.enter_context(
            prepared_if_large(interactions, items, queries, settings, out=target, tell=bar.on_phase)
        )
        task = job.all_of(
            lambda: Task.of(
                events, items=items, queries=queries, config=settings, name=name, private=private
            )
        )
        if taught_by is not None:
            taught_by.check(task.dataset)
            notes = (*task.dataset.notes, taught_by.note(task.dataset))
            task = replace(task, dataset=replace(task.dataset, notes=notes))
        dataset, sides, given = task.dataset, task.sides, task.config
        if not job.is_alone:
            check_alike(task)
        check_baselines(dataset, baselines)
        teller.on_data(dataset, task.decisions, sides.features)
        towers: dict[str, Any] = {"query_tower": query_tower, "item_tower": item_tower}
        custom = tuple(side for side in ("query", "item") if towers[f"{side}_tower"] is not None)
        for side in custom:
            if not any(t.feature.meaning != "id" for t in getattr(sides, side).transforms):
                table = "queries" if side == "query" else "items"
                raise ConfigError(
                    f"{side}_tower must have features to read, got a {side} table without any; "
                    f"give them as {table}=, or leave {side}_tower out."
                )
        settings, choices = resolve(given, dataset, custom=custom)
        heats = () if custom else open_heats(given, settings, dataset)
        teller.on_choices(told_with(choices, heats), settings)
        untrained = deepcopy(towers) if seeds > 1 or learnt is not None else {}
        of_seed = f", seed {settings.training.seed} (1 of {seeds})" if seeds > 1 else ""
        lessons, provenance = None, {}
        if taught_by is not None:
            bar.on_phase("the teacher")
            lessons = taught_by.lessons(dataset)
            provenance = {"teacher": taught_by.as_json(lessons)}
            del taught_by  # the training needs its memory
        best = train_best(
            given,
            Trainer(dataset, sides, settings, lessons=lessons, **towers),
            heats,
            out=target,
            resume=resume,
            minutes=minutes,
            stays=learnt is not None,
            phase=f"training{of_seed}",
            bar=bar,
            teller=teller,
        )
        if not job.is_first and learnt is not None:
            refitted(best.trainer, best.done, task, learnt, towers=untrained, watcher=bar)
        stack.enter_context(alone())
        (trained,) = finish(
            task,
            best.trainer,
            best.done,
            out=target,
            work=best.work,
            histories=histories,
            baselines=baselines,
            ahead=ahead,
            learnt=learnt,
            seeds=seeds,
            untrained=untrained,
            provenance=provenance,
            clock=clock,
            bar=bar,
            teller=teller,
        )
        return trained


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
    minutes: float | None = None,
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
        resume: As ``train`` takes it.
        minutes: As ``train`` takes it.
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
    check_one_process("train_views")
    learnt = learnt_by(refit)
    check_minutes(minutes)
    settings = configured(config, **keywords)
    told = tuple(_told(name, view) for name, view in views.items())
    if len(told) < 2:
        raise ConfigError(f"views must be two or more, got {len(told)}; use train for one.")
    settings = replace(settings, views=told)
    check_index(settings)
    check_second_stage(settings, private=private)
    check_names(baselines)
    target = None if out is None else check_output(out, views=True)
    clock = Clock()
    teller = Callbacks([callback_of(progress), clock])
    ahead = BaselinesAhead(baselines, refit=learnt == "valid")
    if minutes is None:
        teller = Callbacks([teller, ahead])
    with holding(target), closing(ahead):
        task = Task.of_views(views, queries=queries, config=settings, private=private)
        for view in task.dataset.all_views():
            check_baselines(view, baselines)
        teller.on_data(task.dataset, tuple(dict.fromkeys(task.decisions)), task.sides.features)
        settings, choices = resolve(task.config, task.dataset)
        heats = open_heats(task.config, settings, task.dataset)
        teller.on_choices(told_with(choices, heats), settings)
        best = train_best(
            task.config,
            Trainer(task.dataset, task.sides, settings),
            heats,
            out=target,
            resume=resume,
            minutes=minutes,
            bar=teller,
        )
        trained = finish(
            task,
            best.trainer,
            best.done,
            out=target,
            work=best.work,
            histories=histories,
            baselines=baselines,
            ahead=ahead,
            learnt=learnt,
            clock=clock,
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
    """Return what the configuration says of a view: its share, and which of its tables are files."""
    if not isinstance(view, View):
        raise ConfigError(
            f"views[{name!r}] must be a View, got {type(view).__name__}; write "
            f"twotower.View(interactions, {passing(items=...)})."
        )
    given = view.interactions
    tables = dict(given) if isinstance(given, Mapping) else {"interactions": given}
    tables["items"] = view.items
    names = ("interactions", "train", "valid", "test", "items")
    files = {n: str(t) for n, t in tables.items() if n in names and isinstance(t, (str, Path))}
    try:
        return ViewConfig(name=name, share=view.share, **files)
    except ConfigError as error:
        raise ConfigError(f"views[{name!r}]: {error}") from error
