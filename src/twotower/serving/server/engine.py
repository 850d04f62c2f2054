"""What answers: a retriever that can be exchanged for another while it is asked."""

import json
import uuid
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl

from twotower.errors import BundleError
from twotower.features.base import FeatureArrays
from twotower.features.schema import TEXTS
from twotower.features.sentences import SentenceTransform
from twotower.features.token_ids import TokenIdsTransform
from twotower.index.approximate import depth_of
from twotower.rules.kinds import Rule
from twotower.serving.answers import Recommendation
from twotower.serving.arguments import TIME, Event, Id, features_of
from twotower.serving.bundle import MANIFEST, Contents
from twotower.serving.live import lines_of
from twotower.serving.retriever import Retriever
from twotower.serving.server.journal import Journal, JournalReader
from twotower.serving.server.lookup import filter_example, title_columns
from twotower.serving.server.pointer import digest_of
from twotower.serving.server.telemetry import LOG
from twotower.vocab import FIRST_ROW


@dataclass(frozen=True, eq=False)
class Question:
    """One query, as ``Retriever.recommend`` takes it."""

    query_id: Id | None
    features: dict[str, Any] | None
    history: Sequence[Event] | None
    k: int
    exclude_seen: bool | None
    among: tuple[Id, ...] | None
    without: tuple[Id, ...] | None
    filter: str | None
    words: float | Literal["auto"]
    strict: bool
    columns: bool
    rules: tuple[Rule, ...] = ()
    ignored: tuple[str, ...] = ()
    """Features that were told and that the model does not know."""

    @property
    def asks_alike(self) -> tuple[object, ...]:
        """What questions must have in common to be answered in one call."""
        told = (self.query_id is None, _kinds(self.features), _kinds_of_events(self.history))
        choice = (self.exclude_seen, self.among, self.without, self.filter, self.words, self.strict)
        # By rules, the answer to a smaller k is not the first part of that to a larger one.
        depth = (self.rules, self.k) if self.rules else (depth_of(self.k),)
        return (*told, *choice, *depth)


