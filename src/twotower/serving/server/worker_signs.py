"""What a worker tells its supervisor."""

ALIVE = b"alive"
"""It answers."""
FAILED = b"failed:"
"""It cannot start; the error follows, pickled."""
EXIT_FAILED = 1
"""The exit status of a worker that failed."""
