"""``ShardedTable``: an embedding table that is cut by rows over the processes."""

import math
from collections.abc import Iterator
from functools import cache

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from twotower.processes.job import Job, here

SHARDED_FROM_NUMBERS = 2**26
"""Tables of at least so many numbers are kept by rows; smaller ones are in each process as a whole."""

_START_ROWS = 2**16
"""Rows that are drawn at once. Blocks of a multiple of 16 numbers are drawn as one draw of all would be."""


class ShardedTable(nn.Module):
    """An embedding table whose rows are cut over the processes, in place of ``nn.Embedding``.

    A step names all rows that it reads (``want``), fetches each once from the process that keeps it
    (``fetch``), computes with them as with any weights, and sends their gradients back (``give_back``).
    However often a step reads a row, its number and its vector pass to this process once, and its gradient
    passes back once, by ``all_to_all_single``.

    A row's *slot* is ``row * step mod num_rows``, and each process keeps a run of slots. Neighbouring rows
    are often read alike, such as those of the newest items. Their slots are far from each other, so that
    all processes have about as much to do.

    Args:
        num_rows: Rows of the whole table.
        dim: Width.
        padding_row: A row that stays zero and gets no gradient.

    Source: Mudigere et al., ISCA 2022, section 3 (row-wise parallel embedding tables); Ivchenko et al.,
        RecSys 2022 (TorchRec: input, output and gradient exchanges).
    """

    sparse = True

    def __init__(self, num_rows: int, dim: int, padding_row: int = 0) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim, self.padding_idx = num_rows, dim, padding_row
        job = here()
        self._per_process = -(-num_rows // job.size)
        self.slots_here = run_of(num_rows, job)
        self.weight = nn.Parameter(torch.empty(len(self.slots_here), dim))
        self._wanted: list[Tensor] = []
        self._rows = torch.empty(0, dtype=torch.int64)
        self._held: Tensor | None = None
        self._is_read = torch.empty(0, dtype=torch.bool)

    @torch.no_grad()
    def start(self, std: float, num_zero: int) -> None:
        """Draw all rows from a normal distribution, as a table in one process draws them, and keep some.

        Args:
            std: Standard deviation.
            num_zero: First rows that are zero.
        """
        for is_kept in (
            False,
            True,
        ):  # an nn.Embedding draws its weights twice: itself, and by its owner
            for rows, block in self._blocks():
                nn.init.normal_(block, std=std if is_kept else 1.0)
                block[: max(0, num_zero - int(rows[0]))] = 0.0
                if is_kept:
                    self.put(rows, block)

    @torch.no_grad()
    def put(self, rows: Tensor, vectors: Tensor) -> None:
        """Set the first numbers of some rows, of which each process keeps its own.

        Args:
            rows: ``(n,)`` int64, each at most once; the same in all processes.
            vectors: ``(n, width)`` float32, at most as wide as the table.
        """
        local = slots_of(rows, self.num_embeddings) - self.slots_here.start
        is_here = (local >= 0) & (local < len(self.slots_here))
        self.weight[local[is_here], : vectors.shape[1]] = vectors[is_here].to(self.weight.device)

    @torch.no_grad()
    def whole(self) -> nn.Embedding | None:
        """Return the whole table in the first process, in the processor's memory; None in the others."""
        job = here()
        table = None
        if job.is_first:
            table = nn.Embedding(
                self.num_embeddings,
                self.embedding_dim,
                padding_idx=self.padding_idx,
                sparse=True,
                _weight=torch.empty(self.num_embeddings, self.embedding_dim),
            )
        for rows, block in self._blocks():
            slots = slots_of(rows, self.num_embeddings)
            local = slots - self.slots_here.start
            is_here = (local >= 0) & (local < len(self.slots_here))
            block.zero_()
            block[is_here] = self.weight[local[is_here].to(self.weight.device)].to(block.device)
            job.sum_in_place(block)
            if table is not None:
                table.weight[rows] = block
        return table

    def rows_kept(self, whole: Tensor) -> Tensor:
        """Return this process's lines of ``(num_rows, ...)`` in the order of the rows."""
        rows = torch.arange(self.num_embeddings)
        order = torch.empty_like(rows)
        order[slots_of(rows, self.num_embeddings)] = rows
        return whole[order[self.slots_here.start : self.slots_here.stop]]

    def want(self, rows: Tensor) -> None:
        """Name rows that will be read, of any shape; ``fetch`` fetches them."""
        self._wanted.append(rows.reshape(-1).long())

    def fetch(self, *, with_gradient: bool) -> None:
        """Fetch the wanted rows, the reserved ones among them; all processes call it at once.

        Args:
            with_gradient: Whether ``give_back`` will be called.
        """
        job, device = here(), self.weight.device
        reserved = torch.arange(
            min(2, self.num_embeddings), device=device
        )  # dropped-out ids read those
        self._rows = torch.unique(torch.cat([reserved, *self._wanted]))
        self._wanted = []
        order, asked, nums, of_others = self._exchange(self._rows, job)
        with torch.no_grad():
            given = self.weight.index_select(0, asked)
            got = _exchanged(given, of_others, nums)
            held = torch.empty_like(got)
            held[order] = got
        self._held = held.requires_grad_(with_gradient)
        self._is_read = torch.zeros(len(self._rows), dtype=torch.bool, device=device)

    def forward(self, rows: Tensor) -> Tensor:
        """Map rows that were fetched to their vectors: ``(..., dim)``."""
        assert self._held is not None, "rows are fetched before they are read"
        places = torch.searchsorted(self._rows, rows)
        if self._held.requires_grad:
            self._is_read[places] = True
        return F.embedding(places, self._held, padding_idx=None)

    def give_back(self) -> None:
        """Send the gradients of all rows that were read to their keepers; all processes call it at once."""
        held, job = self._held, here()
        assert held is not None
        is_read = self._is_read & (self._rows != self.padding_idx)
        gradient = torch.zeros_like(held) if held.grad is None else held.grad
        rows, gradient = self._rows[is_read], gradient[is_read]
        order, asked, nums, of_others = self._exchange(rows, job)
        got = _exchanged(gradient[order], nums, of_others)
        self.weight.grad = torch.sparse_coo_tensor(
            asked[None], got, self.weight.shape, check_invariants=False
        )
        self._held = None

    def _exchange(self, rows: Tensor, job: Job) -> tuple[Tensor, Tensor, list[int], list[int]]:
        """Tell each process which of its rows this one needs, and learn which the others need.

        Returns:
            The order of the rows by owner; the places here of the rows that others name; how many go to
            each process, and how many come from each.
        """
        slots = slots_of(rows, self.num_embeddings)
        owners = slots // self._per_process
        order = owners.argsort(stable=True)
        counts = torch.bincount(owners, minlength=job.size)
        of_all = job.all_lengths(counts)
        nums, of_others = of_all[job.rank].tolist(), of_all[:, job.rank].tolist()
        places = (slots - owners * self._per_process)[order]
        return order, _exchanged(places, nums, of_others), nums, of_others

    def _blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield runs of rows, each with room for their vectors."""
        num, start = self.num_embeddings, 0
        while start < num:
            # A rest of fewer than 16 numbers would be drawn in another way.
            end = num if num - start < _START_ROWS + 16 else start + _START_ROWS
            yield torch.arange(start, end), torch.empty(end - start, self.embedding_dim)
            start = end


def slots_of(rows: Tensor, num_rows: int) -> Tensor:
    """Return the slots of some rows of a table of ``num_rows``: int64 of their shape, each in one slot."""
    return rows * _coprime_to(num_rows) % num_rows


def run_of(num_rows: int, job: Job) -> range:
    """Return the slots of a table of ``num_rows`` that a process keeps."""
    length = -(-num_rows // job.size)
    start = min(num_rows, job.rank * length)
    return range(start, min(num_rows, start + length))


def sharded_tables(model: nn.Module) -> list[ShardedTable]:
    """Return the tables of a model that are kept by rows, in the order of its modules."""
    return [module for module in model.modules() if isinstance(module, ShardedTable)]


def whole_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shape of each weight and buffer of a model as one process would have it, by its name."""
    kept = {
        id(table.weight): (table.num_embeddings, table.embedding_dim)
        for table in sharded_tables(model)
    }
    found = model.state_dict(keep_vars=True)
    return {name: kept.get(id(each), tuple(each.shape)) for name, each in found.items()}


def fetch_all(model: nn.Module, *, with_gradient: bool) -> None:
    """Fetch the wanted rows of all tables of a model."""
    for table in sharded_tables(model):
        table.fetch(with_gradient=with_gradient)


def is_to_be_sharded(num_rows: int, dim: int) -> bool:
    """Return whether a table of this size is cut over the processes that there are."""
    return not here().is_alone and num_rows * dim >= SHARDED_FROM_NUMBERS


def numbers_kept(num_rows: int, dim: int) -> int:
    """Return how many numbers of a table this process keeps, if its gradients are sparse."""
    is_cut = is_to_be_sharded(num_rows, dim)
    return dim * (len(run_of(num_rows, here())) if is_cut else num_rows)


def made_whole(model: nn.Module) -> None:
    """Put whole tables into the model of the first process, in place of those that are kept by rows."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, ShardedTable):
                table = child.whole()
                if table is not None:
                    setattr(module, name, table.to(child.weight.device))


def _exchanged(own: Tensor, nums: list[int], of_others: list[int]) -> Tensor:
    """Send ``nums`` lines to each process, and return the lines that the others send."""
    got = own.new_empty((sum(of_others), *own.shape[1:]))
    dist.all_to_all_single(got, own.contiguous(), of_others, nums)
    return got


@cache
def _coprime_to(num: int) -> int:
    """Return a number without a common divisor, near the golden share of ``num``: neighbours are spread."""
    step = max(1, round(num * 0.6180339887498949))
    while math.gcd(step, num) != 1:
        step += 1
    return step
