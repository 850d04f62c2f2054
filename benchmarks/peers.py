"""Our default beside other libraries: speed and recall on one core, in one run.

    python benchmarks/peers.py --install
    python benchmarks/peers.py [twotower tfrs ...] [--tasks movielens-1m] [--seconds 240] [--json]

``--install`` makes an environment for each library in ``benchmarks/out/venvs`` (6 GB); a peer that cannot
be installed or run has a line that says why. Each of ``PEERS`` is trained by its script in
``benchmarks/peer_models``, whose docstring says what was set: width 64, batches of 1,024 where the model
works in pairs, otherwise what its documentation recommends. All run one after the other, each alone in a
process that is bound to one core. What is finished is kept (``--again`` does it once more).

- **movielens-1m**: leave-last-out; the whole catalogue is ranked without the items of the history. Training
  takes ``--seconds`` for all, by the clock on the wall, from when a library begins to train: tracing and
  our validations are in it, the reading and preparing of tables is not.
- **synthetic**: a million events of 100,000 queries with 50,000 items, which gather in clusters, two
  categories a query and two an item; ``--rate-seconds`` of training. Recall is on the last event of 10,000
  queries.

All learn from the same events and may use the same features: the first genre and the decade of a film, the
gender, age and occupation of a viewer. Ours validates on the last event before the test; the peers validate
nothing and learn from these events, too. Whatever answers, we measure.

An example is one positive. The rate is that of the steps after the first fifth of the time; our validations
are not steps. Targets: ours is ahead of all in HR@10. Of the same inputs, ids and features, it processes at
least 2.5 times the examples a second of the fastest other two-tower model of the run where the processor
has units for bfloat16, and 1.5 times elsewhere; with a history of 50 events as many as that model.
"""

import json
import os
import shutil
import subprocess
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import torch

import public_sets
from common import OUT, cached, report, verdict
from twotower.evaluation.metrics import hit_rate_at_k, ndcg_at_k
from twotower.runtime import choose_precision

SCRIPTS = Path(__file__).parent / "peer_models"
VENVS = OUT / "venvs"
NUM_QUERIES, NUM_ITEMS, NUM_EVENTS = 100_000, 50_000, 1_000_000
NUM_CLUSTERS, NUM_BRANDS, NUM_REGIONS = 200, 1_000, 20
HELD_OUT = 10_000  # queries with a test, and as many with a validation event
LEAST_EVENTS = 3  # of a query that is held out from
TARGET, TARGET_IN_FLOAT32, TARGET_WITH_HISTORY = 2.5, 1.5, 1.0
LATE = 1.05  # times the seconds that all have
TASKS = ("movielens-1m", "synthetic")
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "TF_NUM_INTRAOP_THREADS": "1",
    "TF_NUM_INTEROP_THREADS": "1",
}

Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Peer:
    """A model of another library, or ours.

    Args:
        label: What people call it.
        script: In ``SCRIPTS``.
        venv: A key of ``PACKAGES``, or None for our own environment.
        variant: Which of the script's models.
        is_two_tower: Whether the target of speed counts it.
    """

    label: str
    script: str
    venv: str | None
    variant: str = ""
    is_two_tower: bool = False


PACKAGES = {
    # LibRecommender names neither TensorFlow nor most else of what it imports, and needs Keras 2.
    "tensorflow": (
        "tensorflow==2.15.1",
        "tensorflow-recommenders==0.7.7",
        "LibRecommender==1.5.2",
        "pandas<3",
        "scikit-learn",
        "torch",
    ),
    "torch-rechub": ("torch-rechub==0.9.0", "torch"),
    "rectools": ("rectools[torch]==0.19.0", "torch"),
    "implicit": ("implicit==0.7.3",),
    # Of unordered.py and race_of_peers.py. It needs what newer numpy, pandas, scipy, setuptools lack.
    "recbole": ("recbole==1.2.1", "numpy<2", "pandas<3", "scipy<1.11", "setuptools<80", "torch"),
}
PEERS = {
    "twotower": Peer("twotower", "ours.py", None, "default"),
    "twotower-ids": Peer("twotower, ids and features", "ours.py", None, "ids"),
    "librecommender": Peer(
        "LibRecommender TwoTower", "librecommender.py", "tensorflow", is_two_tower=True
    ),
    "tfrs": Peer("TFRS, ids and features", "tfrs.py", "tensorflow", "ids", is_two_tower=True),
    "tfrs-gru": Peer("TFRS, GRU", "tfrs.py", "tensorflow", "gru", is_two_tower=True),
    "youtube-dnn": Peer(
        "torch-rechub YoutubeDNN", "rechub.py", "torch-rechub", "youtube-dnn", is_two_tower=True
    ),
    "dssm": Peer("torch-rechub DSSM", "rechub.py", "torch-rechub", "dssm", is_two_tower=True),
    "sasrec": Peer("RecTools SASRec", "sasrec.py", "rectools"),
    "als": Peer("implicit ALS", "als.py", "implicit"),
}


