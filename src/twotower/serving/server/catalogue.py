"""Changes of a catalogue: checked, read back from the journal, and applied to the model that answers."""

import uuid
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from twotower.errors import JournalError
from twotower.features.base import FeatureArrays
from twotower.features.sentences import SentenceTransform
from twotower.features.tuned import TokenIdsTransform
from twotower.serving.arguments import Id, features_of
from twotower.serving.live_items import lines_of, without_ids
from twotower.serving.retriever import Retriever
from twotower.serving.server.journal import JournalReader
from twotower.serving.server.telemetry import LOG
from twotower.vocab import FIRST_ROW

_PUT_AT_ONCE = 4096
"""Items whose vectors are made in one call."""
_REMEMBERED = 10_000
"""Changes whose outcome is kept until it is asked for."""


@dataclass(frozen=True, eq=False)
class Change:
    """Items to put in, or ids to take out.

    Args:
        items: Lines with an id; None to take items out.
        item_ids: Ids; None to put items in.
    """

    items: list[dict[str, Any]] | None = None
    item_ids: list[Id] | None = None


@dataclass(frozen=True)
class Changed:
    """The outcome of a change.

    Args:
        items: The number of items that were put in, or that were there and are no more.
        ignored: Given columns that the catalogue does not have.
        without_features: The number of new items of which the model reads nothing.
        model: The digest of the model.
    """

    items: int
    ignored: list[str]
    without_features: int
    model: str


@dataclass(frozen=True)
class Written:
    """A change that is on the disk.

    Args:
        token: Names the change among the records of the journal.
        expected: The outcome as it was known before the write. Items that are to be taken out may have come
            or gone since.
    """

    token: str
    expected: Changed


