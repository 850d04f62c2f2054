"""Five faults, planted in clean data at three strengths each: which ones the doctor finds.

Run: ``python benchmarks/planted_faults.py``. A fault counts as found where its own finding is a warning
or an error. Exits with 1 where a fault of full strength is not found, where the clean data has a
warning, or where a public data set has an error. What the strengths are is said at each fault; they
and the doctor's thresholds were fixed before the first run.
"""

import argparse
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from common import report
from public_sets import read
from twotower.data.sources.synthetic import SyntheticTables, World, WorldConfig
from twotower.doctor.diagnosis import diagnose_data
from twotower.doctor.findings import Finding

WORLD = WorldConfig(
    num_items=1_000,
    num_clusters=25,
    num_personas=8,
    num_queries=3_000,
    events_per_query=20,
    seed=3,
)
CLEAN_SETS = ("movielens-100k", "movielens-1m", "beauty", "tmall")
STRENGTHS = ("full", "half", "weak")


@dataclass(frozen=True)
class Tables:
    """What is diagnosed.

    Args:
        interactions: One table, or the parts of a given split.
        items: The items' table.
        queries: The queries' table.
    """

    interactions: pl.DataFrame | Mapping[str, pl.DataFrame]
    items: pl.DataFrame
    queries: pl.DataFrame


@dataclass(frozen=True)
class Fault:
    """A fault that can be planted.

    Args:
        name: What it is.
        ids: The findings that name it.
        means: What the three strengths are a share of.
        shares: Of the full, the half and the weak one.
        plant: Clean tables and a share to faulty tables.
    """

    name: str
    ids: tuple[str, ...]
    means: str
    shares: tuple[float, float, float]
    plant: Callable[[SyntheticTables, float, np.random.Generator], Tables]


def leak(clean: SyntheticTables, share: float, rng: np.random.Generator) -> Tables:
    """A query column tells the category of the query's last event, its test target, in other words."""
    last = clean.interactions.group_by("query_id", maintain_order=True).last()
    target = last.join(clean.items.select("item_id", "category"), on="item_id", how="left")
    told = clean.queries.select("query_id").join(
        target.select("query_id", "category"), on="query_id", how="left", maintain_order="left"
    )["category"]
    bands = told.rank("dense").to_numpy().astype(np.int64)
    drawn = rng.integers(1, bands.max() + 1, size=len(bands))
    column = "band-" + pl.Series(np.where(rng.random(len(bands)) < share, bands, drawn)).cast(
        pl.String
    )
    return Tables(clean.interactions, clean.items, clean.queries.with_columns(band=column))


def test_before_train(clean: SyntheticTables, share: float, rng: np.random.Generator) -> Tables:
    """Some queries' first event is in the test file, the others' last one."""
    queries = clean.queries["query_id"]
    reversed_ = queries.filter(pl.Series(rng.random(len(queries)) < share))
    place = pl.int_range(pl.len()).over("query_id")
    wanted = pl.when(pl.col("query_id").is_in(reversed_.implode())).then(0).otherwise(pl.len() - 1)
    events = clean.interactions.with_columns(is_test=place == wanted.over("query_id"))
    parts = {
        "train": events.filter(~pl.col("is_test")).drop("is_test"),
        "test": events.filter("is_test").drop("is_test"),
    }
    return Tables(parts, clean.items, clean.queries)


def duplicate(clean: SyntheticTables, share: float, rng: np.random.Generator) -> Tables:
    """Some events stand in the table twice."""
    copied = clean.interactions.filter(pl.Series(rng.random(len(clean.interactions)) < share))
    return Tables(pl.concat([clean.interactions, copied]), clean.items, clean.queries)


def constant(clean: SyntheticTables, share: float, rng: np.random.Generator) -> Tables:
    """An item column has one value in some rows, and one of ten others elsewhere."""
    num_items = len(clean.items)
    values = np.where(rng.random(num_items) < share, 0, rng.integers(1, 11, size=num_items))
    column = "shop-" + pl.Series(values).cast(pl.String)
    return Tables(clean.interactions, clean.items.with_columns(shop=column), clean.queries)


