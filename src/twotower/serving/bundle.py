"""The bundle: one directory with all that a trained model needs, whole or absent.

It is written to a temporary folder beside its place and moved there; after that it is never written again.
Opening it checks the SHA-256 of every file. Nothing in it is executable: safetensors, Arrow, TOML and JSON.
"""

import errno
import hashlib
import json
import os
import platform
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import torch

from twotower.abandoned import put, sweep, sync, sync_names, writing
from twotower.caller import argument, calling
from twotower.config import Config
from twotower.errors import BundleError
from twotower.features.schema import VIEW, Feature, Side
from twotower.features.transforms import SideTransforms
from twotower.histories import Histories
from twotower.index.approximate import Lists
from twotower.paths import check_new_name
from twotower.serving.bundle_checks import (
    check_array,
    check_finite,
    check_lists,
    check_ragged,
    check_table,
    check_words,
)
from twotower.serving.feature_files import (
    features_toml,
    read_transforms,
    read_words,
    write_transforms,
)
from twotower.serving.needs import load_installed, missing_of, needs_of
from twotower.serving.storage import (
    ListedFiles,
    load_arrays,
    load_item_vectors,
    load_ragged,
    load_tensors,
    read_arrow,
    read_vocabulary,
    save_arrays,
    save_item_vectors,
    save_ragged,
    save_tensors,
    sha256,
    write_arrow,
)
from twotower.toml import parse_toml, toml_value
from twotower.version import __version__
from twotower.vocab import FIRST_ROW, Vocabulary, rows_of_lines

FORMAT_VERSION = 2
"""The newest that is read. A bundle without items that were taken out is still of version 1."""
MANIFEST = "manifest.json"
VIEWS_FILE = "views.json"
"""What ties the bundles of several views, in the folder that holds them."""
GONE = "items.gone.safetensors"
"""File with the rows of items that were taken out after the training; not there where none was."""
NOT_AS_WRITTEN = (
    OSError,
    LookupError,
    TypeError,
    ValueError,
    ArithmeticError,
    RuntimeError,  # a nesting that is too deep is one, too
    MemoryError,
    pl.exceptions.PolarsError,
    pl.exceptions.PanicException,
)
"""What reading a bundle raises that holds something else than we write."""
OWN_DIGEST = "sha256"
"""Key in the manifest of the SHA-256 of all its other entries."""
_FILE_NAME = re.compile(r"(?:[A-Za-z0-9_-][A-Za-z0-9_.-]*/)*[A-Za-z0-9_-][A-Za-z0-9_.-]*")
"""Names of files that a manifest may list: none leads out of the bundle on any system."""


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

    @property
    def is_private(self) -> bool:
        """Whether it knows no query by its id, as a private training leaves it."""
        return not len(self.queries.ids)

    @property
    def num_items(self) -> int:
        """Number of items that may be an answer."""
        return len(self.items.ids) if self.offered is None else int(self.offered.sum())


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
    parent = path.absolute().parent
    sweep(path.resolve().parent)
    if path.exists() and not path.is_dir():
        raise BundleError(
            f"{argument('out')} must be a folder, got the file {str(path)!r}; choose another."
        )
    is_ours = (path / VIEWS_FILE).is_file() if views else _looks_like_a_bundle(path)
    if path.is_dir() and any(path.iterdir()) and not is_ours:
        what = "a folder of views" if views else "a bundle"
        raise BundleError(
            f"{argument('out')} must be new, empty or {what} to replace, got {str(path)!r}, which holds "
            "other files; choose another folder."
        )
    if not parent.is_dir():
        raise BundleError(
            f"{argument('out')} must be in a folder that exists, got {str(path)!r}; make it first."
        )
    if not os.access(parent, os.W_OK):
        raise BundleError(
            f"{argument('out')} must be in a writable folder, got {str(path)!r}; choose another."
        )
    return path


def write_bundle(path: str | Path, contents: Contents) -> None:
    """Write a bundle at ``path``, replacing one that is there; whole, or not at all.

    Raises:
        BundleError: The place cannot be used, or writing failed (a full disk, say). Whatever was at
            ``path`` before is still there then.
    """
    path = check_output(path)
    place = path.resolve()  # a link stays, and what it points to is replaced
    try:
        with writing(place) as new:
            new.mkdir()
            _write_files(new, contents)
            _write_manifest(new, contents)
            put(new, place)
    except OSError as error:
        reason = "the disk is full" if error.errno == errno.ENOSPC else _reason(error)
        raise BundleError(
            f"the bundle {str(path)!r} could not be written: {reason}; nothing was left behind."
        ) from error
    except (ValueError, pl.exceptions.PolarsError) as error:
        raise BundleError(
            f"the bundle {str(path)!r} could not be written: {_first_line(error)}; "
            "nothing was left behind."
        ) from error


