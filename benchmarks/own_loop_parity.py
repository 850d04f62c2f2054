"""``examples/own_loop.py`` beside the defaults of ``train``: NDCG@10 on MovieLens-100K over several seeds.

python benchmarks/own_loop_parity.py --seeds 3
"""

import argparse
import runpy
from pathlib import Path

import numpy as np
import torch

import twotower
from twotower.data.sources.movielens import fetch

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "own_loop.py"
LEAST = 0.95
"""Share of the default's NDCG@10 that the loop must reach."""


def main() -> None:
    """Train both with each seed, and print the figures and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    seeds = range(parser.parse_args().seeds)
    films = fetch("movielens-100k")
    torch.set_num_threads(1)
    train = runpy.run_path(str(EXAMPLE))["train"]
    loops, defaults = [], []
    for seed in seeds:
        loops.append(train(films, seed))
        trained = twotower.train(
            films.interactions,
            items=films.items,
            queries=films.queries,
            config={"training": {"seed": seed, "threads": 1}},
            baselines=(),
            progress=None,
        )
        defaults.append(trained.figures["model"]["ndcg@10"])
        print(f"seed {seed}: own loop {loops[-1]:.4f}, default {defaults[-1]:.4f}", flush=True)
    ratio = np.mean(loops) / np.mean(defaults)
    print(
        f"mean: own loop {np.mean(loops):.4f}, default {np.mean(defaults):.4f}, {ratio:.3f} of it"
    )
    if ratio < LEAST:
        raise SystemExit(f"the own loop must reach {LEAST} of the default.")


if __name__ == "__main__":
    main()
