"""Training in several processes: is the result that of one, how fast is it, and what does its size cost?

    python benchmarks/several_processes.py equal [--seeds 0,1,2] [--data movielens-100k] [--no-dropout]
        [--json]
    python benchmarks/several_processes.py hosts [--data movielens-100k] [--json]
    python benchmarks/several_processes.py speed [--rounds 3] [--json]
    python benchmarks/several_processes.py costs [--rows 5e4,5e6,5e7] [--dim 16] [--steps 40] [--json]

``equal`` trains the default on a public data set, in one process and in two, and compares NDCG@10 at test;
target: at most 0.008 apart. Each process draws its own dropout, which is as good as another seed;
``--no-dropout`` trains without it.

``hosts`` trains a GRU on the same set with two agents of ``torchrun`` on loopback, as two machines do. One
process is killed in the middle. Without restarts both agents must end, with the reason, within 30 seconds.
With restarts the training must go on from its last checkpoint, and end with the figures of one that was
left alone.

``speed`` counts examples a second of a transformer and of a pooled history on the synthetic world, in
turns: one process with one thread, one process with two threads, two processes with one thread each.

``costs`` trains steps of a pooled history with so many items and as many queries, each id with a vector of
its own, in one process and in two. It reports examples a second, the peak of anonymous memory of a process
(sampled from ``/proc``, so that this runs on Linux alone), and the bytes that a process sends and keeps.
The events are in a prepared folder under ``benchmarks/out/``, which is mapped and not loaded.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
import torch.distributed as dist

from common import OUT, report
from processes import free_port
from public_sets import read
from twotower.config import Config
from twotower.data.sources.synthetic import World, WorldConfig
from twotower.processes.gradients import sum_gradients
from twotower.processes.job import here, joined
from twotower.training.choices import resolve
from twotower.training.task import Task
from twotower.training.trainer import Trainer

BATCH = 512
STATED = {
    "towers": {"query_id": "on", "item_id": "on", "question_time": "off", "spectral_dim": 0},
    "training": {"solver": "gradient", "batch_size": BATCH, "precision": "float32"},
    "loss": {"negatives": "mixed", "num_negatives": 1024},
}
HISTORIES = {"pooled": {"history": "pooled"}, "transformer": {"history": "transformer"}}
LEAST_EVENTS = 200_000
"""Events of a table whose ids' number is what counts; of more ids, each has one event."""


def run(processes: int, threads: int, *arguments: object) -> subprocess.Popen[str]:
    """Start this file, or ``-m`` and a module, in so many processes, each with so many threads."""
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc-per-node", str(processes)]
    command += map(str, arguments)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "POLARS_MAX_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def equal(given: Namespace) -> None:
    """Compare whole trainings."""
    rows = []
    with tempfile.TemporaryDirectory() as place:
        data, folder = read(given.data), Path(place)
        tables: list[object] = []
        for name in ("interactions", "items", "queries"):
            table = getattr(data, name)
            if table is not None:
                table.write_parquet(folder / f"{name}.parquet")
                tables += [f"--{name}", folder / f"{name}.parquet"]
        for seed in map(int, given.seeds.split(",")):
            found = {}
            for processes in (1, 2):
                out = folder / f"model-{processes}"
                settings = ["--set", f"training.seed={seed}"]
                if given.no_dropout:
                    settings += ["--set", "towers.dropout=0", "--set", "towers.id_dropout=0"]
                    settings += ["--set", "training.precision=float32"]
                more = ["--out", out, "--baselines", "popularity", "--json", *settings]
                process = run(processes, 1, "-m", "twotower", "train", *tables, *more)
                said, _ = process.communicate()
                assert process.returncode == 0
                found[processes] = json.loads(said)["model"]["ndcg@10"]
            apart = found[2] - found[1]
            rows.append({"seed": seed, "one": found[1], "two": found[2], "apart": apart})
            print(rows[-1], file=sys.stderr, flush=True)
    report(f"NDCG@10 on {given.data} in one process and in two", rows, as_json=given.json)


