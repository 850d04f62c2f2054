"""What each part of the default gives on validation: it is left out, and the rest is trained again.

    python benchmarks/default_parts.py [movielens-100k ...] [--seeds 0,1] [--json]

The sets are one with an order (``movielens-100k``), one without (``lastfm-lightgcn``), and one with a wide
catalogue (``book-crossing``). Nothing else is set but the data set's protocol, the seed and one thread.
Figures are means over the seeds. The difference to the default is paired by query, with its 95 % interval.
The parts of the closed form itself are those of ``closed_form_parts.py``.

A finished training is kept under ``benchmarks/out``.
"""

from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from common import cached, default_of, report
from strong_baselines import DEFAULT, MAIN, difference, task, values_of
from twotower.data.dataset import Part

PARTS = {
    DEFAULT: (),
    "no closed form": ("training.solver=gradient",),
    "no closed form beside the towers": ("towers.spectral_dim=0",),
    "single events, not halves of sets": ("training.examples=pairs",),
    "no time of the question": ("towers.question_time=off",),
    "no query ids": ("towers.query_id=off",),
    "pooled history": ("towers.history=pooled",),
    "width 64": ("towers.dim=64",),
}
ORDERED = ("no closed form", "no time of the question", "no query ids", "pooled history")
UNORDERED = (
    "no closed form",
    "no closed form beside the towers",
    "single events, not halves of sets",
    "width 64",
)
NAMES = {
    "movielens-100k": ORDERED,
    "lastfm-lightgcn": UNORDERED,
    "book-crossing": UNORDERED,
}
"""Data sets, and what is left out: a part that a data set does not have cannot be."""


def run(name: str, part: str, seed: int) -> dict[str, Any]:
    """Return the validation values of each query, and what was chosen."""
    found = task(name)
    settings = [f"training.seed={seed}", "training.threads=1", *PARTS[part]]
    default = default_of(found, found.config.with_settings(settings))
    return values_of(name, default.trainer.scorer(), Part.VALID) | {"chosen": default.said}


def rows_of(name: str, seeds: Sequence[int], *, again: bool) -> list[dict[str, Any]]:
    """Return a line for the default, and one for each part that is left out."""
    rows, default = [], None
    for part in (DEFAULT, *NAMES[name]):
        runs = [
            cached(
                f"default_parts/{name}-{part}-seed{seed}",
                partial(run, name, part, seed),
                again=again,
            )
            for seed in seeds
        ]
        values = {MAIN: np.mean([each["values"][MAIN] for each in runs], axis=0)}
        default = default or values
        less = "" if part == DEFAULT else difference(values, default)
        by_seed = ", ".join(f"{np.mean(each['values'][MAIN]):.4f}" for each in runs)
        mean = f"{values[MAIN].mean():.4f}"
        rows.append({"": part, MAIN: mean, "by seed": by_seed, "it less the default": less})
    return rows


def main() -> None:
    """Train what is missing, and print."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=tuple(NAMES), help=f"of {', '.join(NAMES)}")
    parser.add_argument("--seeds", default="0,1", help="training seeds")
    parser.add_argument("--again", action="store_true", help="train again what is there")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args()
    seeds = [int(seed) for seed in given.seeds.split(",")]
    for name in given.names:
        rows = rows_of(name, seeds, again=given.again)
        report(f"{name}: validation {MAIN}", rows, as_json=given.json)


if __name__ == "__main__":
    main()
