"""Bundles whose digests match but whose contents are wrong: some by name, and any number at random."""

import hashlib
import json
import random
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from safetensors.torch import load, save

from twotower.errors import BundleError
from twotower.index.lists import divided
from twotower.second_stage.follows import Follows
from twotower.second_stage.inputs import Memory, columns_of
from twotower.second_stage.item_times import ItemTimes
from twotower.second_stage.ranker import Ranker
from twotower.second_stage.trees import plain_trees
from twotower.serving.bundle import Contents
from twotower.serving.retriever import Retriever
from twotower.vocab import FIRST_ROW

Damage = Callable[[Path], None]


def with_every_file(contents: Contents) -> Contents:
    """Return contents that need all files which a bundle without text by pretrained vectors can have."""
    assert contents.histories is not None
    assert contents.targets is not None
    gone = np.zeros(contents.items.ids.num_rows, np.bool_)
    gone[[7, 9]] = True
    num_events = len(contents.histories.item_rows)
    padded = torch.cat(
        [torch.zeros(FIRST_ROW, contents.item_vectors.shape[1]), contents.item_vectors]
    )
    lists = replace(divided(padded, 8), probes={100: 2, 200: 3})
    return replace(
        contents,
        gone=gone,
        history_weights=np.ones(num_events, np.float32),
        history_is_target=np.ones(num_events, np.bool_),
        target_labels=np.ones(len(contents.targets.item_rows), np.float32),
        lists=lists,
        ranker=_ranker_of(contents),
    )


TREES = """tree
num_class=1
num_tree_per_iteration=1
max_feature_idx=2

Tree=0
num_leaves=3
num_cat=0
split_feature=0 1
threshold=2.5 0.1
decision_type=10 10
left_child=1 -2
right_child=-1 -3
leaf_value=0.5 0.25 -0.5
"""


def _ranker_of(contents: Contents) -> Ranker:
    """Return a second stage that remembers the histories, with one tree that was written by hand."""
    known = contents.histories
    assert known is not None
    assert known.times is not None
    num_rows = contents.items.ids.num_rows
    memory = Memory(
        np.bincount(known.item_rows, minlength=num_rows).astype(np.float32),
        Follows.fit(known.offsets, known.item_rows, num_rows),
        ItemTimes.fit(known.item_rows, known.times),
    )
    sides = (contents.items.transforms.features, contents.queries.transforms.features)
    item, query = map(tuple, columns_of(*sides))
    names = ("events", "follows_recent", "item_age")
    return Ranker(plain_trees(TREES, 3), names, 10, memory, item, query, {"kept": True})


