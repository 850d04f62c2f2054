"""What the scripts of the peers share: the data, the clock, the answer; numpy and nothing else.

Each script runs in an environment of its own, on one core, and is called by ``benchmarks/peers.py``:

    python SCRIPT --data DATA.npz --out FOLDER --seconds 240 [--variant NAME]

It trains until the clock is spent and writes into FOLDER ``top.npy``, the best items of each test
query, and ``figures.json``. It never sees the items of the test.
"""

import json
import os
import time
from argparse import ArgumentParser
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

DIM, BATCH_SIZE = 64, 1_024
TOP = 100
WARM_UP_SHARE = 0.2
"""The first part of the time, whose steps do not count for the rate: tracing, caches, allocators."""

_QUERIES_A_TIME = 512

Ints = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Data:
    """Events to learn from, and the queries to answer; ids are 0 to n - 1 on both sides.

    Args:
        query: ``(E,)`` int32, ascending.
        item: ``(E,)`` int32; the events of a query in their order.
        times: ``(E,)`` float64 seconds, ascending within a query.
        is_valid: ``(E,)`` bool; the validation events, which whoever validates nothing may learn from.
        query_features: ``(Q, F)`` int32 categories from 0.
        item_features: ``(I, G)`` int32 categories from 0.
        test_queries: ``(T,)`` int32, distinct.
    """

    query: Ints
    item: Ints
    times: npt.NDArray[np.float64]
    is_valid: npt.NDArray[np.bool_]
    query_features: Ints
    item_features: Ints
    test_queries: Ints

    @property
    def num_queries(self) -> int:
        """Number of queries."""
        return len(self.query_features)

    @property
    def num_items(self) -> int:
        """Number of items of the catalogue, those without events included."""
        return len(self.item_features)

    @property
    def offsets(self) -> npt.NDArray[np.int64]:
        """Where the events of each query begin, and the number of events: ``(Q + 1,)``."""
        return np.searchsorted(self.query, np.arange(self.num_queries + 1)).astype(np.int64)

    def learnt(self) -> "Data":
        """Return the events without those of the validation."""
        kept = ~self.is_valid
        return replace(
            self,
            query=self.query[kept],
            item=self.item[kept],
            times=self.times[kept],
            is_valid=self.is_valid[kept],
        )

    def histories(self, width: int) -> Ints:
        """Return the items before each event, newest last: ``(E, width)``, see ``_windows``."""
        return _windows(self.item, np.arange(len(self.item)), self.offsets[self.query], width)

    def test_histories(self, width: int) -> Ints:
        """Return the last items of each test query, newest last: ``(T, width)``, see ``_windows``."""
        offsets, queries = self.offsets, self.test_queries
        return _windows(self.item, offsets[queries + 1], offsets[queries], width)


def _windows(item: Ints, ends: npt.NDArray[Any], starts: npt.NDArray[Any], width: int) -> Ints:
    """Return the last ``width`` items of ``starts:ends``, plus 1; 0 stands where there are fewer."""
    found = np.empty((len(ends), width), np.int32)
    for column in range(width):
        places = ends - width + column
        found[:, column] = np.where(places >= starts, item[np.maximum(places, 0)] + 1, 0)
    return found


