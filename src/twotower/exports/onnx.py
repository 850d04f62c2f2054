"""ONNX: both towers as graphs, checked against PyTorch on real rows."""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from twotower.arrays import Float32s
from twotower.errors import ExportError
from twotower.exports.contents import contents_of
from twotower.exports.folder import Exported, check_folder, first_line, new_folder, write_json
from twotower.exports.onnx_inputs import ITEM_ROWS, TIMES, Arrays, TowerInputs, names_of
from twotower.exports.onnx_towers import ItemModule, QueryModule
from twotower.exports.vector_files import write_ids
from twotower.extras import library
from twotower.histories import Histories
from twotower.serving import arguments
from twotower.serving.retriever import Bundle, Retriever
from twotower.vocab import FIRST_ROW, UNKNOWN_ROW

LARGEST_DIFFERENCE = 1e-4
"""How far a number of a vector may be from torch's, where the largest is 1 or less; else a share of it."""
_CHECKED = 1_000
"""Rows of a side that are compared."""
_MADE_UP = 61
"""Histories of items of the catalogue, of every length, that are compared beside what queries did. It is a
number that no width is: of equal numbers a trace might take one for the other."""
_LARGEST_FILE = 2**30
"""Bytes of weights from which on they stand in a file of their own: a graph's file ends at 2 GiB."""


def export_onnx(bundle: Bundle, out: str | Path) -> Exported:
    """Write ``query_tower.onnx`` and ``item_tower.onnx``, and their inputs for known queries and items.

    The graphs start after the transforms. ``queries.npz`` and ``items.npz`` hold the inputs for each known
    query and item. ``inputs.json`` and the vocabularies beside it describe how to compute inputs; see
    docs/exports.md. In Python, ``query_inputs`` and ``item_inputs`` compute them from the arguments of
    ``Retriever``.

    Args:
        bundle: The bundle to export: a path, or an opened one in its current state; see ``Retriever.of``.
        out: A folder that does not exist yet.

    Raises:
        ExportError: A tower cannot be written as ONNX, or its vectors differ from PyTorch's; the folder
            cannot be made or written; or there is no item.
        MissingExtraError: ``onnxscript`` or ``onnxruntime`` is not installed.
    """
    check_folder(out)
    library("onnxscript", wanted_by="twotower export onnx", extra="onnx")
    library("onnxruntime", wanted_by="twotower export onnx", extra="onnx")
    retriever = Retriever.of(bundle)
    inputs = TowerInputs(retriever)
    items, queries = contents_of(retriever)
    rows = retriever.known_item_rows(items.ids.to_list())
    tensors = retriever.encoding.item_features.items()
    of_items = inputs.of_items({name: values.cpu().numpy()[rows] for name, values in tensors})
    of_queries = inputs.of_queries(queries.features, queries.histories)
    with new_folder(out) as folder:
        item_file, query_file = folder / "item_tower.onnx", folder / "query_tower.onnx"
        item_distance = write_item_tower(item_file, inputs, of_items, items.vectors)
        query_distance = write_query_tower(query_file, inputs)
        write_json(folder / "inputs.json", inputs.describe(folder))
        np.savez(folder / "items.npz", **cast("dict[str, Any]", of_items))
        np.savez(folder / "queries.npz", **cast("dict[str, Any]", of_queries))
        write_ids(folder, items, queries)
    note = (
        f"Numbers of the vectors differ from torch's by at most {query_distance:.1g} for queries and "
        f"{item_distance:.1g} for items."
    )
    return Exported(str(out), len(items), len(queries), (note, *items.notes))


def write_item_tower(file: Path, inputs: TowerInputs, arrays: Arrays, vectors: Float32s) -> float:
    """Write the item tower; return how far its vectors are from those of all items.

    Args:
        file: Where to.
        inputs: Of the towers.
        arrays: Of ``n`` items.
        vectors: ``(n, dim)`` of them, by torch.

    Raises:
        ExportError: It cannot be written, or its vectors are others.
    """
    module = ItemModule(inputs.retriever.encoding.model, names_of(inputs.item_features))
    few = np.linspace(0, len(vectors) - 1, min(len(vectors), _CHECKED)).astype(np.int64)
    arrays = {name: values[few] for name, values in arrays.items()}
    one = {name: values[:1] for name, values in arrays.items()}
    # Traced with several lines: a trace of one line alone would know no other number.
    traced = {name: values[np.arange(_MADE_UP) % len(values)] for name, values in arrays.items()}
    return _written(file, "item", module, traced, [(arrays, vectors[few]), (one, vectors[few[:1]])])


def write_query_tower(file: Path, inputs: TowerInputs) -> float:
    """Write the query tower; return how far its vectors are from torch's, for real queries and others.

    Raises:
        ExportError: It cannot be written, or its vectors are others.
    """
    retriever = inputs.retriever
    model = retriever.encoding.model
    read_of_items = None
    if inputs.reads_history:
        with torch.no_grad():
            read_of_items = model.history_inputs(retriever.encoding.item_features)
        read_of_items = read_of_items[torch.from_numpy(inputs.item_rows.astype(np.int64))]
    module = QueryModule(
        model,
        retriever.contents.config.towers.history,
        names_of(inputs.query_features),
        names_of(inputs.event_features),
        read_of_items,
    )
    cases = [
        (inputs.of_queries(*given), retriever.encoding.query_vectors(*given).cpu().numpy())
        for given in _cases(inputs)
    ]
    return _written(file, "query", module, cases[-1][0], cases)