def seal(folder: Path, change: Callable[[dict[str, Any]], None] | None = None) -> None:
    """Write the manifest anew: with the digests of the files as they are now, and with its own."""
    file = folder / "manifest.json"
    manifest = json.loads(file.read_text(encoding="utf-8"))
    for name in manifest["files"]:
        if (folder / name).is_file():
            manifest["files"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    del manifest["sha256"]
    if change is not None:
        change(manifest)
    digest = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    file.write_text(json.dumps({**manifest, "sha256": digest}), encoding="utf-8")


def use(folder: Path) -> str | None:
    """Open a bundle and ask it; return the message of its refusal, or None where it answered.

    Raises:
        Exception: Whatever else opening it or asking it raises: a bundle that opens must answer.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what nobody reads of a feature is said, and is no error
        try:
            retriever = Retriever.open(folder, device="cpu")
        except BundleError as error:
            return str(error)
        ids = retriever.contents.queries.ids.ids[:3].to_list()
        items = retriever.item_ids[:3]
        retriever.recommend([*ids, "nobody"], k=5).to_polars()
        retriever.recommend(features={}, history=items, k=1_000, exclude_seen=False)
        if items:
            retriever.similar_items(items[0], k=3)
        retriever.recommend_all(k=2)
    return None


# --------------------------------------------------------------------------- damages by name


@dataclass(frozen=True)
class BadBundle:
    """A damage that must be refused.

    Args:
        name: What is wrong.
        says: What the refusal must say, a regular expression.
        damage: Does it; the digests are set right afterwards.
        entries: Changes the manifest.
    """

    name: str
    says: str
    damage: Damage = lambda _: None
    entries: Callable[[dict[str, Any]], None] | None = None


def tensors(name: str, change: Callable[[dict[str, torch.Tensor]], object]) -> Damage:
    """Return the damage that changes the tensors of a file."""

    def damage(folder: Path) -> None:
        held = load((folder / name).read_bytes())
        change(held)
        (folder / name).write_bytes(save({k: v.clone().contiguous() for k, v in held.items()}))

    return damage


def table(name: str, change: Callable[[pl.DataFrame], pl.DataFrame]) -> Damage:
    """Return the damage that changes a table."""

    def damage(folder: Path) -> None:
        frame = pl.read_ipc((folder / name).read_bytes())
        change(frame).write_ipc(folder / name)

    return damage


def text(name: str, pattern: str, new: str) -> Damage:
    """Return the damage that replaces the first match of a regular expression."""

    def damage(folder: Path) -> None:
        old = (folder / name).read_text(encoding="utf-8")
        found, times = re.subn(pattern, lambda _: new, old, count=1)
        assert times, f"{pattern} is not in {name}"
        (folder / name).write_text(found, encoding="utf-8")

    return damage


def content(name: str, new: str) -> Damage:
    """Return the damage that writes a file anew."""

    def damage(folder: Path) -> None:
        (folder / name).write_text(new, encoding="utf-8")

    return damage


def _set(key: str, place: int, value: float) -> Callable[[dict[str, torch.Tensor]], object]:
    def change(held: dict[str, torch.Tensor]) -> None:
        held[key].view(-1)[place] = value

    return change


def _put(
    key: str, make: Callable[[torch.Tensor], torch.Tensor]
) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda held: held.update({key: make(held[key])})


def _entry(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda manifest: manifest.update({key: value})


def _listed(name: str) -> Callable[[dict[str, Any]], None]:
    return lambda manifest: manifest["files"].update({name: "0" * 64})


ITEMS, HISTORIES = "items.safetensors", "queries/histories.safetensors"
TARGETS, POPULARITY = "queries/targets.safetensors", "queries/popularity.safetensors"
GONE, WEIGHTS, LISTS = "items.gone.safetensors", "weights.safetensors", "index/lists.safetensors"
DEEP = 100_000


def by_name() -> Iterator[BadBundle]:
    """Yield every damage that was thought of."""
    yield BadBundle(
        "NaN in a vector",
        "item vectors must hold finite",
        tensors(ITEMS, _set("vectors", 9, np.nan)),
    )
    for told, says in (
        ('{"share": 1.5}', "share of the words must be in 0..1, got 1.5"),
        ('{"share": 0.5}', "must stand beside text on both sides"),
        ('{"share": 0, "k1": -1}', "k1 must be above 0"),
        ('{"share": 0, "languages": ["x"]}', "promises"),
        ('{"share": 0, "languages": {"title": "x"}}', "languages must be among"),
        ('"all"', "promises"),
    ):
        yield BadBundle(
            f"words of {told}", says, text("metrics.json", r"\{", f'{{"words": {told}, ')
        )
    yield BadBundle(
        "an infinite vector",
        "item vectors must hold finite",
        tensors(ITEMS, _set("vectors", 9, np.inf)),
    )
    yield BadBundle(
        "wider vectors",
        "towers.dim is 16, and the item vectors have 17|index must be any x 17",
        tensors(ITEMS, _put("vectors", lambda v: torch.nn.functional.pad(v, (0, 1)))),
    )
    yield BadBundle(
        "vectors of no width",
        "item vectors must be",
        tensors(ITEMS, _put("vectors", lambda v: v[:, :0])),
    )
    yield BadBundle(
        "a vector too few",
        "item vectors must be 200 x any",
        tensors(ITEMS, _put("vectors", lambda v: v[1:])),
    )
    yield BadBundle(
        "vectors of half precision",
        "item vectors must be .* float32, got",
        tensors(ITEMS, _put("vectors", torch.Tensor.half)),
    )
    yield BadBundle(
        "a vector that is a number",
        "item vectors must be",
        tensors(ITEMS, _put("vectors", lambda v: v.view(-1))),
    )
    yield BadBundle(
        "vectors by another name",
        "vectors",
        tensors(ITEMS, lambda held: held.update(vector=held.pop("vectors"))),
    )
    for file, what in ((HISTORIES, "histories"), (TARGETS, "targets")):
        yield BadBundle(
            f"{what} of an item that is not there",
            f"items of {what} must be at most 201, got 202",
            tensors(file, _set("item_rows", 3, 202)),
        )
        yield BadBundle(
            f"{what} of a reserved row",
            f"items of {what} must be at least 2, got 0",
            tensors(file, _set("item_rows", 3, 0)),
        )
        yield BadBundle(
            f"{what} of a negative row",
            f"items of {what} must be at least 2, got -5",
            tensors(file, _set("item_rows", 3, -5)),
        )
        yield BadBundle(
            f"offsets of {what} that fall",
            f"offsets of {what} must rise",
            tensors(file, _set("offsets", 40, 10**6)),
        )
        yield BadBundle(
            f"offsets of {what} that end early",
            f"offsets of {what} must rise",
            tensors(file, _set("offsets", -1, 1)),
        )
        yield BadBundle(
            f"{what} of too few queries",
            f"offsets of {what} must be 303 int64, got 302",
            tensors(file, _put("offsets", lambda v: v[1:])),
        )
        yield BadBundle(
            f"{what} without offsets",
            "must hold offsets and item_rows",
            tensors(file, lambda held: held.pop("offsets")),
        )
        yield BadBundle(
            f"{what} with items of another type",
            f"items of {what} must be .* int32",
            tensors(file, _put("item_rows", torch.Tensor.float)),
        )
    yield BadBundle(
        "a moment that is NaN",
        "times of histories must hold finite",
        tensors(HISTORIES, _set("times", 3, np.nan)),
    )
    yield BadBundle(
        "a moment too few",
        "times of histories must be",
        tensors(HISTORIES, _put("times", lambda v: v[1:])),
    )
    yield BadBundle(
        "a part too few",
        "parts of histories must be",
        tensors(HISTORIES, _put("parts", lambda v: v[1:])),
    )
    yield BadBundle(
        "weights of events that are NaN",
        "weights of histories must hold finite",
        tensors(HISTORIES, _set("weights", 0, np.nan)),
    )
    yield BadBundle(
        "a column of events that is unknown",
        "histories must hold .* got extra",
        tensors(HISTORIES, lambda held: held.update(extra=held["parts"])),
    )
    yield BadBundle(
        "labels that are too few",
        "labels of targets must be",
        tensors(TARGETS, _put("labels", lambda v: v[1:])),
    )
    yield BadBundle(
        "popularity of too few items",
        "popularity must be 202 float32",
        tensors(POPULARITY, _put("counts", lambda v: v[1:])),
    )
    yield BadBundle(
        "popularity below 0",
        "popularity must be at least 0",
        tensors(POPULARITY, _set("counts", 3, -1)),
    )
    yield BadBundle(
        "popularity that is NaN",
        "popularity must hold finite",
        tensors(POPULARITY, _set("counts", 3, np.nan)),
    )
    yield BadBundle(
        "an item gone that never was",
        "that are gone must be at most 201",
        tensors(GONE, _set("rows", 0, 5_000)),
    )
    yield BadBundle(
        "a reserved row that is gone",
        "that are gone must be at least 2",
        tensors(GONE, _set("rows", 0, 1)),
    )
    yield BadBundle(
        "NaN in a weight",
        "the weights .* must hold finite",
        tensors(WEIGHTS, lambda held: _set(max(held), 0, np.nan)(held)),
    )
    yield BadBundle(
        "a weight that is missing",
        "towers must be those|no weights have",
        tensors(WEIGHTS, lambda held: held.pop(max(held))),
    )
    yield BadBundle(
        "a weight too many",
        "towers must be those",
        tensors(WEIGHTS, lambda held: held.update(extra=torch.ones(3))),
    )
    yield BadBundle(
        "an item in a list that is not there",
        "items of the index must be at most 7",
        tensors(LISTS, _set("list_of", 3, 8)),
    )
    yield BadBundle(
        "centres of another width",
        "centres of the index must be",
        tensors(LISTS, _put("centres", lambda v: v[:, 1:])),
    )
    yield BadBundle(
        "spreads that are NaN",
        "spreads of the index must hold finite",
        tensors(LISTS, _set("spreads", 0, np.nan)),
    )
    yield BadBundle(
        "no list at all",
        "centres of the index must be",
        tensors(LISTS, _put("centres", lambda v: v[:0])),
    )
    yield BadBundle(
        "more lists searched than there are",
        "probes of the index must be in 1..8",
        text("index/index.json", '"100": 2', '"100": 9'),
    )
    yield BadBundle(
        "an index of an unknown kind",
        "must describe an index",
        text("index/index.json", "approximate", "magic"),
    )
    yield BadBundle(
        "a table with a line too few",
        "item table must have 200 lines, got 199",
        table("items.arrow", lambda f: f[1:]),
    )
    yield BadBundle(
        "a table without the ids",
        "query table must have the column 'query_id'",
        table("queries/queries.arrow", lambda f: f.drop("query_id")),
    )
    yield BadBundle(
        "an id that stands twice",
        "ids must be distinct",
        table("vocab/item.ids.arrow", lambda f: pl.concat([f[:-1], f[:1]])),
    )
    yield BadBundle(
        "ids in two columns",
        "must have one column, got 2",
        table("vocab/item.ids.arrow", lambda f: f.with_columns(other=f.to_series())),
    )
    yield BadBundle(
        "ids that are missing",
        "ids must not be null",
        table(
            "vocab/query.ids.arrow",
            lambda f: f.with_columns(pl.lit(None, f.to_series().dtype).alias(f.columns[0])),
        ),
    )
    yield BadBundle(
        "a text of other constants",
        "must have constants",
        tensors("transforms/item.1.safetensors", lambda held: held.pop("width")),
    )
    yield BadBundle(
        "a text as wide as memory",
        "width of the column .* must be in 1..256",
        tensors("transforms/item.1.safetensors", _set("width", 0, 1e12)),
    )
    yield BadBundle(
        "a scale of 0",
        "scale of the column .* must be in",
        tensors("transforms/item.3.safetensors", _set("scale", 0, 0.0)),
    )
    yield BadBundle(
        "a column of an unknown kind",
        "kind must be one of",
        text("schema.toml", 'kind = "number"', 'kind = "spell"'),
    )
    yield BadBundle(
        "a column that stands twice",
        "columns must have distinct names",
        text("schema.toml", 'name = "query_id"', 'name = "segment"'),
    )
    yield BadBundle(
        "settings of other towers",
        "towers.dim is 8, and",
        text("config.toml", "dim = 16", "dim = 8"),
    )
    yield BadBundle(
        "a layer as wide as memory",
        "towers.item_hidden must hold numbers of at most 16384",
        text("config.toml", r"item_hidden = \[[^]]*\]", "item_hidden = [10000000000]"),
    )
    yield BadBundle(
        "a layer that no weights have",
        "towers.item_hidden is 16384",
        text("config.toml", r"item_hidden = \[[^]]*\]", "item_hidden = [16384]"),
    )
    for file in ("metrics.json", "index/index.json"):
        deep = '{"a":' * DEEP + "1" + "}" * DEEP
        yield BadBundle(
            f"{file} that is nested deeply",
            "does not hold what format 3 promises",
            content(file, deep),
        )
    for file in ("schema.toml", "config.toml"):
        yield BadBundle(
            f"{file} that is nested deeply",
            f"{file} must be TOML, got tables nested too deeply",
            content(file, "a = " + "[" * DEEP + "]" * DEEP),
        )
    yield BadBundle(
        "figures that are a list", "metrics.json must hold an object", content("metrics.json", "[]")
    )
    yield BadBundle("no files at all", "does not list schema.toml", entries=_entry("files", {}))
    yield BadBundle(
        "a format of nothing",
        "format_version in manifest.json is 0",
        entries=_entry("format_version", 0),
    )
    yield BadBundle(
        "an order that is a word",
        "ordered in manifest.json is 'yes'",
        entries=_entry("ordered", "yes"),
    )
    yield BadBundle(
        "a tower of nobody",
        "custom_towers in manifest.json is",
        entries=_entry("custom_towers", ["roof"]),
    )
    yield BadBundle(
        "a view of no items",
        "items of a view must have the column 'view'",
        entries=_entry("view", "films"),
    )
    yield BadBundle(
        "a digest that is a number",
        "no file of a bundle",
        entries=lambda m: m["files"].update({ITEMS: 7}),
    )
    for name in (
        "../items.safetensors",
        "/etc/passwd",
        "queries/../../x",
        "..",
        ".",
        "",
        "a//b",
        "a\\b",
        "C:x",
        "\\\\host\\share",
        "a\nb",
        "queries/",
        "nul\0",
        "/dev/zero",
        "~/x",
    ):
        yield BadBundle(
            f"a file called {name!r}",
            "lists .*, which is no file of a bundle",
            entries=_listed(name),
        )


# --------------------------------------------------------------------------- damages at random


def at_random(folder: Path, seed: int, within: str = "") -> str:
    """Change something in a bundle and set its digests right; return what was changed.

    Args:
        folder: The bundle.
        seed: Of the choice.
        within: How the changed file's name begins; any file if empty, also the manifest.
    """
    rng = random.Random(seed)
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    names = [*sorted(manifest["files"]), "manifest.json", "manifest.json"]
    name = rng.choice([name for name in names if name.startswith(within)])
    if name == "manifest.json":
        told: list[str] = []
        seal(folder, lambda entries: told.append(_change_tree(entries, rng)))
        return f"{name}: {told[0]}"
    file = folder / name
    kind = rng.random()
    if kind < 0.1:
        said = _bytes_changed(file, rng)
    elif kind < 0.15:
        other = folder / rng.choice(sorted(manifest["files"]))
        file.write_bytes(other.read_bytes())
        said = f"the content of {other.relative_to(folder)}"
    elif file.suffix == ".safetensors":
        said = _tensor_changed(file, rng)
    elif file.suffix == ".arrow":
        said = _table_changed(file, rng)
    elif file.suffix == ".json":
        tree = json.loads(file.read_text(encoding="utf-8"))
        said = _change_tree(tree, rng)
        file.write_text(json.dumps(tree), encoding="utf-8")
    elif file.suffix == ".toml":
        said = _line_changed(file, rng)
    else:
        said = _bytes_changed(file, rng)
    seal(folder)
    return f"{name}: {said}"


ODD: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    1,
    -1,
    2,
    10**6,
    2**31,
    2**63,
    2**64,
    -(2**40),
    0.5,
    -1.5,
    1e308,
    float("inf"),
    float("nan"),
    "",
    "0",
    "none",
    "../x",
    "\ud800",
    "\0",
    "é",
    [],
    {},
    [[]],
    [None],
    {"a": {}},
    "x" * 10_000,
)
"""Values in the place of others."""


def _bytes_changed(file: Path, rng: random.Random) -> str:
    held = bytearray(file.read_bytes())
    if not held or rng.random() < 0.3:
        file.write_bytes(bytes(held[: rng.randrange(len(held) + 1)]))
        return "cut off"
    for _ in range(rng.choice((1, 1, 4, 32))):
        held[rng.randrange(len(held))] ^= 1 << rng.randrange(8)
    file.write_bytes(bytes(held))
    return "bits flipped"


def _tensor_changed(file: Path, rng: random.Random) -> str:
    held = load(file.read_bytes())
    key = rng.choice(sorted(held))
    tensor = held[key]
    way = rng.choice(
        ("value", "value", "value", "dtype", "shape", "rows", "lost", "renamed", "more")
    )
    if way == "value" and tensor.numel():
        value = rng.choice((0, -1, 1, 2, 10**6, 2**31 - 1, -(2**31), np.nan, np.inf, -np.inf, 1e30))
        whole = tensor.dtype in (torch.int32, torch.int64, torch.uint8, torch.bool)
        value = 0 if whole and not np.isfinite(value) else value
        if tensor.dtype == torch.uint8:
            value = int(value) % 256
        if whole:
            value = max(-(2**31), min(2**31 - 1, int(value)))
        tensor = tensor.clone()
        tensor.view(-1)[rng.randrange(tensor.numel())] = value
        way = f"{key} holds {value}"
    elif way == "dtype":
        kind = rng.choice(
            (torch.float64, torch.float16, torch.int32, torch.int64, torch.uint8, torch.bool)
        )
        tensor, way = tensor.to(kind), f"{key} as {kind}"
    elif way == "shape":
        tensor = rng.choice(
            (
                tensor.reshape(-1),
                tensor[None],
                tensor.T.contiguous() if tensor.ndim == 2 else tensor[:0],
            )
        )
        way = f"{key} of shape {tuple(tensor.shape)}"
    elif way == "rows" and tensor.ndim:
        tensor = rng.choice(
            (tensor[1:], tensor[:0], torch.cat([tensor, tensor[:1]]), tensor.flip(0))
        )
        way = f"{key} with {len(tensor)} rows"
    elif way == "more":
        held[rng.choice(("extra", "times", "weights", "rows"))] = tensor.clone()
    held[key] = tensor
    if way in ("lost", "renamed"):
        moved = held.pop(key)
        if way == "renamed":
            held[key + "x"] = moved
    file.write_bytes(save({k: v.contiguous().clone() for k, v in held.items()}))
    return way


def _table_changed(file: Path, rng: random.Random) -> str:
    frame = pl.read_ipc(file.read_bytes())
    column = rng.choice(frame.columns)
    way = rng.choice(
        ("rows", "none", "twice", "column", "renamed", "nulls", "cast", "order", "another")
    )
    if way == "rows":
        frame = frame[1:]
    elif way == "none":
        frame = frame.clear()
    elif way == "twice":
        frame = pl.concat([frame, frame[:1]])
    elif way == "column":
        frame = frame.drop(column)
    elif way == "renamed":
        frame = frame.rename({column: column + "x"})
    elif way == "nulls":
        frame = frame.with_columns(pl.lit(None, frame[column].dtype).alias(column))
    elif way == "cast":
        kind = rng.choice(
            (pl.String, pl.Float64, pl.Int8, pl.Boolean, pl.Binary, pl.Date, pl.List(pl.Int64))
        )
        values = frame[column]
        try:
            values = values.cast(kind, strict=False)
        except pl.exceptions.PolarsError:
            values = pl.Series(column, [None] * len(frame), kind)
        frame = frame.with_columns(values)
        way = f"{column} as {kind}"
    elif way == "order":
        frame = frame.reverse()
    else:
        frame = frame.with_columns(pl.Series("another", [{"a": [1]}] * len(frame)))
    frame.write_ipc(file)
    return way


def _change_tree(tree: Any, rng: random.Random) -> str:
    """Change one value somewhere in a tree of JSON."""
    if isinstance(tree, list) and not tree:
        tree.append(rng.choice(ODD))
        return "one more"
    if isinstance(tree, dict) and (not tree or rng.random() < 0.1):
        tree[rng.choice(("extra", "\ud800", ""))] = rng.choice(ODD)
        return "one more"
    key: Any = rng.choice(sorted(tree)) if isinstance(tree, dict) else rng.randrange(len(tree))
    if isinstance(tree[key], (dict, list)) and rng.random() < 0.7:
        return f"{key}.{_change_tree(tree[key], rng)}"
    if rng.random() < 0.2:
        del tree[key]
        return f"{key} lost"
    if rng.random() < 0.05:
        deep: Any = 1
        for _ in range(900):  # what Python itself writes
            deep = {"a": deep}
        tree[key] = deep
        return f"{key} nested deeply"
    tree[key] = rng.choice(ODD)
    return f"{key} = {tree[key]!r}"[:200]


def _line_changed(file: Path, rng: random.Random) -> str:
    lines = file.read_text(encoding="utf-8").splitlines()
    place = rng.randrange(len(lines))
    key = lines[place].partition(" = ")[0]
    way = rng.choice(("value", "value", "value", "lost", "twice"))
    if way == "lost":
        del lines[place]
    elif way == "twice":
        lines.insert(place, lines[place])
    else:
        # Sizes that only take long, or that only ask for much memory, are what settings.py bounds.
        new = rng.choice(
            (
                '""',
                '"x"',
                "0",
                "-1",
                "1",
                "3",
                "0.5",
                "nan",
                "inf",
                "true",
                "false",
                "[]",
                "[1]",
                "{}",
                "1979-05-27",
            )
        )
        lines[place] = f"{key} = {new}"
        way = lines[place]
    file.write_text("\n".join(lines), encoding="utf-8")
    return way
