"""``Client``: a server with the methods of a ``Retriever``."""

import json
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl

from twotower.arrays import Float32s
from twotower.errors import ArgumentError, FilterError, ServerError
from twotower.extras import library
from twotower.features.dataframes import Frame
from twotower.rules.kinds import rule_set
from twotower.serving import arguments
from twotower.serving.answers import Recommendation, Recommendations
from twotower.serving.arguments import At, Event, FeatureLines, History, Id, Moment, Told
from twotower.serving.explain import Contribution, Explanation
from twotower.serving.recommender import Recommender, Wanted

_OF_IDS = ("/similar", "/explain", "/score", "/encode/items")
"""Routes that answer 404 for an unknown id."""
_AT_ONCE = 1000
"""Pairs or items in one request; a server takes no more."""


class Client(Recommender):
    """Sends requests to a server that ``twotower serve`` started, with the methods of a ``Retriever``.

    There is no ``session``, which would keep the state of a query on the server: send the whole history
    instead. The client keeps its connections open; close them with ``close``, or use it in a ``with``.

    Args:
        url: Address of the server, such as ``http://127.0.0.1:8000``.
        token: The server's token for readers or writers, if it has one.
        timeout: Seconds to wait for a response.

    Raises:
        MissingExtraError: The extra ``client`` is not installed.
    """

    def __init__(self, url: str, *, token: str | None = None, timeout: float = 10.0) -> None:
        httpx = library("httpx", wanted_by="Client", extra="client")
        self.url = url.rstrip("/")
        headers = {} if token is None else {"authorization": f"Bearer {token}"}
        self._failed = httpx.HTTPError
        self._http: Any = httpx.Client(base_url=self.url, headers=headers, timeout=timeout)

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Client({self.url!r})"

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    @property
    def model(self) -> dict[str, Any]:
        """The model that the server uses now."""
        return self._ask("GET", "/model")

    @cached_property
    def item_column(self) -> str:
        """Name of the items' id column."""
        return str(self.model["item_column"])

    @cached_property
    def dim(self) -> int:
        """Width of the vectors. It stays the same when the model is exchanged."""
        return int(self.model["dim"])

    def _recommended(self, told: Told, wanted: Wanted) -> Recommendation | Recommendations:
        rules = rule_set(wanted.rules)
        explores = rules.explore is not None
        choices = {**vars(wanted), "rules": rules.to_dict()}
        for name in ("among", "without"):
            if choices[name] is not None:
                choices[name] = arguments.ids_of(choices[name], what=name)
        lines = _queries(told)
        if told.single:
            answer = self._ask("POST", "/recommend", {**lines[0], **choices})
            return _answer(answer, explores=explores)
        found: list[Recommendation] = []
        at_once = int(self.model["max_queries"]) if lines else 1
        for start in range(0, len(lines), at_once):
            body = {"queries": lines[start : start + at_once], **choices}
            answers = self._ask("POST", "/recommend/many", body)["answers"]
            found += [_answer(answer, explores=explores) for answer in answers]
        known = pl.DataFrame({self.item_column: list({i for a in found for i in a.item_ids})})
        return Recommendations(tuple(found), known, self.item_column)

    def score(self, pairs: Iterable[tuple[Id, Id]] | Frame) -> Float32s:
        """Return the score of each (query id, item id) pair, ``(n,)`` float32; see ``Retriever.score``.

        Raises:
            ValueError: An id is not known.
            ServerError: The server refused, failed or could not be reached.
        """
        lines, scores = [list(pair) for pair in arguments.pairs_of(pairs)], list[float]()
        for start in range(0, len(lines), _AT_ONCE):
            body = {"pairs": lines[start : start + _AT_ONCE]}
            scores += self._ask("POST", "/score", body)["scores"]
        return np.array(scores, np.float32)

    def encode_queries(
        self,
        query_id: Id | Sequence[Id] | None = None,
        *,
        features: FeatureLines | None = None,
        history: History | None = None,
        at: At = None,
    ) -> Float32s:
        """Return query vectors, ``(n, dim)`` float32; see ``Retriever.encode_queries``.

        Raises:
            ValueError: The server cannot answer the request.
            ServerError: The server refused, failed or could not be reached.
        """
        lines = _queries(arguments.queries_of(query_id, features, history, at))
        return self._vectors("/encode/queries", "queries", lines, int(self.model["max_queries"]))

    def encode_items(
        self, item_ids: Sequence[Id] | None = None, *, features: FeatureLines | None = None
    ) -> Float32s:
        """Return item vectors, ``(n, dim)`` float32, of known ids, or of new items by their features.

        See ``Retriever.encode_items``. For the vectors of all items, open the bundle.

        Raises:
            ValueError: Neither argument is given, or both are, or an id is not in the catalogue.
            ServerError: The server refused, failed or could not be reached.
        """
        if (item_ids is None) == (features is None):
            got = "neither; open the bundle for all items" if features is None else "both"
            raise ArgumentError(f"encode_items of a server takes item_ids or features, got {got}.")
        if item_ids is not None:
            ids = arguments.ids_of(item_ids, what="item_ids")
            return self._vectors("/encode/items", "item_ids", ids, _AT_ONCE)
        lines = arguments.features_of(features or {}).lines()
        return self._vectors("/encode/items", "features", lines, _AT_ONCE)

    def _vectors(self, path: str, key: str, asked: Sequence[object], at_once: int) -> Float32s:
        found: list[list[float]] = []
        for start in range(0, len(asked), at_once):
            told = self._ask("POST", path, {key: asked[start : start + at_once]})
            _warn_of_ignored(told)
            found += told["vectors"]
        return np.array(found, np.float32) if found else np.zeros((0, self.dim), np.float32)

    def similar_items(
        self,
        item_id: Id,
        k: int = 10,
        *,
        filter: str | None = None,  # noqa: A002 -- the word that users know
    ) -> Recommendation:
        """Return the ``k`` nearest neighbours of an item; see ``Retriever.similar_items``.

        Raises:
            FilterError: The filter cannot be parsed, or does not fit the items' columns.
            ValueError: The server cannot answer the request.
            ServerError: The server refused, failed or could not be reached.
        """
        parameters: dict[str, object] = {"item_id": str(item_id), "k": k}
        if filter is not None:
            parameters["filter"] = filter
        told = self._ask("GET", "/similar", parameters=parameters)
        return _answer({**told, "query_id": item_id, "basis": "model"})

    def explain(
        self,
        query_id: Id | None,
        item_id: Id,
        *,
        features: Mapping[str, object] | None = None,
        history: Sequence[Event] | None = None,
        at: Moment | None = None,
    ) -> Explanation:
        """Return the contributions to a score; see ``Retriever.explain``.

        Raises:
            ValueError: The server cannot answer the request.
            ServerError: The server refused, failed or could not be reached.
        """
        events = None if history is None else list(history)
        body = {
            "query_id": query_id,
            "item_id": item_id,
            "features": features,
            "history": events,
            "at": None if at is None else arguments.seconds_of(at, "at"),
        }
        told = self._ask("POST", "/explain", body)
        parts, ranking = (
            tuple(Contribution(**part) for part in told[name]) for name in ("parts", "ranking")
        )
        return Explanation(told["query_id"], told["item_id"], told["score"], parts, ranking)

    def upsert_items(self, items: FeatureLines) -> int:
        """Add items to the catalogue, or replace them; see ``Retriever.upsert_items``.

        When this returns, the items are on the server's disk, and every worker uses them from its next
        answer on.

        Raises:
            ValueError: A row does not fit the items' table.
            ServerError: The server refused, failed or could not be reached; or the token is wrong.
        """
        lines = arguments.features_of(items).lines()
        if not lines:
            return 0
        told = self._ask("PUT", "/items", {"items": lines})
        _warn_of_ignored(told)
        return int(told["items"])

    def delete_items(self, item_ids: Sequence[Id]) -> int:
        """Remove items from the catalogue; see ``Retriever.delete_items``.

        Raises:
            ServerError: As ``upsert_items``.
        """
        ids = [str(item_id) for item_id in arguments.ids_of(item_ids, what="item_ids")]
        if not ids:
            return 0
        return int(self._ask("DELETE", "/items", parameters={"item_id": ids})["items"])

    def exchange_model(self, path: str) -> dict[str, Any]:
        """Switch the server to another bundle on its disk, and return the new model.

        Raises:
            ServerError: The server cannot switch to that bundle, or the token is missing or wrong.
        """
        return self._ask("PUT", "/model", {"path": path})

    def _ask(
        self,
        method: str,
        path: str,
        body: Mapping[str, object] | None = None,
        *,
        parameters: Mapping[str, object] | None = None,
    ) -> dict[str, Any]:
        if arguments.is_too_deep(body):
            raise ArgumentError(
                f"a request must be nested at most {arguments.DEEPEST} levels deep, got more."
            )
        content = None if body is None else json.dumps(_plain(body)).encode()
        try:
            answer = self._http.request(
                method,
                path,
                content=content,
                headers={"content-type": "application/json"},
                params=parameters,
            )
            told: dict[str, Any] = answer.json()
        except (self._failed, ValueError) as error:
            raise ServerError(f"{self.url} must be a server of twotower: {error}.") from error
        if answer.status_code == 422 or (answer.status_code == 404 and path in _OF_IDS):
            raise (FilterError if told.get("kind") == "filter" else ValueError)(told.get("error"))
        if answer.status_code != 200:
            raise ServerError(f"{self.url} said {answer.status_code}: {told.get('error')}")
        return told


