"""The OpenAPI page of one server: the general schema, narrowed by its settings and its model."""

from copy import deepcopy
from typing import Any, Literal

import numpy as np
import orjson
import polars as pl
from fastapi import FastAPI, Response

from twotower.chinese import in_chinese
from twotower.serving.arguments import LATEST, TIME
from twotower.serving.server.engine import Model
from twotower.serving.server.gate import OPEN
from twotower.serving.server.options import ServerSettings
from twotower.serving.server.schemas import LARGEST_ID
from twotower.serving.server.service import Service

Schema = dict[str, Any]
_SENTENCES = ("summary", "description")


def describe(app: FastAPI, service: Service) -> None:
    """Add the page ``/openapi.json``, which shows the limits, the tokens and the current model.

    The page is written once for each model, in both languages, since that takes as long as many answers.

    Args:
        app: The application with all its routes.
        service: The object that the routes share.
    """
    made: dict[str, dict[str, bytes]] = {}

    @app.get("/openapi.json", include_in_schema=False)
    async def schema(lang: Literal["en", "zh"] = "en") -> Response:
        model = service.engine.model
        if model.digest not in made:
            made.clear()
            english = narrowed(deepcopy(app.openapi()), service.settings, model)
            chinese = orjson.dumps(translated(english))
            made[model.digest] = {"en": orjson.dumps(english), "zh": chinese}
        return Response(made[model.digest][lang], media_type="application/json")


def narrowed(schema: Schema, settings: ServerSettings, model: Model) -> Schema:
    """Return a schema that refuses what this server refuses, as far as JSON Schema can express it.

    Args:
        schema: The schema of the routes, which is changed.
        settings: The settings of the server.
        model: The current model.
    """
    _say_whole(schema)
    parts = schema["components"]["schemas"]
    for name in ("RecommendBody", "ManyBody"):
        properties = parts[name]["properties"]
        properties["k"]["maximum"] = settings.max_k
        properties["words"] = {**properties["words"], **_words(model)}
    for name in ("ManyBody", "QueriesBody"):
        parts[name]["properties"]["queries"]["maxItems"] = settings.batch
    columns = model.retriever.contents.items.frame.columns
    parts["RulesBody"]["properties"]["cap"]["propertyNames"] = {"enum": columns}
    _narrow_strict(parts, model)
    _narrow_lines(parts, model)
    for parameter in schema["paths"]["/similar"]["get"]["parameters"]:
        if parameter["name"] == "k":
            parameter["schema"]["maximum"] = settings.max_k
    _give_examples(parts, model)
    _tell_tokens(schema, settings)
    return schema


def translated(part: Any) -> Any:
    """Return a part of a schema with its summaries and descriptions in Chinese, where there are any."""
    if isinstance(part, dict):
        return {
            name: _said(value)
            if name in _SENTENCES and isinstance(value, str)
            else translated(value)
            for name, value in part.items()
        }
    return [translated(each) for each in part] if isinstance(part, list) else part


def _said(text: str) -> str:
    """Return paragraphs in Chinese. A paragraph without a translation stays English."""
    paragraphs = text.split("\n\n")
    return "\n\n".join(in_chinese(each) or each for each in paragraphs)


def _say_whole(part: Any) -> None:
    """Restore the bounds of ids, which FastAPI rounds to floats."""
    if isinstance(part, dict):
        if part.get("type") == "integer" and abs(part.get("maximum", 0)) > 2**53:
            part |= {"minimum": -LARGEST_ID - 1, "maximum": LARGEST_ID}
        for inner in part.values():
            _say_whole(inner)
    elif isinstance(part, list):
        for inner in part:
            _say_whole(inner)


def _words(model: Model) -> Schema:
    """Return the shares of the words that a model takes."""
    auto = {"const": "auto", "type": "string"}
    bounds = {"minimum": 0, "maximum": 1} if model.description["reads_text"] else {"const": 0}
    return {"anyOf": [auto, {"type": "number", **bounds}]}


def _narrow_strict(parts: Schema, model: Model) -> None:
    """Say that ``strict`` allows only known features."""
    known = {"propertyNames": {"enum": sorted(model.query_columns)}}
    strict = {"properties": {"strict": {"const": True}}, "required": ["strict"]}
    of_one = {"properties": {"features": known}}
    parts["RecommendBody"] |= {"if": strict, "then": of_one}
    parts["ManyBody"] |= {
        "if": strict,
        "then": {"properties": {"queries": {"items": of_one}}},
    }


def _narrow_lines(parts: Schema, model: Model) -> None:
    """Name the column of item ids in lines and events, and bound the ids that the catalogue can hold."""
    retriever = model.retriever
    column, dtype = retriever.item_column, retriever.contents.items.ids.ids.dtype
    any_id = parts["ExplainBody"]["properties"]["item_id"]["anyOf"]
    own_id = any_id
    if dtype.is_integer():
        held = np.iinfo(pl.Series([], dtype=dtype).to_numpy().dtype)
        lowest, highest = max(held.min, -LARGEST_ID - 1), min(held.max, LARGEST_ID)
        digits = f"{'-?' if lowest else ''}[0-9]{{1,{len(str(highest)) - 1}}}"
        own_id = [
            {"type": "integer", "minimum": int(lowest), "maximum": int(highest)},
            {"type": "string", "pattern": f"^{digits}$"},
        ]
    for name, kinds in (("Event", any_id), ("Line", own_id)):
        parts[name] |= {"required": [column]}
        parts[name].setdefault("properties", {})[column] = {"anyOf": kinds}
    parts["Event"]["properties"][TIME] = {
        "anyOf": [{"type": "number", "minimum": -LATEST, "maximum": LATEST}, {"type": "null"}]
    }


def _give_examples(parts: Schema, model: Model) -> None:
    """Add examples with ids that exist, so that they have an answer."""
    items = model.retriever.item_ids[:1]
    queries = model.retriever.contents.queries.ids.ids[:1].to_list()
    for name, key, example in (
        ("RecommendBody", "query_id", queries),
        ("ExplainBody", "query_id", queries),
        ("ExplainBody", "item_id", items),
        ("EncodeItemsBody", "item_ids", [items] if items else []),
        ("ScoreBody", "pairs", [[[queries[0], items[0]]]] if queries and items else []),
    ):
        if example:
            parts[name]["properties"][key]["examples"] = example


def _tell_tokens(schema: Schema, settings: ServerSettings) -> None:
    """Mark the routes that need a token."""
    schema["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    for path, methods in schema["paths"].items():
        for method, route in methods.items():
            writes = method in ("put", "delete")
            if writes or (settings.read_token is not None and path not in OPEN):
                route["security"] = [{"token": []}]
