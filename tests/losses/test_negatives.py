import math
from collections import Counter
from itertools import combinations_with_replacement, product

import pytest
import torch
from torch import Tensor

from twotower.losses.candidates import Candidates, Pairs, Sampler, accidental_hits
from twotower.losses.negatives import (
    AllItems,
    BothSides,
    Impressions,
    InBatch,
    Mixed,
    OwnItems,
    PerQuery,
    Popularity,
    Uniform,
)
from twotower.losses.softmax import SoftmaxLoss

CATALOGUE = torch.tensor([5, 2, 8, 3])
NUM_ROWS = 9


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def log_p_of(shares: dict[int, float]) -> Tensor:
    log_p = torch.full((NUM_ROWS,), -math.inf)
    for row, share in shares.items():
        log_p[row] = math.log(share)
    return log_p


LOG_P = log_p_of({2: 0.5, 3: 0.25, 5: 0.25})


def test_all_items_are_the_catalogue() -> None:
    candidates = AllItems(CATALOGUE)(Pairs(torch.tensor([8, 5, 8])), generator())
    assert candidates.item_rows.tolist() == CATALOGUE.tolist()
    assert candidates.positions.tolist() == [2, 0, 2]
    assert candidates.log_q is None
    assert len(candidates) == 4


@pytest.mark.parametrize("row", [0, 4, 8])
def test_an_item_outside_the_catalogue_is_refused(row: int) -> None:
    with pytest.raises(ValueError, match=f"must be in the catalogue, got row {row};"):
        AllItems(CATALOGUE[:2])(Pairs(torch.tensor([5, row])), generator())


def test_in_batch_worked() -> None:
    candidates = InBatch(LOG_P)(Pairs(torch.tensor([3, 2, 3])), generator())
    assert candidates.item_rows.tolist() == [3, 2, 3]
    assert candidates.positions.tolist() == [0, 1, 2]
    assert candidates.log_q is not None
    assert candidates.log_q.exp().tolist() == pytest.approx([0.25, 0.5, 0.25])


def test_distinct_in_batch_worked() -> None:
    # The two other events hold item 2 with probability 1 - .5^2 = .75, item 3 with 1 - .75^2 = .4375.
    candidates = InBatch(LOG_P, distinct=True)(Pairs(torch.tensor([3, 2, 3])), generator())
    assert candidates.item_rows.tolist() == [2, 3]
    assert candidates.positions.tolist() == [1, 0, 1]
    assert candidates.log_q is not None
    assert candidates.log_q.exp().tolist() == pytest.approx([0.75, 0.4375])


def test_in_batch_without_frequency_is_refused() -> None:
    with pytest.raises(ValueError, match="must have training events, got row 8"):
        InBatch(LOG_P)(Pairs(torch.tensor([2, 8])), generator())


def test_uniform_hides_what_was_not_drawn() -> None:
    own = torch.tensor([8, 5, 8, 3])
    candidates = Uniform(CATALOGUE, num=1)(Pairs(own), generator())
    rows = candidates.item_rows.tolist()
    drawn = int(CATALOGUE[torch.randint(4, (1,), generator=generator())])
    assert rows == sorted({8, 5, 3, drawn})
    assert candidates.item_rows[candidates.positions].tolist() == own.tolist()
    assert candidates.log_q is None
    assert candidates.never is not None
    assert [row for row, no in zip(rows, candidates.never.tolist(), strict=True) if not no] == [
        drawn
    ]


def test_uniform_draws_evenly() -> None:
    draw, source = Uniform(CATALOGUE, num=1), generator()
    counts = dict.fromkeys(CATALOGUE.tolist(), 0)
    for _ in range(2000):
        candidates = draw(Pairs(torch.tensor([5])), source)
        for row in candidates.item_rows.tolist():
            counts[row] += 1
    # Item 5 is always there; each other is drawn 500 times, give or take 4 deviations of 19.4.
    assert counts[5] == 2000
    assert all(abs(counts[row] - 500) < 78 for row in (2, 8, 3))


