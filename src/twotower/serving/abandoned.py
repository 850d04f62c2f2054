"""Temporary folders that carry a lock, so that a later start can remove the ones a kill left behind.

A process id does not prove that an owner is gone: containers share folders, not process ids. A file lock
does: the kernel releases it when its holder ends, however it ends.
"""

import contextlib
import os
import shutil
import stat
import sys
import tempfile
from fnmatch import fnmatchcase
from pathlib import Path

if sys.platform != "win32":
    import fcntl

LOCK = ".twotower-owner"
"""Name of the lock file in such a folder. ``sweep`` never touches a folder without one."""
_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)
_TRIES = 100


class Owned:
    """A folder that belongs to this process until it is removed or released.

    Args:
        path: The folder.
        lock: Descriptor of its lock file, whose lock is held; None where the file system has no locks.
    """

    def __init__(self, path: Path, lock: int | None) -> None:
        self.path = path
        self._lock = lock

    def release(self) -> None:
        """Give up the lock and remove its file; the folder and its other contents stay."""
        if self._lock is not None:
            with contextlib.suppress(FileNotFoundError):
                (self.path / LOCK).unlink()
            os.close(self._lock)
            self._lock = None

    def remove(self) -> None:
        """Remove the folder with its contents; does nothing where it is gone already."""
        shutil.rmtree(self.path, ignore_errors=True)
        self.release()

    def __enter__(self) -> "Owned":
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


def make_owned(parent: Path, prefix: str) -> Owned:
    """Create an empty folder of a new name, readable by this user only, and lock it.

    Args:
        parent: Folder to create it in.
        prefix: Beginning of its name.

    Raises:
        OSError: The folder cannot be created.
    """
    for _ in range(_TRIES):
        path = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        # A sweep that runs between these lines may take the lock first: then start over.
        with contextlib.suppress(FileNotFoundError):
            lock = os.open(path / LOCK, os.O_CREAT | os.O_EXCL | os.O_RDWR | _NO_FOLLOW, 0o600)
            is_taken = _take(lock)
            if is_taken is None:
                os.close(lock)
                (path / LOCK).unlink()
                return Owned(path, None)
            if is_taken and os.path.samestat(os.fstat(lock), (path / LOCK).lstat()):
                return Owned(path, lock)
            os.close(lock)
    raise OSError(f"cannot lock a new folder in {str(parent)!r}: each one was removed at once.")


def sweep(parent: Path, pattern: str) -> list[Path]:
    """Remove the folders of this user whose owners are gone.

    It removes a folder only if the name matches, the folder and its lock file belong to this user, neither
    is a symbolic link, and nobody holds the lock. It leaves what it cannot remove.

    Args:
        parent: Folder to look in, not below.
        pattern: Of the names, such as ``twotower-*``.

    Returns:
        The removed folders.
    """
    removed = []
    with contextlib.suppress(OSError):
        for path in sorted(parent.iterdir()):
            if fnmatchcase(path.name, pattern):
                with contextlib.suppress(OSError):
                    if _remove_abandoned(path):
                        removed.append(path)
    return removed


def _remove_abandoned(path: Path) -> bool:
    """Remove one folder if its owner is gone, and return whether it was so."""
    if sys.platform == "win32":
        return False
    # All is done by descriptors, so that no link can take the folder's place meanwhile.
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        if os.fstat(folder).st_uid != os.getuid():
            return False
        lock = os.open(LOCK, os.O_RDWR | os.O_NOFOLLOW, dir_fd=folder)
        try:
            about = os.fstat(lock)
            if not stat.S_ISREG(about.st_mode) or about.st_uid != os.getuid():
                return False
            if not _take(lock) or not os.path.samestat(about, os.stat(LOCK, dir_fd=folder)):
                return False
            _empty(folder)
            os.unlink(LOCK, dir_fd=folder)
            path.rmdir()
            return True
        finally:
            os.close(lock)
    finally:
        os.close(folder)


def _empty(folder: int) -> None:
    """Remove all but the lock file: it goes last, so that an interrupted removal can be repeated."""
    with os.scandir(folder) as entries:
        names = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    for name, is_folder in names:
        if is_folder:
            shutil.rmtree(name, dir_fd=folder)
        elif name != LOCK:
            os.unlink(name, dir_fd=folder)


def _take(lock: int) -> bool | None:
    """Return whether the lock was free and is held now; None where the file system has no locks."""
    if sys.platform == "win32":
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True
