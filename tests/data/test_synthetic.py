import math
from collections import Counter, defaultdict
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2

from synthetic_optimum import Estimate, Oracle, optimum, optimum_hits
from twotower.data.sources.synthetic import (
    DAY,
    WORLD_BEGINS,
    SyntheticTables,
    World,
    WorldConfig,
    open_clusters,
)
from twotower.errors import ConfigError

TINY = WorldConfig(
    num_items=12,
    num_clusters=4,
    num_personas=3,
    num_queries=150,
    events_per_query=6,
    seed=3,
)
SMALL = WorldConfig(
    num_items=300, num_clusters=20, num_personas=6, num_queries=3_000, events_per_query=20
)


def sequences(tables: SyntheticTables) -> list[list[tuple[int, int]]]:
    """Each query's (item row, time), oldest first."""
    events = defaultdict(list)
    for query_id, item_id, time in tables.interactions.rows():
        events[query_id].append((time, item_id - 1))
    return [[(row, t) for t, row in sorted(events[q])] for q in sorted(events)]


def left_in(world: World, cluster: int, seen: set[int]) -> list[int]:
    """The rows of a cluster that are unseen."""
    return [
        row
        for row in range(world.config.num_items)
        if world.item_clusters[row] == cluster and row not in seen
    ]


def cluster_law(world: World, persona: int, last: int, seen: set[int]) -> list[float]:
    """p(next cluster | persona, last, what is left), with closed clusters redrawn."""
    num_clusters = world.config.num_clusters
    law = [
        float(world.cluster_probs[persona, last, c]) if left_in(world, c, seen) else 0.0
        for c in range(num_clusters)
    ]
    return [p / sum(law) for p in law]


def next_item_law(world: World, history: list[int], weights: list[float]) -> list[float]:
    """p(next item | history), by nested loops; ``weights`` is what is known of the persona."""
    config = world.config
    posterior = []
    for persona in range(config.num_personas):
        weight, last, seen = weights[persona], config.num_clusters, set[int]()
        for row in history:
            cluster = int(world.item_clusters[row])
            weight *= cluster_law(world, persona, last, seen)[cluster]
            seen.add(row)
            last = cluster
        posterior.append(weight)
    total = sum(posterior)
    seen = set(history)
    last = int(world.item_clusters[history[-1]])
    law = [0.0] * config.num_items
    for persona in range(config.num_personas):
        for cluster, p in enumerate(cluster_law(world, persona, last, seen)):
            rows = left_in(world, cluster, seen)
            mass = sum(float(world.item_weights[row]) for row in rows)
            for row in rows:
                share = float(world.item_weights[row]) / mass
                law[row] += posterior[persona] / total * p * share
    return law


def feature_weights(world: World, segment: str, signal: float) -> list[float]:
    """p(features | persona), up to a constant."""
    config = world.config
    weights = []
    for persona in range(config.num_personas):
        reveal = config.query_feature_reveal
        told = segment == f"segment-{persona}"
        share = reveal if told else (1 - reveal) / (config.num_personas - 1)
        distance = signal - reveal * float(world.persona_centres[persona])
        weights.append(share * math.exp(-distance * distance / 2))
    return weights


def is_in_top(scores: list[float], allowed: list[int], target: int, k: int) -> bool:
    return target in sorted(allowed, key=lambda row: (-scores[row], row))[:k]


def test_posterior_and_expected_recall_by_hand() -> None:
    """Worked: history of items 0 and 1, both of cluster 0, so persona (3/4, 1/4).

    The next cluster is 0 with 3/4 * 3/4 + 1/4 * 1/4 = 10/16, and only item 2 is left there; items
    3 and 4 share 6/16 as 2:1. First 10/16, then 1/4. Without the renormalisation over unseen items
    item 2 would have 10/16 * 1/7 and come third.
    """
    half = [0.5, 0.5]
    oracle = Oracle(
        cluster_probs=np.array([[[0.75, 0.25], half, half], [[0.25, 0.75], half, half]]),
        item_clusters=np.array([0, 0, 0, 1, 1], np.int32),
        item_weights=np.array([1, 1 / 2, 1 / 4, 1, 1 / 2]),
    )
    posterior = oracle.persona_posterior(np.array([[0, 1]]), log_prior=np.zeros((1, 2)))
    np.testing.assert_allclose(posterior, [[0.75, 0.25]])
    for k, expected in ((1, 0.625), (2, 0.875), (3, 1.0)):
        hits = oracle.hits(
            query_ids=np.array([1]),
            item_rows=np.array([[0, 1, 3]]),
            persona_log_likelihood=np.zeros((1, 2)),
            item_counts=np.zeros(5, np.int64),
            k=k,
        )
        assert hits.bayes_expected[0] == pytest.approx(expected)
        assert hits.bayes[0] == (k >= 2)


