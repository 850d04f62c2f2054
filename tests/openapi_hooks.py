"""What schemathesis must be told to ask our server: filters to try, and which limits it leaves alone.

It reads this by ``tests/schemathesis.toml``. Limits of thousands, which it would fill one within the
other by the gigabyte, are left to ``test_server.py``.
"""

from typing import Any

import schemathesis
from hypothesis import strategies as st

LARGE = 1_000
LIMITS = ("maxItems", "maxLength", "maxProperties")


@schemathesis.hook
def before_load_schema(_context: Any, raw_schema: dict[str, Any]) -> None:
    """Read what the schema says of this server's items, and take the large limits of bodies out."""
    parts = raw_schema["components"]["schemas"]
    schemathesis.openapi.format("filter", filters(parts["Line"]["required"][0]))
    without_large_limits(parts)
    without_least_length_of_filters(parts)
    without_times_of_questions(parts)


def without_times_of_questions(parts: dict[str, Any]) -> None:
    """Take ``at`` out of bodies: a schema cannot say when a history ends, before which none may be.

    ``test_asked_at.py`` looks at it.
    """
    for part in parts.values():
        part.get("properties", {}).pop("at", None)


def filters(column: str) -> st.SearchStrategy[str]:
    """Return filters over the column of the items' ids."""
    name = f"`{column}`"
    simple = st.one_of(
        st.sampled_from([f"{name} is not null", f"{name} is null"]),
        st.tuples(st.sampled_from(["=", "!=", "<", ">="]), st.integers(-5, 500)).map(
            lambda told: f"{name} {told[0]} {told[1]}"
        ),
    )
    return st.recursive(
        simple,
        lambda inner: st.one_of(
            inner.map(lambda part: f"not ({part})"),
            st.tuples(inner, inner).map(lambda parts: f"({parts[0]}) and ({parts[1]})"),
            st.tuples(inner, inner).map(lambda parts: f"({parts[0]}) or ({parts[1]})"),
        ),
        max_leaves=4,
    )


def without_large_limits(part: Any) -> None:
    """Take limits of thousands out of a schema."""
    if isinstance(part, dict):
        for name in LIMITS:
            if isinstance(part.get(name), int) and part[name] >= LARGE:
                del part[name]
        part = list(part.values())
    if isinstance(part, list):
        for inner in part:
            without_large_limits(inner)


def without_least_length_of_filters(part: Any) -> None:
    """Take out of bodies that a filter has a character, which ``test_server.py`` looks at.

    No filter is as short, and at each place that takes one schemathesis would seek one by a thousand draws.
    """
    if isinstance(part, dict):
        if part.get("format") == "filter":
            part.pop("minLength", None)
        part = list(part.values())
    if isinstance(part, list):
        for inner in part:
            without_least_length_of_filters(inner)
