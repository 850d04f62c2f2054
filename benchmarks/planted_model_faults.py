"""Plant five faults in trained models, each at three strengths, and print what the doctor finds.

Run: ``python benchmarks/planted_model_faults.py [BUNDLE ...]``. Needs a minute. Exits with 1 if a
fault at full strength is missed, or if a healthy model (or one of the bundles named) has a finding of
level error.

The strengths were written down before the first run, and so were the thresholds, which are the
doctor's own. After it the rule for hubs was narrowed, because of a smaller world: what popularity
itself would show to as many is none. ``none``, added then, is made in the same way without the fault:

| fault | full | half | weak | none | is |
|---|---|---|---|---|---|
| collapsed towers | 0.01 | 0.1 | 0.5 | 5 | length of what tells vectors apart, beside a constant of 1 |
| hub | 4 | 1 | 0.5 | 0.05 | length of an ordinary item's vector, in lengths of the longest |
| popularity only | 1 | 0.5 | 0.25 | 0 | share of queries with another's features; no history is read |
| ignored history | 1 | 0.5 | 0.25 | 0 | share of queries whose history is not read |
| false negatives | 60 | 30 | 15 | 3 | percent of the catalogue that each query likes; none masked |
"""

import argparse
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from faulty_towers import CollapsedTower, deafen
from twotower.data.sources.synthetic import SyntheticTables, World, WorldConfig
from twotower.doctor.diagnosis import diagnose_model
from twotower.doctor.findings import Finding
from twotower.serving.retriever import Retriever
from twotower.training.pipeline import train

WORLD = WorldConfig(
    num_items=600, num_clusters=30, num_personas=8, num_queries=2_000, events_per_query=20, seed=3
)
SETTINGS = {"towers": {"dim": 32}, "training": {"epochs": 8, "batch_size": 512}}
STRENGTHS = ("full", "half", "weak", "none")


def collapsed_towers(tables: SyntheticTables, spread: float) -> Retriever:
    """Train two towers whose outputs are a constant and little else."""
    torch.manual_seed(0)
    return train(
        tables.interactions,
        items=tables.items,
        queries=tables.queries,
        query_tower=CollapsedTower("segment", spread),
        item_tower=CollapsedTower("category", spread),
        config={"training": {"epochs": 3, "batch_size": 512}},
    ).retriever


def hub(healthy: Retriever, length: float) -> Retriever:
    """Point an item of middling popularity to where the queries are, as long as stated."""
    contents = healthy.contents
    vectors = contents.item_vectors.clone()
    assert contents.histories is not None
    towards = healthy.encoding.query_vectors(healthy.query_features, contents.histories).mean(dim=0)
    ordinary = int(np.argsort(contents.popularity[2:])[len(vectors) // 2])
    vectors[ordinary] = towards / towards.norm() * vectors.norm(dim=1).max() * length
    return Retriever(replace(contents, item_vectors=vectors))


def popularity_only(tables: SyntheticTables, share: float) -> Retriever:
    """Train on the features of a share of the queries swapped among them, without any history."""
    rng, num = np.random.default_rng(0), len(tables.queries)
    chosen = np.sort(rng.permutation(num)[: int(share * num)])
    giver = np.arange(num)
    giver[chosen] = rng.permutation(chosen)
    queries = tables.queries.with_columns(tables.queries["segment", "signal"][giver])
    towers = {"dim": 32, "history": "none", "query_id": "off"}
    config = {**SETTINGS, "towers": towers}
    return train(tables.interactions, items=tables.items, queries=queries, config=config).retriever


def ignored_history(healthy: Retriever, share: float) -> Retriever:
    """Return the healthy model with a history encoder that reads nothing for a share of queries."""
    retriever = Retriever(healthy.contents)
    deafen(retriever.encoding.model, share)
    return retriever


def false_negatives(percent: float) -> Retriever:
    """Train on a catalogue of which each query likes so much, against the batch, nothing masked."""
    events = 30
    world = WorldConfig(
        num_items=round(100 * events / percent),
        num_clusters=5,
        num_personas=4,
        num_queries=500,
        events_per_query=events,
        seed=4,
    )
    tables = World(world).generate()
    loss = {"negatives": "in-batch", "mask_known": False}
    config = {"loss": loss, "towers": {"dim": 16}, "training": {"epochs": 3, "batch_size": 256}}
    return train(
        tables.interactions, items=tables.items, queries=tables.queries, config=config
    ).retriever


def main() -> int:
    """Plant, diagnose and print; return how much is not as it must be."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundles", nargs="*", help="bundles that must have no error")
    asked = parser.parse_args()
    tables = World(WORLD).generate()
    healthy = train(
        tables.interactions, items=tables.items, queries=tables.queries, config=SETTINGS
    ).retriever
    wrong = show_healthy("synthetic world, default model", healthy)

    plants: Mapping[str, tuple[Callable[[float], Retriever], tuple[float, ...], set[str]]] = {
        "collapsed towers": (
            lambda strength: collapsed_towers(tables, strength),
            (0.01, 0.1, 0.5, 5),
            {
                "item-vectors-alike",
                "query-vectors-alike",
                "item-vectors-few-directions",
                "query-vectors-few-directions",
            },
        ),
        "hub": (lambda strength: hub(healthy, strength), (4, 1, 0.5, 0.05), {"hub-item"}),
        "popularity only": (
            lambda strength: popularity_only(tables, strength),
            (1, 0.5, 0.25, 0),
            {"popularity-only"},
        ),
        "ignored history": (
            lambda strength: ignored_history(healthy, strength),
            (1, 0.5, 0.25, 0),
            {"history-ignored"},
        ),
        "false negatives": (
            false_negatives,
            (60, 30, 15, 3),
            {"false-negatives"},
        ),
    }
    print(f"\n{'fault':<18}{'strength':<14}found")
    for name, (plant, strengths, wanted) in plants.items():
        for word, strength in zip(STRENGTHS, strengths, strict=True):
            found = [f for f in diagnose_model(plant(strength)) if f.kind.id in wanted]
            wrong += word == "full" and not found
            said = ", ".join(f"{f.kind.id} ({f.severity}, {f.value:.3g})" for f in found)
            print(f"{name:<18}{word + f' ({strength:g})':<14}{said or 'nothing'}", flush=True)
    for path in asked.bundles:
        wrong += show_healthy(Path(path).name, Retriever.open(path))
    return wrong


def show_healthy(name: str, retriever: Retriever) -> int:
    """Print the findings of a model that was trained as it should be; return how many are errors."""
    started = time.monotonic()
    found: list[Finding] = diagnose_model(retriever)
    said = ", ".join(f"{f.kind.id} ({f.severity}, {f.value:.3g})" for f in found)
    print(f"{name}: {said or 'nothing'} [{time.monotonic() - started:.1f} s]", flush=True)
    return sum(f.severity == "error" for f in found)


if __name__ == "__main__":
    sys.exit(bool(main()))
