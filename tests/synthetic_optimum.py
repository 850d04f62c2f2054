"""The known best of a synthetic world: what its true parameters say about a query's next item."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from twotower.data.sources.synthetic import SyntheticTables, World, open_clusters

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

CHUNK_CELLS = 2_000_000  # numbers in the largest array of a chunk of queries


@dataclass(frozen=True)
class Estimate:
    """A share of queries and its 95 % interval.

    Args:
        mean: In [0, 1].
        low: Lower end.
        high: Upper end.
    """

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, hits: Bools) -> "Estimate":
        """Return the share of true ``hits``, ``(n,)``, with its Wilson interval.

        Source: Wilson, JASA 1927.
        """
        n, mean, z = len(hits), float(hits.mean()), 1.959964
        centre = (mean + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(mean * (1 - mean) / n + z * z / (4 * n * n))
        return cls(mean, min(mean, centre - half), max(mean, centre + half))


@dataclass(frozen=True)
class Optimum:
    """Recall of each query's last event, a single item, among the first ``k`` named.

    Args:
        k: How many items are named.
        num_queries: Over how many queries the means are.
        bayes: The ceiling: history and query features, with the world's parameters known.
        popularity: The floor: the most frequent items.
        features_only: Query features without the history, with the world's parameters known.
    """

    k: int
    num_queries: int
    bayes: Estimate
    popularity: Estimate
    features_only: Estimate


@dataclass(frozen=True, eq=False)
class OptimumHits:
    """The same, query by query.

    Args:
        k: How many items are named.
        query_ids: ``(n,)`` int64.
        bayes: ``(n,)`` bool, whether the ceiling's first ``k`` hold the last event.
        popularity: ``(n,)`` bool.
        features_only: ``(n,)`` bool.
        bayes_expected: ``(n,)`` float64, the exact probability that ``bayes`` is true, given the
            history: the Bayes-optimal recall of that history.
    """

    k: int
    query_ids: Ints
    bayes: Bools
    popularity: Bools
    features_only: Bools
    bayes_expected: Floats

    def estimates(self) -> Optimum:
        """Return the means and their intervals."""
        return Optimum(
            k=self.k,
            num_queries=len(self.query_ids),
            bayes=Estimate.of(self.bayes),
            popularity=Estimate.of(self.popularity),
            features_only=Estimate.of(self.features_only),
        )


class Oracle:
    """What follows from a world's parameters; the arrays are those of ``World``.

    Args:
        cluster_probs: ``(K, C + 1, C)`` float64; line ``C`` is for the first event.
        item_clusters: ``(I,)`` int32.
        item_weights: ``(I,)`` float64.
    """

    def __init__(
        self,
        *,
        cluster_probs: Floats,
        item_clusters: npt.NDArray[np.int32],
        item_weights: Floats,
    ) -> None:
        self.cluster_probs = cluster_probs
        self.item_clusters = item_clusters
        self.item_weights = item_weights
        self.sizes = np.bincount(item_clusters, minlength=cluster_probs.shape[2])
        self._by_cluster = np.argsort(item_clusters, kind="stable")
        clusters = np.arange(len(self.sizes))
        self._starts = np.searchsorted(item_clusters[self._by_cluster], clusters)

    @classmethod
    def of(cls, world: World) -> "Oracle":
        """Return who knows all of a world."""
        return cls(
            cluster_probs=world.cluster_probs,
            item_clusters=world.item_clusters,
            item_weights=world.item_weights,
        )

    def persona_posterior(self, item_rows: Ints, log_prior: Floats) -> Floats:
        """Return p(persona | history, features): ``(n, K)``.

        Args:
            item_rows: ``(n, t)`` items of the histories, oldest first.
            log_prior: ``(n, K)`` what is known without the history, up to a constant a line.
        """
        clusters = self.item_clusters[item_rows]
        before = np.full_like(clusters, len(self.sizes))
        before[:, 1:] = clusters[:, :-1]
        logits = log_prior.copy()
        for t in range(clusters.shape[1]):
            logits += np.log(self.cluster_probs[:, before[:, t], clusters[:, t]]).T
            if self.sizes.min() < t + 1:
                open_ = open_clusters(clusters[:, :t], self.sizes)
                some = np.flatnonzero(~open_.all(axis=1))
                probs = self.cluster_probs[:, before[some, t]]  # (K, m, C)
                logits[some] -= np.log((probs * open_[some]).sum(axis=2)).T
        logits -= logits.max(axis=1, keepdims=True)
        posterior = np.exp(logits)
        return np.asarray(posterior / posterior.sum(axis=1, keepdims=True))

    def item_shares(self, allowed: Bools) -> Floats:
        """Return p(item | cluster) of the allowed items, 0 for others and in clusters without any.

        Args:
            allowed: ``(n, I)`` which items each query can get.
        """
        weights = self.item_weights * allowed
        totals = np.add.reduceat(weights[:, self._by_cluster], self._starts, axis=1)
        return np.asarray(weights / np.where(totals > 0, totals, 1)[:, self.item_clusters])

    def next_clusters(self, posterior: Floats, last: npt.NDArray[np.int32], open_: Bools) -> Floats:
        """Return the probability of each next cluster: ``(n, C)``.

        Args:
            posterior: ``(n, K)``.
            last: ``(n,)`` cluster of the last event.
            open_: ``(n, C)`` which clusters can be drawn.
        """
        probs = self.cluster_probs[:, last] * open_  # (K, n, C)
        probs /= probs.sum(axis=2, keepdims=True)
        return np.asarray(np.einsum("nk,knc->nc", posterior, probs))

    def clusters_without_history(self, num_steps: int) -> Floats:
        """Return each persona's distribution of the cluster after so many steps: ``(K, C)``."""
        probs = self.cluster_probs[:, -1]
        for _ in range(num_steps):
            probs = np.einsum("kc,kcd->kd", probs, self.cluster_probs[:, :-1])
        return probs

    def hits(
        self,
        *,
        query_ids: Ints,
        item_rows: Ints,
        persona_log_likelihood: Floats,
        item_counts: Ints,
        k: int,
    ) -> OptimumHits:
        """Return which rankings put the last event of each query among the first ``k``.

        Args:
            query_ids: ``(n,)``.
            item_rows: ``(n, L)``; the last column is what is to be found.
            persona_log_likelihood: ``(n, K)`` log p(features | persona).
            item_counts: ``(I,)`` how often each item stands in the events that are no target.
            k: How many items are named.
        """
        n, num_events = item_rows.shape
        unconditional = self.clusters_without_history(num_events - 1)
        found = np.zeros((3, n), np.bool_)
        expected = np.zeros(n)
        cells = max(len(self.item_weights), unconditional.size)
        step = max(1, CHUNK_CELLS // cells)
        for begin in range(0, n, step):
            part = slice(begin, begin + step)
            seen, target = item_rows[part, :-1], item_rows[part, -1]
            log_prior = persona_log_likelihood[part]
            everything = np.ones((len(seen), len(self.item_weights)), np.bool_)
            allowed = everything.copy()
            allowed[np.arange(len(seen))[:, None], seen] = False
            last = self.item_clusters[seen[:, -1]]
            open_ = open_clusters(self.item_clusters[seen], self.sizes)
            posterior = self.persona_posterior(seen, log_prior)
            clusters = self.next_clusters(posterior, last, open_)
            bayes = self.item_shares(allowed) * clusters[:, self.item_clusters]
            prior = np.exp(log_prior - log_prior.max(axis=1, keepdims=True))
            clusters = prior @ unconditional
            without = self.item_shares(everything) * clusters[:, self.item_clusters]
            popular = np.broadcast_to(item_counts, bayes.shape)
            for line, scores in enumerate((bayes, popular, without)):
                found[line, part] = _is_in_top(scores, allowed, target, k)
            best = np.partition(bayes, -k, axis=1)[:, -k:]
            expected[part] = best.sum(axis=1)
        bayes_hits, popularity_hits, features_hits = found
        return OptimumHits(
            k, query_ids, bayes_hits, popularity_hits, features_hits, bayes_expected=expected
        )


def optimum(
    world: World,
    tables: SyntheticTables,
    *,
    k: int = 100,
    num_queries: int | None = 2_000,
    seed: int = 0,
) -> Optimum:
    """Return recall@k of each query's last event, given its earlier ones: the best and others.

    Everything is ranked over the items that were not seen by the query;
    ties go to the lower item id. See ``optimum_hits`` for what is compared.

    Args:
        world: The world.
        tables: What ``generate`` returned.
        k: How many items may be named, in 1..num_items.
        num_queries: How many queries to draw for the estimate, at least 1; None takes all.
        seed: Of that draw.
    """
    return optimum_hits(world, tables, k=k, num_queries=num_queries, seed=seed).estimates()


def optimum_hits(
    world: World,
    tables: SyntheticTables,
    *,
    k: int = 100,
    num_queries: int | None = 2_000,
    seed: int = 0,
) -> OptimumHits:
    """Return for each drawn query whether its last event is in the first ``k`` named.

    ``bayes`` ranks by the probability of each item given the history and the query's features,
    with the world's parameters and each item's cluster known. Over personas,
    log p(persona | history, features) = log p(persona) + sum_t log p(cluster_t | cluster_t-1,
    persona) + log p(features | persona) + a constant, the first cluster included and closed
    clusters renormalised away; no model does better on average. ``features_only`` ranks by the
    probability of each item as that event of a query with these features, were nothing seen
    yet. ``popularity`` counts every query's events but the last. The latter two use a history
    just to leave out what it holds.

    Args:
        world: The world.
        tables: What ``generate`` returned.
        k: How many items may be named, in 1..num_items.
        num_queries: How many queries to draw, at least 1; None, or more than there are, takes
            all.
        seed: Of that draw.

    Raises:
        ValueError: The tables are not those of this world.
    """
    config = world.config
    positions = np.arange(config.num_queries)
    if num_queries is not None and num_queries < config.num_queries:
        drawn = np.random.default_rng(seed).permutation(config.num_queries)[:num_queries]
        positions = np.sort(drawn)
    item_rows = _event_arrays(world, tables.interactions)
    earlier = np.bincount(item_rows[:, :-1].reshape(-1), minlength=config.num_items)
    return Oracle.of(world).hits(
        query_ids=positions + 1,
        item_rows=item_rows[positions],
        persona_log_likelihood=persona_log_likelihood(
            world, tables.queries.sort("query_id")[positions]
        ),
        item_counts=earlier,
        k=k,
    )


def persona_log_likelihood(world: World, queries: pl.DataFrame) -> npt.NDArray[np.float64]:
    """Return log p(features | persona) up to a constant a query: ``(queries, num_personas)``.

    Args:
        world: The world.
        queries: Lines of ``SyntheticTables.queries``.
    """
    personas, reveal = world.config.num_personas, world.config.query_feature_reveal
    segments = queries["segment"].str.strip_prefix("segment-").cast(pl.Int32).to_numpy()
    equal = np.arange(personas) == segments[:, None]  # (n, K)
    with np.errstate(divide="ignore"):  # a reveal of 0 or 1 rules personas out
        hit, miss = np.log(reveal), np.log((1 - reveal) / max(personas - 1, 1))
    signal = queries["signal"].to_numpy()[:, None] - reveal * world.persona_centres
    segment_part = np.where(equal, hit if personas > 1 else 0.0, miss)
    return np.asarray(segment_part - signal**2 / 2)


def _event_arrays(world: World, interactions: pl.DataFrame) -> npt.NDArray[np.int64]:
    """Return the item rows: ``(num_queries, events_per_query)``."""
    shape = (world.config.num_queries, world.config.events_per_query)
    events = interactions.sort("query_id", "timestamp")
    query_ids = np.repeat(np.arange(1, shape[0] + 1), shape[1])
    rows = events["item_id"].to_numpy().astype(np.int64) - 1
    if (
        len(events) != len(query_ids)
        or (events["query_id"].to_numpy() != query_ids).any()
        or not 0 <= rows.min() <= rows.max() < world.config.num_items
    ):
        raise ValueError(
            f"tables must hold the {shape[0]} queries of {shape[1]} events of this world, got "
            f"{len(events)} events of {events['query_id'].n_unique()} queries; pass what its "
            "generate() returned."
        )
    return rows.reshape(shape)


def _is_in_top(scores: npt.NDArray[np.number], allowed: Bools, targets: Ints, k: int) -> Bools:
    """Return whether each line's target is among its ``k`` best allowed columns, ties by column."""
    own = np.take_along_axis(scores, targets[:, None], axis=1)
    earlier = np.arange(scores.shape[1]) < targets[:, None]
    ahead = allowed & ((scores > own) | ((scores == own) & earlier))
    return np.asarray(ahead.sum(axis=1) < k)
