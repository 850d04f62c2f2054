"""Requests a second of a server under load, and of a plain handler beside it.

    python benchmarks/server.py [--seconds 15] [--connections 64] [--items 200000] [--second-stage]

A bundle of a synthetic world is served on loopback, and ``wrk`` (of the package of that name) asks with so
many connections for the 10 best of random known queries. Beside ``twotower serve``, with micro-batches and
without, with one worker and two, stands what many write first: FastAPI around a product and a top-k. That
handler is even given the query vectors, which the others encode from features and history.

With ``--second-stage``, the same bundle is served alone, and with a second stage over 100 and over 500
candidates, by one worker, with NDCG@10 of each.

All of it, ``wrk`` too, shares the machine's cores.
"""

import os
import subprocess
import sys
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import torch
from fastapi import FastAPI
from pydantic import BaseModel

from common import OUT, report
from processes import free_port, megabytes
from twotower.data.sources.synthetic import World, WorldConfig
from twotower.evaluation.evaluate_bundle import evaluate_bundle
from twotower.serving.retriever import Retriever
from twotower.training.pipeline import train
from twotower.training.rerank import rerank

TWOTOWER = Path(sys.executable).with_name("twotower")
PLAIN = "TWOTOWER_BENCHMARK_BUNDLE"
SCRIPT = """
math.randomseed(tonumber(os.getenv("SEED") or "1"))
wrk.method = "POST"
wrk.headers["content-type"] = "application/json"
request = function()
  return wrk.format(nil, "/recommend", nil, '{{"query_id": ' .. math.random(1, {queries}) .. ', "k": 10}}')
end
"""
TELL = """
done = function(summary, latency, requests)
  local e = summary.errors
  io.write(string.format("\\n%d %f %d", summary.requests, summary.duration / 1e6,
    e.status + e.connect + e.read + e.write + e.timeout))
  for _, share in ipairs({50, 75, 90, 99, 99.9}) do
    io.write(string.format(" %f", latency:percentile(share) / 1e3))
  end
end
"""
"""Ends each script: the last line that ``wrk`` prints is what ``told_by`` reads."""
SHARES = ("50", "75", "90", "99", "99.9")


def bundle_of(num_items: int) -> Path:
    """Return a bundle with so many items, which is trained for one epoch if it is not there yet."""
    place = OUT / "bundles" / f"served-{num_items}"
    if not (place / "manifest.json").is_file():
        world = World(
            WorldConfig(
                num_items=num_items,
                num_clusters=200,
                num_queries=5_000,
                events_per_query=30,
                seed=3,
            )
        ).generate()
        place.parent.mkdir(parents=True, exist_ok=True)
        train(
            world.interactions,
            items=world.items,
            queries=world.queries,
            out=place,
            config={"training": {"epochs": 1}},
        )
    return place


class Asked(BaseModel):
    """What the plain handler is asked."""

    query_id: int
    k: int = 10


def plain() -> FastAPI:
    """Return the plain handler's application."""
    torch.set_num_threads(os.cpu_count() or 1)
    retriever = Retriever.open(os.environ[PLAIN])
    ids = retriever.contents.queries.ids.ids.to_list()
    queries = torch.from_numpy(retriever.encode_queries(ids))
    row = {query_id: place for place, query_id in enumerate(ids)}
    items = torch.from_numpy(retriever.encode_items())
    item_ids = retriever.item_ids
    app = FastAPI()

    @app.post("/recommend")
    def recommend(asked: Asked) -> dict[str, Any]:
        found = (items @ queries[row[asked.query_id]]).topk(asked.k)
        answers = zip(found.indices.tolist(), found.values.tolist(), strict=True)
        return {"items": [{"item_id": item_ids[place], "score": score} for place, score in answers]}

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ok"}

    return app


def ranked_bundle(bundle: Path, candidates: int) -> Path:
    """Return the same bundle with a second stage, which is fitted if it is not there yet."""
    place = bundle.with_name(f"{bundle.name}-{candidates}")
    if not (place / "manifest.json").is_file():
        rerank(bundle, out=place, candidates=candidates, force=True, progress=None)
    return place


