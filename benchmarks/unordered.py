"""Histories without an order: our pooled tower beside LightGCN, on Last.fm's given split.

    python benchmarks/peers.py --install recbole
    python benchmarks/unordered.py [--seeds 2] [--json]

The data are those of LightGCN's own code (artists that listeners played; no times). RecBole's LightGCN is
trained in an environment of its own by ``peer_models/recbole_lightgcn.py`` on the same events as ours, with
the same tenth of each listener's events held out for validation. The whole catalogue is ranked but for the
listener's own events, those of the validation included; both are measured by us. The means are over the
seeds; the intervals are those of the first, and of the mean difference, paired by listener.
"""

from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt

import public_sets
from common import cached, default_of, report
from peers import Peer, answers_of
from twotower import Config
from twotower.data.dataset import KNOWN, Part
from twotower.evaluation.intervals import difference_intervals, mean_intervals
from twotower.evaluation.metrics import ndcg_at_k, recall_at_k
from twotower.evaluation.ranking import evaluate
from twotower.training.task import Task
from twotower.vocab import FIRST_ROW

NAME, K = "lastfm-lightgcn", 20
METRICS = (f"recall@{K}", f"ndcg@{K}")


@cache
def task() -> Task:
    """Return the data, split as given."""
    data = public_sets.read(NAME)
    return Task.of(data.interactions, config=Config.from_dict(data.settings), name=NAME)


def ours(seed: int) -> dict[str, Any]:
    """Return the values of the test queries, with nothing set."""
    found = task()
    settings = [f"training.seed={seed}", "training.threads=1"]
    default = default_of(found, found.config.with_settings(settings))
    values = evaluate(
        default.trainer.scorer(),
        found.dataset.cases(Part.TEST),
        (K,),
        num_item_rows=found.dataset.items.ids.num_rows,
        remove_seen=True,
    ).values
    return {
        "choices": default.said,
        "seconds": sum(default.seconds.values()),
        "values": {metric: values[metric].tolist() for metric in METRICS},
    }


def theirs(seed: int) -> dict[str, Any]:
    """Return the values of LightGCN's."""
    dataset = task().dataset
    is_known = np.isin(dataset.parts, KNOWN)
    events = dataset.interactions.where(is_known)
    cases = dataset.cases(Part.TEST)
    arrays: dict[str, npt.NDArray[Any]] = {
        "query": events.query_rows - FIRST_ROW,
        "item": events.item_rows - FIRST_ROW,
        "times": np.arange(len(events), dtype=np.float64),
        "is_valid": dataset.parts[is_known] == Part.VALID,
        "query_features": np.zeros((len(dataset.queries), 0), np.int32),
        "item_features": np.zeros((len(dataset.items), 0), np.int32),
        "test_queries": cases.query_rows - FIRST_ROW,
    }
    with TemporaryDirectory() as folder:
        data = Path(folder) / "data.npz"
        np.savez(data, allow_pickle=False, **arrays)
        peer = Peer("RecBole LightGCN", "recbole_lightgcn.py", "recbole", str(seed))
        figures, answers = answers_of(peer, data, 0)
    targets, top = cases.targets, answers["top"]
    is_hit = np.zeros(top.shape, np.bool_)
    for line in range(len(cases)):
        own = targets.item_rows[targets.offsets[line] : targets.offsets[line + 1]] - FIRST_ROW
        is_hit[line] = np.isin(top[line], own)
    return figures | {
        "values": {
            METRICS[0]: recall_at_k(is_hit, targets.lengths, K).tolist(),
            METRICS[1]: ndcg_at_k(is_hit, targets.lengths, K).tolist(),
        }
    }


def main() -> None:
    """Train what is missing, and print."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument(
        "--again", action="store_true", help="ignore finished runs and compute them again"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args()
    rows = []
    means: dict[str, dict[str, npt.NDArray[np.float64]]] = {}
    runs: dict[str, Callable[[int], dict[str, Any]]] = {
        "twotower": ours,
        "RecBole LightGCN": theirs,
    }
    for name, train in runs.items():
        seeds = [
            cached(
                f"unordered/{name.replace(' ', '-').replace(',', '').lower()}-seed{seed}",
                lambda train=train, seed=seed: train(seed),  # type: ignore[misc]
                again=given.again,
            )
            for seed in range(given.seeds)
        ]
        by_seed = [{m: np.array(s["values"][m]) for m in METRICS} for s in seeds]
        means[name] = {m: np.mean([values[m] for values in by_seed], axis=0) for m in METRICS}
        row: dict[str, Any] = {"": name, "seeds": len(seeds)}
        intervals = mean_intervals(by_seed[0])
        for metric in METRICS:
            figures = [values[metric].mean() for values in by_seed]
            row[metric] = f"{np.mean(figures):.4f} ±{(max(figures) - min(figures)) / 2:.4f}"
            row[f"{metric}, 95 %"] = f"{intervals[metric].low:.4f}-{intervals[metric].high:.4f}"
        row["training, s"] = f"{np.mean([s['seconds'] for s in seeds]):.0f}"
        rows.append(row)
    notes = []
    other = means.pop("RecBole LightGCN")
    for name, values in means.items():
        for metric, found in difference_intervals(values, other).items():
            between = f"{found.value:+.4f} ({found.low:+.4f}, {found.high:+.4f})"
            notes.append(f"{metric}, {name} - LightGCN: {between}.")
    report("lastfm-lightgcn, given split", rows, as_json=given.json, notes=notes)


if __name__ == "__main__":
    main()
