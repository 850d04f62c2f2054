"""The engine: answers questions from a model that can be exchanged for another meanwhile."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from twotower.errors import ArgumentError, BundleError, JournalError
from twotower.index.lists import depth_of
from twotower.rules.kinds import Explore, Rule, spec_of
from twotower.serving.answers import Recommendation
from twotower.serving.arguments import TIME, Event, Id, features_of
from twotower.serving.manifest import MANIFEST
from twotower.serving.recommender import Wanted
from twotower.serving.retriever import Retriever
from twotower.serving.server import lookup
from twotower.serving.server.catalogue import Catalogue, Change, Changed, Written
from twotower.serving.server.journal import Journal
from twotower.serving.server.pointer import digest_of
from twotower.serving.server.telemetry import LOG
from twotower.serving.titles import Titles
from twotower.vocab import FIRST_ROW


@dataclass(frozen=True, eq=False, kw_only=True)
class Question(Wanted):
    """One query, as ``Retriever.recommend`` takes it, with tuples for its lists."""

    query_id: Id | None
    features: dict[str, Any] | None
    history: Sequence[Event] | None
    at: float | None = None
    """When the question is asked, in seconds since 1970; None for now."""
    rules: tuple[Rule, ...] = ()
    columns: bool = False
    ignored: tuple[str, ...] = ()
    """Given features that the model does not know."""

    @property
    def asks_alike(self) -> tuple[object, ...]:
        """The key that questions must share to be answered in one call."""
        told = (self.query_id is None, _kinds(self.features), _kinds_of_events(self.history))
        # With rules, the answer to a smaller k is not the start of the answer to a larger k.
        depth = self.k if self.rules else depth_of(self.k)
        return (*told, *{**self.choices, "k": depth}.values())


@dataclass(frozen=True, eq=False)
class Answered:
    """An answer and the model that gave it.

    Args:
        answer: The answer to one question.
        model: The model that gave it.
        lines: The lines of the found items, if the question asks for them.
        ignored: Given features that the model does not know.
    """

    answer: Recommendation
    model: "Model"
    lines: list[dict[str, Any]] | None
    ignored: tuple[str, ...] = ()


class Model:
    """An opened bundle with its digest, and the changes of its catalogue since.

    Args:
        path: The folder of the bundle.
        journal: See ``Catalogue``.

    Raises:
        BundleError: It cannot be opened.
    """

    def __init__(self, path: str | Path, journal: str | Path | None = None) -> None:
        self.path = Path(path)
        self.retriever = Retriever.open(self.path)
        self.digest = digest_of(self.path)
        self.query_columns = {f.source for f in self.retriever.contents.queries.transforms.features}
        self.description = self._describe()
        self.catalogue = Catalogue(self.retriever, self.digest, journal)
        try:
            self.catalogue.catch_up()
            self._warm()
        except BaseException:
            self.catalogue.close()
            raise

    def _warm(self) -> None:
        """Ask once for all that builds tables, so that no client waits for them."""
        self.retriever.recommend(features={}, k=1)
        for item_id in self.retriever.item_ids[:1]:
            self.retriever.similar_items(item_id, k=1)
        if self.retriever.share_of_words:
            self.retriever.recommend("", k=1)

    def _describe(self) -> dict[str, Any]:
        """Return the facts that do not change while this bundle is open."""
        retriever = self.retriever
        contents = retriever.contents
        sides = (contents.queries.transforms, contents.items.transforms)
        # If the bundle was trained on its test data, too, the figures are those of the model before.
        is_before = contents.metrics.get("refit", {}).get("learnt") == "all"
        figures = {} if is_before else contents.metrics.get("model", {})
        return {
            "name": str(contents.provenance.get("data") or self.path.name),
            "created": json.loads((self.path / MANIFEST).read_bytes()).get("created"),
            "queries": len(contents.queries.ids),
            "dim": _dim(retriever),
            "query_column": contents.queries.id_column,
            "item_column": contents.items.id_column,
            "item_columns": lookup.title_columns(retriever),
            "title_column": Titles(contents.items).column,
            "item_forms": lookup.item_forms(retriever),
            "filter_example": lookup.filter_example(retriever),
            "query_fields": lookup.query_fields(retriever),
            "query_features": [
                f.source for f in sides[0].features if f.is_fed and retriever.reads(f)
            ],
            "reads_history": retriever.encoding.model.reads_history,
            "has_histories": contents.histories is not None,
            "reads_text": all(any(f.meaning == "text" for f in side.features) for side in sides),
            "reads_searches": sides[0].reads_text_of(contents.queries.id_column),
            "words": retriever.share_of_words,
            "second_stage": 0 if contents.ranker is None else contents.ranker.depth,
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
        """Return the vectors of known or described items, and the columns that the model does not know.

        Raises:
            ValueError: Neither is given, or both; or an id is not in the catalogue.
        """
        if (item_ids is None) == (features is None):
            given = "neither" if features is None else "both"
            raise ArgumentError(f"item_ids or features must be given, got {given} of them.")
        if features is None:
            return self.retriever.encode_items(item_ids), []
        given_features, transforms = features_of(features), self.retriever.contents.items.transforms
        ignored = [name for name in given_features.lines_with if name not in transforms.columns]
        arrays = transforms.apply(given_features.frame)
        vectors = self.retriever.encoding.new_item_vectors(arrays)
        return np.asarray(vectors.cpu().numpy(), np.float32), ignored


class Engine:
    """Answers questions from the current model.

    Args:
        path: The folder of the first bundle.
        journal: See ``Catalogue``.
        ids_seen: Called with the number of known query ids in a batch, and of unknown ones.
        writes: Whether the engine takes changes; if not, it only reads the journal. While it cannot write
            to the journal, the engine answers queries and refuses changes.

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
                LOG.error("changes are refused until the journal can be written", error=str(error))
        self.model = Model(path, journal)
        """The current model. It is replaced as a whole, so take it once for each piece of work."""

    def exchange(self, path: str | Path) -> Model:
        """Open another bundle and answer from it from now on. If that fails, the current one stays.

        Raises:
            BundleError: It cannot be opened, or its item ids or vectors do not fit those that clients know.
        """
        new = Model(path, self._journal_path)
        mine, other = self.model.retriever, new.retriever
        towers = mine.contents.config.towers
        widths = f"towers.dim = {towers.width} and towers.spectral_dim = {towers.spectral_dim or 0}"
        for what, now, then, remedy in (
            ("the width of its vectors", _dim(mine), _dim(other), f"train it with {widths}, or "),
            ("the column of its item ids", mine.item_column, other.item_column, ""),
        ):
            if now != then:
                new.catalogue.close()
                raise BundleError(
                    f"the bundle {str(path)!r} cannot take over: {what} must be {now!r}, "
                    f"got {then!r}; {remedy}start another server for it."
                )
        self.model = new
        return new

    def answer(self, questions: Sequence[Question]) -> list[Answered | Exception]:
        """Return an answer or an error for each question, all from one model."""
        model = self.model
        model.catalogue.catch_up()
        ids = [question.query_id for question in questions if question.query_id is not None]
        if ids:
            rows = model.retriever.contents.queries.ids.rows_of(ids)
            known = int((rows >= FIRST_ROW).sum())
            self._ids_seen(known, len(ids) - known)
        questions = [_without_unknown(model, question) for question in questions]
        keys = [question.asks_alike for question in questions]
        groups: dict[tuple[object, ...], list[Question]] = {}
        for key, question in zip(keys, questions, strict=True):
            groups.setdefault(key, []).append(question)
        answers = {key: iter(_together(model, group)) for key, group in groups.items()}
        return [next(answers[key]) for key in keys]

    def write(self, changes: Sequence[Change]) -> list[Written | Exception]:
        """Write changes to the disk, and return for each what was written, or why it was not.

        Do not call this in the thread that answers: the disk takes its time.

        Raises:
            JournalError: The disk is full, say. Nothing was written then.
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
        """Return the effect of each change. From now on, every answer contains them."""
        return [self.model.catalogue.changed(each) for each in written]

    def compact(self) -> bool:
        """Compact the journal, in the thread that writes, and return whether that was possible."""
        return self._journal is not None and self._journal.tries_to_compact()

    def _opened_journal(self) -> Journal:
        if self._journal is None:
            assert self._journal_path is not None
            self._journal = Journal(self._journal_path)
        return self._journal


def cost_of(question: Question, share: float = 0.0) -> int:
    """Return about how long a question takes, in units of a plain question for 10 items.

    The cost depends only on the question and the bundle, so the same requests always take the same turns.
    The factors were measured: see decision 0027.

    Args:
        question: The question.
        share: The bundle's own share of the words, for a question that asks for ``auto``.
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
        if len(choosing) > 1:  # items that a cap skips are chosen, too
            places *= 4
        if any(isinstance(rule, Explore) for rule in question.rules):
            # The other places are filled again around the drawn items.
            places = 2 * places + k // 50
        cost += 1 + places
    return cost


