"""Which bundle all workers answer from: a file that whoever exchanges the model writes."""

import hashlib
import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from twotower.serving.bundle import MANIFEST


def digest_of(path: Path) -> str:
    """Return what names a bundle: its manifest holds the digest of every file."""
    return hashlib.sha256((path / MANIFEST).read_bytes()).hexdigest()[:12]


@dataclass(frozen=True)
class Pointer:
    """Which bundle all workers answer from.

    Args:
        path: Its folder.
        digest: Of its manifest: a folder may be replaced, and then is another bundle.
        sequence: Tells one exchange from another.
    """

    path: str
    digest: str
    sequence: int

    @classmethod
    def read(cls, file: str | None) -> "Pointer | None":
        """Return what stands in a file, if there is one."""
        if file is None or not Path(file).is_file():
            return None
        return cls(**json.loads(Path(file).read_text(encoding="utf-8")))

    def write(self, file: str) -> None:
        """Let the other workers know; whole, or not at all."""
        self._written_beside(file).replace(file)

    def write_first(self, file: str) -> None:
        """Write it unless another worker has been first: all are to answer from the same bundle."""
        temporary = self._written_beside(file)
        with suppress(FileExistsError):
            os.link(temporary, file)
        temporary.unlink()

    def _written_beside(self, file: str) -> Path:
        temporary = Path(f"{file}.{os.getpid()}")
        temporary.write_text(json.dumps(asdict(self)), encoding="utf-8", newline="\n")
        return temporary
