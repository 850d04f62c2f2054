"""``TwoTower``: sums, similarities, temperatures, towers of the user's own."""

import math
from collections.abc import Mapping

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor, nn

from twotower.features.encoders import SideEncoder
from twotower.features.schema import Feature
from twotower.features.transforms import SideTransforms
from twotower.towers.history import DecayedMean
from twotower.towers.layers import SkipMLP
from twotower.towers.model import CustomTower, ItemTower, QueryTower, TwoTower, check_widths

DIM = 4
FRAME = pl.DataFrame({"key": [1, 2, 3], "price": [1.0, 2.0, 5.0]})
SIDE = SideTransforms.fit(
    (Feature("key", "item", "id", ""), Feature("price", "item", "number", "")),
    FRAME,
    np.array([9, 9, 9]),
    1,
)
FEATURES = {name: torch.from_numpy(v.copy()) for name, v in SIDE.apply(FRAME).items()}


def encoder(dim: int = DIM) -> SideEncoder:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return SideEncoder(SIDE, dim, id_dropout=0.0, use_id=True, sparse=False)


def item_tower(dim: int = DIM, *, hidden: tuple[int, ...] = ()) -> ItemTower:
    block = SkipMLP(dim, hidden, 0.0) if hidden else None
    return ItemTower(encoder(dim), block, dim)


def query_tower(dim: int = DIM, *, history: bool = True, features: bool = True) -> QueryTower:
    pooled = DecayedMean() if history else None
    return QueryTower(encoder(dim) if features else None, pooled, dim)


def wake(module: nn.Module) -> None:
    """Let every weight say something, also those that start at zero."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator))


class Record(nn.Module):
    """A tower of the user's own that keeps what it was called with."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.Linear(2, width)
        self.seen: object = None

    def forward(self, features: Mapping[str, Tensor] | Tensor) -> Tensor:
        self.seen = features
        price = features if isinstance(features, Tensor) else features["price"]
        output: Tensor = self.layer(price)
        return output


class TestQueryTower:
    def test_features_and_history_are_added(self) -> None:
        tower = query_tower()
        vectors = torch.randn(3, 2, DIM)
        mask = torch.tensor([[True, True], [False, True], [False, False]])
        output = tower(FEATURES, vectors, mask, None)
        alone = encoder()(FEATURES)
        torch.testing.assert_close(output[0], alone[0] + (vectors[0, 0] + vectors[0, 1]) / 2)
        torch.testing.assert_close(output[1], alone[1] + vectors[1, 1])
        torch.testing.assert_close(output[2], alone[2])

    def test_without_features_only_the_history_counts(self) -> None:
        model = TwoTower(query_tower(features=False), item_tower())
        vectors, mask = torch.randn(2, 3, DIM), torch.ones(2, 3, dtype=torch.bool)
        output = model.encode_queries({}, vectors, mask)
        torch.testing.assert_close(output, vectors.mean(dim=1))

    def test_a_query_of_which_nothing_is_known_is_zero(self) -> None:
        model = TwoTower(query_tower(features=False), item_tower())
        assert model.encode_queries({"": torch.zeros(2, 1)}).tolist() == [[0.0] * DIM] * 2

    def test_neither_features_nor_histories_is_refused(self) -> None:
        model = TwoTower(query_tower(features=False), item_tower())
        with pytest.raises(ValueError, match="needs features or histories, got neither"):
            model.encode_queries({})

    def test_without_a_history_encoder_the_history_is_ignored(self) -> None:
        model = TwoTower(query_tower(history=False), item_tower())
        vectors, mask = torch.randn(3, 2, DIM), torch.ones(3, 2, dtype=torch.bool)
        given = model.encode_queries(FEATURES, vectors, mask)
        assert torch.equal(given, model.encode_queries(FEATURES))
        assert not model.reads_history

    def test_no_history_given_is_an_empty_one(self) -> None:
        model = TwoTower(query_tower(), item_tower())
        empty = model.encode_queries(
            FEATURES, torch.randn(3, 5, DIM), torch.zeros(3, 5, dtype=torch.bool)
        )
        torch.testing.assert_close(model.encode_queries(FEATURES), empty)
        assert model.reads_history

    def test_it_says_what_it_reads(self) -> None:
        assert TwoTower(query_tower(), item_tower()).query_features == frozenset({"key", "price"})
        assert TwoTower(query_tower(features=False), item_tower()).query_features == frozenset()
        custom = CustomTower(Record(DIM), ["price"], "query")
        assert TwoTower(custom, item_tower()).query_features == frozenset({"price"})
        assert not TwoTower(custom, item_tower()).reads_history
        assert TwoTower(nn.Identity(), item_tower()).query_features is None


class TestItems:
    def test_a_history_reads_the_sum_of_features_and_the_score_the_block_on_top(self) -> None:
        model = TwoTower(query_tower(), item_tower(hidden=(8,)))
        wake(model)
        inputs = model.item_inputs(FEATURES)
        tower = model.item_tower
        assert isinstance(tower, ItemTower)
        torch.testing.assert_close(inputs, tower.encoder(FEATURES))
        assert not torch.allclose(model.item_outputs(inputs), inputs)
        torch.testing.assert_close(model.item_outputs(inputs), model.encode_items(FEATURES))
        torch.testing.assert_close(tower(FEATURES), model.encode_items(FEATURES))

    def test_a_history_reads_the_output_of_a_custom_tower_before_it_is_normalised(self) -> None:
        module = Record(DIM)
        model = TwoTower(query_tower(), CustomTower(module, ["price"], "item"), similarity="cosine")
        inputs = model.item_inputs(FEATURES)
        torch.testing.assert_close(inputs, module(FEATURES["price"]))
        torch.testing.assert_close(
            model.item_outputs(inputs), nn.functional.normalize(inputs, dim=1)
        )


