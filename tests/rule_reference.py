"""What rules mean, said once more and naively: item after item, over the whole catalogue."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import polars as pl

from twotower import Boost, Cap, Diversify
from twotower.serving.retriever import Retriever

Line = dict[str, Any]
Test = Callable[[Line], bool]

FILTERS: dict[str, Test] = {
    "item_id <= 150": lambda line: line["item_id"] <= 150,
    "category in ('category-1', 'category-4')": lambda line: (
        line["category"] in ("category-1", "category-4")
    ),
    "colours has 'red'": lambda line: "red" in (line["colours"] or []),
    "maker is null": lambda line: line["maker"] is None,
    "item_id > 1000": lambda line: line["item_id"] > 1000,
}
"""Filters and what they ask of a line."""
COLUMNS = ("category", "colours", "maker", "tags")
"""Columns to cap: of one value, of lists, with missing values, of text that holds several."""


def with_columns(frame: pl.DataFrame) -> pl.DataFrame:
    """Return the tiny world's items with lists and with missing values."""
    rng = np.random.default_rng(4)
    colours: list[list[str] | None] = []
    makers: list[int | None] = []
    for _ in range(len(frame)):
        several = rng.choice(["red", "blue", "green", "grey"], rng.integers(0, 3)).tolist()
        colours.append(None if rng.random() < 0.2 else several)
        makers.append(None if rng.random() < 0.3 else int(rng.integers(0, 4)))
    return frame.with_columns(
        colours=pl.Series(colours, dtype=pl.List(pl.String)), maker=pl.Series(makers)
    )


def values_of(line: Line, column: str) -> set[object]:
    """Return what a line counts as."""
    value = line[column]
    if column == "tags":
        value = None if value is None else value.split("|")
    if isinstance(value, list):
        return {each for each in value if each is not None}
    return set() if value is None else {value}


def answer(
    retriever: Retriever,
    query: object,
    k: int,
    rules: Sequence[Boost | Cap | Diversify],
    **options: Any,
) -> list[Any]:
    """Return the ids of an answer without exploration."""
    words = {name: options[name] for name in ("words",) if name in options}
    told: Any = query
    everything = retriever.recommend(told, k=10**6, exclude_seen=False, **words)
    scores = dict(zip(everything.item_ids, everything.scores, strict=True))
    deviation = float(np.std(np.array(everything.scores, np.float64)))
    allowed = set(retriever.recommend(told, k=10**6, **options).item_ids)
    lines = {line["item_id"]: line for line in retriever.items(retriever.item_ids).to_dicts()}
    vectors = dict(zip(retriever.item_ids, retriever.encode_items().astype(float), strict=True))
    moved = {
        item: scores[item]
        + sum(
            r.by * deviation
            for r in rules
            if isinstance(r, Boost) and FILTERS[r.filter](lines[item])
        )
        for item in retriever.item_ids
        if item in allowed
    }
    in_order = sorted(moved, key=lambda item: -moved[item])  # equal ones stay by row
    caps = [rule for rule in rules if isinstance(rule, Cap)]
    weight = next((rule.weight for rule in rules if isinstance(rule, Diversify)), 0.0)
    chosen: list[Any] = []

    def fits(item: Any) -> bool:
        return all(
            sum(value in values_of(lines[other], cap.column) for other in chosen) < cap.most
            for cap in caps
            for value in values_of(lines[item], cap.column)
        )

    def cosine(a: Any, b: Any) -> float:
        x, y = vectors[a], vectors[b]
        return float(x @ y / np.sqrt((x @ x) * (y @ y)))

    depth = max(100, 10 * k)
    first = in_order[:depth]
    while len(chosen) < k:
        pool = [item for item in in_order if item not in chosen and fits(item)][:depth]
        if not chosen:
            pool = first
        if not pool:
            return chosen
        low, high = moved[first[-1]], moved[first[0]]
        while len(chosen) < k:
            left = [item for item in pool if item not in chosen and fits(item)]
            if not left:
                break
            chosen.append(
                max(
                    left,
                    key=lambda item: (
                        (1 - weight) * (moved[item] - low) / max(high - low, 1e-12)
                        - weight * max((cosine(item, other) for other in chosen), default=0.0)
                    ),
                )
            )
    return chosen