@contextmanager
def served(command: Sequence[str], port: int, **environment: str) -> Iterator[int]:
    """Run a server until the block ends, and give its process id."""
    process = subprocess.Popen(
        list(command),
        env={**os.environ, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=Path(__file__).parent,
    )
    try:
        until = time.monotonic() + 180
        while time.monotonic() < until:
            try:
                with urlopen(f"http://127.0.0.1:{port}/health", timeout=1):
                    break
            except OSError:
                time.sleep(0.2)
        yield process.pid
    finally:
        process.terminate()
        process.wait(60)


def told_by(out: str) -> dict[str, Any]:
    """Return what ``wrk`` measured by a script with ``TELL``: times in milliseconds."""
    requests, seconds, failed, *times = map(float, out.strip().splitlines()[-1].split()[:8])
    return {
        "requests": int(requests),
        "requests/s": requests / seconds,
        "failed": int(failed),
        **{f"p{share} ms": time for share, time in zip(SHARES, times, strict=True)},
    }


def wrk(port: int, seconds: int, connections: int, script: Path) -> list[str]:
    """Return the command that asks for so long."""
    return [
        "wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "30s",
        "-s", str(script), f"http://127.0.0.1:{port}",
    ]  # fmt: skip


def load(port: int, seconds: int, connections: int, script: Path) -> dict[str, Any]:
    """Return what ``wrk`` measured, after three seconds that are not counted; see ``told_by``."""
    subprocess.run(wrk(port, 3, connections, script), check=True, capture_output=True)
    told = wrk(port, seconds, connections, script)
    return told_by(subprocess.run(told, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    """Measure, and print."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=15)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--items", type=int, default=200_000)
    parser.add_argument("--second-stage", action="store_true")
    given = parser.parse_args()
    bundle = bundle_of(given.items).resolve()
    script = OUT / "ask.lua"
    num_queries = len(Retriever.open(bundle).contents.queries.ids)
    script.write_text(SCRIPT.format(queries=num_queries) + TELL, encoding="utf-8")
    if given.second_stage:
        second_stage(bundle, script, given.seconds, given.connections)
        return
    serve = [str(TWOTOWER), "serve", str(bundle), "--port"]
    ways = {
        "plain handler": None,
        "twotower, one by one": ["--batch", "1"],
        "twotower": [],
        "twotower, 2 workers": ["--workers", "2"],
    }
    rows = []
    for name, options in ways.items():
        port = free_port()
        command = (
            [
                sys.executable,
                "-m",
                "uvicorn",
                "server:plain",
                "--factory",
                "--no-access-log",
                "--port",
            ]
            if options is None
            else [*serve, str(port), *options]
        )
        if options is None:
            command.append(str(port))
        with served(command, port, **{PLAIN: str(bundle)}) as pid:
            line = load(port, given.seconds, given.connections, script)
            rows.append({"": name, **line, "MB": round(megabytes(pid))})
        print(rows[-1], flush=True)
    first = rows[0]["requests/s"]
    rows = [{**row, "x plain": f"{row['requests/s'] / first:.2f}"} for row in rows]
    report(f"{given.items:,} items, {given.connections} connections", rows, as_json=False)


def second_stage(bundle: Path, script: Path, seconds: int, connections: int) -> None:
    """Measure a bundle alone and with a second stage, and print."""
    rows: list[dict[str, Any]] = []
    for name, candidates in (("alone", 0), ("100 candidates", 100), ("500 candidates", 500)):
        place = ranked_bundle(bundle, candidates) if candidates else bundle
        figures = evaluate_bundle(place, baselines=[])
        quality = figures["ranked" if candidates else "model"]["ndcg@10"]
        port = free_port()
        with served([str(TWOTOWER), "serve", str(place), "--port", str(port)], port) as pid:
            line = load(port, seconds, connections, script)
            rows.append({"": name, "NDCG@10": quality, **line, "MB": round(megabytes(pid))})
        rows[-1]["share"] = rows[-1]["requests/s"] / rows[0]["requests/s"]
        print(rows[-1], flush=True)
    report(f"{connections} connections, one worker", rows, as_json=False)


if __name__ == "__main__":
    main()
