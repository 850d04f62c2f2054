"""The bundle: one folder with everything that a trained model needs.

A bundle is written to a temporary folder and moved into place, so it is complete or absent, and it never
changes afterwards. Opening it checks the SHA-256 digest of every file. Nothing in it is executable: it
holds safetensors, Arrow, TOML and JSON.
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
from twotower.index.lists import Lists
from twotower.paths import check_folder_of, check_new_name, reason_of
from twotower.second_stage.ranker import Ranker
from twotower.serving import content_checks, feature_files, manifest, ranker_files, storage
from twotower.serving.content_checks import check_array
from twotower.serving.storage import ListedFiles
from twotower.toml import parse_toml, toml_value
from twotower.vocab import FIRST_ROW, Vocabulary, rows_of_lines

GONE = "items.gone.safetensors"
"""File with the rows of items that were deleted after training. It is absent if there are none."""
_BUILTIN = (OSError, LookupError, TypeError, ValueError, ArithmeticError, RuntimeError, MemoryError)
NOT_AS_WRITTEN = (*_BUILTIN, pl.exceptions.PolarsError, pl.exceptions.PanicException)
"""What reading a bundle raises if its files hold something that we never write."""


@dataclass(frozen=True, eq=False)
class SideContents:
    """One side of a bundle.

    Args:
        ids: The vocabulary of the queries or items.
        id_column: Name of the id column in ``frame``.
        frame: All columns, one row per query or item.
        transforms: The fitted features.
    """

    ids: Vocabulary
    id_column: str
    frame: pl.DataFrame
    transforms: SideTransforms


@dataclass(frozen=True, eq=False)
class EventContents:
    """The features of the events in histories.

    Args:
        frame: The columns that the model reads, one row per event, in the order of the histories; no rows
            if the bundle has no histories.
        transforms: The fitted features.
    """

    frame: pl.DataFrame
    transforms: SideTransforms


@dataclass(frozen=True, eq=False, kw_only=True)
class Contents:
    """What a bundle holds.

    Args:
        config: All settings of the training, with every ``auto`` resolved.
        queries: The query side.
        items: The item side.
        weights: The model's state.
        item_vectors: ``(I, dim)`` float32, without the reserved rows: position ``p`` is row
            ``p + FIRST_ROW``.
        popularity: ``(num_item_rows,)`` float32, the number of training events of each item row.
        histories: The events of each query row, oldest first: those of training and validation, or all
            events if the model was refitted on all. None if histories were left out.
        history_parts: ``(events,)`` uint8, the ``data.dataset.Part`` of each event.
        history_weights: ``(events,)`` float32, the weight of each event; None if all are 1.
        history_is_target: ``(events,)`` bool, whether the model predicts events of this kind; None if it
            predicts all kinds.
        targets: The test items of each query row; None if histories were left out.
        target_labels: ``(targets,)`` float32, 0 or 1; None if every target is relevant.
        metrics: The figures of the evaluation.
        custom: The sides (``"query"``, ``"item"``) with a tower of the user's own.
        ordered: Whether a query's events have an order.
        repeats: Whether a query may get an item again.
        provenance: The data and its source.
        log: The training log, one JSON object per line.
        card: The model card, in Markdown.
        events: The features of events, or None.
        view: The view whose items may be recommended, if several views share the queries: a value of the
            items' column ``view``. None if there is one kind of item.
        lists: The lists of items for approximate search; None for exact search.
        gone: ``(num_item_rows,)`` bool, the rows of items that were deleted or that have a newer row; None
            if there are none.
        ranker: The second stage; None if there is none.
    """

    config: Config
    queries: SideContents
    items: SideContents
    weights: Mapping[str, torch.Tensor]
    item_vectors: torch.Tensor
    popularity: npt.NDArray[np.float32]
    histories: Histories | None
    history_parts: npt.NDArray[np.uint8] | None
    history_weights: npt.NDArray[np.float32] | None = None
    history_is_target: npt.NDArray[np.bool_] | None = None
    targets: Histories | None
    target_labels: npt.NDArray[np.float32] | None = None
    metrics: Mapping[str, Any]
    custom: tuple[str, ...] = ()
    ordered: bool
    repeats: bool
    provenance: Mapping[str, Any]
    log: str = ""
    card: str
    events: EventContents | None = None
    view: str | None = None
    lists: Lists | None = None
    gone: npt.NDArray[np.bool_] | None = None
    ranker: Ranker | None = None

    @cached_property
    def offered(self) -> npt.NDArray[np.bool_] | None:
        """The items that may be recommended, ``(num_item_rows,)`` bool; None for all."""
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
        """The rows of the items that may be recommended, in ascending order."""
        if self.offered is None:
            return np.arange(FIRST_ROW, self.items.ids.num_rows)
        return np.flatnonzero(self.offered)

    @property
    def is_private(self) -> bool:
        """Whether the bundle holds no queries, as after a private training."""
        return not len(self.queries.ids)

    @property
    def num_items(self) -> int:
        """Number of items that may be recommended."""
        return len(self.items.ids) if self.offered is None else int(self.offered.sum())


def check_output(path: str | Path, *, views: bool = False) -> Path:
    """Return ``path`` if a bundle may be written there: it is new, an empty folder, or a bundle to replace.

    This also removes temporary folders beside it that a killed process left behind.

    Args:
        path: The folder.
        views: Whether the folder is for the bundles of several views, and may replace such a folder.

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