def open_bundle(path: str | Path) -> Contents:
    """Return what the bundle at ``path`` holds; large arrays are mapped, not read.

    Raises:
        BundleError: There is no bundle, a file is missing or was changed, or its format is newer.
    """
    path = Path(path)
    load_installed()
    manifest = check_bundle(path)
    missing = missing_of(manifest.get("needs", {}))
    if missing:
        raise BundleError(
            f"the bundle {str(path)!r} needs the {missing}, which is not registered here; import the "
            "package that registers it, and open the bundle again."
        )
    try:
        return _read_files(ListedFiles(path, frozenset(manifest["files"])), manifest)
    except NOT_AS_WRITTEN as error:
        raise BundleError(
            f"the bundle {str(path)!r} does not hold what format {manifest['format_version']} "
            f"promises: {_first_line(error).rstrip('.')}; train it again."
        ) from error


def check_bundle(path: Path) -> dict[str, Any]:
    """Return the manifest of a bundle whose files are all present and unchanged.

    Raises:
        BundleError: See ``open_bundle``.
    """
    try:
        _check_regular(path, MANIFEST)
        text = (path / MANIFEST).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        if (path / VIEWS_FILE).is_file():
            raise BundleError(
                f"{str(path)!r} must be a bundle, got a folder of views; name one of those in it."
            ) from error
        raise BundleError(
            f"{str(path)!r} must be a bundle, got no {MANIFEST} there; "
            f"make one with {calling('train', out='DIR')}."
        ) from error
    except UnicodeDecodeError as error:
        raise _unreadable(path) from error
    except OSError as error:
        raise _refused_by_the_system(path, MANIFEST, error) from error
    except ValueError as error:
        raise BundleError(f"the bundle {str(path)!r} is refused: {error}.") from error
    try:
        manifest = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _unreadable(path) from error
    version = manifest.get("format_version") if isinstance(manifest, dict) else None
    if type(version) is not int or not isinstance(manifest.get("files"), dict):
        raise BundleError(f"the bundle {str(path)!r} is damaged: {MANIFEST} is incomplete.")
    if version > FORMAT_VERSION:
        raise BundleError(
            f"the bundle {str(path)!r} has format {version}, and twotower {__version__} reads up to "
            f"{FORMAT_VERSION}; upgrade twotower."
        )
    try:
        if manifest.pop(OWN_DIGEST, None) != _digest_of(manifest):
            raise ValueError(f"{MANIFEST} was changed after it was written")
        _check_manifest(manifest)
    except (ValueError, RecursionError) as error:
        raise BundleError(
            f"the bundle {str(path)!r} is damaged: {_first_line(error)}; train it again."
        ) from error
    for name, digest in manifest["files"].items():
        try:
            _check_regular(path, name)
            found = sha256(path / name)
        except FileNotFoundError as error:
            raise BundleError(
                f"the bundle {str(path)!r} is incomplete: {name} is missing; train it again."
            ) from error
        except OSError as error:
            raise _refused_by_the_system(path, name, error) from error
        except ValueError as error:
            raise BundleError(f"the bundle {str(path)!r} is refused: {error}.") from error
        if found != digest:
            raise BundleError(
                f"the bundle {str(path)!r} is damaged: {name} was changed after it was written "
                f"(SHA-256 {found[:8]}, not {digest[:8]}); train it again."
            )
    assert isinstance(manifest, dict)
    return manifest


def _refused_by_the_system(path: Path, name: str, error: OSError) -> BundleError:
    return BundleError(f"the bundle {str(path)!r} cannot be read: {name}: {_reason(error)}.")


def _unreadable(path: Path) -> BundleError:
    return BundleError(
        f"the bundle {str(path)!r} is damaged: {MANIFEST} cannot be read; train it again."
    )


def _check_manifest(manifest: Mapping[str, Any]) -> None:
    """Refuse entries that we never write.

    Raises:
        ValueError: There is one.
    """
    custom, view = manifest.get("custom_towers"), manifest.get("view")
    needs = manifest.get("needs", {})
    of_form = {
        "format_version": manifest["format_version"] >= 1,
        "custom_towers": isinstance(custom, list) and all(s in ("query", "item") for s in custom),
        "ordered": isinstance(manifest.get("ordered"), bool),
        "repeats": isinstance(manifest.get("repeats"), bool),
        "view": view is None or isinstance(view, str),
        "provenance": isinstance(manifest.get("provenance"), dict),
        "needs": isinstance(needs, dict)
        and all(isinstance(names, list) for names in needs.values())
        and all(isinstance(name, str) for names in needs.values() for name in names),
    }
    for key, is_sound in of_form.items():
        if not is_sound:
            raise ValueError(f"{key} in {MANIFEST} is {manifest.get(key)!r}")
    for name, digest in manifest["files"].items():
        if not _FILE_NAME.fullmatch(name) or not isinstance(digest, str):
            raise ValueError(f"{MANIFEST} lists {name!r}, which is no file of a bundle")


