"""Temporary folders, and the removal of those whose process was killed.

A folder carries a lock file, which its process holds locked for as long as it works there. The system frees
the lock when that process ends, however it ends. So whoever gets the lock knows that nobody works there any
more, on this machine, in another container or, where the file system locks, on another host.
"""

import ctypes
import errno
import os
import re
import shutil
import stat
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has no such locks: nothing is swept there
    fcntl = None  # type: ignore[assignment]

LOCK = ".twotower-lock"
"""The lock file in a temporary folder."""
_PREFIX = "twotower-tmp-"
_NEW, _OLD = "new", "old"
_NAME = re.compile(rf"(?:{_PREFIX}|\.(?P<place>.+)\.writing-)[a-z0-9_]{{8}}", re.DOTALL)
_OF_EARLIER_VERSIONS = re.compile(r"\..+\.writing-\d{1,7}(?:-old)?", re.DOTALL)
_EXCHANGE = 2  # RENAME_EXCHANGE of <linux/fs.h>
_CANNOT_EXCHANGE = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM}


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Give an empty folder of the system's temporary directory that only this user can read.

    It is removed at the end. A folder whose process was killed is removed by the next call.

    Raises:
        OSError: It cannot be made.
    """
    with _held(Path(tempfile.gettempdir()), _PREFIX) as folder:
        (folder / _NEW).mkdir()
        yield folder / _NEW


@contextmanager
def writing(place: Path) -> Iterator[Path]:
    """Give a path at which to make the file or folder that ``put`` then moves to ``place``.

    It lies in a folder beside ``place`` that only this user can read, and that is removed at the end. A
    folder whose process was killed is removed by the next call for any place beside it.

    Args:
        place: Where the file or folder belongs. Its parent folder must exist.

    Raises:
        OSError: The folder cannot be made.
    """
    place = place.absolute()
    with _held(place.parent, f".{place.name}.writing-") as folder:
        yield folder / _NEW


def put(new: Path, place: Path) -> None:
    """Move what was made at the path that ``writing`` gave to its place, and replace what is there.

    Where the system can swap two folders, a reader finds the old folder or the new one at any moment.
    Elsewhere there is a moment without a folder; if the process is killed in it, ``sweep`` puts the old
    folder back.

    Raises:
        OSError: It cannot be moved. What was at ``place`` is still there.
    """
    if not (new.is_dir() and place.is_dir()):
        new.replace(place)
    elif not _swapped(new, place):
        old = new.with_name(_OLD)
        place.rename(old)
        try:
            new.rename(place)
        except BaseException:  # Ctrl-C, too
            old.rename(place)
            raise
    sync_names(place.parent)


def remove(place: Path) -> None:
    """Remove a folder, as far as the system allows it.

    A process that is killed meanwhile leaves it whole, or leaves a folder that ``sweep`` removes.
    """
    with suppress(OSError), writing(place) as aside:
        place.rename(aside)
    shutil.rmtree(place, ignore_errors=True)  # on a full disk there is no room for another folder


def sync(path: Path) -> None:
    """Wait until a file is on the disk.

    Raises:
        OSError: The disk is full, say.
    """
    number = os.open(path, os.O_RDWR if sys.platform == "win32" else os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def sync_names(folder: Path) -> None:
    """Wait until the names in a folder are on the disk, where the system can do that."""
    with suppress(OSError):
        sync(folder)


def sweep(parent: Path) -> None:
    """Remove the temporary folders in ``parent`` whose process is gone.

    Only folders are removed that belong to this user and bear a name that this module gives. A folder whose
    lock somebody holds stays. Earlier versions used no locks, so that nothing proves their folders
    abandoned: they stay, too, and a warning names them.

    Args:
        parent: The folder to look in; nothing happens where it cannot be read.
    """
    if fcntl is None:
        return
    try:
        names = sorted(os.listdir(parent))  # noqa: PTH208 - names alone, as the system has them
    except OSError:
        return
    for name in names:
        if (found := _NAME.fullmatch(name)) is not None:
            with suppress(OSError):  # another sweep was quicker, or the mount is read-only
                _sweep_one(parent / name, found["place"])
        elif _OF_EARLIER_VERSIONS.fullmatch(name):
            warnings.warn(
                f"{str(parent / name)!r} was left by an interrupted run of an earlier version and may hold "
                "histories; remove it unless that version is writing there now.",
                stacklevel=3,
            )


def _sweep_one(folder: Path, place: str | None) -> None:
    about = folder.lstat()
    if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.geteuid():
        return
    try:
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        # Its process was killed before the lock was there, or has made it just now: an empty folder is
        # removed, and the process then makes another.
        if not about.st_mode & 0o077:
            folder.rmdir()
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not stat.S_ISREG(os.fstat(lock).st_mode) or not _is_at(lock, folder / LOCK):
            return
        if place is not None and not os.path.lexists(folder.parent / place):
            with suppress(FileNotFoundError):
                (folder / _OLD).rename(folder.parent / place)
        _remove(folder)
    finally:
        os.close(lock)


@contextmanager
def _held(parent: Path, prefix: str) -> Iterator[Path]:
    """Give a new folder with a lock, and remove it at the end."""
    sweep(parent)
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        try:
            lock = _locked(folder / LOCK)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        if lock is not None:
            break
    try:
        yield folder
    finally:
        _remove(folder, lock)


def _locked(file: Path) -> int | None:
    """Return the lock file's descriptor; None where a sweep took the folder before it was locked."""
    try:
        lock = os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    except FileNotFoundError:
        return None
    if fcntl is None:
        return lock
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    except OSError:  # a file system without locks: nobody can lock it, so that no sweep removes it
        return lock
    if _is_at(lock, file):
        return lock
    os.close(lock)
    return None


def _is_at(number: int, file: Path) -> bool:
    """Return whether an open file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(number), file.lstat())
    except FileNotFoundError:
        return False


def _remove(folder: Path, lock: int | None = None) -> None:
    """Remove a folder, its lock last: what is left of it after a kill can still be swept."""
    with suppress(OSError):
        for entry in list(folder.iterdir()):
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)
            elif entry.name != LOCK:
                with suppress(OSError):
                    entry.unlink()
    if lock is not None:
        os.close(lock)
    with suppress(OSError):
        if [entry.name for entry in folder.iterdir()] == [LOCK]:
            (folder / LOCK).unlink()
        folder.rmdir()


def _swapped(one: Path, other: Path) -> bool:
    """Swap two folders in one step; return False where the system or the file system cannot.

    Raises:
        OSError: They cannot be moved at all.
    """
    if sys.platform != "linux":
        return False
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:  # of the C library
        return False
    from_here = -100  # AT_FDCWD of <fcntl.h>
    if call(from_here, os.fsencode(one), from_here, os.fsencode(other), _EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in _CANNOT_EXCHANGE:
        return False
    raise OSError(number, os.strerror(number), str(other))
