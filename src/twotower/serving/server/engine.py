"""What answers: a retriever that can be exchanged for another while it is asked."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from twotower.errors import BundleError
from twotower.serving.answers import Recommendation
from twotower.serving.arguments import Event, Id
from twotower.serving.bundle import MANIFEST
from twotower.serving.retriever import Retriever
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
    ignored: tuple[str, ...] = ()
    """Features that were told and that the model does not know."""

    @property
    def asks_alike(self) -> tuple[object, ...]:
        """What questions must have in common to be answered in one call."""
        told = (self.query_id is None, self.features is None, self.history is None)
        choice = (self.exclude_seen, self.among, self.without, self.filter, self.words, self.strict)
        return (*told, *choice)


@dataclass(frozen=True, eq=False)
class Answered:
    """An answer and the model that gave it.

    Args:
        answer: Of a question.
        model: What gave it.
        ignored: Features that were told and that it does not know.
    """

    answer: Recommendation
    model: "Model"
    ignored: tuple[str, ...] = ()


class Model:
    """An opened bundle with a name.

    Args:
        path: Folder of the bundle.

    Raises:
        BundleError: It cannot be opened.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.retriever = Retriever.open(self.path)
        # The manifest holds the digest of every file, so its own digest names the whole.
        manifest = (self.path / MANIFEST).read_bytes()
        self.digest = hashlib.sha256(manifest).hexdigest()[:12]
        self.created: str | None = json.loads(manifest).get("created")
        # The first answer makes tables that the others read.
        self.retriever.recommend(features={}, k=1)

    def unknown_features(self, features: dict[str, Any]) -> tuple[str, ...]:
        """Return the columns among a query's features that the model does not know."""
        known = {f.source for f in self.retriever.contents.queries.transforms.features}
        return tuple(name for name in features if name not in known)

    def known(self, query_id: Id) -> bool:
        """Return whether a query is one of the bundle's."""
        rows = self.retriever.contents.queries.ids.rows_of([query_id])
        return bool(rows[0] >= FIRST_ROW)


class Engine:
    """Answers questions from the model that is current.

    Args:
        model: The first one.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        """The current one. A name for one object: whoever has taken it keeps all of that model."""

    def exchange(self, path: str | Path) -> Model:
        """Open another bundle and answer from it from now on; the current one stays where that fails.

        Raises:
            BundleError: It cannot be opened, or its items or vectors are of another kind than those that
                clients know.
        """
        new = Model(path)
        mine, other = self.model.retriever, new.retriever
        for what, now, then in (
            ("the width of its vectors", _dim(mine), _dim(other)),
            ("the column of its item ids", mine.item_column, other.item_column),
        ):
            if now != then:
                raise BundleError(
                    f"the bundle {str(path)!r} cannot take over: {what} must be {now!r}, "
                    f"got {then!r}; start another server for it."
                )
        self.model = new
        return new

    def answer(self, questions: Sequence[Question]) -> list[Answered | Exception]:
        """Return an answer to each question, or the error that it deserves; all from one model."""
        model = self.model
        questions = [_without_unknown(model, question) for question in questions]
        groups: dict[tuple[object, ...], list[int]] = {}
        for place, question in enumerate(questions):
            groups.setdefault(question.asks_alike, []).append(place)
        answers: dict[int, Answered | Exception] = {}
        for places in groups.values():
            answers |= _together(model, {place: questions[place] for place in places})
        return [answers[place] for place in range(len(questions))]


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
            strict=first.strict,
        )
    except (ValueError, ImportError) as error:
        if len(asked) == 1:
            return {next(iter(questions)): error}
        alone = [_together(model, {place: q}) for place, q in questions.items()]
        return {place: answer for each in alone for place, answer in each.items()}
    return {
        place: Answered(_first(answer, question.k), model, question.ignored)
        for (place, question), answer in zip(questions.items(), found, strict=True)
    }


def _without_unknown(model: Model, question: Question) -> Question:
    """Return a question without features that nothing reads, which it names; unless they are refused."""
    if question.features is None or question.strict:
        return question
    unknown = model.unknown_features(question.features)
    if not unknown:
        return question
    known = {name: value for name, value in question.features.items() if name not in unknown}
    return replace(question, features=known, ignored=unknown)


def _first(answer: Recommendation, k: int) -> Recommendation:
    """Return the ``k`` best of an answer, which are the first of any longer one."""
    if len(answer) <= k:
        return answer
    return Recommendation(answer.query_id, answer.item_ids[:k], answer.scores[:k], answer.basis)


def _dim(retriever: Retriever) -> int:
    return int(retriever.contents.item_vectors.shape[1])
