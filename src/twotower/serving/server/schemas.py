"""The JSON of requests and answers, which the OpenAPI page describes."""

from typing import Annotated, Any, Literal, TypeVar

import pydantic
from pydantic import BaseModel, Field, StrictBool, StrictInt, StrictStr
from pydantic.json_schema import SkipJsonSchema
from pydantic_core import PydanticCustomError
from typing_extensions import TypeAliasType

from twotower.rules.kinds import LARGEST_BOOST, MOST_BOOSTS, RULES, Rule
from twotower.serving.arguments import LATEST, TIME

LONGEST_ID = 4096
LONGEST_TEXT = 100_000
LONGEST_ADDRESS = 8_192
"""Characters of a filter in an address: servers and proxies take no long addresses."""
MOST_EVENTS = 10_000
MOST_COLUMNS = 1_000
MOST_QUERIES = 10_000
MOST_AT_ONCE = 1_000
"""Most pairs to score, or items to encode, in one request."""
LARGEST_ID = 2**63 - 1
LARGEST_SEED = 2**53
"""The largest whole number that every JSON reader can hold."""


def _check_time(line: dict[str, Any]) -> dict[str, Any]:
    time = line.get(TIME)
    is_number = isinstance(time, (int, float)) and not isinstance(time, bool)
    if time is not None and not (is_number and abs(time) <= LATEST):
        raise PydanticCustomError(
            "time",
            f"the time of an event must be a number of seconds since 1970, at most {LATEST:g} from it",
        )
    return line


def _whole(given: object) -> int:
    if not isinstance(given, float) or not abs(given) < LARGEST_ID or given != int(given):
        raise PydanticCustomError("whole_type", "Input should be a valid integer")
    return int(given)


def _as_whole(given: object) -> object:
    return int(given) if isinstance(given, float) and given.is_integer() else given


Each = TypeVar("Each")
Events = Annotated[list[Each], Field(max_length=MOST_EVENTS, fail_fast=True)]
AtOnce = Annotated[list[Each], Field(min_length=1, max_length=MOST_AT_ONCE, fail_fast=True)]
Id = (
    Annotated[StrictInt, Field(ge=-LARGEST_ID - 1, le=LARGEST_ID)]
    | Annotated[StrictStr, Field(max_length=LONGEST_ID)]
    | SkipJsonSchema[Annotated[int, pydantic.PlainValidator(_whole)]]  # 7.0 is 7 in JSON
)
Moment = Annotated[float, Field(strict=True, ge=-LATEST, le=LATEST)]
Count = Annotated[int, Field(strict=True, ge=1), pydantic.BeforeValidator(_as_whole)]
Text = Annotated[StrictStr, Field(max_length=LONGEST_TEXT)]
Filter = Annotated[
    StrictStr, Field(min_length=1, max_length=LONGEST_TEXT, json_schema_extra={"format": "filter"})
]
Scalar = StrictBool | StrictInt | pydantic.StrictFloat | Text | None
# A name puts it into the schema once.
Value = TypeAliasType("Value", Scalar | Events[Scalar])
Columns = Annotated[dict[str, Value], Field(max_length=MOST_COLUMNS)]
Event = TypeAliasType("Event", Annotated[Columns, pydantic.AfterValidator(_check_time)])
Line = TypeAliasType("Line", Columns)


def _given(word: Literal["anyOf", "oneOf"], names: tuple[str, ...]) -> pydantic.ConfigDict:
    """Return a configuration whose schema says that any of the fields, or just one, must be given."""
    kinds: Any = [{"required": [n], "properties": {n: {"not": {"type": "null"}}}} for n in names]
    return pydantic.ConfigDict(json_schema_extra={word: kinds})


class Told(BaseModel):
    """What a request may say; anything else in it is a mistake."""

    model_config = pydantic.ConfigDict(extra="forbid")


class QueryBody(Told):
    """Who or what asks: an id, features, a history of items, or any mix."""

    model_config = _given("anyOf", ("query_id", "features", "history"))

    query_id: Id | None = Field(
        None, description="A query's own key. What else is given wins over what is known of it."
    )
    features: Columns | None = Field(None, description="Column to value.")
    history: Events[Id | Event] | None = Field(
        None,
        description="Item ids, oldest first; or lines that hold the id under the name of its column, "
        "`time` in seconds since 1970, and what else the model reads of an event.",
    )
    at: Moment | None = Field(
        None,
        description="When the question is asked, in seconds since 1970; null: now. Read by models "
        "that were trained with `towers.question_time`.",
    )


Deviations = Annotated[float, Field(strict=True, ge=-LARGEST_BOOST, le=LARGEST_BOOST)]
Share = Annotated[float, Field(strict=True, ge=0, le=1)]
Seed = Annotated[
    int, Field(strict=True, ge=0, le=LARGEST_SEED), pydantic.BeforeValidator(_as_whole)
]


