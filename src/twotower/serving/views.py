"""The folder of several views: a bundle of each, and one file that ties them."""

import json
import os
from collections.abc import Mapping
from pathlib import Path, PureWindowsPath

from twotower.abandoned import put, sweep, writing
from twotower.errors import ArgumentError, BundleError
from twotower.paths import check_new_name
from twotower.serving.bundle import MANIFEST, VIEWS_FILE, Contents, write_bundle
from twotower.serving.files import sha256
from twotower.serving.retriever import Retriever


def check_views_output(path: str | Path) -> Path:
    """Return ``path`` if views may be written there: nothing, an empty folder, or views to replace.

    Temporary folders beside it whose process was killed are removed.

    Raises:
        BundleError: Something else is there, or its parent folder does not exist or is not writable.
        ConfigError: See ``check_new_name``.
    """
    check_new_name(path)
    path = Path(path)
    parent = path.absolute().parent
    sweep(path.resolve().parent)
    is_there = path.exists() and (not path.is_dir() or any(path.iterdir()))
    if is_there and not (path / VIEWS_FILE).is_file():
        raise BundleError(
            f"--out must be new, empty or a folder of views to replace, got {str(path)!r}; "
            "choose another folder."
        )
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise BundleError(
            f"--out must be in a folder that exists and is writable, got {str(path)!r}."
        )
    return path


def write_views(path: str | Path, views: Mapping[str, Contents]) -> None:
    """Write a bundle of each view and the file that ties them; all, or nothing.

    Raises:
        BundleError: The place cannot be used, or writing failed.
    """
    place = check_views_output(path).resolve()
    try:
        with writing(place) as new:
            new.mkdir()
            for name, contents in views.items():
                write_bundle(new / name, contents)
            tied = {name: {MANIFEST: sha256(new / name / MANIFEST)} for name in views}
            (new / VIEWS_FILE).write_text(json.dumps(tied, indent=2), encoding="utf-8")
            put(new, place)
    except OSError as error:
        raise BundleError(
            f"the views {str(path)!r} could not be written: {error.strerror or error}; "
            "nothing was left behind."
        ) from error


def open_views(path: str | Path, *, device: str = "auto") -> dict[str, Retriever]:
    """Return a retriever for each view that was trained together, by its name.

    Args:
        path: What ``train_views`` wrote.
        device: See ``Retriever.open``.

    Raises:
        BundleError: There are no views, a bundle is damaged, or one is of another training.
    """
    path = Path(path)
    try:
        tied = json.loads((path / VIEWS_FILE).read_text(encoding="utf-8"))
        digests = {str(name): str(entry[MANIFEST]) for name, entry in tied.items()}
        if not digests or any(PureWindowsPath(name).name != name for name in digests):
            raise ArgumentError("no view, or one elsewhere")
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise BundleError(
            f"{str(path)!r} must be a folder of views, got no readable {VIEWS_FILE} there; "
            "make one with twotower.train_views."
        ) from error
    for name, digest in digests.items():
        file = path / name / MANIFEST
        if not file.is_file() or sha256(file) != digest:
            raise BundleError(
                f"the view {name!r} in {str(path)!r} must be of one training with the others, got "
                "another bundle or none; train them again."
            )
    return {name: Retriever.open(path / name, device=device) for name in digests}