def test_interval_by_hand() -> None:
    """Worked: 2 of 4. z z = 3.8415; half = 1.96 * sqrt(1/16 + 3.8415/64) / 1.9604 = 0.3500."""
    estimate = Estimate.of(np.array([True, False, True, False]))
    assert (estimate.mean, estimate.low, estimate.high) == pytest.approx(
        (0.5, 0.15, 0.85), abs=1e-4
    )


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("reveal", [0.0, 0.6, 1.0])
def test_hits_equal_nested_loops(k: int, reveal: float) -> None:
    """A world where clusters close, so that every rule matters."""
    world = World(replace(TINY, query_feature_reveal=reveal))
    tables = world.generate()
    hits = optimum_hits(world, tables, k=k, num_queries=None)
    events = sequences(tables)
    counts = Counter(row for sequence in events for row, _ in sequence[:-1])
    config = world.config
    for query, sequence in enumerate(events):
        *history, target = (row for row, _ in sequence)
        seen = set(history)
        allowed = [row for row in range(config.num_items) if row not in seen]
        weights = feature_weights(world, *tables.queries.row(query)[1:])
        law = next_item_law(world, history, weights)
        assert hits.bayes_expected[query] == pytest.approx(sum(sorted(law)[-k:]))
        assert hits.bayes[query] == is_in_top(law, allowed, target, k)
        frequency = [float(counts[row]) for row in range(config.num_items)]
        assert hits.popularity[query] == is_in_top(frequency, allowed, target, k)
        alone = [0.0] * config.num_items
        for persona in range(config.num_personas):
            walk = [float(p) for p in world.cluster_probs[persona, -1]]
            for _ in history:
                walk = [
                    sum(walk[a] * float(world.cluster_probs[persona, a, b]) for a in range(4))
                    for b in range(4)
                ]
            for row in range(config.num_items):
                cluster = int(world.item_clusters[row])
                mass = sum(float(world.item_weights[r]) for r in left_in(world, cluster, set()))
                alone[row] += (
                    weights[persona] * walk[cluster] * float(world.item_weights[row]) / mass
                )
        assert hits.features_only[query] == is_in_top(alone, allowed, target, k)


@pytest.mark.parametrize(("num_clusters", "zipf_exponent"), [(3, 0.8), (2, 7.0)])
def test_next_items_follow_the_stated_law(num_clusters: int, zipf_exponent: float) -> None:
    """Chi-square of the last item given each whole history; such small clusters close often.

    The steep exponent makes most redraws fail, so that the explicit draw is exercised as well.
    """
    world = World(
        WorldConfig(
            num_items=6,
            num_clusters=num_clusters,
            num_personas=2,
            num_queries=60_000,
            events_per_query=4,
            transition_scale=0.7,
            zipf_exponent=zipf_exponent,
            seed=1,
        )
    )
    items = world.generate().interactions["item_id"].to_numpy().reshape(-1, 4) - 1
    observed = Counter(map(tuple, items.tolist()))
    histories = Counter(tuple(line[:3]) for line in items.tolist())
    statistic, freedom = 0.0, 0
    for history, count in histories.items():
        law = next_item_law(world, list(history), [1.0, 1.0])
        cells = [(observed[(*history, row)], count * p) for row, p in enumerate(law)]
        assert all(seen == 0 for seen, expected in cells if expected == 0)
        large = [(seen, expected) for seen, expected in cells if expected >= 5]
        statistic += sum((seen - expected) ** 2 / expected for seen, expected in large)
        freedom += max(len(large) - 1, 0)
    assert freedom >= 20
    assert statistic < chi2.ppf(0.999, freedom)


def test_first_events_follow_the_stated_law() -> None:
    world = World(replace(TINY, num_queries=20_000))
    first = world.generate().interactions["item_id"].to_numpy()[:: world.config.events_per_query]
    expected = np.zeros(12)
    for row in range(12):
        cluster = world.item_clusters[row]
        mass = world.item_weights[world.item_clusters == cluster].sum()
        share = world.cluster_probs[world.query_personas, -1, cluster].sum()
        expected[row] = share * world.item_weights[row] / mass
    seen = np.bincount(first - 1, minlength=12)
    assert ((seen - expected) ** 2 / expected).sum() < chi2.ppf(0.999, 11)


