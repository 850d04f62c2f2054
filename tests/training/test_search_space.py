"""Which settings are searched on which data; that the default lies in every range."""

from typing import Any

import polars as pl
import pytest
from optuna.distributions import CategoricalDistribution

from twotower.config import Config
from twotower.data.dataset import Dataset
from twotower.data.preparation import prepare
from twotower.data.sources.synthetic import SyntheticTables
from twotower.data.splits import split
from twotower.features.schema import infer_features
from twotower.features.transforms import Sides, SideTransforms
from twotower.training.choices import resolve
from twotower.training.settings import value_of, with_values
from twotower.training.study import (
    SEARCHED,
    from_param,
    held_back,
    say,
    search_space,
    to_param,
)

ALWAYS = {
    "training.learning_rate",
    "training.weight_decay",
    "training.batch_size",
    "towers.dim",
    "towers.query_hidden",
    "towers.dropout",
}
SOFTMAX = {"towers.similarity", "loss.label_smoothing"}

Space = dict[str, Any]  # of optuna's distributions, whose ends their base class does not have


def space_of(
    tables: SyntheticTables, *, items: bool = True, **sections: Any
) -> tuple[Space, Config]:
    """Return the space of the small world, and the default settings on it."""
    config = Config.from_dict(sections)
    frame = tables.items if items else None
    dataset = split(
        prepare(tables.interactions, items=frame, config=config.data).dataset, config.split
    )
    config, _ = resolve(config, dataset)
    return search_space(config, dataset, sides_of(dataset)), config


def sides_of(dataset: Dataset) -> Sides:
    fitted = []
    for side, table in (("query", dataset.queries), ("item", dataset.items)):
        features = infer_features(table.frame, side, table.id_column, {})  # type: ignore[arg-type]
        counts = pl.Series([2] * len(table)).to_numpy()
        fitted.append(SideTransforms.fit(features, table.frame, counts, 1))
    return Sides(*fitted)


class TestWhichSettings:
    def test_with_an_order_and_features(self, small_world: SyntheticTables) -> None:
        """Of 8 events 6 are for training: no history is longer than the shortest that is tried."""
        space, _ = space_of(small_world)
        assert set(space) == ALWAYS | SOFTMAX | {"towers.id_dropout", "towers.history"}

    def test_with_longer_histories(self, tiny_world: SyntheticTables) -> None:
        """Of 12 events 10 are for training, and repeated to 30 they are 28."""
        space, _ = space_of(tiny_world)
        assert "towers.history_length" not in space
        events = pl.concat([tiny_world.interactions] * 3)
        long = SyntheticTables(**{**vars(tiny_world), "interactions": events})
        space, _ = space_of(long)
        assert (space["towers.history_length"].low, space["towers.history_length"].high) == (10, 50)

    def test_without_an_order(self, small_world: SyntheticTables) -> None:
        space, _ = space_of(small_world, data={"order": "none"})
        assert {"towers.history", "towers.history_length"}.isdisjoint(space)

    def test_without_a_history(self, small_world: SyntheticTables) -> None:
        space, _ = space_of(small_world, towers={"history": "none"})
        assert {"towers.history", "towers.history_length"}.isdisjoint(space)

    def test_without_features_an_id_is_never_left_out(self, small_world: SyntheticTables) -> None:
        space, _ = space_of(small_world, items=False)
        assert "towers.id_dropout" not in space

    def test_another_loss(self, small_world: SyntheticTables) -> None:
        space, _ = space_of(small_world, loss={"kind": "bce"})
        assert SOFTMAX.isdisjoint(space)
        assert "loss.negatives" not in space
        assert "loss.num_negatives" in space

    def test_a_temperature_that_is_stated(self, small_world: SyntheticTables) -> None:
        space, _ = space_of(small_world, towers={"temperature": 0.5})
        assert "towers.similarity" not in space

    def test_a_prior_by_popularity_is_of_dot_products(self, small_world: SyntheticTables) -> None:
        space, config = space_of(small_world, split={"kind": "temporal"})
        assert config.towers.popularity == "on"
        assert "towers.similarity" not in space

    def test_too_many_items_for_all(self, small_world: SyntheticTables) -> None:
        space, _ = space_of(small_world, loss={"negatives": "mixed"})
        assert space["loss.negatives"] == CategoricalDistribution(["mixed", "uniform"])
        assert "loss.num_negatives" in space

    def test_nothing_else_is_ever_searched(self, small_world: SyntheticTables) -> None:
        space, _ = space_of(small_world, loss={"negatives": "mixed"})
        assert set(space) <= set(SEARCHED)


