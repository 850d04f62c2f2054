"""The time of the question: its parts by hand, and that no position knows another's."""

from datetime import UTC, datetime

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from twotower.towers.history_encoders import HISTORY_ENCODERS
from twotower.towers.layers import NUM_GAPS
from twotower.towers.model import QueryTower, TwoTower
from twotower.towers.question_time import Asked, QuestionTime, asked_at

DIM, LENGTH = 3, 5


def awake(dropout: float = 0.0) -> QuestionTime:
    """Each bucket adds its number to one place: the gap's, the hour's, the weekday's."""
    encoder = QuestionTime(DIM, dropout)
    with torch.no_grad():
        for place, table in enumerate((encoder.gaps, encoder.hours, encoder.weekdays)):
            table.weight[:, place] = torch.arange(len(table.weight)) + 1.0
    return encoder


@given(st.datetimes(datetime(1900, 1, 1), datetime(2100, 1, 1)))
def test_hours_are_those_of_the_calendar(moment: datetime) -> None:
    moment = moment.replace(tzinfo=UTC)
    seconds = torch.tensor([moment.timestamp()], dtype=torch.float64)
    found = asked_at(seconds, None, torch.tensor([True]))
    assert found.hours.tolist() == [24 * moment.weekday() + moment.hour]
    assert found.gaps.isnan().all()


def test_gaps_are_counted_from_the_last_event() -> None:
    moments = torch.tensor([1.6e9 + 7, 1.6e9, torch.nan, torch.inf, 1.6e9], dtype=torch.float64)
    last = torch.tensor([1.6e9, 1.6e9 + 5, 1.6e9, 1.6e9, 0.0], dtype=torch.float64)
    has_event = torch.tensor([True, True, True, True, False])
    asked = asked_at(moments, last, has_event)
    assert asked.gaps[:2].tolist() == [7, -5]
    assert asked.gaps[2:].isnan().all()
    assert asked.hours.tolist() == [156, 156, -1, -1, 156]  # a Sunday at 12:26


def test_the_parts_by_hand() -> None:
    encoder = awake()
    gaps = torch.tensor([-5.0, 0.0, 3.0, 1e12, torch.nan, torch.nan], dtype=torch.float64)
    hours = torch.tensor([0, 23, 24, 167, 25, -1])
    assert encoder(Asked(gaps, hours)).tolist() == [
        [1, 1, 1],
        [1, 24, 1],
        [3, 1, 2],
        [NUM_GAPS, 24, 7],
        [0, 2, 2],
        [0, 0, 0],
    ]


def test_it_starts_as_nothing_and_is_learnt() -> None:
    encoder = QuestionTime(DIM)
    asked = Asked(torch.tensor([3.0, torch.nan]), torch.tensor([30, -1]))
    vectors = encoder(asked)
    assert not vectors.any()
    vectors.sum().backward()
    for table, row in ((encoder.gaps, 2), (encoder.hours, 6), (encoder.weekdays, 1)):
        assert table.weight.grad is not None
        assert table.weight.grad.any(dim=1).nonzero().flatten().tolist() == [row]


def test_some_questions_are_read_without_their_time_in_training() -> None:
    encoder = awake(dropout=0.5)
    asked = Asked(torch.full((64,), 3.0), torch.full((64,), 30))
    assert set(map(tuple, encoder(asked).tolist())) == {(0, 0, 0), (3, 7, 2)}
    assert encoder.eval()(asked).eq(torch.tensor([3.0, 7.0, 2.0])).all()


class Items(torch.nn.Module):
    dim = DIM


def model_of(kind: str) -> TwoTower:
    """A model whose every weight says something."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        history = HISTORY_ENCODERS[kind].build(DIM, 0.0, 100)
        tower = QueryTower(None, history, DIM, question_time=QuestionTime(DIM))
        with torch.no_grad():
            for parameter in tower.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return TwoTower(tower, Items()).double().eval()


def some(seed: int) -> tuple[Tensor, Tensor, Tensor, Asked]:
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(2, LENGTH, DIM, generator=generator, dtype=torch.float64)
    mask = torch.arange(LENGTH) >= torch.tensor([[0], [2]])
    gaps = torch.rand(2, LENGTH, generator=generator, dtype=torch.float64) * 1e6
    times = torch.where(mask, gaps.cumsum(1), 0.0)
    later = torch.where(mask, 10 ** (6 * torch.rand(2, LENGTH, generator=generator)), torch.nan)
    hours = torch.randint(-1, 168, (2, LENGTH), generator=generator)
    return vectors, mask, times, Asked(later.double(), hours)


every_encoder = pytest.mark.parametrize("kind", list(HISTORY_ENCODERS))


@every_encoder
@given(seed=st.integers(0, 2**31), now=st.integers(2, LENGTH - 1))
def test_a_position_knows_no_later_event_and_no_question_but_its_own(
    kind: str, seed: int, now: int
) -> None:
    model, everywhere = model_of(kind), torch.ones(2, LENGTH, dtype=torch.bool)
    vectors, mask, times, asked = some(seed)
    other, _, later, others = some(seed + 1)
    is_past = torch.arange(LENGTH) <= now
    changed = torch.where(is_past[:, None], vectors, 100 * other)
    moved = torch.where(is_past, times, later + 1e7)
    is_now = torch.arange(LENGTH) == now
    own = Asked(
        torch.where(is_now, asked.gaps, others.gaps), torch.where(is_now, asked.hours, others.hours)
    )

    def at_now(*given: Tensor, asked: Asked) -> Tensor:
        read = model.encode_queries({}, given[0], mask, given[1], everywhere, asked)
        return read.view(2, LENGTH, DIM)[:, now]

    before = at_now(vectors, times, asked=asked)
    assert torch.equal(at_now(changed, moved, asked=own), before)
    another = Asked(asked.gaps + 1e6, (asked.hours + 30) % 168)
    assert not torch.allclose(at_now(vectors, times, asked=another), before)


@every_encoder
def test_each_prefix_as_a_question_of_its_own_gives_its_position(kind: str) -> None:
    model = model_of(kind)
    vectors, mask, times, asked = some(7)
    everywhere = torch.ones_like(mask)
    together = model.encode_queries({}, vectors, mask, times, everywhere, asked)
    together = together.view(2, LENGTH, DIM)
    state = None
    for now in range(LENGTH):
        here = slice(0, now + 1)
        alone = model.encode_queries(
            {}, vectors[:, here], mask[:, here], times[:, here], None, asked[:, now]
        )
        torch.testing.assert_close(alone, together[:, now])
        stepped, state = model.step_queries(
            {}, vectors[:1, now], times[:1, now], state, asked[:1, now]
        )
        torch.testing.assert_close(stepped, together[:1, now])