class Catalogue:
    """The catalogue of an opened bundle, with the changes since.

    Only the thread that answers may call the methods, except for ``prepare`` and ``forget``.

    Args:
        retriever: The retriever that answers.
        digest: The digest of its bundle.
        journal: The file of the changes, which is read as soon as it is there; None for no journal.

    Raises:
        JournalError: The journal cannot be opened.
    """

    def __init__(self, retriever: Retriever, digest: str, journal: str | Path | None) -> None:
        self._retriever = retriever
        self._digest = digest
        self._journal = None if journal is None else JournalReader(journal)
        self._is_read, self._told = False, ""
        self._changed: OrderedDict[str, Changed | Exception] = OrderedDict()
        self._prepared: dict[str, _Put] = {}

    def close(self) -> None:
        """Close the journal. The model still answers, with the changes so far."""
        journal, self._journal = self._journal, None
        if journal is not None:
            journal.close()

    @property
    def num_dead(self) -> int:
        """Rows of items that came and went since the bundle was opened: they cost time and memory."""
        contents = self._retriever.contents
        num_first = FIRST_ROW + len(contents.item_vectors)
        return 0 if contents.gone is None else int(contents.gone[num_first:].sum())

    def catch_up(self) -> None:
        """Apply the changes since the last call, by any process. Changes that do not fit are left out.

        If the journal can no longer be read, the log says so once, and the catalogue stays as it is.

        Raises:
            JournalError: The journal cannot be read the first time.
        """
        try:
            records = [] if self._journal is None else self._journal.more()
        except JournalError as error:
            if not self._is_read:
                raise
            if str(error) != self._told:
                LOG.error("the journal cannot be read", error=str(error))
            self._told = str(error)
            return
        self._is_read, self._told = True, ""
        puts: list[_Put] = []
        ids: set[Id] = set()
        for record in records:
            is_delete = "delete" in record
            for put in () if is_delete else self._read(record):
                if len(ids) >= _PUT_AT_ONCE or not ids.isdisjoint(put.ids):
                    self._put(puts)
                    puts, ids = [], set()
                puts.append(put)
                ids |= put.ids
            if is_delete:
                self._put(puts)
                puts, ids = [], set()
                self._take_out(record)
        self._put(puts)

    def _take_out(self, record: dict[str, Any]) -> None:
        try:
            num = self._retriever.delete_items(record["delete"])
            self._note(record, Changed(num, [], 0, self._digest))
        except Exception as error:
            self._left_out(record, error)

    def prepare(self, change: Change) -> tuple[dict[str, Any], Written]:
        """Return the journal's record of a change, and its outcome once it is on the disk.

        The change is transformed here, so that the thread that answers need not do it.

        The record has ids and values in the form of the catalogue, so that they mean the same whatever else
        is read with them. Columns that the catalogue does not have stay as they were given.

        Raises:
            ValueError: The change does not fit; see ``lines_of``.
        """
        token = uuid.uuid4().hex
        contents = self._retriever.contents
        table = contents.items
        if change.items is None:
            keys = table.ids.keys_of(change.item_ids or ()).drop_nulls()
            _, num = without_ids(contents, keys.to_list())
            expected = Changed(num, [], 0, self._digest)
            return {"delete": keys.to_list(), "token": token}, Written(token, expected)
        put = self._fitted({"column": table.id_column, "put": change.items, "token": token})
        fitted = put.lines.to_dicts()
        put.record["put"] = [
            {name: fits.get(name, value) for name, value in line.items()}
            for line, fits in zip(change.items, fitted, strict=True)
        ]
        # A tokenizer is for one thread at a time.
        of_one_thread = (SentenceTransform, TokenIdsTransform)
        if not any(isinstance(each, of_one_thread) for each in table.transforms.transforms):
            put = replace(put, arrays=table.transforms.apply(put.lines))
        self._prepared[token] = put
        num_empty = 0
        if put.arrays is not None:
            num_empty = int((~table.transforms.say_something(put.arrays)).sum())
        expected = Changed(len(put.lines), put.ignored, num_empty, self._digest)
        return put.record, Written(token, expected)

    def forget(self, records: Sequence[dict[str, Any]]) -> None:
        """Forget the prepared items of records that could not be written."""
        for record in records:
            self._prepared.pop(record["token"], None)

    def _fitted(self, record: dict[str, Any]) -> "_Put":
        given, table = features_of(record["put"]), self._retriever.contents.items
        ignored = [name for name in given.lines_with if name not in table.frame.columns]
        lines = lines_of(self._retriever.contents, given)
        return _Put(record, lines, None, ignored, set(lines[table.id_column].to_list()))

    def _read(self, record: dict[str, Any]) -> "list[_Put]":
        """Return the items to put in; line by line if the lines do not fit together."""
        prepared = self._prepared.pop(record.get("token", ""), None)
        if prepared is not None:
            return [prepared]
        try:
            return [self._fitted(record)]
        except Exception as error:
            lines = record.get("put")
            alone = [{"put": [line]} for line in lines] if isinstance(lines, list) else []
            puts = [put for each in alone for put in self._read(each)] if len(alone) > 1 else []
            self._left_out(record, error)
            return puts

    def _put(self, puts: "Sequence[_Put]") -> None:
        """Put in items that are all different, so that the items' tower and the index see one batch."""
        if not puts:
            return
        try:
            lines = pl.concat([put.lines for put in puts])
            transforms = self._retriever.contents.items.transforms
            arrays = _joined([put.arrays for put in puts]) or transforms.apply(lines)
            is_empty = ~transforms.say_something(arrays)
            self._retriever.put_lines(lines, arrays)
        except Exception as error:
            if len(puts) == 1:
                self._left_out(puts[0].record, error)
            for put in puts if len(puts) > 1 else ():
                self._put([put])
            return
        ends = np.cumsum([len(put.lines) for put in puts])
        for put, empty in zip(puts, np.split(is_empty, ends[:-1]), strict=True):
            changed = Changed(len(put.lines), put.ignored, int(empty.sum()), self._digest)
            self._note(put.record, changed)

    def _left_out(self, record: dict[str, Any], error: Exception) -> None:
        """Note that a change does not fit this model. The journal keeps it for one that it fits."""
        LOG.error("a change of the journal does not fit this model", exc_info=error)
        self._note(record, error)

    def _note(self, record: dict[str, Any], changed: Changed | Exception) -> None:
        if "token" in record:
            self._changed[record["token"]] = changed
            if len(self._changed) > _REMEMBERED:
                self._changed.popitem(last=False)

    def changed(self, written: Written) -> Changed | Exception:
        """Return the outcome of a change."""
        self.catch_up()
        # If another model took over meanwhile, it may have read a compacted journal, without this token.
        return self._changed.pop(written.token, written.expected)


@dataclass(frozen=True, eq=False)
class _Put:
    """Items to put in, in the form of the catalogue.

    Args:
        record: The record of the journal.
        lines: The items as lines of the catalogue's table.
        arrays: Their transformed features; None if they are still to be transformed.
        ignored: Given columns that the catalogue does not have.
        ids: The ids of the items.
    """

    record: dict[str, Any]
    lines: pl.DataFrame
    arrays: FeatureArrays | None
    ignored: list[str]
    ids: set[Id]


def _joined(arrays: Sequence[FeatureArrays | None]) -> FeatureArrays | None:
    """Return the concatenated features; None if some are missing."""
    known = [each for each in arrays if each is not None]
    if len(known) < len(arrays):
        return None
    return {name: np.concatenate([each[name] for each in known]) for name in known[0]}
