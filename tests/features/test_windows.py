"""Windows of words: which rows a text becomes, and what the encoder makes of them."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tiny_vectors import write_vectors
from twotower.features import text, windows
from twotower.features.encoders import SideEncoder, start_alike
from twotower.features.schema import Feature
from twotower.features.transforms import SideTransforms
from twotower.features.windows import WindowsEncoder, WindowsTransform, let_common_go
from twotower.vocab import FIRST_ROW

TEXTS = pl.Series("title", ["Red car", "a red boat", "red red snow", "", None])


@pytest.fixture
def vectors(tmp_path: Path) -> str:
    return write_vectors(tmp_path / "vectors.txt")


def fit(vectors: str, values: pl.Series = TEXTS) -> WindowsTransform:
    feature = Feature("title", "item", "windows", "stated", encoder=vectors)
    return WindowsTransform.fit(feature, values, 2)


def words(transform: WindowsTransform, value: str | None) -> list[str | None]:
    rows = transform.apply(pl.Series([value], dtype=pl.String))[0]
    return transform.word_vectors.words.ids_of(rows[rows > 0]).to_list()


def test_words_stand_in_their_order_and_one_without_a_vector_keeps_its_place(vectors: str) -> None:
    transform = fit(vectors)
    assert words(transform, "the RED car, and red Snow!") == [
        None,
        "red",
        "car",
        None,
        "red",
        "snow",
    ]
    assert words(transform, "") == words(transform, None) == []
    # A word that training never saw is read by its vector, too.
    assert words(transform, "crimson") == ["crimson"]
    is_known = transform.is_known(transform.apply(pl.Series(["red", "the", "", None])))
    assert is_known.tolist() == [True, False, False, False]


def test_a_rare_word_weighs_more_by_hand(vectors: str) -> None:
    transform = fit(vectors)
    rows = transform.word_vectors.words.rows_of(["red", "car", "crimson"])
    # Three texts say anything; "red" is in three of them, "car" in one, "crimson" in none.
    wanted = [math.log(1 + (3 - df + 0.5) / (df + 0.5)) for df in (3, 1, 0)]
    assert transform.weights[rows].tolist() == pytest.approx(wanted)
    assert not transform.weights[:FIRST_ROW].any()


def test_a_long_text_is_cut(vectors: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "LEAST_TOKENS", 1)
    transform = fit(vectors, pl.Series(["red car snow"] * 200 + ["red " * 9]))
    assert transform.apply(TEXTS).shape[1] == 3
    assert words(transform, "car boat the red") == ["car", "boat", None]


def test_where_pieces_end_does_not_matter(vectors: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = fit(vectors)
    monkeypatch.setattr(text, "_LINES", 2)
    pieces = fit(vectors)
    assert torch.equal(pieces.weights, whole.weights)
    assert np.array_equal(pieces.apply(TEXTS), whole.apply(TEXTS))


def test_columns_start_alike_without_what_their_words_have_in_common(
    vectors: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = fit(vectors, pl.Series("note", ["a boat", "snow and a boat"]))
    first = fit(vectors)
    assert set(first.word_vectors.words.ids_of(np.flatnonzero(first.seen))) == {
        "red",
        "car",
        "boat",
        "snow",
    }
    monkeypatch.setattr(windows, "LEAST_WORDS", 2)
    before = first.start
    let_common_go([first, other])
    assert first.start is other.start
    assert not torch.equal(first.start, before)
    vectors_ = first.vectors[first.seen].float()
    mean = F.pad(vectors_, (0, 1), value=1.0) @ first.start.T
    assert mean.mean(dim=0).abs().max() < 1e-3
    let_common_go([])


def encoder_of(transform: WindowsTransform, dim: int = 4) -> WindowsEncoder:
    torch.manual_seed(0)
    encoder = WindowsEncoder(transform, dim).eval()
    with torch.no_grad():
        encoder.bias.normal_()
        encoder.strongest.normal_()
    return encoder


def rows_of(transform: WindowsTransform, values: Sequence[str | None]) -> Tensor:
    return torch.from_numpy(transform.apply(pl.Series(values, dtype=pl.String)))


def one_by_one(encoder: WindowsEncoder, rows: Tensor) -> Tensor:
    """The encoder as the paper writes it: every window of every text."""
    found = []
    for line in rows.long():
        kept = line[line > 0]
        if not (kept > 1).any():
            found.append(torch.zeros(len(encoder.weight)))
            continue
        vectors = torch.cat([encoder.vectors[kept].float(), (kept > 1).float()[:, None]], dim=1)
        weights = encoder.weights[kept]
        bag = (weights / weights.norm()) @ vectors
        around = torch.cat(
            [torch.zeros(1, vectors.shape[1]), vectors, torch.zeros(1, vectors.shape[1])]
        )
        features = torch.stack(
            [
                torch.tanh(
                    sum((around[t + k] @ encoder.filters[k] for k in range(3)), encoder.bias)
                )
                for t in range(len(kept))
            ]
        )
        both = encoder.weight @ bag + encoder.strongest @ features.amax(dim=0)
        found.append(windows.SCALE * both)
    return torch.stack(found)


ODD = ["red car", "the red crimson boat and snow", "", None, "nothing known", "snow", "red red red"]


@pytest.mark.parametrize("at_once", [1, 2**20])
def test_values_and_gradients_are_those_of_every_window(
    vectors: str, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(windows, "NUMBERS_AT_ONCE", at_once)
    transform = fit(vectors)
    rows = rows_of(transform, ODD)
    gradients = []
    for encode in (WindowsEncoder.forward, one_by_one):
        encoder = encoder_of(transform)
        encoded = encode(encoder, rows)
        weights = torch.linspace(-1, 1, encoded.numel()).view(encoded.shape)
        torch.autograd.backward((encoded * weights).sum())
        gradients.append([encoded.detach(), *(p.grad for p in encoder.parameters())])
    for ours, wanted in zip(*gradients, strict=True):
        assert ours is not None
        assert wanted is not None
        torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-5)


def test_a_text_alone_is_encoded_as_among_others(vectors: str) -> None:
    transform = fit(vectors)
    encoder, rows = encoder_of(transform), rows_of(transform, ODD)
    together = encoder(rows)
    for place in range(len(ODD)):
        torch.testing.assert_close(encoder(rows[place : place + 1])[0], together[place])
    assert encoder(rows[:0]).shape == (0, 4)
    assert not together[2:5].any()


def test_in_training_some_texts_are_hidden_whole(vectors: str) -> None:
    transform = fit(vectors)
    encoder, rows = encoder_of(transform), rows_of(transform, ["red car boat", "snow"] * 500)
    wanted = encoder(rows)
    encoder.train()
    found = encoder(rows)
    is_hidden = (found == 0).all(dim=1)
    torch.testing.assert_close(found[~is_hidden], wanted[~is_hidden])
    assert is_hidden.float().mean() == pytest.approx(windows.TEXT_DROPOUT, abs=0.05)


def test_order_is_told(vectors: str) -> None:
    transform = fit(vectors)
    encoded = encoder_of(transform)(rows_of(transform, ["red car boat", "boat red car"]))
    assert (encoded[0] - encoded[1]).abs().max() > 0.1


def test_the_vectors_are_not_trained_and_no_part_of_the_weights(vectors: str) -> None:
    transform = fit(vectors)
    encoder = encoder_of(transform)
    assert sorted(encoder.state_dict()) == ["bias", "filters", "strongest", "weight"]
    assert {name for name, _ in encoder.named_parameters()} == set(encoder.state_dict())


def test_both_sides_start_alike_and_like_words_are_near(vectors: str) -> None:
    sides = []
    for name in ("query", "title"):
        feature = Feature(name, "item", "windows", "", encoder=vectors)
        frame = pl.DataFrame({name: ["red car", "snow boat"]})
        sides.append(SideTransforms.fit((feature,), frame, np.ones(2, np.int64), 1))
    assert sides[0].transforms[0].word_vectors is sides[1].transforms[0].word_vectors  # type: ignore[attr-defined]
    encoders = [SideEncoder(s, 8, id_dropout=0, use_id=True, sparse=False).eval() for s in sides]
    start_alike(list(zip(sides, encoders, strict=True)))

    def vector(place: int, value: str) -> Tensor:
        transform = sides[place].transforms[0]
        rows = torch.from_numpy(transform.apply(pl.Series([value])))
        found: Tensor = encoders[place]({transform.feature.name: rows})
        return found.detach()[0]

    assert torch.allclose(vector(0, "red"), vector(1, "red"))
    # As near as their vectors are: .6 * .8 + .8 * .6.
    near = float(vector(0, "red") @ vector(1, "crimson")) / windows.SCALE**2
    assert near == pytest.approx(0.96, abs=1e-3)
    assert float(vector(0, "red") @ vector(1, "car")) == pytest.approx(0, abs=1e-3)
