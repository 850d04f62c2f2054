"""Answers by rules: what ``rules`` says of a catalogue, asked of a bundle and its index."""

import difflib
import math
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from twotower.errors import ArgumentError
from twotower.histories import Histories
from twotower.index.base import Index
from twotower.index.exact import ExactIndex
from twotower.index.filter_columns import ReadTable
from twotower.index.fusion import FusedIndex
from twotower.rules.deviations import Moments
from twotower.rules.explore import Drawn, draw, generator
from twotower.rules.kinds import Explore, Rule, RuleSet, rule_set
from twotower.rules.search import Boosts, Pool, Search
from twotower.rules.selection import Counts, Line, choose, depth_of
from twotower.rules.values import ColumnValues
from twotower.serving.allowed import Allowed
from twotower.serving.arguments import Id
from twotower.serving.bundle import Contents
from twotower.vocab import FIRST_ROW, PADDING_ROW

_COLUMNS_KEPT = 8
"""Capped columns whose values are remembered, a number an item and value each."""

_CHUNK_CELLS = 2**22
"""Items that pools hold at once, 12 bytes each."""


class Reranked(NamedTuple):
    """Answers by rules.

    Args:
        item_rows: ``(Q, k)`` int32, ``PADDING_ROW`` where fewer than ``k`` items exist.
        scores: ``(Q, k)`` float32, the model's own, in whatever order the rules made.
        propensities: ``(Q, k)`` float64, how probable it was that an item is explored, NaN where it is not;
            None where nothing was to be.
    """

    item_rows: npt.NDArray[np.int32]
    scores: npt.NDArray[np.float32]
    propensities: npt.NDArray[np.float64] | None


class Reranker:
    """What rules read of a catalogue, kept while it changes.

    Args:
        contents: What the bundle holds.
    """

    def __init__(self, contents: Contents) -> None:
        self.contents = contents
        self._values: OrderedDict[str, ColumnValues] = OrderedDict()
        self._moments: Moments | None = None

    def of(self, contents: Contents) -> "Reranker":
        """Return the same for a catalogue that has changed, with what is known of the rows it had."""
        changed = Reranker(contents)
        changed._values, changed._moments = self._values, self._moments
        return changed

    def plan(self, rules: Iterable[Rule], allowed: Allowed) -> "Plan | None":
        """Return how to answer by rules; None where there are none.

        Args:
            rules: In any order.
            allowed: Knows which items match a filter.

        Raises:
            FilterError: The filter of a rule cannot be read, or does not fit the items' columns.
            ValueError: A column is unknown or cannot be counted by, or the rules cannot go together; see
                ``rule_set``.
        """
        told = rule_set(rules)
        boosts = explorable = None
        if told.moves:
            matching = [_matching(allowed, text) for text, _ in told.moves]
            boosts = Boosts.of(matching, [by for _, by in told.moves])
        columns = [self._values_of(cap.column) for cap in told.caps]
        if told.explore is not None:
            explorable = self._explorable(told.explore.filter, allowed)
        is_idle = boosts is None and not columns and explorable is None
        if is_idle and (told.diversify is None or not told.diversify.weight):
            return None
        return Plan(self, told, boosts, columns, explorable)

    def deviations(
        self, item_vectors: torch.Tensor, query_vectors: torch.Tensor
    ) -> npt.NDArray[np.float32]:
        """Return the standard deviation of each query's scores over the catalogue: ``(Q,)``."""
        if self._moments is None:
            self._moments = Moments(item_vectors.shape[1])
        self._moments.count(item_vectors, self.contents.offered)
        return self._moments.deviations(query_vectors)

    def _values_of(self, column: str) -> ColumnValues:
        items = self.contents.items
        known = items.frame.columns
        if column not in known:
            near = difflib.get_close_matches(column, known, n=1)
            hint = f"did you mean {near[0]!r}? They" if near else "they"
            raise ArgumentError(
                f"cap must name a column of the items, got {column!r}; {hint} are {', '.join(known)}."
            )
        values = self._values.pop(column, None) or ColumnValues()
        if values.num_rows < items.ids.num_rows:
            new = items.frame.select(column)[values.num_rows - FIRST_ROW :]
            values.append(ReadTable(new, items.transforms.features).column(column))
        self._values[column] = values
        if len(self._values) > _COLUMNS_KEPT:
            self._values.popitem(last=False)
        return values

    def _explorable(self, text: str | None, allowed: Allowed) -> npt.NDArray[np.bool_]:
        if text is not None:
            return _matching(allowed, text)
        is_new = self.contents.popularity == 0
        is_new[:FIRST_ROW] = False
        return np.asarray(is_new, np.bool_)


