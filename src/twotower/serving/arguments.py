"""What a caller may describe queries and items with, brought into one form."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

Id = int | str
FeatureLines = Mapping[str, object] | Sequence[Mapping[str, object]] | pl.DataFrame


@dataclass(frozen=True)
class GivenFeatures:
    """Features of ``n`` queries or items, as a caller gave them.

    Args:
        frame: ``n`` lines; null where a line lacks a column.
        lines_with: Column -> ``(n,)`` bool, which lines gave it. A null that is given is given.
    """

    frame: pl.DataFrame
    lines_with: Mapping[str, npt.NDArray[np.bool_]]

    def __len__(self) -> int:
        """Number of lines."""
        return len(self.frame)


def queries_of(
    query_id: object, features: FeatureLines | None, history: object
) -> tuple[list[Id | None], GivenFeatures | None, list[list[Id]] | None, bool]:
    """Return ids, feature lines and histories of equal length, and whether one query was meant.

    Raises:
        ValueError: Nothing describes a query, the lists differ in length, or an argument is of a
            form that cannot be read.
    """
    ids: list[Id | None] | None = None
    lists: list[list[Id]] | None = None
    several = False
    if query_id is not None:
        several = _is_list(query_id)
        ids = plain(query_id) if several else plain([query_id])
    given_features = None
    if features is not None:
        several |= not isinstance(features, Mapping)
        given_features = features_of(features)
    if history is not None:
        entries = ids_of(history, what="history")
        if any(_is_list(entry) for entry in entries):
            several = True
            lists = [ids_of(entry, what="each history") for entry in entries]
        else:
            lists = [entries]
    lengths = {
        name: len(given)
        for name, given in (("query_id", ids), ("features", given_features), ("history", lists))
        if given is not None
    }
    if not lengths:
        raise ValueError("a query needs a query_id, features or a history, got none of them.")
    if len(set(lengths.values())) > 1:
        said = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise ValueError(f"query_id, features and history must be of equal length, got {said}.")
    num = next(iter(lengths.values()))
    return ids if ids is not None else [None] * num, given_features, lists, not several


def ids_of(given: Any, *, what: str) -> list[Id]:
    """Return a list of ids as plain Python values.

    Raises:
        ValueError: It is no list; a string is one id, not a list of characters.
    """
    if not _is_list(given):
        raise ValueError(f"{what} must be a list of ids, got {given!r}; put it in brackets.")
    return plain(given)


def features_of(features: FeatureLines) -> GivenFeatures:
    """Return lines of features as a table, with what each line gave.

    Raises:
        ValueError: It is neither a mapping, nor a list of mappings, nor a polars frame.
    """
    if isinstance(features, pl.DataFrame):
        everywhere = np.ones(len(features), np.bool_)
        return GivenFeatures(features, dict.fromkeys(features.columns, everywhere))
    lines = [features] if isinstance(features, Mapping) else list(features)
    if not all(isinstance(line, Mapping) for line in lines):
        raise ValueError(
            "features must be a mapping of columns to values, a list of such mappings or a polars "
            f"frame, got {type(features).__name__}."
        )
    names = list(dict.fromkeys(name for line in lines for name in line))
    columns = [pl.Series(name, [line.get(name) for line in lines], strict=False) for name in names]
    frame = pl.DataFrame(columns or {"": [None] * len(lines)})
    return GivenFeatures(
        frame, {name: np.array([name in line for line in lines], np.bool_) for name in names}
    )


def _is_list(given: object) -> bool:
    if isinstance(given, (str, bytes, Mapping)) or not isinstance(given, Iterable):
        return False
    return getattr(given, "ndim", 1) > 0  # numpy's and torch's scalars can be iterables, too


def plain(values: Any) -> list[Any]:
    """Return Python's own numbers in place of numpy's and torch's."""
    return [v.item() if getattr(v, "ndim", None) == 0 else v for v in values]