class BoostBody(Told):
    """Items that match a filter are moved up, or down."""

    filter: Filter
    by: Deviations = Field(description="Standard deviations of the query's scores; below 0: down.")


class ExploreBody(Told):
    """A share of the places goes to items drawn at random."""

    share: Share = Field(description="Of the places.")
    seed: Seed = Field(0, description="Another, another draw.")
    filter: Filter | None = Field(
        None, description="Which items; null: those without a training event."
    )


class RulesBody(Told):
    """What stands in an answer beside what the model says; see docs/rules.md."""

    boost: Annotated[list[BoostBody], Field(max_length=MOST_BOOSTS, fail_fast=True)] = Field(
        [], description="Each moves the items that match its filter."
    )
    cap: Annotated[dict[str, Count], Field(max_length=MOST_COLUMNS)] = Field(
        {}, description="Column to the most items of one of its values."
    )
    diversify: Share | None = Field(
        None, description="The weight of unlikeness to the items above, beside the score."
    )
    explore: ExploreBody | None = None

    def to_rules(self) -> tuple[Rule, ...]:
        """Return the rules."""
        told = ((spec, getattr(self, name, None)) for name, spec in RULES.items())
        return tuple(rule for spec, said in told if said is not None for rule in spec.of_json(said))


class Choice(Told):
    """Which items may be an answer, and how many."""

    k: Count = Field(10, description="Number of items.")
    exclude_seen: StrictBool | None = Field(
        None, description="Leave items of the history out; null: as the data was."
    )
    among: Events[Id] | None = Field(None, description="Ids that the answer may hold.")
    without: Events[Id] | None = Field(None, description="Ids that the answer must not hold.")
    filter: Filter | None = Field(
        None,
        description="An expression over the items' columns that each answer matches, such as "
        "`genre = 'drama' and year >= 2000`.",
    )
    words: Literal["auto"] | Share = Field(
        "auto",
        description="Share of the words in common, by BM25, beside the model's score; `auto` is the share "
        "that training chose.",
    )
    rules: RulesBody | None = Field(None, description="Boosts, caps, diversity, exploration.")
    rerank: StrictBool = Field(
        True, description="Put the best items in the order of the second stage, if there is one."
    )
    strict: StrictBool = Field(False, description="Refuse features that the model does not know.")
    columns: StrictBool = Field(False, description="Give the items' columns, too.")


class RecommendBody(QueryBody, Choice):
    """One query."""


class QueriesBody(Told):
    """Queries that are encoded."""

    queries: list[QueryBody] = Field(min_length=1, max_length=MOST_QUERIES, fail_fast=True)


class ManyBody(QueriesBody, Choice):
    """Several queries that are answered alike."""


class ExplainBody(QueryBody):
    """A query and the item whose score is to be explained."""

    item_id: Id


class ItemsBody(Told):
    """Items to put in, each in place of the one with its id."""

    items: Annotated[Events[Line], Field(min_length=1)] = Field(
        description="Lines with the id and columns of the items' table; what a line lacks is missing."
    )


class ScoreBody(Told):
    """Pairs of a query and an item, both known."""

    pairs: AtOnce[tuple[Id, Id]] = Field(description="Each the id of a query and that of an item.")


class EncodeItemsBody(Told):
    """Items that are encoded: known ones by their ids, or new ones by their features."""

    model_config = _given("oneOf", ("item_ids", "features"))

    item_ids: AtOnce[Id] | None = Field(None, description="Ids of the catalogue.")
    features: AtOnce[Columns] | None = Field(
        None, description="Column to value, a line an item; the items need not be there."
    )


class ChangedAnswer(BaseModel):
    """What a change did. It is on the disk, and in the next answer of every worker."""

    items: int = Field(description="Items that were put in, or that were there and are no more.")
    ignored: list[str] = Field(description="Columns that the catalogue does not have.")
    without_features: int = Field(description="Items of which the model reads nothing.")
    model: str


class ModelBody(Told):
    """Which bundle is to take over."""

    path: Annotated[StrictStr, Field(min_length=1, max_length=LONGEST_ID)]


class Item(BaseModel):
    """One item of an answer."""

    item_id: int | str
    score: float
    propensity: float | None = Field(
        None, description="How probable it was that the item is explored, where it was."
    )
    columns: dict[str, Any] | None = None


class RecommendAnswer(BaseModel):
    """The items of one query, best first, or in the order that rules made."""

    query_id: int | str | None
    basis: Literal["model", "popularity"] = Field(
        description="`popularity` where nothing is known of the query that the model reads."
    )
    items: list[Item]
    ignored: list[str] = Field(description="Features that the model does not know.")
    notes: list[str] = Field(
        description="Values of a filter that no item has, and ids of the history that are not known."
    )
    model: str = Field(description="Digest of the model that answered.")


