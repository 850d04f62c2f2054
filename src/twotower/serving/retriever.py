"""``Retriever``: an opened bundle that answers queries."""

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from torch import nn
from torch.nn import functional as F

from twotower import html
from twotower.caller import argument, passing
from twotower.errors import ArgumentError, BundleError
from twotower.features.base import FeatureArrays
from twotower.features.dataframes import Frame
from twotower.features.schema import Feature
from twotower.histories import Histories
from twotower.index.fusion import FusedIndex
from twotower.index.live_index import GrowingRows, LiveIndex
from twotower.rules.kinds import Rule, rule_set
from twotower.runtime import choose_device
from twotower.serving import arguments, live_items, loading
from twotower.serving.allowed import Allowed
from twotower.serving.answers import Recommendation, Recommendations, recommendations
from twotower.serving.arguments import At, Event, FeatureLines, History, Id, Moment, Told
from twotower.serving.bundle import Contents, open_bundle, write_bundle
from twotower.serving.explain import Contribution, Explanation, explain, reads
from twotower.serving.queries import Described, Queries, moments_of
from twotower.serving.recommender import Recommender, Wanted
from twotower.serving.reranking import Reranker, checked_k
from twotower.serving.session import Session
from twotower.serving.word_scores import Texts
from twotower.shards import Shard
from twotower.towers.encoding import to_tensors
from twotower.vocab import FIRST_ROW, UNKNOWN_ROW

_AT_ONCE = 4096
"""Queries that one call of the model encodes."""


class Answering(Protocol):
    """Something with a retriever, such as ``Trained``."""

    @property
    def retriever(self) -> "Retriever":
        """The retriever."""
        ...


Bundle: TypeAlias = "Retriever | str | Path | Answering"
"""What ``Retriever.of`` takes for a bundle."""