class Clock:
    """Counts examples, says when the time is over, and knows the rate after the warm-up.

    Args:
        seconds: Of training, from ``start`` on.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.examples = 0
        self._counted = 0
        self._wall = self._cpu = 0.0

    def start(self) -> None:
        """Training begins: data are prepared, nothing is traced or compiled yet."""
        self._started = time.perf_counter()
        self.resume()

    def resume(self) -> None:
        """Leave what was done since the last step out of the rate; it stays in the time."""
        self._last = time.perf_counter(), time.process_time()

    def step(self, examples: int) -> bool:
        """Count the positives of a step that was taken, and return whether the time is over."""
        now = time.perf_counter(), time.process_time()
        self.examples += examples
        if self._last[0] - self._started >= WARM_UP_SHARE * self.seconds:
            self._counted += examples
            self._wall += now[0] - self._last[0]
            self._cpu += now[1] - self._last[1]
        self._last = now
        return self.is_over

    @property
    def is_over(self) -> bool:
        """Whether the time is spent."""
        return time.perf_counter() - self._started >= self.seconds

    def stop(self) -> None:
        """Training has ended."""
        self.trained_for = time.perf_counter() - self._started

    def figures(self) -> dict[str, Any]:
        """Return what JSON can hold; the rates are None where no step came after the warm-up."""
        return {
            "seconds": self.trained_for,
            "examples": self.examples,
            "rate": self._counted / self._wall if self._counted else None,
            "rate_of_cpu": self._counted / self._cpu if self._counted else None,
        }


class Laps:
    """Answers on the way of a race; the time that they take is not of the training.

    Args:
        run: Of the script.
        every: Seconds of training between two answers.
    """

    def __init__(self, run: "Run", every: float) -> None:
        self.run = run
        self.every = every
        self.laps: list[dict[str, float]] = []
        self._trained = 0.0
        self._since: float | None = None

    def start(self) -> None:
        """Training begins, or goes on."""
        self._since = time.perf_counter()

    def pause(self) -> None:
        """Training stops for a while."""
        self._trained, self._since = self.trained, None

    @property
    def trained(self) -> float:
        """Seconds of training so far."""
        running = 0.0 if self._since is None else time.perf_counter() - self._since
        return self._trained + running

    @property
    def is_due(self) -> bool:
        """Whether the next answer is due."""
        return self.trained >= self.every * (len(self.laps) + 1)

    @property
    def is_over(self) -> bool:
        """Whether the time is spent."""
        return self.trained >= self.run.clock.seconds

    def answer(self, top: Callable[[], npt.NDArray[np.integer]], epochs: float) -> None:
        """Write the answers now, and leave the clock paused.

        Args:
            top: Returns ``(T, at least 10)`` item ids, best first.
            epochs: Trained so far, parts included.
        """
        self.pause()
        np.save(self.run.out / f"top-{len(self.laps):03}.npy", top().astype(np.int32))
        self._write({"seconds": self._trained, "epochs": epochs})

    def note(self, seconds: float, epochs: float, ndcg: float) -> None:
        """Write a lap of somebody who measures alone.

        Args:
            seconds: Of training since the lap before.
            epochs: Trained so far.
            ndcg: NDCG@10 of the validation now.
        """
        self._trained += seconds
        self._write({"seconds": self._trained, "epochs": epochs, "ndcg@10": ndcg})

    def _write(self, lap: dict[str, float]) -> None:
        self.laps.append(lap)
        (self.run.out / "figures.json").write_text(json.dumps({"laps": self.laps}), "utf-8")


class TimeIsOverError(Exception):
    """Leaves a loop that cannot be told to stop."""


@dataclass(frozen=True, eq=False)
class Run:
    """One call of a script.

    Args:
        data: What to learn from.
        clock: Not started yet.
        variant: Which of the script's models.
        out: Folder of the results.
    """

    data: Data
    clock: Clock
    variant: str
    out: Path

    def answer(self, top: npt.NDArray[np.integer], **more: Any) -> None:
        """Write the results.

        Args:
            top: ``(T, at most 100)`` item ids, best first, -1 where there is none.
            more: What else is worth knowing; plain values.
        """
        np.save(self.out / "top.npy", top.astype(np.int32))
        figures = {**self.clock.figures(), **more}
        (self.out / "figures.json").write_text(json.dumps(figures), "utf-8")

    def answer_by_vectors(self, query_vectors: Floats, item_vectors: Floats, **more: Any) -> None:
        """Write the results of ranking by the dot product, without the items of the history.

        Args:
            query_vectors: ``(T, d)``, of the test queries.
            item_vectors: ``(I, d)``; a row of NaN is an item that the peer does not know.
            more: See ``answer``.
        """
        data, offsets = self.data, self.data.offsets
        unknown = np.isnan(item_vectors).any(axis=1)
        items = np.nan_to_num(item_vectors)
        found = []
        for begin in range(0, len(query_vectors), _QUERIES_A_TIME):
            scores = query_vectors[begin : begin + _QUERIES_A_TIME] @ items.T
            scores[:, unknown] = -np.inf
            for line, query in zip(scores, data.test_queries[begin:], strict=False):
                line[data.item[offsets[query] : offsets[query + 1]]] = -np.inf
            best = np.argpartition(-scores, TOP, axis=1)[:, :TOP]
            order = np.take_along_axis(-scores, best, axis=1).argsort(axis=1, kind="stable")
            best = np.take_along_axis(best, order, axis=1)
            is_there = np.take_along_axis(scores, best, axis=1) > -np.inf
            found.append(np.where(is_there, best, -1))
        self.answer(np.concatenate(found), **more)


def begin() -> Run:
    """Bind the process to one core and return what its arguments say."""
    parser = ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--variant", default="")
    given = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    with np.load(given.data) as arrays:
        data = Data(**arrays)
    return Run(data, Clock(given.seconds), given.variant, given.out)
