"""What a client may ask, and how the answer is put together."""

import time
from typing import TYPE_CHECKING, Annotated, Any

import orjson
from fastapi import APIRouter, HTTPException, Query, Request, Response
from fastapi.responses import PlainTextResponse

from twotower.serving.answers import Recommendation
from twotower.serving.server.engine import Answered, Change, Model, Question
from twotower.serving.server.lookup import ids_like, items_like, latest_of
from twotower.serving.server.schemas import (
    LONGEST_ID,
    LONGEST_TEXT,
    ChangedAnswer,
    Choice,
    ExplainAnswer,
    ExplainBody,
    FoundAnswer,
    ItemsBody,
    ManyAnswer,
    ManyBody,
    ModelAnswer,
    ModelBody,
    QueryBody,
    RecommendAnswer,
    RecommendBody,
    Refusal,
    SimilarAnswer,
)
from twotower.serving.server.strict import StrictRoute

if TYPE_CHECKING:
    from twotower.serving.server.service import Service

JSON = "application/json"
REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": Refusal, "description": what}
    for status, what in (
        (400, "That is no HTTP."),
        (401, "The token is missing or wrong."),
        (408, "The body did not come in time."),
        (413, "The body is too large."),
        (422, "What is asked cannot be answered."),
        (429, "Too many wait."),
        (503, "The answer did not come in time."),
    )
}
OF_ITEMS: dict[int | str, dict[str, Any]] = {
    404: {"model": Refusal, "description": "The item is not in the catalogue."}
}
WRITES: dict[int | str, dict[str, Any]] = {
    403: {"model": Refusal, "description": "Writing is switched off."},
    409: {"model": Refusal, "description": "It cannot be written, or the bundle cannot take over."},
}
router = APIRouter(responses=REFUSALS, route_class=StrictRoute)
FoundText = Annotated[str, Query(max_length=LONGEST_ID)]
Limit = Annotated[int, Query(ge=1, le=100)]


def _service(request: Request) -> "Service":
    service: Service = request.app.state.service
    return service


@router.post("/recommend", response_model=RecommendAnswer, tags=["answers"])
async def recommend(body: RecommendBody, request: Request) -> Response:
    """Return the best items for one query."""
    service = _service(request)
    answered = await service.batcher.ask(_question(service, body, body))
    return _json(service, _as_json(answered))


@router.post("/recommend/many", response_model=ManyAnswer, tags=["answers"])
async def recommend_many(body: ManyBody, request: Request) -> Response:
    """Return the best items for several queries, in their order."""
    service = _service(request)
    most = service.settings.batch
    if len(body.queries) > most:
        raise ValueError(f"queries must be at most {most}, got {len(body.queries)}; ask in parts.")
    found = await service.batcher.ask_all([_question(service, q, body) for q in body.queries])
    return _json(service, {"answers": [_as_json(answered) for answered in found]})


@router.get("/similar", response_model=SimilarAnswer, responses=OF_ITEMS, tags=["answers"])
async def similar(
    item_id: FoundText,
    request: Request,
    k: Annotated[int, Query(ge=1)] = 10,
    filter: Annotated[str | None, Query(max_length=LONGEST_TEXT)] = None,  # noqa: A002
    columns: bool = False,
) -> Response:
    """Return an item's nearest neighbours, by cosine."""
    service = _service(request)
    _check_k(service, k)
    model = service.engine.model

    def found() -> dict[str, Any]:
        model.catch_up()
        _check_item(model, item_id)
        answer = model.retriever.similar_items(item_id, k, filter=filter)
        lines = model.retriever.items(answer.item_ids).to_dicts() if columns else None
        asked = model.item_id(item_id)
        return {"item_id": asked, "items": _items(answer, lines), "model": model.digest}

    return _json(service, await service.ask_model(found))


@router.post("/explain", response_model=ExplainAnswer, responses=OF_ITEMS, tags=["answers"])
async def explain(body: ExplainBody, request: Request) -> Response:
    """Return what each part of a query and of an item does for their score."""
    service = _service(request)
    model = service.engine.model

    def explained() -> Any:
        model.catch_up()
        _check_item(model, body.item_id)
        features, ignored = model.known_features(body.features)
        return model.retriever.explain(
            body.query_id, body.item_id, features=features, history=body.history
        ), ignored

    found, ignored = await service.ask_model(explained)
    return _json(
        service,
        {
            "ignored": ignored,
            "query_id": found.query_id,
            "item_id": found.item_id,
            "score": found.score,
            "parts": [vars(part) for part in found.parts],
            "model": model.digest,
        },
    )


@router.get("/items", response_model=FoundAnswer, tags=["catalogue"])
async def items(request: Request, text: FoundText = "", limit: Limit = 20) -> Response:
    """Return items whose columns hold a text, whatever its case; the most popular ones first."""
    service = _service(request)
    retriever = service.engine.model.retriever
    found = await service.look_up(lambda: items_like(retriever, text, limit))
    return _json(service, {"items": found})