def _cases(inputs: TowerInputs) -> Iterator[tuple[Any, Histories]]:
    """Yield queries to compare: known ones, one that nothing is known of, histories of every length."""
    retriever = inputs.retriever
    ids = retriever.contents.queries.ids.ids.to_list()
    few = np.linspace(0, len(ids) - 1, min(len(ids), _CHECKED)).astype(np.int64)
    known = retriever.queries.described(arguments.queries_of([ids[place] for place in few]))
    yield known.features, known.histories
    length = retriever.contents.config.towers.events_read
    lengths = np.linspace(1, length, _MADE_UP).astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    of_items = inputs.item_rows[FIRST_ROW:]
    rows = of_items[np.arange(offsets[-1]) % len(of_items)]
    unknown = {name: values[[UNKNOWN_ROW]] for name, values in retriever.query_features.items()}
    many = {name: values.repeat(_MADE_UP, axis=0) for name, values in unknown.items()}
    yield unknown, Histories.empty(1)
    # An event a day from 1970 on, and questions from an hour to some years after the last.
    times = asked = None
    if inputs.reads_question_time:
        times = 86_400.0 * np.arange(len(rows), dtype=np.float64)
        asked = times[offsets[1:] - 1] + 3_600.0 * np.arange(1.0, 1 + _MADE_UP) ** 2
        yield many, Histories(offsets, rows, times)
    yield many, Histories(offsets, rows, times, asked=asked)


def _written(
    file: Path,
    side: str,
    module: nn.Module,
    traced: Arrays,
    cases: Sequence[tuple[Arrays, Float32s]],
) -> float:
    """Write a tower; return by how much its vectors differ from those of torch at most.

    Args:
        file: Where to.
        side: ``query`` or ``item``.
        module: The tower.
        traced: The inputs that it is traced with.
        cases: Inputs with torch's vectors.

    Raises:
        ExportError: It cannot be written or run, or its vectors differ by more than they may.
    """
    module.eval()
    dimensions = [
        {0: "batch", 1: "length"}
        if name in (ITEM_ROWS, TIMES) or name.startswith("event.")
        else {0: "batch"}
        for name in traced
    ]
    axes = tuple(dict.fromkeys(which, torch.export.Dim.AUTO) for which in dimensions)
    writable = (np.require(values, requirements="W") for values in traced.values())
    tensors = tuple(map(torch.from_numpy, writable))
    weights = sum(t.numel() * t.element_size() for t in module.state_dict().values())
    try:
        with _quiet(), torch.no_grad():
            program = torch.export.export(module, tensors, dynamic_shapes=(axes,), strict=False)
            graph = torch.onnx.export(
                program,
                dynamo=True,
                dynamic_shapes=(tuple(dimensions),),  # their names
                input_names=list(traced),
                output_names=[f"{side}_vector"],
                verbose=False,
            )
            assert graph is not None
            for node in graph.model.graph.all_nodes():
                node.metadata_props.clear()  # where in whose files each was traced
            graph.save(file, external_data=weights >= _LARGEST_FILE)
    except OSError:
        raise
    except Exception as error:  # torch raises whatever its many parts raise
        raise ExportError(
            f"the {side} tower cannot be written as ONNX: {_innermost(error)}"
        ) from error
    onnxruntime = library("onnxruntime", wanted_by="twotower export onnx", extra="onnx")
    try:
        session = onnxruntime.InferenceSession(str(file))
        found = [session.run(None, dict(given))[0] for given, _ in cases]
    except Exception as error:  # onnxruntime has no exception of its own for all of them
        raise ExportError(
            f"the {side} tower as ONNX does not run: {_innermost(error)}; nothing was written."
        ) from error
    largest = 0.0
    for (_, vectors), others in zip(cases, found, strict=True):
        scale = max(1.0, float(np.abs(vectors).max(initial=0)))
        distance = float(np.abs(others - vectors).max(initial=0)) / scale
        if not distance <= LARGEST_DIFFERENCE:
            raise ExportError(
                f"the {side} tower as ONNX must give torch's vectors, got numbers that differ by "
                f"{distance:.2g} (at most {LARGEST_DIFFERENCE} may be); nothing was written."
            )
        largest = max(largest, distance)
    return largest


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch from telling of its own affairs meanwhile."""
    with ExitStack() as after, warnings.catch_warnings():
        for name in ("torch", "torch.__trace", "torch.onnx", "onnxscript", "onnx_ir"):
            logger = logging.getLogger(name)
            after.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.ERROR)
        warnings.simplefilter("ignore")
        yield


def _innermost(error: BaseException) -> str:
    """Return the first line of what went wrong at last, below all that only passed it on."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)
