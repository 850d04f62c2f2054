"""In-batch softmax, forward and backward, on one thread: ours against the naive form and its compiled form.

    python benchmarks/softmax_kernel.py [--rounds 7] [--quick] [--json]

4,096 queries against 4,096 items, 64 wide. Naive is autograd of ``logsumexp(Q @ I.T)`` less the diagonal;
the same with an allocator that keeps its pages (glibc returns blocks of that size to the system, whose
zeroed pages are then most of the time); and ``torch.compile`` of it. Ours is ``softmax_loss``, alone, with
``log_q``, with 50 hidden places a query, where logits are too far apart for an exponential without shift,
and in bfloat16, which ``training.precision`` takes where the processor has units for it.

The limit is what nobody can be faster than: three products, each at the best rate that it reaches in chunks
of any of our sizes, and 4,096 x 4,096 exponentials. Each way lives in a process of its own, and the
processes take turns, so that whatever else the machine does falls on all. The least computing time of a
process counts: on one thread that is the time on the wall of a machine that does nothing else; the figures
by the clock stand beside.

Then the peak memory that a batch of 65,536 queries against 65,536 items adds to a fresh process, its
gradients included. Targets: 3 times the naive form, 1.3 times the better of its two others, 0.7 of the
limit, 200 MB; where bfloat16 is chosen, 5 times the naive form. Exits with 1 where one is missed.
"""

import json
import math
import os
import resource
import subprocess
import sys
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from twotower.losses.softmax import softmax_loss
from twotower.runtime import choose_precision

BATCH, DIM, TEMPERATURE = 4_096, 64, 0.05
LARGE_BATCH = 65_536
HIDDEN = 50
CHUNKS = (64, 128, 256)
NAIVE_TARGET, OTHERS_TARGET, LIMIT_TARGET, BFLOAT16_TARGET = 3.0, 1.3, 0.7, 5.0
MOST_BYTES = 200e6
KEPT_PAGES = {
    "MALLOC_TOP_PAD_": "536870912",
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "4294967296",
}

Times = dict[str, tuple[float, float]]
"""Seconds of computing and by the clock, of each part of a way."""


def vectors(batch: int) -> tuple[Tensor, Tensor]:
    """Return queries and items of length 1 that want gradients: ``(batch, DIM)`` each."""
    torch.manual_seed(0)
    queries, items = (normalize(torch.randn(batch, DIM), dim=1) for _ in range(2))
    return queries.requires_grad_(), items.requires_grad_()


def naive_loss(queries: Tensor, items: Tensor) -> Tensor:
    """Return the softmax loss as it is usually written."""
    logits = (queries / TEMPERATURE) @ items.T
    return (logits.logsumexp(1) - logits.diagonal()).mean()


def ours(**settings: Any) -> Callable[[Tensor, Tensor], Tensor]:
    """Return our loss with other settings than the default."""

    def loss(queries: Tensor, items: Tensor) -> Tensor:
        given = {"temperature": TEMPERATURE} | settings
        return softmax_loss(queries, items, torch.arange(len(queries)), **given)

    return loss


def step_of(make_loss: Callable[[], Callable[[Tensor, Tensor], Tensor]]) -> dict[str, Any]:
    """Return one part: a forward and a backward pass."""
    loss, (queries, items) = make_loss(), vectors(BATCH)

    def step() -> None:
        queries.grad = items.grad = None
        loss(queries, items).backward()  # type: ignore[no-untyped-call]

    return {"step": step}


