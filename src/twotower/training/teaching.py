"""``Teacher``: a bundle with a second stage, which says of some moments how it ranks its candidates."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from twotower.arrays import Rows
from twotower.caller import argument, calling, passing
from twotower.data.dataset import (
    Cases,
    Dataset,
    EntityTable,
    Interactions,
    Part,
    with_event_rows,
)
from twotower.errors import BundleError, DataError
from twotower.evaluation.evaluate_bundle import with_words
from twotower.evaluation.refit_notes import learnt_of
from twotower.evaluation.scorers import ModelScorer, Ranked
from twotower.histories import Histories
from twotower.serving.journaled import with_own_rows
from twotower.serving.manifest import MANIFEST
from twotower.serving.retriever import Bundle, Retriever
from twotower.serving.storage import sha256
from twotower.towers.encoding import to_tensors
from twotower.training.bundle_contents import data_digest
from twotower.training.lessons import Lessons
from twotower.training.second_stage import remembering
from twotower.vocab import FIRST_ROW, PADDING_ROW, UNKNOWN_ROW

MOST_MOMENTS = 20_000
"""Moments that a teacher is asked about, evenly spaced."""
_MOST_CANDIDATES = 10_000_000  # of all moments: 8 bytes each
_MOST_EVENTS = 1_000  # of a history
_AT_ONCE = 512  # moments that are asked about in one call, or as few as these scores hold:
_CELLS = 2**24


@dataclass(frozen=True, eq=False)
class Teacher:
    """A bundle that teaches.

    Args:
        retriever: The bundle, opened; see ``of``.
        digest: SHA-256 of its manifest; None where it is in memory only.
    """

    retriever: Retriever
    digest: str | None

    @classmethod
    def of(cls, bundle: Bundle) -> "Teacher":
        """Open a bundle that can teach.

        Args:
            bundle: See ``Retriever.of``.

        Raises:
            BundleError: It cannot be opened, has no second stage, or learnt its validation events.
            MissingExtraError: LightGBM is not installed.
        """
        retriever = with_own_rows(Retriever.of(bundle))
        contents, file = retriever.contents, retriever.path / MANIFEST
        digest = sha256(file) if retriever.path.name and file.is_file() else None
        found = cls(retriever, digest)
        if contents.is_private:
            raise BundleError(
                f"{argument('teacher')} must be a bundle with a second stage, got {found.name!r}, which is "
                f"private ({passing(private=True)}) and has none; train one without it."
            )
        if contents.ranker is None:
            raise BundleError(
                f"{argument('teacher')} must be a bundle with a second stage, got {found.name!r} without "
                f"one; add it with {calling('rerank', out='DIR')}, or train with {passing(rerank='auto')}."
            )
        if learnt_of(contents.metrics) is not None:
            raise BundleError(
                f"{argument('teacher')} must not have learnt the events after its training part, got "
                f"{found.name!r}, which was refitted or updated; teach with the bundle before."
            )
        return found

    @property
    def name(self) -> str:
        """Its folder's name, or that of its data where it is in memory only."""
        path = self.retriever.path
        return path.resolve().name if path.name else str(self.retriever.contents.provenance["data"])

    def check(self, dataset: Dataset) -> None:
        """Refuse data of which the teacher can say nothing.

        Args:
            dataset: Of the student.

        Raises:
            DataError: The items are others, or a column is missing that the teacher reads.
        """
        contents = self.retriever.contents
        theirs, ours = contents.items.ids, dataset.items.ids
        rows = theirs.rows_of_all(ours.ids)
        if len(theirs) != len(ours) or (rows[FIRST_ROW:] == UNKNOWN_ROW).any():
            new = ours.ids_of(np.flatnonzero(rows == UNKNOWN_ROW)[1:2])
            said = f", such as {new[0]!r}, which the teacher lacks" if len(new) else ""
            raise DataError(
                f"{argument('teacher')} must have the items of the training, got {len(theirs):,} items for "
                f"{len(ours):,}{said}; train the teacher on the same tables."
            )
        tables = {
            "queries": (contents.queries.transforms, dataset.queries.frame),
            "events": (contents.events and contents.events.transforms, dataset.event_columns),
        }
        for name, (transforms, frame) in tables.items():
            missing = (
                [each for each in transforms.columns if each not in frame] if transforms else []
            )
            if missing:
                raise DataError(
                    f"{argument('teacher')} reads the column {missing[0]!r} of the {name}, which must be "
                    "in the training's tables; train the teacher on the same tables."
                )

    def note(self, dataset: Dataset) -> str:
        """Return in a sentence who taught the student, and when its figures are too high."""
        said = f"Taught by the bundle {self.name!r}"
        if self.digest is not None:
            said += f" (sha256 {self.digest[:12]})"
        known = self.retriever.contents.provenance.get("sha256_of_events")
        if known == data_digest(dataset.interactions, dataset.parts):
            return f"{said}."
        return (
            f"{said}, which learnt other events or another split: the figures are too high if it learnt "
            "events of the test."
        )

    def lessons(self, dataset: Dataset) -> Lessons:
        """Return what the teacher says of some moments.

        Args:
            dataset: Of the student; see ``check``.
        """
        contents = self.retriever.contents
        rows = contents.items.ids.rows_of_all(dataset.items.ids.ids)
        theirs = _in_rows_of(self.retriever, dataset, rows)
        found = lessons_of(_ranked(self.retriever, theirs), theirs)
        own = np.empty_like(rows)
        own[rows] = np.arange(len(rows), dtype=np.int32)
        held = found.histories
        return replace(
            found,
            histories=replace(held, item_rows=own[held.item_rows]),
            item_rows=own[found.item_rows],
        )

    def as_json(self, lessons: Lessons) -> dict[str, Any]:
        """Return what the student's bundle keeps of its teacher."""
        found: dict[str, Any] = {"bundle": self.name}
        if self.digest is not None:
            found["sha256_of_manifest"] = self.digest
        return {**found, "moments": len(lessons), "sha256_of_lessons": lessons.digest}


