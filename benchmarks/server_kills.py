"""A server that is killed with SIGKILL, time and again, while it is written to and while it compacts.

    python benchmarks/server_kills.py [--kills 100] [--compactions 50]

100 kills of a server with one worker and 100 with two, each at a random moment, with all its processes at
once, while four clients put items in, change them and take them out. Then 50 kills during compaction: half
of them at the start of a server with 20,000 records to compact, half while a server renews itself under
writes (which begins at 300 replaced items here, not at 131,072). After each kill, the journal and the
next server must hold exactly what was acknowledged; of the one write per client that was under way, either
state is right. Nothing may be damaged, and the next start may leave no file beside the journal. Exits with
1 otherwise. A start takes seconds: the whole run is about half an hour.
"""

import fcntl
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from common import report
from live import FIRST_NEW, TOKEN, Asker
from processes import free_port
from sandbox import make_bundle
from twotower.serving.server.journal import Journal, JournalReader

KEY, TITLE = "item_id", "title"
WRITERS, ITEMS_EACH = 4, 50
RECORDS = 20_000
SERVE = (
    "import sys; from twotower.serving.server import service\n"
    "service.MOST_DEAD, service.SECONDS_BETWEEN_RENEWALS = int(sys.argv.pop()), 1.0\n"
    "from twotower.cli import main; main()"
)
State = dict[int, str | None]
"""The title of each new item; None where it was taken out."""


class Killed:
    """A server that is killed and started again, and what it acknowledged.

    Args:
        bundle: Folder of the bundle.
        workers: Processes.
        folder: For the journal and the log.
        most_dead: Replaced items from which on a worker compacts; of one worker only.
    """

    def __init__(self, bundle: Path, workers: int, folder: Path, most_dead: int = 2**17) -> None:
        self._bundle, self._workers, self._most_dead = bundle, workers, most_dead
        self._place, self._log = folder / "journal", folder / "log"
        self.journal, self._temporary = self._place / "j", folder / "tmp"
        for each in (self._place, self._temporary):
            each.mkdir(parents=True)
        self.acknowledged: State = {}
        self.unsure: State = {}
        self.rng = random.Random(workers + most_dead)
        self.count = {"kills": 0, "acknowledged": 0, "lost": 0, "damaged": 0, "left over": 0}
        self.folders_left = 0

    @contextmanager
    def started(self) -> Iterator[tuple[int, "subprocess.Popen[bytes]"]]:
        """Start a server with a process group of its own, and kill the group at the end."""
        port = free_port()
        command = [sys.executable, "-c", SERVE, "serve", str(self._bundle), "--port", str(port)]
        command += ["--journal", str(self.journal), "--workers", str(self._workers)]
        environment = {**os.environ, "TWOTOWER_TOKEN": TOKEN, "TMPDIR": str(self._temporary)}
        with self._log.open("wb") as log:
            process = subprocess.Popen(
                [*command, str(self._most_dead)],
                env=environment,
                stderr=log,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )
        try:
            yield port, process
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(60)
            while self._is_locked():  # until the workers are gone, too
                time.sleep(0.01)

    def _is_locked(self) -> bool:
        try:
            descriptor = os.open(self.journal, os.O_RDONLY)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    def wait_until_ready(self, port: int, process: "subprocess.Popen[bytes]") -> None:
        """Return when all workers answer."""
        until = time.monotonic() + 300
        while self._log.read_bytes().count(b'"message": "ready"') < self._workers:
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"the server did not start: {self._log.read_text()[-2000:]}")
            time.sleep(0.02)
        while True:  # a worker is ready a moment before it listens
            try:
                Asker(port).ask("GET", "/health")
                break
            except ConnectionRefusedError:
                time.sleep(0.02)
        for _ in range(3 * self._workers):  # whichever worker answers
            self.compare(_items(port))
        self.settle(_items(port))
        found = {each.name for each in self._place.iterdir()} - {self.journal.name}
        self.count["left over"] += len(found)
        self.folders_left = len(list(self._temporary.glob("twotower-*"))) - (self._workers > 1)
        self.check_log()

    def compare(self, found: State) -> None:
        """Count each item that is not as it was acknowledged."""
        for item, title in (self.acknowledged | found).items():
            allowed = {self.acknowledged.get(item)}
            if item in self.unsure:
                allowed.add(self.unsure[item])
            if found.get(item) not in allowed:
                self.count["lost"] += 1
                print(f"item {item}: {found.get(item)!r}, not {allowed}, {title}", file=sys.stderr)

    def settle(self, found: State) -> None:
        """Take what was found of the writes that were under way as the state from now on."""
        self.acknowledged |= {item: found.get(item) for item in self.unsure}
        self.unsure = {}

    def check_log(self) -> None:
        """Count what the server called damaged, and each other error."""
        for line in self._log.read_text().splitlines():
            if line.startswith("{") and json.loads(line)["level"] == "error":
                self.count["damaged"] += 1
                print(line[:500], file=sys.stderr)

    def check_file(self) -> None:
        """Hold the journal itself against what was acknowledged."""
        reader = JournalReader(self.journal)
        self.compare(_state_of(reader.more()))
        reader.close()
        self.check_log()

    def write(self, port: int, number: int) -> None:
        """Change random items of one client's own, until there is no answer."""
        asker, rng = Asker(port), random.Random(f"{self.count} {number}")
        first = FIRST_NEW + number * ITEMS_EACH
        while True:
            item = first + rng.randrange(ITEMS_EACH)
            title = f"{rng.getrandbits(64):x}" * rng.randint(1, 20) if rng.random() < 0.8 else None
            self.unsure[item] = title
            try:
                if title is None:
                    asker.ask("DELETE", f"/items?item_id={item}")
                else:
                    asker.ask("PUT", "/items", {"items": [{KEY: item, TITLE: title, "price": 1.5}]})
            except (OSError, ValueError):
                return
            self.acknowledged[item] = title
            del self.unsure[item]
            self.count["acknowledged"] += 1

    def kill_while_written_to(self) -> None:
        """Start, check, write, and kill at a random moment."""
        with self.started() as (port, process):
            self.wait_until_ready(port, process)
            writers = self.writers(port)
            time.sleep(self.rng.uniform(0.02, 1.0))
            self.kill(process, writers)
        self.check_file()

    def kill_while_renewed(self) -> None:
        """Start, write until a worker compacts, and kill it around that moment."""
        with self.started() as (port, process):
            self.wait_until_ready(port, process)
            writers = self.writers(port)
            until = time.monotonic() + 600
            while not list(self._place.glob(".j.writing-*/new")):
                if time.monotonic() > until:
                    raise RuntimeError("the server did not compact")
                time.sleep(0.0002)
            time.sleep(self.rng.choice((0, self.rng.uniform(0, 0.02))))
            self.kill(process, writers)
        self.check_file()

    def kill_while_starting(self) -> None:
        """Write a long journal, start, and kill the server around its compaction."""
        journal = Journal(self.journal)
        records = [_put(FIRST_NEW + n % 2000, f"{n} {self.count['kills']}") for n in range(RECORDS)]
        journal.append(records)
        journal.close()
        self.acknowledged |= _state_of(records)
        self.count["acknowledged"] += len(records)
        inode = self.journal.stat().st_ino
        with self.started() as (_, process):
            while not self._is_locked():
                if process.poll() is not None:
                    raise RuntimeError(self._log.read_text()[-2000:])
                if self.journal.stat().st_ino != inode:
                    break
                time.sleep(0.0005)
            time.sleep(self.rng.uniform(0, 0.4))
            self.kill(process, [])
        self.check_file()

    def writers(self, port: int) -> list[threading.Thread]:
        """Start the clients."""
        threads = [
            threading.Thread(target=self.write, args=(port, number)) for number in range(WRITERS)
        ]
        for thread in threads:
            thread.start()
        return threads

    def kill(self, process: "subprocess.Popen[bytes]", writers: list[threading.Thread]) -> None:
        """Kill all processes of the server."""
        os.killpg(process.pid, signal.SIGKILL)
        self.count["kills"] += 1
        for thread in writers:
            thread.join(60)

    def end(self) -> None:
        """Start once more, and check."""
        with self.started() as (port, process):
            self.wait_until_ready(port, process)
            self.kill(process, [])
            self.count["kills"] -= 1


