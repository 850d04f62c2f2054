"""Text as a feature: what each token weighs, what is cut off, and how towers start alike."""

import math

import numpy as np
import polars as pl
import pytest
import torch

from twotower.features import text
from twotower.features.encoders import SideEncoder, TextEncoder, start_alike
from twotower.features.schema import Feature
from twotower.features.text import TextTransform
from twotower.features.transforms import SideTransforms
from twotower.vocab import FIRST_ROW

TEXTS = pl.Series("title", ["red car", "red boat", "red red snow", "", None])


def fit(
    values: pl.Series = TEXTS, kind: str = "words", min_count: int = 1, buckets: int = 0
) -> TextTransform:
    feature = Feature("title", "item", kind, "stated", buckets=buckets)
    return TextTransform.fit(feature, values, min_count)


def tokens(transform: TextTransform, value: str) -> list[str]:
    rows = transform.apply(pl.Series([value]))[0]
    return transform.own_vocabulary().ids_of(rows[rows > 0]).to_list()


def test_a_rare_token_weighs_more_by_hand() -> None:
    transform = fit()
    row = {t: i + FIRST_ROW for i, t in enumerate(transform.own_vocabulary().ids)}
    # Three texts say anything; "red" is in three of them, "car" in one.
    assert transform.weights[row["red"]] == pytest.approx(math.log(1 + 0.5 / 3.5))
    assert transform.weights[row["car"]] == pytest.approx(math.log(1 + 2.5 / 1.5))
    assert transform.weights[:FIRST_ROW].tolist() == [0, 0]


def test_tokens_of_too_few_texts_are_left_out() -> None:
    assert fit(min_count=2).own_vocabulary().ids.to_list() == ["red"]
    assert tokens(fit(min_count=2), "a red car") == ["red"]


def test_of_many_texts_a_token_must_stand_in_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "TEXTS_A_TOKEN", 10)
    values = pl.Series("title", ["often"] * 24 + ["seldom"] * 3 + ["rare"] * 2 + [None] * 30)
    assert sorted(fit(values).own_vocabulary().ids) == ["often", "rare", "seldom"]  # 29 texts: 2
    more = pl.concat([values, pl.Series("title", ["often"])])
    assert sorted(fit(more).own_vocabulary().ids) == ["often", "seldom"]  # 30 texts: 3
    assert sorted(fit(more, min_count=4).own_vocabulary().ids) == ["often"]


def test_a_long_text_keeps_the_heaviest_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "LEAST_TOKENS", 1)
    transform = fit(pl.Series(["a b", "a c", "a d"] * 20))
    assert transform.apply(pl.Series(["x"])).shape == (1, 3)
    # Two rare words and the pair of them outweigh the frequent one.
    assert tokens(transform, "a b c") == ["b", "c", "a b"]


def test_a_few_long_texts_do_not_widen_all(monkeypatch: pytest.MonkeyPatch) -> None:
    words = " ".join(f"w{i}" for i in range(150))
    short = [f"a{i % 9} b{i % 7}" for i in range(300)]
    assert fit(pl.Series([*short, words])).apply(TEXTS).shape[1] == text.LEAST_TOKENS
    monkeypatch.setattr(text, "MOST_TOKENS", 2)
    assert fit(pl.Series(short)).apply(TEXTS).shape[1] == 2


def test_where_pieces_end_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = fit()
    monkeypatch.setattr(text, "_LINES", 2)
    pieces = fit()
    assert pieces.vocabulary == whole.vocabulary
    assert np.array_equal(pieces.weights, whole.weights)
    assert np.array_equal(pieces.apply(TEXTS), whole.apply(TEXTS))


def test_too_many_tokens_are_those_of_most_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "MOST_ROWS", 2)
    assert fit().own_vocabulary().ids.to_list() == ["boat", "red"]


def test_hashed_tokens_need_no_vocabulary_and_none_is_unknown() -> None:
    transform = fit(buckets=1000)
    assert transform.vocabulary is None
    assert len(transform.weights) == 1000 + FIRST_ROW
    rows = transform.apply(pl.Series(["car", "never seen", ""]))
    assert (rows[0] > 0).sum() == 2, "two hashes of a token"
    assert (rows[1] > 0).any()
    assert not rows[2].any()
    again = fit(buckets=1000).apply(pl.Series(["never seen", "car"]))
    assert np.array_equal(again[::-1], rows[:2])


class TestEncoder:
    def test_it_is_the_weighted_sum_by_hand(self) -> None:
        encoder = TextEncoder(torch.tensor([0.0, 0.0, 3.0, 4.0]), 2, sparse=False)
        with torch.no_grad():
            encoder.table.weight[2:] = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        rows = torch.tensor([[2, 3], [3, 0], [0, 0]])
        # Weights 3 and 4 have the length 5.
        assert encoder(rows).tolist() == [[pytest.approx(0.6), pytest.approx(0.8)], [0, 1], [0, 0]]

    def test_weights_are_the_transforms_and_no_part_of_the_model(self) -> None:
        encoder = TextEncoder(torch.ones(4), 2, sparse=True)
        assert list(encoder.state_dict()) == ["table.weight"]
        encoder(torch.tensor([[2, 3]])).sum().backward()
        assert encoder.table.weight.grad is not None
        assert encoder.table.weight.grad.is_sparse


def side(name: str, values: list[str], kind: str, buckets: int = 0) -> SideTransforms:
    frame = pl.DataFrame({name: values})
    feature = Feature(name, "item", kind, "", buckets=buckets)
    return SideTransforms.fit((feature,), frame, np.ones(len(values), np.int64), 1)


@pytest.mark.parametrize("buckets", [0, 50])
def test_a_token_starts_from_one_vector_wherever_it_is_read(buckets: int) -> None:
    sides = [
        side("query", ["red car", "blue car"], "words", buckets),
        side("title", ["car red", "red snow"], "text", buckets),
        side("note", ["snow car"], "words", buckets),
    ]
    encoders = [SideEncoder(s, 8, id_dropout=0, use_id=True, sparse=False) for s in sides]
    start_alike(list(zip(sides, encoders, strict=True)))

    def vectors(place: int, value: str) -> torch.Tensor:
        transform = sides[place].transforms[0]
        rows = torch.from_numpy(transform.apply(pl.Series([value])))
        found: torch.Tensor = encoders[place]({transform.feature.name: rows})
        return found.detach()

    # Hashes of an unseen token may weigh otherwise on each side; "car" is in all.
    assert torch.allclose(vectors(0, "car"), vectors(2, "car"), atol=1e-3)
    if not buckets:  # beside words, a title is read by its trigrams
        (module,) = encoders[1].encoders
        assert isinstance(module, TextEncoder)
        row = int(sides[1].transforms[0].own_vocabulary().rows_of(["snow"])[0])
        assert torch.allclose(vectors(2, "snow")[0], module.table.weight[row].detach())
    assert not torch.equal(vectors(0, "car"), vectors(0, "red"))
