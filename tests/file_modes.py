"""The umask for a while, and the modes of what was written meanwhile."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def umask(mask: int) -> Iterator[None]:
    """Forbid new files some modes."""
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def wrong_modes(place: Path, mask: int) -> dict[str, str]:
    """Return files and folders at a place, itself included, whose mode is not what the umask leaves."""
    found = {}
    for path in (place, *place.rglob("*")):
        mode = path.stat().st_mode & 0o777
        if mode != (0o777 if path.is_dir() else 0o666) & ~mask:
            found[path.relative_to(place).as_posix()] = oct(mode)
    return found
