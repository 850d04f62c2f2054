"""Encoders: the two reserved rows, id dropout, sums of features, gradients where they belong."""

from collections.abc import Iterator
from typing import cast

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor, nn

from twotower.features import encoders
from twotower.features.bag_matrix import BagMatrix
from twotower.features.encoders import (
    CategoryEncoder,
    NumbersEncoder,
    SideEncoder,
    TagsEncoder,
    TextEncoder,
)
from twotower.features.schema import Feature
from twotower.features.transforms import SideTransforms

ROWS, DIM = 6, 4


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def category(id_dropout: float = 0.0, *, sparse: bool = False) -> CategoryEncoder:
    return CategoryEncoder(ROWS, DIM, id_dropout=id_dropout, sparse=sparse)


def backward(loss: Tensor) -> None:
    loss.backward()  # type: ignore[no-untyped-call]


def gradient(module: nn.Module) -> Tensor:
    (weight,) = module.parameters()
    assert weight.grad is not None
    return weight.grad.to_dense()


class TestCategoryEncoder:
    def test_reserved_rows_start_at_zero_and_real_ones_do_not(self) -> None:
        vectors = category()(torch.arange(ROWS, dtype=torch.int32))
        assert vectors.shape == (ROWS, DIM)
        assert not vectors[:2].any()
        assert (vectors[2:].abs().sum(dim=1) > 0).all()

    @pytest.mark.parametrize("sparse", [False, True])
    def test_the_unknown_row_is_trained_through_id_dropout(self, sparse: bool) -> None:
        encoder = category(0.5, sparse=sparse)
        vectors = encoder(torch.full((64,), 3))
        dropped = ~vectors.any(dim=1)
        assert 10 < int(dropped.sum()) < 54
        backward((vectors * torch.arange(1.0, DIM + 1)).sum())
        moved = gradient(encoder)
        assert moved[1].tolist() == [float(dropped.sum() * (d + 1)) for d in range(DIM)]
        assert moved[3].tolist() == [float((~dropped).sum() * (d + 1)) for d in range(DIM)]
        assert not moved[[0, 2, 4, 5]].any()

    @pytest.mark.parametrize("sparse", [False, True])
    def test_nothing_is_never_dropped_and_never_trained(self, sparse: bool) -> None:
        encoder = category(0.9, sparse=sparse)
        with torch.no_grad():
            encoder.table.weight[1] = 7.0
        vectors = encoder(torch.zeros(100, dtype=torch.int32))
        assert not vectors.any()
        backward(vectors.sum())
        assert not gradient(encoder).any()

    def test_padding_stays_zero_through_training(self) -> None:
        encoder = category(0.3)
        optimizer = torch.optim.AdamW(encoder.parameters(), lr=0.1, weight_decay=0.1)
        for _ in range(20):
            optimizer.zero_grad()
            backward((encoder(torch.arange(ROWS)) - 1).square().sum())
            optimizer.step()
        assert not encoder.table.weight[0].any()
        assert encoder.table.weight[1].any(), "unknown was learnt"

    def test_ids_are_never_dropped_in_eval(self) -> None:
        encoder = category(0.99).eval()
        vectors = encoder(torch.full((1000,), 3))
        assert (vectors == encoder.table.weight[3]).all()

    def test_dropout_draws_anew_each_time_and_equally_from_equal_seeds(self) -> None:
        encoder, rows = category(0.5), torch.full((64,), 3)
        torch.manual_seed(1)
        first, second = encoder(rows), encoder(rows)
        torch.manual_seed(1)
        assert torch.equal(encoder(rows), first)
        assert not torch.equal(first, second)

    def test_an_id_that_was_never_seen_is_what_a_dropped_one_is(self) -> None:
        encoder = category(0.5).eval()
        with torch.no_grad():
            encoder.table.weight[1] = 7.0
        assert encoder(torch.tensor([1])).tolist() == [[7.0] * DIM]


class TestTagsEncoder:
    def test_the_mean_of_the_tags_that_there_are(self) -> None:
        encoder = TagsEncoder(ROWS, DIM)
        table = encoder.table.weight
        vectors = encoder(torch.tensor([[2, 3, 0], [4, 0, 0], [0, 0, 0]], dtype=torch.int32))
        torch.testing.assert_close(vectors[0], (table[2] + table[3]) / 2)
        torch.testing.assert_close(vectors[1], table[4])
        assert vectors[2].tolist() == [0.0] * DIM

    def test_padding_is_not_trained(self) -> None:
        encoder = TagsEncoder(ROWS, DIM)
        backward(encoder(torch.tensor([[2, 0], [0, 0]])).sum())
        moved = gradient(encoder)
        assert moved[2].tolist() == [1.0] * DIM
        assert not moved[[0, 1, 3, 4, 5]].any()


def test_numbers_are_mapped_linearly_and_missing_ones_by_their_flag() -> None:
    encoder = NumbersEncoder(2, DIM)
    lines = torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    vectors = encoder(lines)
    torch.testing.assert_close(vectors[0], 2 * encoder.weight[:, 0])
    torch.testing.assert_close(vectors[1], encoder.weight[:, 1])
    assert not vectors[2].any()
    assert NumbersEncoder(0, DIM)(torch.zeros(3, 0)).tolist() == [[0.0] * DIM] * 3


FRAME = pl.DataFrame(
    {
        "key": [1, 2, 3],
        "colour": ["a", "b", None],
        "words": [["x"], ["x", "y"], None],
        "price": [1.0, 2.0, None],
        "day": ["2020-01-01", None, "2020-01-03"],
        "look": [[1.0, 2.0], None, [3.0, 4.0]],
        "title": ["t", "u", "v"],
    }
)
FEATURES = (
    Feature("key", "item", "id", ""),
    Feature("colour", "item", "categorical", ""),
    Feature("words", "item", "tags", ""),
    Feature("price", "item", "number", ""),
    Feature("day", "item", "time", ""),
    Feature("look", "item", "vector", ""),
    Feature("title", "item", "shown", ""),
)


