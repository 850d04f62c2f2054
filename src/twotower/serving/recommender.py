"""``recommend``: what a bundle in this process and a server are asked by the same arguments."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict, Unpack, overload

from twotower.features.dataframes import Frame
from twotower.rules.kinds import Rule
from twotower.serving.answers import Recommendation, Recommendations
from twotower.serving.arguments import Event, FeatureLines, History, Id, Told, queries_of


class Choices(TypedDict, total=False):
    """The options of ``recommend``, for one query and for several; see ``Recommender.recommend``."""

    k: int
    exclude_seen: bool | None
    among: Iterable[Id] | None
    without: Iterable[Id] | None
    filter: str | None
    words: float | Literal["auto"]
    rules: Iterable[Rule]
    strict: bool


@dataclass(frozen=True)
class Wanted:
    """What a caller wants of answers; see ``Recommender.recommend``."""

    k: int
    exclude_seen: bool | None
    among: Iterable[Id] | None
    without: Iterable[Id] | None
    filter: str | None
    words: float | Literal["auto"]
    rules: Iterable[Rule]
    strict: bool = False


class Recommender(ABC):
    """Recommends items to queries."""

    @overload
    def recommend(
        self,
        query_id: Id | None = None,
        *,
        features: Mapping[str, object] | None = None,
        history: Sequence[Event] | None = None,
        **choices: Unpack[Choices],
    ) -> Recommendation: ...

    @overload
    def recommend(
        self,
        query_id: Sequence[Id] | None = None,
        *,
        features: Sequence[Mapping[str, object]] | Frame | None = None,
        history: Sequence[Sequence[Event]] | Sequence[Frame] | None = None,
        **choices: Unpack[Choices],
    ) -> Recommendations: ...

    @overload
    def recommend(
        self,
        query_id: Id | Sequence[Id] | None = None,
        *,
        features: FeatureLines | None = None,
        history: History | None = None,
        **choices: Unpack[Choices],
    ) -> Recommendation | Recommendations: ...

    def recommend(
        self,
        query_id: Id | Sequence[Id] | None = None,
        *,
        features: FeatureLines | None = None,
        history: History | None = None,
        k: int = 10,
        exclude_seen: bool | None = None,
        among: Iterable[Id] | None = None,
        without: Iterable[Id] | None = None,
        filter: str | None = None,  # noqa: A002 -- the word that users know
        words: float | Literal["auto"] = "auto",
        rules: Iterable[Rule] = (),
        strict: bool = False,
    ) -> Recommendation | Recommendations:
        """Return the ``k`` best items for one query, or for several.

        A query is named by its id, described by its features, by its history, or by any mix: what is
        given wins over what the bundle knows of the id. Of an unknown id what is given is all that is
        known; where that is nothing, the answer is what is popular, and says so.

        Args:
            query_id: One id, or a list of them.
            features: Column -> value; or a list of such lines, or a frame (polars, pandas or pyarrow),
                for several queries.
            history: Item ids, oldest first; or a list of such lists. Ids that the catalogue does
                not know are left out. An event may be a line in place of an id: the item's id under the
                name of its column, ``"time"`` in seconds since 1970 or as a datetime, and the columns of
                ``features.event``; a frame in place of a list holds such lines. Times are read where
                every event has one.
            k: At least 1; above what exists it returns what exists.
            exclude_seen: Whether items of the history are left out; None: as the data was, that is
                unless repeats were part of it.
            among: Ids that the answer may hold; None allows the whole catalogue.
            without: Ids that the answer must not hold.
            filter: An expression over the items' columns, such as ``genre = "drama" and year >= 2000``,
                that every item of the answer matches; see docs/filters.md.
            words: Share in [0, 1] of what an item's text has in common with the query's by BM25 (see
                ``index.lexical``) beside the model's score; both are brought to [0, 1] first (see
                ``index.fusion.convex``). It needs text on both sides. ``"auto"`` is the share that was best
                on validation, which figures called "as served" are of; 0 where the bundle knows none.
            rules: ``Boost``, ``Cap``, ``Diversify`` and ``Explore``, in any order; see docs/rules.md.
            strict: Whether features that the bundle does not know are refused; else they are ignored with a
                warning.

        Returns:
            A ``Recommendation`` for one query, ``Recommendations`` where any argument is a list of
            several.

        Raises:
            FilterError: ``filter``, or that of a rule, cannot be read, or does not fit the items' columns;
                says where.
            ValueError: ``k`` is below 1, nothing describes a query, the lists differ in length, an
                argument is of a form that cannot be read, ``words`` is out of range or above 0 where a
                side has no text, or ``rules`` cannot go together or cap an unknown column.
        """
        wanted = Wanted(k, exclude_seen, among, without, filter, words, rules, strict)
        return self._recommended(queries_of(query_id, features, history), wanted)

    @abstractmethod
    def _recommended(self, told: Told, wanted: Wanted) -> Recommendation | Recommendations: ...
