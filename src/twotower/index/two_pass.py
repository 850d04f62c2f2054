"""Exact search in two passes: every item is scored coarsely, and again exactly where that leaves doubt."""

import warnings
from functools import cache

import numpy as np
import torch
from torch import Tensor

from twotower.histories import Histories
from twotower.index.base import Found, Mask, Vectors, nothing_found
from twotower.index.exact import ExactIndex
from twotower.index.topk import best_of
from twotower.runtime import cpu_features

_BLOCK = 64
"""Items that share a scale and a bound. Measured at 200 thousand and a million: 32 to 128 are alike."""
_CHUNK_PRODUCTS = 2**23
"""Products held at once, 32 MB: more of them leave the processor's caches."""
_MOST_DOUBTS = 2**16
"""Items a chunk that are scored again; where there are more, one pass over all is the quicker way."""
_LARGEST_PRODUCT = 2**29  # 127 * 127 * dim stays below it for a dim of up to 33,000
_LEFT_OUT = -2 * _LARGEST_PRODUCT  # added to a product it stays below all others
_LARGEST = 127
_LEAST_SCALE = 1e-30
BYTE_FEATURES = frozenset({"avx512_vnni", "avx_vnni", "avx512"})
"""Instruction sets that multiply bytes; one is enough. Linux lists them. Elsewhere ``cpu_features`` says
``avx512`` at best; a processor that has no more than that gets the products wrong, which is tried."""
_FASTER_FROM = 2**22
"""Numbers in a catalogue from which two passes are faster than one."""


