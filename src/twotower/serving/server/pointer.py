"""The pointer: a file that names the bundle that all workers answer from."""

import hashlib
import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from twotower.serving.manifest import MANIFEST


def digest_of(path: Path) -> str:
    """Return the digest of a bundle's manifest, which holds the digest of every file."""
    return hashlib.sha256((path / MANIFEST).read_bytes()).hexdigest()[:12]


@dataclass(frozen=True)
class Pointer:
    """The bundle that all workers answer from.

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
        """Return the pointer in a file; None if there is no file."""
        if file is None or not Path(file).is_file():
            return None
        return cls(**json.loads(Path(file).read_text(encoding="utf-8")))

    def write(self, file: str) -> None:
        """Write the pointer for the other workers, in one step."""
        self._written_beside(file).replace(file)

    def write_first(self, file: str) -> None:
        """Write the pointer, unless another worker was first."""
        temporary = self._written_beside(file)
        with suppress(FileExistsError):
            os.link(temporary, file)
        temporary.unlink()

    def _written_beside(self, file: str) -> Path:
        temporary = Path(f"{file}.{os.getpid()}")
        temporary.write_text(json.dumps(asdict(self)), encoding="utf-8", newline="\n")
        return temporary