class ManyAnswer(BaseModel):
    """The answers in the order of the queries."""

    answers: list[RecommendAnswer]


class SimilarAnswer(BaseModel):
    """An item's nearest neighbours, by cosine."""

    item_id: int | str
    items: list[Item]
    notes: list[str] = Field(description="Values of the filter that no item has.")
    model: str


class ScoreAnswer(BaseModel):
    """The scores in the order of the pairs."""

    scores: list[float]
    model: str


class VectorsAnswer(BaseModel):
    """Vectors in the order of what was asked about; a query and an item score their dot product."""

    vectors: list[list[float]]
    ignored: list[str] = Field(description="Features that the model does not know.")
    model: str


class HealthAnswer(BaseModel):
    """The process answers."""

    status: Literal["ok"]


class ReadyAnswer(BaseModel):
    """Whether queries may be sent here."""

    status: Literal["ready", "busy"]
    model: str


class IdsAnswer(BaseModel):
    """Ids of known queries."""

    query_ids: list[int | str]


class FoundAnswer(BaseModel):
    """Items whose columns hold a text."""

    items: list[dict[str, Any]]


class ExampleAnswer(BaseModel):
    """Something to ask, drawn at random."""

    query_id: int | str | None = Field(
        description="A known query; null where the bundle knows none."
    )
    item: dict[str, Any] | None = Field(description="One of the most popular items.")


class MapColumn(BaseModel):
    """What the items on a map can be coloured by."""

    name: str
    groups: list[str] = Field(description="Values, or ranges of a number in their order.")
    codes: str = Field(description="A character an item: the place of its group, or a point.")


class MapAnswer(BaseModel):
    """Items in two dimensions, those near each other alike to the model."""

    status: Literal["drawing", "ready", "none", "failed"] = Field(
        description="`drawing`: ask again. `none`: too few vectors differ. `failed`: the log says why."
    )
    model: str | None = None
    items: int | None = Field(None, description="Of the catalogue; the map shows the most popular.")
    item_ids: list[int | str] | None = None
    titles: list[str] | None = Field(None, description="Null where the items have none.")
    x: list[int] | None = Field(None, description="From 0 to 9999.")
    y: list[int] | None = None
    columns: list[MapColumn] | None = Field(
        None, description="Those whose groups stand most apart on the map first."
    )


class Part(BaseModel):
    """What one part of a query or an item does for a score."""

    side: Literal["query", "item", "history", "ranking"]
    name: str
    value: Any
    contribution: float


class ExplainAnswer(BaseModel):
    """A score and what moved it."""

    query_id: int | str | None
    item_id: int | str
    score: float
    parts: list[Part]
    ranking: list[Part] = Field(
        description="What moves the item in the second stage; empty without one."
    )
    ignored: list[str] = Field(description="Features that the model does not know.")
    model: str


class QueryField(BaseModel):
    """A column of the queries that a person can fill in."""

    name: str
    kind: Literal["categorical", "tags", "number", "time", "text"]
    examples: list[bool | int | float | str] = Field(
        description="Values that ten queries or more have, frequent ones first; of numbers, the middle."
    )


class ModelAnswer(BaseModel):
    """What the server answers from."""

    name: str
    model: str = Field(description="Digest of the bundle's manifest.")
    created: str | None
    items: int
    queries: int
    dim: int
    query_column: str
    item_column: str
    item_columns: list[str]
    title_column: str | None = Field(
        description="The one of them that says what an item is called."
    )
    item_forms: dict[str, Literal["link", "image"]] = Field(
        description="Those of them that hold addresses."
    )
    filter_example: str = Field(description="A filter that fits these columns.")
    query_fields: list[QueryField] = Field(description="Columns that a person can fill in.")
    query_features: list[str] = Field(description="Columns that may be told of a query.")
    reads_history: bool
    has_histories: bool = Field(description="Whether it knows what its queries did.")
    reads_text: bool = Field(description="Whether `words` may be asked for.")
    reads_searches: bool = Field(
        description="Whether a query's id is read as text, as a search is."
    )
    words: float = Field(
        description="Share of the words that `auto` stands for; 0 where it is none."
    )
    second_stage: int = Field(
        description="How many of the best items a second stage puts in order; 0 without one."
    )
    max_k: int
    max_queries: int = Field(description="Queries of one request.")
    figures: dict[str, float] = Field(description="Metrics on the test, as training found them.")


class Refusal(BaseModel):
    """Why a request was not answered."""

    error: str
    request_id: str
    kind: Literal["filter"] | None = Field(
        None, description="`filter` where it is the filter that is wrong."
    )
