import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from twotower.losses import candidates as candidates_module
from twotower.losses.candidates import Candidates, accidental_hits, known_positives

NUM_ROWS = 9


@st.composite
def batches(draw: st.DrawFn) -> tuple[list[int], list[int], list[list[int]]]:
    """Candidate rows, positions of the own items, and known rows padded with 0 to one length."""
    rows = draw(st.lists(st.integers(1, NUM_ROWS - 1), min_size=1, max_size=8))
    if draw(st.booleans()):
        rows = sorted(set(rows))
    positions = draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=5))
    length = draw(st.integers(0, 6))
    history = st.lists(st.integers(0, NUM_ROWS - 1), min_size=length, max_size=length)
    known = draw(st.lists(history, min_size=len(positions), max_size=len(positions)))
    return rows, positions, known


def test_accidental_hits_worked() -> None:
    # Query 0 owns item 5 at place 0; place 2 is item 5 again. Query 1 owns place 1.
    candidates = Candidates(torch.tensor([5, 7, 5]), torch.tensor([0, 1]))
    hits = accidental_hits(candidates, torch.tensor([5, 7]), NUM_ROWS)
    assert hits.tolist() == [[0, 2], [1, 1]]


def test_known_positives_worked() -> None:
    # Query 0 owns item 5 and knows 5 and 7: 7 is hidden, 5 nowhere. Query 1 owns item 7, knows 5
    # and 8 (no candidate): both copies of 5 are hidden, and found twice.
    candidates = Candidates(torch.tensor([5, 7, 5]), torch.tensor([0, 1]))
    known_rows = torch.tensor([[5, 7, 0], [8, 5, 5]])
    hidden = known_positives(candidates, known_rows, torch.tensor([5, 7]), NUM_ROWS)
    assert hidden.tolist() == [[1, 0, 0, 0], [0, 2, 0, 2]]


def test_distinct_candidates_in_order_keep_the_columns() -> None:
    candidates = Candidates(torch.tensor([2, 5, 7]), torch.tensor([1, 2]))
    known_rows = torch.tensor([[0, 5, 7], [2, 8, 5]])
    hidden = known_positives(candidates, known_rows, torch.tensor([5, 7]), NUM_ROWS)
    assert hidden.tolist() == [[1, 1, 2], [0, 2, 1]]


@given(batch=batches())
def test_places_equal_loops(batch: tuple[list[int], list[int], list[list[int]]]) -> None:
    rows, positions, known = batch
    own = [rows[position] for position in positions]
    candidates = Candidates(torch.tensor(rows), torch.tensor(positions))
    hits = accidental_hits(candidates, torch.tensor(own), NUM_ROWS)
    known_rows = torch.tensor(known).reshape(len(positions), -1).long()
    hidden = known_positives(candidates, known_rows, torch.tensor(own), NUM_ROWS)
    for b, position in enumerate(positions):
        copies = {j for j, row in enumerate(rows) if row == own[b]}
        assert set(hits[b].tolist()) | {position} == copies
        others = {j for j, row in enumerate(rows) if row in known[b] and row != own[b]}
        assert set(hidden[b].tolist()) - {position} == others


@pytest.mark.parametrize("num", [300, 5000], ids=["few", "more than buckets"])
@pytest.mark.parametrize("distinct", [True, False])
def test_a_large_catalogue_gives_the_same_places(
    monkeypatch: pytest.MonkeyPatch, num: int, distinct: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(1, 100_000, (num,), generator=generator)
    rows = torch.unique(rows) if distinct else torch.cat([rows, rows[:50]])
    positions = torch.randint(len(rows), (64,), generator=generator)
    own = rows[positions]
    # Half of what is known is a candidate, half hardly ever.
    known_rows = torch.randint(1, 100_000, (64, 40), generator=generator)
    known_rows[:, ::2] = rows[torch.randint(len(rows), (64, 20), generator=generator)]
    candidates = Candidates(rows, positions)
    with_table = known_positives(candidates, known_rows, own, 100_000)
    monkeypatch.setattr(candidates_module, "MAX_BUCKETS", 1024)
    with_buckets = known_positives(candidates, known_rows, own, 100_000)
    assert with_buckets.tolist() == with_table.tolist()
    assert (with_table != positions[:, None]).any(1).all()
