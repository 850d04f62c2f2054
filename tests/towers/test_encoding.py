"""``Encoding``: one vector a row or query, whatever the chunks, and without side effects."""

from collections.abc import Mapping

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor, nn

from twotower.config import TowersConfig
from twotower.features.base import FeatureArrays
from twotower.features.schema import Feature, Side
from twotower.features.transforms import SideTransforms
from twotower.histories import Histories
from twotower.towers import encoding as encoding_module
from twotower.towers.build import build_model
from twotower.towers.encoding import Encoding, to_tensors
from twotower.towers.model import TwoTower

CPU = torch.device("cpu")
DIM, NUM_ITEMS, LENGTH = 4, 9, 3
FRAME = pl.DataFrame(
    {
        "key": range(NUM_ITEMS),
        "price": [float(n * n) for n in range(NUM_ITEMS)],
        "colour": ["red", "blue", None] * 3,
    }
)


def transforms(side: Side, **kinds: str) -> SideTransforms:
    features = tuple(Feature(name, side, kind, "") for name, kind in kinds.items())
    return SideTransforms.fit(features, FRAME, np.full(NUM_ITEMS, 9), 1)


ITEMS = transforms("item", key="id", price="number")
QUERIES = transforms("query", key="id", price="number", colour="categorical")


def encoding_of(
    config: TowersConfig, queries: SideTransforms = QUERIES, **towers: nn.Module
) -> Encoding:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_model(config, queries, ITEMS, **towers)  # type: ignore[arg-type]
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
    item_features = to_tensors(ITEMS.apply_to_rows(FRAME), CPU)
    return Encoding(model, item_features, queries, LENGTH, CPU)


def config(**changes: object) -> TowersConfig:
    settings = {"dim": DIM, "history": "recency", "query_id": "on", "dropout": 0.5}
    return TowersConfig(**{"similarity": "dot", **settings, **changes})  # type: ignore[arg-type]


def histories(*rows: list[int]) -> Histories:
    made = Histories.of([np.array(each, np.int32) for each in rows])
    return Histories(made.offsets, made.item_rows, np.arange(len(made.item_rows), dtype=np.float64))


class TestItemVectors:
    def test_one_vector_a_row_and_zero_at_the_reserved_ones(self) -> None:
        encoding = encoding_of(config(item_hidden=(8,)))
        vectors = encoding.item_vectors()
        assert vectors.shape == (encoding.num_item_rows, DIM) == (NUM_ITEMS + 2, DIM)
        assert not vectors[:2].any()
        model = encoding.model.eval()
        torch.testing.assert_close(vectors[2:], model.encode_items(encoding.item_features)[2:])
        assert (vectors[2:] != 0).all()
        assert not vectors.requires_grad

    @pytest.mark.parametrize("chunk", [1, 2, 5, 10, 11, 12])
    def test_where_a_chunk_ends_does_not_matter(
        self, monkeypatch: pytest.MonkeyPatch, chunk: int
    ) -> None:
        encoding = encoding_of(config())
        expected = encoding.item_vectors()
        monkeypatch.setattr(encoding_module, "_CHUNK_ITEMS", chunk)
        torch.testing.assert_close(encoding.item_vectors(), expected)

    def test_the_features_are_left_as_they_are(self) -> None:
        encoding = encoding_of(config())
        before = {name: values.clone() for name, values in encoding.item_features.items()}
        encoding.item_vectors()
        assert all(torch.equal(before[k], v) for k, v in encoding.item_features.items())

    def test_a_new_item_with_the_features_of_an_old_one_has_its_vector(self) -> None:
        encoding = encoding_of(config())
        old = encoding.new_item_vectors(ITEMS.apply(FRAME[3:5]))
        torch.testing.assert_close(old, encoding.item_vectors()[5:7])
        unknown = encoding.new_item_vectors(ITEMS.apply(FRAME[3:5].with_columns(key=-1)))
        assert unknown.isfinite().all()
        assert not torch.allclose(unknown, old)


