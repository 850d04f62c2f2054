"""The routes: what a client may ask, and how each answer is put together."""

import time
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import numpy as np
import orjson
from fastapi import APIRouter, Depends, HTTPException, Query, Request, Response
from fastapi.responses import PlainTextResponse

from twotower.errors import ArgumentError
from twotower.serving.answers import items_as_json
from twotower.serving.arguments import nothing_told
from twotower.serving.server import schemas
from twotower.serving.server.catalogue import Change
from twotower.serving.server.engine import Answered, Model, Question
from twotower.serving.server.lookup import example_of, ids_like, items_like, latest_of
from twotower.serving.server.service import Service
from twotower.serving.server.strict import TRUTH, WHOLE, StrictRoute, check_ids
from twotower.vocab import FIRST_ROW

JSON = "application/json"


def _refusals(sentences: dict[int, str]) -> dict[int | str, dict[str, Any]]:
    return {k: {"model": schemas.Refusal, "description": said} for k, said in sentences.items()}


REFUSALS = _refusals(
    {
        400: "The request is not HTTP, or has no Host header that can be read.",
        401: "The token is missing or wrong.",
        408: "The headers or the body did not come in time.",
        413: "The body is too large.",
        414: "The address is too long.",
        415: "The body is not said to be JSON.",
        421: "The server does not answer to this name; see TWOTOWER_ALLOWED_HOSTS.",
        422: "What is asked cannot be answered.",
        429: "Too many wait.",
        431: "The headers are too large, or too many.",
        500: "The server failed; its log says why.",
        503: "The answer did not come in time.",
    }
)
OF_ITEMS = _refusals({404: "The item is not in the catalogue."})
OF_IDS = _refusals({404: "An id is not known."})
WRITES = _refusals(
    {
        403: "Writing is switched off.",
        409: "It cannot be written, an id stands twice, or the bundle cannot take over.",
    }
)
router = APIRouter(responses=REFUSALS, route_class=StrictRoute)
FoundText = Annotated[str, Query(max_length=schemas.LONGEST_ID)]
Limit = Annotated[int, Query(ge=1, le=100), WHOLE]


def provide_service(request: Request) -> Service:
    """Return the object that the routes share."""
    service: Service = request.app.state.service
    return service


Serving = Annotated[Service, Depends(provide_service)]


@router.post("/recommend", response_model=schemas.RecommendAnswer, tags=["answers"])
async def recommend(body: schemas.RecommendBody, service: Serving) -> Response:
    """Return the best items for one query."""
    answered = await service.batcher.ask(_question(service, body, body))
    return _json(service, _as_json(answered))


@router.post("/recommend/many", response_model=schemas.ManyAnswer, tags=["answers"])
async def recommend_many(body: schemas.ManyBody, service: Serving) -> Response:
    """Return the best items for several queries, in their order."""
    _check_queries(service, body.queries)
    found = await service.batcher.ask_all([_question(service, q, body) for q in body.queries])
    return _json(service, {"answers": [_as_json(answered) for answered in found]})


@router.get("/similar", response_model=schemas.SimilarAnswer, responses=OF_ITEMS, tags=["answers"])
async def similar(
    item_id: FoundText,
    service: Serving,
    k: Annotated[int, Query(ge=1), WHOLE] = 10,
    filter: Annotated[schemas.Filter | None, Query(max_length=schemas.LONGEST_ADDRESS)] = None,  # noqa: A002
    columns: Annotated[bool, TRUTH] = False,
) -> Response:
    """Return an item's nearest neighbours, by cosine."""
    _check_k(service, k)

    def found(model: Model) -> dict[str, Any]:
        _check_items(model, [item_id])
        answer = model.retriever.similar_items(item_id, k, filter=filter)
        lines = model.retriever.items(answer.item_ids).to_dicts() if columns else None
        ids = model.retriever.contents.items.ids
        asked = ids.ids_of(ids.rows_of([item_id]))[0]  # 7 in place of "7", if ids are numbers
        return {"item_id": asked, "items": items_as_json(answer, lines), "notes": answer.notes}

    return await _asked(service, found)


@router.post("/explain", response_model=schemas.ExplainAnswer, responses=OF_ITEMS, tags=["answers"])
async def explain(body: schemas.ExplainBody, service: Serving) -> Response:
    """Return what each part of a query and of an item does for their score."""
    check_ids(body.history or (), service.engine.model.retriever.item_column)

    def explained(model: Model) -> dict[str, Any]:
        _check_items(model, [body.item_id])
        features, ignored = model.known_features(body.features)
        found = model.retriever.explain(
            body.query_id, body.item_id, features=features, history=body.history, at=body.at
        )
        both = {
            name: [vars(part) for part in parts]
            for name, parts in (("parts", found.parts), ("ranking", found.ranking))
        }
        return {"ignored": ignored, **vars(found), **both}

    return await _asked(service, explained)