def check_successor(bundle: object, path: str | Path | None) -> Path | None:
    """Return ``check_output`` of where a bundle that is made of another one is to be written.

    Args:
        bundle: The other one: its folder, or opened.
        path: The folder; None where nothing is to be written.

    Raises:
        BundleError: It is the folder of the other one, or as ``check_output``.
        ConfigError: As ``check_output``.
    """
    target = None if path is None else check_output(path)
    is_path = isinstance(bundle, str | Path)
    if target is not None and is_path and target.resolve() == Path(str(bundle)).resolve():
        raise BundleError(
            f"{argument('out')} must be another folder than the bundle, got {str(path)!r}; a server can "
            "swap to it."
        )
    return target


@contextmanager
def written(path: str | Path, what: str, *, views: bool = False) -> Iterator[Path]:
    """Provide a new folder, and move it to ``path`` when the block ends without an error.

    Args:
        path: The folder of a bundle, or of the bundles of several views, to write or replace.
        what: What is written, for messages.
        views: See ``check_output``.

    Raises:
        BundleError: The path cannot be used, or writing failed, for example because the disk is full. What
            was at ``path`` before is still there then.
    """
    # A link stays, and what it points to is replaced.
    place = check_output(path, views=views).resolve()
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
    """Write a bundle to ``path``, or replace the bundle there.

    Raises:
        BundleError: See ``written``.
    """
    with written(path, "bundle") as folder:
        _write_files(folder, contents)
        sides = (contents.queries, contents.items, contents.events)
        features = [f for side in sides if side is not None for f in side.transforms.features]
        entries = {
            "format_version": _version_of(contents),
            "custom_towers": list(contents.custom),
            "ordered": contents.ordered,
            "repeats": contents.repeats,
            "view": contents.view,
            "provenance": dict(contents.provenance),
            "needs": manifest.needs_of(contents.config, features),
        }
        manifest.write_manifest(folder, entries)


def _version_of(contents: Contents) -> int:
    """Return the first version of the format that has all parts of a bundle."""
    if contents.ranker is not None:
        return manifest.FORMAT_VERSION
    return 1 if contents.gone is None else 2


def open_bundle(path: str | Path) -> Contents:
    """Return the contents of the bundle at ``path``. Large arrays are memory-mapped.

    Raises:
        BundleError: See ``manifest.check_bundle``; or a file does not hold what its format promises, or the
            bundle needs an entry that no installed package has registered.
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
    if contents.lists is not None:  # faiss makes its own index of the lists, which is much larger
        lists, probes = contents.lists, contents.lists.probes
        index = {"kind": "approximate", "probes": {str(k): num for k, num in probes.items()}}
        if lists.levels is not None:
            index["rescored"] = {str(k): num for k, num in lists.rescored.items()}
        list_of = torch.from_numpy(lists.list_of)
        tensors = {"centres": lists.centres, "spreads": lists.spreads, "list_of": list_of}
        if lists.levels is not None:
            tensors["levels"] = lists.levels
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
    if contents.ranker is not None:
        ranker_files.write_ranker(folder, contents.ranker)
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
        ranker=ranker_files.read_ranker(files, num_item_rows, queries.transforms, items.transforms),
    )


def _read_index(files: ListedFiles, vectors: torch.Tensor) -> Lists | None:
    described = files.json("index/index.json")
    if described["kind"] == "exact":
        return None
    if described["kind"] != "approximate" or not isinstance(described["probes"], dict):
        raise ValueError(f"index.json must describe an index, got {described}")
    tensors = storage.load_tensors(files.path("index/lists.safetensors"))
    probes = {int(depth): num for depth, num in described["probes"].items()}
    rescored = {int(depth): num for depth, num in described.get("rescored", {}).items()}
    list_of, levels = tensors["list_of"].numpy(), tensors.get("levels")
    lists = Lists(tensors["centres"], tensors["spreads"], list_of, probes, levels, rescored)
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
