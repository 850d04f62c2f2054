"""The manifest of a bundle: the digest of every file, and the registered entries that the bundle needs.

Nothing in a bundle can cause an import. Installed packages register their entries before the first byte of
a bundle is read, and a name that no package has registered is refused.
"""

import errno
import hashlib
import json
import os
import platform
import re
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import polars as pl
import torch

from twotower.abandoned import sync, sync_names
from twotower.caller import calling
from twotower.config import Config
from twotower.dataclass_trees import one_of_names
from twotower.errors import BundleError
from twotower.features.feature_kinds import FEATURE_KINDS
from twotower.features.schema import Feature
from twotower.paths import reason_of
from twotower.registry import Registry
from twotower.serving.storage import sha256, write_texts
from twotower.version import __version__

Read = TypeVar("Read")
FORMAT_VERSION = 3
"""The newest version that we read. Version 3 has a second stage, and version 2 has deleted items; a bundle
without either is still written in version 1."""
MANIFEST = "manifest.json"
VIEWS_FILE = "views.json"
"""The file that lists the bundles of several views, in their folder."""
OWN_DIGEST = "sha256"
"""Key of the SHA-256 digest of all other entries of the manifest."""
_FILE_NAME = re.compile(r"(?:[A-Za-z0-9_-][A-Za-z0-9_.-]*/)*[A-Za-z0-9_-][A-Za-z0-9_.-]*")
"""Names of files that a manifest may list. None of them can point outside the bundle on any system."""


def write_manifest(folder: Path, entries: Mapping[str, Any]) -> None:
    """Write the manifest of the files in a folder, and sync all files to the disk.

    Args:
        folder: The bundle.
        entries: The entries beside the files, their digests and the installed libraries.

    Raises:
        OSError: The disk is full, or the like.
    """
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    manifest = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "libraries": {
            "twotower": __version__,
            "torch": torch.__version__,
            "polars": pl.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        **entries,
        "files": {file.relative_to(folder).as_posix(): sha256(file) for file in files},
    }
    manifest[OWN_DIGEST] = _digest_of(manifest)
    write_texts(folder, {MANIFEST: json.dumps(manifest, indent=2)})
    for written in (*files, folder / MANIFEST):
        sync(written)
    for inner in (*(p for p in folder.rglob("*") if p.is_dir()), folder):
        sync_names(inner)


def check_bundle(path: Path) -> dict[str, Any]:
    """Return the manifest of a bundle whose files are all present and unchanged.

    Raises:
        BundleError: There is no bundle, a file is missing or was changed, or its format is newer.
    """
    absent = (
        f"{str(path)!r} must be a bundle, got no {MANIFEST} there; "
        f"make one with {calling('train', out='DIR')}."
    )
    if (path / VIEWS_FILE).is_file():
        absent = f"{str(path)!r} must be a bundle, got a folder of views; name one of those in it."
    try:
        manifest = _manifest_of(_read(path, MANIFEST, Path.read_bytes, absent))
    except (ValueError, RecursionError) as error:
        raise BundleError(
            f"the bundle {str(path)!r} is damaged: {reason_of(error)}; train it again."
        ) from error
    version = manifest["format_version"]
    if version > FORMAT_VERSION:
        raise BundleError(
            f"the bundle {str(path)!r} has format {version}, and twotower {__version__} reads up to "
            f"{FORMAT_VERSION}; upgrade twotower."
        )
    for name, digest in manifest["files"].items():
        absent = f"the bundle {str(path)!r} is incomplete: {name} is missing; train it again."
        found = _read(path, name, sha256, absent)
        if found != digest:
            raise BundleError(
                f"the bundle {str(path)!r} is damaged: {name} was changed after it was written "
                f"(SHA-256 {found[:8]}, not {digest[:8]}); train it again."
            )
    return manifest


def _manifest_of(content: bytes) -> dict[str, Any]:
    """Return the manifest of a bundle. The entries of a newer format are not checked.

    Raises:
        RecursionError: Its entries are nested too deeply.
        ValueError: It is not JSON, was changed, or has an entry that we never write.
    """
    try:
        manifest: dict[str, Any] = json.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{MANIFEST} cannot be read") from error
    version = manifest.get("format_version") if isinstance(manifest, dict) else None
    if type(version) is not int or not isinstance(manifest.get("files"), dict):
        raise ValueError(f"{MANIFEST} is incomplete")
    if version > FORMAT_VERSION:
        return manifest
    if manifest.pop(OWN_DIGEST, None) != _digest_of(manifest):
        raise ValueError(f"{MANIFEST} was changed after it was written")
    custom, view = manifest.get("custom_towers"), manifest.get("view")
    needs = manifest.get("needs", {})
    of_form = {
        "format_version": version >= 1,
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
    return manifest


def _digest_of(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _read(path: Path, name: str, read: Callable[[Path], Read], absent: str) -> Read:
    """Read a file of a bundle.

    Raises:
        BundleError: The file is missing (the message is ``absent``); it cannot be read; it is a link to a
            file outside the bundle; or it is a device or a pipe, which could block forever.
    """
    file = path / name
    refused = f"the bundle {str(path)!r} is refused: {name} must be a file"
    try:
        mode = file.stat().st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(file))
        if not stat.S_ISREG(mode):
            raise BundleError(f"{refused}, got a device or a pipe.")
        if not file.resolve().is_relative_to(path.resolve()):
            raise BundleError(
                f"{refused} in the bundle, got a link to {str(file.resolve())!r}; copy the bundle with "
                "what its links point to."
            )
        return read(file)
    except FileNotFoundError as error:
        raise BundleError(absent) from error
    except OSError as error:
        raise BundleError(
            f"the bundle {str(path)!r} cannot be read: {name}: {reason_of(error)}."
        ) from error
    except ValueError as error:  # a path with a null byte
        raise BundleError(f"the bundle {str(path)!r} is refused: {error}.") from error


def load_installed() -> None:
    """Let all installed packages register their entries."""
    for registry in _registries().values():
        registry.load_group()


def needs_of(config: Config, features: Iterable[Feature]) -> dict[str, list[str]]:
    """Return the names that other packages have registered, by concept.

    Args:
        config: The settings of the bundle.
        features: The features of all its tables.
    """
    needs: dict[str, list[str]] = {}
    kinds = [(FEATURE_KINDS, feature.kind) for feature in features]
    for registry, name in (*one_of_names(config), *kinds):
        if name in registry and name not in registry.own:
            names = needs.setdefault(registry.concept, [])
            if name not in names:
                names.append(name)
    return needs


def missing_of(needs: Mapping[str, Sequence[str]]) -> str:
    """Return the first need that is not registered, such as ``loss 'mine'``, or an empty string."""
    registries = _registries()
    for concept, names in needs.items():
        for name in names:
            if name not in registries.get(concept, ()):
                return f"{concept} {name!r}"
    return ""


def _registries() -> dict[str, Registry[Any]]:
    """Return the registries whose names occur in settings or schemas, by concept."""
    found = [registry for registry, _ in one_of_names(Config())]
    return {registry.concept: registry for registry in (*found, FEATURE_KINDS)}