@dataclass(frozen=True, eq=False)
class Answered:
    """An answer and the model that gave it.

    Args:
        answer: Of a question.
        model: What gave it.
        lines: The found items' lines, where they were asked for.
        ignored: Features that were told and that it does not know.
    """

    answer: Recommendation
    model: "Model"
    lines: list[dict[str, Any]] | None
    ignored: tuple[str, ...] = ()


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
        change: What was asked for.
        token: Names it among the journal's records.
    """

    change: Change
    token: str


class Model:
    """An opened bundle with a name, and what was written to its catalogue since.

    Args:
        path: Folder of the bundle.
        journal: File of what was written, which is there; None where nothing can be.

    Raises:
        BundleError: It cannot be opened.
    """

    def __init__(self, path: str | Path, journal: str | Path | None = None) -> None:
        self.path = Path(path)
        self.retriever = Retriever.open(self.path)
        self.digest = digest_of(self.path)
        manifest = json.loads((self.path / MANIFEST).read_bytes())
        self.created: str | None = manifest.get("created")
        self.query_columns = {f.source for f in self.retriever.contents.queries.transforms.features}
        self.description = self._describe()
        self._journal = None if journal is None else JournalReader(journal)
        self._changed: OrderedDict[str, Changed | Exception] = OrderedDict()
        self._prepared: dict[str, _Put] = {}
        try:
            self.catch_up()
            self._warm()
        except BaseException:
            self.close()
            raise

    def _warm(self) -> None:
        """Ask what makes the tables that later answers read, so that nobody waits for them."""
        self.retriever.recommend(features={}, k=1)
        for item_id in self.retriever.item_ids[:1]:
            self.retriever.similar_items(item_id, k=1)
        if self.retriever.contents.metrics.get("words"):
            self.retriever.recommend("", k=1, words="auto")

    def _describe(self) -> dict[str, Any]:
        """Return what stays as it is while this bundle is open."""
        retriever = self.retriever
        contents = retriever.contents
        sides = (contents.queries.transforms, contents.items.transforms)
        figures = contents.metrics.get("model", {})
        return {
            "name": str(contents.provenance.get("data") or self.path.name),
            "created": self.created,
            "queries": len(contents.queries.ids),
            "dim": _dim(retriever),
            "query_column": contents.queries.id_column,
            "item_column": contents.items.id_column,
            "item_columns": title_columns(retriever),
            "filter_example": filter_example(retriever),
            "query_features": [
                f.source for f in sides[0].features if f.is_fed and retriever.reads(f)
            ],
            "reads_history": retriever.encoding.model.reads_history,
            "reads_text": all(any(f.kind in TEXTS for f in side.features) for side in sides),
            "figures": {k: v for k, v in figures.items() if isinstance(v, float)},
        }

    def close(self) -> None:
        """Let go of the journal; the model answers on, from what it has taken in."""
        journal, self._journal = self._journal, None
        if journal is not None:
            journal.close()

    @property
    def num_dead(self) -> int:
        """Rows of the catalogue that came since it was opened and are no more: they only cost."""
        contents = self.retriever.contents
        num_first = FIRST_ROW + len(contents.item_vectors)
        return 0 if contents.gone is None else int(contents.gone[num_first:].sum())

    def catch_up(self) -> None:
        """Take in what was written since, by any process. What this catalogue cannot hold is left out."""
        if self._journal is None or not self._journal.has_more():
            return
        puts: list[_Put] = []
        ids: set[Id] = set()

        def put_all() -> None:
            together = puts[:]
            puts.clear()
            ids.clear()
            self._put(together)

        for record in self._journal.more():
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
            num = self.retriever.delete_items(record["delete"])
            self._note(record, Changed(num, [], 0, self.digest))
        except Exception as error:
            self._left_out(record, error)

    def prepare(self, record: dict[str, Any]) -> None:
        """Read a record before it is written, in the thread that writes; the one that answers need not then.

        Raises:
            ValueError: It does not fit.
        """
        transforms = self.retriever.contents.items.transforms
        put = self._fitted(record)
        # A tokenizer is for one thread at a time.
        if not any(
            isinstance(t, (SentenceTransform, TokenIdsTransform)) for t in transforms.transforms
        ):
            put = replace(put, arrays=transforms.apply(put.lines))
        self._prepared[record["token"]] = put

    def forget(self, records: Sequence[dict[str, Any]]) -> None:
        """Forget what was prepared of records that could not be written."""
        for record in records:
            self._prepared.pop(record["token"], None)

    def _fitted(self, record: dict[str, Any]) -> "_Put":
        given, table = features_of(record["put"]), self.retriever.contents.items
        ignored = [name for name in given.lines_with if name not in table.frame.columns]
        lines = lines_of(self.retriever.contents, given)
        return _Put(record, lines, None, ignored, set(lines[table.id_column].to_list()))

    def _read(self, record: dict[str, Any]) -> "list[_Put]":
        """Return what is to be put in; line by line where the lines do not fit together."""
        prepared = self._prepared.pop(record.get("token", ""), None)
        if prepared is not None:
            return [prepared]
        try:
            return [self._fitted(record)]
        except Exception as error:
            alone = [{"put": [line]} for line in record.get("put", ())]
            puts = [put for each in alone for put in self._read(each)] if len(alone) > 1 else []
            self._left_out(record, error)
            return puts

    def _put(self, puts: "Sequence[_Put]") -> None:
        """Put in what has no item in common, all at once: the items' tower and the index see one batch."""
        if not puts:
            return
        try:
            lines = pl.concat([put.lines for put in puts])
            transforms = self.retriever.contents.items.transforms
            arrays = _joined([put.arrays for put in puts]) or transforms.apply(lines)
            is_empty = ~transforms.say_something(arrays)
            self.retriever.put_lines(lines, arrays)
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
            self._note(put.record, Changed(end - start, put.ignored, empty, self.digest))
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
        change = written.change
        num = len(change.item_ids or change.items or ())
        # A model that took over meanwhile may have read it from a journal that was written anew; what could
        # not be done is noted.
        return self._changed.pop(written.token, Changed(num, [], 0, self.digest))

    def known_features(
        self, features: dict[str, Any] | None
    ) -> tuple[dict[str, Any] | None, tuple[str, ...]]:
        """Return the features that the model knows, and the names of the others."""
        if features is None:
            return None, ()
        unknown = tuple(name for name in features if name not in self.query_columns)
        return {n: value for n, value in features.items() if n not in unknown}, unknown

    def vectors_of_items(
        self, item_ids: Sequence[Id] | None, features: list[dict[str, Any]] | None
    ) -> tuple[npt.NDArray[np.float32], list[str]]:
        """Return the vectors of known items or of described ones, and the columns that are not known.

        Raises:
            ValueError: Neither is given, or both; or an id is not in the catalogue.
        """
        if (item_ids is None) == (features is None):
            given = "neither" if features is None else "both"
            raise ValueError(f"item_ids or features must be given, got {given} of them.")
        if features is None:
            return self.retriever.encode_items(item_ids), []
        given_features, transforms = features_of(features), self.retriever.contents.items.transforms
        known = {feature.source for feature in transforms.features}
        ignored = [name for name in given_features.lines_with if name not in known]
        arrays = transforms.apply(given_features.frame)
        vectors = self.retriever.encoding.new_item_vectors(arrays)
        return np.asarray(vectors.cpu().numpy(), np.float32), ignored

    def item_id(self, item_id: Id) -> Id:
        """Return an id of the catalogue as the catalogue has it: 7 where ``"7"`` was asked."""
        ids = self.retriever.contents.items.ids
        found: Id = ids.ids_of(ids.rows_of([item_id]))[0]
        return found

    def first_unknown(self, query_ids: Sequence[Id]) -> Id | None:
        """Return the first of some queries that is not the bundle's, if there is one."""
        rows = self.retriever.contents.queries.ids.rows_of(query_ids)
        unknown = np.flatnonzero(rows < FIRST_ROW)
        return query_ids[unknown[0]] if len(unknown) else None

    def num_known(self, query_ids: Sequence[Id]) -> int:
        """Return how many of some queries are the bundle's."""
        rows = self.retriever.contents.queries.ids.rows_of(query_ids)
        return int((rows >= FIRST_ROW).sum())


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


