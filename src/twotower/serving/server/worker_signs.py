"""Messages from a worker to its supervisor."""

ALIVE = b"alive"
"""The worker answers."""
FAILED = b"failed:"
"""The worker cannot start. The pickled error follows."""
EXIT_FAILED = 1
"""The exit status of a worker that failed."""
