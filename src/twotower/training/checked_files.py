"""Files of tensors that end with the SHA-256 digest of their bytes.

``torch.load`` alone reads a file of which a bit was changed, and says nothing.
"""

import hashlib
import os
import pickle
from pathlib import Path
from typing import IO, Any, cast

import torch

_DIGEST_BYTES = 32
_BLOCK_BYTES = 1 << 20


def save_checked(value: Any, file: Path) -> None:
    """Write tensors and plain values, with their digest.

    Raises:
        OSError: The file cannot be written.
        RuntimeError: The same, where torch raises an error of its own instead.
    """
    with file.open("wb") as opened:  # torch keeps an OSError as the cause only of open files
        hashed = _Hashed(opened)
        torch.save(value, cast("IO[bytes]", hashed))
        opened.write(hashed.digest.digest())
        opened.flush()
        os.fsync(opened.fileno())  # before it replaces another: a power failure may come in between


def load_checked(file: Path, *, mapped: bool = False) -> Any:
    """Return what ``save_checked`` wrote; None where the file is missing or damaged. No code in it is run.

    Args:
        file: To read.
        mapped: Whether tensors stay on disk until they are read.
    """
    try:
        with file.open("rb") as opened:
            if not _is_whole(opened):
                return None
        return torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    except (RuntimeError, OSError, EOFError, pickle.UnpicklingError):
        return None


class _Hashed:
    """An open file whose bytes are hashed as they are written."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.digest = file, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def _is_whole(file: IO[bytes]) -> bool:
    """Return whether a file has the bytes that were written, by the digest at its end."""
    left = os.fstat(file.fileno()).st_size - _DIGEST_BYTES
    digest = hashlib.sha256()
    while left > 0:
        block = file.read(min(left, _BLOCK_BYTES))
        if not block:
            return False
        digest.update(block)
        left -= len(block)
    return file.read() == digest.digest()