@pytest.mark.parametrize("k", [1, 3])
def test_expected_recall_is_what_happens(k: int) -> None:
    """With closing clusters, the stated probability of a hit is the frequency."""
    world = World(replace(TINY, num_queries=8_000))
    hits = optimum_hits(world, world.generate(), k=k, num_queries=None)
    spread = np.sqrt((hits.bayes_expected * (1 - hits.bayes_expected)).sum())
    assert abs((hits.bayes - hits.bayes_expected).sum()) < 3.5 * spread


def test_probabilities_are_the_stated_softmax() -> None:
    """Persona scale 0 leaves one chain for all; transition scale 0 forgets the last cluster."""
    same = World(replace(TINY, persona_scale=0.0)).cluster_probs
    np.testing.assert_allclose(same[0], same[1])
    assert not np.allclose(same[0, 0], same[0, 1])
    memoryless = World(replace(TINY, transition_scale=0.0)).cluster_probs
    np.testing.assert_allclose(memoryless[:, 0], memoryless[:, -1])
    # log p(c | b) = a A[b, c] + r[c] - log Z[b]: doubling a doubles what is left without r and Z.
    one, two = (
        np.log(World(replace(TINY, transition_scale=a)).cluster_probs[0]) for a in (1.0, 2.0)
    )

    def affinity(logs: Any) -> Any:
        relative = logs[:-1] - logs[-1]
        return relative - relative[:, :1]

    np.testing.assert_allclose(affinity(two), 2 * affinity(one))


def test_popularity_within_a_cluster_is_zipf() -> None:
    world = World(replace(TINY, zipf_exponent=2.0))
    for cluster in range(4):
        weights = sorted(world.item_weights[world.item_clusters == cluster], reverse=True)
        assert weights == pytest.approx([1, 1 / 4, 1 / 9])


def test_a_cluster_is_open_while_it_has_an_item_that_the_query_has_not_had() -> None:
    history = np.array([[0, 1], [1, 1]], np.int32)
    assert open_clusters(history, np.array([1, 2])).tolist() == [[False, True], [True, False]]


def test_bayes_beats_features_and_popularity() -> None:
    world = World(SMALL)
    best = optimum(world, world.generate(), k=20)
    assert best.num_queries == 2_000
    assert best.bayes.low > best.features_only.high
    assert best.features_only.low > best.popularity.high
    assert best.popularity.low < best.popularity.mean < best.popularity.high


def test_features_are_revealed_as_often_as_stated() -> None:
    world = World(replace(SMALL, item_feature_reveal=0.7, query_feature_reveal=0.4))
    tables = world.generate()
    category = tables.items["category"].str.strip_prefix("category-").cast(pl.Int32).to_numpy()
    segment = tables.queries["segment"].str.strip_prefix("segment-").cast(pl.Int32).to_numpy()
    assert (category == world.item_clusters).mean() == pytest.approx(0.7, abs=0.08)
    assert (segment == world.query_personas).mean() == pytest.approx(0.4, abs=0.03)
    wrong = np.bincount((segment - world.query_personas)[segment != world.query_personas] % 6)
    assert wrong[1:].min() > 0.8 * wrong[1:].max()  # any other persona is as likely
    noise = tables.queries["signal"].to_numpy() - 0.4 * world.persona_centres[world.query_personas]
    assert (noise.mean(), noise.std()) == pytest.approx((0, 1), abs=0.06)
    noise = tables.items["signal"].to_numpy() - 0.7 * world.cluster_centres[world.item_clusters]
    assert (noise.mean(), noise.std()) == pytest.approx((0, 1), abs=0.2)


def test_tags_tell_the_cluster() -> None:
    def shared(reveal: float) -> float:
        world = World(replace(SMALL, item_feature_reveal=reveal))
        tags = [set(tags.split("|")) for tags in world.generate().items["tags"]]
        assert max(len(each) for each in tags) <= 3
        cluster = [row for row in range(300) if world.item_clusters[row] == 0]
        return float(np.mean([tags[a] == tags[b] for a in cluster for b in cluster if a < b]))

    assert shared(1.0) == 1
    assert shared(0.0) < 0.1