def moments_of(dataset: Dataset, most: int) -> tuple[Cases, Interactions]:
    """Return evenly spaced moments of training events, and all events that are read of the training part.

    A moment has the events before it as its history, at least one, and no targets.

    Args:
        dataset: Split.
        most: Number of moments at most, at least 1.
    """
    train = dataset.part(Part.TRAIN)
    known = train.where(train.is_read)
    places = np.arange(len(known))
    starts = known.offsets[:-1][known.query_rows]
    ends = np.flatnonzero((places > starts) & known.is_positive)
    if len(ends) > most:
        ends = ends[np.linspace(0, len(ends) - 1, most).astype(np.int64)]
    starts = np.maximum(starts[ends], ends - _MOST_EVENTS)
    offsets = np.concatenate([[0], np.cumsum(ends - starts)])
    picked = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], ends - starts)
    histories = Histories(
        offsets,
        known.item_rows[picked],
        None if known.times is None else known.times[picked],
        None if known.event_rows is None else known.event_rows[picked],
    )
    times = None if known.times is None else known.times[ends]
    cases = Cases(known.query_rows[ends], histories, Histories.empty(len(ends)), times)
    return cases, known


def lessons_of(ranked: Ranked, dataset: Dataset) -> Lessons:
    """Return what a model with a second stage says of moments of a data set in its own rows.

    The moments are those of training events. The candidates of a moment are the best items without those
    that the query has anywhere in the training part. The model knows them by heart, and the trees, which
    learnt from answers that the model did not know, would put them first for that reason alone.

    No lesson is about the moment of a validation query. There the trees know the answers. A student that
    learns this moment's ranking by heart also gets a validation figure near its teacher's, which says
    nothing of other moments; and validation chooses the epoch and the settings.

    Args:
        ranked: The teacher.
        dataset: Split.
    """
    # It remembers no event of validation or after.
    teacher = replace(ranked, ranker=remembering(ranked.ranker, dataset, Part.TRAIN))
    num_rows = dataset.items.ids.num_rows
    depth = min(teacher.ranker.depth, num_rows)
    cases, known = moments_of(dataset, max(1, min(MOST_MOMENTS, _MOST_CANDIDATES // depth)))
    of_queries = known.histories()
    item_rows = np.full((len(cases), depth), PADDING_ROW, np.int32)
    values = np.full((len(cases), depth), -np.inf, np.float32)
    step = max(1, min(_AT_ONCE, _CELLS // num_rows))
    for start in range(0, len(cases), step):
        here = slice(start, start + step)
        part = cases.take(here)
        scores = teacher.base.score(part).float().cpu().clone()
        found = teacher.candidates(scores, part, exclude=of_queries.take(part.query_rows))
        item_rows[here] = found.item_rows
        values[here] = teacher.ranker.values(found, teacher.catalogue)
    is_told = (item_rows[:, 0] >= FIRST_ROW) & teacher.model.is_known(cases)
    kept = np.flatnonzero(is_told)
    return Lessons(
        cases.query_rows[kept], cases.questions.take(kept), item_rows[kept], values[kept]
    )


def _in_rows_of(retriever: Retriever, dataset: Dataset, rows: Rows) -> Dataset:
    """Return a data set with the teacher's items, in its rows, and with rows of events."""
    items = retriever.contents.items
    dataset = with_event_rows(dataset)
    events = dataset.interactions
    return replace(
        dataset,
        items=EntityTable(items.ids, items.frame, items.id_column),
        interactions=replace(events, item_rows=rows[events.item_rows], impressions=None),
        offered=retriever.contents.offered,
    )


def _ranked(retriever: Retriever, dataset: Dataset) -> Ranked:
    """Return a bundle with its second stage over the queries of a data set in its rows."""
    contents, encoding = retriever.contents, retriever.encoding
    assert contents.ranker is not None
    if contents.events is not None:
        of_events = contents.events.transforms.apply_to_rows(dataset.event_columns)
        encoding = replace(encoding, event_features=to_tensors(of_events, retriever.device))
    features = contents.queries.transforms.apply_to_rows(dataset.queries.frame)
    vectors = retriever.index.item_vectors
    model = ModelScorer(encoding, features, contents.popularity, vectors)
    base = with_words(contents, model, dataset) or model
    return Ranked(base, contents.ranker, not dataset.repeats, dataset.offered)