class TestSimilarity:
    def test_cosine_normalises_both_sides_and_leaves_nothing_at_zero(self) -> None:
        model = TwoTower(query_tower(), item_tower(), similarity="cosine")
        wake(model)
        for vectors in (model.encode_items(FEATURES), model.encode_queries(FEATURES)):
            torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3))
        nothing = model.item_outputs(torch.zeros(1, DIM))
        assert nothing.tolist() == [[0.0] * DIM]

    def test_dot_leaves_the_length(self) -> None:
        model = TwoTower(query_tower(), item_tower(), similarity="dot")
        torch.testing.assert_close(model.encode_items(FEATURES), encoder()(FEATURES))

    def test_another_one_is_refused(self) -> None:
        with pytest.raises(ValueError, match="similarity must be dot or cosine, got 'euclid'"):
            TwoTower(query_tower(), item_tower(), similarity="euclid")


class TestTemperature:
    @staticmethod
    def model(similarity: str, temperature: float | None) -> TwoTower:
        return TwoTower(query_tower(), item_tower(), similarity=similarity, temperature=temperature)

    @pytest.mark.parametrize("similarity", ["dot", "cosine"])
    @pytest.mark.parametrize("temperature", [0.001, 0.05, 1.0, 20.0])
    def test_a_given_one_is_kept_as_it_is(self, similarity: str, temperature: float) -> None:
        model = self.model(similarity, temperature)
        assert model.temperature.item() == pytest.approx(temperature)
        assert "log_temperature" not in dict(model.named_parameters())
        assert "log_temperature" in model.state_dict(), "it travels with the weights"

    def test_for_dot_it_is_1_and_for_cosine_it_is_learnt(self) -> None:
        assert self.model("dot", None).temperature.item() == 1
        assert not self.model("dot", None).temperature.requires_grad
        learnt = self.model("cosine", None)
        assert learnt.temperature.item() == pytest.approx(0.1)
        (gradient,) = torch.autograd.grad(learnt.temperature, learnt.log_temperature)
        assert gradient.item() == pytest.approx(0.1), "d exp(t) / dt"

    def test_a_learnt_one_stays_above_a_hundredth(self) -> None:
        model = self.model("cosine", None)
        with torch.no_grad():
            model.log_temperature.fill_(-50.0)
        assert model.temperature.item() == pytest.approx(0.01)

    @pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan])
    def test_one_that_cannot_divide_is_refused(self, temperature: float) -> None:
        message = f"temperature must be above 0 and finite, got {temperature}"
        with pytest.raises(ValueError, match=message):
            self.model("dot", temperature)


class TestCustomTower:
    def test_one_feature_is_given_as_the_tensor(self) -> None:
        module = Record(DIM)
        CustomTower(module, ["price"], "item")(FEATURES)
        assert module.seen is FEATURES["price"]

    def test_several_features_are_given_as_a_dictionary_in_order(self) -> None:
        module = Record(DIM)
        CustomTower(module, ["price", "key"], "item")({**FEATURES, "extra": torch.ones(3)})
        assert isinstance(module.seen, dict)
        assert list(module.seen) == ["price", "key"]
        assert module.seen["key"] is FEATURES["key"]

    def test_a_history_that_is_given_all_the_same_is_not_read(self) -> None:
        model = TwoTower(CustomTower(Record(DIM), ["price"], "query"), item_tower())
        mask = torch.ones(3, 2, dtype=torch.bool)
        given = model.encode_queries(FEATURES, torch.randn(3, 2, DIM), mask)
        assert torch.equal(given, model.encode_queries(FEATURES))

    @pytest.mark.parametrize(
        ("output", "shape"),
        [
            (torch.ones(2, DIM), r"\(2, 4\)"),
            (torch.ones(3), r"\(3,\)"),
            (torch.ones(3, 1, DIM), r"\(3, 1, 4\)"),
            ((torch.ones(3, DIM),), "tuple"),
            (None, "NoneType"),
        ],
    )
    def test_an_output_of_another_shape_is_refused(self, output: object, shape: str) -> None:
        class Wrong(nn.Module):
            def forward(self, price: Tensor) -> object:  # noqa: ARG002
                return output

        with pytest.raises(
            ValueError, match=rf"the item tower must return \(3, dim\), got {shape}"
        ):
            CustomTower(Wrong(), ["price"], "item")(FEATURES)


def test_unequal_widths_are_refused_by_name() -> None:
    message = "must have equal dim, got query_tower 4 and item_tower 5"
    with pytest.raises(ValueError, match=message):
        TwoTower(query_tower(4), item_tower(5))
    with pytest.raises(ValueError, match="query_tower 7 and item_tower 3"):
        check_widths(7, 3)
    check_widths(3, 3)


def test_the_width_of_a_custom_tower_is_only_known_from_its_output() -> None:
    TwoTower(CustomTower(Record(5), ["price"], "query"), item_tower(4))