def shuffle(clean: SyntheticTables, share: float, rng: np.random.Generator) -> Tables:
    """The times of some events are exchanged among them, whatever their query."""
    times = clean.interactions["timestamp"].to_numpy().copy()
    rows = np.flatnonzero(rng.random(len(times)) < share)
    times[rows] = times[rng.permutation(rows)]
    events = clean.interactions.with_columns(timestamp=pl.Series(times))
    return Tables(events, clean.items, clean.queries)


FAULTS = (
    Fault(
        "leakage through a feature",
        ("leaking-query-feature", "feature-names-target"),
        "queries whose column tells the target's category, the others' being random",
        (1.0, 0.5, 0.2),
        leak,
    ),
    Fault(
        "test before train",
        ("test-before-train",),
        "queries tested on their first event",
        (1.0, 0.5, 0.05),
        test_before_train,
    ),
    Fault(
        "duplicated events",
        ("duplicate-events",),
        "events that stand there twice",
        (1.0, 0.5, 0.01),
        duplicate,
    ),
    Fault(
        "a constant feature",
        ("constant-feature",),
        "rows with the one value",
        (1.0, 0.995, 0.9),
        constant,
    ),
    Fault(
        "shuffled timestamps",
        ("shuffled-order",),
        "events whose times are exchanged",
        (1.0, 0.5, 0.2),
        shuffle,
    ),
)


def main() -> int:
    """Plant every fault, diagnose, print, and return how much is not as it must be."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--no-public", action="store_true", help="leave the public sets out")
    options = parser.parse_args()
    clean = World(WORLD).generate()
    num_wrong = 0
    rows: list[dict[str, Any]] = []
    weakest: dict[str, str] = {}
    for fault in FAULTS:
        for strength, share in zip(STRENGTHS, fault.shares, strict=True):
            tables = fault.plant(clean, share, np.random.default_rng(0))
            findings = diagnose_data(
                tables.interactions, items=tables.items, queries=tables.queries
            )
            named = [f for f in findings if f.kind.id in fault.ids]
            is_found = any(f.severity != "info" for f in named)
            num_wrong += strength == "full" and not is_found
            if is_found:
                weakest[fault.name] = f"{strength} ({share:g} of the {fault.means})"
            rows.append(
                {
                    "fault": fault.name,
                    "strength": strength,
                    "share": share,
                    "found": "yes" if is_found else "noted" if named else "no",
                    "severity": named[0].severity if named else None,
                    "id": named[0].kind.id if named else None,
                    "value": named[0].value if named else None,
                }
            )
    notes = [f"Weakest found of {name}: {what}." for name, what in weakest.items()]
    report("planted faults", rows, as_json=options.json, notes=notes)
    rows = [
        _counts(
            "the clean world",
            diagnose_data(clean.interactions, items=clean.items, queries=clean.queries),
        )
    ]
    num_wrong += int(rows[0]["error"]) + int(rows[0]["warning"])
    for name in () if options.no_public else CLEAN_SETS:
        data = read(name)
        found = diagnose_data(
            data.interactions, items=data.items, queries=data.queries, config=data.settings
        )
        rows.append(_counts(name, found))
        num_wrong += int(rows[-1]["error"])
    report("data without a planted fault", rows, as_json=options.json)
    return num_wrong


def _counts(name: str, findings: list[Finding]) -> dict[str, Any]:
    severities = [finding.severity for finding in findings]
    return {
        "data": name,
        "error": severities.count("error"),
        "warning": severities.count("warning"),
        "info": severities.count("info"),
        "which": ", ".join(finding.kind.id for finding in findings),
    }


if __name__ == "__main__":
    sys.exit(bool(main()))
