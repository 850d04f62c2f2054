"""``train``: from tables to a trained, evaluated bundle."""

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Literal, Unpack

from torch import nn

from twotower.baselines.specs import check_baselines, check_names
from twotower.caller import argument
from twotower.config import Config
from twotower.data.tables import Table
from twotower.errors import ArgumentError, ConfigError
from twotower.keywords import Keywords, configured, events_of, parts_of, takes_keywords
from twotower.serving.bundle import check_output
from twotower.training.callbacks import Callback, Callbacks
from twotower.training.choices import resolve
from twotower.training.default_progress import callback_of
from twotower.training.finish import finish, fit_in_folder
from twotower.training.indexing import check_index
from twotower.training.loggers import MLflowLogger, TensorBoardLogger
from twotower.training.query_ids import better_of_both, tries_ids
from twotower.training.refit import (
    Refit,
    learnt_by,
)
from twotower.training.task import Given, Task
from twotower.training.trained import Trained
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

    Args:
        interactions: A file or a frame of events; or a mapping with ``train``, ``test`` and on wish
            ``valid``, which are then taken as they are; ``test_sessions`` and ``valid_sessions`` in their
            place hold new queries, each with the events before the one that is asked for.
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
        resume: Whether to go on from the checkpoint that an interrupted training left beside ``out``.
        seeds: How many times to train, each with another seed, at least 1. The bundle is that of the
            first; the figures then say how far the others spread, under ``seeds``.
        baselines: What the model is held against; see ``fit_baselines``.
        refit: Whether to train once more, after the choice of epochs and for as many, on training and
            validation events together; the figures are those of that model. ``"all"``, for production,
            learns the test events, too, and puts them into the histories: the figures are then those of the
            model before, and are told as such.
        progress: ``"auto"`` shows a bar in a terminal and in a notebook, and nothing elsewhere; ``"bar"``
            shows one everywhere, None nowhere; or a ``Callback`` of your own, which is told how it goes.
        loggers: More callbacks, which are told of the first seed: ``TensorBoardLogger``,
            ``MLflowLogger``, your own. Where validation decides whether queries have ids, they see the
            training without and the chosen model's figures.
        tensorboard: Folder in which the training is logged for TensorBoard, in a folder of its own.
        mlflow: Experiment of an MLflow server to which it is logged.
        name: What the data is called in reports; by default the file's name.
        **keywords: Single settings, which win over ``config``: ``recipe``, ``split``, ``query_column``,
            ``item_column``, ``time_column``, ``label_column``, ``weight_column``, ``position_column``,
            ``impressions_column``, ``event_column``, ``target_events``, ``drop_null_ids``, ``recall``. See
            ``keywords.Keywords``.

    Raises:
        DataError: A table cannot be used as it is.
        ConfigError: A setting is unknown, out of range, or does not go with the data, or a baseline.
        MissingExtraError: The library of a baseline that is named is not installed.
        BundleError: ``out`` cannot be written.
        ValueError: Two towers of different widths, ``seeds`` is below 1, or ``refit`` is something else.
    """
    learnt = learnt_by(refit)
    if seeds < 1:
        raise ArgumentError(f"{argument('seeds')} must be at least 1, got {seeds}.")
    parts = parts_of(train, valid, valid_sessions, test, test_sessions)
    interactions = events_of("train needs either", interactions, parts, split=keywords.get("split"))
    settings = configured(config, **keywords)
    if settings.views:
        raise ConfigError(
            f"{argument('config')} must hold no views for train, got some; use train_views."
        )
    check_index(settings)
    check_names(baselines)
    target = None if out is None else check_output(out)
    bar = callback_of(progress)
    teller = Callbacks([bar, *loggers, *_loggers(tensorboard, mlflow, target)])
    task = Task.of(
        interactions, items=items, queries=queries, config=settings, name=name, private=private
    )
    dataset, sides, settings = task.dataset, task.sides, task.config
    check_baselines(dataset, baselines)
    teller.on_data(dataset, task.decisions, sides.features)
    own = {"query": query_tower, "item": item_tower}
    custom = tuple(side for side, module in own.items() if module is not None)
    for side in custom:
        if not any(t.feature.meaning != "id" for t in getattr(sides, side).transforms):
            table = "queries" if side == "query" else "items"
            raise ConfigError(
                f"{side}_tower must have features to read, got a {side} table without any; "
                f"give them as {table}=, or leave {side}_tower out."
            )
    given = settings
    settings, choices = resolve(given, dataset, custom=custom)
    is_open = not custom and tries_ids(given, settings, dataset)
    if is_open:
        decided = (said for said in choices if not said.startswith("towers.query_id"))
        choices = (*decided, "towers.query_id: both are trained; validation decides")
        undecided = replace(settings, towers=replace(settings.towers, query_id="auto"))
    teller.on_choices(choices, undecided if is_open else settings)
    towers = {"query_tower": query_tower, "item_tower": item_tower}
    untrained = deepcopy(towers) if seeds > 1 or learnt is not None else {}
    trainer = Trainer(dataset, sides, settings, **towers)
    of_seed = f", seed {settings.training.seed} (1 of {seeds})" if seeds > 1 else ""
    teller.on_phase(f"training{' without query ids' if is_open else ''}{of_seed}")
    done, work = fit_in_folder(trainer, target, resume=resume, teller=teller)
    if is_open and not done.interrupted:
        trainer, done, said = better_of_both(trainer, done, sides, bar)
        bar.on_choices((said,), trainer.config)
    (trained,) = finish(
        task,
        trainer,
        done,
        out=target,
        work=work,
        histories=histories,
        baselines=baselines,
        learnt=learnt,
        seeds=seeds,
        towers=towers,
        untrained=untrained,
        bar=bar,
        teller=teller,
    )
    return trained


def _loggers(
    tensorboard: str | Path | None, mlflow: str | None, out: Path | None
) -> Iterator[Callback]:
    """Yield the loggers that keywords name."""
    if tensorboard is not None:
        run = "model" if out is None else out.resolve().name
        yield TensorBoardLogger(Path(tensorboard) / run)
    if mlflow is not None:
        yield MLflowLogger(mlflow)
