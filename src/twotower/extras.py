"""Optional libraries: imported when they are needed, and the line that installs those that are missing.

This module does without torch, so that a command that lacks a library can say so at once.
"""

import json
import warnings
from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

from twotower.errors import MissingExtraError

_NAME = "twotower"


def library(name: str, *, wanted_by: str, extra: str) -> ModuleType:
    """Return a module of an optional library.

    Args:
        name: The module's.
        wanted_by: What needs it.
        extra: What installs it.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        with warnings.catch_warnings():
            # Of tqdm, in a notebook without ipywidgets: its bars are not wanted in any case.
            warnings.filterwarnings("ignore", message="IProgress not found")
            return import_module(name)
    except ImportError as error:
        raise MissingExtraError(
            f"{wanted_by} needs the library {name.split('.')[0]!r}; install it with {install(extra)}."
        ) from error


def install(extra: str) -> str:
    """Return the command that installs an extra: from where this package itself was installed.

    Args:
        extra: Such as ``serve``.
    """
    try:
        found = distribution(_NAME).read_text("direct_url.json")
    except PackageNotFoundError:  # a copy of the source on the path
        root = Path(__file__).resolve().parents[2]
        found = json.dumps({"url": root.as_uri(), "dir_info": {"editable": True}})
    return command_for(extra, json.loads(found) if found else None, Path.cwd())


def command_for(extra: str, origin: Mapping[str, Any] | None, here: Path) -> str:
    """Return the command that installs an extra of a package from a place.

    It names no folder of this machine: reasons of this kind stand in reports, which people publish.

    Args:
        extra: Such as ``serve``.
        origin: What pip noted (PEP 610); None where the package came from an index, under its name.
        here: The current folder.
    """
    if origin is None:
        return f"pip install '{_NAME}[{extra}]'"
    url = str(origin.get("url", ""))
    path = Path(url2pathname(unquote(urlsplit(url).path)))
    if "dir_info" in origin:
        editable = "-e " if origin["dir_info"].get("editable") else ""
        where = "" if path == here.resolve() else " in the folder of its source"
        return f"pip install {editable}'.[{extra}]'{where}"
    if urlsplit(url).scheme == "file":
        return f"pip install './{path.name}[{extra}]' in the folder of that file"
    vcs = origin.get("vcs_info", {}).get("vcs")
    return f"pip install '{_NAME}[{extra}] @ {f'{vcs}+' if vcs else ''}{url}'"
