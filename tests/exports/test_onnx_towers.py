"""The towers as ONNX give torch's vectors, whatever they read; and what cannot leave is refused."""

import json
import sys
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import polars as pl
import pytest
import torch
from torch import Tensor, nn

from sandbox import Outcome, run_command, tree_of
from tiny_encoder import write_encoder
from tiny_vectors import VECTORS, write_vectors
from trainers import without_baselines
from twotower import Retriever, exports, recipe, train
from twotower.data.sources.synthetic import SyntheticTables
from twotower.errors import ExportError, MissingExtraError
from twotower.exports.onnx import write_query_tower
from twotower.exports.onnx_inputs import TowerInputs

pytestmark = pytest.mark.usefixtures("operators_parsed_once")
SETTINGS: dict[str, Any] = {"training": {"epochs": 1, "batch_size": 64, "precision": "float32"}}
LENGTH = 8
"""Of histories, and the width of the vectors: what stands for one must not stand for the other."""

AT = 1.71e9
"""When all questions are asked: hours and weekdays have vectors of their own, and some lie near zero."""


def trained(world: SyntheticTables, **more: Any) -> Retriever:
    """Return a model none of whose weights is at its start, where many are 0."""
    towers = {"dim": LENGTH, "history_length": LENGTH} | more.pop("towers", {})
    features = more.pop("features", {})
    tables = {"items": world.items, "queries": world.queries} | more
    interactions = tables.pop("interactions", world.interactions)
    config = SETTINGS | {"towers": towers, "features": features}
    retriever = Retriever(without_baselines(interactions, config, **tables)[0])
    shake(retriever)
    return retriever


def shake(retriever: Retriever) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in retriever.encoding.model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
        for name, buffer in retriever.encoding.model.named_buffers():
            if name.endswith("half_life"):
                buffer.fill_(2.0)
    retriever.index.item_vectors[2:] = retriever.encoding.item_vectors()[2:]


def run(file: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[np.float32]:
    found = onnxruntime.InferenceSession(str(file)).run(None, dict(arrays))[0]
    assert isinstance(found, np.ndarray)
    return found


def assert_same(file: Path, retriever: Retriever, *ids: Any, **described: Any) -> None:
    described = {"at": AT, **described}
    wanted = retriever.encode_queries(*ids, **described)
    found = run(file, exports.query_inputs(retriever, *ids, **described))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("history", "towers"),
    [
        ("none", {}),
        # gru, mean, pooled: see test_what_is_known_of_events, test_every_kind_of_feature_of_an_item and
        # test_the_tiny_world_reads_histories. What is read of items is no matter of the reader.
        ("recency", {"history_items": "separate", "similarity": "cosine"}),
        ("mean", {"popularity": "on"}),
        ("bag", {"history_items": "separate"}),
        ("attention", {"history_items": "ids", "similarity": "cosine"}),
        ("sasrec", {}),
        ("transformer", {}),
    ],
)
def test_every_reader_of_histories(
    history: str, towers: dict[str, Any], small_world: SyntheticTables, tmp_path: Path
) -> None:
    retriever = trained(small_world, towers={"history": history, **towers})
    if retriever.encoding.model.popularity is not None:
        retriever.encoding.model.popularity.share(0.25, 0.5)
    file = tmp_path / "query_tower.onnx"
    assert write_query_tower(file, TowerInputs(retriever)) < 1e-5
    assert_same(file, retriever, [3])
    assert_same(file, retriever, list(range(40)))
    if history != "none":
        assert_histories_are_read(file, retriever, history)


def assert_histories_are_read(file: Path, retriever: Retriever, history: str) -> None:
    items = list(range(30))
    assert_same(file, retriever, history=[5])
    assert_same(file, retriever, history=items)  # more than are read
    assert_same(file, retriever, history=[items[:3], [], items[:1], items[:12]])
    # 7 and 8 seconds stand at the edge of a bucket, 1 + 7 being a power of 2.
    times = [0.0, 7.0, 15.0, 1e6, 1e6 + 3600.5]
    timed = [{"item_id": i, "time": 1.7e9 + at} for i, at in enumerate(times, start=1)]
    assert_same(file, retriever, history=timed)
    if history == "bag":  # events fade
        turned = retriever.encode_queries(history=items[::-1])
        assert np.abs(retriever.encode_queries(history=items) - turned).max() > 1e-2
    if history in ("pooled", "gru", "transformer"):
        without = retriever.encode_queries(history=list(range(1, 1 + len(timed))))
        assert np.abs(retriever.encode_queries(history=timed) - without).max() > 1e-2


