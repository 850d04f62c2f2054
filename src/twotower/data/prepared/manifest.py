"""The manifest of a prepared folder: how its table is read, what it holds, and the digest of every file."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import polars as pl
from polars.exceptions import PolarsError

from twotower.abandoned import sync, sync_names
from twotower.config import DataConfig
from twotower.data.columns import Decision, Role, Roles
from twotower.data.event_reader import EventReader
from twotower.data.input_files import MANIFEST, SCHEMA
from twotower.data.times import TimeForm
from twotower.dataclass_trees import build, plain
from twotower.errors import ConfigError, DataError
from twotower.paths import reason_of
from twotower.version import __version__

FORMAT = 1
"""Version of the format that is written, and the only one that is read."""
_OWN_DIGEST = "sha256"


@dataclass(frozen=True)
class Source:
    """A file that was prepared.

    Args:
        path: Its absolute path, or its address.
        sha256: Digest of its bytes, in hexadecimal.
        rows: Rows in it.
        part: The part that it gives, such as ``train``; None where the split is drawn later.
        keys: What the names of its folders say.
    """

    path: str
    sha256: str
    rows: int
    part: str | None = None
    keys: Mapping[str, str | None] = field(default_factory=dict)

    @property
    def identity(self) -> str:
        """What makes it another file, wherever it lies: its bytes, its part, its keys."""
        return json.dumps([self.sha256, self.part, dict(self.keys)])


@dataclass(frozen=True)
class Partition:
    """What one call prepared.

    Args:
        name: Of its folder.
        task: Digest of the files and settings of the call.
        files: What it read.
        rows: Rows of these files.
        events: Rows that became events.
        left_out: The other rows by the reason why; with ``events`` they add up to ``rows``.
        kinds: Kinds of event, where a column has them.
        sides: Which tables of sides came with it: ``query``, ``item``.
        num_queries: Queries of its events and of its table.
        num_items: The same of items.
    """

    name: str
    task: str
    files: tuple[Source, ...]
    rows: int
    events: int
    left_out: Mapping[str, int]
    kinds: tuple[str, ...] = ()
    sides: tuple[str, ...] = ()
    num_queries: int = 0
    num_items: int = 0


@dataclass(frozen=True)
class Manifest:
    """What a prepared folder holds.

    Args:
        reader: How the columns of the interactions are read.
        schema: Columns of the interactions, with those that names of folders gave.
        key_types: Types of the latter.
        by_time: Whether time gives the order of a query's events.
        ordered: Whether they have an order.
        unused: Columns that nothing reads, with reasons.
        notes: Sentences about the table.
        sample: Rows that decided all this, the first of the table.
        partitions: In the order in which they came.
        files: Path within the folder -> SHA-256 digest.
    """

    reader: EventReader
    schema: pl.Schema
    key_types: Mapping[str, pl.DataType]
    by_time: bool
    ordered: bool
    unused: tuple[Decision, ...]
    notes: tuple[str, ...]
    sample: int
    partitions: tuple[Partition, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_split(self) -> bool:
        """Whether files gave the parts."""
        return any(each.part is not None for part in self.partitions for each in part.files)

    @property
    def key(self) -> str:
        """A name for all that the folder holds now: other partitions, another key."""
        told = json.dumps(sorted(self.files.items()))
        return hashlib.sha256(told.encode()).hexdigest()[:16]


def check_settings(config: DataConfig | None, manifest: Manifest) -> None:
    """Refuse settings of the data other than the folder was prepared with.

    Args:
        config: None and the defaults state nothing.
        manifest: Of the folder.

    Raises:
        ConfigError: One differs; it is named.
    """
    own = manifest.reader.config
    if config in (None, DataConfig(), own):
        return
    for entry in fields(DataConfig):
        wanted, given = getattr(own, entry.name), getattr(config, entry.name)
        if given not in (wanted, getattr(DataConfig(), entry.name)):
            raise ConfigError(
                f"data.{entry.name} must be {wanted!r}, as the folder was prepared with, got {given!r}; "
                "leave it out, or prepare the tables again."
            )


def digests_of(folder: Path, root: Path) -> dict[str, str]:
    """Return the digest of every file in a folder by its path below ``root``, once it is on the disk."""
    found = {}
    for path in sorted(each for each in folder.rglob("*") if each.is_file()):
        sync(path)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        found[path.relative_to(root).as_posix()] = digest
    for each in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
        sync_names(each)
    return found


def write_manifest(manifest: Manifest, folder: Path) -> None:
    """Write the manifest; a reader finds the old one or the new one.

    Raises:
        OSError: It cannot be written.
    """
    reader, roles = manifest.reader, manifest.reader.roles
    found: dict[str, Any] = {
        "format": FORMAT,
        "twotower": __version__,
        "roles": {role.value: getattr(roles, role) for role in Role},
        "label_kind": roles.label_kind,
        "decisions": [_told(decision) for decision in roles.decisions],
        "time_form": None if reader.time_form is None else asdict(reader.time_form),
        "data": plain(reader.config),
        "keys": {name: str(dtype) for name, dtype in manifest.key_types.items()},
        "by_time": manifest.by_time,
        "ordered": manifest.ordered,
        "unused": [_told(decision) for decision in manifest.unused],
        "notes": manifest.notes,
        "sample": manifest.sample,
        "partitions": [asdict(partition) for partition in manifest.partitions],
        "files": manifest.files,
    }
    found[_OWN_DIGEST] = _digest(found)
    new = folder / f"{MANIFEST}.writing"
    new.write_text(json.dumps(found, indent=1, ensure_ascii=False), encoding="utf-8", newline="\n")
    sync(new)
    os.replace(new, folder / MANIFEST)  # noqa: PTH105 - atomic on every system
    sync_names(folder)


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest of a prepared folder.

    Raises:
        DataError: It is damaged, or of another version.
    """
    try:
        found = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if not isinstance(found, dict) or "format" not in found or "partitions" not in found:
            raise DataError(
                f"'{folder}' must be a prepared folder, got another {MANIFEST}; name a folder that "
                "'twotower prepare' wrote."
            )
        if found["format"] != FORMAT:
            raise DataError(
                f"the prepared folder '{folder}' must be of version {FORMAT}, got {found['format']!r}; "
                "prepare the tables again with this version of twotower."
            )
        if found.pop(_OWN_DIGEST, None) != _digest(found):
            raise DataError(
                f"the prepared folder '{folder}' must be whole, got a {MANIFEST} with another digest than "
                "its own; prepare the tables again."
            )
        return _manifest_of(found, pl.read_parquet_schema(folder / SCHEMA))
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        RecursionError,
        PolarsError,
        ConfigError,
    ) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"the prepared folder '{folder}' must be whole, got a damaged {MANIFEST} "
            f"({reason_of(error)}); prepare the tables again."
        ) from error