class PeerFailedError(Exception):
    """A peer cannot be run here."""


def install(names: Sequence[str]) -> None:
    """Make the environments of ``names``, keys of ``PACKAGES``, and say of each whether it worked."""
    # The newest Python that TensorFlow 2.15 exists for.
    python = shutil.which("python3.11") or sys.executable
    for venv in names:
        folder = VENVS / venv
        make: tuple[list[str], ...] = (
            [python, "-m", "venv", str(folder)],
            [str(folder / "bin" / "pip"), "install", "--quiet", *PACKAGES[venv]],
        )
        try:
            for command in make:
                subprocess.run(command, check=True)
            print(f"{venv}: installed.")
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"{venv}: not installed: {error}")


def movielens() -> tuple[Arrays, npt.NDArray[np.int32]]:
    """Return MovieLens-1M as ``peer_models/peer.py`` reads it, and the item of each test query.

    The catalogue is every film of the data set, rated or not. Equal times keep the order of the file.
    """
    tables = public_sets.read("movielens-1m")
    films, viewers = tables.items, tables.queries
    assert isinstance(tables.interactions, pl.DataFrame)
    assert films is not None
    assert viewers is not None
    films = films.with_row_index("item").with_columns(
        pl.col("genres").list.first().alias("genre"), (pl.col("year") // 10).alias("decade")
    )
    viewers = viewers.with_row_index("query")
    events = (
        tables.interactions.with_row_index("line")
        .join(films.select("movie_id", "item"), on="movie_id")
        .join(viewers.select("user_id", "query"), on="user_id")
        .sort("query", "timestamp", "line")
    )
    query, item = (events[name].to_numpy().astype(np.int32) for name in ("query", "item"))
    last = np.flatnonzero(np.append(query[1:] != query[:-1], True))
    is_valid = np.zeros(len(query), np.bool_)
    is_valid[last - 1] = True  # every viewer has at least 20 events
    kept = np.ones(len(query), np.bool_)
    kept[last] = False
    arrays: Arrays = {
        "query": query[kept],
        "item": item[kept],
        "times": events["timestamp"].to_numpy().astype(np.float64)[kept],
        "is_valid": is_valid[kept],
        "query_features": _codes(viewers, ("gender", "age", "occupation")),
        "item_features": _codes(films, ("genre", "decade")),
        "test_queries": query[last],
    }
    return arrays, item[last]


def synthetic() -> tuple[Arrays, npt.NDArray[np.int32]]:
    """Return the synthetic events as ``peer_models/peer.py`` reads them, and the item of each test query.

    Items stand in clusters of unequal size, more and less popular ones in each. A query has three
    clusters, takes four events of five from them by the items' popularity, and the fifth from all. The
    categories are noisy: an item's cluster (four of five times) and brand, a query's first cluster (the
    same) and region.
    """
    rng = np.random.default_rng(0)
    cluster = np.sort(rng.choice(NUM_CLUSTERS, NUM_ITEMS, p=_zipf(NUM_CLUSTERS, 0.5, rng)))
    weight = _zipf(NUM_ITEMS, 0.9, rng)
    cumulative = np.concatenate([[0.0], np.cumsum(weight)])
    first = np.searchsorted(cluster, np.arange(NUM_CLUSTERS + 1))
    own = rng.choice(NUM_CLUSTERS, (NUM_QUERIES, 3), p=np.diff(cumulative[first]))

    drawn = int(NUM_EVENTS * 1.4)  # repeats are left out below
    activity = rng.lognormal(0.0, 0.7, NUM_QUERIES)
    least = np.repeat(np.arange(NUM_QUERIES), 2 * LEAST_EVENTS)
    others = rng.choice(NUM_QUERIES, drawn - len(least), p=activity / activity.sum())
    query = rng.permutation(np.concatenate([least, others]))
    chosen = own[query, rng.integers(0, 3, drawn)]
    is_own = rng.random(drawn) < 0.8
    low = np.where(is_own, cumulative[first[chosen]], 0.0)
    high = np.where(is_own, cumulative[first[chosen + 1]], cumulative[-1])
    place = low + rng.random(drawn) * (high - low)
    item = np.minimum(np.searchsorted(cumulative, place, side="right") - 1, NUM_ITEMS - 1)

    _, fresh = np.unique(query * NUM_ITEMS + item, return_index=True)
    fresh = np.sort(fresh)[: NUM_EVENTS + HELD_OUT]  # in the order drawn, which is that of time
    order = fresh[np.argsort(query[fresh], kind="stable")]
    query, item = query[order].astype(np.int32), item[order].astype(np.int32)
    counts = np.bincount(query, minlength=NUM_QUERIES)
    last = np.cumsum(counts) - 1
    asked = rng.permutation(np.flatnonzero(counts >= LEAST_EVENTS))[: 2 * HELD_OUT]
    tests, validated = np.sort(asked[:HELD_OUT]), last[asked[HELD_OUT:]]
    is_valid = np.zeros(len(query), np.bool_)
    is_valid[validated] = True
    kept = np.ones(len(query), np.bool_)
    kept[last[tests]] = False

    def noisy(values: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return np.where(
            rng.random(len(values)) < 0.8, values, rng.integers(0, NUM_CLUSTERS, len(values))
        )

    arrays: Arrays = {
        "query": query[kept],
        "item": item[kept],
        "times": order[kept].astype(np.float64),
        "is_valid": is_valid[kept],
        "query_features": np.column_stack(
            [noisy(own[:, 0]), rng.integers(0, NUM_REGIONS, NUM_QUERIES)]
        ).astype(np.int32),
        "item_features": np.column_stack(
            [noisy(cluster), rng.integers(0, NUM_BRANDS, NUM_ITEMS)]
        ).astype(np.int32),
        "test_queries": tests.astype(np.int32),
    }
    return arrays, item[last[tests]]


def _codes(frame: pl.DataFrame, columns: Sequence[str]) -> npt.NDArray[np.int32]:
    """Return a number for each distinct value of the columns, null included: ``(n, len(columns))``."""
    found = [
        np.unique(frame[c].cast(pl.String).fill_null("?"), return_inverse=True)[1] for c in columns
    ]
    return np.column_stack(found).astype(np.int32)


def _zipf(count: int, exponent: float, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Return probabilities that fall as a power of the rank, in random order."""
    weights = np.arange(1, count + 1) ** -exponent
    return rng.permutation(weights / weights.sum())


def prepared(task: str) -> tuple[Path, npt.NDArray[np.int32]]:
    """Return the file that all scripts read, made where it is not there yet, and the test items."""
    folder = OUT / "peers"
    data, targets = folder / f"{task}.npz", folder / f"{task}-targets.npy"
    if not targets.exists():
        makers: dict[str, Callable[[], tuple[Arrays, npt.NDArray[np.int32]]]] = {
            "movielens-1m": movielens,
            "synthetic": synthetic,
        }
        arrays, test_items = makers[task]()
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(data, allow_pickle=False, **arrays)
        np.save(targets, test_items)
    return data, np.load(targets)


def answers_of(
    peer: Peer, data: Path, seconds: float, *, asks_validation: bool = False
) -> tuple[dict[str, Any], dict[str, npt.NDArray[np.int32]]]:
    """Return what a peer says of its training, and its answers by the names of their files.

    Args:
        peer: What is run.
        data: See ``peer_models/peer.py``.
        seconds: Of its training.
        asks_validation: Whether it is the validation events that are asked for, which are then in no
            history.

    Raises:
        PeerFailedError: It is not installed, it failed, or it answers with what it was told to leave out.
    """
    python = sys.executable
    if peer.venv is not None:
        python = str(VENVS / peer.venv / "bin" / "python")
        if not Path(python).exists():
            raise PeerFailedError("not installed; run with --install")
    script = SCRIPTS / peer.script
    with TemporaryDirectory() as folder:
        where = ["--data", str(data), "--out", folder]
        done = subprocess.run(
            [python, str(script), *where, "--seconds", str(seconds), "--variant", peer.variant],
            env={**os.environ, **ONE_THREAD, "TF_CPP_MIN_LOG_LEVEL": "3"},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise PeerFailedError(f"failed: {_reason(done.stderr, done.returncode)}")
        figures: dict[str, Any] = json.loads((Path(folder) / "figures.json").read_text("utf-8"))
        answers = {file.stem: np.load(file) for file in sorted(Path(folder).glob("top*.npy"))}
    for top in answers.values():
        _check(top, data, asks_validation=asks_validation)
    return figures, answers


def run(
    peer: Peer, data: Path, test_items: npt.NDArray[np.int32], seconds: float
) -> dict[str, Any]:
    """Return the figures of a peer, measured by us on the items that it answers with.

    Raises:
        PeerFailedError: See ``answers_of``.
    """
    figures, answers = answers_of(peer, data, seconds)
    top = answers["top"]
    is_hit = top == test_items[:, None]
    one = np.ones(len(top), np.int64)
    return figures | {
        "hit_rate@10": float(hit_rate_at_k(is_hit, one, 10).mean()),
        "ndcg@10": float(ndcg_at_k(is_hit, one, 10).mean()),
        "hit_rate@100": float(hit_rate_at_k(is_hit, one, 100).mean()),
    }


def _reason(stderr: str, status: int) -> str:
    """Return the last line that names an error, as well as it can be told."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line.split(":")[0]]
    return (errors or lines or [f"exit status {status}"])[-1][:100]


def _check(top: npt.NDArray[np.int32], data: Path, *, asks_validation: bool) -> None:
    """Raise a PeerFailedError where an answer repeats an item or holds one of its history."""
    with np.load(data) as arrays:
        num_items = len(arrays["item_features"])
        seen = arrays["query"].astype(np.int64) * num_items + arrays["item"]
        if asks_validation:
            seen = seen[~arrays["is_valid"]]
        given = arrays["test_queries"].astype(np.int64)[:, None] * num_items + top
    given = given[top >= 0]
    if len(np.unique(given)) < len(given) or np.isin(given, seen).any():
        raise PeerFailedError("failed: it answers with items of the history, or with one twice")


def lines(task: str, names: Sequence[str], seconds: float, *, again: bool) -> list[dict[str, Any]]:
    """Return a line of the table for each of ``names``, what went wrong included."""
    data, test_items = prepared(task)
    rows = []
    for name in names:
        peer = PEERS[name]
        try:
            found = cached(
                f"peers/{task}-{name}-{seconds:g}s",
                lambda peer=peer: run(peer, data, test_items, seconds),  # type: ignore[misc]
                again=again,
            )
            note = ""
        except PeerFailedError as error:
            found, note = {}, str(error)
        row: dict[str, Any] = {"": peer.label}
        row |= {key: found.get(key) for key in ("hit_rate@10", "ndcg@10", "hit_rate@100")}
        row |= {"seconds": found.get("seconds"), "examples": found.get("examples")}
        row["examples/s"] = found.get("rate")
        row["examples/s of CPU time"] = found.get("rate_of_cpu")
        rows.append(row | {"note": note})
    return rows


def verdicts(
    task: str, names: Sequence[str], rows: Sequence[dict[str, Any]], seconds: float
) -> list[str]:
    """Return a sentence on each target, where ours and a peer to hold it against were run."""
    by_name = dict(zip(names, rows, strict=True))
    ours, of_ids = by_name.pop("twotower", None), by_name.pop("twotower-ids", None)
    if ours is None or ours["note"]:
        return []
    if task == "movielens-1m":
        others = {n: row["hit_rate@10"] for n, row in by_name.items() if not row["note"]}
        if not others:
            return []
        best = max(others, key=lambda name: others[name])
        is_ahead = "ahead of" if ours["hit_rate@10"] > others[best] else "not ahead of"
        found = [f"HR@10: ours is {is_ahead} the best peer, {PEERS[best].label}."]
        if ours["seconds"] > LATE * seconds:
            found.append("Ours took longer than the others: it always finishes its first epoch.")
        return found
    found = []
    for column in ("examples/s", "examples/s of CPU time"):
        rates = [row[column] for n, row in by_name.items() if PEERS[n].is_two_tower and row[column]]
        if rates and ours[column]:
            what = f"{column}, ratio to the fastest two-tower peer"
            found.append(verdict(TARGET_WITH_HISTORY, ours[column] / max(rates), what))
            if of_ids is not None and of_ids[column]:
                has_units = choose_precision("auto", torch.device("cpu")) == torch.bfloat16
                target = TARGET if has_units else TARGET_IN_FLOAT32
                what += ", of ids and features without a history"
                found.append(verdict(target, of_ids[column] / max(rates), what))
    return found


def main() -> None:
    """Install, or train, measure and print."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(PEERS)}")
    parser.add_argument(
        "--install",
        nargs="*",
        choices=list(PACKAGES),
        help="make these environments, or all, and no more",
    )
    parser.add_argument("--tasks", nargs="*", default=TASKS, choices=TASKS)
    parser.add_argument("--seconds", type=float, default=240, help="of training on movielens-1m")
    parser.add_argument("--rate-seconds", type=float, default=60, help="the same on synthetic")
    parser.add_argument(
        "--again", action="store_true", help="ignore finished runs and compute them again"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args()
    names = given.names or list(PEERS)
    unknown = set(names) - set(PEERS)
    if unknown:
        parser.error(f"names must be among {', '.join(PEERS)}, got {', '.join(sorted(unknown))}.")
    if given.install is not None:
        install(given.install or list(PACKAGES))
        return
    for task in given.tasks:
        seconds = given.seconds if task == "movielens-1m" else given.rate_seconds
        rows = lines(task, names, seconds, again=given.again)
        report(
            f"{task}: {seconds:g} seconds of training on one core",
            rows,
            as_json=given.json,
            notes=verdicts(task, names, rows, seconds),
        )


if __name__ == "__main__":
    main()
