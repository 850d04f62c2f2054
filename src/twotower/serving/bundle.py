"""The bundle: one directory with all that a trained model needs, whole or absent.

It is written to a temporary folder beside its place and moved there; after that it is never written again.
Opening it checks the SHA-256 of every file. Nothing in it is executable: safetensors, Arrow, TOML and JSON.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import torch

from twotower.abandoned import put, sweep, writing
from twotower.caller import argument
from twotower.config import Config
from twotower.errors import BundleError
from twotower.features.schema import VIEW, Side
from twotower.features.transforms import SideTransforms
from twotower.histories import Histories
from twotower.index.approximate import Lists
from twotower.paths import check_folder_of, check_new_name, reason_of
from twotower.serving import content_checks, feature_files, manifest, storage
from twotower.serving.content_checks import check_array
from twotower.serving.storage import ListedFiles
from twotower.toml import parse_toml, toml_value
from twotower.vocab import FIRST_ROW, Vocabulary, rows_of_lines

GONE = "items.gone.safetensors"
"""File with the rows of items that were taken out after the training; not there where none was."""
_BUILTIN = (OSError, LookupError, TypeError, ValueError, ArithmeticError, RuntimeError, MemoryError)
NOT_AS_WRITTEN = (*_BUILTIN, pl.exceptions.PolarsError, pl.exceptions.PanicException)
"""What reading a bundle raises that holds something else than we write."""


@dataclass(frozen=True, eq=False)
class SideContents:
    """One side of a bundle.

    Args:
        ids: The vocabulary of the entities.
        id_column: Name of the id column in ``frame``.
        frame: One line an entity, every column; None where it was left out.
        transforms: The fitted features.
    """

    ids: Vocabulary
    id_column: str
    frame: pl.DataFrame
    transforms: SideTransforms


@dataclass(frozen=True, eq=False)
class EventContents:
    """What a bundle knows of events beside their items.

    Args:
        frame: The columns that are read, one line an event of the histories, in their order; without a
            line where histories were left out.
        transforms: The fitted features.
    """

    frame: pl.DataFrame
    transforms: SideTransforms


@dataclass(frozen=True, eq=False)
class Contents:
    """What a bundle holds.

    Args:
        config: Everything needed to train again, with all choices made.
        queries: The query side.
        items: The item side.
        weights: The model's state.
        item_vectors: ``(I, dim)`` float32, real items only; line ``p`` is row ``p + FIRST_ROW``.
        popularity: ``(num_item_rows,)`` float32 training events of each item row.
        histories: What each query row is known to like or, of other kinds of event, to have done, oldest
            first: training and validation events, or all of a bundle that learnt all. None where they were
            left out.
        history_parts: ``(events,)`` uint8 of ``data.dataset.Part`` for each of those events.
        history_weights: ``(events,)`` float32 weights of those events; None where all are 1.
        history_is_target: ``(events,)`` bool, False where an event is of a kind that is not asked for;
            None where all are.
        targets: The test items of each query row; None where histories were left out.
        target_labels: ``(targets,)`` float32, 0 or 1; None where every target is relevant.
        metrics: The figures of the evaluation.
        custom: Which towers (``"query"``, ``"item"``) are modules of the user's own.
        ordered: Whether a query's events have an order.
        repeats: Whether a query may get an item again.
        provenance: What the data is and where it came from.
        log: The training log, one JSON object a line.
        card: The model card, Markdown.
        events: What a history reads of its events beside their items, or None.
        view: The one that may be an answer of several that share the queries, named in the items' column
            ``view``; None where there is but one kind of item.
        lists: How the items are divided for approximate search; None where search is exact.
        gone: ``(num_item_rows,)`` bool, rows of items that were taken out, or that have another row now;
            None where there are none.
    """

    config: Config
    queries: SideContents
    items: SideContents
    weights: Mapping[str, torch.Tensor]
    item_vectors: torch.Tensor
    popularity: npt.NDArray[np.float32]
    histories: Histories | None
    history_parts: npt.NDArray[np.uint8] | None
    history_weights: npt.NDArray[np.float32] | None
    history_is_target: npt.NDArray[np.bool_] | None
    targets: Histories | None
    target_labels: npt.NDArray[np.float32] | None
    metrics: Mapping[str, Any]
    custom: tuple[str, ...]
    ordered: bool
    repeats: bool
    provenance: Mapping[str, Any]
    log: str
    card: str
    events: EventContents | None = None
    view: str | None = None
    lists: Lists | None = None
    gone: npt.NDArray[np.bool_] | None = None

    @cached_property
    def offered(self) -> npt.NDArray[np.bool_] | None:
        """The items that may be an answer, ``(num_item_rows,)``; None where all may."""
        if self.view is None and self.gone is None:
            return None
        offered = np.ones(self.items.ids.num_rows, np.bool_)
        if self.view is not None:
            offered[FIRST_ROW:] = (self.items.frame[VIEW] == self.view).to_numpy()
        if self.gone is not None:
            offered &= ~self.gone
        offered[:FIRST_ROW] = False
        return offered

    @cached_property
    def offered_rows(self) -> npt.NDArray[np.int64]:
        """The rows of the items that may be an answer, rising."""
        if self.offered is None:
            return np.arange(FIRST_ROW, self.items.ids.num_rows)
        return np.flatnonzero(self.offered)

    @property
    def is_private(self) -> bool:
        """Whether it knows no query by its id, as a private training leaves it."""
        return not len(self.queries.ids)

    @property
    def num_items(self) -> int:
        """Number of items that may be an answer."""
        return len(self.offered_rows)


def check_output(path: str | Path, *, views: bool = False) -> Path:
    """Return ``path`` if a bundle may be written there: nothing, an empty folder, or a bundle to replace.

    Temporary folders beside it whose process was killed are removed.

    Args:
        path: The folder.
        views: Whether it is for the bundles of several views, and may hold such in place of a bundle.

    Raises:
        BundleError: Something else is there, or its parent folder does not exist or is not writable.
        ConfigError: See ``check_new_name``.
    """
    check_new_name(path)
    path = Path(path)
    sweep(path.resolve().parent)
    if path.exists() and not path.is_dir():
        raise BundleError(
            f"{argument('out')} must be a folder, got the file {str(path)!r}; choose another."
        )
    # Other programs have a manifest.json, too.
    ours = (manifest.VIEWS_FILE,) if views else (manifest.MANIFEST, "schema.toml", "config.toml")
    is_ours = all((path / name).is_file() for name in ours)
    if path.is_dir() and any(path.iterdir()) and not is_ours:
        what = "a folder of views" if views else "a bundle"
        raise BundleError(
            f"{argument('out')} must be new, empty or {what} to replace, got {str(path)!r}, which holds "
            "other files; choose another folder."
        )
    check_folder_of(path, BundleError)
    return path


@contextmanager
def written(path: str | Path, what: str, *, views: bool = False) -> Iterator[Path]:
    """Give a new folder that is moved to ``path`` at the end, whole, or not at all.

    Args:
        path: The place of a bundle, or of bundles of several views; one that is there is replaced.
        what: What is written, for messages.
        views: See ``check_output``.

    Raises:
        BundleError: The place cannot be used, or writing failed (a full disk, say). Whatever was at
            ``path`` before is still there then.
    """
    place = check_output(
        path, views=views
    ).resolve()  # a link stays, and what it points to is replaced
    try:
        with writing(place) as new:
            new.mkdir()
            yield new
            put(new, place)
    except (OSError, ValueError, pl.exceptions.PolarsError) as error:
        raise BundleError(
            f"the {what} {str(path)!r} could not be written: {reason_of(error)}; "
            "nothing was left behind."
        ) from error


def write_bundle(path: str | Path, contents: Contents) -> None:
    """Write a bundle at ``path``, replacing one that is there; whole, or not at all.

    Raises:
        BundleError: See ``written``.
    """
    with written(path, "bundle") as folder:
        _write_files(folder, contents)
        sides = (contents.queries, contents.items, contents.events)
        features = [f for side in sides if side is not None for f in side.transforms.features]
        entries = {
            "format_version": 1 if contents.gone is None else manifest.FORMAT_VERSION,
            "custom_towers": list(contents.custom),
            "ordered": contents.ordered,
            "repeats": contents.repeats,
            "view": contents.view,
            "provenance": dict(contents.provenance),
            "needs": manifest.needs_of(contents.config, features),
        }
        manifest.write_manifest(folder, entries)


def open_bundle(path: str | Path) -> Contents:
    """Return what the bundle at ``path`` holds; large arrays are mapped, not read.

    Raises:
        BundleError: See ``check_bundle``; or a file does not hold what its format promises, or the bundle
            needs what no installed package has registered.
    """
    path = Path(path)
    manifest.load_installed()
    entries = manifest.check_bundle(path)
    missing = manifest.missing_of(entries.get("needs", {}))
    if missing:
        raise BundleError(
            f"the bundle {str(path)!r} needs the {missing}, which is not registered here; import the "
            "package that registers it, and open the bundle again."
        )
    try:
        return _read_files(ListedFiles(path, frozenset(entries["files"])), entries)
    except NOT_AS_WRITTEN as error:
        raise BundleError(
            f"the bundle {str(path)!r} does not hold what format {entries['format_version']} "
            f"promises: {reason_of(error).rstrip('.')}; train it again."
        ) from error


def _write_files(folder: Path, contents: Contents) -> None:
    for name in ("vocab", "transforms", "queries", "index"):
        (folder / name).mkdir()
    index: dict[str, Any] = {"kind": "exact"}
    if contents.lists is not None:  # and not what faiss makes of them, which is many times as large
        lists, probes = contents.lists, contents.lists.probes
        index = {"kind": "approximate", "probes": {str(k): num for k, num in probes.items()}}
        list_of = torch.from_numpy(lists.list_of)
        tensors = {"centres": lists.centres, "spreads": lists.spreads, "list_of": list_of}
        storage.save_tensors(folder / "index" / "lists.safetensors", tensors)
    texts = {
        "config.toml": contents.config.to_toml(),
        "schema.toml": _schema_toml(contents),
        "metrics.json": json.dumps(contents.metrics, indent=2),
        "training.jsonl": contents.log,
        "MODEL_CARD.md": contents.card,
        "index/index.json": json.dumps(index) + "\n",
    }
    storage.write_texts(folder, texts)
    for side, table in (("query", contents.queries), ("item", contents.items)):
        storage.write_arrow(table.ids.ids.to_frame(), folder / "vocab" / f"{side}.ids.arrow")
        feature_files.write_transforms(folder, side, table.transforms)
    queries = folder / "queries"
    if contents.events is not None:
        feature_files.write_transforms(folder, "event", contents.events.transforms)
        storage.write_arrow(contents.events.frame, queries / "events.arrow")
    storage.write_arrow(contents.items.frame, folder / "items.arrow")
    storage.write_arrow(contents.queries.frame, queries / "queries.arrow")
    storage.save_tensors(folder / "weights.safetensors", contents.weights)
    storage.save_item_vectors(folder / "items.safetensors", contents.item_vectors.float())
    storage.save_arrays(queries / "popularity.safetensors", {"counts": contents.popularity})
    if contents.gone is not None:
        rows = np.flatnonzero(contents.gone).astype(np.int32)
        storage.save_arrays(folder / GONE, {"rows": rows})
    if contents.histories is not None:
        of_events = {
            "parts": contents.history_parts,
            "weights": contents.history_weights,
            "is_target": contents.history_is_target,
        }
        storage.save_ragged(queries / "histories.safetensors", contents.histories, of_events)
    if contents.targets is not None:
        labels = {"labels": contents.target_labels}
        storage.save_ragged(queries / "targets.safetensors", contents.targets, labels)


def _read_files(files: ListedFiles, entries: Mapping[str, Any]) -> Contents:
    schema: Any = parse_toml(files.text("schema.toml"), "schema.toml")
    words = feature_files.read_words(files)
    sides = {}
    tables: dict[Side, str] = {"query": "queries/queries.arrow", "item": "items.arrow"}
    for side, file in tables.items():
        id_column, features = schema[side]["id_column"], schema[side]["features"]
        ids = storage.read_vocabulary(files.path(f"vocab/{side}.ids.arrow"))
        frame = storage.read_arrow(files.path(file))
        content_checks.check_table(side, ids, id_column, frame)
        transforms = feature_files.read_transforms(files, side, features, words)
        sides[side] = SideContents(ids, id_column, frame, transforms)
    queries, items = sides["query"], sides["item"]
    num_item_rows = items.ids.num_rows
    events = None
    if "event" in schema:
        frame = storage.read_arrow(files.path("queries/events.arrow"))
        features = schema["event"]["features"]
        transforms = feature_files.read_transforms(files, "event", features, words)
        events = EventContents(frame, transforms)
    histories = targets = None
    of_events: dict[str, npt.NDArray[Any]] = {}
    labels: dict[str, npt.NDArray[Any]] = {}
    if "queries/histories.safetensors" in files:
        histories, of_events = storage.load_ragged(files.path("queries/histories.safetensors"))
        targets, labels = storage.load_ragged(files.path("queries/targets.safetensors"))
        sizes = (queries.ids.num_rows, num_item_rows)
        content_checks.check_ragged("histories", histories, of_events, *sizes)
        content_checks.check_ragged("targets", targets, labels, *sizes)
        num_events = len(histories.item_rows)
        if events is not None:  # a line an event, in their order
            if len(events.frame) != num_events:
                raise ValueError(f"{num_events} events, {len(events.frame)} lines of their columns")
            histories = replace(histories, event_rows=rows_of_lines(num_events))
    vectors = storage.load_item_vectors(files.path("items.safetensors"))
    check_array("the item vectors", vectors.numpy(), (len(items.ids), None), np.float32)
    popularity = storage.load_arrays(files.path("queries/popularity.safetensors"))["counts"]
    check_array("the popularity", popularity, (num_item_rows,), np.float32, least=0)
    gone = None
    if GONE in files:
        rows = storage.load_arrays(files.path(GONE))["rows"]
        bounds = {"least": FIRST_ROW, "most": num_item_rows - 1}
        check_array("the items that are gone", rows, (len(rows),), np.int32, **bounds)
        gone = np.zeros(num_item_rows, np.bool_)
        gone[rows] = True
    view = entries.get("view")
    if view is not None and VIEW not in items.frame.columns:
        raise ValueError(f"the items of a view must have the column {VIEW!r}")
    weights = storage.load_tensors(files.path("weights.safetensors"))
    for name, tensor in weights.items():  # a module of the user's own may have a mask of them
        is_custom = bool(entries["custom_towers"])
        content_checks.check_finite(f"the weights {name}", tensor, infinite=is_custom)
    metrics = files.json("metrics.json")
    content_checks.check_words(metrics, queries.transforms.features, items.transforms.features)
    return Contents(
        config=Config.from_dict(parse_toml(files.text("config.toml"), "config.toml")),
        queries=queries,
        items=items,
        weights=weights,
        item_vectors=vectors,
        popularity=popularity,
        histories=histories,
        history_parts=of_events.get("parts"),
        history_weights=of_events.get("weights"),
        history_is_target=of_events.get("is_target"),
        targets=targets,
        target_labels=labels.get("labels"),
        metrics=metrics,
        custom=tuple(entries["custom_towers"]),
        ordered=entries["ordered"],
        repeats=entries["repeats"],
        provenance=entries["provenance"],
        log=files.text("training.jsonl"),
        card=files.text("MODEL_CARD.md"),
        events=events,
        view=view,
        gone=gone,
        lists=_read_index(files, vectors),
    )


def _read_index(files: ListedFiles, vectors: torch.Tensor) -> Lists | None:
    described = files.json("index/index.json")
    if described["kind"] == "exact":
        return None
    if described["kind"] != "approximate" or not isinstance(described["probes"], dict):
        raise ValueError(f"index.json must describe an index, got {described}")
    tensors = storage.load_tensors(files.path("index/lists.safetensors"))
    probes = {int(depth): num for depth, num in described["probes"].items()}
    list_of = tensors["list_of"].numpy()
    lists = Lists(tensors["centres"], tensors["spreads"], list_of, probes)
    content_checks.check_lists(lists, *vectors.shape)
    return lists


def _schema_toml(contents: Contents) -> str:
    lines = []
    for side, table in (("query", contents.queries), ("item", contents.items)):
        lines += [f"[{side}]", f"id_column = {toml_value(table.id_column)}", ""]
        lines += feature_files.features_toml(table.transforms)
    if contents.events is not None:
        lines += feature_files.features_toml(contents.events.transforms)
    return "\n".join(lines)