def _put(item: int, title: str) -> dict[str, Any]:
    return {"column": KEY, "put": [{KEY: item, TITLE: title, "price": 1.5}]}


def _state_of(records: list[dict[str, Any]]) -> State:
    state: State = {}
    for record in records:
        state |= {int(line[KEY]): line[TITLE] for line in record.get("put", ())}
        state |= dict.fromkeys(map(int, record.get("delete", ())))
    return state


def _items(port: int) -> State:
    """Return the new items that a server has; each call may ask another worker."""
    asker, found = Asker(port), dict[int, str | None]()
    while True:
        told: dict[str, Any] = {"query_id": 1, "k": 1000, "columns": True}
        told["filter"] = f"`{KEY}` >= {max(found, default=FIRST_NEW - 1) + 1}"
        told["filter"] += f" and `{KEY}` < {max(found, default=FIRST_NEW - 1) + 1001}"
        items = asker.ask("POST", "/recommend", told)["items"]
        if not items:
            return found
        found |= {each["item_id"]: each["columns"][TITLE] for each in items}


def main() -> int:
    """Kill, print, and return whether something was lost."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="with one worker, and with two")
    parser.add_argument("--compactions", type=int, default=50, help="kills during compaction")
    given = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        bundle = make_bundle(folder)
        campaigns = [
            ("written to, 1 worker", given.kills, 1, Killed.kill_while_written_to, 2**17),
            ("written to, 2 workers", given.kills, 2, Killed.kill_while_written_to, 2**17),
            (
                "compacting at its start",
                given.compactions // 2,
                1,
                Killed.kill_while_starting,
                2**17,
            ),
            ("compacting as it runs", given.compactions // 2, 1, Killed.kill_while_renewed, 300),
        ]
        for name, times, workers, kill, most_dead in campaigns:
            started = time.monotonic()
            server = Killed(bundle, workers, folder / name.replace(" ", "-"), most_dead)
            for _ in range(times):
                kill(server)
            server.end()
            took = {"temporary folders left": server.folders_left, "s": time.monotonic() - started}
            rows.append({"killed while": name, **server.count, **took})
            print(rows[-1], file=sys.stderr)
    report("Kills, and what they cost", rows, as_json=False)
    return int(any(row[what] for row in rows for what in ("lost", "damaged", "left over")))


if __name__ == "__main__":
    sys.exit(main())
