"""The folder in which a call keeps what it has done, so that it goes on after a kill."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from polars.exceptions import PolarsError

from twotower.abandoned import remove
from twotower.caller import argument
from twotower.errors import ConfigError, DataError
from twotower.locks import locked
from twotower.paths import reason_of

_LOCK = "lock"


@dataclass(frozen=True)
class WorkFolder:
    """The folder ``OUT.preparing``, which this process holds.

    Args:
        path: Where it is.
    """

    path: Path

    def begin(self, task: str) -> None:
        """Keep what an equal call that was killed had done, and remove anything else."""
        file = self.path / "task"
        if not file.is_file() or file.read_text(encoding="utf-8") != task:
            for entry in self.path.iterdir():
                if entry.name != _LOCK:
                    shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
            file.write_text(task, encoding="utf-8", newline="\n")
        shutil.rmtree(self.path / "pieces" / "writing", ignore_errors=True)


@contextmanager
def working(out: Path, *, append: bool) -> Iterator[WorkFolder]:
    """Give the folder ``OUT.preparing``, which is removed unless the process is killed.

    Raises:
        ConfigError: Another process works there, or somebody else's folder has that name.
        DataError: Something cannot be written.
    """
    work = out.with_name(f"{out.name}.preparing")
    lock = None
    try:
        is_new = not work.exists() or _is_empty(work)  # killed before the lock was there
        if work.is_symlink() or (not is_new and not (work / _LOCK).is_file()):
            raise ConfigError(
                f"{argument('out')} must leave the name {work.name!r} free, got '{work}', which is not "
                "ours; rename it, or name another folder."
            )
        work.mkdir(exist_ok=True)
        lock = locked(work / _LOCK)
        if lock is None:
            raise ConfigError(
                f"{argument('out')} must be written by one process, got '{out}', which another is "
                "preparing; wait for it."
            )
        yield WorkFolder(work)
    except ConfigError:
        if lock is not None and is_new:
            remove(work)
        raise
    except (OSError, PolarsError) as error:
        remove(work)
        left = "it is as it was" if append else "nothing was left behind"
        raise DataError(
            f"the prepared folder '{out}' could not be written: {reason_of(error)}; free some space or "
            f"choose another {argument('out')}; {left}."
        ) from error
    except DataError:
        remove(work)
        raise
    else:
        remove(work)
    finally:
        if lock is not None:
            os.close(lock)


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and not any(folder.iterdir())