@router.post("/score", response_model=schemas.ScoreAnswer, responses=OF_IDS, tags=["answers"])
async def score(body: schemas.ScoreBody, service: Serving) -> Response:
    """Return the score of pairs of a query and an item, both known."""

    def scored(model: Model) -> dict[str, Any]:
        query_ids = [query_id for query_id, _ in body.pairs]
        rows = model.retriever.contents.queries.ids.rows_of(query_ids)
        unknown = np.flatnonzero(rows < FIRST_ROW)
        if len(unknown):
            raise HTTPException(404, f"query ids must be known, got {query_ids[unknown[0]]!r}.")
        _check_items(model, [item_id for _, item_id in body.pairs])
        return {"scores": model.retriever.score(body.pairs).tolist()}

    return await _asked(service, scored)


@router.post("/encode/queries", response_model=schemas.VectorsAnswer, tags=["answers"])
async def encode_queries(body: schemas.QueriesBody, service: Serving) -> Response:
    """Return the vectors of queries."""
    _check_queries(service, body.queries)
    for query in body.queries:
        check_ids(query.history or (), service.engine.model.retriever.item_column)

    def encoded(model: Model) -> dict[str, Any]:
        vectors, ignored = [], dict[str, None]()
        for query in body.queries:  # each may be described in another way
            features, unknown = model.known_features(query.features)
            ignored |= dict.fromkeys(unknown)
            if query.query_id is None and features is None and query.history is None:
                raise nothing_told()  # the retriever would encode all that it knows
            found = model.retriever.encode_queries(
                query.query_id, features=features, history=query.history, at=query.at
            )
            vectors += found.tolist()
        return {"vectors": vectors, "ignored": list(ignored)}

    return await _asked(service, encoded)


@router.post(
    "/encode/items", response_model=schemas.VectorsAnswer, responses=OF_IDS, tags=["answers"]
)
async def encode_items(body: schemas.EncodeItemsBody, service: Serving) -> Response:
    """Return the vectors of items of the catalogue, or of items that it does not have."""

    def encoded(model: Model) -> dict[str, Any]:
        _check_items(model, body.item_ids or ())
        vectors, ignored = model.vectors_of_items(body.item_ids, body.features)
        return {"vectors": vectors.tolist(), "ignored": ignored}

    return await _asked(service, encoded)


@router.get("/items", response_model=schemas.FoundAnswer, tags=["catalogue"])
async def items(service: Serving, text: FoundText = "", limit: Limit = 20) -> Response:
    """Return items whose columns hold a text, whatever its case; the most popular ones first."""
    retriever = (await service.caught_up()).retriever
    found = await service.lookups.ask(lambda: items_like(retriever, text, limit))
    return _json(service, {"items": found})


@router.get("/queries", response_model=schemas.IdsAnswer, tags=["catalogue"])
async def queries(service: Serving, text: FoundText = "", limit: Limit = 20) -> Response:
    """Return ids of known queries that begin with a text."""
    retriever = service.engine.model.retriever
    found = await service.lookups.ask(lambda: ids_like(retriever, text, limit))
    return _json(service, {"query_ids": found})


@router.get("/history", response_model=schemas.FoundAnswer, tags=["catalogue"])
async def history(service: Serving, query_id: FoundText, limit: Limit = 20) -> Response:
    """Return the latest items of a known query, the last one first."""
    retriever = (await service.caught_up()).retriever
    found = await service.lookups.ask(lambda: latest_of(retriever, query_id, limit))
    return _json(service, {"items": found})


@router.get("/example", response_model=schemas.ExampleAnswer, tags=["catalogue"])
async def example(service: Serving) -> Response:
    """Return something to ask, drawn at random: a known query, and a popular item."""
    retriever = (await service.caught_up()).retriever
    found = await service.lookups.ask(lambda: example_of(retriever, np.random.default_rng()))
    return _json(service, found)


@router.get("/map", response_model=schemas.MapAnswer, tags=["catalogue"])
async def item_map(service: Serving) -> Response:
    """Return the catalogue in two dimensions; it is drawn beside the answers when it is first asked for."""
    return Response(service.map(), media_type=JSON)


@router.put("/items", response_model=schemas.ChangedAnswer, responses=WRITES, tags=["catalogue"])
async def put_items(body: schemas.ItemsBody, service: Serving) -> Response:
    """Put items into the catalogue, or others in the place of those with their ids."""
    column = service.engine.model.retriever.item_column
    check_ids(body.items, column)
    _check_distinct([line[column] for line in body.items], column)
    return _json(service, vars(await service.change(Change(items=body.items))))