class TestRanges:
    @pytest.mark.parametrize(
        "sections",
        [
            {},
            {"data": {"order": "none"}},
            {"loss": {"negatives": "mixed"}},
            {"loss": {"kind": "bce"}},
            {"towers": {"query_hidden": [], "history_length": 3}},
        ],
    )
    @pytest.mark.parametrize("world", ["small_world", "tiny_world"])
    def test_the_default_lies_in_each(
        self, request: pytest.FixtureRequest, world: str, sections: dict[str, Any]
    ) -> None:
        space, config = space_of(request.getfixturevalue(world), **sections)
        for name, distribution in space.items():
            param = to_param(value_of(config, name))
            assert distribution._contains(distribution.to_internal_repr(param)), name

    def test_both_ends_make_a_config(self, small_world: SyntheticTables) -> None:
        space, config = space_of(small_world, loss={"negatives": "mixed"})
        for name, distribution in space.items():
            ends = (
                distribution.choices
                if isinstance(distribution, CategoricalDistribution)
                else (distribution.low, distribution.high)
            )
            for end in ends:
                assert value_of(with_values(config, {name: from_param(end)}), name) == from_param(
                    end
                )

    def test_by_hand(self, small_world: SyntheticTables) -> None:
        """The defaults are 0.006, 0.1, a batch of 128, a width of 64 and one layer of 256."""
        space, _ = space_of(small_world)
        rate, decay = space["training.learning_rate"], space["training.weight_decay"]
        assert (rate.low, rate.high) == pytest.approx((0.0012, 0.03))
        assert (decay.low, decay.high) == pytest.approx((0.001, 1.0))
        assert rate.log
        assert decay.log
        assert space["training.batch_size"].choices == (64, 128, 256)
        assert space["towers.query_hidden"].choices == ("[]", "[128]", "[256]", "[512]")
        dim = space["towers.dim"]
        assert (dim.low, dim.high, dim.step) == (32, 128, 16)


class TestHeldBack:
    def test_what_differs_and_what_is_named(self) -> None:
        given = Config.from_dict({"towers": {"dim": 32}, "training": {"epochs": 3}})
        assert held_back(given) == {"towers.dim"}
        fixed = ["training.learning_rate"]
        assert held_back(given, fixed) == {"towers.dim", "training.learning_rate"}
        assert held_back(Config()) == set()

    def test_a_setting_that_is_never_searched(self) -> None:
        with pytest.raises(ValueError, match=r"fixed must be of .*, got 'training.epochs'"):
            held_back(Config(), ["training.epochs"])


class TestWords:
    def test_sentences(self, small_world: SyntheticTables) -> None:
        space, _ = space_of(small_world)
        for name, said in {
            "training.weight_decay": "from 0.001 to 1, evenly in its logarithm",
            "towers.dropout": "from 0 to 0.5, in steps of 0.05",
            "towers.history": "one of pooled, recency, mean",
        }.items():
            assert say(name, space[name]) == f"{name} is {said}"

    def test_a_list_survives_the_study(self) -> None:
        for value in ((), (256,), (256, 128), 0.5, 64, "dot"):
            assert from_param(to_param(value)) == value
        assert to_param((256, 128)) == "[256, 128]"
