"""The server keeps what its OpenAPI page says: schemathesis asks all that the page allows and forbids."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from servers import running

TESTS = Path(__file__).parents[2]
EXAMPLES = os.environ.get("TWOTOWER_EXAMPLES", "2")
"""Random requests of each route; ``make contract`` asks for many."""


@pytest.mark.hypothesis
def test_all_checks_of_schemathesis_pass(tiny_bundle: Path, tmp_path: Path) -> None:
    settings = {"token": "t", "journal": str(tmp_path / "journal")}
    # What it works out of Unicode's characters takes three seconds, and is the same each time.
    kept = {"HYPOTHESIS_STORAGE_DIRECTORY": str(TESTS.parent / ".hypothesis")}
    with running(tiny_bundle, **settings) as address:
        ended = subprocess.run(
            [
                Path(sys.executable).with_name("schemathesis"),
                "--config-file",
                TESTS / "schemathesis.toml",
                "run",
                f"{address}/openapi.json",
                *("--max-examples", EXAMPLES, "--seed", "1", "--continue-on-failure"),
                *("--checks", "all", "--output-truncate", "true", "--no-color"),
                *("--generation-database", "none"),
            ],
            env={**os.environ, "TOKEN": "t", "PYTHONPATH": str(TESTS), **kept},
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
    shown = "\n".join(line[:300] for line in (ended.stdout + ended.stderr).splitlines())
    assert ended.returncode == 0, shown
    for phase in ("Examples", "Coverage", "Fuzzing", "Stateful"):
        assert f"\u2705  {phase} (in" in shown, shown
