"""Whether ``torchrun`` started this process as one of several, without an import of torch."""

import os

from twotower.errors import ConfigError


def is_started_by_torchrun() -> bool:
    """Return whether the environment names this process one of several."""
    return int(os.environ.get("WORLD_SIZE") or 1) > 1 and "RANK" in os.environ


def check_one_process(command: str) -> None:
    """Refuse a command that does not share its work.

    Raises:
        ConfigError: ``torchrun`` started several processes.
    """
    if is_started_by_torchrun():
        raise ConfigError(
            f"{command} must run in one process, got several that torchrun started; only train shares its "
            "work: start it without torchrun."
        )
