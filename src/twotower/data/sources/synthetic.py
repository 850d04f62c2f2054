"""A synthetic world with a known best: hidden personas walk over clusters of items.

- A query has one of ``num_personas`` hidden personas, each equally likely. Its events walk over
  clusters: the first cluster ~ softmax(s P[persona, .] + popularity), each next one ~
  softmax(a A[cluster, .] + s P[persona, .] + popularity), where A and P are standard normal,
  ``a`` is ``transition_scale``, ``s`` is ``persona_scale`` and the popularity of a cluster is
  normal with deviation ``POPULARITY_SCALE``.
- An event draws the cluster, then an item of the cluster with probability ~ rank ** -zipf_exponent
  over those that the query has not had: a draw of any other item is repeated
  within the cluster. So which item it is tells nothing of the persona beyond its cluster.
- A cluster without any such item left for the query is closed: a draw of it is repeated, which
  renormalises the softmax over the open clusters. Times do not depend on the persona.
- Features tell a part of the truth: ``category`` of an item equals its cluster, ``segment`` of a
  query its persona, each with the stated probability; it is any of the others otherwise.
- With trends, the log of an item's weight moves from day to day, by ``trend_scale`` times a
  stationary autoregressive process of deviation 1 that forgets half in ``TREND_HALF_LIFE`` days.
- With new items, a share of them appears during the year, each on a day of its own. An event that
  draws an item before its day is left out.

Trends and new items are off by default.

The defaults are the standard world of our benchmarks.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import polars as pl

from twotower.arrays import Bools, Floats, Ints, Rows
from twotower.dataclass_trees import Range, Rule, Section, problem

REDRAWS = 16  # after so many, the few that are left are drawn from explicit probabilities
EXPLICIT_CELLS = 4_000_000  # keeps those probabilities small where clusters are huge


def open_clusters(history_clusters: Rows, sizes: Ints) -> Bools:
    """Return which clusters still have an item that the query has not had: ``(n, C)``.

    Args:
        history_clusters: ``(n, t)`` clusters of each query's earlier events.
        sizes: ``(C,)`` how many items each has.
    """
    had = np.zeros((len(history_clusters), len(sizes)), np.int64)
    np.add.at(had, (np.arange(len(had))[:, None], history_clusters), 1)
    return sizes > had


class EventSampler:
    """Draws the items of queries by a world's parameters.

    An item's slot is its place in (cluster, position within it). Every cluster has as many slots as
    the largest needs; those left over have no weight and are never drawn.

    Args:
        world: The world.
    """

    def __init__(self, world: "World") -> None:
        self._num_clusters = num_clusters = world.config.num_clusters
        rows = np.argsort(world.item_clusters, kind="stable")
        clusters = world.item_clusters[rows].astype(np.int64)
        self._sizes = sizes = np.bincount(clusters, minlength=num_clusters)
        self._width = int(sizes.max())
        within = np.arange(len(rows)) - (np.cumsum(sizes) - sizes)[clusters]
        slots = clusters * self._width + within
        num_slots = num_clusters * self._width
        self._rows = np.zeros(num_slots, np.int32)
        self._rows[slots] = rows
        weights = world.daily_weights()
        self._weights = np.zeros((len(weights), num_slots))
        self._weights[:, slots] = weights[:, rows]
        # One line a persona and last cluster.
        self._next_clusters = world.cluster_probs.reshape(-1, num_clusters)
        self._cluster_cdf = _stacked_cdf(self._next_clusters)
        self._item_cdf = _stacked_cdf(self._weights.reshape(-1, self._width))

    def draw(self, personas: Rows, days: Rows, rng: np.random.Generator) -> Rows:
        """Return the item row of each event: ``(L, n)`` int32, none twice in a column.

        Args:
            personas: ``(n,)``.
            days: ``(L, n)`` int32, the line of ``World.daily_weights`` that holds for each event.
            rng: Where the draws come from.
        """
        num_events, _ = shape = days.shape
        slots, clusters = np.empty(shape, np.int32), np.empty(shape, np.int32)
        last = np.full(len(personas), self._num_clusters, np.int32)
        may_close = self._sizes.min() < num_events
        for t in range(num_events):
            lines = personas * np.int32(self._num_clusters + 1) + last
            last = (_search(self._cluster_cdf, lines, rng) % self._num_clusters).astype(np.int32)
            if may_close:
                had = (clusters[:t] == last).sum(axis=0)
                closed = np.flatnonzero(self._sizes[last] <= had)
                # One refused draw, then one from what is open: the same as redrawing until it fits.
                open_ = open_clusters(clusters[:t, closed].T, self._sizes)
                last[closed] = _draw_weighted(self._next_clusters[lines[closed]] * open_, rng)
            clusters[t] = last
            slots[t] = self._draw_items(last, days[t], slots[:t], rng)
        return np.asarray(self._rows[slots])

    def _draw_items(self, clusters: Rows, days: Rows, seen: Rows, rng: np.random.Generator) -> Rows:
        """Return a slot of each query's cluster that is not among its ``(t, n)`` ``seen``."""
        lines = days * np.int32(self._num_clusters) + clusters  # one a day and cluster
        num_slots = len(self._rows)
        chosen = (_search(self._item_cdf, lines, rng) % num_slots).astype(np.int32)
        refused = np.flatnonzero((seen == chosen).any(axis=0))
        for _ in range(REDRAWS):
            if not len(refused):
                return chosen
            again = (_search(self._item_cdf, lines[refused], rng) % num_slots).astype(np.int32)
            chosen[refused] = again
            refused = refused[(seen[:, refused] == again).any(axis=0)]
        step = max(1, EXPLICIT_CELLS // self._width)
        for begin in range(0, len(refused), step):
            part = refused[begin : begin + step]
            starts = clusters[part] * np.int32(self._width)
            slots = starts[:, None] + np.arange(self._width, dtype=np.int32)  # (m, width)
            allowed = np.ones(slots.shape, np.bool_)
            event, line = np.nonzero(seen[:, part] // self._width == clusters[part])
            allowed[line, seen[event, part[line]] - starts[line]] = False
            weights = self._weights[days[part, None], slots] * allowed
            chosen[part] = starts + _draw_weighted(weights, rng)
        return chosen


def _stacked_cdf(weights: Floats) -> Floats:
    """Return the cumulative shares of ``(S, C)`` lines as one rising array; line s spans s..s+1."""
    cdf = np.cumsum(weights, axis=1)
    cdf /= cdf[:, -1:]
    return np.asarray((cdf + np.arange(len(cdf))[:, None]).reshape(-1))


def _search(cdf: Floats, lines: Rows, rng: np.random.Generator) -> Ints:
    """Return for each of ``lines`` a drawn position in the flat array."""
    marks = lines + rng.random(len(lines))
    marks = np.minimum(marks, np.nextafter(lines + 1.0, 0))  # the sum may round up to the next line
    return np.asarray(np.searchsorted(cdf, marks, side="right"))


def _draw_weighted(weights: Floats, rng: np.random.Generator) -> Ints:
    """Return a column of each line of ``(m, W)`` weights, drawn in proportion; zeros never."""
    cdf = np.cumsum(weights, axis=1)
    marks = rng.random(len(weights)) * cdf[:, -1]
    marks = np.minimum(marks, np.nextafter(cdf[:, -1], 0))  # the product may round up to the total
    return np.asarray((cdf <= marks[:, None]).sum(axis=1))


WORLD_BEGINS = 1_577_836_800
"""The moment from which queries may start: 2020-01-01 in seconds since 1970."""

DAY = 86_400
YEAR = 365 * DAY
"""Queries start within this many seconds of ``WORLD_BEGINS``."""

MEAN_GAP = 6 * 3_600
"""Mean number of seconds between a query's events, beside the one that rules out ties."""

POPULARITY_SCALE = 0.5
"""Standard deviation of the clusters' popularity, a term of the softmax."""

TREND_HALF_LIFE = 30.0
"""Days after which the trend of an item has forgotten half of what it was."""

TAGS_PER_ITEM = 3
MAX_CLUSTER_PROBS = 100_000_000
MAX_DAILY_WEIGHTS = 100_000_000
BLOCK = 8_192  # queries drawn at once: their histories stay in the processor's cache


_MANY = np.iinfo(np.int32).max
_SCALE = Rule("be in 0..10", lambda value: 0 <= value <= 10)
_SHARE = Rule("be in 0..1", lambda value: 0 <= value <= 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class WorldConfig(Section):
    """What a world is made of; the defaults are the standard world.

    Args:
        num_items: Items, at least 2.
        num_clusters: Clusters, in 1..num_items; their sizes differ by at most 1.
        num_personas: Hidden personas, at least 1.
        num_queries: Queries, at least 1.
        events_per_query: Events of each query, in 2..num_items.
        zipf_exponent: An item's popularity within its cluster is rank ** -zipf_exponent; 0..10.
        transition_scale: How much the last cluster decides the next one; 0..10.
        persona_scale: How much the persona decides the next cluster; 0..10.
        item_feature_reveal: Probability that an item's ``category`` is its cluster; 0..1.
        query_feature_reveal: Probability that a query's ``segment`` is its persona; 0..1.
        trend_scale: How much items rise and fall: the standard deviation over time of the log of an
            item's weight; 0..10, 0 for weights that stay.
        born_share: Share of the items that appear during the year; 0..1.
        seed: At least 0; a world and its tables depend on nothing else.

    Raises:
        ConfigError: A value is out of its range; every such value is named.
    """

    num_items: Annotated[int, Range(2, _MANY)] = 5_000
    num_clusters: Annotated[int, Range(1, _MANY)] = 100
    num_personas: Annotated[int, Range(1, MAX_CLUSTER_PROBS)] = 32
    num_queries: Annotated[int, Range(1, _MANY)] = 20_000
    events_per_query: Annotated[int, Range(2, _MANY)] = 50
    zipf_exponent: Annotated[float, _SCALE] = 0.8
    transition_scale: Annotated[float, _SCALE] = 2.0
    persona_scale: Annotated[float, _SCALE] = 2.0
    item_feature_reveal: Annotated[float, _SHARE] = 0.8
    query_feature_reveal: Annotated[float, _SHARE] = 0.5
    trend_scale: Annotated[float, _SCALE] = 0.0
    born_share: Annotated[float, _SHARE] = 0.0
    seed: Annotated[int, Rule("be at least 0", lambda seed: seed >= 0)] = 0

    def _contradictions(self) -> Iterator[str]:
        for name in ("num_clusters", "events_per_query"):
            if getattr(self, name) > self.num_items:
                yield problem(name, f"be at most {self.num_items} items", getattr(self, name))
        cells = self.num_personas * self.num_clusters**2
        if cells > MAX_CLUSTER_PROBS:
            rule = f"be at most {MAX_CLUSTER_PROBS}"
            yield f"{problem('num_personas * num_clusters**2', rule, cells)}; lower num_clusters"
        cells = self.num_days * self.num_items
        if self.trend_scale and cells > MAX_DAILY_WEIGHTS:
            rule = f"be at most {MAX_DAILY_WEIGHTS} with trends"
            yield f"{problem('days * num_items', rule, cells)}; lower num_items"

    @property
    def num_days(self) -> int:
        """Days until the last query ends, about; later events count as of the last of them."""
        return (YEAR + self.events_per_query * MEAN_GAP) // DAY + 1


@dataclass(frozen=True, eq=False)
class SyntheticTables:
    """What a user would see of a world.

    Args:
        interactions: ``query_id``, ``item_id`` (int32) and ``timestamp`` (int64 seconds since
            1970), sorted by query and time; no time stands twice within a query. With new items,
            queries have fewer events than ``events_per_query``, and possibly none.
        items: ``item_id``; ``title``, which says that it is synthetic; ``category``, the item's
            cluster or any other; ``signal``, the reveal times a standard normal centre of the
            cluster plus standard normal noise; ``tags``, up to three joined by ``|``, each the
            cluster's own with the reveal's probability, else any.
        queries: ``query_id``; ``segment``, the query's persona or any other; ``signal``, as above
            with a centre of the persona.
    """

    interactions: pl.DataFrame
    items: pl.DataFrame
    queries: pl.DataFrame


class World:
    """One world: its parameters, and the tables that it generates.

    Items and queries are numbered from 1 in their tables; the arrays here are in the tables' order.

    Args:
        config: What the world is made of.

    Attributes:
        cluster_probs: ``(num_personas, num_clusters + 1, num_clusters)`` float64: probabilities of
            the next cluster, by persona and last cluster; the last line is for the first event.
        item_clusters: ``(num_items,)`` int32.
        item_weights: ``(num_items,)`` float64, popularity within the cluster, not normalised and
            without trends.
        item_births: ``(num_items,)`` int64, the day on which each item appears, from 1; 0 for those
            that are there from the start.
        query_personas: ``(num_queries,)`` int32.
        persona_centres: ``(num_personas,)`` float64, of the queries' ``signal``.
        cluster_centres: ``(num_clusters,)`` float64, of the items' ``signal``.
    """

    def __init__(self, config: WorldConfig) -> None:
        self.config = config
        rng = self._rng("parameters")
        clusters, personas, items = config.num_clusters, config.num_personas, config.num_items
        affinity = rng.standard_normal((clusters, clusters))
        taste = config.persona_scale * rng.standard_normal((personas, clusters))
        taste += POPULARITY_SCALE * rng.standard_normal(clusters)
        self.cluster_probs = np.empty((personas, clusters + 1, clusters))
        self.cluster_probs[:, :-1] = config.transition_scale * affinity + taste[:, None]
        self.cluster_probs[:, -1] = taste
        self.cluster_probs -= self.cluster_probs.max(axis=-1, keepdims=True)
        np.exp(self.cluster_probs, out=self.cluster_probs)
        self.cluster_probs /= self.cluster_probs.sum(axis=-1, keepdims=True)
        place = rng.permutation(items)  # so that an item's number tells neither cluster nor rank
        self.item_clusters = (place % clusters).astype(np.int32)
        ranks = 1.0 + place // clusters
        self.item_weights = np.asarray(ranks**-config.zipf_exponent, np.float64)
        rng.permutation(items)  # nothing reads it, and all later draws depend on it
        self.persona_centres = rng.standard_normal(personas)
        self.cluster_centres = rng.standard_normal(clusters)
        self.query_personas = self._rng("personas").integers(
            personas, size=config.num_queries, dtype=np.int32
        )
        self.item_births = births(items, config.born_share, YEAR // DAY, self._rng("births"))

    def __repr__(self) -> str:
        return f"World({self.config})"

    def daily_weights(self) -> Floats:
        """Return the weights of the items on each day: ``(num_days, num_items)``; one line without trends.

        Source: Box and Jenkins, Time Series Analysis, 1970 (the autoregressive process of order 1).
        """
        scale, num_items = self.config.trend_scale, self.config.num_items
        if not scale:
            return self.item_weights[None]
        kept = 0.5 ** (1 / TREND_HALF_LIFE)
        trends = self._rng("trends").standard_normal((self.config.num_days, num_items))
        for day in range(1, len(trends)):
            trends[day] = kept * trends[day - 1] + np.sqrt(1 - kept**2) * trends[day]
        return np.asarray(self.item_weights * np.exp(scale * trends))

    def generate(self) -> SyntheticTables:
        """Return the world's tables: the same ones at each call."""
        config, rng = self.config, self._rng("events")
        sampler = EventSampler(self)
        shape = (config.num_queries, config.events_per_query)
        item_ids, times = np.empty(shape, np.int32), np.empty(shape, np.int64)
        for begin in range(0, config.num_queries, BLOCK):
            block = slice(begin, min(begin + BLOCK, config.num_queries))
            gaps = rng.standard_exponential((config.events_per_query, block.stop - begin))
            moments = (gaps * MEAN_GAP).astype(np.int64) + 1  # (L, B), rising by at least a second
            moments[0] = WORLD_BEGINS + rng.integers(YEAR, size=block.stop - begin)
            moments = np.cumsum(moments, axis=0)
            days = (moments - WORLD_BEGINS) // DAY
            days = np.minimum(days, config.num_days - 1 if config.trend_scale else 0)
            rows = sampler.draw(self.query_personas[block], days.astype(np.int32), rng)
            times[block], item_ids[block] = moments.T, rows.T + 1
        query_ids = np.arange(1, config.num_queries + 1, dtype=np.int32)
        interactions = pl.DataFrame(
            {
                "query_id": np.repeat(query_ids, config.events_per_query),
                "item_id": item_ids.reshape(-1),
                "timestamp": times.reshape(-1),
            }
        )
        if config.born_share:
            is_there = (times - WORLD_BEGINS) // DAY >= self.item_births[item_ids - 1]
            interactions = interactions.filter(pl.Series(is_there.reshape(-1)))
        return SyntheticTables(interactions, self._items(), self._queries())

    def _rng(self, purpose: str) -> np.random.Generator:
        """Return a stream of its own, so that one setting does not move what another draws."""
        streams = ("parameters", "personas", "events", "items", "queries", "births", "trends")
        return np.random.default_rng([self.config.seed, streams.index(purpose)])

    def _items(self) -> pl.DataFrame:
        config, rng = self.config, self._rng("items")
        reveal, clusters = config.item_feature_reveal, self.item_clusters
        item_ids = pl.Series("item_id", np.arange(1, config.num_items + 1, dtype=np.int32))
        own_tags = rng.integers(config.num_clusters, size=(config.num_clusters, TAGS_PER_ITEM))
        any_tags = rng.integers(config.num_clusters, size=(config.num_items, TAGS_PER_ITEM))
        told = rng.random(any_tags.shape) < reveal
        tags = _labels("tag", np.where(told, own_tags[clusters], any_tags).reshape(-1))
        tag_lists = tags.reshape((config.num_items, TAGS_PER_ITEM)).arr.to_list()
        return pl.DataFrame(
            {
                "item_id": item_ids,
                "title": "Synthetic item " + item_ids.cast(pl.String),
                "category": _labels("category", _blur(clusters, config.num_clusters, reveal, rng)),
                "signal": reveal * self.cluster_centres[clusters]
                + rng.standard_normal(config.num_items),
                "tags": tag_lists.list.unique(maintain_order=True).list.join("|"),
            }
        )

    def _queries(self) -> pl.DataFrame:
        config, rng = self.config, self._rng("queries")
        reveal, personas = config.query_feature_reveal, self.query_personas
        return pl.DataFrame(
            {
                "query_id": np.arange(1, config.num_queries + 1, dtype=np.int32),
                "segment": _labels("segment", _blur(personas, config.num_personas, reveal, rng)),
                "signal": reveal * self.persona_centres[personas]
                + rng.standard_normal(config.num_queries),
            }
        )


def births(num_items: int, share: float, num_steps: int, rng: np.random.Generator) -> Ints:
    """Return the step in which each item appears: ``(num_items,)``, 0 for those of the start.

    Args:
        num_items: How many items there are.
        share: Share of those that appear later; each in any step from 1 to ``num_steps``.
        num_steps: How many steps follow the start.
        rng: Where the draws come from.
    """
    found = np.zeros(num_items, np.int64)
    born = rng.permutation(num_items)[: int(share * num_items)]
    found[born] = rng.integers(1, num_steps + 1, len(born))
    return found


def _blur(truth: Rows, num_values: int, reveal: float, rng: np.random.Generator) -> Ints:
    """Return ``truth`` with probability ``reveal``, else uniformly one of the other values."""
    shift = 1 + rng.integers(max(num_values - 1, 1), size=len(truth))
    told = rng.random(len(truth)) < reveal
    return np.asarray(np.where(told, truth, (truth + shift) % num_values), np.int64)


def _labels(prefix: str, numbers: Ints) -> pl.Series:
    return f"{prefix}-" + pl.Series(numbers).cast(pl.String)
