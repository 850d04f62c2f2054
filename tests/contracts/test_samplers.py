"""What every sampler must obey, whoever its negatives are."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from twotower.losses.candidates import Candidates, Pairs, Sampler
from twotower.losses.frequencies import StreamFrequency, log_frequency
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
from twotower.vocab import FIRST_ROW, PADDING_ROW

NUM_ITEMS = 12
CATALOGUE = torch.arange(FIRST_ROW, FIRST_ROW + NUM_ITEMS)
EVENTS = torch.cat([CATALOGUE, CATALOGUE[:3].repeat(4)])
LOG_P = log_frequency(EVENTS, FIRST_ROW + NUM_ITEMS)


def streamed() -> StreamFrequency:
    stream = StreamFrequency(FIRST_ROW + NUM_ITEMS)
    stream.update(EVENTS)
    return stream


SAMPLERS: dict[str, Callable[[], Sampler]] = {
    "all": lambda: AllItems(CATALOGUE),
    "both sides": lambda: BothSides(InBatch(LOG_P), torch.full((9,), -2.0)),
    "impressions": lambda: Impressions(CATALOGUE, 3),
    "in-batch": lambda: InBatch(LOG_P),
    "in-batch, distinct": lambda: InBatch(LOG_P, distinct=True),
    "in-batch, stream": lambda: InBatch(streamed(), distinct=True),
    "labels": OwnItems,
    "mixed": lambda: Mixed(LOG_P, CATALOGUE, 4),
    "mixed, distinct": lambda: Mixed(LOG_P, CATALOGUE, 4, distinct=True),
    "per-query": lambda: PerQuery(CATALOGUE, 4),
    "popularity": lambda: Popularity(LOG_P, CATALOGUE, 4, 0.75),
    "uniform": lambda: Uniform(CATALOGUE, 4),
}
DRAWS_NOTHING = {
    "all",
    "both sides",
    "in-batch",
    "in-batch, distinct",
    "in-batch, stream",
    "labels",
}
REPEATS_ITEMS = {"both sides", "in-batch", "labels", "mixed"}
HAS_NO_NEGATIVES = {"labels"}
SHARES_NOTHING = {"impressions", "per-query"}

every_sampler = pytest.mark.parametrize("name", SAMPLERS)


def pairs_of(own: list[int]) -> Pairs:
    """The queries' rows and impressions, of which some are padded, follow from the own items."""
    rows = torch.tensor(own)
    shown = torch.stack([(rows + step) % NUM_ITEMS + FIRST_ROW for step in (1, 4)], dim=1)
    shown[::2, 0] = PADDING_ROW
    return Pairs(rows, rows % 9, shown.int())


BATCHES = {
    "several": [2, 7, 7, 13, 3, 2],
    "one query": [5],
    "one item": [4, 4, 4],
}
every_batch = pytest.mark.parametrize("own", BATCHES.values(), ids=list(BATCHES))


def negatives_of(candidates: Candidates) -> list[set[int]]:
    """The rows that each query is scored against as negatives, in plain loops."""
    found = []
    for b, position in enumerate(candidates.positions.tolist()):
        places = set(range(len(candidates)))
        if candidates.columns is not None:
            places = set(candidates.columns[b].tolist())
        if candidates.never is not None:
            places = {place for place in places if not candidates.never[place]}
        found.append({int(candidates.item_rows[place]) for place in places - {position}})
    return found


@every_sampler
@every_batch
def test_candidates_are_well_formed(name: str, own: list[int]) -> None:
    candidates = SAMPLERS[name]()(pairs_of(own), torch.Generator().manual_seed(0))
    num, batch = len(candidates), len(own)
    rows, positions = candidates.item_rows, candidates.positions
    for tensor, shape in ((rows, (num,)), (positions, (batch,))):
        assert tensor.dtype == torch.int64
        assert tensor.shape == shape
    assert rows[positions].tolist() == own
    if candidates.never is not None:
        assert candidates.never.dtype == torch.bool
        assert candidates.never.shape == (num,)
    width = num
    if candidates.columns is not None:
        width = candidates.columns.shape[1]
        assert candidates.columns.shape == (batch, width)
        assert candidates.columns.dtype == torch.int64
        assert candidates.columns[:, 0].tolist() == positions.tolist()
        assert candidates.columns.min() >= 0
        assert candidates.columns.max() < num
    if candidates.log_q is not None:
        assert candidates.log_q.dtype == torch.float32
        assert candidates.log_q.shape in {(num,), (batch, width)}
        assert candidates.log_q.isfinite().all()
    assert candidates.stored is None