class Retriever(Recommender):
    """Answers queries from a bundle. Make one with ``Retriever.open``.

    Args:
        contents: What the bundle holds.
        query_tower: Your own query tower, if the bundle was trained with one.
        item_tower: The same for the items.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        path: The bundle's folder, for messages.

    Raises:
        BundleError: The bundle was trained with other towers, or its sentence encoder cannot be built.
        MissingExtraError: The bundle holds such an encoder, and the extra ``text`` is not installed; or a
            second stage, and ``rank`` is not.
    """

    def __init__(
        self,
        contents: Contents,
        *,
        query_tower: nn.Module | None = None,
        item_tower: nn.Module | None = None,
        device: str = "auto",
        path: str | Path = "",
    ) -> None:
        self.contents = contents
        self.path = Path(path)
        self.device = choose_device(device)
        towers = {"query": query_tower, "item": item_tower}
        self.encoding = loading.encoding_of(contents, towers, self.device, self.path)
        self.queries = Queries(contents, self.device)
        self._texts = Texts(contents)
        self._allowed = Allowed(contents)
        self._reranker = Reranker(contents, self.encoding.item_features, self._texts)
        vectors = loading.with_reserved_rows(contents.item_vectors).to(self.device)
        self.index = LiveIndex(vectors, contents.lists)
        self._item_features = {
            name: GrowingRows(rows) for name, rows in self.encoding.item_features.items()
        }
        self._reranker.check(self.queries.features, vectors, self.path)

    @staticmethod
    def open(
        path: str | Path,
        *,
        query_tower: nn.Module | None = None,
        item_tower: nn.Module | None = None,
        device: str = "auto",
    ) -> "Retriever":
        """Check every file of the bundle at ``path`` and return a retriever for it.

        Raises:
            BundleError: The bundle is missing, damaged, incomplete or newer than this library, or its
                sentence encoder cannot be built with the installed ``transformers``.
            MissingExtraError: The bundle holds such an encoder, and the extra ``text`` is not installed; or
                a second stage, and ``rank`` is not.
        """
        contents = open_bundle(path)
        return Retriever(
            contents, query_tower=query_tower, item_tower=item_tower, device=device, path=path
        )

    @staticmethod
    def of(bundle: "Bundle") -> "Retriever":
        """Return a retriever for a bundle that is open, was just trained, or is on disk.

        Args:
            bundle: A ``Retriever``, the result of ``train``, or the path of a bundle's folder.

        Raises:
            BundleError: As ``open``.
        """
        if isinstance(bundle, Retriever):
            return bundle
        return Retriever.open(bundle) if isinstance(bundle, str | Path) else bundle.retriever

    def __repr__(self) -> str:
        dim = self.contents.item_vectors.shape[1]
        return (
            f"Retriever({str(self.path)!r}: {len(self.contents.queries.ids):,} queries, "
            f"{self.contents.num_items:,} items, dim {dim})"
        )

    def _repr_html_(self) -> str:
        contents = self.contents
        facts: dict[str, object] = {
            "bundle": self.path if self.path.name else "in memory",
            "queries": f"{len(contents.queries.ids):,}",
            "items": f"{contents.num_items:,}",
            "width of the vectors": contents.item_vectors.shape[1],
            "search": "exact" if self.index.is_exact else f"recall {self.index_recall:.3f}",
        }
        for side, table in (("query", contents.queries), ("item", contents.items)):
            read = [f for f in table.transforms.features if f.meaning not in ("id", "shown")]
            if read:
                facts[f"{side} features"] = ", ".join(f"{f.name} ({f.described})" for f in read)
        verdict = contents.metrics.get("verdict", "")
        return html.block(
            html.text("Retriever", bold=True),
            html.table(facts.items()),
            html.text(verdict, quiet=True),
        )

    @property
    def query_features(self) -> FeatureArrays:
        """The transformed features of every query row, the reserved ones included."""
        return self.queries.features

    @cached_property
    def _directions(self) -> LiveIndex:
        """An index of the items' vectors at length 1, made by the first call of ``similar_items``."""
        return LiveIndex(F.normalize(self.index.item_vectors, dim=1))

    def _recommended(self, told: Told, wanted: Wanted) -> Recommendation | Recommendations:
        found = self._found(told, wanted)
        return found[0] if told.single else found

    def _found(self, told: Told, wanted: Wanted) -> Recommendations:
        queries = self.queries.described(told, strict=wanted.strict)
        answers = self.answers(queries, self._vectors_of(queries), wanted)
        return Recommendations(tuple(answers), self.contents.items.frame, self.item_column)

    def answers(
        self, queries: Described, vectors: torch.Tensor, wanted: Wanted
    ) -> list[Recommendation]:
        """Return the answers to ``n`` queries whose vectors, ``(n, dim)``, are known.

        Raises:
            FilterError: As ``recommend``.
            ValueError: As ``recommend`` for ``k``, the words and the rules.
        """
        share = self.share_of_words if wanted.words == "auto" else wanted.words
        if isinstance(share, str) or not 0 <= share <= 1:
            raise ArgumentError(f"{argument('words')} must be 'auto' or in [0, 1], got {share!r}.")
        if share != self.share_of_words:
            wanted = replace(wanted, rerank=False)  # it has learnt scores of another scale
        plan = self._reranker.plan(wanted, self._allowed)
        of_model = self.encoding.is_known(queries.features, queries.histories)
        index, known = self._index_for(queries, of_model, share)
        # A prior by popularity answers queries of which nothing is known by itself.
        by_model = known if self.encoding.model.popularity is None else np.ones_like(known)
        found, propensities = plan.answer(index, queries, vectors, by_model, of_model)
        of_filters = self._allowed.notes(wanted.filter, plan.rules)
        notes = [(*of_filters, *own) for own in queries.notes]
        ids, items = queries.told.ids, self.contents.items
        return recommendations(items, ids, known.tolist(), found, notes, propensities)

    def _index_for(
        self, queries: Described, known: npt.NDArray[np.bool_], share: float
    ) -> tuple[LiveIndex | FusedIndex, npt.NDArray[np.bool_]]:
        """Return the index with a share of the words of some queries, and which of them are known by it."""
        if not share:
            return self.index, known
        return self._texts.fused(self.index.item_vectors, queries, known, share)

    def _item_vectors(self, rows: npt.NDArray[np.integer]) -> torch.Tensor:
        return self.index.item_vectors[torch.from_numpy(rows.astype(np.int64))]

    def _vectors_of(self, queries: Described) -> torch.Tensor:
        return self.encoding.query_vectors(queries.features, queries.histories, queries.events)

    def session(
        self,
        query_id: Id | None = None,
        *,
        features: Mapping[str, object] | None = None,
        history: Sequence[Event] = (),
    ) -> Session:
        """Return a session: one query to which you add events, each of which the model reads once.

        Args:
            query_id: An id. The session starts with what the bundle knows about it.
            features: Column -> value.
            history: Events, oldest first, that replace the history in the bundle; see ``recommend``.

        Raises:
            ValueError: As ``recommend``, or for several queries.
        """
        events = history if len(history) or query_id is None else None
        told = arguments.queries_of(query_id, features, events)
        if not told.single:
            raise ArgumentError("session is of one query, got several; make one for each.")
        return Session(self, self.queries.described(told))

    def recommend_all(
        self,
        k: int = 10,
        *,
        exclude_seen: bool | None = None,
        filter: str | None = None,  # noqa: A002 -- the word that users know
        words: float | Literal["auto"] = "auto",
        rules: Iterable[Rule] = (),
        rerank: bool = True,
        at: Moment | None = None,
        shard: str | None = None,
    ) -> pl.DataFrame:
        """Recommend items to every query of the bundle; see ``Recommendations.to_polars`` for the columns.

        Warns about values of the filters that no item has.

        The arguments are those of ``recommend``. Further, ``shard="3/16"`` answers only the third of
        sixteen equal shares of ``query_ids``; state ``at``, too, if all shares must ask at the same time.

        Raises:
            BundleError: The bundle is private and knows no query.
            FilterError: As ``recommend``.
            ValueError: ``k`` is below 1, ``shard`` names no share, or as ``recommend`` for the words, the
                rules and ``at``.
        """
        wanted = Wanted(k, exclude_seen, None, None, filter, words, tuple(rules), rerank)
        share, every = Shard.of(shard), self.query_ids
        rows = share.rows(len(every))
        ids = every[rows.start : rows.stop] or every[:1]  # of an empty share, for the columns
        for note in self._allowed.notes(filter, rule_set(wanted.rules)):
            warnings.warn(note, stacklevel=2)
        parts = (ids[start : start + _AT_ONCE] for start in range(0, len(ids), _AT_ONCE))
        answers = (self._found(arguments.queries_of(part, at=at), wanted) for part in parts)
        frame = pl.concat([some.to_polars() for some in answers])
        return frame if rows else frame.clear()

    def upsert_items(self, items: FeatureLines, *, strict: bool = False) -> int:
        """Add items to the catalogue, or replace those with the same ids; return how many were given.

        The model's item tower computes their vectors from their columns, and from their ids if it knows
        them. The next answer may hold the items. The bundle on disk does not change. Don't call this while
        another thread uses the retriever.

        Args:
            items: Rows with an id and columns of the items' table. A column that a row lacks is missing:
                a row replaces everything that was known about its id.
            strict: Whether to refuse columns that the bundle does not know. Otherwise they are ignored with
                a warning.

        Raises:
            ValueError: An id is missing, has another type than the catalogue's ids or is repeated, or a
                value does not fit its column.
        """
        given, transforms = arguments.features_of(items), self.contents.items.transforms
        if not len(given):
            return 0
        arguments.check_columns(given, transforms, strict=strict)
        lines = live_items.lines_of(self.contents, given)
        arrays = transforms.apply(lines)
        arguments.warn_of_empty(transforms, arrays)
        self.put_lines(lines, arrays)
        return len(lines)

    def put_lines(self, lines: pl.DataFrame, arrays: FeatureArrays) -> None:
        """Add rows of the items' table; see ``upsert_items``.

        Args:
            lines: The rows, from ``live_items.lines_of``.
            arrays: Their transformed features.
        """
        vectors = self.encoding.new_item_vectors(arrays)
        for name, tensor in to_tensors(arrays, self.device).items():
            self._item_features[name].append(tensor)
        self.encoding = replace(
            self.encoding,
            item_features={name: rows.rows for name, rows in self._item_features.items()},
        )
        self._reranker.item_features = self.encoding.item_features
        self.index.append(vectors)
        if "_directions" in vars(self):
            self._directions.append(F.normalize(vectors, dim=1))
        self._serve(live_items.with_lines(self.contents, lines))

    def delete_items(self, item_ids: Sequence[Id]) -> int:
        """Remove items from the catalogue; return how many of them were in it.

        No later answer holds them. They still count in histories. Don't call this while another thread
        uses the retriever.

        Raises:
            ValueError: ``item_ids`` is not a list.
        """
        contents, num = live_items.without_ids(self.contents, item_ids)
        self._serve(contents)
        return num

    def save(self, path: str | Path) -> None:
        """Write a bundle with the current catalogue, and replace a bundle that is there.

        Weights, histories and figures are those of the bundle that was opened.

        Raises:
            BundleError: The path cannot be used, or writing failed. Nothing is left behind then.
        """
        contents = live_items.as_written(self.contents, self.index.item_vectors)
        if self.contents.gone is not None:
            now = datetime.now(UTC).isoformat(timespec="seconds")
            provenance = {**contents.provenance, "items_changed": now}
            contents = replace(contents, provenance=provenance)
        write_bundle(path, contents)

    def _serve(self, contents: Contents) -> None:
        self.contents = self.queries.contents = contents
        self._reranker.contents = self._texts.contents = contents
        self._allowed = self._allowed.of(contents)

    def score(self, pairs: Iterable[tuple[Id, Id]] | Frame) -> npt.NDArray[np.float32]:
        """Return the score of each (query id, item id) pair, asked now: ``(n,)`` float32.

        Args:
            pairs: Pairs of ids, or a frame with a column of query ids and one of item ids.

        Raises:
            ValueError: An id is not in the bundle.
        """
        pairs = arguments.pairs_of(pairs)
        query_rows = self.queries.rows_of([query for query, _ in pairs])
        item_rows = self.known_item_rows([item for _, item in pairs])
        unknown = np.flatnonzero(query_rows == UNKNOWN_ROW)
        if len(unknown):
            raise ArgumentError(f"query ids must be known, got {pairs[unknown[0]][0]!r}.")
        distinct, places = np.unique(query_rows, return_inverse=True)
        arrays = {name: values[distinct] for name, values in self.query_features.items()}
        histories = self.queries.histories(distinct)
        histories = replace(histories, asked=moments_of(None, histories))
        vectors = self.encoding.query_vectors(arrays, histories)
        items = self._item_vectors(item_rows)
        scores = (vectors[torch.from_numpy(places)] * items).sum(dim=1)
        return np.asarray(scores.cpu().numpy(), np.float32)

    def encode_queries(
        self,
        query_id: Id | Sequence[Id] | None = None,
        *,
        features: FeatureLines | None = None,
        history: History | None = None,
        at: At = None,
    ) -> npt.NDArray[np.float32]:
        """Return the vectors of queries as a NumPy array: ``(n, dim)`` float32, ``(1, dim)`` for one query.

        The score of a query and an item is the dot product of their vectors. Without an argument that
        describes a query, it returns the vectors of all queries, in the order of ``query_ids``.

        Args:
            query_id: One id, or a list of ids; unknown ids are allowed.
            features: See ``recommend``.
            history: See ``recommend``.
            at: See ``recommend``.

        Raises:
            BundleError: There are no arguments, and the bundle is private.
            ValueError: As ``recommend``.
        """
        if query_id is None and features is None and history is None:
            query_id = self.query_ids
            starts = range(0, len(query_id), _AT_ONCE)
            parts = [query_id[start : start + _AT_ONCE] for start in starts]
            return np.concatenate([self.encode_queries(part, at=at) for part in parts])
        told = arguments.queries_of(query_id, features, history, at)
        vectors = self._vectors_of(self.queries.described(told))
        return np.asarray(vectors.cpu().numpy(), np.float32)

    def encode_items(
        self,
        item_ids: Sequence[Id] | None = None,
        *,
        features: FeatureLines | None = None,
        strict: bool = False,
    ) -> npt.NDArray[np.float32]:
        """Return the vectors of items as a NumPy array: ``(n, dim)`` float32.

        Without arguments, it returns the vectors of all items that can be recommended, in the order of
        ``item_ids``.

        Args:
            item_ids: Ids of the catalogue.
            features: New items: column -> value, a list of such mappings, or a frame.
            strict: Whether to refuse features that the bundle does not know. Otherwise they are ignored
                with a warning.

        Raises:
            ValueError: An id is not in the catalogue, both arguments are given, or ``strict`` is set and
                the bundle does not know a feature.
        """
        if item_ids is not None and features is not None:
            raise ArgumentError("encode_items takes item_ids or features, got both.")
        if features is not None:
            given, transforms = arguments.features_of(features), self.contents.items.transforms
            arguments.check_columns(given, transforms, strict=strict)
            arrays = transforms.apply(given.frame)
            arguments.warn_of_empty(transforms, arrays)
            return np.asarray(self.encoding.new_item_vectors(arrays).cpu().numpy(), np.float32)
        rows: npt.NDArray[np.integer] = self.contents.offered_rows
        if item_ids is not None:
            rows = self.known_item_rows(arguments.ids_of(item_ids, what="item_ids"))
        return np.asarray(self._item_vectors(rows).cpu().numpy(), np.float32)

    def similar_items(
        self,
        item_id: Id,
        k: int = 10,
        *,
        filter: str | None = None,  # noqa: A002 -- the word that users know
    ) -> Recommendation:
        """Return the ``k`` items whose vectors have the largest cosine with the vector of ``item_id``.

        Args:
            item_id: An item of the catalogue. The answer does not hold it.
            k: Number of items, at least 1. A smaller catalogue returns all its items.
            filter: See ``recommend``. ``item_id`` itself need not match.

        Raises:
            FilterError: As ``recommend``.
            ValueError: ``k`` is below 1, or the id is not in the catalogue.
        """
        k = checked_k(self.contents, k)
        row = self.known_item_rows([item_id])
        exclude, allowed = Histories.of([row]), self._allowed.rows(filter=filter)
        direction = self._directions.item_vectors[int(row[0])][None]
        found = self._directions.search(direction, k, exclude=exclude, allowed=allowed)
        notes = self._allowed.notes(filter)
        return recommendations(self.contents.items, [item_id], [True], found, [notes])[0]

    def explain(
        self,
        query_id: Id | None,
        item_id: Id,
        *,
        features: FeatureLines | None = None,
        history: Sequence[Event] | None = None,
        at: Moment | None = None,
    ) -> Explanation:
        """Return how much each part of a query and of an item contributes to their score.

        To measure a part, it computes the score again without that part: without the id, with a missing
        value, or without an event of the history. The contributions do not add up to the score. Where the
        item is a candidate of a second stage, ``ranking`` says what moves it there.

        Args:
            query_id: See ``recommend``.
            item_id: An item of the catalogue.
            features: See ``recommend``; of one query.
            history: See ``recommend``; of one query.
            at: See ``recommend``.

        Raises:
            ValueError: The item is not in the catalogue, or several queries are described.
        """
        told = arguments.queries_of(query_id, features, history, at)
        row = self.known_item_rows([item_id])
        found = explain(self.queries, self.encoding, told, item_id, int(row[0]))
        return replace(found, ranking=self._ranking_of(told, int(row[0])))

    def _ranking_of(self, told: Told, item_row: int) -> tuple[Contribution, ...]:
        """Return what moves an item in the second stage of one query."""
        queries = self.queries.described(told)
        known = self.encoding.is_known(queries.features, queries.histories)
        if self.contents.ranker is None or not known.all():
            return ()
        plan = self._reranker.plan(Wanted(1, None, None, None, None, "auto", ()), self._allowed)
        index, _ = self._index_for(queries, known, self.share_of_words)
        shares = plan.contributions(index, queries, self._vectors_of(queries), item_row)
        moving = [
            Contribution("ranking", name, None if math.isnan(value) else value, share)
            for name, (value, share) in shares.items()
            if share
        ]
        return tuple(sorted(moving, key=lambda part: -part.contribution))

    @property
    def query_ids(self) -> list[Id]:
        """Ids of all queries of the bundle, in the order of ``encode_queries()``.

        Raises:
            BundleError: The bundle is private and has no queries.
        """
        if self.contents.is_private:
            raise BundleError(
                f"the bundle {str(self.path)!r} must hold queries for all of them to be answered, got one "
                f"written with {passing(private=True)}; ask by features or by a history."
            )
        return list(self.contents.queries.ids.ids.to_list())

    @property
    def item_ids(self) -> list[Id]:
        """Ids of all items that can be recommended, in the order of ``encode_items()``."""
        ids: list[Id] = self.contents.items.ids.ids_of(self.contents.offered_rows).to_list()
        return ids

    @property
    def index_recall(self) -> float:
        """Share of the 100 best items that search finds, measured after training; 1 for exact search."""
        measured = self.contents.metrics.get("index")
        return (
            1.0 if self.index.is_exact or measured is None else float(measured["recall"]["100"][0])
        )

    @property
    def item_column(self) -> str:
        """Name of the items' id column."""
        return self.contents.items.id_column

    def items(self, item_ids: Sequence[Id]) -> pl.DataFrame:
        """Return the row of each id in the items' table, in that order.

        Raises:
            ValueError: An id is not in the catalogue.
        """
        rows = self.known_item_rows(arguments.ids_of(item_ids, what="item_ids"))
        lines = self.contents.items.frame[rows.astype(np.int64) - FIRST_ROW]
        assert isinstance(lines, pl.DataFrame)
        return lines

    def history(self, query_id: Id) -> list[Id]:
        """Return the items of a query's events in the bundle, oldest first."""
        histories = self.queries.histories(self.queries.rows_of([query_id]))
        return self.contents.items.ids.ids_of(histories.item_rows).to_list()

    @property
    def share_of_words(self) -> float:
        """The weight that ``words="auto"`` stands for: the best one on validation, or 0."""
        chosen = self.contents.metrics.get("words")
        return float(chosen["share"]) if chosen else 0.0

    def known_item_rows(self, ids: Sequence[Id]) -> npt.NDArray[np.int32]:
        """Return the row of each item id.

        Raises:
            ValueError: An id is not in the catalogue.
        """
        rows = self.contents.items.ids.rows_of(arguments.plain(ids))
        is_unknown = rows < FIRST_ROW
        if self.contents.gone is not None:
            is_unknown |= self.contents.gone[rows]
        unknown = np.flatnonzero(is_unknown)
        if len(unknown):
            raise ArgumentError(f"item ids must be in the catalogue, got {ids[unknown[0]]!r}.")
        return rows

    def reads(self, feature: Feature) -> bool:
        """Return whether a tower reads a feature."""
        return reads(self.encoding.model, feature)