def _check_regular(folder: Path, name: str) -> None:
    """Refuse a file whose content is not the bundle's own, or that reading could wait for without end.

    Raises:
        OSError: It is not there, or is a folder.
        ValueError: It is a link out of the bundle, a device or a pipe.
    """
    file = folder / name
    mode = file.stat().st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(file))
    if not stat.S_ISREG(mode):
        raise ValueError(f"{name} must be a file, got a device or a pipe")
    if not file.resolve().is_relative_to(folder.resolve()):
        raise ValueError(
            f"{name} must be a file in the bundle, got a link to {str(file.resolve())!r}; copy the bundle "
            "with what its links point to"
        )


def _write_files(folder: Path, contents: Contents) -> None:
    (folder / "config.toml").write_text(contents.config.to_toml(), encoding="utf-8", newline="\n")
    (folder / "schema.toml").write_text(_schema_toml(contents), encoding="utf-8", newline="\n")
    for name in ("vocab", "transforms", "queries", "index"):
        (folder / name).mkdir()
    for side, table in (("query", contents.queries), ("item", contents.items)):
        write_arrow(table.ids.ids.to_frame(), folder / "vocab" / f"{side}.ids.arrow")
        write_transforms(folder, side, table.transforms)
    if contents.events is not None:
        write_transforms(folder, "event", contents.events.transforms)
        write_arrow(contents.events.frame, folder / "queries" / "events.arrow")
    write_arrow(contents.items.frame, folder / "items.arrow")
    write_arrow(contents.queries.frame, folder / "queries" / "queries.arrow")
    save_tensors(folder / "weights.safetensors", contents.weights)
    save_item_vectors(folder / "items.safetensors", contents.item_vectors.float())
    save_arrays(folder / "queries" / "popularity.safetensors", {"counts": contents.popularity})
    if contents.gone is not None:
        save_arrays(folder / GONE, {"rows": np.flatnonzero(contents.gone).astype(np.int32)})
    if contents.histories is not None:
        of_events = {
            "parts": contents.history_parts,
            "weights": contents.history_weights,
            "is_target": contents.history_is_target,
        }
        save_ragged(folder / "queries" / "histories.safetensors", contents.histories, of_events)
    if contents.targets is not None:
        labels = {"labels": contents.target_labels}
        save_ragged(folder / "queries" / "targets.safetensors", contents.targets, labels)
    (folder / "metrics.json").write_text(
        json.dumps(contents.metrics, indent=2), encoding="utf-8", newline="\n"
    )
    (folder / "training.jsonl").write_text(contents.log, encoding="utf-8", newline="\n")
    (folder / "MODEL_CARD.md").write_text(contents.card, encoding="utf-8", newline="\n")
    _write_index(folder / "index", contents.lists)


def _write_index(folder: Path, lists: Lists | None) -> None:
    """Write the lists, and not what faiss makes of them, which is quick and many times as large."""
    described: dict[str, Any] = {"kind": "exact"}
    if lists is not None:
        described = {"kind": "approximate", "probes": {str(k): n for k, n in lists.probes.items()}}
        of_lists = torch.from_numpy(lists.list_of)
        tensors = {"centres": lists.centres, "spreads": lists.spreads, "list_of": of_lists}
        save_tensors(folder / "lists.safetensors", tensors)
    (folder / "index.json").write_text(json.dumps(described) + "\n", encoding="utf-8", newline="\n")


def _read_index(files: ListedFiles, vectors: torch.Tensor) -> Lists | None:
    described = files.json("index/index.json")
    if described["kind"] == "exact":
        return None
    if described["kind"] != "approximate" or not isinstance(described["probes"], dict):
        raise ValueError(f"index.json must describe an index, got {described}")
    tensors = load_tensors(files.path("index/lists.safetensors"))
    lists = Lists(
        centres=tensors["centres"],
        spreads=tensors["spreads"],
        list_of=tensors["list_of"].numpy(),
        probes={int(depth): probes for depth, probes in described["probes"].items()},
    )
    check_lists(lists, *vectors.shape)
    return lists


def _features(contents: Contents) -> Iterator[Feature]:
    for side in (contents.queries, contents.items, contents.events):
        if side is not None:
            yield from side.transforms.features