def _together(model: Model, asked: list[Question]) -> list[Answered | Exception]:
    """Return the answers to questions that ask alike. If one is wrong, only that one gets the error."""
    first = asked[0]
    try:
        ids = [question.query_id for question in asked if question.query_id is not None]
        found = model.retriever.recommend(
            ids or None,
            features=None if first.features is None else [q.features or {} for q in asked],
            history=None if first.history is None else [list(q.history or ()) for q in asked],
            at=[question.at for question in asked],
            **{**first.choices, "k": max(question.k for question in asked)},
        )
    except Exception as error:
        if len(asked) == 1:
            return [error]
        return [_together(model, [question])[0] for question in asked]
    answers: list[Answered | Exception] = []
    for question, answer in zip(asked, found, strict=True):
        best = _first(answer, question.k)
        lines = model.retriever.items(best.item_ids).to_dicts() if question.columns else None
        answers.append(Answered(best, model, lines, question.ignored))
    return answers


def _without_unknown(model: Model, question: Question) -> Question:
    """Return a question without unknown features, which it names; a strict question as it is."""
    if question.strict:
        return question
    known, ignored = model.known_features(question.features)
    return replace(question, features=known, ignored=ignored) if ignored else question


def _kinds(values: Mapping[str, Any] | None) -> tuple[object, ...] | None:
    """Return the given columns with the types of their values: a column of a table holds one type."""
    if values is None:
        return None
    return tuple(sorted((name, _kind(value)) for name, value in values.items()))


def _kind(value: object) -> str:
    if isinstance(value, list):
        return f"[{' '.join(sorted({_kind(inner) for inner in value}))}]"
    return type(value).__name__


def _kinds_of_events(history: Sequence[Event] | None) -> tuple[object, ...] | None:
    """Return the columns of a history, and whether every event has a time: only then are times read."""
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
    return replace(answer, item_ids=answer.item_ids[:k], scores=answer.scores[:k])


def _dim(retriever: Retriever) -> int:
    return int(retriever.contents.item_vectors.shape[1])