def test_mixed_worked() -> None:
    # A batch of 2 and 6 draws of 4 items: item 2 is expected 2 * .5 + 6 / 4 = 2.5 times; item 8,
    # which never trains, 1.5 times.
    candidates = Mixed(LOG_P, CATALOGUE, num=6)(Pairs(torch.tensor([3, 2])), generator())
    assert candidates.item_rows[:2].tolist() == [3, 2]
    assert candidates.positions.tolist() == [0, 1]
    assert len(candidates) == 8
    assert candidates.log_q is not None
    expected = {2: 2.5, 3: 2.0, 5: 2.0, 8: 1.5}
    counts = [expected[row] for row in candidates.item_rows.tolist()]
    assert candidates.log_q.exp().tolist() == pytest.approx(counts)


def test_distinct_mixed_is_how_often_the_others_bring_an_item() -> None:
    draw, source = Mixed(LOG_P, CATALOGUE, num=1, distinct=True), generator()
    # Two other queries and a draw, 1 - (1 - p)^2 * 3/4: item 2 .8125, 3 and 5 .578125, 8 .25.
    present = {2: 0.8125, 3: 0.578125, 5: 0.578125, 8: 0.25}
    counts = dict.fromkeys(present, 0)
    for _ in range(1000):
        others = torch.multinomial(LOG_P.exp(), 2, replacement=True, generator=source)
        own = torch.cat([torch.tensor([2]), others])
        state = source.get_state()
        candidates = draw(Pairs(own), source)
        assert candidates.log_q is not None
        for row, log_q in zip(
            candidates.item_rows.tolist(), candidates.log_q.tolist(), strict=True
        ):
            assert math.exp(log_q) == pytest.approx(present[row])
        source.set_state(state)
        drawn = int(CATALOGUE[torch.randint(4, (1,), generator=source)])
        for row in {drawn, *others.tolist()}:
            counts[row] += 1
    for row, share in present.items():
        assert counts[row] / 1000 == pytest.approx(share, abs=0.06)


def test_popularity_worked() -> None:
    # Shares of 16 and 1 to the power .5 are 4 and 1, so .8 and .2; two draws: 1 - .2^2, 1 - .8^2.
    log_p = log_p_of({3: 16 / 17, 8: 1 / 17})
    popularity = Popularity(log_p, torch.tensor([3, 5, 8]), num=2, power=0.5)
    source, seen = generator(), set()
    for _ in range(20):
        candidates = popularity(Pairs(torch.tensor([8, 8])), source)
        assert candidates.never is not None
        assert candidates.log_q is not None
        chances = dict(
            zip(candidates.item_rows.tolist(), candidates.log_q.exp().tolist(), strict=True)
        )
        assert chances[8] == pytest.approx(0.36)
        assert chances.get(3, 0.96) == pytest.approx(0.96)
        seen |= set(chances)
    assert seen == {3, 8}  # item 5, without events, is never drawn


def test_popularity_draws_by_the_power() -> None:
    log_p = log_p_of({2: 0.64, 3: 0.32, 5: 0.04})
    draw, source = Popularity(log_p, torch.tensor([5, 2, 3]), num=1, power=0.5), generator(4)
    counts = dict.fromkeys((2, 3, 5), 0)
    for _ in range(1500):
        candidates = draw(Pairs(torch.tensor([5])), source)
        assert candidates.never is not None
        for row, never in zip(
            candidates.item_rows.tolist(), candidates.never.tolist(), strict=True
        ):
            counts[row] += not never
    # The roots are .8, .566 and .2, of 1.566; 4 deviations of a share near a half are .052.
    for row, share in {2: 0.511, 3: 0.361, 5: 0.128}.items():
        assert counts[row] / 1500 == pytest.approx(share, abs=0.052)


def test_popularity_without_power_is_uniform() -> None:
    popularity = Popularity(LOG_P, CATALOGUE, num=3, power=0)
    log_q = popularity(Pairs(torch.tensor([2, 5])), generator()).log_q
    assert log_q is not None
    assert log_q.exp().tolist() == pytest.approx([1 - 0.75**3] * len(log_q))
    source = generator()
    seen = [popularity(Pairs(torch.tensor([2])), source).item_rows.tolist() for _ in range(20)]
    assert any(8 in rows for rows in seen)  # which has no events