_PUT_AT_ONCE = 4096
"""Items whose vectors are made in one call."""
_REMEMBERED = 10_000
"""Changes whose outcome is remembered until it is asked for."""


class Engine:
    """Answers questions from the model that is current.

    Args:
        path: Folder of the first bundle.
        journal: See ``Model``.
        ids_seen: Called with how many query ids of a batch are known, and how many are not.

    Raises:
        BundleError: It cannot be opened.
    """

    def __init__(
        self,
        path: str | Path,
        journal: str | Path | None = None,
        ids_seen: Callable[[int, int], None] = lambda _known, _unknown: None,
    ) -> None:
        self._ids_seen = ids_seen
        self._journal = None if journal is None else Journal(journal)
        self._journal_path = journal
        self.model = Model(path, journal)
        """The current one. A name for one object: whoever has taken it keeps all of that model."""

    def exchange(self, path: str | Path) -> Model:
        """Open another bundle and answer from it from now on; the current one stays where that fails.

        Raises:
            BundleError: It cannot be opened, or its items or vectors are of another kind than those that
                clients know.
        """
        new = Model(path, self._journal_path)
        mine, other = self.model.retriever, new.retriever
        for what, now, then in (
            ("the width of its vectors", _dim(mine), _dim(other)),
            ("the column of its item ids", mine.item_column, other.item_column),
        ):
            if now != then:
                new.close()
                raise BundleError(
                    f"the bundle {str(path)!r} cannot take over: {what} must be {now!r}, "
                    f"got {then!r}; start another server for it."
                )
        self.model = new
        return new

    def answer(self, questions: Sequence[Question]) -> list[Answered | Exception]:
        """Return an answer to each question, or the error that it deserves; all from one model."""
        model = self.model
        model.catch_up()
        self._count_ids(model, questions)
        questions = [_without_unknown(model, question) for question in questions]
        groups: dict[tuple[object, ...], list[int]] = {}
        for place, question in enumerate(questions):
            groups.setdefault(question.asks_alike, []).append(place)
        answers: dict[int, Answered | Exception] = {}
        for places in groups.values():
            answers |= _together(model, {place: questions[place] for place in places})
        return [answers[place] for place in range(len(questions))]

    def _count_ids(self, model: Model, questions: Sequence[Question]) -> None:
        ids = [question.query_id for question in questions if question.query_id is not None]
        if ids:
            known = model.num_known(ids)
            self._ids_seen(known, len(ids) - known)

    def write(self, changes: Sequence[Change]) -> list[Written | Exception]:
        """Write changes down, all of which are on the disk when this returns; or say why one was not.

        Not in the thread that answers: the disk takes its time.

        Raises:
            BundleError: The disk is full, say; none was written then.
        """
        assert self._journal is not None
        model = self.model
        records: list[dict[str, Any]] = []
        told: list[Written | Exception] = []
        for change in changes:
            written = Written(change, uuid.uuid4().hex)
            try:
                record = _record(model.retriever.contents, written)
                if "put" in record:
                    model.prepare(record)
                records.append(record)
                told.append(written)
            except ValueError as error:
                told.append(error)
        try:
            self._journal.append(records)
        except BaseException:
            model.forget(records)
            raise
        return told

    def changed(self, written: Sequence[Written]) -> list[Changed | Exception]:
        """Return what changes did: from now on they are in every answer."""
        return [self.model.changed(each) for each in written]

    def compact(self) -> None:
        """Write the journal anew with the last change of each item; in the thread that writes."""
        if self._journal is not None:
            self._journal.compact()


