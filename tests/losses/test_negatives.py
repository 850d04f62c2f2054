import math
from itertools import product

import pytest
import torch
from torch import Tensor

from twotower.losses.corrections import accidental_hits
from twotower.losses.negatives import (
    AllItems,
    Candidates,
    InBatch,
    Mixed,
    Sampler,
    Uniform,
    log_frequency,
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


def test_log_frequency_worked() -> None:
    shares = log_frequency(torch.tensor([2, 3, 2, 2]), 5).exp()
    torch.testing.assert_close(shares, torch.tensor([0.0, 0.0, 0.75, 0.25, 0.0]))
    weights = torch.tensor([1.0, 6.0, 0.5, 0.5])
    weighted = log_frequency(torch.tensor([2, 3, 2, 2]), 5, weights).exp()
    torch.testing.assert_close(weighted, torch.tensor([0.0, 0.0, 0.25, 0.75, 0.0]))
    assert weighted.dtype == torch.float32


def test_log_frequency_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 training event, got 0"):
        log_frequency(torch.zeros(0, dtype=torch.int64), 5)


def test_all_items_are_the_catalogue() -> None:
    candidates = AllItems(CATALOGUE)(torch.tensor([8, 5, 8]), generator())
    assert candidates.item_rows.tolist() == CATALOGUE.tolist()
    assert candidates.positions.tolist() == [2, 0, 2]
    assert candidates.log_q is None
    assert len(candidates) == 4


@pytest.mark.parametrize("row", [0, 4, 8])
def test_an_item_outside_the_catalogue_is_refused(row: int) -> None:
    with pytest.raises(ValueError, match=f"must be in the catalogue, got row {row};"):
        AllItems(CATALOGUE[:2])(torch.tensor([5, row]), generator())


def test_in_batch_worked() -> None:
    candidates = InBatch(LOG_P)(torch.tensor([3, 2, 3]), generator())
    assert candidates.item_rows.tolist() == [3, 2, 3]
    assert candidates.positions.tolist() == [0, 1, 2]
    assert candidates.log_q is not None
    assert candidates.log_q.exp().tolist() == pytest.approx([0.25, 0.5, 0.25])


def test_distinct_in_batch_worked() -> None:
    # Three events hold item 2 with probability 1 - .5^3 = .875, item 3 with 1 - .75^3 = .578125.
    candidates = InBatch(LOG_P, distinct=True)(torch.tensor([3, 2, 3]), generator())
    assert candidates.item_rows.tolist() == [2, 3]
    assert candidates.positions.tolist() == [1, 0, 1]
    assert candidates.log_q is not None
    assert candidates.log_q.exp().tolist() == pytest.approx([0.875, 0.578125])


def test_in_batch_without_frequency_is_refused() -> None:
    with pytest.raises(ValueError, match="must have training events, got row 8"):
        InBatch(LOG_P)(torch.tensor([2, 8]), generator())


def test_uniform_hides_what_was_not_drawn() -> None:
    own = torch.tensor([8, 5, 8, 3])
    candidates = Uniform(CATALOGUE, num=1)(own, generator())
    rows = candidates.item_rows.tolist()
    drawn = int(CATALOGUE[torch.randint(4, (1,), generator=generator())])
    assert rows == sorted({8, 5, 3, drawn})
    assert candidates.log_q is None
    assert candidates.hidden is not None
    for b, row in enumerate(own.tolist()):
        visible = [
            r for r, hide in zip(rows, candidates.hidden[b].tolist(), strict=True) if not hide
        ]
        assert rows[candidates.positions[b]] == row
        assert visible == sorted({row, drawn})


def test_uniform_draws_evenly() -> None:
    draw, source = Uniform(CATALOGUE, num=1), generator()
    counts = dict.fromkeys(CATALOGUE.tolist(), 0)
    for _ in range(2000):
        candidates = draw(torch.tensor([5]), source)
        for row in candidates.item_rows.tolist():
            counts[row] += 1
    # Item 5 is always there; each other is drawn 500 times, give or take 4 deviations of 19.4.
    assert counts[5] == 2000
    assert all(abs(counts[row] - 500) < 78 for row in (2, 8, 3))


def test_mixed_worked() -> None:
    # A batch of 2 and 6 draws of 4 items: item 2 is expected 2 * .5 + 6 / 4 = 2.5 times; item 8,
    # which never trains, 1.5 times.
    candidates = Mixed(LOG_P, CATALOGUE, num=6)(torch.tensor([3, 2]), generator())
    assert candidates.item_rows[:2].tolist() == [3, 2]
    assert candidates.positions.tolist() == [0, 1]
    assert len(candidates) == 8
    assert candidates.log_q is not None
    expected = {2: 2.5, 3: 2.0, 5: 2.0, 8: 1.5}
    counts = [expected[row] for row in candidates.item_rows.tolist()]
    assert candidates.log_q.exp().tolist() == pytest.approx(counts)


def test_distinct_mixed_is_how_often_an_item_is_there() -> None:
    draw, source = Mixed(LOG_P, CATALOGUE, num=1, distinct=True), generator()
    # 1 - (1 - p)^2 * 3/4: item 2 .8125, items 3 and 5 .578125, item 8 .25.
    present = {2: 0.8125, 3: 0.578125, 5: 0.578125, 8: 0.25}
    counts = dict.fromkeys(present, 0)
    for _ in range(4000):
        own = torch.multinomial(LOG_P.exp(), 2, replacement=True, generator=source)
        candidates = draw(own, source)
        assert candidates.item_rows[candidates.positions].tolist() == own.tolist()
        assert candidates.log_q is not None
        for row, log_q in zip(
            candidates.item_rows.tolist(), candidates.log_q.tolist(), strict=True
        ):
            assert math.exp(log_q) == pytest.approx(present[row])
            counts[row] += 1
    for row, share in present.items():
        assert counts[row] / 4000 == pytest.approx(share, abs=0.03)


def test_one_item_is_certain() -> None:
    alone = Mixed(torch.zeros(3), torch.tensor([2]), num=2, distinct=True)
    log_q = alone(torch.tensor([2]), generator()).log_q
    assert log_q is not None
    assert log_q.tolist() == [0.0]


@pytest.mark.parametrize(
    "sampler", [Uniform(CATALOGUE, 3), Mixed(LOG_P, CATALOGUE, 3)], ids=["uniform", "mixed"]
)
def test_a_seed_gives_the_same_candidates(sampler: Sampler) -> None:
    own, source = torch.tensor([2, 3]), generator(1)
    first, second = sampler(own, generator(1)), sampler(own, source)
    assert first.item_rows.tolist() == second.item_rows.tolist()
    others = [sampler(own, source).item_rows.tolist() for _ in range(5)]
    assert any(other != first.item_rows.tolist() for other in others)


def test_samplers_refuse_nothing_to_draw() -> None:
    nothing = CATALOGUE[:0]
    for make in (AllItems, lambda rows: Uniform(rows, 1), lambda rows: Mixed(LOG_P, rows, 1)):
        with pytest.raises(ValueError, match="at least 1 item of the catalogue, got 0"):
            make(nothing)
    for make in (lambda num: Uniform(CATALOGUE, num), lambda num: Mixed(LOG_P, CATALOGUE, num)):
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
    hidden = accidental_hits(candidates, own) if hide else None
    items = logits[candidates.item_rows - 2]
    loss = SoftmaxLoss()(QUERIES[queries], items, candidates, hidden=hidden)
    return torch.autograd.grad(loss, logits)[0]


def mean_gradient(sampler: Sampler, logits: Tensor, batch: int, steps: int) -> Tensor:
    source = generator(0)
    total = torch.zeros_like(logits)
    for _ in range(steps):
        queries = torch.randint(3, (batch,), generator=source)
        own = torch.multinomial(PREFERENCES[queries], 1, generator=source).squeeze(1) + 2
        total += gradient(logits, queries, sampler(own, source), hide=False)
    return total / steps


def full_gradient(logits: Tensor) -> Tensor:
    return (logits.softmax(0) - PREFERENCES.T) / 3


def without_correction(sampler: Sampler) -> Sampler:
    def call(item_rows: Tensor, generator: torch.Generator) -> Candidates:
        candidates = sampler(item_rows, generator)
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
    for query, own, i, j in product(range(3), range(6), range(6), range(6)):
        batch = InBatch(WORLD_LOG_P)(torch.tensor([own, i, j]) + 2, generator())
        log_q = batch.log_q if correct else None
        candidates = Candidates(batch.item_rows, batch.positions[:1], log_q)
        probability = PREFERENCES[query, own] * shares[i] * shares[j] / 3
        expected += probability * gradient(truth, torch.tensor([query]), candidates, hide)
    greatest = expected.abs().max().item()
    assert greatest < 1e-7 if correct and not hide else greatest > 1e-3


SAMPLERS: dict[str, Sampler] = {
    "in-batch": InBatch(WORLD_LOG_P),
    "in-batch, distinct": InBatch(WORLD_LOG_P, distinct=True),
    "mixed": Mixed(WORLD_LOG_P, ROWS, 32),
    "mixed, distinct": Mixed(WORLD_LOG_P, ROWS, 32, distinct=True),
    "uniform": Uniform(ROWS, 64),
    "all": AllItems(ROWS),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_corrected_gradient_approaches_that_of_the_full_softmax(name: str) -> None:
    logits = torch.randn(6, 3, generator=generator(3), dtype=torch.float64)
    full = full_gradient(logits)
    sampled = mean_gradient(SAMPLERS[name], logits, batch=128, steps=300)
    assert (sampled - full).norm() / full.norm() < 0.06


@pytest.mark.parametrize("name", ["in-batch", "mixed"])
def test_the_uncorrected_gradient_does_not(name: str) -> None:
    logits = torch.randn(6, 3, generator=generator(3), dtype=torch.float64)
    full = full_gradient(logits)
    sampled = mean_gradient(without_correction(SAMPLERS[name]), logits, batch=128, steps=300)
    assert (sampled - full).norm() / full.norm() > 0.2


def test_few_uniform_draws_are_least_at_the_true_preferences() -> None:
    truth = PREFERENCES.T.log()
    scale = full_gradient(torch.zeros_like(truth)).norm()
    sampled = mean_gradient(Uniform(ROWS, 2), truth, batch=128, steps=300)
    assert sampled.norm() / scale < 0.06
