"""Nothing in a table of interactions is left out without a word."""

import polars as pl
import pytest

from twotower.config import DataConfig, FeaturesConfig
from twotower.data.columns import Role, find_roles
from twotower.data.preparation import prepare
from twotower.data.unused import EventKinds, event_kinds


def events(**columns: list[object]) -> pl.DataFrame:
    ids = {"user_id": [1, 1, 2, 2], "item_id": ["a", "b", "b", "c"]}
    return pl.DataFrame({**ids, **columns})


def why_unused(frame: pl.DataFrame, **settings: object) -> dict[str, str]:
    features = FeaturesConfig(event=settings.pop("event", {}))  # type: ignore[arg-type]
    config = DataConfig(**settings)  # type: ignore[arg-type]
    found = prepare(frame, config=config, features=features).decisions
    return {d.column: d.reason for d in found if d.role is None and d.column is not None}


def test_each_column_without_a_role_has_its_reason() -> None:
    frame = events(
        movie_id=[1, 2, 3, 4],
        when=["2024-01-01", "2024-01-02", "2024-01-03", "2024-01-04"],
        created_at=["2024-01-01", "2024-01-02", "2024-01-03", "2024-01-04"],
        rating=["good", "bad", "good", "bad"],
        position=[1, 2, 1, 2],
        nothing=[None, None, None, None],
        city=["Bonn", "Ulm", "Bonn", "Ulm"],
        action=["view", "view", "purchase", "view"],
    )
    assert why_unused(frame) == {
        "movie_id": "its name says the item id, which 'item_id' is",
        "when": "its name says a time, which 'created_at' is",
        "rating": "its name says a label, but it holds text",
        "position": "its name may say where items were shown; position_column reads it",
        "nothing": "it is empty",
        "city": "its name says no role; features.event.city lets histories read it",
        "action": "it seems to name kinds of event; event_column tells them apart",
    }


def test_what_is_stated_or_read_is_used() -> None:
    frame = events(city=["Bonn", "Ulm", "Bonn", "Ulm"], action=["view", "view", "purchase", "view"])
    stated = {"event_column": "action", "target_events": ("purchase",)}
    assert why_unused(frame, event={"city": "categorical"}, **stated) == {}
    assert set(why_unused(frame, event={"city": "categorical"})) == {"action"}


@pytest.mark.parametrize(
    ("column", "values", "best"),
    [
        ("event_name", ["page_view", "add_to_cart", "purchase", "scroll"], "purchase"),
        ("what", ["view", "view", "addtocart", "transaction"], "transaction"),
        ("行为类型", ["浏览", "加入购物车", "浏览", "浏览"], "加入购物车"),
        ("behavior_type", ["pv", "pv", "fav", "buy"], "buy"),
        ("action", ["play", "skip", "skip", "skip"], "play"),
        ("event", ["alpha", "beta", "beta", "beta"], None),
    ],
)
def test_kinds_of_event_are_noticed_by_what_they_are_called(
    column: str, values: list[object], best: str | None
) -> None:
    found = event_kinds(events(**{column: values}), [column])
    assert found is not None
    assert (found.column, found.best, found.num_events) == (column, best, 4)


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("device", ["phone", "web", "phone", "web"]),
        ("what", ["view", "view", "view", "view"]),  # one kind tells nothing apart
        ("title", ["Cart", "The Order", "Alien", "Heat"]),
        ("action", [1, 2, 3, 4]),
        ("event", ["view", "view", "view", "view"]),
    ],
)
def test_other_columns_are_no_kinds_of_event(column: str, values: list[object]) -> None:
    assert event_kinds(events(**{column: values}), [column]) is None


def test_a_column_of_many_texts_is_none() -> None:
    texts = ["view", "buy"] * 20 + [f"kind {i}" for i in range(29)]
    assert event_kinds(pl.DataFrame({"action": texts}), ["action"]) is None
    assert event_kinds(pl.DataFrame({"action": texts[:-1]}), ["action"]) is not None


def test_the_commonest_kinds_are_shown_with_their_shares() -> None:
    counts = {kind: 10 - place for place, kind in enumerate("abcdefg")}
    assert EventKinds("kind", counts, 49).shares == "a 20.4%, b 18.4%, c 16.3%, d 14.3%, e 12.2%, …"
    assert EventKinds("kind", {"a": 3, "b": 1}, 4).shares == "a 75.0%, b 25.0%"


def test_kinds_that_nobody_stated_are_told_with_the_way_out() -> None:
    frame = events(action=["view", "view", "purchase", "view"])
    (note,) = prepare(frame).dataset.notes
    assert note == (
        "'action' seems to name the kind of each event (view 75.0%, purchase 25.0%), and every kind "
        "counts as a positive. event_column='action' with target_events='purchase' asks for that kind "
        "alone; "
        "the others stay in histories."
    )
    stated = DataConfig(event_column="action", target_events=("purchase",))
    assert prepare(frame, config=stated).dataset.notes == ()


def test_ids_without_a_row_are_told() -> None:
    items = pl.DataFrame({"item_id": ["a", "z"], "title": ["A", "Z"]})
    queries = pl.DataFrame({"user_id": [1], "city": ["Bonn"]})
    of_queries, of_items = prepare(events(), items=items, queries=queries).dataset.notes
    only = "nothing but their ids is known."
    said = "No row in queries for 1 of the 2 queries in the interactions (50.0% of the events)"
    assert of_queries == f"{said}: {only}"
    said = "No row in items for 2 of the 3 items in the interactions (75.0% of the events), the first 'b'"
    assert of_items == f"{said}: {only}"
    whole = pl.DataFrame({"item_id": ["a", "b", "c"], "title": ["A", "B", "C"]})
    assert prepare(events(), items=whole).dataset.notes == ()


@pytest.mark.parametrize(
    ("names", "query", "item", "time"),
    [
        ("search_term clicked_doc ts", "search_term", "clicked_doc", "ts"),
        ("keyword url clicked_url created_at", "keyword", "clicked_url", "created_at"),
        ("CustomerNo StockCode InvoiceDate", "CustomerNo", "StockCode", "InvoiceDate"),
        (
            "Kundennummer Artikelnummer Bestelldatum",
            "Kundennummer",
            "Artikelnummer",
            "Bestelldatum",
        ),
        ("搜索词 点击文档 搜索时间", "搜索词", "点击文档", "搜索时间"),
        ("会员编号 商品编码 下单时间", "会员编号", "商品编码", "下单时间"),
        ("user_id keyword item_id time", "user_id", "item_id", "time"),
    ],
)
def test_names_of_logs_and_shops_are_known(names: str, query: str, item: str, time: str) -> None:
    columns = names.split()
    frame = pl.DataFrame({name: ["2024-01-01", "2024-01-02"] for name in columns})
    found = {d.role: d.column for d in find_roles(frame).decisions}
    assert (found[Role.QUERY], found[Role.ITEM], found[Role.TIME]) == (query, item, time)