@every_sampler
@every_batch
def test_only_items_are_proposed(name: str, own: list[int]) -> None:
    sampler, source = SAMPLERS[name](), torch.Generator().manual_seed(0)
    for _ in range(20):
        candidates = sampler(pairs_of(own), source)
        assert set(candidates.item_rows.tolist()) <= set(CATALOGUE.tolist())
        is_distinct = len(set(candidates.item_rows.tolist())) == len(candidates)
        assert is_distinct or name in REPEATS_ITEMS
        if candidates.columns is not None:  # nothing is encoded in vain
            assert set(candidates.columns.flatten().tolist()) == set(range(len(candidates)))


@every_sampler
def test_every_query_has_negatives_over_time(name: str) -> None:
    sampler, source = SAMPLERS[name](), torch.Generator().manual_seed(0)
    own = BATCHES["several"]
    seen: list[set[int]] = [set() for _ in own]
    for _ in range(60):
        for so_far, now in zip(seen, negatives_of(sampler(pairs_of(own), source)), strict=True):
            so_far |= now
    assert all(bool(rows) != (name in HAS_NO_NEGATIVES) for rows in seen)
    if name not in DRAWS_NOTHING:  # what is drawn comes from everywhere
        for rows, item in zip(seen, own, strict=True):
            assert rows | {item} == set(CATALOGUE.tolist())


@every_sampler
def test_a_seed_gives_the_same_candidates(name: str) -> None:
    sampler, pairs = SAMPLERS[name](), pairs_of(BATCHES["several"])

    def draw(source: torch.Generator) -> list[list[int]]:
        candidates = sampler(pairs, source)
        columns = candidates.columns
        return [
            candidates.item_rows.tolist(),
            [] if columns is None else columns.flatten().tolist(),
        ]

    source = torch.Generator().manual_seed(1)
    first = draw(source)
    assert draw(torch.Generator().manual_seed(1)) == first
    others = [draw(source) for _ in range(5)]
    assert any(other != first for other in others) == (name not in DRAWS_NOTHING)


@every_sampler
def test_nothing_but_the_generator_is_touched(name: str) -> None:
    pairs = pairs_of(BATCHES["several"])
    tensors = (pairs.item_rows, pairs.query_rows, pairs.impression_rows)
    before = [tensor.clone() for tensor in tensors if tensor is not None]
    state = torch.random.get_rng_state()
    SAMPLERS[name]()(pairs, torch.Generator().manual_seed(0))
    assert torch.equal(torch.random.get_rng_state(), state)
    for tensor, copy in zip(tensors, before, strict=True):
        assert tensor is not None
        assert torch.equal(tensor, copy)


@every_sampler
@every_batch
def test_a_loss_can_be_taken(name: str, own: list[int]) -> None:
    candidates = SAMPLERS[name]()(pairs_of(own), torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)

    def vectors(num: int) -> Tensor:
        return torch.randn(num, 3, generator=generator, requires_grad=True)

    queries, items = vectors(len(own)), vectors(len(candidates))
    loss = SoftmaxLoss()(queries, items, candidates)
    loss.backward()  # type: ignore[no-untyped-call]
    for tensor in (loss, queries.grad, items.grad):
        assert tensor is not None
        assert tensor.isfinite().all()


@pytest.mark.parametrize("name", sorted(SAMPLERS.keys() - SHARES_NOTHING))
def test_the_order_of_the_queries_does_not_matter(name: str) -> None:
    own = BATCHES["several"]
    sampler = SAMPLERS[name]()
    forward = sampler(pairs_of(own), torch.Generator().manual_seed(0))
    backward = sampler(pairs_of(own[::-1]), torch.Generator().manual_seed(0))
    assert sorted(forward.item_rows.tolist()) == sorted(backward.item_rows.tolist())
    assert negatives_of(forward) == negatives_of(backward)[::-1]