def _write_manifest(folder: Path, contents: Contents) -> None:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    manifest = {
        "format_version": 1 if contents.gone is None else FORMAT_VERSION,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "libraries": {
            "twotower": __version__,
            "torch": torch.__version__,
            "polars": pl.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "custom_towers": list(contents.custom),
        "ordered": contents.ordered,
        "repeats": contents.repeats,
        "view": contents.view,
        "provenance": dict(contents.provenance),
        "needs": needs_of(contents.config, _features(contents)),
        "files": {file.relative_to(folder).as_posix(): sha256(file) for file in files},
    }
    manifest[OWN_DIGEST] = _digest_of(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2), encoding="utf-8", newline="\n")
    for written in (*files, folder / MANIFEST):
        sync(written)
    for inner in (*(p for p in folder.rglob("*") if p.is_dir()), folder):
        sync_names(inner)


def _read_files(files: ListedFiles, manifest: Mapping[str, Any]) -> Contents:
    schema = parse_toml(files.text("schema.toml"), "schema.toml")
    words = read_words(files)
    sides = {}
    tables: dict[Side, str] = {"query": "queries/queries.arrow", "item": "items.arrow"}
    for side, file in tables.items():
        table: Any = schema[side]
        sides[side] = SideContents(
            ids=read_vocabulary(files.path(f"vocab/{side}.ids.arrow")),
            id_column=table["id_column"],
            frame=read_arrow(files.path(file)),
            transforms=read_transforms(files, side, table["features"], words),
        )
        check_table(side, sides[side].ids, sides[side].id_column, sides[side].frame)
    items, num_queries = sides["item"], sides["query"].ids.num_rows
    num_item_rows = items.ids.num_rows
    events = None
    if "event" in schema:
        of_event: Any = schema["event"]
        events = EventContents(
            frame=read_arrow(files.path("queries/events.arrow")),
            transforms=read_transforms(files, "event", of_event["features"], words),
        )
    histories = targets = None
    of_events: dict[str, npt.NDArray[Any]] = {}
    labels: dict[str, npt.NDArray[Any]] = {}
    if "queries/histories.safetensors" in files:
        histories, of_events = load_ragged(files.path("queries/histories.safetensors"))
        targets, labels = load_ragged(files.path("queries/targets.safetensors"))
        sizes = {"num_queries": num_queries, "num_item_rows": num_item_rows}
        check_ragged("histories", histories, of_events, **sizes)
        check_ragged("targets", targets, labels, **sizes)
        if events is not None:  # a line an event, in their order
            if len(events.frame) != len(histories.item_rows):
                raise ValueError(
                    f"{len(histories.item_rows)} events, {len(events.frame)} lines of their columns"
                )
            histories = replace(histories, event_rows=rows_of_lines(len(histories.item_rows)))
    vectors = load_item_vectors(files.path("items.safetensors"))
    check_array("the item vectors", vectors.numpy(), (len(items.ids), None), np.float32)
    popularity = load_arrays(files.path("queries/popularity.safetensors"))["counts"]
    check_array("the popularity", popularity, (num_item_rows,), np.float32, least=0)
    gone = None
    if GONE in files:
        rows = load_arrays(files.path(GONE))["rows"]
        bounds = {"least": FIRST_ROW, "most": num_item_rows - 1}
        check_array("the items that are gone", rows, (len(rows),), np.int32, **bounds)
        gone = np.zeros(num_item_rows, np.bool_)
        gone[rows] = True
    view = manifest.get("view")
    if view is not None and VIEW not in items.frame.columns:
        raise ValueError(f"the items of a view must have the column {VIEW!r}")
    weights = load_tensors(files.path("weights.safetensors"))
    for name, tensor in weights.items():  # a module of the user's own may have a mask of them
        check_finite(f"the weights {name}", tensor, infinite=bool(manifest["custom_towers"]))
    metrics = files.json("metrics.json")
    check_words(metrics, *(sides[side].transforms.features for side in ("query", "item")))
    return Contents(
        config=Config.from_dict(parse_toml(files.text("config.toml"), "config.toml")),
        queries=sides["query"],
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
        custom=tuple(manifest["custom_towers"]),
        ordered=manifest["ordered"],
        repeats=manifest["repeats"],
        provenance=manifest["provenance"],
        log=files.text("training.jsonl"),
        card=files.text("MODEL_CARD.md"),
        events=events,
        view=view,
        gone=gone,
        lists=_read_index(files, vectors),
    )


def _schema_toml(contents: Contents) -> str:
    lines = []
    for side, table in (("query", contents.queries), ("item", contents.items)):
        lines += [f"[{side}]", f"id_column = {toml_value(table.id_column)}", ""]
        lines += features_toml(table.transforms)
    if contents.events is not None:
        lines += features_toml(contents.events.transforms)
    return "\n".join(lines)


def _looks_like_a_bundle(path: Path) -> bool:
    """Return whether a folder may be replaced: other programs have a manifest.json, too."""
    return all((path / name).is_file() for name in (MANIFEST, "schema.toml", "config.toml"))


def _digest_of(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _reason(error: OSError) -> str:
    return _first_line(error) if error.errno is None else os.strerror(error.errno).lower()


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
