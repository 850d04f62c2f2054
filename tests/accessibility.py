"""What axe, the accessibility engine, says of a page."""

from typing import Any

import pytest


def serious_violations(page: Any) -> list[tuple[str, list[str]]]:
    """Return what axe calls serious or critical in a page: the rule, and the first places."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    return [
        (rule["id"], [node["html"][:200] for node in rule["nodes"][:3]])
        for rule in axe.Axe().run(page).response["violations"]
        if rule["impact"] in ("serious", "critical")
    ]