@router.get("/queries", tags=["catalogue"])
async def queries(request: Request, text: FoundText = "", limit: Limit = 20) -> Response:
    """Return ids of known queries that begin with a text."""
    service = _service(request)
    retriever = service.engine.model.retriever
    found = await service.look_up(lambda: ids_like(retriever, text, limit))
    return _json(service, {"query_ids": found})


@router.get("/history", response_model=FoundAnswer, tags=["catalogue"])
async def history(request: Request, query_id: FoundText, limit: Limit = 20) -> Response:
    """Return the latest items of a known query, the last one first."""
    service = _service(request)
    retriever = service.engine.model.retriever

    found = await service.look_up(lambda: latest_of(retriever, query_id, limit))
    return _json(service, {"items": found})


@router.put("/items", response_model=ChangedAnswer, responses=WRITES, tags=["catalogue"])
async def put_items(body: ItemsBody, request: Request) -> Response:
    """Put items into the catalogue, or others in the place of those with their ids."""
    return await _changed(_service(request), Change(items=body.items))


@router.delete("/items", response_model=ChangedAnswer, responses=WRITES, tags=["catalogue"])
async def delete_items(
    request: Request, item_id: Annotated[list[FoundText], Query(min_length=1, max_length=1000)]
) -> Response:
    """Take items out of the catalogue; histories that hold them still count."""
    return await _changed(_service(request), Change(item_ids=list(item_id)))


@router.get("/model", response_model=ModelAnswer, tags=["model"])
async def model_info(request: Request) -> Response:
    """Return what the server answers from."""
    service = _service(request)
    return _json(service, _described(service, service.engine.model))


@router.put(
    "/model",
    response_model=ModelAnswer,
    responses=WRITES,
    tags=["model"],
)
async def exchange(body: ModelBody, request: Request) -> Response:
    """Answer from another bundle on the server's disk; no request fails meanwhile.

    The other workers follow within a second.
    """
    service = _service(request)
    model = await service.exchange(body.path)
    return _json(service, _described(service, model))


@router.get("/health", tags=["operation"])
async def health() -> dict[str, str]:
    """Say that the process answers."""
    return {"status": "ok"}


@router.get("/ready", tags=["operation"])
async def ready(request: Request) -> Response:
    """Say whether queries may be sent here: 503 where as many wait as may."""
    service = _service(request)
    is_ready = len(service.batcher) < service.settings.waiting
    status = {"status": "ready" if is_ready else "busy", "model": service.engine.model.digest}
    return Response(orjson.dumps(status), 200 if is_ready else 503, media_type=JSON)


@router.get("/metrics", response_class=PlainTextResponse, tags=["operation"])
async def metrics(request: Request) -> Response:
    """Return the figures that Prometheus reads."""
    service = _service(request)
    service.figures.waiting.set(len(service.batcher))
    service.figures.items.set(service.num_items)
    body, media_type = service.figures.page()
    return Response(body, media_type=media_type)


async def _changed(service: "Service", change: Change) -> Response:
    return _json(service, vars(await service.change(change)))


def _check_item(model: Model, item_id: int | str) -> None:
    try:
        model.retriever.known_item_rows([item_id])
    except ValueError as error:
        raise HTTPException(404, str(error)) from error


def _check_k(service: "Service", k: int) -> None:
    if k > service.settings.max_k:
        raise ValueError(f"k must be at most {service.settings.max_k}, got {k}.")


def _question(service: "Service", query: QueryBody, choice: Choice) -> Question:
    _check_k(service, choice.k)
    return Question(
        query.query_id,
        query.features,
        query.history,
        choice.k,
        choice.exclude_seen,
        None if choice.among is None else tuple(choice.among),
        None if choice.without is None else tuple(choice.without),
        choice.filter,
        choice.words,
        choice.strict,
        choice.columns,
        tuple(rule.rule() for rule in choice.rules),
    )


def _as_json(answered: Answered) -> dict[str, Any]:
    answer = answered.answer
    return {
        "query_id": answer.query_id,
        "basis": answer.basis,
        "items": _items(answer, answered.lines),
        "ignored": answered.ignored,
        "model": answered.model.digest,
    }


def _items(answer: Recommendation, lines: list[dict[str, Any]] | None) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [
        {"item_id": item_id, "score": score}
        for item_id, score in zip(answer.item_ids, answer.scores, strict=True)
    ]
    explored = answer.explored or {}
    for item in found if explored else ():
        if item["item_id"] in explored:
            item["propensity"] = explored[item["item_id"]]
    if lines is not None:
        found = [{**item, "columns": line} for item, line in zip(found, lines, strict=True)]
    return found


def _described(service: "Service", model: Model) -> dict[str, Any]:
    contents = model.retriever.contents
    return {
        **model.description,
        "model": model.digest,
        "items": contents.num_items,
        "max_k": service.settings.max_k,
        "max_queries": service.settings.batch,
    }


def _json(service: "Service", answer: dict[str, Any]) -> Response:
    started = time.perf_counter()
    body = orjson.dumps(answer, default=str)
    service.figures.stages.labels("json").observe(time.perf_counter() - started)
    return Response(body, media_type=JSON)