def transforms(*kinds: str) -> SideTransforms:
    features = tuple(f for f in FEATURES if not kinds or f.kind in kinds)
    return SideTransforms.fit(features, FRAME, np.array([5, 5, 5]), 1)


def side(
    of: SideTransforms, *, id_dropout: float = 0.0, use_id: bool = True, sparse: bool = False
) -> SideEncoder:
    return SideEncoder(of, DIM, id_dropout=id_dropout, use_id=use_id, sparse=sparse)


def tensors(of: SideTransforms) -> dict[str, Tensor]:
    arrays = of.apply_to_rows(FRAME).items()
    return {name: torch.from_numpy(values.copy()) for name, values in arrays}


class TestSideEncoder:
    def test_the_sum_of_each_features_own_vector(self) -> None:
        fitted = transforms()
        encoder = side(fitted)
        features = tensors(fitted)
        assert encoder.names == ["key", "colour", "words", "price", "day", "look"]
        total = np.zeros((5, DIM))
        for name, part in zip(encoder.names, encoder.encoders, strict=True):
            total += part(features[name]).detach().numpy()
        np.testing.assert_allclose(encoder(features).detach().numpy(), total, atol=1e-6)

    def test_every_kind_is_trained(self) -> None:
        fitted = transforms()
        encoder = side(fitted)
        weights = torch.arange(1.0, 6.0)[:, None] ** 2
        backward((encoder(tensors(fitted)) * weights).sum())
        for parameter in encoder.parameters():
            assert parameter.grad is not None
            assert parameter.grad.any()

    def test_columns_that_it_does_not_read_are_ignored(self) -> None:
        fitted = transforms()
        features = tensors(fitted)
        encoder = side(fitted, use_id=False)
        expected = encoder(features)
        features["key"] = torch.full((5,), 10**6)
        assert torch.equal(encoder(features), expected)
        assert "key" not in encoder.names

    def test_only_ids_are_dropped(self) -> None:
        fitted = transforms("categorical")
        encoder = side(fitted, id_dropout=0.99)
        features = {"colour": torch.full((200,), 2)}
        assert (encoder(features) == encoder(features)[0]).all()

    def test_only_large_tables_have_sparse_gradients(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(encoders, "SPARSE_FROM_ROWS", 5)
        fitted = transforms("id", "categorical")  # 5 rows and 4 rows

        def is_sparse(encoder: SideEncoder) -> list[bool]:
            backward(encoder(tensors(fitted)).sum())
            return [p.grad is not None and p.grad.is_sparse for p in encoder.parameters()]

        assert is_sparse(side(fitted, sparse=True)) == [True, False]
        assert is_sparse(side(fitted, sparse=False)) == [False, False]

    @pytest.mark.parametrize(("rows", "wanted"), [(8, True), (9, False)])
    def test_so_have_large_tables_of_tokens(
        self, rows: int, wanted: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(encoders, "SPARSE_TEXTS_FROM_ROWS", rows)
        text = (Feature("title", "item", "text", ""),)  # 8 rows
        fitted = SideTransforms.fit(text, FRAME, np.array([5, 5, 5]), 1)
        (encoder,) = side(fitted, sparse=True).encoders
        assert isinstance(encoder, TextEncoder)
        assert encoder.table.sparse == wanted

    @pytest.mark.parametrize(("kinds", "use_id"), [(("shown",), True), (("id", "shown"), False)])
    def test_nothing_to_encode_is_refused(self, kinds: tuple[str, ...], use_id: bool) -> None:
        with pytest.raises(ValueError, match="must hold a feature to encode, got none"):
            side(transforms(*kinds), use_id=use_id)


class TestFixedBags:
    ROWS = torch.tensor([[2, 3, 3], [4, 0, 0], [0, 0, 0], [5, 1, 2]], dtype=torch.int32)

    def encoders(self) -> list[TagsEncoder | TextEncoder]:
        torch.manual_seed(0)
        weights = torch.tensor([0.0, 0.0, 1.0, 2.0, 0.5, 3.0])
        return [TagsEncoder(ROWS, DIM), TextEncoder(weights, DIM, sparse=False)]

    def test_they_are_what_the_rows_are(self) -> None:
        for encoder in self.encoders():
            fixed = encoder.fixed(self.ROWS)
            assert len(fixed) == len(self.ROWS)
            torch.testing.assert_close(encoder(fixed), encoder(self.ROWS))

    def test_they_have_the_same_gradients(self) -> None:
        factors = torch.randn(len(self.ROWS), DIM)
        for encoder in self.encoders():
            found = []
            for rows in (self.ROWS, encoder.fixed(self.ROWS)):
                encoder.table.weight.grad = None
                backward((encoder(rows) * factors).sum())
                found.append(gradient(encoder))
            torch.testing.assert_close(found[1], found[0])

    def test_only_bags_with_dense_gradients_are_made_ready(self) -> None:
        of = transforms("tags", "number")
        encoder, features = side(of), tensors(of)
        fixed = encoder.fixed(features)
        assert isinstance(fixed["words"], BagMatrix)
        assert fixed["price"] is features["price"]
        torch.testing.assert_close(encoder(fixed), encoder(features))
        words = encoder.encoders[encoder.names.index("words")]
        cast("TagsEncoder", words).table.sparse = True
        assert encoder.fixed(features)["words"] is features["words"]
