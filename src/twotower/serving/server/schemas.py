"""The JSON of requests and answers. What the OpenAPI page says is this."""

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    Tag,
)

from twotower.rules.kinds import Boost, Cap, Diversify, Explore

LONGEST_ID = 4096
LONGEST_TEXT = 100_000
MOST_EVENTS = 10_000
MOST_COLUMNS = 1_000
MOST_QUERIES = 10_000
MOST_RULES = 20

Id = StrictInt | Annotated[StrictStr, Field(max_length=LONGEST_ID)]
Text = Annotated[StrictStr, Field(max_length=LONGEST_TEXT)]
Scalar = StrictBool | StrictInt | StrictFloat | Text | None
Value = Scalar | Annotated[list[Scalar], Field(max_length=MOST_EVENTS, fail_fast=True)]
Columns = Annotated[dict[str, Value], Field(max_length=MOST_COLUMNS)]
Ids = Annotated[list[Id], Field(max_length=MOST_EVENTS, fail_fast=True)]


class Told(BaseModel):
    """What a request may say; anything else in it is a mistake."""

    model_config = ConfigDict(extra="forbid")


class QueryBody(Told):
    """Who or what asks: an id, features, a history of items, or any mix."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "anyOf": [{"required": [name]} for name in ("query_id", "features", "history")]
        },
    )

    query_id: Id | None = Field(
        None, description="A query's own key. What else is given wins over what is known of it."
    )
    features: Columns | None = Field(None, description="Column to value.")
    history: Annotated[list[Id | Columns], Field(max_length=MOST_EVENTS, fail_fast=True)] | None = (
        Field(
            None,
            description="Item ids, oldest first; or lines that hold the id under the name of its column, "
            "`time` in seconds since 1970, and what else the model reads of an event.",
        )
    )


Expression = Annotated[StrictStr, Field(max_length=LONGEST_TEXT)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Share = Annotated[float, Field(strict=True, ge=0, le=1)]


class BoostBody(Told):
    """Items that match a filter are moved up, or down."""

    boost: Expression = Field(description="The filter.")
    by: Number = Field(description="Standard deviations of the query's scores; below 0: down.")

    def rule(self) -> Boost:
        """Return the rule."""
        return Boost(self.boost, self.by)


class CapBody(Told):
    """At most some items of one value of a column."""

    cap: Annotated[StrictStr, Field(min_length=1, max_length=LONGEST_ID)] = Field(
        description="The column."
    )
    most: Annotated[int, Field(strict=True, ge=1)] = Field(description="Items of one value.")

    def rule(self) -> Cap:
        """Return the rule."""
        return Cap(self.cap, self.most)


class DiversifyBody(Told):
    """Items unlike those above them are preferred."""

    diversify: Share = Field(description="The weight of unlikeness beside the score.")

    def rule(self) -> Diversify:
        """Return the rule."""
        return Diversify(self.diversify)


class ExploreBody(Told):
    """A share of the places goes to items drawn at random."""

    explore: Share = Field(description="The share.")
    seed: Annotated[int, Field(strict=True, ge=0)] = Field(0, description="Another, another draw.")
    filter: Expression | None = Field(
        None, description="Which items; null: those without a training event."
    )

    def rule(self) -> Explore:
        """Return the rule."""
        return Explore(self.explore, self.seed, self.filter)


def _kind_of_rule(told: object) -> str | None:
    kinds = ("boost", "cap", "diversify", "explore")
    names = told if isinstance(told, dict) else vars(told) if isinstance(told, Told) else ()
    found = [kind for kind in kinds if kind in names]
    return found[0] if found else None


RuleBody = Annotated[
    Annotated[BoostBody, Tag("boost")]
    | Annotated[CapBody, Tag("cap")]
    | Annotated[DiversifyBody, Tag("diversify")]
    | Annotated[ExploreBody, Tag("explore")],
    Discriminator(
        _kind_of_rule,
        custom_error_type="no_rule",
        custom_error_message="a rule must say boost, cap, diversify or explore",
    ),
]


class Choice(Told):
    """Which items may be an answer, and how many."""

    k: Annotated[int, Field(strict=True, ge=1)] = Field(10, description="Number of items.")
    exclude_seen: StrictBool | None = Field(
        None, description="Leave items of the history out; null: as the data was."
    )
    among: Ids | None = Field(None, description="Ids that the answer may hold.")
    without: Ids | None = Field(None, description="Ids that the answer must not hold.")
    filter: Annotated[StrictStr, Field(max_length=LONGEST_TEXT)] | None = Field(
        None,
        description="An expression over the items' columns that each answer matches, such as "
        "`genre = 'drama' and year >= 2000`.",
    )
    words: Literal["auto"] | Annotated[float, Field(ge=0, le=1)] = Field(
        0.0, description="Share of the words in common, by BM25, beside the model's score."
    )
    rules: Annotated[list[RuleBody], Field(max_length=MOST_RULES, fail_fast=True)] = Field(
        [],
        description='In any order: `{"boost": FILTER, "by": DEVIATIONS}`, `{"cap": COLUMN, "most": N}`, '
        '`{"diversify": WEIGHT}`, `{"explore": SHARE, "seed": N, "filter": FILTER}`.',
    )
    strict: StrictBool = Field(False, description="Refuse features that the model does not know.")
    columns: StrictBool = Field(False, description="Give the items' columns, too.")


class RecommendBody(QueryBody, Choice):
    """One query."""


class ManyBody(Choice):
    """Several queries that are answered alike."""

    queries: Annotated[
        list[QueryBody], Field(min_length=1, max_length=MOST_QUERIES, fail_fast=True)
    ]


class ExplainBody(QueryBody):
    """A query and the item whose score is to be explained."""

    item_id: Id


class ItemsBody(Told):
    """Items to put in, each in place of the one with its id."""

    items: Annotated[list[Columns], Field(min_length=1, max_length=MOST_EVENTS, fail_fast=True)] = (
        Field(
            description="Lines with the id and columns of the items' table; what a line lacks is missing."
        )
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
    model: str = Field(description="Digest of the model that answered.")


class ManyAnswer(BaseModel):
    """The answers in the order of the queries."""

    answers: list[RecommendAnswer]


class SimilarAnswer(BaseModel):
    """An item's nearest neighbours, by cosine."""

    item_id: int | str
    items: list[Item]
    model: str


class FoundAnswer(BaseModel):
    """Items whose columns hold a text."""

    items: list[dict[str, Any]]


class Part(BaseModel):
    """What one part of a query or an item does for a score."""

    side: Literal["query", "item", "history"]
    name: str
    value: Any
    contribution: float


class ExplainAnswer(BaseModel):
    """A score and what moved it."""

    query_id: int | str | None
    item_id: int | str
    score: float
    parts: list[Part]
    ignored: list[str] = Field(description="Features that the model does not know.")
    model: str


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
    filter_example: str = Field(description="A filter that fits these columns.")
    query_features: list[str] = Field(description="Columns that may be told of a query.")
    reads_history: bool
    reads_text: bool = Field(description="Whether `words` may be asked for.")
    max_k: int
    max_queries: int = Field(description="Queries of one request.")
    figures: dict[str, float] = Field(description="Metrics on the test, as training found them.")


class Refusal(BaseModel):
    """Why a request was not answered."""

    error: str
    request_id: str