@router.delete("/items", response_model=schemas.ChangedAnswer, responses=WRITES, tags=["catalogue"])
async def delete_items(
    service: Serving, item_id: Annotated[list[FoundText], Query(min_length=1, max_length=1000)]
) -> Response:
    """Take items out of the catalogue; histories that hold them still count."""
    return _json(service, vars(await service.change(Change(item_ids=list(item_id)))))


@router.get("/model", response_model=schemas.ModelAnswer, tags=["model"])
async def model_info(service: Serving) -> Response:
    """Return what the server answers from."""
    return _json(service, _described(service, await service.caught_up()))


@router.put("/model", response_model=schemas.ModelAnswer, responses=WRITES, tags=["model"])
async def exchange(body: schemas.ModelBody, service: Serving) -> Response:
    """Answer from another bundle on the server's disk; no request fails meanwhile.

    The other workers follow as soon as they have opened it, too.
    """
    model = await service.exchange(body.path)
    return _json(service, _described(service, model))


@router.get("/health", response_model=schemas.HealthAnswer, tags=["operation"])
async def health() -> dict[str, str]:
    """Say that the process answers."""
    return {"status": "ok"}


@router.get(
    "/ready",
    response_model=schemas.ReadyAnswer,
    responses={503: {"model": schemas.ReadyAnswer, "description": "As many wait as may."}},
    tags=["operation"],
)
async def ready(service: Serving) -> Response:
    """Say whether queries may be sent here: 503 where as many wait as may."""
    is_ready = len(service.batcher) < service.settings.waiting
    status = {"status": "ready" if is_ready else "busy", "model": service.engine.model.digest}
    return Response(orjson.dumps(status), 200 if is_ready else 503, media_type=JSON)


@router.get("/metrics", response_class=PlainTextResponse, tags=["operation"])
async def metrics(service: Serving) -> Response:
    """Return the figures that Prometheus reads."""
    service.figures.waiting.set(len(service.batcher))
    service.figures.items.set(service.engine.model.retriever.contents.num_items)
    body, media_type = service.figures.page()
    return Response(body, media_type=media_type)


async def _asked(service: Service, work: Callable[[Model], dict[str, Any]]) -> Response:
    """Answer with the result of some work, which runs in the thread of the current model."""
    model = service.engine.model

    def found() -> dict[str, Any]:
        model.catalogue.catch_up()
        return {**work(model), "model": model.digest}

    return _json(service, await service.asker.ask(found))


def _check_items(model: Model, item_ids: Sequence[int | str]) -> None:
    try:
        model.retriever.known_item_rows(item_ids)
    except ValueError as error:
        raise HTTPException(404, str(error)) from error


def _check_queries(service: Service, queries: Sequence[schemas.QueryBody]) -> None:
    most = service.settings.batch
    if len(queries) > most:
        raise ArgumentError(f"queries must be at most {most}, got {len(queries)}; ask in parts.")


def _check_distinct(ids: Sequence[Any], column: str) -> None:
    seen: set[str] = set()
    for item_id in ids:
        if str(item_id) in seen:
            raise HTTPException(
                409, f"{column} must be distinct within a call, got {item_id!r} twice."
            )
        seen.add(str(item_id))


def _check_k(service: Service, k: int) -> None:
    if k > service.settings.max_k:
        raise ArgumentError(f"k must be at most {service.settings.max_k}, got {k}.")


def _question(service: Service, query: schemas.QueryBody, choice: schemas.Choice) -> Question:
    _check_k(service, choice.k)
    check_ids(query.history or (), service.engine.model.retriever.item_column)
    return Question(
        k=choice.k,
        exclude_seen=choice.exclude_seen,
        among=None if choice.among is None else tuple(choice.among),
        without=None if choice.without is None else tuple(choice.without),
        filter=choice.filter,
        words=choice.words,
        rerank=choice.rerank,
        strict=choice.strict,
        query_id=query.query_id,
        features=query.features,
        history=query.history,
        at=query.at,
        columns=choice.columns,
        rules=() if choice.rules is None else choice.rules.to_rules(),
    )


def _as_json(answered: Answered) -> dict[str, Any]:
    answer = answered.answer
    return {
        "query_id": answer.query_id,
        "basis": answer.basis,
        "items": items_as_json(answer, answered.lines),
        "ignored": answered.ignored,
        "notes": answer.notes,
        "model": answered.model.digest,
    }


def _described(service: Service, model: Model) -> dict[str, Any]:
    contents = model.retriever.contents
    return {
        **model.description,
        "model": model.digest,
        "items": contents.num_items,
        "max_k": service.settings.max_k,
        "max_queries": service.settings.batch,
    }


def _json(service: Service, answer: dict[str, Any]) -> Response:
    started = time.perf_counter()
    body = orjson.dumps(answer, default=str)
    service.figures.stages.labels("json").observe(time.perf_counter() - started)
    return Response(body, media_type=JSON)