def limit_parts() -> dict[str, Callable[[], None]]:
    """Return what no way can do without, each in chunks of several sizes."""
    queries, items = (x.detach() for x in vectors(BATCH))
    columns = items.T.contiguous()
    parts: dict[str, Callable[[], None]] = {}
    for rows in CHUNKS:
        chunk = queries[:rows] / TEMPERATURE
        logits = chunk @ columns
        out, query_grads = torch.empty_like(logits), torch.empty_like(chunk)
        item_grads = torch.zeros_like(columns)

        def times(work: Callable[[], Any], rows: int = rows) -> Callable[[], None]:
            def run() -> None:
                for _ in range(BATCH // rows):
                    work()

            return run

        def of_logits(chunk: Tensor = chunk, out: Tensor = out) -> None:
            torch.mm(chunk, columns, out=out)

        def of_queries(logits: Tensor = logits, out: Tensor = query_grads) -> None:
            torch.mm(logits, items, out=out)

        def of_items(
            chunk: Tensor = chunk, logits: Tensor = logits, out: Tensor = item_grads
        ) -> None:
            out.addmm_(chunk.T, logits)

        def exponentials(logits: Tensor = logits, out: Tensor = out) -> None:
            torch.exp(logits, out=out)

        parts[f"logits, {rows}"] = times(of_logits)
        parts[f"query gradients, {rows}"] = times(of_queries)
        parts[f"item gradients, {rows}"] = times(of_items)
        parts[f"exponentials, {rows}"] = times(exponentials)
    return parts


def log_q() -> Tensor:
    """Return what a popularity curve gives: ``(BATCH,)``."""
    shares = torch.arange(1, BATCH + 1) ** -0.8
    return (shares / shares.sum()).log()


def hidden() -> Tensor:
    """Return places at random: ``(BATCH, HIDDEN)``."""
    return torch.randint(BATCH, (BATCH, HIDDEN), generator=torch.Generator().manual_seed(0))


WAYS: dict[str, Callable[[], dict[str, Callable[[], None]]]] = {
    "naive": lambda: step_of(lambda: naive_loss),
    "naive, pages kept": lambda: step_of(lambda: naive_loss),
    "naive, compiled": lambda: step_of(lambda: torch.compile(naive_loss)),
    "ours": lambda: step_of(ours),
    "ours, log_q": lambda: step_of(lambda: ours(log_q=log_q())),
    "ours, log_q and hidden": lambda: step_of(lambda: ours(log_q=log_q(), hidden=hidden())),
    "ours, logits far apart": lambda: step_of(lambda: ours(temperature=0.01)),
    "ours, smoothed": lambda: step_of(lambda: ours(label_smoothing=0.1)),
    "ours, bfloat16": lambda: step_of(lambda: ours(precision=torch.bfloat16)),
    "limit": limit_parts,
}


def work(name: str) -> None:
    """Take a turn for each line of the standard input, and answer with its seconds."""
    torch.set_num_threads(1)
    parts = WAYS[name]()
    for step in parts.values():
        step()
        step()
    print("ready", flush=True)
    for _ in sys.stdin:
        times: Times = {}
        for part, step in parts.items():
            wall, cpu = time.perf_counter(), time.process_time()
            step()
            times[part] = (time.process_time() - cpu, time.perf_counter() - wall)
        print(json.dumps(times), flush=True)


class Worker:
    """A process that measures one way."""

    def __init__(self, name: str) -> None:
        self.least: dict[str, list[float]] = {}
        kept = KEPT_PAGES if "kept" in name else {}
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--way", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"} | kept,
        )
        self._read()

    def take_turn(self) -> None:
        """Measure once, and keep what is quicker than before."""
        assert self._process.stdin is not None
        print(file=self._process.stdin, flush=True)
        for part, seconds in json.loads(self._read()).items():
            before = self.least.get(part, [math.inf, math.inf])
            self.least[part] = [min(pair) for pair in zip(before, seconds, strict=True)]

    def stop(self) -> None:
        """End the process."""
        self._process.communicate()

    def rates(self) -> tuple[float, float]:
        """Return examples a second by computing time and by the clock."""
        kinds: dict[str, list[list[float]]] = {}
        for part, seconds in self.least.items():
            kinds.setdefault(part.split(",")[0], []).append(seconds)
        by_cpu, by_wall = (
            BATCH / sum(min(seconds[i] for seconds in kind) for kind in kinds.values())
            for i in (0, 1)
        )
        return by_cpu, by_wall

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()


def measure_rates(rounds: int) -> dict[str, tuple[float, float]]:
    """Return the examples a second of each way, by computing time and by the clock."""
    workers = {name: Worker(name) for name in WAYS}
    for _ in range(rounds):
        for worker in workers.values():
            worker.take_turn()
    for worker in workers.values():
        worker.stop()
    return {name: worker.rates() for name, worker in workers.items()}


