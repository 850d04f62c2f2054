import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from twotower.losses.corrections import accidental_hits, known_positives
from twotower.losses.negatives import Candidates

NUM_ROWS = 9


@st.composite
def batches(draw: st.DrawFn) -> tuple[list[int], list[int], list[list[int]]]:
    """Candidate rows, positions of the own items, and known rows padded with 0 to one length."""
    rows = draw(st.lists(st.integers(1, NUM_ROWS - 1), min_size=1, max_size=8))
    positions = draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=5))
    length = draw(st.integers(0, 6))
    history = st.lists(st.integers(0, NUM_ROWS - 1), min_size=length, max_size=length)
    known = draw(st.lists(history, min_size=len(positions), max_size=len(positions)))
    return rows, positions, known


def test_accidental_hits_worked() -> None:
    # Query 0 owns item 5 at position 0; position 2 is item 5 again. Query 1 owns position 1.
    candidates = Candidates(torch.tensor([5, 7, 5]), torch.tensor([0, 1]))
    hits = accidental_hits(candidates, torch.tensor([5, 7]))
    assert hits.tolist() == [[False, False, True], [False, False, False]]


def test_known_positives_worked() -> None:
    # Query 0 owns item 5 and knows 5 and 7: 7 is hidden, 5 nowhere. Query 1 owns item 7, knows 5
    # and 8 (no candidate): both copies of 5 are hidden.
    candidates = Candidates(torch.tensor([5, 7, 5]), torch.tensor([0, 1]))
    known_rows = torch.tensor([[5, 7, 0], [8, 5, 5]])
    hidden = known_positives(candidates, known_rows, torch.tensor([5, 7]), NUM_ROWS)
    assert hidden.tolist() == [[False, True, False], [True, False, True]]


@given(batch=batches())
@settings(max_examples=100, deadline=None)
def test_masks_equal_loops(batch: tuple[list[int], list[int], list[list[int]]]) -> None:
    rows, positions, known = batch
    own = [rows[position] for position in positions]
    candidates = Candidates(torch.tensor(rows), torch.tensor(positions))
    hits = accidental_hits(candidates, torch.tensor(own))
    known_rows = torch.tensor(known).reshape(len(positions), -1).long()
    hidden = known_positives(candidates, known_rows, torch.tensor(own), NUM_ROWS)
    for b, position in enumerate(positions):
        for j, row in enumerate(rows):
            assert hits[b, j] == (row == own[b] and j != position)
            assert hidden[b, j] == (row in known[b] and row != own[b])
    assert not hits[range(len(positions)), positions].any()
    assert not hidden[range(len(positions)), positions].any()
