"""Memory of a server over a million requests.

    python benchmarks/server_memory.py [--requests 1000000] [--connections 64] [--items 200000]

``wrk`` asks one worker of ``twotower serve`` all the time: for known queries, for unknown ones, for
histories and with filters that were never seen, and in ways that are refused. What the worker holds is
read from ``/proc`` after each tenth of the requests; the first one is the warm-up.
"""

import re
import signal
import subprocess
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path
from urllib.request import urlopen

import numpy as np

from common import OUT, report
from processes import free_port
from server import TELL, TWOTOWER, bundle_of, served, told_by, wrk
from twotower.serving.retriever import Retriever

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


def main() -> None:
    """Ask, look, and print."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--items", type=int, default=200_000)
    given = parser.parse_args()
    bundle = bundle_of(given.items).resolve()
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
        told = told_by(asking.communicate()[0])
    sizes = np.array([row["MB"] for row in rows])
    slope = float(np.polyfit(np.arange(len(sizes)) * step / 1e6, sizes, 1)[0])
    report(f"memory of one worker, {given.items:,} items", rows, as_json=False)
    spread = {
        "least MB": float(sizes.min()),
        "most MB": float(sizes.max()),
        "last to first": f"{sizes[-1] / sizes[0] - 1:+.2%}",
        "MB a million requests": slope,
    }
    del told["failed"]  # most are refused as meant; the others are counted above
    report("over all, and the times of answers", [{**spread, **told}], as_json=False)


if __name__ == "__main__":
    main()