def check_files(folder: Path, files: Mapping[str, str]) -> None:
    """Refuse a prepared folder in which a file is not as it was written.

    Raises:
        DataError: One is missing, cannot be read, or has other bytes.
    """
    for name, digest in files.items():
        problem = ""
        try:
            with (folder / name).open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                    problem = "other bytes than were written"
        except OSError as error:
            problem = reason_of(error)
        if problem:
            raise DataError(
                f"the prepared folder '{folder}' must be whole, got {problem} in {name!r}; prepare the "
                "tables again."
            )


def _manifest_of(found: dict[str, Any], schema: dict[str, pl.DataType]) -> Manifest:
    config = build(DataConfig, found["data"])
    roles = Roles(
        **found["roles"],
        label_kind=found["label_kind"],
        decisions=tuple(_decision(told) for told in found["decisions"]),
    )
    form = found["time_form"]
    partitions = tuple(
        Partition(
            **{
                **each,
                "files": tuple(Source(**source) for source in each["files"]),
                "kinds": tuple(each["kinds"]),
                "sides": tuple(each["sides"]),
            }
        )
        for each in found["partitions"]
    )
    types: dict[str, pl.DataType] = {"Int64": pl.Int64(), "Date": pl.Date(), "String": pl.String()}
    return Manifest(
        reader=EventReader(roles, None if form is None else TimeForm(**form), config),
        schema=pl.Schema(schema),
        key_types={name: types[told] for name, told in found["keys"].items()},
        by_time=found["by_time"],
        ordered=found["ordered"],
        unused=tuple(_decision(told) for told in found["unused"]),
        notes=tuple(found["notes"]),
        sample=found["sample"],
        partitions=partitions,
        files=found["files"],
    )


def _told(decision: Decision) -> list[str | None]:
    return [decision.role, decision.column, decision.reason]


def _decision(told: list[Any]) -> Decision:
    role, column, reason = told
    return Decision(None if role is None else Role(role), column, reason)


def _digest(found: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()