def test_popularity_refuses() -> None:
    with pytest.raises(ValueError, match=r"power must be in \[0, 1\], got 1.5"):
        Popularity(LOG_P, CATALOGUE, 3, 1.5)
    with pytest.raises(ValueError, match="log_p must give some item of item_rows training events"):
        Popularity(LOG_P, torch.tensor([8]), 3, 0.5)
    with pytest.raises(ValueError, match="must have training events, got row 8"):
        Popularity(LOG_P, CATALOGUE, 3, 0.5)(Pairs(torch.tensor([2, 8])), generator())


def test_per_query_draws_are_its_own() -> None:
    rows = torch.arange(10, 40)
    own = torch.tensor([11, 25, 25, 39])
    candidates = PerQuery(rows, 4)(Pairs(own), generator(2))
    assert candidates.columns is not None
    drawn = candidates.item_rows[candidates.columns]
    assert drawn[:, 0].tolist() == own.tolist()
    assert candidates.item_rows.tolist() == sorted(set(drawn.flatten().tolist()))
    assert drawn.shape[1] <= 5
    assert len({tuple(sorted(d)) for d in drawn[:, 1:].tolist()}) == 4
    assert all(len(set(d)) == len(d) for d in drawn[:, 1:].tolist())


def test_per_query_sets_are_equally_likely() -> None:
    # Two of four items: each of the 6 pairs for each query; 4 deviations of 1/6 are .034.
    draw, source, counts = PerQuery(CATALOGUE, 2), generator(3), dict[frozenset[int], int]()
    total = 0
    while total < 2000:
        candidates = draw(Pairs(torch.tensor([2, 8])), source)
        assert candidates.columns is not None
        pair = frozenset(candidates.item_rows[candidates.columns[1, 1:]].tolist())
        if len(pair) == 2:
            counts[pair] = counts.get(pair, 0) + 1
            total += 1
    assert len(counts) == 6
    assert all(abs(count / 2000 - 1 / 6) < 0.034 for count in counts.values())


def test_impressions_worked() -> None:
    # Query 0 was shown 7 and 9; query 1, which owns what others were shown, 4 twice by mistake and
    # its own item; query 2 nothing. One item of a catalogue of one is drawn: 3.
    own = torch.tensor([5, 7, 5])
    shown = torch.tensor([[0, 7, 9], [4, 4, 7], [0, 0, 0]], dtype=torch.int32)
    pairs = Pairs(own, impression_rows=shown)
    candidates = Impressions(torch.tensor([3]), num=1)(pairs, generator())
    assert candidates.item_rows.tolist() == [3, 4, 5, 7, 9]
    assert candidates.columns is not None
    drawn = candidates.item_rows[candidates.columns]
    assert drawn.tolist() == [[5, 5, 7, 9, 3], [7, 4, 4, 7, 3], [5, 5, 5, 5, 3]]
    assert candidates.positions.tolist() == [2, 3, 2]
    assert candidates.log_q is None


def test_an_impression_that_was_also_drawn_counts_once() -> None:
    pairs = Pairs(torch.tensor([5, 5]), impression_rows=torch.tensor([[3, 8], [8, 8]]))
    candidates = Impressions(torch.tensor([3]), num=4)(pairs, generator())
    assert candidates.columns is not None
    drawn = candidates.item_rows[candidates.columns]
    assert drawn.tolist() == [[5, 5, 8, 3], [5, 8, 8, 3]]


def test_impressions_need_their_column() -> None:
    with pytest.raises(ValueError, match="pairs must have impression_rows, got None"):
        Impressions(CATALOGUE, 1)(Pairs(torch.tensor([5])), generator())


def test_both_sides_add_who_asks() -> None:
    pairs = Pairs(torch.tensor([3, 2]), torch.tensor([4, 5]))
    query_log_p = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.5, 0.25]).log()
    candidates = BothSides(InBatch(LOG_P), query_log_p)(pairs, generator())
    assert candidates.item_rows.tolist() == [3, 2]
    assert candidates.query_rows is not None
    assert candidates.query_rows.tolist() == [4, 5]
    assert candidates.query_log_q is not None
    assert candidates.query_log_q.exp().tolist() == pytest.approx([0.5, 0.25])
    assert BothSides(InBatch(LOG_P), None)(pairs, generator()).query_log_q is None


