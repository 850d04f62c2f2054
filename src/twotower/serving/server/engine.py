"""What answers: a retriever that can be exchanged for another while it is asked."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from twotower.errors import ArgumentError, BundleError, JournalError
from twotower.index.approximate import depth_of
from twotower.rules.kinds import Explore, Rule, spec_of
from twotower.serving.answers import Recommendation
from twotower.serving.arguments import TIME, Event, Id, features_of
from twotower.serving.bundle import MANIFEST
from twotower.serving.retriever import Retriever
from twotower.serving.server.catalogue import Catalogue, Change, Changed, Written
from twotower.serving.server.journal import Journal
from twotower.serving.server.lookup import (
    filter_example,
    item_forms,
    query_fields,
    title_columns,
)
from twotower.serving.server.pointer import digest_of
from twotower.serving.server.telemetry import LOG
from twotower.serving.titles import Titles
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


class Model:
    """An opened bundle with a name, and what was written to its catalogue since.

    Args:
        path: Folder of the bundle.
        journal: See ``Catalogue``.

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
        self.catalogue = Catalogue(self.retriever, self.digest, journal)
        try:
            self.catch_up()
            self._warm()
        except BaseException:
            self.catalogue.close()
            raise

    def catch_up(self) -> None:
        """Take in what was written to the catalogue; see ``Catalogue.catch_up``."""
        self.catalogue.catch_up()

    def _warm(self) -> None:
        """Ask what makes the tables that later answers read, so that nobody waits for them."""
        self.retriever.recommend(features={}, k=1)
        for item_id in self.retriever.item_ids[:1]:
            self.retriever.similar_items(item_id, k=1)
        if self.retriever.share_of_words:
            self.retriever.recommend("", k=1)

    def _describe(self) -> dict[str, Any]:
        """Return what stays as it is while this bundle is open."""
        retriever = self.retriever
        contents = retriever.contents
        sides = (contents.queries.transforms, contents.items.transforms)
        # Those of a bundle that learnt its test are of the model before, and not of what answers.
        is_before = contents.metrics.get("refit", {}).get("learnt") == "all"
        figures = {} if is_before else contents.metrics.get("model", {})
        return {
            "name": str(contents.provenance.get("data") or self.path.name),
            "created": self.created,
            "queries": len(contents.queries.ids),
            "dim": _dim(retriever),
            "query_column": contents.queries.id_column,
            "item_column": contents.items.id_column,
            "item_columns": title_columns(retriever),
            "title_column": Titles(contents.items).column,
            "item_forms": item_forms(retriever),
            "filter_example": filter_example(retriever),
            "query_fields": query_fields(retriever),
            "query_features": [
                f.source for f in sides[0].features if f.is_fed and retriever.reads(f)
            ],
            "reads_history": retriever.encoding.model.reads_history,
            "has_histories": contents.histories is not None,
            "reads_text": all(any(f.meaning == "text" for f in side.features) for side in sides),
            "reads_searches": sides[0].reads_text_of(contents.queries.id_column),
            "words": retriever.share_of_words,
            "figures": {k: v for k, v in figures.items() if isinstance(v, float)},
        }

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
            raise ArgumentError(f"item_ids or features must be given, got {given} of them.")
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


class Engine:
    """Answers questions from the model that is current.

    Args:
        path: Folder of the first bundle.
        journal: See ``Model``.
        ids_seen: Called with how many query ids of a batch are known, and how many are not.
        writes: Whether changes are taken; if not, the journal is only read. If it cannot be written, the
            engine answers queries, and refuses changes until it can.

    Raises:
        BundleError: It cannot be opened.
    """

    def __init__(
        self,
        path: str | Path,
        journal: str | Path | None = None,
        ids_seen: Callable[[int, int], None] = lambda _known, _unknown: None,
        *,
        writes: bool = True,
    ) -> None:
        self._ids_seen = ids_seen
        self._journal: Journal | None = None
        self._journal_path = journal
        if writes and journal is not None:
            try:
                self._opened_journal()
            except JournalError as error:
                why = {"fields": {"error": str(error)}}
                LOG.error("changes are refused until the journal can be written", extra=why)
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
                new.catalogue.close()
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
            JournalError: The disk is full, say; none was written then.
        """
        journal, model = self._opened_journal(), self.model
        records: list[dict[str, Any]] = []
        told: list[Written | Exception] = []
        for change in changes:
            try:
                record, written = model.catalogue.prepare(change)
            except Exception as error:  # of that change alone
                told.append(error)
            else:
                records.append(record)
                told.append(written)
        try:
            journal.append(records)
        except BaseException:
            model.catalogue.forget(records)
            raise
        return told

    def changed(self, written: Sequence[Written]) -> list[Changed | Exception]:
        """Return what changes did: from now on they are in every answer."""
        return [self.model.catalogue.changed(each) for each in written]

    def compact(self) -> bool:
        """Compact the journal, in the thread that writes; return whether it was possible."""
        try:
            if self._journal is not None:
                self._journal.compact()
        except JournalError as error:
            LOG.warning("the journal was not compacted", extra={"fields": {"error": str(error)}})
            return False
        return self._journal is not None

    def _opened_journal(self) -> Journal:
        if self._journal is None:
            assert self._journal_path is not None
            self._journal = Journal(self._journal_path)
        return self._journal


def cost_of(question: Question, share: float = 0.0) -> int:
    """Return about how long a question takes, in units of one for 10 items without anything else.

    It depends on nothing but the question and the bundle, so the same requests always take the same turns.
    Decision 0027 says what the factors were measured from.

    Args:
        question: What is asked.
        share: Of the words where it is the bundle's own that is asked for.
    """
    k = question.k
    cost = 1 + k // 500
    if question.columns:
        cost += k // 200
    if question.filter is not None or question.among is not None or question.without is not None:
        cost += 4  # no other question shares its pass over the catalogue
    if share if question.words == "auto" else question.words:
        cost += 8
    if question.rules:
        specs = [spec for spec in map(spec_of, question.rules) if spec is not None]
        num_moving = sum(spec.moves is not None for spec in specs)
        if num_moving:  # each combination of them is searched by itself
            cost += 2**num_moving * (1 + k // 250)
        choosing = {spec.name for spec in specs if spec.chooses}
        places = k // 10 if choosing else 0
        if len(choosing) > 1:  # what a cap passes over is chosen and thrown away
            places *= 4
        if any(
            isinstance(rule, Explore) for rule in question.rules
        ):  # the places are filled again around what was drawn
            places = 2 * places + k // 50
        cost += 1 + places
    return cost


def _together(model: Model, questions: dict[int, Question]) -> dict[int, Answered | Exception]:
    """Return the answers to questions that ask alike; where one is wrong, it alone is told so."""
    asked = list(questions.values())
    first = asked[0]
    try:
        ids = [question.query_id for question in asked if question.query_id is not None]
        found = model.retriever.recommend(
            ids or None,
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
    return replace(answer, item_ids=answer.item_ids[:k], scores=answer.scores[:k])


def _dim(retriever: Retriever) -> int:
    return int(retriever.contents.item_vectors.shape[1])