def test_what_is_known_of_events(small_world: SyntheticTables, tmp_path: Path) -> None:
    num = len(small_world.interactions)
    told = small_world.interactions.with_columns(
        kind=pl.Series(["view", "buy", None] * num).head(num),
        seconds=pl.Series(np.arange(num) % 7 * 1.5),
    )
    events = {"kind": "categorical", "seconds": "number"}
    retriever = trained(
        small_world, interactions=told, features={"event": events}, towers={"history": "gru"}
    )
    file = tmp_path / "query_tower.onnx"
    assert write_query_tower(file, TowerInputs(retriever)) < 1e-5
    assert_same(file, retriever, [3])
    assert_same(file, retriever, list(range(40)))
    assert_histories_are_read(file, retriever, "gru")
    lines = [{"item_id": 1, "kind": "buy", "seconds": 3.0}, {"item_id": 2, "kind": "view"}]
    assert_same(file, retriever, history=[lines, lines[:1]])
    other = [lines[0] | {"kind": "view"}, lines[1]]
    changed = retriever.encode_queries(history=lines) - retriever.encode_queries(history=other)
    assert np.abs(changed).max() > 1e-2


def test_every_kind_of_feature_of_an_item(
    small_world: SyntheticTables, tmp_path: Path, own_cache: Path
) -> None:
    num = len(small_world.items)
    pictures = np.random.default_rng(0).normal(size=(num, 3))
    items = small_world.items.with_columns(
        released=pl.Series([datetime(1990 + place % 9, 1, 2 + place % 20) for place in range(num)]),
        picture=pl.Series(pictures.tolist()),
        spelling=pl.col("title"),
        order=pl.format("red {} car", "category"),
        meaning=pl.format("a {}", "category"),
    )
    kinds = {
        "released": "time",
        "picture": "vector",
        "title": "words",
        "spelling": "trigrams",
        "meaning": "sentence",
        "order": "windows",
        "tags": "tags",
    }
    retriever = trained(
        small_world,
        items=items,
        features={
            "item": kinds,
            "sentence_encoder": write_encoder(tmp_path / "encoder"),
            "word_vectors": write_vectors(tmp_path / "vectors.txt"),
        },
        towers={"item_hidden": [16], "history": "mean"},
    )
    written = exports.export_onnx(retriever, tmp_path / "out")
    assert (written.num_items, written.num_queries) == (num, 80)
    described = json.loads((tmp_path / "out" / "inputs.json").read_text("utf-8"))
    inputs = {entry["name"]: entry for entry in described["item_tower"]}
    assert {entry["kind"] for entry in inputs.values()} == {
        "id",
        "categorical",
        "number",
        "text",
        *kinds.values(),
    }
    words = json.loads((tmp_path / "out" / inputs["item.order in order"]["vocabulary"]).read_text())
    assert words == sorted(VECTORS)
    new: list[dict[str, object]] = [
        {"title": "nothing like it", "picture": [1, 2, 3], "released": "1999-05-05"},
        {"order": "the crimson boat and a car"},
        {"tags": "x"},
    ]  # an item that says nothing
    with pytest.warns(UserWarning, match="no feature that the bundle knows"):
        wanted = retriever.encode_items(features=new)
    found = run(tmp_path / "out" / "item_tower.onnx", exports.item_inputs(retriever, new))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    assert_histories_are_read(tmp_path / "out" / "query_tower.onnx", retriever, "mean")


