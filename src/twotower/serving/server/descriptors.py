"""The number of connections that a process can hold, by the system's limit of descriptors."""

from pathlib import Path

MOST_CONNECTIONS = 1024
"""Most connections of a process at once, even if it may open more descriptors."""
_FEWEST = 8
_ENOUGH = 4 * MOST_CONNECTIONS

try:
    import resource
except ImportError:  # Windows sets no such limit
    resource = None  # type: ignore[assignment]


def raise_limit() -> None:
    """Raise the limit for this process and its children as far as it is useful and allowed."""
    if resource is not None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = _ENOUGH if hard == resource.RLIM_INFINITY else min(_ENOUGH, hard)
        if soft != resource.RLIM_INFINITY and soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def most_connections() -> int:
    """Return how many connections this process may hold: half of its free descriptors."""
    return max(_FEWEST, min(MOST_CONNECTIONS, _spare() // 2))


def most_accepted() -> int:
    """Return how many connections may be accepted before the first of them is counted.

    So many more may be accepted, several times, while those are closed that make room.
    """
    return max(_FEWEST, min(MOST_CONNECTIONS, _spare() // 8))


def _spare() -> int:
    if resource is None:
        return _ENOUGH
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return _ENOUGH
    return int(soft) - sum(1 for _ in Path("/dev/fd").iterdir())