def hosts(given: Namespace) -> None:
    """Kill a process of one of two agents."""
    settings = {
        "training.solver": "gradient",
        "training.epochs": 8,
        "training.patience": 8,
        "training.precision": "float32",
        "towers.history": "gru",
        "towers.query_id": "off",
        "towers.question_time": "off",
        "towers.spectral_dim": 0,
    }
    rows = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        events = read(given.data).interactions
        assert isinstance(events, pl.DataFrame)
        events.write_parquet(folder / "events.parquet")
        for name, restarts, is_killed in (
            ("left alone", 0, False),
            ("killed", 0, True),
            ("killed and started again", 3, True),
        ):
            out = folder / name
            command = ["-m", "twotower", "train", "--interactions", folder / "events.parquet"]
            command += ["--out", out, "--baselines", "popularity", "--json"]
            command += [f"--set={key}={value}" for key, value in settings.items()]
            agents = _agents(folder, command, restarts)
            seconds = 0.0
            if is_killed:
                while not out.with_name(f"{name}.training").joinpath("checkpoint.pt").exists():
                    assert all(agent.poll() is None for agent in agents)
                    time.sleep(0.02)
                os.kill(_children(agents[1].pid)[0], signal.SIGKILL)
            started = time.perf_counter()
            said = [agent.communicate() for agent in agents]
            seconds = time.perf_counter() - started
            figures = [each for each, _ in said if each.startswith("{")]
            ended = [agent.returncode for agent in agents]
            row = {"training": name, "exit codes": str(ended), "seconds after": round(seconds, 1)}
            row["NDCG@10"] = json.loads(figures[0])["model"]["ndcg@10"] if figures else None
            row["reason"] = "SIGKILL" if "SIGKILL" in said[1][1] else ""
            rows.append(row)
            print(row, file=sys.stderr, flush=True)
    report("Two agents on loopback", rows, as_json=given.json)