class TwoPassIndex(ExactIndex):
    """Finds what ``ExactIndex`` finds, several times as fast on a CPU that multiplies bytes.

    Vectors are kept a second time as bytes, ``scale * code``, and a query is rounded in the same way. By
    Cauchy and Schwarz the product of the rounded ones is off by at most::

        |q . e - q' . e'| <= |q| |e - e'| + |q - q'| |e'|

    whose right side is kept for blocks of items. The first pass takes the products of all bytes; an item
    whose product and bound together stay below what ``k`` others have for sure is no answer. The others
    are scored by their vectors, so that the answer is exact whatever the vectors are: how they are
    spread decides the time alone. Blocks are of items of like size, so that a few long vectors do not
    make the steps of the others coarse.

    Args:
        item_vectors: ``(num_item_rows, dim)`` float32 on the CPU.
        reserved_rows: As of ``ExactIndex``.
    """

    cost_of_a_row = 0.2

    def __init__(self, item_vectors: Vectors, *, reserved_rows: int = 0) -> None:
        super().__init__(item_vectors, reserved_rows=reserved_rows)
        num_rows, dim = self.item_vectors.shape
        vectors = self.item_vectors[reserved_rows:]
        peaks = torch.linalg.vector_norm(vectors, torch.inf, dim=1)  # without a copy of all
        order = peaks.argsort(descending=True, stable=True)
        self._num_items = len(order)
        num_blocks = -(-len(order) // _BLOCK)
        size = num_blocks * _BLOCK
        # Blocks are full: row 0 fills the last one, and is left out there.
        self._rows = torch.zeros(size, dtype=torch.int64)
        self._rows[: len(order)] = order + reserved_rows
        is_filler = torch.arange(size) >= len(order)
        self._places = torch.full((num_rows,), -1)
        self._places[self._rows[: len(order)]] = torch.arange(len(order))
        self._codes = torch.zeros((size, dim), dtype=torch.int8)
        self._scales = torch.ones(num_blocks)
        self._rest = torch.zeros(num_blocks)
        self._lengths = torch.zeros(num_blocks)
        for start in range(0, num_blocks, 2**10):
            part = slice(start, min(start + 2**10, num_blocks))
            places = slice(part.start * _BLOCK, part.stop * _BLOCK)
            each = self.item_vectors[self._rows[places]].view(-1, _BLOCK, dim)
            each = each.masked_fill(is_filler[places].view(-1, _BLOCK, 1), 0.0)
            scales, each, codes = _coded(each, (1, 2))
            scale = scales.flatten()
            self._codes[places] = codes.view(-1, dim).to(torch.int8)
            self._scales[part] = scale
            self._rest[part] = scale * (each - codes).norm(dim=2).amax(dim=1)
            self._lengths[part] = scale * codes.norm(dim=2).amax(dim=1)

    def _search_all(
        self, queries: Tensor, k: int, exclude: Histories, allowed: Mask | None
    ) -> Found:
        num_queries = len(queries)
        rows, best = nothing_found(num_queries, k, self.reserved_rows)
        penalties = None
        if allowed is not None:
            is_out = torch.from_numpy(~allowed[self._rows.numpy()])
            penalties = is_out.to(torch.int32).mul_(_LEFT_OUT)
        size = max(1, _CHUNK_PRODUCTS // max(1, len(self._rows)))
        for start in range(0, num_queries, size):
            here = slice(start, min(start + size, num_queries))
            sets = exclude.take(here)
            found = self._search_chunk(queries[here], k, sets, penalties)
            if found is None:
                found = super()._search_all(queries[here], k, sets, allowed)
            rows[here], best[here] = found
        return Found(rows, best)

    def _search_chunk(
        self, queries: Tensor, k: int, exclude: Histories, penalties: Tensor | None
    ) -> Found | None:
        """Return the answers; None where so many items are in doubt that this is no way."""
        products, scale, bounds = self._first_pass(queries)
        if not (bounds.isfinite().all() and (scale > _LEAST_SCALE).all()):
            return None  # numbers so large, or so small, that float32 does not tell their products apart
        self._leave_out(products, exclude, penalties)
        of_blocks = products.view(len(queries), -1, _BLOCK)  # (Q, blocks, BLOCK)
        most = of_blocks.amax(dim=2)
        is_open = most > -_LARGEST_PRODUCT
        # As many blocks as answers hold an item that is this good: so good is the last answer, too.
        sure = (most * scale - bounds).masked_fill_(~is_open, -torch.inf)
        enough = ((_least_of_best(sure, k) - bounds) / scale).floor_()
        enough = enough.clamp_(-_LARGEST_PRODUCT, _LARGEST_PRODUCT).to(torch.int32)  # (Q, blocks)
        owner, block = (most >= enough).nonzero(as_tuple=True)
        in_doubt = of_blocks[owner, block] >= enough[owner, block, None]  # (n, BLOCK)
        if int(in_doubt.sum()) > max(_MOST_DOUBTS, len(queries) * k * 4):
            return None
        line, place = in_doubt.nonzero(as_tuple=True)
        owner, rows = owner[line], self._rows[block[line] * _BLOCK + place]
        # Equal scores are ordered by row.
        key, _ = (owner * len(self.item_vectors) + rows).sort()
        owner, rows = key // len(self.item_vectors), key % len(self.item_vectors)
        scores = (self.item_vectors[rows] * queries[owner]).sum(dim=1)
        return self._best(owner, rows, scores, len(queries), k)

    def _first_pass(self, queries: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return products ``(Q, places)`` int32; and per block what one counts, and how far off it is."""
        step, each, codes = _coded(queries, (1,))
        products = byte_products(codes.to(torch.int8), self._codes)
        length = step * each.norm(dim=1, keepdim=True)
        lost = step * (each - codes).norm(dim=1, keepdim=True)
        bounds = length * self._rest + lost * self._lengths
        slack = 1e-5 * length * (self._lengths + self._rest)  # sums in float32 are off by less
        return products, step * self._scales, bounds + slack

    def _leave_out(self, products: Tensor, exclude: Histories, penalties: Tensor | None) -> None:
        if penalties is not None:
            products += penalties  # several times as fast as filling by a mask
        products[:, self._num_items :] = _LEFT_OUT  # what fills the last block
        if len(exclude.item_rows):
            owner = torch.from_numpy(exclude.owners)
            places = self._places[torch.from_numpy(exclude.item_rows.astype(np.int64))]
            is_item = places >= 0
            products[owner[is_item], places[is_item]] = _LEFT_OUT

    def _best(self, owner: Tensor, rows: Tensor, scores: Tensor, num_queries: int, k: int) -> Found:
        """Return the best of scored items, which stand by owner and by row."""
        counts = torch.bincount(owner, minlength=num_queries)
        within = torch.arange(len(owner)) - (counts.cumsum(0) - counts)[owner]
        of_query = torch.full((num_queries, int(counts.max())), -torch.inf)
        row_of = torch.zeros(of_query.shape, dtype=torch.int64)
        of_query[owner, within], row_of[owner, within] = scores, rows
        return best_of(of_query, k, self.reserved_rows, row_of)


def _coded(vectors: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Return the scale of vectors, the vectors in its units, and these as whole numbers.

    Args:
        vectors: Of any shape.
        dims: Dimensions over which numbers share a scale, which stay with length 1.
    """
    scale = vectors.abs().amax(dim=dims, keepdim=True) / _LARGEST
    scale[scale == 0] = 1.0
    each = vectors / scale  # lengths in these units neither overflow nor vanish
    return scale, each, each.round().clamp_(-_LARGEST, _LARGEST)  # a subnormal scale is coarse


def _least_of_best(values: Tensor, k: int) -> Tensor:
    """Return the ``k``-th largest of each line, ``(Q, 1)``; ``-inf`` where there are fewer."""
    if values.shape[1] < k:
        return torch.full((len(values), 1), -torch.inf)
    return values.topk(k, dim=1, sorted=False).values.amin(dim=1, keepdim=True)


def exact_index(item_vectors: Tensor, *, reserved_rows: int = 0) -> ExactIndex:
    """Return the exact index that is the quicker one here, for a catalogue of this size.

    Args:
        item_vectors: ``(num_item_rows, dim)`` float32.
        reserved_rows: As of ``ExactIndex``.
    """
    is_large = item_vectors.numel() >= _FASTER_FROM
    if is_large and item_vectors.device.type == "cpu" and multiplies_bytes():
        return TwoPassIndex(item_vectors, reserved_rows=reserved_rows)
    return ExactIndex(item_vectors, reserved_rows=reserved_rows)


def byte_products(left: Tensor, right: Tensor) -> Tensor:
    """Return the products of the lines of ``(n, dim)`` and ``(m, dim)`` int8: ``(n, m)`` int32."""
    # PyTorch has no public product of bytes whose sums are whole numbers.
    product: Tensor = torch._int_mm(left, right.T)
    return product


@cache
def multiplies_bytes() -> bool:
    """Return whether this processor has instructions that multiply bytes, and gets them right: tried, once.

    What else the machine does changes nothing. Some processors add pairs of products in 16 bits and cut
    what does not fit. If a later PyTorch lacks such a product, search takes one pass, with a warning.
    """
    if not (BYTE_FEATURES & cpu_features() and torch.backends.mkldnn.is_available()):  # type: ignore[no-untyped-call]
        return False
    try:
        return all(_is_right(queries, dim) for queries in (1, 3, 64) for dim in (16, 50, 64, 256))
    except Exception as error:  # whatever a later PyTorch does with a private function
        warnings.warn(
            f"Exact search takes one pass over the items, and is slower: products of bytes fail with "
            f"{type(error).__name__}: {error}",
            stacklevel=2,
        )
        return False


def _is_right(queries: int, dim: int) -> bool:
    """Return whether products of the largest bytes there are come out as they should."""
    largest = torch.full((queries, dim), _LARGEST, dtype=torch.int8)
    items = torch.full((256, dim), _LARGEST, dtype=torch.int8)
    items[::2] = -_LARGEST
    expected = largest.long() @ items.long().T
    found = byte_products(largest, items)
    return found.dtype == torch.int32 and bool((found == expected).all())
