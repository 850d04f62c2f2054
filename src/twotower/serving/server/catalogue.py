"""What is written to a catalogue: checked, read back from the journal, and put into what answers."""

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
from twotower.features.token_ids import TokenIdsTransform
from twotower.serving.arguments import Id, features_of
from twotower.serving.live_items import lines_of, without_ids
from twotower.serving.retriever import Retriever
from twotower.serving.server.journal import JournalReader
from twotower.serving.server.telemetry import LOG
from twotower.vocab import FIRST_ROW

_PUT_AT_ONCE = 4096
"""Items whose vectors are made in one call."""
_REMEMBERED = 10_000
"""Changes whose outcome is remembered until it is asked for."""


@dataclass(frozen=True, eq=False)
class Change:
    """Items that are to be put in, or ids that are to be taken out.

    Args:
        items: Lines with an id; None to take out.
        item_ids: Ids; None to put in.
    """

    items: list[dict[str, Any]] | None = None
    item_ids: list[Id] | None = None


@dataclass(frozen=True)
class Changed:
    """What a change did.

    Args:
        items: How many items were put in, or were there and are no more.
        ignored: Columns that were told and that the catalogue does not have.
        without_features: Items that were put in of which the model reads nothing.
        model: Digest of the model.
    """

    items: int
    ignored: list[str]
    without_features: int
    model: str


@dataclass(frozen=True)
class Written:
    """A change that is on the disk.

    Args:
        token: Names it among the journal's records.
        expected: Its outcome as far as it was known before it was written: the items that are to be taken
            out may have come or gone since.
    """

    token: str
    expected: Changed


class Catalogue:
    """The catalogue of an opened bundle, with what was written since.

    All but ``prepare`` and ``forget`` is for the thread that answers.

    Args:
        retriever: What answers.
        digest: Of its bundle.
        journal: File of the changes, which is read as soon as it is there; None for none.

    Raises:
        JournalError: The journal cannot be opened.
    """

    def __init__(self, retriever: Retriever, digest: str, journal: str | Path | None) -> None:
        self._retriever = retriever
        self._digest = digest
        self._journal = None if journal is None else JournalReader(journal, must_exist=False)
        self._is_read, self._told = False, ""
        self._changed: OrderedDict[str, Changed | Exception] = OrderedDict()
        self._prepared: dict[str, _Put] = {}

    def close(self) -> None:
        """Let go of the journal; the model answers on, from what it has taken in."""
        journal, self._journal = self._journal, None
        if journal is not None:
            journal.close()

    @property
    def num_dead(self) -> int:
        """Rows of the catalogue that came since it was opened and are no more: they only cost."""
        contents = self._retriever.contents
        num_first = FIRST_ROW + len(contents.item_vectors)
        return 0 if contents.gone is None else int(contents.gone[num_first:].sum())

    def catch_up(self) -> None:
        """Take in what was written since, by any process. What this catalogue cannot hold is left out.

        Where the journal cannot be read any more, that is logged once, and the catalogue stays as it is.

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
        if not records:
            return
        puts: list[_Put] = []
        ids: set[Id] = set()

        def put_all() -> None:
            self._put(puts)
            puts.clear()
            ids.clear()

        for record in records:
            if "delete" in record:
                put_all()
                self._take_out(record)
                continue
            for put in self._read(record):
                if len(ids) >= _PUT_AT_ONCE or not ids.isdisjoint(put.ids):
                    put_all()
                puts.append(put)
                ids |= put.ids
        put_all()

    def _take_out(self, record: dict[str, Any]) -> None:
        try:
            num = self._retriever.delete_items(record["delete"])
            self._note(record, Changed(num, [], 0, self._digest))
        except Exception as error:
            self._left_out(record, error)

    def prepare(self, change: Change) -> tuple[dict[str, Any], Written]:
        """Return the journal's record of a change, and what to tell once it is on the disk.

        The change is read here, so that the thread that answers need not read it.

        Ids and values are written as the catalogue has them, so that they mean the same whatever else is
        read beside them; columns that it does not have, as they were told.

        Raises:
            ValueError: It does not fit; see ``lines_of``.
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
        """Forget what was prepared of records that could not be written."""
        for record in records:
            self._prepared.pop(record["token"], None)

    def _fitted(self, record: dict[str, Any]) -> "_Put":
        given, table = features_of(record["put"]), self._retriever.contents.items
        ignored = [name for name in given.lines_with if name not in table.frame.columns]
        lines = lines_of(self._retriever.contents, given)
        return _Put(record, lines, None, ignored, set(lines[table.id_column].to_list()))

    def _read(self, record: dict[str, Any]) -> "list[_Put]":
        """Return what is to be put in; line by line where the lines do not fit together."""
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
        """Put in what has no item in common, all at once: the items' tower and the index see one batch."""
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
        start = 0
        for put in puts:
            end = start + len(put.lines)
            empty = int(is_empty[start:end].sum())
            self._note(put.record, Changed(end - start, put.ignored, empty, self._digest))
            start = end

    def _left_out(self, record: dict[str, Any], error: Exception) -> None:
        """Note that this model cannot hold a change, which the journal keeps for one that can."""
        LOG.error("a change of the journal does not fit this model", exc_info=error)
        self._note(record, error)

    def _note(self, record: dict[str, Any], changed: Changed | Exception) -> None:
        if "token" in record:
            self._changed[record["token"]] = changed
            if len(self._changed) > _REMEMBERED:
                self._changed.popitem(last=False)

    def changed(self, written: Written) -> Changed | Exception:
        """Return what a change did."""
        self.catch_up()
        # A model that took over meanwhile may have read it from a journal that was written anew.
        return self._changed.pop(written.token, written.expected)


@dataclass(frozen=True, eq=False)
class _Put:
    """A record of items to put in, read.

    Args:
        record: Of the journal.
        lines: Of the catalogue's table.
        arrays: Their features, transformed; None where that is still to be done.
        ignored: Columns that it does not have.
        ids: Of the items.
    """

    record: dict[str, Any]
    lines: pl.DataFrame
    arrays: FeatureArrays | None
    ignored: list[str]
    ids: set[Id]


def _joined(arrays: Sequence[FeatureArrays | None]) -> FeatureArrays | None:
    """Return the features of one put after the other; None where some are not there."""
    known = [each for each in arrays if each is not None]
    if len(known) < len(arrays):
        return None
    return {name: np.concatenate([each[name] for each in known]) for name in known[0]}
