"""Items and queries for tests of approximate search, and what of the best was found."""

from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

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
