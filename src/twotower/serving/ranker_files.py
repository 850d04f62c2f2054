"""The second stage of a bundle as files: its trees as text, what it remembers as arrays."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from twotower.config import RerankConfig
from twotower.features.transforms import SideTransforms
from twotower.second_stage.follows import Follows
from twotower.second_stage.inputs import Memory, columns_of
from twotower.second_stage.item_times import ItemTimes
from twotower.second_stage.ranker import Ranker
from twotower.second_stage.trees import plain_trees
from twotower.serving import storage
from twotower.serving.content_checks import check_array
from twotower.serving.storage import ListedFiles

FOLDER = "ranker"
_DESCRIBED = f"{FOLDER}/ranker.json"
_TREES = f"{FOLDER}/trees.txt"
_MEMORY = f"{FOLDER}/memory.safetensors"


def write_ranker(folder: Path, ranker: Ranker) -> None:
    """Write a second stage into the folder of a bundle.

    Raises:
        OSError: The disk is full, or the like.
    """
    (folder / FOLDER).mkdir()
    memory = ranker.memory
    described: dict[str, Any] = {
        "inputs": list(ranker.names),
        "depth": ranker.depth,
        "item_columns": list(ranker.item_columns),
        "query_columns": list(ranker.query_columns),
        "figures": dict(ranker.figures),
    }
    arrays: dict[str, npt.NDArray[Any]] = {"counts": memory.counts}
    if memory.follows is not None:
        arrays |= {f"follows.{name}": each for name, each in vars(memory.follows).items()}
    if memory.times is not None:
        arrays["times.keys"] = memory.times.keys
        described |= {"first": memory.times.first, "span": memory.times.span}
    storage.write_texts(
        folder, {_TREES: ranker.trees, _DESCRIBED: json.dumps(described, indent=2) + "\n"}
    )
    storage.save_arrays(folder / _MEMORY, arrays)


def read_ranker(
    files: ListedFiles, num_item_rows: int, queries: SideTransforms, items: SideTransforms
) -> Ranker | None:
    """Return the second stage of a bundle, or None.

    Args:
        files: Of the bundle.
        num_item_rows: Rows of the items.
        queries: The features of the queries.
        items: The features of the items.

    Raises:
        ValueError: A file holds something that we never write.
    """
    if _DESCRIBED not in files:
        return None
    described = files.json(_DESCRIBED)
    names = tuple(map(str, described["inputs"]))
    depth = RerankConfig(candidates=described["depth"]).candidates
    figures = described["figures"]
    if not isinstance(figures, dict) or figures.get("kept") is not True:
        raise ValueError("the figures of the second stage must say that it was kept")
    known = columns_of(items.features, queries.features)
    stated = [list(map(str, described[f"{side}_columns"])) for side in ("item", "query")]
    for own, columns in zip(known, stated, strict=True):
        missing = [name for name in columns if name not in own]
        if missing:
            raise ValueError(
                f"the second stage reads {missing[0]!r}, which is no column of the bundle"
            )
    trees = plain_trees(files.text(_TREES), len(names))
    arrays = storage.load_arrays(files.path(_MEMORY))
    memory = _memory_of(arrays, described, num_item_rows)
    return Ranker(trees, names, depth, memory, tuple(stated[0]), tuple(stated[1]), figures)


def _memory_of(
    arrays: Mapping[str, npt.NDArray[Any]], described: Mapping[str, Any], num_item_rows: int
) -> Memory:
    counts = arrays["counts"]
    check_array("the counts of the second stage", counts, (None,), np.float32, least=0)
    if len(counts) > num_item_rows:
        raise ValueError(f"the second stage counts {len(counts)} rows of {num_item_rows}")
    follows = times = None
    if "follows.offsets" in arrays:
        follows = Follows(
            **{name: arrays[f"follows.{name}"] for name in ("offsets", "item_rows", "near", "next")}
        )
        _check_follows(follows, num_item_rows)
    if "times.keys" in arrays:
        keys, first, span = (
            arrays["times.keys"],
            float(described["first"]),
            float(described["span"]),
        )
        check_array("the times of the second stage", keys, (None,), np.int64, least=0)
        if not (np.isfinite(first) and np.isfinite(span) and span > 0):
            raise ValueError(f"the span of the second stage must be above 0, got {span}")
        if (np.diff(keys) < 0).any() or keys[-1] >> 32 >= num_item_rows:
            raise ValueError("the times of the second stage must be ascending, of known rows")
        times = ItemTimes(keys, first, span)
    return Memory(counts, follows, times)


def _check_follows(follows: Follows, num_item_rows: int) -> None:
    offsets, num = follows.offsets, len(follows.item_rows)
    check_array("what follows what", offsets, (None,), np.int64, least=0, most=num)
    is_whole = offsets[0] == 0 and offsets[-1] == num and (np.diff(offsets) >= 0).all()
    if not is_whole or len(offsets) > num_item_rows + 1:
        raise ValueError("the offsets of what follows what must rise from 0 to its end")
    if num:
        bounds = {"least": 0, "most": num_item_rows - 1}
        check_array("what follows what", follows.item_rows, (num,), np.int32, **bounds)
    for weights in (follows.near, follows.next):
        if weights.shape != (num,) or weights.dtype != np.float32 or not np.isfinite(weights).all():
            raise ValueError(f"the weights of what follows what must be {num} float32, finite")
