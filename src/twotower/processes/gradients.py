"""The gradients of a step, summed over all processes."""

import torch
from torch import Tensor, nn

from twotower.processes.job import here
from twotower.processes.sharded_table import sharded_tables

_NONE, _DENSE = -1, -2


def sum_gradients(model: nn.Module, loss: Tensor) -> Tensor:
    """Replace each gradient by its sum over all processes, and return the sum of the losses: a scalar.

    All processes get the same numbers, so that equal weights stay equal. Dense gradients pass in one piece
    with the loss. Of a sparse one, each process passes the rows that it touched, each once. The gradients
    of a table that is kept by rows go to who keeps them.

    Args:
        model: Alike in each process.
        loss: A scalar without a graph.
    """
    job = here()
    if job.is_alone:
        return loss
    tables = sharded_tables(model)
    kept = {id(table.weight) for table in tables}
    for table in tables:
        table.give_back()
    trained = [each for each in model.parameters() if each.requires_grad and id(each) not in kept]
    kinds = []
    for each in trained:
        kind = _NONE
        if each.grad is not None and each.grad.is_sparse:
            each.grad = each.grad.coalesce()
            kind = each.grad.values().shape[0]
        elif each.grad is not None:
            kind = _DENSE
        kinds.append(kind)
    of_all = job.all_lengths(torch.tensor(kinds, dtype=torch.int64))
    dense = [p for p, kind in zip(trained, of_all.T, strict=True) if bool((kind == _DENSE).any())]
    for each in dense:
        if each.grad is None:
            each.grad = torch.zeros_like(each)
    given = [p.grad for p in dense if p.grad is not None]
    joined = torch.cat([loss.reshape(1), *(gradient.flatten() for gradient in given)])
    job.sum_in_place(joined)
    summed, *parts = torch.split(joined, [1, *(gradient.numel() for gradient in given)])
    for gradient, part in zip(given, parts, strict=True):
        gradient.copy_(part.view_as(gradient))
    for each, nums in zip(trained, of_all.T.tolist(), strict=True):
        if max(nums) >= 0:
            _gather_rows(each, [max(num, 0) for num in nums])
    return summed.squeeze(0)


def share_weights(model: nn.Module) -> None:
    """Overwrite the weights by those of the first process, but for the rows that each keeps."""
    kept = {id(table.weight) for table in sharded_tables(model)}
    here().share([each.data for each in model.parameters() if id(each) not in kept])
    here().share(list(model.buffers()))


def _gather_rows(table: nn.Parameter, nums: list[int]) -> None:
    """Replace the sparse gradient of a table by that of all processes."""
    job = here()
    rows = torch.empty(0, dtype=torch.int64, device=table.device)
    values = table.new_empty((0, *table.shape[1:]))
    if table.grad is not None:
        rows, values = table.grad.indices()[0], table.grad.values()
    rows, values = job.gathered(rows, nums), job.gathered(values, nums)
    table.grad = torch.sparse_coo_tensor(rows[None], values, table.shape, check_invariants=False)
