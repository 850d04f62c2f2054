"""Answers from an index, put in order by a second stage and by rules: applies both to a bundle."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from numpy.random import Generator
from torch.nn import functional as F

from twotower.errors import ArgumentError, BundleError, check_least, nearest
from twotower.features.base import FeatureArrays
from twotower.histories import Histories
from twotower.index.base import Found, nothing_found
from twotower.index.exact import ExactIndex
from twotower.index.filter_columns import ReadTable
from twotower.index.fusion import FusedIndex
from twotower.index.lexical import Words
from twotower.index.live_index import LiveIndex
from twotower.rules.explore import Drawn, draw, generator
from twotower.rules.kinds import RuleSet, rule_set
from twotower.rules.search import Boosts, Moments, Order, Pool, Search
from twotower.rules.selection import CapCounts, ColumnValues, choose, depth_of
from twotower.second_stage.inputs import Candidates, Catalogue
from twotower.second_stage.ranker import Ranker
from twotower.serving.allowed import Allowed
from twotower.serving.arguments import Id
from twotower.serving.bundle import Contents
from twotower.serving.live_items import LiveIds
from twotower.serving.queries import Described
from twotower.serving.recommender import Wanted
from twotower.serving.word_scores import Texts
from twotower.vocab import FIRST_ROW, PADDING_ROW

_COLUMNS_KEPT = 8
"""Capped columns whose values are cached, one number per item and value."""

_CHUNK_CELLS = 2**22
"""Items that pools hold at once, with 12 bytes each."""


class Reranker:
    """Makes plans, and caches what rules read of the catalogue.

    Args:
        contents: What the bundle holds. Assign the new contents here when the catalogue changes; the cached
            values of old rows are kept.
        item_features: Features of the items, by which a second stage ranks. Assign the new ones here, too.
        texts: Of the bundle, which a second stage may read.
    """

    def __init__(
        self, contents: Contents, item_features: Mapping[str, torch.Tensor], texts: Texts
    ) -> None:
        self.contents = contents
        self.item_features = item_features
        self.texts = texts
        self._values: dict[str, ColumnValues] = {}
        self.moments = Moments(contents.item_vectors.shape[1])

    def check(self, query_features: FeatureArrays, vectors: torch.Tensor, path: Path) -> None:
        """Refuse a second stage that cannot rank.

        Args:
            query_features: Of every query row.
            vectors: ``(num_item_rows, dim)`` of the items.
            path: The bundle's folder, for messages.

        Raises:
            BundleError: It reads what nothing makes.
            MissingExtraError: LightGBM is not installed.
        """
        ranker = self.contents.ranker
        if ranker is None:
            return
        features = {name: values[:1] for name, values in query_features.items()}
        # Padding is read as an item is, and there may be no item yet.
        rows, scores = np.full((1, 1), PADDING_ROW, np.int32), np.zeros((1, 1), np.float32)
        words = np.zeros((1, 1), np.float32) if self.texts.are_there else None
        candidates = Candidates(rows, scores, Histories.empty(1), features, words)
        try:
            ranker.values(candidates, self.catalogue(vectors))
        except LookupError as error:
            raise BundleError(
                f"the second stage of the bundle {str(path)!r} reads {error}, which nothing makes; train "
                "it again."
            ) from error

    def plan(self, wanted: Wanted, allowed: Allowed) -> "Plan":
        """Return a plan that answers queries.

        Args:
            wanted: The options of the call.
            allowed: Finds the items that match a filter.

        Raises:
            FilterError: A filter cannot be parsed, or does not fit the items' columns.
            ValueError: ``k`` is below 1, a capped column is unknown or has values that cannot be counted,
                or the rules conflict; see ``rule_set``.
        """
        rules = rule_set(wanted.rules)
        boosts = None
        if rules.moves:
            matching = [allowed.matching(text) for text, _ in rules.moves]
            boosts = Boosts.of(matching, [by for _, by in rules.moves])
        columns = [self._values_of(cap.column) for cap in rules.caps]
        k, exclude_seen = checked_k(self.contents, wanted.k), wanted.exclude_seen
        if exclude_seen is None:
            exclude_seen = not self.contents.repeats
        rows = allowed.rows(wanted.among, wanted.without, wanted.filter)
        explorable = None
        if rules.explore is not None:
            may_be = self.contents.popularity == 0
            if rules.explore.filter is not None:
                may_be = allowed.matching(rules.explore.filter)
            explorable = np.flatnonzero(may_be if rows is None else may_be & rows)
            explorable = explorable[np.searchsorted(explorable, FIRST_ROW) :]
        ranker = self.contents.ranker if wanted.rerank else None
        return Plan(self, k, exclude_seen, rows, rules, boosts, columns, explorable, ranker)

    def catalogue(self, vectors: torch.Tensor) -> Catalogue:
        """Return what a second stage reads of the items now.

        Args:
            vectors: ``(num_item_rows, dim)`` of the items.
        """
        ids = self.contents.items.ids
        first = ids.first_rows if isinstance(ids, LiveIds) else None
        return Catalogue(vectors, self.item_features, first)

    def _values_of(self, column: str) -> ColumnValues:
        items = self.contents.items
        known = items.frame.columns
        if column not in known:
            near = nearest(column, known)
            hint = "they" if near is None else f"did you mean {near!r}? They"
            raise ArgumentError(
                f"cap must name a column of the items, got {column!r}; {hint} are {', '.join(known)}."
            )
        values = self._values.pop(column, None) or ColumnValues()
        if values.num_rows < items.ids.num_rows:
            new = items.frame.select(column)[values.num_rows - FIRST_ROW :]
            values.append(ReadTable(new, items.transforms.features).column(column))
        self._values[column] = values
        if len(self._values) > _COLUMNS_KEPT:
            del self._values[next(iter(self._values))]  # the one that was capped the longest ago
        return values


@dataclass(frozen=True, eq=False)
class Plan:
    """Everything that the answers to several queries have in common.

    Args:
        ruler: What made the plan.
        k: Number of items.
        exclude_seen: Whether to leave out the items of the history.
        allowed: ``(num_item_rows,)`` bool, the items that may be recommended; None for all.
        rules: The rules, possibly none.
        boosts: What boosts add to the scores, or None.
        columns: The values of each capped column.
        explorable: ``(n,)`` the items that may be explored, in ascending order; None without exploration.
        ranker: The second stage, or None.
    """

    ruler: Reranker
    k: int
    exclude_seen: bool
    allowed: npt.NDArray[np.bool_] | None
    rules: RuleSet
    boosts: Boosts | None
    columns: Sequence[ColumnValues]
    explorable: npt.NDArray[np.int64] | None
    ranker: Ranker | None

    @property
    def weight(self) -> float:
        """The weight of diversity; see ``Diversify``."""
        return 0.0 if self.rules.diversify is None else self.rules.diversify.weight

    @property
    def is_greedy(self) -> bool:
        """Whether items are selected one after another from a pool that is larger than the answer."""
        return bool(self.weight or self.columns)

    @property
    def depth(self) -> int:
        """Number of items in a pool."""
        return min(depth_of(self.k), self.num_rows) if self.is_greedy else self.k

    @property
    def num_ordered(self) -> int:
        """Number of items that the second stage puts in order; 0 without one."""
        return 0 if self.ranker is None else min(self.ranker.depth, self.num_rows)

    @property
    def num_rows(self) -> int:
        """Number of item rows, including the reserved ones."""
        return self.ruler.contents.items.ids.num_rows

    @property
    def caps(self) -> list[int]:
        """The cap of each capped column."""
        return [cap.most for cap in self.rules.caps]

    def answer(
        self,
        index: LiveIndex | FusedIndex,
        queries: Described,
        query_vectors: torch.Tensor,
        known: npt.NDArray[np.bool_],
        of_model: npt.NDArray[np.bool_],
    ) -> tuple[Found, npt.NDArray[np.float64] | None]:
        """Return the items for ``Q`` queries, in the order that the rules make, and their propensities.

        The propensities, ``(Q, k)``, are the probabilities with which items were drawn, and NaN for items
        that were not drawn. They are None without exploration.

        Args:
            index: The index of the items.
            queries: The ``Q`` queries.
            query_vectors: ``(Q, dim)``.
            known: ``(Q,)`` bool, whether anything is known about each query. The others get popular items.
            of_model: ``(Q,)`` bool, whether the model itself knows it. A second stage orders the items of
                these queries alone, of which it learnt.
        """
        found = nothing_found(len(known), self.k, FIRST_ROW)
        propensities = None if self.explorable is None else np.full(found.scores.shape, np.nan)
        size = max(1, _CHUNK_CELLS // max(self.depth, self.num_ordered))
        is_ordered = known & of_model & (self.ranker is not None)
        words = self._words_of(index, queries)
        for by_model, ordered in ((True, True), (True, False), (False, False)):
            everyone = np.flatnonzero((known == by_model) & (is_ordered == ordered))
            for start in range(0, len(everyone), size):
                places = everyone[start : start + size]
                if by_model:
                    vectors = query_vectors[torch.from_numpy(places).to(query_vectors.device)]
                    search = self._of_model(index, vectors, places)
                else:
                    search = self._of_popularity(len(places), query_vectors.device)
                exclude = queries.histories.take(places) if self.exclude_seen else None
                search = replace(search, exclude=exclude, allowed=self.allowed)
                if ordered:
                    search = self._ordered(search, index.item_vectors, queries, places, words)
                part = _Part(self, search, search.best(self.depth), index)
                part.write_into(found, propensities, places.tolist(), queries)
        return found, propensities

    def contributions(
        self,
        index: LiveIndex | FusedIndex,
        queries: Described,
        query_vectors: torch.Tensor,
        item_row: int,
    ) -> dict[str, tuple[float, float]]:
        """Return what each input of the second stage does for an item of one query; see ``Ranker``.

        Nothing where the item is none of the query's candidates.
        """
        assert self.ranker is not None
        exclude = queries.histories if self.exclude_seen else None
        search = self._of_model(index, query_vectors, np.zeros(1, np.int64))
        search = replace(search, exclude=exclude, allowed=self.allowed)
        words = self._words_of(index, queries)
        candidates = self._candidates(search, queries, np.zeros(1, np.int64), words)
        (places,) = np.nonzero(candidates.item_rows[0] == item_row)
        if not len(places):
            return {}
        catalogue = self.ruler.catalogue(index.item_vectors)
        return self.ranker.contributions(candidates, catalogue, int(places[0]))

    def _words_of(self, index: LiveIndex | FusedIndex, queries: Described) -> Words | None:
        """Return the words of the queries where the second stage reads them."""
        if self.ranker is None or not self.ranker.reads_words:
            return None
        texts = self.ruler.texts
        return index.words if isinstance(index, FusedIndex) else texts.words_asked(queries, 0)

    def _candidates(
        self,
        search: Search,
        queries: Described,
        places: npt.NDArray[np.integer],
        words: Words | None,
    ) -> Candidates:
        """Return what the second stage puts in order for the queries at ``places``."""
        best = replace(search, boosts=None).best(self.num_ordered)
        features = {name: values[places] for name, values in queries.features.items()}
        histories, by_words = queries.histories.take(places), None
        if words is not None:
            own = [words[place] for place in places.tolist()]
            by_words = self.ruler.texts.index(0).scores_of(own, best.item_rows)
        return Candidates(best.item_rows, best.scores, histories, features, by_words)

    def _ordered(
        self,
        search: Search,
        item_vectors: torch.Tensor,
        queries: Described,
        places: npt.NDArray[np.integer],
        words: Words | None,
    ) -> Search:
        """Return a search whose best items are in the order of the second stage."""
        assert self.ranker is not None
        candidates = self._candidates(search, queries, places, words)
        scores = self.ranker.rescored(candidates, self.ruler.catalogue(item_vectors))
        return replace(search, order=Order(candidates.item_rows, scores))

    def _of_model(
        self,
        index: LiveIndex | FusedIndex,
        query_vectors: torch.Tensor,
        places: npt.NDArray[np.integer],
    ) -> Search:
        deviations = np.zeros(len(places), np.float32)
        if isinstance(index, FusedIndex):  # it holds the words of each query
            fused = index.of(places)
            if self.boosts is not None:
                deviations = fused.deviations(query_vectors, self.ruler.contents.offered)
            return Search(fused.of, query_vectors, self.boosts, deviations)
        if self.boosts is not None:
            moments = self.ruler.moments
            moments.count(index.item_vectors, self.ruler.contents.offered)
            deviations = moments.deviations(query_vectors)
        return Search(lambda _: index, query_vectors, self.boosts, deviations)

    def _of_popularity(self, num: int, device: torch.device) -> Search:
        contents = self.ruler.contents
        counts, offered = contents.popularity, contents.offered_rows
        deviation = float(counts[offered].std()) if len(offered) else 0.0
        index = ExactIndex(torch.from_numpy(counts)[:, None].to(device), reserved_rows=FIRST_ROW)
        ones = torch.ones(num, 1, device=device)
        return Search(lambda _: index, ones, self.boosts, np.full(num, deviation, np.float32))


@dataclass(frozen=True, eq=False)
class _Part:
    """Queries that are answered by one search.

    Args:
        plan: The plan.
        search: Ranks the catalogue for these queries.
        pool: The best items of each query.
        index: Holds the vectors of the items.
    """

    plan: Plan
    search: Search
    pool: Pool
    index: LiveIndex | FusedIndex

    def write_into(
        self,
        found: Found,
        propensities: npt.NDArray[np.float64] | None,
        places: list[int],
        queries: Described,
    ) -> None:
        """Write the answers to these queries into the answers to all queries.

        Args:
            found: The answers to all queries, empty so far at these places.
            propensities: The propensities of all answers, or None.
            places: Positions of these queries among all.
            queries: All queries.
        """
        explore, explorable = self.plan.rules.explore, self.plan.explorable
        if not self.plan.is_greedy and explore is None:
            found.item_rows[places], found.scores[places] = self.pool.item_rows, self.pool.scores
            return
        for own, place in enumerate(places):
            rows, scores = self.chosen(own, self.plan.k)
            if explore is not None and explorable is not None and propensities is not None:
                history = queries.histories.of_one(place)
                rng = generator(explore.seed, self.name(queries.told.ids[place], history))
                candidates = _without(explorable, np.array([*rows, *history], np.int64))
                columns = self.plan.columns
                drawn = draw(rng, candidates, len(rows), explore.share, columns, self.plan.caps)
                rows, scores, chances = self.mixed(own, rng, drawn, rows, scores)
                propensities[place, : len(rows)] = chances
            found.item_rows[place, : len(rows)] = rows
            found.scores[place, : len(rows)] = scores

    def chosen(
        self, own: int, num: int, beside: Sequence[int] = ()
    ) -> tuple[list[int], list[float]]:
        """Return the items of ``num`` places, and their scores, given the items of the other places."""
        counts = CapCounts(self.plan.columns, self.plan.caps)
        for row in beside:
            counts.add(row)
        one = slice(own, own + 1)
        return choose(
            self.pool.line(own),
            lambda among: self.search.best(self.plan.depth, one, among).line(0),
            num,
            counts,
            depth=self.plan.depth,
            weight=self.plan.weight,
            vectors_of=self.directions,
            num_rows=self.plan.num_rows,
            taken=beside,
        )

    def directions(self, rows: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
        """Return the vectors of items, scaled to length 1: ``(n, dim)``."""
        vectors = self.index.item_vectors
        places = torch.from_numpy(rows.astype(np.int64)).to(vectors.device)
        return np.asarray(F.normalize(vectors[places], dim=1).cpu().numpy(), np.float32)

    def name(self, query_id: Id | None, history: npt.NDArray[np.int32]) -> str:
        """Return a text that identifies a query: its id as text, or else its history."""
        if query_id is not None:
            return f"id {query_id}"
        ids = self.plan.ruler.contents.items.ids.ids_of(history).to_list()
        return f"history {','.join(map(str, ids))}"

    def mixed(
        self, own: int, rng: Generator, drawn: Drawn, rows: list[int], scores: list[float]
    ) -> tuple[list[int], list[float], list[float]]:
        """Return rows, scores and propensities with the drawn items at random places."""
        num = len(drawn.item_rows)
        if not num:
            return rows, scores, [math.nan] * len(rows)
        rows, scores = self.chosen(own, len(rows) - num, drawn.item_rows)
        propensities = [math.nan] * len(rows)
        places = rng.choice(len(rows) + num, num, replace=False)
        is_drawn = np.zeros(self.plan.num_rows, np.bool_)
        is_drawn[drawn.item_rows] = True
        line = self.search.best(num, slice(own, own + 1), is_drawn).line(0)
        score_of = dict(zip(line.item_rows.tolist(), line.scores.tolist(), strict=True))
        for turn in np.argsort(places):  # from the first place on, each insertion is final
            at, row = int(places[turn]), drawn.item_rows[turn]
            rows.insert(at, row)
            scores.insert(at, score_of[row])
            propensities.insert(at, drawn.propensities[turn])
        return rows, scores, propensities


def checked_k(contents: Contents, k: int) -> int:
    """Return ``k``, or the number of items if that is smaller; at least 1.

    Raises:
        ValueError: ``k`` is below 1.
    """
    check_least(1, k=k)
    return min(k, max(1, contents.num_items))


def _without(rows: npt.NDArray[np.int64], out: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return rows, which are sorted and many, without a few others."""
    places = np.searchsorted(rows, out)
    is_within = places < len(rows)
    places, out = places[is_within], out[is_within]
    return np.delete(rows, places[rows[places] == out])