def _answer(told: Mapping[str, Any], *, explores: bool = False) -> Recommendation:
    items = told["items"]
    _warn_of_ignored(told)
    drawn = {item["item_id"]: item["propensity"] for item in items if "propensity" in item}
    return Recommendation(
        told["query_id"],
        [item["item_id"] for item in items],
        [item["score"] for item in items],
        told["basis"],
        drawn if explores else None,
        tuple(told.get("notes", ())),
    )


def _warn_of_ignored(told: Mapping[str, Any]) -> None:
    if told.get("ignored"):
        names = ", ".join(map(repr, told["ignored"]))
        warnings.warn(
            f"features must be columns that the bundle knows, got {names}. Nothing reads them.",
            stacklevel=4,
        )


def _queries(told: Told) -> list[dict[str, object]]:
    nothing = [None] * len(told.ids)
    features = nothing if told.features is None else told.features.lines()
    histories = nothing if told.histories is None else told.histories
    moments = nothing if told.at is None else told.at
    return [
        {"query_id": query_id, "features": line, "history": events, "at": at}
        for query_id, line, events, at in zip(told.ids, features, histories, moments, strict=True)
    ]


def _plain(value: Any) -> Any:
    """Return a value as JSON: numpy values become Python's, NaN becomes null, dates become text."""
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple, pl.Series)) or getattr(value, "ndim", 0) > 0:
        return [_plain(inner) for inner in value]
    if isinstance(value, np.generic) or getattr(value, "ndim", None) == 0:
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return value.isoformat() if hasattr(value, "isoformat") else str(value)