def _record(contents: Contents, written: Written) -> dict[str, Any]:
    """Return the journal's record of a change; see ``lines_of`` for what it raises.

    Ids and values are written as the catalogue has them, so that they mean the same whatever else is read
    beside them; columns that it does not have, as they were told.
    """
    change, token, table = written.change, {"token": written.token}, contents.items
    if change.items is None:
        keys = table.ids.keys_of(change.item_ids or ())
        return {"delete": keys.drop_nulls().to_list(), **token}
    given = features_of(change.items)
    fitted = lines_of(contents, given).select(
        name for name in table.frame.columns if name in given.frame.columns
    )
    put = [
        {**line, **{name: value for name, value in fits.items() if name in line}}
        for line, fits in zip(change.items, fitted.to_dicts(), strict=True)
    ]
    return {"column": table.id_column, "put": put, **token}


def _together(model: Model, questions: dict[int, Question]) -> dict[int, Answered | Exception]:
    """Return the answers to questions that ask alike; where one is wrong, it alone is told so."""
    asked = list(questions.values())
    first = asked[0]
    try:
        found: Sequence[Recommendation] = model.retriever.recommend(
            None if first.query_id is None else [q.query_id for q in asked],  # type: ignore[misc]
            features=None if first.features is None else [q.features or {} for q in asked],
            history=None if first.history is None else [list(q.history or ()) for q in asked],
            k=max(question.k for question in asked),
            exclude_seen=first.exclude_seen,
            among=first.among,
            without=first.without,
            filter=first.filter,
            words=first.words,
            rules=first.rules,
            strict=first.strict,
        )
    except Exception as error:
        if len(asked) == 1:
            return {next(iter(questions)): error}
        alone = [_together(model, {place: q}) for place, q in questions.items()]
        return {place: answer for each in alone for place, answer in each.items()}
    answers: dict[int, Answered | Exception] = {}
    for (place, question), answer in zip(questions.items(), found, strict=True):
        best = _first(answer, question.k)
        lines = model.retriever.items(best.item_ids).to_dicts() if question.columns else None
        answers[place] = Answered(best, model, lines, question.ignored)
    return answers


def _without_unknown(model: Model, question: Question) -> Question:
    """Return a question without features that nothing reads, which it names; unless they are refused."""
    if question.strict:
        return question
    known, ignored = model.known_features(question.features)
    return replace(question, features=known, ignored=ignored) if ignored else question


def _kinds(values: Mapping[str, Any] | None) -> tuple[object, ...] | None:
    """Return the columns that are told and the kinds of their values: a table's column holds one kind."""
    if values is None:
        return None
    return tuple(sorted((name, _kind(value)) for name, value in values.items()))


def _kind(value: object) -> str:
    if isinstance(value, list):
        return f"[{' '.join(sorted({_kind(inner) for inner in value}))}]"
    return type(value).__name__


def _kinds_of_events(history: Sequence[Event] | None) -> tuple[object, ...] | None:
    """Return what the lines of a history tell; times are read where every event has one."""
    if history is None:
        return None
    lines = [event for event in history if isinstance(event, Mapping)]
    has_times = bool(lines) and all(
        isinstance(event, Mapping) and event.get(TIME) is not None for event in history
    )
    kinds = {(name, _kind(value)) for line in lines for name, value in line.items()}
    return (has_times, *sorted(kinds))


def _first(answer: Recommendation, k: int) -> Recommendation:
    """Return the ``k`` best of an answer, which are the first of any longer one."""
    if len(answer) <= k:
        return answer
    return Recommendation(answer.query_id, answer.item_ids[:k], answer.scores[:k], answer.basis)


def _dim(retriever: Retriever) -> int:
    return int(retriever.contents.item_vectors.shape[1])
