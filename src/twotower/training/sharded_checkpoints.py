"""Checkpoints of tables that several processes keep: each writes and reads its own rows.

The rows are written by ``torch.distributed.checkpoint`` in the order of their slots (``ShardedTable``), as
DTensors that are cut along the rows. So a checkpoint loads in any number of processes: several keep other
runs of slots, and one has the rows in their own order.
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from twotower.errors import BundleError
from twotower.processes.job import here
from twotower.processes.sharded_table import ShardedTable, sharded_tables, slots_of
from twotower.training.optimizer_classes import sparse_tables

Tree = dict[str, Any]
"""The fields of a ``Progress``."""
Place = tuple[str | int, ...]
"""Keys that lead to a tensor in them."""


def places_of(state: Tree, model: nn.Module) -> dict[Place, ShardedTable]:
    """Return where a progress holds rows of tables that this process keeps in part."""
    kept = {id(table.weight): table for table in sharded_tables(model)}
    if not kept:
        return {}
    found: dict[Place, ShardedTable] = {}
    for name, weight in model.named_parameters():
        if id(weight) in kept:
            for field in ("model", "best_model"):
                if name in state[field]:
                    found[field, name] = kept[id(weight)]
    # The optimizer of tables is the last, and numbers them in the order of the model.
    sparse = sparse_tables(model)
    tables = [weight for weight in model.parameters() if id(weight) in sparse]
    last = len(state["optimizers"]) - 1
    for number, weight in enumerate(tables):
        if id(weight) in kept and last >= 0:
            for key, value in state["optimizers"][last]["state"].get(number, {}).items():
                if isinstance(value, Tensor) and value.ndim:
                    found["optimizers", last, "state", number, key] = kept[id(weight)]
    return found


def save_rows(state: Tree, places: Mapping[Place, ShardedTable], folder: Path) -> Tree:
    """Write the rows that each process keeps; all call it at once.

    Returns:
        The state, with what ``load_rows`` needs in place of the rows.
    """
    rest: Tree = _copied(state)
    tensors = {}
    for place, table in places.items():
        own = _at(state, place)
        shape = (table.num_embeddings, *own.shape[1:])
        tensors[_name(place)] = _cut_tensor(own.cpu(), shape)
        _put(rest, place, {"rows": list(shape), "type": str(own.dtype).removeprefix("torch.")})
    with _failures():
        _checkpoint().save(tensors, checkpoint_id=folder)
    return rest


def load_rows(state: Tree, model: nn.Module, folder: Path) -> Tree:
    """Return a state with the rows that this process keeps; all call it at once.

    Args:
        state: As ``save_rows`` returned it; or with whole tables, as one process saves them.
        model: Whose tables are whole or kept by rows.
        folder: That ``save_rows`` wrote.
    """
    job = here()
    rest: Tree = _copied(state)
    missing = {place: told for place, told in _leaves(state) if isinstance(told, Mapping)}
    own: dict[Place, Tensor] = {}
    tensors: dict[str, Any] = {}
    for place, told in missing.items():
        shape, dtype = tuple(told["rows"]), getattr(torch, told["type"])
        if job.is_alone:
            own[place] = tensors[_name(place)] = torch.empty(shape, dtype=dtype)
        else:
            start, end = _run(shape[0])
            own[place] = torch.empty((end - start, *shape[1:]), dtype=dtype)
            tensors[_name(place)] = _cut_tensor(own[place], shape)
    if tensors:
        with _failures():
            _checkpoint().load(tensors, checkpoint_id=folder, no_dist=job.is_alone)
    for place, rows in own.items():
        _put(
            rest,
            place,
            rows[slots_of(torch.arange(len(rows)), len(rows))] if job.is_alone else rows,
        )
    for place, table in places_of(rest, model).items():
        if place not in missing:  # whole, from one process
            _put(rest, place, table.rows_kept(_at(rest, place)))
    return rest


def _checkpoint() -> Any:
    # Only here is it needed, and it takes long to import.
    return import_module("torch.distributed.checkpoint")


@contextmanager
def _failures() -> Iterator[None]:
    """Raise the error of the process that failed, which torch wraps in one that is no ``Exception``."""
    try:
        with warnings.catch_warnings():  # that one process loads by itself is meant
            warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
            yield
    except _checkpoint().CheckpointException as error:
        rank, (reason, _) = next(iter(error.failures.items()))
        raise BundleError(f"process {rank} could not write or read its rows: {reason}") from reason


def _cut_tensor(own: Tensor, shape: tuple[int, ...]) -> Any:
    """Return the whole tensor, of which this process has a run of rows."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard

    stride = torch.empty(shape, device="meta").stride()
    mesh = init_device_mesh("cpu", (here().size,))
    size = torch.Size(shape)
    return DTensor.from_local(own, mesh, [Shard(0)], run_check=False, shape=size, stride=stride)


def _run(num: int) -> tuple[int, int]:
    """Return the run of slots that this process keeps of ``num``."""
    job = here()
    length = -(-num // job.size)
    return min(num, job.rank * length), min(num, (job.rank + 1) * length)


def _name(place: Place) -> str:
    return "/".join(map(str, place))


def _leaves(tree: Any, place: Place = ()) -> list[tuple[Place, Any]]:
    """Return what a tree of dictionaries and lists holds; a note of missing rows is a leaf."""
    if isinstance(tree, Mapping) and set(tree) != {"rows", "type"}:
        return [leaf for key, each in tree.items() for leaf in _leaves(each, (*place, key))]
    if isinstance(tree, list):
        return [leaf for key, each in enumerate(tree) for leaf in _leaves(each, (*place, key))]
    return [(place, tree)]


def _copied(tree: Any) -> Any:
    """Return new dictionaries and lists of the same leaves."""
    if isinstance(tree, Mapping):
        return {key: _copied(each) for key, each in tree.items()}
    return [_copied(each) for each in tree] if isinstance(tree, list) else tree


def _at(tree: Any, place: Place) -> Any:
    for key in place:
        tree = tree[key]
    return tree


def _put(tree: Any, place: Place, value: Any) -> None:
    _at(tree, place[:-1])[place[-1]] = value