class TestQueryVectors:
    @staticmethod
    def naive(encoding: Encoding, features: Mapping[str, Tensor], rows: list[int]) -> Tensor:
        """One query at a time, its history unpadded."""
        model = encoding.model.eval()
        recent = torch.tensor(rows[-LENGTH:], dtype=torch.long)
        read = {name: values[recent] for name, values in encoding.item_features.items()}
        if not rows:
            return model.encode_queries(features)
        vectors = model.item_inputs(read)[None]
        seconds = torch.arange(len(recent))[None].float()  # the events are a second apart
        return model.encode_queries(features, vectors, torch.ones(1, len(recent)) > 0, seconds)

    @pytest.mark.parametrize("chunk", [1, 2, 4, 5, 6, 4096])
    @pytest.mark.parametrize("history", ["none", "mean", "recency", "pooled"])
    def test_equals_one_query_at_a_time_whatever_the_chunks(
        self, monkeypatch: pytest.MonkeyPatch, history: str, chunk: int
    ) -> None:
        monkeypatch.setattr(encoding_module, "_CHUNK_QUERIES", chunk)
        encoding = encoding_of(config(history=history, query_hidden=(8,)))
        lists = [[2, 3, 4, 5, 6], [], [7, 7], [10], [2, 10, 2]]
        arrays = QUERIES.apply(FRAME[:5])
        vectors = encoding.query_vectors(arrays, histories(*lists))
        assert vectors.shape == (5, DIM)
        tensors = to_tensors(arrays, CPU)
        for number, rows in enumerate(lists):
            one = {name: values[number : number + 1] for name, values in tensors.items()}
            expected = self.naive(encoding, one, rows)
            torch.testing.assert_close(vectors[number : number + 1], expected)

    def test_only_the_most_recent_events_are_read(self) -> None:
        encoding = encoding_of(config())
        arrays = QUERIES.apply(FRAME[:2])
        first, second = encoding.query_vectors(arrays, histories([9, 8, 2, 3, 4], [2, 3, 4]))
        again = encoding.query_vectors(
            {name: values[[0, 0]] for name, values in arrays.items()},
            histories([9, 8, 2, 3, 4], [2, 3, 4]),
        )
        assert not torch.allclose(first, second)
        torch.testing.assert_close(again[0], again[1])

    @pytest.mark.parametrize("lists", [[[2, 3], []], [[], []], []])
    def test_queries_without_any_feature_are_read_by_their_history(
        self, lists: list[list[int]]
    ) -> None:
        queries = transforms("query", key="id")
        encoding = encoding_of(config(query_id="off", query_hidden=()), queries)
        for arrays in ({}, queries.apply(FRAME[: len(lists)])):
            vectors = encoding.query_vectors(arrays, histories(*lists))
            assert vectors.shape == (len(lists), DIM)
            assert vectors.any(dim=1).tolist() == [bool(rows) for rows in lists]

    @pytest.mark.parametrize("history", ["none", "pooled"])
    def test_no_queries_keep_the_width(self, history: str) -> None:
        encoding = encoding_of(config(history=history))
        vectors = encoding.query_vectors(QUERIES.apply(FRAME[:0]), Histories.empty(0))
        assert vectors.shape == (0, DIM)

    def test_a_tower_of_ones_own_is_given_its_features(self) -> None:
        queries = transforms("query", key="id", price="number")
        own = nn.Linear(2, DIM)
        encoding = encoding_of(config(), queries, query_tower=own)
        arrays = queries.apply(FRAME)
        vectors = encoding.query_vectors(arrays, Histories.empty(NUM_ITEMS))
        torch.testing.assert_close(vectors, own(torch.from_numpy(arrays["price"].copy())))
        none = encoding.query_vectors(queries.apply(FRAME[:0]), Histories.empty(0))
        assert none.shape == (0, DIM)


class TestIsKnown:
    lines = pl.DataFrame(
        {
            "key": [0, None, 99, None, None],
            "price": [None, 4.0, None, None, None],
            "colour": [None, None, None, "pink", None],
        }
    )
    past = histories([], [], [], [], [5])

    def known(self, encoding: Encoding) -> list[bool]:
        arrays = encoding.query_transforms.apply(self.lines)
        known: list[bool] = encoding.is_known(arrays, self.past).tolist()
        return known

    def test_any_feature_or_event_that_the_tower_reads_will_do(self) -> None:
        assert self.known(encoding_of(config())) == [True, True, False, False, True]

    def test_an_id_that_the_tower_does_not_read_tells_nothing(self) -> None:
        off = encoding_of(config(query_id="off"))
        assert self.known(off) == [False, True, False, False, True]

    def test_a_history_that_the_tower_does_not_read_tells_nothing(self) -> None:
        none = encoding_of(config(history="none"))
        assert self.known(none) == [True, True, False, False, False]

    def test_a_tower_of_ones_own_reads_features_only(self) -> None:
        queries = transforms("query", key="id", price="number")
        own = encoding_of(config(), queries, query_tower=nn.Linear(2, DIM))
        assert self.known(own) == [False, True, False, False, False]

    def test_without_features_the_history_decides(self) -> None:
        queries = transforms("query", key="id")
        encoding = encoding_of(config(query_id="off"), queries)
        assert self.known(encoding) == [False, False, False, False, True]


class TestSideEffects:
    @pytest.mark.parametrize("training", [True, False])
    def test_dropout_is_off_and_the_mode_is_put_back(self, training: bool) -> None:
        encoding = encoding_of(config(history="pooled", query_hidden=(8,), id_dropout=0.9))
        encoding.model.train(training)
        arrays: FeatureArrays = QUERIES.apply(FRAME)
        past = histories(*([2, 3] for _ in range(NUM_ITEMS)))
        before = torch.get_rng_state()
        for _ in range(2):
            assert torch.equal(
                encoding.query_vectors(arrays, past), encoding.query_vectors(arrays, past)
            )
            assert torch.equal(encoding.item_vectors(), encoding.item_vectors())
            assert encoding.model.training is training
        assert torch.equal(torch.get_rng_state(), before), "a validation must not move the seed"
        assert torch.is_grad_enabled()
        assert not encoding.query_vectors(arrays, past).requires_grad

    def test_a_tower_that_fails_leaves_no_trace(self) -> None:
        class Broken(nn.Module):
            def forward(self, price: Tensor) -> Tensor:  # noqa: ARG002
                raise RuntimeError("mine")

        queries = transforms("query", price="number")
        encoding = encoding_of(config(), queries, query_tower=Broken())
        model: TwoTower = encoding.model.train()
        with pytest.raises(RuntimeError, match="mine"):
            encoding.query_vectors(queries.apply(FRAME), Histories.empty(NUM_ITEMS))
        assert model.training
        assert torch.is_grad_enabled()


def test_columns_that_are_read_only_become_tensors() -> None:
    rows = np.arange(3, dtype=np.int32)
    rows.flags.writeable = False
    (tensor,) = to_tensors({"key": rows}, CPU).values()
    assert tensor.tolist() == [0, 1, 2]
