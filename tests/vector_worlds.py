"""Items and queries for tests of approximate search, and what of the best was found."""

from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from twotower.index.approximate import ApproximateIndex
from twotower.index.exact import ExactIndex
from twotower.vocab import FIRST_ROW

NUM_ITEMS, DIM, K = 20_000, 16, 100


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator)


@cache
def world() -> tuple[Tensor, Tensor]:
    """Items in clusters and of uneven lengths, and queries that are spread otherwise."""
    generator = torch.Generator().manual_seed(0)
    centres = normal(generator, 40, DIM)
    of_cluster = torch.randint(40, (NUM_ITEMS,), generator=generator)
    items = centres[of_cluster] + 0.6 * normal(generator, NUM_ITEMS, DIM)
    items *= torch.exp(0.4 * normal(generator, NUM_ITEMS, 1))
    reserved = torch.full((FIRST_ROW, DIM), 50.0)  # never found, however large
    return torch.cat([reserved, items]), normal(generator, 1_200, DIM)


@cache
def near_duplicates() -> tuple[Tensor, Tensor]:
    """Clusters of 200 items of length 1 that lie 1e-4 from their middle, and queries."""
    generator = torch.Generator().manual_seed(0)
    originals = F.normalize(normal(generator, 100, DIM)).repeat_interleave(200, 0)
    items = originals + 1e-4 * F.normalize(normal(generator, 20_000, DIM))
    return torch.cat([torch.zeros(FIRST_ROW, DIM), items]), normal(generator, 600, DIM)


def asked(number: int = 300) -> Tensor:
    return world()[1][600 : 600 + number]


def recall(found: np.ndarray, best: np.ndarray) -> float:
    shares = [
        np.isin(b[b > 0], a).mean() for a, b in zip(found, best, strict=True) if (b > 0).any()
    ]
    return float(np.mean(shares))


def check_filter(index: ApproximateIndex, kind: str, share: float) -> None:
    """Check what is found among a share of the items of ``world``.

    Args:
        index: Of these items, for a recall of 0.95.
        kind: Where these are: ``random``, ``alike`` (in the direction of the queries) or ``far``.
        share: Of the items that are allowed.
    """
    items, queries = world()[0], asked(100)
    value = torch.rand(len(items), generator=torch.Generator().manual_seed(3))
    if kind != "random":
        value = items @ queries.mean(dim=0) * (1 if kind == "alike" else -1)
    allowed = (value >= value.quantile(1 - share)).numpy()
    best = ExactIndex(items, reserved_rows=2).search(queries, K, allowed=allowed).item_rows
    found = index.search(queries, K, allowed=allowed).item_rows
    assert ((found > 0) == (best > 0)).all()
    assert allowed[found[found > 0]].all()
    assert recall(found, best) > 0.93
