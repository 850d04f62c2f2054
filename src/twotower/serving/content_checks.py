"""Checks of the contents of a bundle's files. Digests alone don't help against a bad bundle."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import torch

from twotower.features.schema import Feature, texts_of
from twotower.histories import Histories
from twotower.index.lexical import LexicalSettings
from twotower.index.lists import NUM_LEVELS, Lists
from twotower.vocab import FIRST_ROW, Vocabulary

_CHUNK = 2**22


def check_array(
    what: str,
    array: npt.NDArray[Any],
    shape: tuple[int | None, ...],
    dtype: type[np.generic],
    *,
    least: float | None = None,
    most: float | None = None,
) -> None:
    """Refuse an array with a wrong shape or dtype, or with numbers that are not finite or out of range.

    Args:
        what: The name of the array in messages.
        array: The array.
        shape: The expected shape; None for any length above 0.
        dtype: The expected dtype.
        least: The smallest number that is allowed; None for any.
        most: The largest number that is allowed; None for any.

    Raises:
        ValueError: The array does not fit.
    """
    fits = len(array.shape) == len(shape) and all(
        found == wanted if wanted is not None else found > 0
        for found, wanted in zip(array.shape, shape, strict=False)
    )
    if not fits or array.dtype != dtype:
        wanted_shape = " x ".join("any" if size is None else str(size) for size in shape)
        found_shape = " x ".join(map(str, array.shape))
        raise ValueError(
            f"{what} must be {wanted_shape} {np.dtype(dtype)}, got {found_shape} {array.dtype}"
        )
    check_finite(what, torch.from_numpy(array))
    if array.size and least is not None and array.min() < least:
        raise ValueError(f"{what} must be at least {least:g}, got {array.min()}")
    if array.size and most is not None and array.max() > most:
        raise ValueError(f"{what} must be at most {most:g}, got {array.max()}")


def check_finite(what: str, tensor: torch.Tensor, *, infinite: bool = False) -> None:
    """Refuse a tensor with NaN or infinite numbers.

    Args:
        what: The name of the tensor in messages.
        tensor: The tensor, of any dtype.
        infinite: Whether infinite numbers are allowed.

    Raises:
        ValueError: There is such a number.
    """
    if not tensor.is_floating_point() or bool(torch.isfinite(tensor.sum())):
        return
    # An infinite sum may also come from large finite numbers.
    for part in torch.split(tensor.reshape(-1), _CHUNK):
        found = part[torch.isnan(part)] if infinite else part[~torch.isfinite(part)]
        if len(found):
            raise ValueError(f"{what} must hold finite numbers, got {float(found[0])}")


def check_table(side: str, ids: Vocabulary, id_column: object, frame: pl.DataFrame) -> None:
    """Refuse a table that does not belong to the ids of its side.

    Raises:
        ValueError: The table lacks the id column, or has another number of rows.
    """
    if id_column not in frame.columns:
        raise ValueError(f"the {side} table must have the column {id_column!r}")
    if len(frame) != len(ids):
        raise ValueError(f"the {side} table must have {len(ids)} lines, got {len(frame)}")


def check_ragged(
    what: str,
    ragged: Histories,
    columns: Mapping[str, npt.NDArray[Any]],
    num_queries: int,
    num_item_rows: int,
) -> None:
    """Refuse histories or targets that do not belong to the queries and items of a bundle.

    Args:
        what: Their name in messages.
        ragged: One history per query row.
        columns: Arrays with one number per event, by name.
        num_queries: Number of query rows, including the reserved ones.
        num_item_rows: Number of item rows, including the reserved ones.

    Raises:
        ValueError: They do not fit.
    """
    num_events = len(ragged.item_rows)
    offsets = ragged.offsets
    check_array(f"the offsets of {what}", offsets, (num_queries + 1,), np.int64)
    if offsets[0] != 0 or offsets[-1] != num_events or (np.diff(offsets) < 0).any():
        raise ValueError(f"the offsets of {what} must rise from 0 to {num_events}")
    bounds = {"least": FIRST_ROW, "most": num_item_rows - 1}
    check_array(f"the items of {what}", ragged.item_rows, (num_events,), np.int32, **bounds)
    if ragged.times is not None:
        check_array(f"the times of {what}", ragged.times, (num_events,), np.float64)
    kinds: dict[str, type[np.generic]] = {
        "parts": np.uint8,
        "weights": np.float32,
        "is_target": np.bool_,
        "labels": np.float32,
    }
    for name, column in columns.items():
        if name not in kinds:
            raise ValueError(f"{what} must hold {', '.join(kinds)}, got {name}")
        check_array(f"{name} of {what}", column, (num_events,), kinds[name])


def check_words(
    metrics: Mapping[str, Any], of_queries: Iterable[Feature], of_items: Iterable[Feature]
) -> None:
    """Refuse a weight of the words that cannot be served.

    Raises:
        LookupError, TypeError, ValueError: It is not in [0, 1], a side has no text, or the settings of BM25
            are invalid.
    """
    if "words" not in metrics:
        return
    words = metrics["words"]
    LexicalSettings.of_json(words)
    if not 0 <= words["share"] <= 1:
        raise ValueError(f"the share of the words must be in 0..1, got {words['share']}")
    if words["share"] and not (texts_of(of_queries) and texts_of(of_items)):
        raise ValueError("a share of the words must stand beside text on both sides")


def check_lists(lists: Lists, num_items: int, dim: int) -> None:
    """Refuse lists of an approximate index that do not fit the catalogue.

    Raises:
        ValueError: They do not fit.
    """
    centres, spreads, num_lists = lists.centres.numpy(), lists.spreads.numpy(), len(lists.centres)
    check_array("the centres of the index", centres, (None, dim), np.float32)
    check_array("the spreads of the index", spreads, (num_lists,), np.float32, least=0)
    bounds = {"least": 0, "most": num_lists - 1}
    check_array("the items of the index", lists.list_of, (num_items,), np.int32, **bounds)
    for depth, probes in lists.probes.items():
        if depth < 1 or type(probes) is not int or not 1 <= probes <= num_lists:
            raise ValueError(f"probes of the index must be in 1..{num_lists}, got {probes!r}")
    if lists.levels is None and lists.rescored:
        raise ValueError("an index without levels must not say what is scored again")
    if lists.levels is not None:
        check_array("the levels of the index", lists.levels.numpy(), (dim, NUM_LEVELS), np.float32)
        if lists.rescored.keys() != lists.probes.keys():
            raise ValueError("an index with levels must say for each depth what is scored again")
    for depth, rescored in lists.rescored.items():
        if type(rescored) is not int or rescored <= depth:
            raise ValueError(f"what is scored again must be more than {depth}, got {rescored!r}")
