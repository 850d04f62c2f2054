"""A lock file, which one process at a time holds.

The system frees the lock when its process ends, however it ends.
"""

import os
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]


def locked(file: Path) -> int | None:
    """Return the descriptor of a lock file that this call holds until the descriptor is closed.

    Where the system or the file system has no locks, nobody can hold the file, and every call gets it.

    Args:
        file: The lock file; it is made where it is missing.

    Returns:
        None if another process holds the lock, or removed the file just now.

    Raises:
        OSError: The file cannot be made or opened.
    """
    lock = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
    if fcntl is None:
        return lock
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    except OSError:  # a file system without locks
        return lock
    try:
        is_there = os.path.samestat(os.fstat(lock), file.stat())
    except FileNotFoundError:
        is_there = False
    if is_there:
        return lock
    os.close(lock)
    return None
