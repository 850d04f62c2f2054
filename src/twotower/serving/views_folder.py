"""The folder of several views: one bundle per view, and a file that lists them."""

import json
from collections.abc import Mapping
from pathlib import Path, PureWindowsPath

from twotower.errors import ArgumentError, BundleError
from twotower.serving.bundle import Contents, write_bundle, written
from twotower.serving.manifest import MANIFEST, VIEWS_FILE
from twotower.serving.retriever import Retriever
from twotower.serving.storage import sha256, write_texts


def write_views(path: str | Path, views: Mapping[str, Contents]) -> None:
    """Write one bundle per view and the file that lists them; all, or nothing.

    Raises:
        BundleError: The path cannot be used, or writing failed.
    """
    with written(path, "views", views=True) as folder:
        for name, contents in views.items():
            write_bundle(folder / name, contents)
        tied = {name: {MANIFEST: sha256(folder / name / MANIFEST)} for name in views}
        write_texts(folder, {VIEWS_FILE: json.dumps(tied, indent=2)})


def open_views(path: str | Path, *, device: str = "auto") -> dict[str, Retriever]:
    """Open views that were trained together, and return a retriever for each by its name.

    Args:
        path: The folder that ``train_views`` wrote.
        device: See ``Retriever.open``.

    Raises:
        BundleError: There are no views, a bundle is damaged, or one comes from another training.
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
