"""One model takes over from another while ``wrk`` asks: is any request failed, any answer of two models?

    python benchmarks/hot_swap.py [--swaps 20] [--connections 64] [--items 200000]

Two bundles of the same items: the vectors of the second are those of the first with the other sign, so
that its best items are the first one's worst. A server with one worker and one with two is asked all the
time; it exchanges the model back and forth by ``PUT /model``. ``wrk`` holds every answer against what the
model that it names says of that query, which is known before: of queries whose best items lie further
apart than rounding. Exits with 1 if a request failed, or an answer was not wholly of one model.
"""

import json
import signal
import subprocess
import sys
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import numpy as np

from common import OUT, report
from processes import free_port
from server import TELL, TWOTOWER, bundle_of, served, told_by, wrk
from twotower.serving.bundle import open_bundle, write_bundle
from twotower.serving.retriever import Retriever
from twotower.serving.server.pointer import digest_of

K = 10
TOKEN = "benchmark"
MOST_QUERIES = 500
APART = 1e-4
"""What rounding does not change."""
BETWEEN = 1.0
"""Seconds between an exchange that all workers have followed and the next."""
IN_A_ROW = 20
"""Answers of one model, each by a connection of its own, after which no worker has another."""
SCRIPT = """
local ids, expected = {{{ids}}}, {{{expected}}}
math.randomseed(1)
wrk.method = "POST"
wrk.headers["content-type"] = "application/json"
wrong, answers = 0, {{}}
local threads = {{}}
function setup(thread) table.insert(threads, thread) end
request = function()
  local id = ids[math.random(#ids)]
  return wrk.format(nil, "/recommend", nil, '{{"query_id": ' .. id .. ', "k": {k}}}')
end
response = function(status, headers, body)
  if status ~= 200 then return end
  local model, id, found = body:match('"model":"(%w+)"'), body:match('"query_id":(%d+)'), {{}}
  for item in body:gmatch('"item_id":(%d+)') do found[#found + 1] = item end
  if (expected[model] or {{}})[id] ~= table.concat(found, ",") then wrong = wrong + 1 end
  answers[model] = (answers[model] or 0) + 1
  counts = (answers["{first}"] or 0) .. " " .. (answers["{second}"] or 0)
end
{tell}
local tell = done
done = function(summary, latency, requests)
  tell(summary, latency, requests)
  local thread = threads[1]
  local counted = thread:get("counts") or "0 0"
  io.write(string.format(" %d %s %f", thread:get("wrong"), counted, latency.max / 1e3))
end
"""


def turned(bundle: Path) -> Path:
    """Return the bundle whose vectors have the other sign; it is written if it is not there yet."""
    place = bundle.with_name(f"{bundle.name}-turned")
    if not (place / "manifest.json").is_file():
        contents = open_bundle(bundle)
        write_bundle(place, replace(contents, item_vectors=-contents.item_vectors))
    return place


def answers_of(bundle: Path) -> dict[str, str]:
    """Return the ids of the best items of queries that have clear ones, joined by commas."""
    retriever = Retriever.open(bundle)
    ids = retriever.contents.queries.ids.ids[: 4 * MOST_QUERIES].to_list()
    found: dict[str, str] = {}
    for answer in retriever.recommend(ids, k=K + 1):
        if np.diff(answer.scores).max() < -APART:
            found[str(answer.query_id)] = ",".join(map(str, answer.item_ids[:K]))
    return found


def script_of(bundles: list[Path]) -> Path:
    """Return what ``wrk`` runs: questions, and their answers by each model."""
    answers = {digest_of(bundle): answers_of(bundle) for bundle in bundles}
    first, second = answers.values()
    ids = [query for query in first if query in second][:MOST_QUERIES]
    assert ids, "no query has clear answers"
    assert not any(first[query] == second[query] for query in ids)
    tables = []
    for digest, own in answers.items():
        lines = ", ".join(f'["{query}"] = "{own[query]}"' for query in ids)
        tables.append(f'["{digest}"] = {{{lines}}}')
    script = OUT / "ask_while_swapped.lua"
    names = dict(zip(("first", "second"), answers, strict=True))
    text = SCRIPT.format(ids=", ".join(ids), expected=", ".join(tables), k=K, tell=TELL, **names)
    script.write_text(text, encoding="utf-8")
    return script


def exchange(port: int, bundle: Path) -> tuple[float, float]:
    """Let the server answer from a bundle, and return after how many seconds one and all workers did."""
    told = Request(
        f"http://127.0.0.1:{port}/model",
        json.dumps({"path": str(bundle)}).encode(),
        {"content-type": "application/json", "authorization": f"Bearer {TOKEN}"},
        method="PUT",
    )
    started = time.perf_counter()
    with urlopen(told, timeout=300) as answer:
        model = json.load(answer)["model"]
    assert model == digest_of(bundle)
    first = time.perf_counter() - started
    in_a_row = 0
    while in_a_row < IN_A_ROW:
        with urlopen(f"http://127.0.0.1:{port}/model", timeout=300) as answer:
            in_a_row = in_a_row + 1 if json.load(answer)["model"] == model else 0
        time.sleep(0.05)
    return first, time.perf_counter() - started - 0.05 * IN_A_ROW


def under_load(
    port: int, connections: int, script: Path, bundles: list[Path], swaps: int
) -> dict[str, Any]:
    """Return what ``wrk`` saw during so many exchanges, or for ten seconds without any."""
    command = wrk(port, 24 * 3600, connections, script)
    asking = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    time.sleep(BETWEEN if swaps else 10)
    took = []
    for number in range(1, swaps + 1):
        took.append(exchange(port, bundles[number % 2]))
        time.sleep(BETWEEN)
    asking.send_signal(signal.SIGINT)
    out = asking.communicate()[0]
    wrong, *answered = (int(each) for each in out.split()[-4:-1])
    row = {
        "exchanges": swaps,
        **told_by(out),
        "wrong": wrong,
        "of each model": " + ".join(map(str, answered)),
        "longest ms": float(out.split()[-1]),
    }
    del row["p75 ms"], row["p90 ms"]
    if took:
        for what, seconds in zip(
            ("exchange s", "all workers s"), zip(*took, strict=True), strict=True
        ):
            row[what] = f"{np.median(seconds):.1f}, at most {max(seconds):.1f}"
    return row


def main() -> None:
    """Exchange, count, and exit with 0 if nothing was wrong."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--swaps", type=int, default=20)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--items", type=int, default=200_000)
    given = parser.parse_args()
    first = bundle_of(given.items).resolve()
    bundles = [first, turned(first)]
    script = script_of(bundles)
    rows = []
    for workers in (1, 2):
        port = free_port()
        command = [str(TWOTOWER), "serve", str(first), "--port", str(port)]
        command += ["--workers", str(workers)]
        with served(command, port, TWOTOWER_TOKEN=TOKEN):
            subprocess.run(wrk(port, 3, given.connections, script), check=True, capture_output=True)
            for swaps in (0, given.swaps):
                told = under_load(port, given.connections, script, bundles, swaps)
                rows.append({"workers": workers, **told})
                print(rows[-1], flush=True)
    report(f"{given.items:,} items, {given.connections} connections", rows, as_json=False)
    sys.exit(0 if not any(row["failed"] or row["wrong"] for row in rows) else 1)


if __name__ == "__main__":
    main()
