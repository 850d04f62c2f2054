"""A race of history encoders: seconds of training to equal NDCG@10 on the validation of MovieLens-1M.

    python benchmarks/peers.py --install recbole rectools
    python benchmarks/race_of_peers.py [--seconds 600] [--every 60] [--again] [--json]

Ours with ``towers.history = "transformer"`` and nothing else set, RecTools' SASRec and RecBole's SASRec as
their documentation has them but for a width of 64, one after the other, each alone on one core
(``peer_models/race_*.py``). All learn from the same events, up to the last but one of each viewer, which is
what they are asked for; all films are ranked without those of the history. Time is that of the training
steps: no preparing, no answering, no validation. Ours answers after each epoch; the others every
``--every`` seconds, RecTools at the end of the epoch it is in.

Target: ours reaches the best that each of the others reaches in less time than it.
"""

from argparse import ArgumentParser, RawDescriptionHelpFormatter
from typing import Any

import numpy as np

from common import cached, report, verdict
from peers import Peer, answers_of, prepared
from twotower.evaluation.metrics import ndcg_at_k

TASK = "movielens-1m"


def run(peer: Peer, seconds: float) -> dict[str, Any]:
    """Return the laps of one racer: seconds, epochs and NDCG@10."""
    data, _ = prepared(TASK)
    with np.load(data) as arrays:
        asked = arrays["item"][arrays["is_valid"]]  # a viewer each, in the order of the queries
    figures, answers = answers_of(peer, data, seconds, asks_validation=True)
    one = np.ones(len(asked), np.int64)
    for lap, top in zip(figures["laps"], answers.values(), strict=False):
        lap["ndcg@10"] = float(ndcg_at_k(top == asked[:, None], one, 10).mean())
    return figures


def first_at(laps: list[dict[str, float]], ndcg: float) -> dict[str, float] | None:
    """Return the first lap with at least this figure."""
    return next((lap for lap in laps if lap["ndcg@10"] >= ndcg), None)


def main() -> None:
    """Race, and print."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--every", type=float, default=60)
    parser.add_argument(
        "--again", action="store_true", help="ignore finished runs and compute them again"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args()
    every = f"{given.every:g}"
    racers = {
        "twotower": Peer("twotower, transformer", "race_ours.py", None),
        "rectools": Peer("RecTools SASRec", "race_rectools.py", "rectools", every),
        "recbole": Peer("RecBole SASRec", "race_recbole.py", "recbole", every),
    }
    laps = {
        name: cached(
            f"race/{name}-{given.seconds:g}s",
            lambda peer=peer: run(peer, given.seconds),  # type: ignore[misc]
            again=given.again,
        )["laps"]
        for name, peer in racers.items()
    }
    rows, notes = [], []
    for name, peer in racers.items():
        last, best = laps[name][-1], max(laps[name], key=lambda lap: lap["ndcg@10"])
        ours = first_at(laps["twotower"], best["ndcg@10"])
        row = {
            "": peer.label,
            "an epoch, s": last["seconds"] / last["epochs"],
            "epochs": last["epochs"],
            "trained, s": last["seconds"],
            "best ndcg@10": best["ndcg@10"],
            "after, s": best["seconds"],
            "ours there after, s": None if ours is None else ours["seconds"],
        }
        rows.append(row)
        if name != "twotower":
            ratio = 0.0 if ours is None else best["seconds"] / ours["seconds"]
            notes.append(
                verdict(1.0, ratio, f"{peer.label}: its seconds by ours to the same NDCG@10")
            )
            curve = ", ".join(f"{lap['seconds']:.0f} s {lap['ndcg@10']:.4f}" for lap in laps[name])
            notes.append(f"{peer.label}: {curve}.")
    curve = ", ".join(f"{lap['seconds']:.0f} s {lap['ndcg@10']:.4f}" for lap in laps["twotower"])
    notes.append(f"Ours: {curve}.")
    report(f"{TASK}, one core", rows, as_json=given.json, notes=notes)


if __name__ == "__main__":
    main()
