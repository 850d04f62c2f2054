"""Fusion: both formulas by hand, by a naive reference, and what stays out."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from twotower.index.fusion import FusedIndex, convex, reciprocal_ranks
from twotower.index.lexical import ItemWords, LexicalIndex

DENSE = torch.tensor([[0.5, -0.5, 0.0, -math.inf]])
LEXICAL = torch.tensor([[0.0, 4.0, 2.0, 8.0]])


def test_convex_by_hand() -> None:
    # Dense from -0.5 to 0.5: 1, 0, 0.5. Lexical over 8: 0, 0.5, 0.25.
    assert convex(DENSE, LEXICAL, 0.25)[0].tolist() == [0.75, 0.125, 0.4375, -math.inf]
    assert convex(DENSE, LEXICAL, 0.0)[0].tolist() == [1, 0, 0.5, -math.inf]
    assert convex(DENSE, LEXICAL, 1.0)[0].tolist() == [0, 0.5, 0.25, -math.inf]


def test_reciprocal_ranks_by_hand() -> None:
    # Dense ranks 1, 3, 2, 4; lexical ranks 4 (no word: nothing), 2, 3, 1.
    expected = [1 / 61, 1 / 63 + 1 / 62, 1 / 62 + 1 / 63, -math.inf]
    assert reciprocal_ranks(DENSE, LEXICAL)[0].tolist() == pytest.approx(expected)


def test_no_shared_word_leaves_the_order_of_meaning() -> None:
    nothing = torch.zeros_like(LEXICAL)
    for fused in (convex(DENSE, nothing, 0.5), reciprocal_ranks(DENSE, nothing)):
        assert fused.argsort(descending=True)[0].tolist() == [0, 2, 1, 3]


@given(
    st.lists(st.tuples(st.integers(-50, 50), st.integers(0, 9)), min_size=1, max_size=12),
    st.sampled_from([0.0, 0.25, 0.5, 1.0]),
)
def test_both_equal_the_naive_reference(scores: list[tuple[int, int]], weight: float) -> None:
    dense = [float(d) for d, _ in scores]
    lexical = [float(w) for _, w in scores]
    low, high, most = min(dense), max(dense), max(lexical)
    wanted_convex, wanted_ranks = [], []
    for place, (d, w) in enumerate(zip(dense, lexical, strict=True)):
        meaning = (d - low) / (high - low) if high > low else 0.0
        words = w / most if most > 0 else 0.0
        wanted_convex.append((1 - weight) * meaning + weight * words)
        ahead = sum(o > d or (o == d and i < place) for i, o in enumerate(dense))
        found = 1 / (60 + ahead + 1)
        if w > 0:
            ahead = sum(o > w or (o == w and i < place) for i, o in enumerate(lexical))
            found += 1 / (60 + ahead + 1)
        wanted_ranks.append(found)
    given_scores = torch.tensor([dense]), torch.tensor([lexical])
    assert convex(*given_scores, weight)[0].tolist() == pytest.approx(wanted_convex, abs=1e-6)
    assert reciprocal_ranks(*given_scores)[0].tolist() == pytest.approx(wanted_ranks, abs=1e-7)


def test_what_cannot_be_fused_is_refused() -> None:
    with pytest.raises(ValueError, match=r"weight must be in \[0, 1\], got 1.5"):
        convex(DENSE, LEXICAL, 1.5)
    with pytest.raises(ValueError, match=r"one shape, got \(1, 4\) and \(1, 3\)"):
        convex(DENSE, LEXICAL[:, :3], 0.5)
    with pytest.raises(ValueError, match=r"one shape, got \(1, 4\) and \(1, 3\)"):
        reciprocal_ranks(DENSE, LEXICAL[:, 1:])


def test_few_allowed_rows_keep_the_scores_that_they_have_among_all() -> None:
    generator = torch.Generator().manual_seed(0)
    texts = tuple((f"word{row % 7}", f"word{row % 11}") for row in range(200))
    index = FusedIndex(
        torch.randn(200, 4, generator=generator),
        LexicalIndex(ItemWords.of(texts[2:])),
        (("word3",),),
        torch.tensor([0.4]),
    )
    query = torch.randn(1, 4, generator=generator)
    everything = index.search(query, 198)
    score_of = dict(
        zip(everything.item_rows[0].tolist(), everything.scores[0].tolist(), strict=True)
    )
    allowed = np.isin(np.arange(200), [5, 50, 150])
    found = index.search(query, 3, allowed=allowed)
    rows = [row for row in everything.item_rows[0].tolist() if allowed[row]]
    assert found.item_rows.tolist() == [rows]
    assert found.scores[0].tolist() == [score_of[row] for row in rows]
