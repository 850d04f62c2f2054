"""Every check of the doctor, of data and of models, in the order in which they are made."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from twotower.config import Config, FeaturesConfig
from twotower.data.columns import Decision
from twotower.data.dataset import Dataset, EntityTable
from twotower.doctor.data_events import duplicates, one_moment, tied_times
from twotower.doctor.data_features import columns
from twotower.doctor.data_labels import label_columns
from twotower.doctor.data_leaks import leaking_item_columns, leaking_query_columns
from twotower.doctor.data_order import shuffled_order
from twotower.doctor.data_split import churn, empty_test, popularity, split_times
from twotower.doctor.data_unused import shown_only, unstated_kinds, unused, without_row
from twotower.doctor.findings import Finding
from twotower.doctor.model_answers import Trial, check_answers
from twotower.doctor.model_features import (
    Loss,
    check_features,
    check_history,
    check_vocabularies,
    feature_losses,
    history_loss,
)
from twotower.doctor.model_training import check_loss, check_negatives
from twotower.doctor.model_vectors import check_item_vectors, check_query_vectors
from twotower.registry import Registry
from twotower.serving.bundle import Contents
from twotower.serving.retriever import Retriever
from twotower.vocab import FIRST_ROW


@dataclass(frozen=True)
class ExaminedData:
    """What checks of data look at.

    Args:
        dataset: Split.
        settings: That it was made with.
        decisions: Which columns of the interactions have a role; none where that is not known.
        items: Those that may be an answer.
        features: The stated kinds of their columns, and of the queries'.
    """

    dataset: Dataset
    settings: Config
    decisions: tuple[Decision, ...]
    items: EntityTable
    features: FeaturesConfig

    def roles(self) -> set[str] | None:
        """Return the columns of the interactions that have a role; None where that is not known."""
        told = self.decisions
        known = {d.column for d in told if d.role is not None and d.column is not None}
        return known if told else None

    def split_times(self) -> list[Finding]:
        """Return findings on times; the settings say whether the split is random or given."""
        kind = self.settings.split.kind
        by_chance = kind in ("random", "cold-items", "cold-queries")
        return split_times(self.dataset, is_chosen=by_chance or not self.dataset.ordered)


@dataclass(eq=False)
class ExaminedModel:
    """What checks of models look at.

    Args:
        retriever: The opened bundle.
        dataset: What it remembers; None where it holds no histories.
        trial: Its answers to validation queries; None where nothing of them can be known.
    """

    retriever: Retriever
    dataset: Dataset | None = None
    trial: Trial | None = None

    @property
    def contents(self) -> Contents:
        """What the bundle holds."""
        return self.retriever.contents

    def item_vectors(self) -> list[Finding]:
        """Return findings on the vectors of the items that may be an answer."""
        offered: Any = self.contents.offered
        offered = slice(FIRST_ROW, None) if offered is None else offered
        vectors = self.retriever.index.item_vectors.cpu().numpy()[offered]
        return check_item_vectors(vectors, self.contents.popularity[offered])

    def negatives(self) -> list[Finding]:
        """Return findings on the negatives of the training."""
        assert self.dataset is not None
        reads_history = self.retriever.encoding.model.reads_history
        return check_negatives(self.contents, self.dataset, reads_history=reads_history)

    def query_vectors(self) -> list[Finding]:
        """Return findings on the vectors of the queries."""
        assert self.trial is not None
        return check_query_vectors(np.asarray(self.trial.query_vectors.cpu().numpy()))

    @cached_property
    def answers(self) -> list[Finding]:
        """Findings on the answers."""
        assert self.trial is not None
        return check_answers(self.trial, self.contents.items.ids)

    @cached_property
    def of_history(self) -> Loss | None:
        """What answers lose without the history."""
        return None if self.trial is None else history_loss(self.trial)

    @cached_property
    def of_features(self) -> Sequence[Loss]:
        """What answers lose without each feature that is read."""
        transforms = self.contents.items.transforms.transforms
        return () if self.trial is None else feature_losses(self.trial, transforms)


@dataclass(frozen=True)
class DoctorCheck:
    """One check.

    Args:
        name: What it is about.
        needs: What it looks at: prepared data (``ExaminedData``), any bundle, one with histories, or its
            answers to validation queries (``ExaminedModel``).
        run: That to findings, whose ``Kind`` holds the texts in both languages.
    """

    name: str
    needs: Literal["data", "bundle", "histories", "answers"]
    run: Callable[[Any], Sequence[Finding]]


def checks_that_need(needs: str) -> list[DoctorCheck]:
    """Return the checks that look at one thing."""
    return [check for check in CHECKS.values() if check.needs == needs]


CHECKS = Registry(
    "doctor's check",
    (
        DoctorCheck("empty test", "data", lambda seen: empty_test(seen.dataset)),
        DoctorCheck(
            "columns of queries that leak", "data", lambda seen: leaking_query_columns(seen.dataset)
        ),
        DoctorCheck(
            "columns of items that leak", "data", lambda seen: leaking_item_columns(seen.dataset)
        ),
        DoctorCheck(
            "columns that know the label",
            "data",
            lambda seen: label_columns(seen.dataset, seen.roles()),
        ),
        DoctorCheck("times of the split", "data", ExaminedData.split_times),
        DoctorCheck(
            "kinds of event", "data", lambda seen: unstated_kinds(seen.dataset, seen.decisions)
        ),
        DoctorCheck(
            "duplicates",
            "data",
            lambda seen: duplicates(seen.dataset, seen.settings.data.event_column),
        ),
        DoctorCheck("shuffled order", "data", lambda seen: shuffled_order(seen.dataset)),
        DoctorCheck("one moment", "data", lambda seen: one_moment(seen.dataset)),
        DoctorCheck("tied times", "data", lambda seen: tied_times(seen.dataset)),
        DoctorCheck(
            "columns of queries",
            "data",
            lambda seen: columns(seen.dataset.queries, "query", seen.settings.features),
        ),
        DoctorCheck(
            "columns of items", "data", lambda seen: columns(seen.items, "item", seen.features)
        ),
        DoctorCheck("ids without a row", "data", lambda seen: without_row(seen.dataset)),
        DoctorCheck("churn", "data", lambda seen: churn(seen.dataset)),
        DoctorCheck("popularity", "data", lambda seen: popularity(seen.dataset)),
        DoctorCheck("unused columns", "data", lambda seen: unused(seen.decisions)),
        DoctorCheck(
            "columns of queries that are shown",
            "data",
            lambda seen: shown_only(seen.dataset.queries, "query", seen.settings.features),
        ),
        DoctorCheck(
            "columns of items that are shown",
            "data",
            lambda seen: shown_only(seen.items, "item", seen.features),
        ),
        DoctorCheck("loss", "bundle", lambda seen: check_loss(seen.contents)),
        DoctorCheck("item vectors", "bundle", ExaminedModel.item_vectors),
        DoctorCheck(
            "vocabularies",
            "bundle",
            lambda seen: check_vocabularies(seen.contents, seen.retriever.encoding.model),
        ),
        DoctorCheck("negatives", "histories", ExaminedModel.negatives),
        DoctorCheck("query vectors", "answers", ExaminedModel.query_vectors),
        DoctorCheck("answers", "answers", lambda seen: seen.answers),
        DoctorCheck("history", "answers", lambda seen: check_history(seen.of_history)),
        DoctorCheck("features", "answers", lambda seen: check_features(seen.of_features)),
    ),
)