def measure_memory(batch: int) -> None:
    """Print the bytes that a batch adds to the peak of this process, which did nothing else."""
    torch.set_num_threads(1)
    small = vectors(256)
    ours(log_q=torch.zeros(256))(*small).backward()  # type: ignore[no-untyped-call]
    queries, items = vectors(batch)
    log_p = torch.zeros(batch)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    before = pages * resource.getpagesize()
    ours(log_q=log_p)(queries, items).backward()  # type: ignore[no-untyped-call]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
    print(peak - before)


def main() -> None:
    """Measure and exit with 0 if all targets are met."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="turns, of which the quickest counts")
    parser.add_argument("--quick", action="store_true", help="memory of a batch of 16,384 only")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--way", choices=list(WAYS), help="measure it when told, in this process")
    parser.add_argument("--memory", type=int, metavar="BATCH", help="its bytes, in this process")
    given = parser.parse_args()
    if given.way:
        work(given.way)
        return
    if given.memory:
        measure_memory(given.memory)
        return
    from common import report, setting  # imports all of training, which no measured process must

    large = LARGE_BATCH // 4 if given.quick else LARGE_BATCH
    command = [sys.executable, __file__, "--memory", str(large)]
    extra = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    rates = measure_rates(given.rounds)
    of = {name: by_cpu for name, (by_cpu, _) in rates.items()}
    others = max(of["naive, pages kept"], of["naive, compiled"])
    takes_bfloat16 = choose_precision("auto", torch.device("cpu")) == torch.bfloat16
    checks = {
        "ours to naive": (of["ours"] / of["naive"], NAIVE_TARGET),
        "ours to the better of its others": (of["ours"] / others, OTHERS_TARGET),
        "ours to the limit": (of["ours"] / of["limit"], LIMIT_TARGET),
    }
    if takes_bfloat16:
        checks["bfloat16 to naive"] = (of["ours, bfloat16"] / of["naive"], BFLOAT16_TARGET)
    is_met = extra < MOST_BYTES and all(ratio >= target for ratio, target in checks.values())
    chosen = "bfloat16" if takes_bfloat16 else "float32"
    if given.json:
        fp32 = {
            "naive": of["naive"],
            "naive_kept_pages": of["naive, pages kept"],
            "compiled": of["naive, compiled"],
            "ours": of["ours"],
            "ours_log_q": of["ours, log_q"],
            "ours_log_q_hidden": of["ours, log_q and hidden"],
            "ours_shifted": of["ours, logits far apart"],
            "ours_smoothed": of["ours, smoothed"],
        }
        result = {
            "fp32": fp32,
            "bf16": {"ours": of["ours, bfloat16"]},
            "limit": of["limit"],
            "ratios": {name: ratio for name, (ratio, _) in checks.items()},
            "by_the_clock": {name: by_wall for name, (_, by_wall) in rates.items()},
            "chosen": chosen,
            "extra_bytes": {"batch": large, "bytes": extra},
            "is_met": is_met,
            "setting": setting(),
        }
        print(json.dumps(result))
    else:
        memory = (
            f"A batch of {large:,} adds {extra / 1e6:.0f} MB at its peak, the target of "
            f"{MOST_BYTES / 1e6:.0f} is {'met' if extra < MOST_BYTES else 'missed'}."
        )
        report(
            f"Softmax of {BATCH:,} queries against {BATCH:,} items, {DIM} wide, one thread",
            [
                {
                    "way": name,
                    "examples/s": by_cpu,
                    "by the clock": by_wall,
                    "to naive": by_cpu / of["naive"],
                    "to the limit": by_cpu / of["limit"],
                }
                for name, (by_cpu, by_wall) in rates.items()
            ],
            as_json=False,
            notes=[
                *(
                    f"{name}: {ratio:.2f}, the target of {target:g} is "
                    f"{'met' if ratio >= target else 'missed'}."
                    for name, (ratio, target) in checks.items()
                ),
                memory,
                f"training.precision = 'auto' takes {chosen} here.",
            ],
        )
    sys.exit(0 if is_met else 1)


if __name__ == "__main__":
    main()
