"""Checkpoints of tables that several processes keep: each writes and reads its own rows.

Each process writes a file with its rows, in the order of their slots (``ShardedTable``). A checkpoint loads
in any number of processes: several keep other runs of slots, and one has the rows in their own order.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from twotower.errors import BundleError
from twotower.processes.job import Job, here
from twotower.processes.sharded_table import ShardedTable, run_of, sharded_tables, slots_of
from twotower.training.checked_files import load_checked, save_checked
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
    """Write the rows that this process keeps, into a file of its own.

    Returns:
        The state, with what ``load_rows`` needs in place of the rows.

    Raises:
        OSError: The file cannot be written.
        RuntimeError: The same, where torch raises an error of its own instead.
    """
    job = here()
    rest: Tree = _copied(state)
    own = {}
    for place, table in places.items():
        rows = _at(state, place)
        own[_name(place)] = rows.cpu()
        note = {"rows": [table.num_embeddings, *rows.shape[1:]], "processes": job.size}
        _put(rest, place, {**note, "type": str(rows.dtype).removeprefix("torch.")})
    save_checked(own, folder / f"{job.rank}.pt")
    return rest


def load_rows(state: Tree, model: nn.Module, folder: Path) -> Tree:
    """Return a state with the rows that this process keeps.

    Args:
        state: As ``save_rows`` returned it; or with whole tables, as one process saves them.
        model: Whose tables are whole or kept by rows.
        folder: That ``save_rows`` wrote.

    Raises:
        BundleError: A file is missing or damaged.
    """
    job = here()
    rest: Tree = _copied(state)
    missing = {place: note for place, note in _leaves(state) if isinstance(note, Mapping)}
    files: dict[int, Any] = {}
    for place, note in missing.items():
        (num, *width), size = note["rows"], note["processes"]
        own = run_of(num, job)
        rows = torch.empty((len(own), *width), dtype=getattr(torch, note["type"]))
        for rank in range(size):
            kept = run_of(num, Job(rank, size))
            start, stop = max(own.start, kept.start), min(own.stop, kept.stop)
            if start < stop:
                if rank not in files:
                    files[rank] = _read(folder / f"{rank}.pt")
                part = files[rank][_name(place)][start - kept.start : stop - kept.start]
                rows[start - own.start : stop - own.start] = part
        _put(rest, place, rows[slots_of(torch.arange(num), num)] if job.is_alone else rows)
    for place, table in places_of(rest, model).items():
        if place not in missing:  # whole, from one process
            _put(rest, place, table.rows_kept(_at(rest, place)))
    return rest


def _read(file: Path) -> Any:
    """Return the rows of one process, which stay on disk until they are read."""
    rows = load_checked(file, mapped=True)
    if rows is None:
        raise BundleError(f"{str(file)!r} is missing or damaged.")
    return rows


def _name(place: Place) -> str:
    return "/".join(map(str, place))


def _leaves(tree: Any, place: Place = ()) -> list[tuple[Place, Any]]:
    """Return what a tree of dictionaries and lists holds; a note of missing rows is a leaf."""
    if isinstance(tree, Mapping) and set(tree) != {"rows", "processes", "type"}:
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
