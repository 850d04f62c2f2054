"""Pages: rendered from templates, and written atomically."""

from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from twotower.abandoned import put, writing
from twotower.errors import ConfigError
from twotower.paths import LONGEST_NAME, check_new_file, reason_of

LONGEST_PAGE = LONGEST_NAME + 20
"""Bytes of a page's name: that of a bundle, and an ending."""
_HERE = Path(__file__).parent


def render(template: str, **facts: Any) -> str:
    """Return a page: the template with its facts, which are escaped unless they are ``Markup``."""
    style = Markup((_HERE / "style.css").read_text(encoding="utf-8"))
    return _environment().get_template(template).render(style=style, **facts)


@cache
def _environment() -> Environment:
    """Return the environment of the templates, which compiles each of them once."""
    return Environment(
        loader=FileSystemLoader(_HERE, encoding="utf-8"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def check_page(path: Path) -> None:
    """Refuse a path that no page can be written at, before the work is done.

    Raises:
        ConfigError: See ``check_new_file``.
    """
    check_new_file(path, LONGEST_PAGE)


def write_page(path: Path, page: str) -> None:
    """Write a page at ``path``, replacing a file that is there.

    Raises:
        ConfigError: It is a folder, its folder does not exist, or it cannot be written (a full disk,
            say). Whatever was there before is still there then.
    """
    check_page(path)
    try:
        with writing(path) as new:
            new.write_text(page, encoding="utf-8", newline="\n")
            put(new, path)
    except OSError as error:
        raise ConfigError(
            f"the page {str(path)!r} could not be written: {reason_of(error)}."
        ) from error
