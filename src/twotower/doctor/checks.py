"""Every check of the doctor, of data and of models, in the order in which they are made."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from twotower.config import Config, FeaturesConfig
from twotower.data.columns import Decision
from twotower.data.dataset import Dataset, EntityTable
from twotower.doctor import (
    data_columns,
    data_events,
    data_leaks,
    data_split,
    model_features,
    model_training,
    model_vectors,
)
from twotower.doctor.findings import Finding
from twotower.doctor.model_answers import Trial, check_answers
from twotower.registry import Registry
from twotower.serving.retriever import Retriever
from twotower.vocab import FIRST_ROW

Needs = Literal["data", "bundle", "histories", "answers"]


@dataclass(frozen=True)
class ExaminedData:
    """The data that the checks of data examine.

    Args:
        dataset: The split data set.
        settings: The settings that it was made with.
        decisions: Which columns of the interactions have a role; empty where that is not known.
        items: The items that may be an answer.
        features: The stated kinds of the items' and the queries' columns.
    """

    dataset: Dataset
    settings: Config
    decisions: tuple[Decision, ...]
    items: EntityTable
    features: FeaturesConfig

    def roles(self) -> set[str] | None:
        """Return the columns of the interactions that have a role; None where that is not known."""
        known = {d.column for d in self.decisions if d.role is not None and d.column is not None}
        return known if self.decisions else None

    def follows_no_time(self) -> bool:
        """Return whether the settings ask for a split that is random or given."""
        by_chance = self.settings.split.kind in ("random", "cold-items", "cold-queries")
        return by_chance or not self.dataset.ordered


@dataclass(eq=False)
class ExaminedModel:
    """The model that the checks of models examine.

    Args:
        retriever: The opened bundle.
        dataset: The data set that it holds; None where it holds no histories.
        trial: Its answers to validation queries; None where too few of them are known.
    """

    retriever: Retriever
    dataset: Dataset | None = None
    trial: Trial | None = None

    @cached_property
    def answers(self) -> list[Finding]:
        """The findings on the answers."""
        assert self.trial is not None
        return list(check_answers(self.trial, self.retriever.contents.items.ids))

    @cached_property
    def losses(self) -> list[model_features.Loss]:
        """What the answers lose without the history, and without each feature that is read."""
        if self.trial is None:
            return []
        transforms = self.retriever.contents.items.transforms.transforms
        of_features = model_features.feature_losses(self.trial, transforms)
        return [*model_features.history_loss(self.trial), *of_features]


@dataclass(frozen=True)
class DoctorCheck:
    """One check.

    Args:
        name: What it is about.
        needs: What it looks at: prepared data (``ExaminedData``), any bundle, one with histories, or its
            answers to validation queries (``ExaminedModel``).
        run: A function from that to findings, whose ``Kind`` holds the texts in both languages.
    """

    name: str
    needs: Needs
    run: Callable[[Any], Iterable[Finding]]


def findings_of(seen: ExaminedData | ExaminedModel, needs: Needs) -> list[Finding]:
    """Return what the checks that look at one thing find."""
    wanted = (check for check in CHECKS.values() if check.needs == needs)
    return [found for check in wanted for found in check.run(seen)]


def _item_vectors(seen: ExaminedModel) -> Iterable[Finding]:
    """Return findings on the vectors of the items that may be an answer."""
    contents = seen.retriever.contents
    offered: Any = slice(FIRST_ROW, None) if contents.offered is None else contents.offered
    vectors = seen.retriever.index.item_vectors.cpu().numpy()[offered]
    return model_vectors.check_item_vectors(vectors, contents.popularity[offered])


_RUNS: dict[Needs, dict[str, Callable[[Any], Iterable[Finding]]]] = {
    "data": {
        "empty test": lambda seen: data_split.empty_test(seen.dataset),
        "columns of queries that leak": lambda seen: data_leaks.leaking_query_columns(seen.dataset),
        "columns of items that leak": lambda seen: data_leaks.leaking_item_columns(seen.dataset),
        "columns that know the label": lambda seen: data_leaks.label_columns(
            seen.dataset, seen.roles()
        ),
        "times of the split": lambda seen: data_split.split_times(
            seen.dataset, is_chosen=seen.follows_no_time()
        ),
        "kinds of event": lambda seen: data_columns.unstated_kinds(seen.dataset, seen.decisions),
        "duplicates": lambda seen: data_events.duplicates(
            seen.dataset, seen.settings.data.event_column
        ),
        "shuffled order": lambda seen: data_events.shuffled_order(seen.dataset),
        "one moment": lambda seen: data_events.one_moment(seen.dataset),
        "tied times": lambda seen: data_events.tied_times(seen.dataset),
        "columns of queries": lambda seen: data_columns.columns(
            seen.dataset.queries, "query", seen.settings.features
        ),
        "columns of items": lambda seen: data_columns.columns(seen.items, "item", seen.features),
        "ids without a row": lambda seen: data_columns.without_row(seen.dataset),
        "churn": lambda seen: data_split.churn(seen.dataset),
        "popularity": lambda seen: data_split.popularity(seen.dataset),
        "unused columns": lambda seen: data_columns.unused(seen.decisions),
        "columns of queries that are shown": lambda seen: data_columns.shown_only(
            seen.dataset.queries, "query", seen.settings.features
        ),
        "columns of items that are shown": lambda seen: data_columns.shown_only(
            seen.items, "item", seen.features
        ),
    },
    "bundle": {
        "loss": lambda seen: model_training.check_loss(seen.retriever.contents),
        "item vectors": _item_vectors,
        "vocabularies": lambda seen: model_features.check_vocabularies(
            seen.retriever.contents, seen.retriever.encoding.model
        ),
    },
    "histories": {
        "negatives": lambda seen: model_training.check_negatives(
            seen.retriever.contents,
            seen.dataset,
            reads_history=seen.retriever.encoding.model.reads_history,
        ),
    },
    "answers": {
        "query vectors": lambda seen: model_vectors.check_query_vectors(
            seen.trial.query_vectors.cpu().numpy()
        ),
        "answers": lambda seen: seen.answers,
        "history and features": lambda seen: model_features.check_losses(seen.losses),
    },
}

CHECKS = Registry(
    "doctor's check",
    (DoctorCheck(name, needs, run) for needs, runs in _RUNS.items() for name, run in runs.items()),
)
