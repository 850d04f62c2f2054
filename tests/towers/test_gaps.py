"""The time since the event before: buckets, first events, and one event at a time."""

import pytest
import torch

from twotower.towers.event_vectors import GivenVectors
from twotower.towers.history import HistoryEncoder, PooledHistory
from twotower.towers.layers import NUM_GAPS, SinceLast, gap_rows
from twotower.towers.model import QueryTower, TwoTower
from twotower.towers.transformer import Transformer


def awake() -> SinceLast:
    since = SinceLast(3)
    with torch.no_grad():
        since.table.weight.copy_(torch.arange(1.0, NUM_GAPS + 1)[:, None].expand(-1, 3))
    return since


def test_buckets_by_hand() -> None:
    seconds = torch.tensor([-5.0, 0.0, 0.9, 1.0, 2.0, 3.0, 3600.0, 86_400.0, 1e12])
    assert gap_rows(seconds).tolist() == [0, 0, 0, 1, 1, 2, 11, 16, NUM_GAPS - 1]


def test_an_event_is_told_how_long_ago_the_one_before_was() -> None:
    mask = torch.tensor([[False, True, True, True]])
    times = torch.tensor([[0.0, 0.0, 0.0, 3.0]])
    # Padding, the first event, the same moment (bucket 0), three seconds (bucket 2).
    assert awake()(mask, times).vectors()[0, :, 0].tolist() == [0, 0, 1, 3]


def test_it_starts_as_nothing_and_is_learnt() -> None:
    since = SinceLast(3)
    mask, times = torch.ones(1, 3, dtype=torch.bool), torch.tensor([[0.0, 5.0, 9.0]])
    assert not since(mask, times).vectors().any()
    since(mask, times).vectors().sum().backward()
    assert since.table.weight.grad is not None
    assert since.table.weight.grad[2].tolist() == [2.0, 2.0, 2.0]  # 5 and 4 seconds


def test_some_windows_are_read_without_times_in_training() -> None:
    since = awake()
    since.dropout = 0.5
    mask, times = torch.ones(64, 2, dtype=torch.bool), torch.tensor([[0.0, 5.0]]).expand(64, 2)
    read = since(mask, times).vectors()[:, 1, 0]
    assert set(read.tolist()) == {0.0, 3.0}
    assert since.eval()(mask, times).vectors()[:, 1, 0].eq(3.0).all()


class Items(torch.nn.Module):
    dim = 3


def model() -> TwoTower:
    torch.manual_seed(0)
    tower = QueryTower(None, PooledHistory(3, 0.0), 3, since=awake())
    with torch.no_grad():
        for parameter in tower.history.parameters():  # type: ignore[union-attr]
            parameter.add_(torch.randn_like(parameter))
    return TwoTower(tower, Items()).eval()


@pytest.mark.parametrize("has_times", [True, False])
def test_event_by_event_it_is_the_same(has_times: bool) -> None:
    towers = model()
    vectors = torch.randn(2, 4, 3)
    times = torch.tensor([[0.0, 1.0, 100.0, 101.0], [0.0, 9.0, 9.0, 1e6]]) if has_times else None
    mask = torch.ones(2, 4, dtype=torch.bool)
    state = None
    for place in range(4):
        here = slice(0, place + 1)
        moments = None if times is None else times[:, here]
        whole = towers.encode_queries({}, vectors[:, here], mask[:, here], moments)
        now = None if times is None else times[:, place]
        stepped, state = towers.step_queries({}, vectors[:, place], now, state)
        assert torch.allclose(stepped, whole, atol=1e-5)


def test_gaps_change_the_answer() -> None:
    towers, vectors, mask = model(), torch.randn(1, 3, 3), torch.ones(1, 3, dtype=torch.bool)
    near = towers.encode_queries({}, vectors, mask, torch.tensor([[0.0, 1.0, 2.0]]))
    far = towers.encode_queries({}, vectors, mask, torch.tensor([[0.0, 1.0, 9e5]]))
    assert not torch.allclose(near, far)


def test_marks_are_summed_as_their_vectors_are() -> None:
    since = awake()
    with torch.no_grad():
        since.table.weight.normal_()
    mask = torch.tensor([[False, True, True, True], [True, True, True, True]])
    marks = since(mask, torch.tensor([[0.0, 0.0, 7.0, 9.0], [0.0, 50.0, 50.0, 1e6]]))
    weights = torch.rand(2, 5, 4)
    assert torch.allclose(marks.summed(weights), weights @ marks.vectors(), atol=1e-6)


@pytest.mark.parametrize("encoder", [PooledHistory(3, 0.0), Transformer(3, 0.0)])
def test_a_marked_history_is_read_as_one_of_longer_vectors(encoder: HistoryEncoder) -> None:
    since, vectors = awake(), torch.randn(2, 4, 3)
    mask = torch.tensor([[False, True, True, True], [True, True, True, True]])
    times = torch.tensor([[0.0, 0.0, 7.0, 9.0], [0.0, 50.0, 50.0, 1e6]])
    read = encoder.last_of_parts((GivenVectors(vectors), since(mask, times)), mask, times)
    added = encoder(vectors + since(mask, times).vectors(), mask, times)[:, -1]
    assert torch.allclose(read, added, atol=1e-5)
    found = torch.autograd.grad(read.sum(), since.table.weight, retain_graph=True)[0]
    expected = torch.autograd.grad(added.sum(), since.table.weight)[0]
    assert torch.allclose(found, expected, atol=1e-5)