@dataclass(frozen=True, eq=False)
class Plan:
    """How to answer by rules.

    Args:
        ruler: Of the catalogue.
        rules: By kind.
        boosts: What they add.
        columns: The values of each column that is capped.
        explorable: ``(num_item_rows,)`` bool, what may be explored, if anything is to be.
    """

    ruler: Reranker
    rules: RuleSet
    boosts: Boosts | None
    columns: Sequence[ColumnValues]
    explorable: npt.NDArray[np.bool_] | None

    def answer(
        self,
        index: Index,
        item_vectors: torch.Tensor,
        query_ids: Sequence[Id | None],
        known: npt.NDArray[np.bool_],
        histories: Histories,
        query_vectors: torch.Tensor,
        k: int,
        *,
        exclude_seen: bool,
        allowed: npt.NDArray[np.bool_] | None,
    ) -> Reranked:
        """Return the answers to ``Q`` queries.

        Args:
            index: Of the model's scores.
            item_vectors: ``(num_item_rows, dim)``.
            query_ids: ``Q`` of them.
            known: ``(Q,)`` whether the model knows anything of a query; popularity answers the others.
            histories: Of the queries.
            query_vectors: ``(Q, dim)``.
            k: Places.
            exclude_seen: Whether items of the history are left out.
            allowed: ``(num_item_rows,)`` which items may be an answer.
        """
        found = Reranked(
            np.full((len(known), k), PADDING_ROW, np.int32),
            np.full((len(known), k), -np.inf, np.float32),
            None if self.explorable is None else np.full((len(known), k), np.nan),
        )
        size = max(1, _CHUNK_CELLS // depth_of(k))
        for everyone, by_model in ((np.flatnonzero(known), True), (np.flatnonzero(~known), False)):
            for start in range(0, len(everyone), size):
                places = everyone[start : start + size]
                if by_model:
                    vectors = query_vectors[torch.from_numpy(places).to(query_vectors.device)]
                    search = self._of_model(index, item_vectors, vectors, places)
                else:
                    search = self._of_popularity(item_vectors, len(places))
                own = histories.take(places)
                search = replace(search, exclude=own if exclude_seen else None, allowed=allowed)
                names = [
                    self._name(query_ids[place], own.take(slice(line, line + 1)))
                    for line, place in enumerate(places.tolist())
                ]
                part = _Part(self, search, item_vectors, k)
                part.write_into(found, places, names, own)
        return found

    def _of_model(
        self,
        index: Index,
        item_vectors: torch.Tensor,
        query_vectors: torch.Tensor,
        places: npt.NDArray[np.integer],
    ) -> Search:
        offered = self.ruler.contents.offered
        deviations = np.zeros(len(places), np.float32)
        if isinstance(index, FusedIndex):  # it knows the words of each query, in their order
            fused = index.of(places)
            if self.boosts is not None:
                deviations = fused.deviations(query_vectors, offered)
            return Search(fused.of, query_vectors, self.boosts, deviations)
        if self.boosts is not None:
            deviations = self.ruler.deviations(item_vectors, query_vectors)
        return Search(lambda _: index, query_vectors, self.boosts, deviations)

    def _of_popularity(self, item_vectors: torch.Tensor, num: int) -> Search:
        contents = self.ruler.contents
        offered = slice(FIRST_ROW, None) if contents.offered is None else contents.offered
        counts = contents.popularity
        deviation = float(counts[offered].std()) if len(counts[offered]) else 0.0
        column = torch.from_numpy(counts)[:, None].to(item_vectors.device)
        index = ExactIndex(column, reserved_rows=FIRST_ROW)
        ones = torch.ones(num, 1, device=item_vectors.device)
        return Search(lambda _: index, ones, self.boosts, np.full(num, deviation, np.float32))

    def _name(self, query_id: Id | None, history: Histories) -> str:
        """Return what tells a query from others: an id as any caller writes it, or else its history."""
        if query_id is not None:
            return f"id {query_id}"
        ids = self.ruler.contents.items.ids.ids_of(history.item_rows).to_list()
        return f"history {','.join(map(str, ids))}"


class _Part:
    """Queries that one search answers.

    Args:
        plan: How.
        search: Of their order of the catalogue.
        item_vectors: ``(num_item_rows, dim)``.
        k: Places.
    """

    def __init__(self, plan: Plan, search: Search, item_vectors: torch.Tensor, k: int) -> None:
        self.plan = plan
        self.search = search
        self.item_vectors = item_vectors
        self.k = k
        rules = plan.rules
        self.weight = 0.0 if rules.diversify is None else rules.diversify.weight
        self.is_greedy = bool(self.weight or rules.caps)
        self.depth = min(depth_of(k), len(item_vectors)) if self.is_greedy else k
        self.pool = search.first(self.depth)
        self.candidates = np.zeros(0, np.int64)
        if plan.explorable is not None:
            allowed = search.allowed
            may_be = plan.explorable if allowed is None else plan.explorable & allowed
            self.candidates = np.flatnonzero(may_be)

    def write_into(
        self,
        found: Reranked,
        places: npt.NDArray[np.integer],
        names: Sequence[str],
        seen: Histories,
    ) -> None:
        """Write the answers to where they stand among others.

        Args:
            found: All answers.
            places: ``(n,)`` of these queries.
            names: What tells each of them from others.
            seen: The items of each history.
        """
        if not self.is_greedy:
            found.item_rows[places], found.scores[places] = self.pool.item_rows, self.pool.scores
        explore = self.plan.rules.explore
        if not self.is_greedy and explore is None:
            return
        for own, place in enumerate(places.tolist()):
            rows, scores = self.chosen(own, self.k)
            if explore is not None and found.propensities is not None:
                history = seen.item_rows[seen.offsets[own] : seen.offsets[own + 1]]
                drawn = self.drawn(names[own], explore, rows, history)
                rows, scores, propensities = self.mixed(own, drawn, rows, scores)
                found.propensities[place, : len(rows)] = propensities
            found.item_rows[place] = PADDING_ROW
            found.scores[place] = -np.inf
            found.item_rows[place, : len(rows)] = rows
            found.scores[place, : len(rows)] = scores

    def chosen(
        self, own: int, num: int, beside: Sequence[int] = ()
    ) -> tuple[list[int], list[float]]:
        """Return the items of ``num`` places, and their scores, where others stand beside them."""
        line = _line(self.pool, own)
        counts = Counts(self.plan.columns, [cap.most for cap in self.plan.rules.caps])
        for row in beside:
            counts.add(row)
        return choose(
            line,
            lambda allowed: _line(self.search.of_one(own, self.depth, allowed), 0),
            num,
            counts,
            depth=self.depth,
            weight=self.weight,
            vectors_of=self.directions,
            num_rows=len(self.item_vectors),
            taken=beside,
        )

    def directions(self, rows: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
        """Return vectors of length 1: ``(n, dim)``."""
        places = torch.from_numpy(rows.astype(np.int64)).to(self.item_vectors.device)
        return np.asarray(F.normalize(self.item_vectors[places], dim=1).cpu().numpy(), np.float32)

    def drawn(
        self, name: str, explore: Explore, rows: list[int], history: npt.NDArray[np.int32]
    ) -> Drawn:
        """Return what is explored in place of some of the items that were chosen."""
        out = np.concatenate([np.array(rows, np.int64), history])
        most = [cap.most for cap in self.plan.rules.caps]
        return draw(
            generator(explore.seed, name),
            _without(self.candidates, out),
            len(rows),
            explore.share,
            self.plan.columns,
            most,
        )

    def mixed(
        self, own: int, drawn: Drawn, rows: list[int], scores: list[float]
    ) -> tuple[list[int], list[float], list[float]]:
        """Return rows, scores and propensities with what was drawn at places that are drawn, too."""
        num = len(rows) - len(drawn.item_rows)
        rows, scores = self.chosen(own, num, drawn.item_rows) if drawn.item_rows else (rows, scores)
        propensities = [math.nan] * len(rows)
        total = len(rows) + len(drawn.item_rows)
        places = drawn.rng.choice(total, len(drawn.item_rows), replace=False)
        of_drawn = self.scores_of(own, drawn.item_rows)
        for turn in np.argsort(places):  # from the first place on, each insertion is final
            at, row = int(places[turn]), drawn.item_rows[turn]
            rows.insert(at, row)
            scores.insert(at, of_drawn[row])
            propensities.insert(at, drawn.propensities[turn])
        return rows, scores, propensities

    def scores_of(self, own: int, rows: Sequence[int]) -> dict[int, float]:
        """Return the model's scores of some items."""
        if not rows:
            return {}
        allowed = np.zeros(len(self.item_vectors), np.bool_)
        allowed[rows] = True
        line = _line(self.search.of_one(own, len(rows), allowed), 0)
        return dict(zip(line.item_rows.tolist(), line.scores.tolist(), strict=True))


def _line(pool: Pool, place: int) -> Line:
    real = pool.item_rows[place] != PADDING_ROW
    return Line(pool.item_rows[place][real], pool.scores[place][real], pool.moved[place][real])


def _without(
    rows: npt.NDArray[np.integer], out: npt.NDArray[np.integer]
) -> npt.NDArray[np.integer]:
    """Return rows, which are sorted and many, without a few others."""
    places = np.searchsorted(rows, out)
    is_within = places < len(rows)
    places, out = places[is_within], out[is_within]
    return np.delete(rows, places[rows[places] == out])


def _matching(allowed: Allowed, text: str) -> npt.NDArray[np.bool_]:
    matches = allowed.rows(filter=text)
    assert matches is not None
    return matches
