"""Memory of a server over a million requests, and what two workers share.

    python benchmarks/server_memory.py [--requests 1000000] [--connections 64] [--items 200000]
    python benchmarks/server_memory.py --requests 0 [--items 200000] [--bundle FOLDER]

First two workers answer some queries, an item is put in, and they answer again. ``/proc`` tells what of
each is its own (private), and its share of what several hold (Pss), the sum of which is what both take.
With ``--requests 0`` that is all.

Then ``wrk`` asks one worker of ``twotower serve`` all the time: for known queries, for unknown ones, for
histories and with filters that were never seen, and in ways that are refused. What the worker holds is
read from ``/proc`` after each tenth of the requests; the first one is the warm-up.
"""

import json
import re
import signal
import subprocess
import tempfile
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import numpy as np

from common import OUT, report
from processes import free_port
from server import TELL, TWOTOWER, bundle_of, served, told_by, wrk
from twotower.serving.retriever import Retriever

LEAST_OF_A_WORKER = 100
"""Megabytes; other processes of a server, such as those that count what is left behind, hold less."""
SCRIPT = """
math.randomseed(1)
wrk.method = "POST"
wrk.headers["content-type"] = "application/json"
local asked = 0
local function item() return math.random(1, {items}) end
request = function()
  -- Each kind comes in a row, so that what waits together is mostly of one kind.
  local what, body = (asked % 1000) / 1000, nil
  asked = asked + 1
  if what < 0.85 then
    body = '{{"query_id": ' .. math.random(1, {queries}) .. ', "k": 10}}'
  elseif what < 0.90 then
    body = '{{"query_id": "new-' .. math.random(1, 1e9) .. '", "k": 10}}'
  elseif what < 0.98 then
    body = '{{"history": [' .. item() .. ',' .. item() .. ',' .. item() .. '], "k": 10}}'
  elseif what < 0.99 then
    body = '{{"query_id": 1, "filter": "`{column}` < ' .. item() .. '"}}'
  else
    body = '{{"query_id": 1, "k": 0, "nonsense-' .. math.random(1, 1e9) .. '": 1}}'
  end
  return wrk.format(nil, "/recommend", nil, body)
end
"""


def counted(port: int) -> dict[str, int]:
    """Return how many requests a server has answered by status."""
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as page:
        text = page.read().decode()
    found = re.findall(r'_requests_total\{route="/recommend",status="(\d+)"\} (\S+)', text)
    return {status: int(float(number)) for status, number in found}


def resident(pid: int) -> float:
    """Return the megabytes of memory that a process holds now."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    return int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0]) / 1024


def descendants(pid: int) -> list[int]:
    """Return the processes that a process started, and those that they did."""
    told = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8")
    return [each for child in map(int, told.split()) for each in (child, *descendants(child))]


def held(pid: int) -> dict[str, float]:
    """Return the megabytes of a process's own memory, and of its share of all that it maps."""
    told = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8")
    sizes = {name: int(size) / 1024 for name, size in re.findall(r"(\w+): +(\d+) kB", told)}
    return {"private": sizes["Private_Clean"] + sizes["Private_Dirty"], "Pss": sizes["Pss"]}


def of_two_workers(bundle: Path) -> list[dict[str, Any]]:
    """Return what two workers hold before and after an item is put in."""
    retriever = Retriever.open(bundle)
    line = retriever.contents.items.frame.row(0, named=True)
    asked = [{"query_id": query, "k": 10} for query in retriever.contents.queries.ids.ids[:64]]
    del retriever
    port = free_port()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        journal = ["--journal", str(Path(folder) / "items.journal")]
        command = [str(TWOTOWER), "serve", str(bundle), "--port", str(port), "--workers", "2"]
        with served([*command, *journal], port, TWOTOWER_TOKEN="benchmark") as pid:
            for name in ("as it was opened", "after an item was put in"):
                if rows:
                    told(port, "PUT", "/items", {"items": [line]})
                for _ in range(8):  # connections are new, so that both workers get some
                    for each in asked:
                        told(port, "POST", "/recommend", each)
                workers = [
                    w for w in map(held, descendants(pid)) if w["private"] > LEAST_OF_A_WORKER
                ]
                rows.append(
                    {
                        "": name,
                        "workers": len(workers),
                        "private MB of each": sum(w["private"] for w in workers) / len(workers),
                        "Pss MB of all": sum(w["Pss"] for w in workers),
                    }
                )
    return rows


def told(port: int, method: str, path: str, body: object) -> None:
    """Ask once, on a connection of its own."""
    headers = {"content-type": "application/json", "authorization": "Bearer benchmark"}
    data = json.dumps(body, default=str).encode()
    with urlopen(
        Request(f"http://127.0.0.1:{port}{path}", data, headers, method=method), timeout=60
    ) as answer:
        answer.read()


def main() -> None:
    """Ask, look, and print."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--items", type=int, default=200_000)
    parser.add_argument("--bundle", type=Path, help="a bundle in place of a synthetic one")
    given = parser.parse_args()
    bundle = (given.bundle or bundle_of(given.items)).resolve()
    report(f"memory of two workers, {bundle.name}", of_two_workers(bundle), as_json=False)
    if not given.requests:
        return
    retriever = Retriever.open(bundle)
    script = OUT / "ask_all_sorts.lua"
    named = {
        "items": given.items,
        "queries": len(retriever.contents.queries.ids),
        "column": retriever.item_column,
    }
    script.write_text(SCRIPT.format(**named) + TELL, encoding="utf-8")
    port = free_port()
    step = given.requests // 10
    rows = []
    with served([str(TWOTOWER), "serve", str(bundle), "--port", str(port)], port) as pid:
        command = wrk(port, 24 * 3600, given.connections, script)
        asking = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        for place in range(1, 11):
            while sum((now := counted(port)).values()) < place * step:
                assert asking.poll() is None, "wrk has ended"
                time.sleep(0.5)
            refused = now.get("422", 0) / sum(now.values())
            others = sum(number for status, number in now.items() if status not in ("200", "422"))
            rows.append(
                {
                    "requests": sum(now.values()),
                    "MB": resident(pid),
                    "refused as meant": f"{refused:.3%}",
                    "other than 200 and 422": others,
                }
            )
            print(rows[-1], flush=True)
        asking.send_signal(signal.SIGINT)
        times = told_by(asking.communicate()[0])
    sizes = np.array([row["MB"] for row in rows])
    slope = float(np.polyfit(np.arange(len(sizes)) * step / 1e6, sizes, 1)[0])
    report(f"memory of one worker, {given.items:,} items", rows, as_json=False)
    spread = {
        "least MB": float(sizes.min()),
        "most MB": float(sizes.max()),
        "last to first": f"{sizes[-1] / sizes[0] - 1:+.2%}",
        "MB a million requests": slope,
    }
    del times["failed"]  # most are refused as meant; the others are counted above
    report("over all, and the times of answers", [{**spread, **times}], as_json=False)


if __name__ == "__main__":
    main()