def test_own_items_are_nobodys_negatives() -> None:
    candidates = OwnItems()(Pairs(torch.tensor([3, 2, 3])), generator())
    assert candidates.item_rows.tolist() == [3, 2, 3]
    assert candidates.columns is not None  # a query against the items of all others would be B x B
    assert candidates.columns.tolist() == [[0], [1], [2]]


def test_one_item_is_certain() -> None:
    alone = Mixed(torch.zeros(3), torch.tensor([2]), num=2, distinct=True)
    log_q = alone(Pairs(torch.tensor([2])), generator()).log_q
    assert log_q is not None
    assert log_q.tolist() == [0.0]


def test_samplers_refuse_nothing_to_draw() -> None:
    nothing = CATALOGUE[:0]
    for make in (
        AllItems,
        lambda rows: Uniform(rows, 1),
        lambda rows: Mixed(LOG_P, rows, 1),
        lambda rows: Popularity(LOG_P, rows, 1, 0.5),
        lambda rows: PerQuery(rows, 1),
        lambda rows: Impressions(rows, 1),
    ):
        with pytest.raises(ValueError, match="at least 1 item of the catalogue, got 0"):
            make(nothing)
    for make in (
        lambda num: Uniform(CATALOGUE, num),
        lambda num: Mixed(LOG_P, CATALOGUE, num),
        lambda num: Popularity(LOG_P, CATALOGUE, num, 0.5),
        lambda num: PerQuery(CATALOGUE, num),
        lambda num: Impressions(CATALOGUE, num),
    ):
        with pytest.raises(ValueError, match="num must be at least 1, got 0"):
            make(0)


# A world of three queries and six items that knows its own answer: p(item | query). The towers are
# one-hot, so that the item vectors hold the logits and their gradient can be compared.
PREFERENCES = torch.tensor(
    [
        [0.5, 0.2, 0.1, 0.1, 0.05, 0.05],
        [0.4, 0.05, 0.3, 0.05, 0.15, 0.05],
        [0.3, 0.3, 0.05, 0.1, 0.05, 0.2],
    ],
    dtype=torch.float64,
)
QUERIES = torch.eye(3, dtype=torch.float64)
ROWS = torch.arange(2, 8)
WORLD_LOG_P = torch.cat([torch.full((2,), -math.inf), PREFERENCES.mean(0).log()])


def gradient(logits: Tensor, queries: Tensor, candidates: Candidates, hide: bool) -> Tensor:
    """Return the gradient of the loss with respect to the (6, 3) logits of items and queries."""
    logits = logits.clone().requires_grad_()
    own = candidates.item_rows[candidates.positions]
    hidden = accidental_hits(candidates, own, 8) if hide else None
    items = logits[candidates.item_rows - 2]
    loss = SoftmaxLoss()(QUERIES[queries], items, candidates, hidden=hidden)
    return torch.autograd.grad(loss, logits)[0]


def mean_gradient(sampler: Sampler, logits: Tensor, batch: int, steps: int) -> Tensor:
    source = generator(0)
    total = torch.zeros_like(logits)
    for _ in range(steps):
        queries = torch.randint(3, (batch,), generator=source)
        own = torch.multinomial(PREFERENCES[queries], 1, generator=source).squeeze(1) + 2
        total += gradient(logits, queries, sampler(Pairs(own), source), hide=False)
    return total / steps


def full_gradient(logits: Tensor) -> Tensor:
    return (logits.softmax(0) - PREFERENCES.T) / 3


def without_correction(sampler: Sampler) -> Sampler:
    def call(pairs: Pairs, generator: torch.Generator) -> Candidates:
        candidates = sampler(pairs, generator)
        return Candidates(candidates.item_rows, candidates.positions)

    return call