@pytest.fixture(scope="module")
def exported(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """The folder that the command line wrote for the tiny world, and what it said."""
    folder = tmp_path_factory.mktemp("exported")
    outcome = run_command(("export", "onnx", str(tiny_bundle), "--out", "out"), folder)
    return folder / "out", outcome


def test_the_command_line_tells_how_far_it_is_from_torch(exported: tuple[Path, Outcome]) -> None:
    folder, outcome = exported
    assert (outcome.code, outcome.err) == (0, "")
    first, second = outcome.out.splitlines()
    assert first == "out: 200 items, 300 queries"
    assert second.startswith("Numbers of the vectors differ from torch's by at most ")
    for side in ("query", "item"):
        file = folder / f"{side}_tower.onnx"
        (output,) = onnxruntime.InferenceSession(str(file)).get_outputs()
        assert (output.name, output.shape) == (f"{side}_vector", ["batch", 16])
        assert b"/src/" not in file.read_bytes()  # nothing of the machine that wrote it


def test_the_tiny_world_reads_histories(
    tiny_retriever: Retriever, exported: tuple[Path, Outcome]
) -> None:
    folder, _ = exported
    assert tiny_retriever.contents.config.towers.history == "pooled"
    assert_same(folder / "query_tower.onnx", tiny_retriever, list(range(40)))
    assert_histories_are_read(folder / "query_tower.onnx", tiny_retriever, "pooled")


def test_the_constants_that_are_told_make_the_inputs(
    tiny_retriever: Retriever, exported: tuple[Path, Outcome]
) -> None:
    folder, _ = exported
    told = json.loads((folder / "inputs.json").read_text("utf-8"))
    entries = {entry["name"]: entry for tower in told.values() for entry in tower}
    (line,) = tiny_retriever.items([7]).to_dicts()
    given = exports.item_inputs(tiny_retriever, [line])
    number = entries["item.signal"]["constants"]
    scaled = (line["signal"] - number["center"][0]) / number["scale"][0]
    np.testing.assert_allclose(given["item.signal"], [[scaled, 0]], rtol=1e-5)
    for name in ("item.item_id", "item.category"):
        words = json.loads((folder / entries[name]["vocabulary"]).read_text("utf-8"))
        assert given[name].tolist() == [words.index(line[name.removeprefix("item.")]) + 2]
    tags = json.loads((folder / entries["item.tags"]["vocabulary"]).read_text("utf-8"))
    rows = [tags.index(tag) + 2 for tag in line["tags"].split(entries["item.tags"]["separator"])]
    assert given["item.tags"][0, : len(rows)].tolist() == rows
    ids = json.loads((folder / "history_ids.json").read_text("utf-8"))
    asked = exports.query_inputs(tiny_retriever, history=[9, 4])
    assert asked["history.item_rows"].tolist() == [[ids.index(9) + 2, ids.index(4) + 2]]


class Two(nn.Module):
    """A sound tower of the user's own, from the signal and the one category of a side."""

    def __init__(self, category: str, dim: int = 8) -> None:
        super().__init__()
        self.category, self.dim = category, dim
        self.embedding, self.signal = nn.Embedding(64, dim), nn.Linear(2, dim)

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        vectors: Tensor = self.embedding(features[self.category].long())
        signal: Tensor = self.signal(features["signal"])
        return vectors + signal


class Looks(Two):
    """One that looks at what it is given, which no trace can follow."""

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        vectors = super().forward(features)
        return vectors if vectors.sum() > 1e9 else vectors * 2


class Counts(Two):
    """One that gives other vectors each time: what was traced is what it was then."""

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        self.calls = getattr(self, "calls", 0) + 1
        return super().forward(features) + self.calls


def with_towers(world: SyntheticTables, query_tower: nn.Module, item_tower: nn.Module) -> Retriever:
    return train(
        world.interactions,
        items=world.items.select("item_id", "category", "signal"),
        queries=world.queries,
        query_tower=query_tower,
        item_tower=item_tower,
        config=SETTINGS,
    ).retriever


def test_towers_of_ones_own(small_world: SyntheticTables, tmp_path: Path) -> None:
    retriever = with_towers(small_world, Two("segment"), Two("category"))
    exports.export_onnx(retriever, tmp_path / "out")
    file = tmp_path / "out" / "query_tower.onnx"
    assert_same(file, retriever, [1])
    assert_same(file, retriever, list(range(30)))


@pytest.mark.parametrize(
    ("query_tower", "item_tower", "told"),
    [
        (Two, Looks, "the item tower cannot be written as ONNX: .*data-dependent"),
        (
            Counts,
            Two,
            "the query tower as ONNX must give torch's vectors, got numbers that differ by",
        ),
    ],
)
def test_towers_that_cannot_leave_are_refused(
    query_tower: type[Two],
    item_tower: type[Two],
    told: str,
    small_world: SyntheticTables,
    tmp_path: Path,
) -> None:
    retriever = with_towers(small_world, query_tower("segment"), item_tower("category"))
    with pytest.raises(ExportError, match=told) as caught:
        exports.export_onnx(retriever, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert tree_of(tmp_path) == {}


def test_a_sentence_encoder_that_was_trained_is_refused(tmp_path: Path, own_cache: Path) -> None:
    words = ("ox", "cat", "dog", "emu", "fly", "gnu")
    pairs = pl.DataFrame(
        {"query": [f"a {w}" for w in words] * 5, "document": [f"{w} it" for w in words] * 5}
    )
    config = recipe("search").with_settings(
        [
            "features.text=sentence",
            f"features.sentence_encoder={write_encoder(tmp_path / 'encoder')}",
            "features.tune_sentences=true",
            "training.epochs=1",
            "towers.dim=8",
        ]
    )
    retriever = train(pairs, config=config).retriever
    with pytest.raises(ExportError, match=r"features\.tune_sentences = false"):
        exports.export_onnx(retriever, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_bundle_without_histories_and_one_item(
    small_world: SyntheticTables, tmp_path: Path
) -> None:
    trained_without = train(
        small_world.interactions,
        items=small_world.items,
        out=tmp_path / "model",
        histories=False,
        config=SETTINGS | {"towers": {"dim": LENGTH, "history_length": LENGTH, "history": "mean"}},
    )
    assert trained_without.path is not None
    retriever = Retriever.open(trained_without.path)
    shake(retriever)
    retriever.delete_items(retriever.item_ids[1:])
    exported = exports.export_onnx(retriever, tmp_path / "out")
    assert exported.num_items == 1
    file = tmp_path / "out" / "query_tower.onnx"
    assert_same(file, retriever, history=[[3, 4, 5], [7]])
    assert_same(file, retriever, list(range(40)))
    assert_histories_are_read(file, retriever, "mean")
    items = dict(np.load(tmp_path / "out" / "items.npz"))
    np.testing.assert_allclose(
        run(tmp_path / "out" / "item_tower.onnx", items), retriever.encode_items(), atol=1e-5
    )


@pytest.mark.parametrize("name", ["onnxscript", "onnxruntime"])
def test_a_missing_extra_is_named(
    name: str, tiny_retriever: Retriever, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=r"pip install .*\[onnx\]'"):
        exports.export_onnx(tiny_retriever, tmp_path / "out")
