"""``recommend`` and its arguments, which a bundle in this process and a server have in common."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, TypedDict, Unpack, overload

from twotower.features.dataframes import Frame
from twotower.rules.kinds import Rule
from twotower.serving.answers import Recommendation, Recommendations
from twotower.serving.arguments import (
    At,
    Event,
    FeatureLines,
    History,
    Id,
    Moment,
    Told,
    queries_of,
)


class Choices(TypedDict, total=False):
    """The options of ``recommend``, for one query and for several; see ``Recommender.recommend``."""

    k: int
    exclude_seen: bool | None
    among: Iterable[Id] | None
    without: Iterable[Id] | None
    filter: str | None
    words: float | Literal["auto"]
    rules: Iterable[Rule]
    rerank: bool
    strict: bool


@dataclass(frozen=True)
class Wanted:
    """The options of one call of ``recommend``, all of them; see ``Recommender.recommend``."""

    k: int
    exclude_seen: bool | None
    among: Iterable[Id] | None
    without: Iterable[Id] | None
    filter: str | None
    words: float | Literal["auto"]
    rules: Iterable[Rule]
    rerank: bool = True
    strict: bool = False

    @property
    def choices(self) -> dict[str, Any]:
        """The options by their names."""
        return {each.name: getattr(self, each.name) for each in fields(Wanted)}


class Recommender(ABC):
    """Recommends items to queries."""

    @overload
    def recommend(
        self,
        query_id: Id | None = None,
        *,
        features: Mapping[str, object] | None = None,
        history: Sequence[Event] | None = None,
        at: Moment | None = None,
        **choices: Unpack[Choices],
    ) -> Recommendation: ...

    @overload
    def recommend(
        self,
        query_id: Sequence[Id] | None = None,
        *,
        features: Sequence[Mapping[str, object]] | Frame | None = None,
        history: Sequence[Sequence[Event]] | Sequence[Frame] | None = None,
        at: At = None,
        **choices: Unpack[Choices],
    ) -> Recommendations: ...

    @overload
    def recommend(
        self,
        query_id: Id | Sequence[Id] | None = None,
        *,
        features: FeatureLines | None = None,
        history: History | None = None,
        at: At = None,
        **choices: Unpack[Choices],
    ) -> Recommendation | Recommendations: ...

    def recommend(
        self,
        query_id: Id | Sequence[Id] | None = None,
        *,
        features: FeatureLines | None = None,
        history: History | None = None,
        at: At = None,
        k: int = 10,
        exclude_seen: bool | None = None,
        among: Iterable[Id] | None = None,
        without: Iterable[Id] | None = None,
        filter: str | None = None,  # noqa: A002 -- the word that users know
        words: float | Literal["auto"] = "auto",
        rules: Iterable[Rule] = (),
        rerank: bool = True,
        strict: bool = False,
    ) -> Recommendation | Recommendations:
        """Return the ``k`` best items for one query, or for several.

        Describe a query by its id, its features, its history, or any mix of them. Features and history
        that you pass replace what the bundle knows about the id. A query about which nothing is known
        gets popular items, and its answer says so.

        Args:
            query_id: One id, or a list of ids.
            features: Column -> value. For several queries, a list of such mappings or a frame (polars,
                pandas or pyarrow).
            history: Item ids, oldest first. For several queries, a list of such lists. Ids that are not in
                the catalogue are left out. An event may also be a mapping: the item's id under the name of
                its column, ``"time"`` in seconds since 1970 or as a datetime, and the columns of
                ``features.event``. A frame is a list of such mappings. The model reads times only if every
                event has one.
            at: When the question is asked, in seconds since 1970 (UTC) or as a datetime; None for now. For
                several queries, one time for all or a list of times. Models with
                ``towers.question_time = "on"`` read it; others do not change their answers.
            k: Number of items, at least 1. A smaller catalogue returns all its items.
            exclude_seen: Whether to leave out the items of the history. By default they are left out unless
                the training data had repeated items.
            among: Ids to choose from; None for the whole catalogue.
            without: Ids to leave out.
            filter: An expression over the items' columns, such as ``genre = "drama" and year >= 2000``.
                Only items that match are recommended; see docs/filters.md.
            words: Weight in [0, 1] of the BM25 score of the item's text for the query's text (see
                ``index.lexical``), against the model's score. Both scores are scaled to [0, 1] first (see
                ``index.fusion.convex``). Both sides need text. ``"auto"`` is the weight that was best on
                validation, which the figures called "as served" use, and 0 if the bundle has none.
            rules: ``Boost``, ``Cap``, ``Diversify`` and ``Explore``, in any order; see docs/rules.md.
            rerank: Whether the second stage puts the best items in order, where the bundle has one. Rules
                come after it. It learnt scores with the bundle's own share of the words, and is left out
                at another. The best item gets the highest score that the retriever gave to any of
                them, the next one the second highest, and so on.
            strict: Whether to refuse features that the bundle does not know. Otherwise they are ignored
                with a warning.

        Returns:
            A ``Recommendation`` for one query; ``Recommendations`` if any argument describes several.

        Raises:
            FilterError: ``filter``, or the filter of a rule, cannot be parsed or does not fit the items'
                columns. The message shows the place.
            ValueError: ``k`` is below 1, nothing describes a query, the lists differ in length, an argument
                has a form that cannot be read, ``at`` is no time or lies before the last event of the
                history, ``words`` is out of range or above 0 without text on both sides, or ``rules``
                conflict or cap an unknown column.
        """
        wanted = Wanted(k, exclude_seen, among, without, filter, words, rules, rerank, strict)
        return self._recommended(queries_of(query_id, features, history, at), wanted)

    @abstractmethod
    def _recommended(self, told: Told, wanted: Wanted) -> Recommendation | Recommendations: ...
