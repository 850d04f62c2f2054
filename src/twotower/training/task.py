"""``Task``: what a model learns from, which is split events and features fitted on the training part."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias, Union

import numpy as np
import numpy.typing as npt
import polars as pl
from torch import Tensor

from twotower.caller import argument
from twotower.config import Config
from twotower.data.assembly import Preparation
from twotower.data.columns import Decision
from twotower.data.dataset import Dataset, Part, with_event_rows
from twotower.data.drawn_validation import hold_out_validation
from twotower.data.positions import weighed
from twotower.data.preparation import prepare
from twotower.data.splits import Learnt, learnt_too, split, with_order_as_asked
from twotower.data.tables import Table
from twotower.data.views import split_views
from twotower.errors import ArgumentError, ConfigError, DataError
from twotower.features import schema
from twotower.features.feature_kinds import FEATURE_KINDS
from twotower.features.transforms import Sides, SideTransforms
from twotower.features.windows import let_common_go
from twotower.training.private import of_many_queries, private_settings, read_columns
from twotower.vocab import FIRST_ROW

Given: TypeAlias = Union[Table, npt.NDArray[Any], Tensor]  # noqa: UP007 - Table names classes


@dataclass(frozen=True, eq=False)
class View:
    """One of several kinds of item that share their queries; see ``train_views``.

    Args:
        interactions: As ``train`` takes it.
        items: As ``train`` takes it.
        share: Share of the training steps, relative to the other views' shares. If no view has one, an
            epoch holds each event once.
    """

    interactions: Table | Mapping[str, Table]
    items: Given | None = None
    share: float | None = None


@dataclass(frozen=True, eq=False)
class Task:
    """Split data with fitted features, before any choice is made for the model.

    Args:
        dataset: Split in training, validation and test.
        sides: The fitted features.
        config: The given settings, with the kind of every column filled in.
        decisions: The role of each column.
        private: Whether the bundle will hold no data of single queries.
        rated: Names of the views, or the data set's, whose label 0 is a low rating.
    """

    dataset: Dataset
    sides: Sides
    config: Config
    decisions: tuple[Decision, ...]
    private: bool = False
    rated: tuple[str, ...] = ()

    def learning(self, learnt: Learnt, *, refits_features: bool = True) -> "Task":
        """Return the task of learning also from the validation events, or from all, with the same features.

        Args:
            learnt: See ``learnt_too``.
            refits_features: Whether vocabularies and scales are fitted again on the larger training part.

        Raises:
            ConfigError: The added events have no positions, which the training needs.
        """
        dataset = learnt_too(self.dataset, learnt)
        events = dataset.interactions
        if events.positions is not None:
            is_new = (dataset.parts == Part.TRAIN) & (events.is_positive | events.is_negative)
            num = int((events.positions[is_new] == 0).sum())
            if num:
                raise ConfigError(
                    f"{argument('refit')} must know the positions of what it learns, got {num:,} "
                    "events without one; give the column of positions in every file, or train without "
                    f"{argument('refit')}."
                )
            notes = dataset.notes
            dataset = replace(weighed(dataset, rated=self.rated), notes=notes)
        sides = self.sides
        if refits_features:
            own = {side: each.features for side, each in vars(sides).items() if each is not None}
            sides = _fitted(own, dataset, self.config, private=self.private)
        return replace(self, dataset=dataset, sides=sides)

    @staticmethod
    def of(
        interactions: Table | Mapping[str, Table],
        *,
        items: Given | None = None,
        queries: Given | None = None,
        config: Config,
        name: str | None = None,
        private: bool = False,
    ) -> "Task":
        """Read the tables, split the events, and fit the features on the training part.

        Args:
            interactions: As ``train`` takes it.
            items: As ``train`` takes it.
            queries: As ``train`` takes it.
            config: The settings.
            name: Name of the data; by default the name of the file.
            private: Whether the bundle will hold no data of single queries.

        Raises:
            DataError: A table cannot be used as it is.
            ConfigError: A setting does not go with the data.
            ValueError: An array of features has another shape.
        """
        config = private_settings(config) if private else config
        view = View(interactions, items)
        preparation = _prepared(view, queries, config, name or name_of(interactions))
        config = replace(config, data=preparation.config)
        divide = hold_out_validation if preparation.is_split else split
        dataset = divide(preparation.dataset, config.split)
        return _fitted_task(dataset, {dataset.name: preparation}, config, private=private)

    @staticmethod
    def of_views(
        views: Mapping[str, "View"],
        *,
        queries: Given | None = None,
        config: Config,
        private: bool = False,
    ) -> "Task":
        """Read the tables of several views, split the events, and fit the features of all.

        Args:
            views: Two or more, by their names.
            queries: As ``train`` takes it.
            config: The settings.
            private: As ``of`` takes it.

        Raises:
            DataError: A table cannot be used as it is; the view is named.
            ConfigError: A setting does not go with the data.
        """
        config = private_settings(config) if private else config
        if config.data.order == "file":
            raise ConfigError(
                "data.order must be 'time' or 'none' for views, got 'file': files say nothing of the "
                "order between them."
            )
        prepared = {}
        for name, view in views.items():
            try:
                prepared[name] = _prepared(view, queries, config, name)
            except DataError as error:
                raise DataError(f"view {name!r}: {error}") from error
        is_split = [preparation.is_split for preparation in prepared.values()]
        datasets = {name: preparation.dataset for name, preparation in prepared.items()}
        dataset = split_views(datasets, is_split, config.split)
        key = dataset.items.id_column
        if config.features.item.get(key, "id") != "id":
            raise ConfigError(
                f"features.item.{key} must be 'id' for views, got {config.features.item[key]!r}: ids that "
                f"are text are read by the column '{key} as text'."
            )
        kinds: dict[str, str] = {schema.VIEW: "shown", **config.features.item}
        config = replace(config, features=replace(config.features, item=kinds))
        return _fitted_task(dataset, prepared, config, private=private)


def _prepared(view: View, queries: Given | None, config: Config, name: str) -> Preparation:
    """Return the tables of one kind of item, read."""
    return prepare(
        view.interactions,
        items=_as_table(view.items, "item_id"),
        queries=_as_table(queries, "query_id"),
        config=config.data,
        features=config.features,
        name=name,
    )


def _fitted_task(
    dataset: Dataset, prepared: Mapping[str, Preparation], config: Config, *, private: bool
) -> Task:
    """Return the task of split events: their order, their weights by position, their features."""
    if config.data.order == "auto":
        dataset = with_order_as_asked(dataset)
    rated = tuple(name for name, preparation in prepared.items() if preparation.is_rated)
    dataset = weighed(dataset, rated=rated)
    sides, config = _fit_features(dataset, config, private=private)
    if private:
        dataset = replace(dataset, queries=read_columns(dataset.queries, sides.query))
    if sides.event is not None:
        dataset = with_event_rows(dataset)
    decisions = tuple(d for preparation in prepared.values() for d in preparation.decisions)
    return Task(dataset, sides, config, decisions, private, rated)


def name_of(interactions: object) -> str:
    """Return what data are called that were given no name: as their file, if they are one."""
    if isinstance(interactions, Mapping):
        interactions = interactions.get("train")
    return Path(interactions).name if isinstance(interactions, (str, Path)) else "a frame"


def _as_table(given: Given | None, id_column: str) -> Table | None:
    """Return an array as a table of one vector column, and anything else as it is."""
    if isinstance(given, Tensor):
        given = given.detach().cpu().double().numpy()  # numpy has no bfloat16
    if not isinstance(given, np.ndarray):
        return given
    if given.ndim != 2 or not np.issubdtype(given.dtype, np.number):
        raise ArgumentError(
            f"an array of features must have shape (n, d) and hold numbers, got {given.shape} "
            f"of {given.dtype}."
        )
    vectors = pl.Series("features", np.ascontiguousarray(given, np.float64))
    return pl.DataFrame({id_column: np.arange(len(given)), "features": vectors})


def _fit_features(dataset: Dataset, config: Config, *, private: bool) -> tuple[Sides, Config]:
    """Return the fitted features, and the config with the kind of every column written down."""
    features: dict[str, tuple[schema.Feature, ...]] = {}
    for side, table in dataset.sides.items():
        is_text = dataset.has_searches if side == "query" else schema.reads_as_text(table.ids.ids)
        is_read = {"auto": is_text, "yes": True, "no": False}[config.features.id_text]
        features[side] = schema.infer_features(
            table.frame,
            side,
            table.id_column,
            getattr(config.features, side),
            # The text of the views' item ids has a column of its own.
            key_text=is_read and not (side == "item" and dataset.views),
            settings=config.features,
            forms=table.forms,
        )
    kinds: dict[str, Any] = {side: schema.kinds_of(own) for side, own in features.items()}
    every = [feature for own in features.values() for feature in own]
    if config.features.tune_sentences and not any(feature.tuned for feature in every):
        raise ConfigError(
            "features.tune_sentences must be false where no column of queries or items is a sentence, got "
            "true; set features.text = 'sentence', or state the kind of a column."
        )
    of_events = dict(config.features.event)
    if config.data.event_column is not None and config.towers.history != "none":
        of_events.setdefault(config.data.event_column, "categorical")
    if of_events:
        features["event"] = schema.event_features(dataset.event_columns, of_events, config.features)
        every += features["event"]
    sides = _fitted(features, dataset, config, private=private)
    for kind, name in ((kind, spec.needs) for kind, spec in FEATURE_KINDS.items() if spec.needs):
        given = getattr(config.features, name)
        if given is not None and not any(feature.kind == kind for feature in every):
            raise ConfigError(
                f"features.{name} must go with a column of kind '{kind}', got {given!r} without one; set "
                f"features.text = '{kind}', or state the kind of a column."
            )
    return sides, replace(config, features=replace(config.features, event=of_events, **kinds))


def _fitted(
    features: Mapping[str, tuple[schema.Feature, ...]],
    dataset: Dataset,
    config: Config,
    *,
    private: bool,
) -> Sides:
    """Return the transforms of features by their side, fitted on what training reads."""
    is_learnt = (dataset.parts == Part.TRAIN) & dataset.interactions.is_read
    events = dataset.interactions.where(is_learnt)
    num_rows = {side: table.ids.num_rows for side, table in dataset.sides.items()}
    query_counts = np.bincount(events.query_rows, minlength=num_rows["query"])[FIRST_ROW:]
    item_counts = np.bincount(events.item_rows, minlength=num_rows["item"])[FIRST_ROW:]
    # By side: its lines, how many events each has, and the queries that the lines of the training are of.
    tables = {
        "query": (dataset.queries.frame, query_counts, np.flatnonzero(query_counts)),
        "item": (dataset.items.frame, item_counts, None),
        "event": (dataset.event_columns, is_learnt.astype(np.int64), events.query_rows),
    }
    fitted = {}
    for side, own in features.items():
        frame, counts, owners = tables[side]
        fitted[side] = SideTransforms.fit(own, frame, counts, config.features.min_count)
        if private and owners is not None:
            seen = frame.filter(pl.Series(counts > 0))
            fitted[side] = of_many_queries(fitted[side], seen, owners)
    let_common_go(t for side in fitted.values() for t in side.transforms)
    event = fitted.get("event")
    is_fed = event is not None and event.transforms  # all may be "shown"
    return Sides(fitted["query"], fitted["item"], event if is_fed else None)
