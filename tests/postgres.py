"""PostgreSQL for tests: a cluster of their own with pgvector, reached by a socket, gone afterwards."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_SERVER = "-F -c listen_addresses='' -c unix_socket_directories='{folder}' -c fsync=off"


def binaries() -> Path | None:
    """Return the folder of a PostgreSQL that has pgvector; None where there is none."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda f: int(f.parent.name))
    found = shutil.which("initdb")
    folders += [Path(found).resolve().parent] if found else []
    for folder in reversed(folders):
        asked = shutil.which("pg_config", path=folder)
        if asked and (folder / "initdb").exists():
            share = subprocess.run(
                [asked, "--sharedir"], capture_output=True, text=True, check=True
            )
            if (Path(share.stdout.strip()) / "extension" / "vector.control").is_file():
                return folder
    return None


@contextmanager
def cluster(binaries: Path) -> Iterator[str]:
    """Run a new cluster, and give how to connect to it as its owner.

    It refuses to be run by root, for whom the user ``postgres`` runs it.
    """
    folder = tempfile.mkdtemp(prefix="pg-")  # short: a socket's path has 107 bytes
    try:
        if os.getuid() == 0:
            shutil.chown(folder, "postgres")
            as_owner = ["runuser", "-u", "postgres", "--"]
        else:
            as_owner = []
        data = f"{folder}/data"

        def run(*command: str) -> None:
            subprocess.run(
                [*as_owner, str(binaries / command[0]), *command[1:]],
                cwd=folder,
                check=True,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=3_000,
            )

        run("initdb", "-D", data, "-U", "owner", "--auth=trust", "--no-sync", "--encoding=UTF8")
        options = _SERVER.format(folder=folder)
        run("pg_ctl", "-D", data, "-w", "-l", f"{folder}/log", "-o", options, "start")
        try:
            yield f"host={folder} user=owner dbname=postgres"
        finally:
            run("pg_ctl", "-D", data, "-w", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder)
