"""The browser that pages are looked at with."""

import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A Chromium; where there is none the tests are skipped, unless TWOTOWER_BROWSER=1 asks for one."""
    executable = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
    if executable is None and os.environ.get("TWOTOWER_BROWSER") != "1":
        pytest.skip("no chromium; install it, or set TWOTOWER_BROWSER=1 to fail without")
    assert executable is not None, "TWOTOWER_BROWSER=1, and no chromium is installed"
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=executable, args=ARGUMENTS)
        yield opened
        opened.close()