@pytest.mark.parametrize(("correct", "hide"), [(True, False), (False, False), (True, True)])
def test_corrected_in_batch_softmax_is_least_at_the_true_preferences(
    correct: bool, hide: bool
) -> None:
    # The first query's loss over all batches of three, each with its probability: no noise. At
    # logits = log p(item | query) the expected gradient is 0 with the correction, and with the
    # copies of the own item left in.
    truth, shares = PREFERENCES.T.log(), PREFERENCES.mean(0)
    expected = torch.zeros_like(truth)
    others = list(combinations_with_replacement(range(6), 2))
    for query, own, (i, j) in product(range(3), range(6), others):
        batch = InBatch(WORLD_LOG_P)(Pairs(torch.tensor([own, i, j]) + 2), generator())
        log_q = batch.log_q if correct else None
        candidates = Candidates(batch.item_rows, batch.positions[:1], log_q)
        probability = PREFERENCES[query, own] * shares[i] * shares[j] / 3 * (1 if i == j else 2)
        expected += probability * gradient(truth, torch.tensor([query]), candidates, hide)
    greatest = expected.abs().max().item()
    assert greatest < 1e-7 if correct and not hide else greatest > 1e-3


@pytest.mark.parametrize(("others", "most"), [(1, 1e-7), (2, 0.015), (4, 0.022)])
def test_distinct_in_batch_softmax_is_nearly_least_there(others: int, most: float) -> None:
    # As above, in units of the gradient at equal scores. One other query: exact. More: the chances
    # that items are there are not quite independent. Were the own event counted among those that
    # may bring an item, it would be .055, .058 and .049.
    truth, shares = PREFERENCES.T.log(), PREFERENCES.mean(0)
    expected = torch.zeros_like(truth)
    for drawn in combinations_with_replacement(range(6), others):
        orders = math.factorial(others) / math.prod(map(math.factorial, Counter(drawn).values()))
        for own in range(6):
            batch = InBatch(WORLD_LOG_P, distinct=True)(
                Pairs(torch.tensor([own, *drawn]) + 2), generator()
            )
            assert batch.log_q is not None
            weights = (truth[batch.item_rows - 2].T - batch.log_q).softmax(1)  # (3, N)
            weights[:, batch.positions[0]] -= 1
            chances = PREFERENCES[:, own] * orders * shares[list(drawn)].prod() / 3
            expected[batch.item_rows - 2] += (chances[:, None] * weights).T
    assert expected.norm() / full_gradient(torch.zeros_like(truth)).norm() < most


SAMPLERS: dict[str, Sampler] = {
    "in-batch": InBatch(WORLD_LOG_P),
    "in-batch, distinct": InBatch(WORLD_LOG_P, distinct=True),
    "mixed": Mixed(WORLD_LOG_P, ROWS, 32),
    "mixed, distinct": Mixed(WORLD_LOG_P, ROWS, 32, distinct=True),
    "uniform": Uniform(ROWS, 64),
    "popularity": Popularity(WORLD_LOG_P.float(), ROWS, 64, 0.75),
    "per-query": PerQuery(ROWS, 64),
    "all": AllItems(ROWS),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_corrected_gradient_approaches_that_of_the_full_softmax(name: str) -> None:
    logits = torch.randn(6, 3, generator=generator(3), dtype=torch.float64)
    full = full_gradient(logits)
    sampled = mean_gradient(SAMPLERS[name], logits, batch=128, steps=100)
    assert (sampled - full).norm() / full.norm() < 0.06


@pytest.mark.parametrize("name", ["in-batch", "mixed"])
def test_the_uncorrected_gradient_does_not(name: str) -> None:
    logits = torch.randn(6, 3, generator=generator(3), dtype=torch.float64)
    full = full_gradient(logits)
    sampled = mean_gradient(without_correction(SAMPLERS[name]), logits, batch=128, steps=100)
    assert (sampled - full).norm() / full.norm() > 0.2


@pytest.mark.parametrize(
    "sampler",
    [Uniform(ROWS, 2), PerQuery(ROWS, 2), Popularity(WORLD_LOG_P.float(), ROWS, 2, 0.75)],
    ids=["uniform", "per-query", "popularity"],
)
def test_few_draws_are_least_at_the_true_preferences(sampler: Sampler) -> None:
    truth = PREFERENCES.T.log()
    scale = full_gradient(torch.zeros_like(truth)).norm()
    sampled = mean_gradient(sampler, truth, batch=128, steps=300)
    assert sampled.norm() / scale < 0.06