def test_items_say_that_they_are_synthetic() -> None:
    items = World(TINY).generate().items
    assert items["title"].str.starts_with("Synthetic").all()


def test_same_seed_same_tables() -> None:
    world = World(TINY)
    first, again = world.generate(), World(TINY).generate()
    other = World(replace(TINY, seed=4)).generate()
    for name in ("interactions", "items", "queries"):
        assert getattr(first, name).equals(getattr(again, name))
        assert getattr(first, name).equals(getattr(world.generate(), name))
        assert not getattr(first, name).equals(getattr(other, name))


def test_features_do_not_move_events() -> None:
    plain = World(TINY).generate()
    told = World(replace(TINY, item_feature_reveal=1.0, query_feature_reveal=1.0)).generate()
    assert plain.interactions.equals(told.interactions)
    assert not plain.items.equals(told.items)
    assert not plain.queries.equals(told.queries)


def test_items_rise_and_fall_by_the_weights_of_the_day() -> None:
    """Chi-square of the first two items of each query, by month; without the trends it fails."""
    config = WorldConfig(
        num_items=4, num_clusters=1, num_personas=1, num_queries=40_000, events_per_query=2
    )
    world = World(replace(config, trend_scale=1.0))
    items = world.generate().interactions["item_id"].to_numpy().reshape(-1, 2) - 1
    times = world.generate().interactions["timestamp"].to_numpy().reshape(-1, 2)
    days = (times - WORLD_BEGINS) // DAY
    seen = np.zeros((13, 4, 4))
    np.add.at(seen, (days[:, 0] // 30, items[:, 0], items[:, 1]), 1)
    is_pair = ~np.eye(4, dtype=np.bool_)
    assert not seen[:, ~is_pair].any()

    def statistic(daily: Any) -> float:
        first, second = (daily[np.minimum(day, len(daily) - 1)] for day in days.T)
        left = second.sum(axis=1, keepdims=True) - second
        shares = first / first.sum(axis=1, keepdims=True) / left
        expected = np.zeros_like(seen)
        np.add.at(expected, days[:, 0] // 30, shares[:, :, None] * second[:, None])
        return float(((seen - expected)[:, is_pair] ** 2 / expected[:, is_pair]).sum())

    most = chi2.ppf(0.999, 13 * 11)
    assert statistic(world.daily_weights()) < most < statistic(world.item_weights[None]) / 10


def test_trends_have_the_stated_deviation_and_half_life() -> None:
    world = World(replace(SMALL, trend_scale=0.5))
    trends = np.log(world.daily_weights() / world.item_weights)
    assert len(trends) == world.config.num_days >= 365
    assert trends.std() == pytest.approx(0.5, rel=0.05)
    assert np.mean(trends[30:] * trends[:-30]) == pytest.approx(0.5 * 0.5**2, rel=0.2)
    assert World(SMALL).daily_weights().tolist() == [world.item_weights.tolist()]


def test_every_item_is_there_with_trends_where_queries_see_all() -> None:
    config = replace(TINY, num_items=6, num_clusters=2, zipf_exponent=7.0, trend_scale=2.0)
    items = World(config).generate().interactions["item_id"].to_numpy().reshape(-1, 6)
    assert (np.sort(items) == np.arange(1, 7)).all()


def test_new_items_appear_every_day_and_have_no_earlier_event() -> None:
    plain, world = World(SMALL).generate(), World(replace(SMALL, born_share=0.4))
    tables = world.generate()
    born = world.item_births[world.item_births > 0]
    assert len(born) == 120
    assert born.max() <= 365
    assert np.bincount(born // 73, minlength=5).min() >= 12  # in each fifth of the year
    events = plain.interactions
    days = (events["timestamp"].to_numpy() - WORLD_BEGINS) // DAY
    is_there = days >= world.item_births[events["item_id"].to_numpy() - 1]
    assert tables.interactions.equals(events.filter(pl.Series(is_there)))
    assert 0.6 < is_there.mean() < 0.95
    assert tables.items.equals(plain.items)
    assert not World(SMALL).item_births.any()


def test_drawn_queries_are_a_part_of_all() -> None:
    world = World(TINY)
    tables = world.generate()
    every = optimum_hits(world, tables, k=3, num_queries=None)
    some = optimum_hits(world, tables, k=3, num_queries=40, seed=5)
    assert len(set(some.query_ids.tolist())) == 40
    for name in ("bayes", "popularity", "features_only", "bayes_expected"):
        np.testing.assert_array_equal(getattr(some, name), getattr(every, name)[some.query_ids - 1])
    other = optimum_hits(world, tables, k=3, num_queries=40, seed=6)
    assert not np.array_equal(some.query_ids, other.query_ids)


def test_order_of_lines_does_not_matter() -> None:
    world = World(TINY)
    tables = world.generate()
    shuffled = SyntheticTables(
        tables.interactions.sample(fraction=1, shuffle=True, seed=1),
        tables.items,
        tables.queries.reverse(),
    )
    assert optimum(world, shuffled, k=3) == optimum(world, tables, k=3)


@st.composite
def configs(draw: st.DrawFn) -> WorldConfig:
    num_items = draw(st.integers(2, 30))
    return WorldConfig(
        num_items=num_items,
        num_clusters=draw(st.integers(1, num_items)),
        num_personas=draw(st.integers(1, 3)),
        num_queries=draw(st.integers(1, 40)),
        events_per_query=draw(st.integers(2, num_items)),
        zipf_exponent=draw(st.sampled_from([0.0, 0.8, 10.0])),
        transition_scale=draw(st.sampled_from([0.0, 2.0, 10.0])),
        seed=draw(st.integers(0, 1_000)),
    )


@given(configs())
def test_every_world_keeps_its_rules(config: WorldConfig) -> None:
    """No item twice, no tie in time; up to queries that see everything."""
    world = World(config)
    tables = world.generate()
    assert len(tables.items) == config.num_items
    assert len(tables.queries) == config.num_queries
    events = sequences(tables)
    assert [len(sequence) for sequence in events] == [config.events_per_query] * config.num_queries
    for sequence in events:
        rows, times = zip(*sequence, strict=True)
        assert len(set(rows)) == len(rows)
        assert all(a < b for a, b in pairwise(times))
    hits = optimum_hits(world, tables, k=config.num_items)
    assert hits.bayes.all()
    assert hits.popularity.all()
    assert hits.features_only.all()
    np.testing.assert_allclose(hits.bayes_expected, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_items": 1}, r"num_items must be at least 2, got 1\."),
        ({"num_clusters": 13}, "num_clusters must be at most 12 items, got 13"),
        ({"num_personas": 0}, "num_personas must be at least 1, got 0"),
        ({"num_queries": 0}, "num_queries must be at least 1, got 0"),
        ({"events_per_query": 1}, "events_per_query must be at least 2, got 1"),
        ({"events_per_query": 13}, "events_per_query must be at most 12 items, got 13"),
        ({"zipf_exponent": -0.1}, r"zipf_exponent must be in 0\.\.10, got -0\.1"),
        ({"transition_scale": 11.0}, r"transition_scale must be in 0\.\.10, got 11"),
        ({"persona_scale": math.nan}, r"persona_scale must be in 0\.\.10, got nan"),
        ({"item_feature_reveal": 1.5}, r"item_feature_reveal must be in 0\.\.1, got 1\.5"),
        ({"query_feature_reveal": -1.0}, r"query_feature_reveal must be in 0\.\.1, got -1"),
        ({"trend_scale": -1.0}, r"trend_scale must be in 0\.\.10, got -1"),
        ({"born_share": 1.1}, r"born_share must be in 0\.\.1, got 1\.1"),
        (
            {"num_items": 1_000_000, "trend_scale": 1.0},
            r"days \* num_items must be at most 100000000 with trends, got 367000000; lower num_items",
        ),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        (
            {"num_items": 10_000, "num_clusters": 10_000},
            r"num_personas \* num_clusters\*\*2 must be at most 100000000, got 300000000",
        ),
    ],
)
def test_config_out_of_range(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(TINY, **change)


def test_config_names_every_problem() -> None:
    with pytest.raises(ConfigError, match=r"(?s)num_queries .* got 0.*seed .* got -2"):
        WorldConfig(num_queries=0, seed=-2)


def test_tables_of_another_world() -> None:
    world = World(TINY)
    tables = World(replace(TINY, num_queries=7)).generate()
    with pytest.raises(ValueError, match=r"150 queries of 6 events .* got 42 events of 7 queries"):
        optimum(world, tables, k=3)
    tables = world.generate()
    foreign = tables.interactions.with_columns(item_id=pl.col("item_id") + 1)
    with pytest.raises(ValueError, match=r"pass what its generate\(\) returned"):
        optimum(world, replace(tables, interactions=foreign), k=3)