def _agents(folder: Path, command: list[Any], restarts: int) -> list[subprocess.Popen[str]]:
    """Start two agents of torchrun, with one process each."""
    port = free_port()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1"}
    meet = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id", "job"]
    started = []
    for rank in range(2):
        agent = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2"]
        agent += ["--nproc-per-node", "1", "--node-rank", str(rank), *meet]
        agent += ["--max-restarts", str(restarts), *map(str, command)]
        started.append(
            subprocess.Popen(
                agent,
                env=environment,
                cwd=folder,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return started


def _children(process: int) -> list[int]:
    children = Path(f"/proc/{process}/task/{process}/children").read_text(encoding="ascii")
    return [int(child) for child in children.split()]


def speed(given: Namespace) -> None:
    """Compare how fast one process and two are."""
    ways = {"1 process, 1 thread": (1, 1), "1 process, 2 threads": (1, 2), "2 processes": (2, 1)}
    found: dict[tuple[str, str], list[float]] = {}
    for _ in range(given.rounds):
        for history in HISTORIES:
            for way, (processes, threads) in ways.items():
                more = ("--history", history, "--threads", threads)
                process = run(processes, threads, __file__, "steps-of-world", *more)
                said, _ = process.communicate()
                assert process.returncode == 0
                found.setdefault((history, way), []).append(json.loads(said)["examples_per_second"])
    rows = []
    for history in HISTORIES:
        alone = float(np.median(found[history, "1 process, 1 thread"]))
        for way in ways:
            rates = found[history, way]
            rate = float(np.median(rates))
            ratio = rate / alone
            rows.append({"history": history, "way": way, "examples/s": round(rate), "ratio": ratio})
    report("Examples a second", rows, as_json=given.json)


def costs(given: Namespace) -> None:
    """Measure what the number of rows costs."""
    rows = []
    for num_rows in (int(float(text)) for text in given.rows.split(",")):
        prepared = prepared_rows(num_rows, OUT / "several_processes")
        for processes in (1, 2):
            more = ("--prepared", prepared, "--dim", given.dim, "--steps", given.steps)
            process = run(processes, 1, __file__, "steps-of-rows", *more)
            said, _ = process.communicate()
            assert process.returncode == 0
            found = json.loads(said)
            hours = 1e8 / found["examples_per_second"] / 3600
            rows.append(
                {
                    "rows a side": num_rows,
                    "processes": processes,
                    "examples/s": round(found["examples_per_second"]),
                    "peak GB": found["peak_gb"],
                    "table MB": found["table_bytes"] / 1e6,
                    "sent KB/step": found["sent_bytes"] / 1e3,
                    "hours for 100 million": hours,
                }
            )
            print(rows[-1], file=sys.stderr, flush=True)
    report(f"Steps of {BATCH} examples, width {given.dim}", rows, as_json=given.json)


def prepared_rows(num: int, folder: Path) -> Path:
    """Return a prepared folder of events of so many items and queries; make it if it is not there."""
    prepared, table = folder / f"data-{num}", folder / f"events-{num}.parquet"
    if not prepared.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        rng, num_events = np.random.default_rng(0), max(LEAST_EVENTS, num)
        columns = {side: rng.permutation(num_events) % num for side in ("user", "item")}
        pl.DataFrame({**columns, "timestamp": np.arange(num_events) * 60}).write_parquet(table)
        run(
            1, 1, "-m", "twotower", "prepare", "--interactions", table, "--out", prepared
        ).communicate()
        table.unlink()
    return prepared


def steps_of_world(given: Namespace) -> None:
    """Train one epoch of the synthetic world; the first process prints how fast."""
    world = World(WorldConfig(num_items=20_000, num_queries=1_500, seed=0)).generate()
    settings = {**STATED, "towers": {**STATED["towers"], **HISTORIES[given.history]}}
    settings["training"] = {**STATED["training"], "epochs": 1, "threads": given.threads}
    with joined(torch.device("cpu")) as job:
        task = Task.of(world.interactions, items=world.items, config=Config.from_dict(settings))
        trainer = Trainer(task.dataset, task.sides, resolve(task.config, task.dataset)[0])
        log = trainer.fit(epochs=1).log
        if job.is_first:
            print(json.dumps({"examples_per_second": log[-1]["examples_per_second"]}))


def steps_of_rows(given: Namespace) -> None:
    """Train some steps on a table with so many ids; the first process prints what they cost."""
    settings = {**STATED, "towers": {**STATED["towers"], "history": "pooled", "dim": given.dim}}
    settings["features"] = {"min_count": 1}
    settings["split"] = {"kind": "random", "test_fraction": 1e-4, "valid_fraction": 1e-4}
    with joined(torch.device("cpu")) as job:
        task = Task.of(given.prepared, config=Config.from_dict(settings))
        trainer = Trainer(task.dataset, task.sides, resolve(task.config, task.dataset)[0])
        torch.set_num_threads(1)
        sent = _count_sent()
        seconds, examples = _steps(trainer, given.steps)
        peaks = job.objects(_peak())
        if job.is_first:
            tables = sum(
                p.numel() * 4
                for p in trainer.trained.parameters()
                if p.ndim == 2 and len(p) > 10_000
            )
            found = {
                "examples_per_second": examples / seconds,
                "peak_gb": max(peaks) / 1e9,
                "table_bytes": tables,
                "sent_bytes": sent[0] / (given.steps + 2),
            }
            print(json.dumps(found))


def _steps(trainer: Trainer, num: int) -> tuple[float, int]:
    """Return the seconds and examples of some steps, after two that are not counted."""
    from twotower.training.steps import Optimizers

    objective = trainer.objectives[0]
    optimizers = Optimizers(trainer.trained, trainer.config.training, num + 2)
    generator = torch.Generator().manual_seed(0)
    trainer.trained.train()
    started, examples = 0.0, 0
    for step, batch in enumerate(objective.some_batches(0, num + 2)):
        if step == 2:
            started = time.perf_counter()
        optimizers.zero_grad()
        sum_gradients(trainer.trained, objective.backward(batch, generator))
        optimizers.step()
        examples += len(batch) if step >= 2 else 0
    return time.perf_counter() - started, examples


def _count_sent() -> list[int]:
    """Count the bytes that this process hands to the others, in the first entry of a list."""
    sent, job = [0], here()

    def counting(name: str, times: float) -> None:
        function = getattr(dist, name)

        def counted(*arguments: Any, **more: Any) -> Any:
            tensor = arguments[1] if name in ("all_gather", "all_to_all_single") else arguments[0]
            sent[0] += int(times * tensor.numel() * tensor.element_size())
            return function(*arguments, **more)

        setattr(dist, name, counted)

    others = job.size - 1
    counting("all_gather", others)
    counting("all_reduce", 2 * others / job.size)  # as a ring does it
    counting("all_to_all_single", others / job.size)
    return sent


def _peak() -> int:
    """Return the most anonymous memory that this process has had, in bytes."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    fields = dict(line.split(":", 1) for line in status.splitlines())
    return (int(fields["VmHWM"].split()[0]) - int(fields["RssFile"].split()[0])) * 1024


def main() -> None:
    """Run one part."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parts = {
        "equal": equal,
        "hosts": hosts,
        "speed": speed,
        "costs": costs,
        "steps-of-world": steps_of_world,
        "steps-of-rows": steps_of_rows,
    }
    parser.add_argument("part", choices=parts)
    parser.add_argument("--data", default="movielens-100k")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", default="5e4,5e6,5e7")
    parser.add_argument("--prepared", type=Path)
    parser.add_argument("--dim", type=int, default=16)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--history", choices=HISTORIES, default="pooled")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-dropout", action="store_true")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    parts[given.part](given)


if __name__ == "__main__":
    main()
