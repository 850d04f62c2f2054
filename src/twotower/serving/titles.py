"""What items and queries are called, where people read of them."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import polars as pl

from twotower.vocab import FIRST_ROW

if TYPE_CHECKING:
    from twotower.serving.bundle import SideContents

ADDRESSES = ("link", "image")
"""Forms of columns that hold addresses, which say where to find something and not what it is."""

_MAX_TITLE = 90
_TITLES = ("title", "name", "label", "text", "description")
_CHINESE_TITLES = ("标题", "名称", "品名", "片名", "书名", "名字", "描述")
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufffe\uffff]+")


def clean(value: Any, longest: int = _MAX_TITLE) -> str:
    """Return a value as one line of text: no control or direction characters, and not too long."""
    text = " ".join(_UNPRINTABLE.sub(" ", str(value)).split())
    return text if len(text) <= longest else text[: longest - 1].rstrip() + "…"


def named_title(names: Iterable[str]) -> str | None:
    """Return the first column whose name says a title, the clearest word first; None without any."""
    named = {name.lower(): name for name in reversed(list(names))}
    for word in (*_TITLES, *_CHINESE_TITLES):
        endings = ("_" + word, " " + word) if word.isascii() else word
        for lower, name in named.items():
            if lower == word or lower.endswith(endings):
                return name
    return None


@dataclass(frozen=True, eq=False)
class Titles:
    """What a side's entities are called: by a column of titles where there is one, else by id.

    Args:
        table: The side.
    """

    table: "SideContents"

    @cached_property
    def column(self) -> str | None:
        """The column of titles: of that name, or the first column of text that differs by row."""
        frame = self.table.frame
        features = {
            feature.name: feature
            for feature in self.table.transforms.features
            if feature.name in frame.columns
            and feature.meaning != "id"
            and feature.form not in ADDRESSES
            and frame[feature.name].dtype == pl.String
        }
        named = named_title(features)
        if named is not None:
            return named
        shown = [name for name, feature in features.items() if feature.meaning in ("shown", "text")]
        return next((name for name in shown if frame[name].n_unique() * 2 > len(frame)), None)

    def of(self, rows: npt.NDArray[np.integer]) -> list[str]:
        """Return what the entities at ``rows`` are called."""
        positions = rows.astype(np.int64) - FIRST_ROW
        ids = self.table.ids.ids.gather(positions).to_list()
        if self.column is None:
            return [clean(id_) for id_ in ids]
        titles = self.table.frame[self.column].gather(positions).to_list()
        pairs = zip(titles, ids, strict=True)
        return [clean(id_ if title in (None, "") else title) or str(id_) for title, id_ in pairs]
