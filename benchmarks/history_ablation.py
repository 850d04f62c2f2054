"""What each part of the transformer gives: it is left out, or changed, and trained again.

    python benchmarks/history_ablation.py [movielens-1m beauty ...] [--parts no-layer two-heads ...]
        [--seeds 1] [--seconds 300] [--show] [--json]

``towers.history = "transformer"`` and everything else ``auto``, in each cell a training of at most
``--seconds`` of CPU time on one thread. The figures are NDCG@10 on **validation**, by which parts are
chosen, and the difference to the whole block, paired by query, of the means over the seeds, with its 95 %
interval. Beauty, Tmall and the Last.fm sequences have an order but no times, so what is read of times is
measured on MovieLens alone.

A finished training is kept under ``benchmarks/results/history_ablation.jsonl.gz``, a value for each query.
"""

import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, cast
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import public_sets
from common import RESULTS, cached, is_kept, report
from twotower import Config
from twotower.evaluation.intervals import difference_intervals
from twotower.evaluation.ranking import evaluate
from twotower.features.encoders import INIT_STD
from twotower.towers.history import DecayedMean
from twotower.towers.layers import NUM_GAPS, gap_rows
from twotower.towers.transformer import Transformer
from twotower.training.callbacks import Callback
from twotower.training.choices import resolve
from twotower.training.task import Task
from twotower.training.trainer import Trainer

SETS = ("movielens-1m", "ml-latest-small", "movielens-100k", "tmall", "beauty", "lastfm-sequences")
METRIC = "ndcg@10"
MOST_POSITIONS = 512
WHOLE = "whole"


Change = Callable[[Transformer], None]


def no_place(encoder: Transformer) -> None:
    """No bias by how many events lie between."""
    for block in encoder.blocks:
        cast("Any", block).by_place.requires_grad_(False)


def no_pools(encoder: Transformer) -> None:
    """Without the pooled history's means, which start and stay at zero."""
    for weights in encoder.pooled.parameters():
        nn.init.zeros_(weights)
        weights.requires_grad_(False)


def no_layer(encoder: Transformer) -> None:
    """Attention alone: what the gated layers add starts and stays at zero."""
    for block in encoder.blocks:
        nn.init.zeros_(cast("Any", block).down.weight)
        for part in (cast("Any", block).gate_up, cast("Any", block).down):
            part.weight.requires_grad_(False)


def layer_norms(encoder: Transformer) -> None:
    """Norms that take the mean away, with a bias."""
    dim = len(encoder.start)
    cast("Any", encoder).norm = nn.LayerNorm(dim)
    for block in encoder.blocks:
        cast("Any", block).norm_attention = nn.LayerNorm(dim)
        cast("Any", block).norm_gated = nn.LayerNorm(dim)


def zero_start(encoder: Transformer) -> None:
    """What a layer adds starts at zero, not as torch has it."""
    for block in encoder.blocks:
        nn.init.zeros_(cast("Any", block).out.weight)
        nn.init.zeros_(cast("Any", block).down.weight)


class PlainLayer(nn.Module):
    """Gives a gate and what it lets through, whose product is ``relu`` of one map.

    As many weights as the gated layer's, 3 ``dim`` wide for 2.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.map = nn.Linear(dim, 3 * dim, bias=False)

    def forward(self, vectors: Tensor) -> Tensor:
        """Map ``(..., dim)`` to ``(..., 6 dim)``; silu of 30 is 30."""
        hidden = F.relu(self.map(vectors))
        return torch.cat([torch.full_like(hidden, 30.0), hidden / 30.0], dim=-1)


def plain_layer(encoder: Transformer) -> None:
    """ReLU in place of the gate, with as many weights."""
    dim = len(encoder.start)
    for block in encoder.blocks:
        cast("Any", block).gate_up = PlainLayer(dim)
        cast("Any", block).down = nn.Linear(3 * dim, dim, bias=False)


class WithFilter(Transformer):
    """A causal kin of BSARec's filter: a position's slow part against its fast one, weighed by channel.

    The published filter (Shin et al., AAAI 2024, section 4) takes the Fourier transform of the whole
    window, where a position sees later ones. Here the slow part is a decayed mean of what came before.
    """

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__(dim, dropout)
        self.slow = DecayedMean(5.0)
        self.beta = nn.Parameter(torch.zeros(dim))

    def _read(self, item_vectors: Tensor, mask: Tensor, *, last_only: bool) -> Tensor:
        fast = item_vectors - self.slow(item_vectors, mask)
        read = item_vectors + self.beta * fast
        return super()._read(read, mask, last_only=last_only)


class WithGapBias(Transformer):
    """Adds to the attention a bias by the time between any two events, as HSTU does.

    The bias is each block's own, whose ``_bias`` is taken over for the length of a pass.
    """

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__(dim, dropout)
        self.gaps: Tensor | None = None
        self.by_gap = nn.ParameterList(torch.zeros(NUM_GAPS + 1, 1) for _ in self.blocks)
        for block, table in zip(self.blocks, self.by_gap, strict=True):
            block._bias = self._with_gaps(cast("Any", block)._bias, table)

    def _with_gaps(self, plain: Callable[[Any, slice], Tensor], table: Tensor) -> Any:
        def bias(between: Any, rows: slice) -> Tensor:
            found = plain(between, rows)
            if self.gaps is None or found.shape[-1] != self.gaps.shape[-1]:
                return found
            return found + F.embedding(self.gaps[:, rows], table)[..., 0][:, None]

        return bias

    def forward(self, item_vectors: Tensor, mask: Tensor, times: Tensor | None = None) -> Tensor:
        """See ``HistoryEncoder.forward``."""
        self._look(times)
        return super().forward(item_vectors, mask, times)

    def last(self, item_vectors: Tensor, mask: Tensor, times: Tensor | None = None) -> Tensor:
        """See ``HistoryEncoder.last``."""
        self._look(times)
        return super().last(item_vectors, mask, times)

    def _look(self, times: Tensor | None) -> None:
        self.gaps = None
        if times is not None:
            moments = F.pad(times, (1, 0))
            self.gaps = gap_rows(moments[:, :, None] - moments[:, None, :]) + 1
            self.gaps[:, :, 0] = 0


class WithPositions(Transformer):
    """Learnt positions from the start of the window, in place of the bias by place."""

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__(dim, dropout)
        self.positions = nn.Embedding(MOST_POSITIONS, dim)
        nn.init.normal_(self.positions.weight, std=INIT_STD)
        no_place(self)

    def _read(self, item_vectors: Tensor, mask: Tensor, *, last_only: bool) -> Tensor:
        place = mask.cumsum(dim=1).clamp(max=MOST_POSITIONS - 1)
        vectors = item_vectors + self.positions(place)
        return super()._read(vectors, mask, last_only=last_only)


def changed(change: Change) -> Callable[[int, float], Transformer]:
    """Return a constructor of a transformer that is changed."""

    def make(dim: int, share_dropped: float) -> Transformer:
        encoder = Transformer(dim, share_dropped)
        change(encoder)
        return encoder

    return make


PARTS: dict[str, tuple[str, Callable[[int, float], Transformer]]] = {
    WHOLE: ("the whole block", Transformer),
    "no-pools": ("without the pooled means", changed(no_pools)),
    "no-since": ("without the time since the event before", Transformer),
    "no-place": ("without the bias by place", changed(no_place)),
    "no-layer": ("without the gated layers", changed(no_layer)),
    "plain-layer": ("ReLU for the gate", changed(plain_layer)),
    "layer-norm": ("LayerNorm for RMSNorm", changed(layer_norms)),
    "zero-start": ("the block starts at zero", changed(zero_start)),
    "one-block": ("one block", lambda dim, p: Transformer(dim, p, num_blocks=1)),
    "three-blocks": ("three blocks", lambda dim, p: Transformer(dim, p, num_blocks=3)),
    "two-heads": ("two heads", lambda dim, p: Transformer(dim, p, num_heads=2)),
    "positions": ("learnt positions for the bias by place", WithPositions),
    "filter": ("and a causal filter", WithFilter),
    "gap-bias": ("and a bias by the time between events", WithGapBias),
    "question-time": ("and the time of the question", Transformer),
}
"""Name -> how the table calls it, and what makes it."""


@cache
def task_of(name: str) -> Task:
    """Return a data set, read and split, with its features fitted."""
    data = public_sets.read(name)
    config = Config.from_dict({**data.settings, "towers": {"history": "transformer"}})
    return Task.of(
        data.interactions, items=data.items, queries=data.queries, config=config, name=name
    )


class UpTo(Callback):
    """Ends a training after the epoch in which it has taken its seconds."""

    def __init__(self, seconds: float) -> None:
        self.end = time.process_time() + seconds

    def on_epoch(self, *given: Any) -> None:  # noqa: ARG002
        """End the training as Ctrl-C does."""
        if time.process_time() > self.end:
            raise KeyboardInterrupt


def run(name: str, part: str, seed: int, seconds: float) -> dict[str, Any]:
    """Return the validation figures of one training."""
    task = task_of(name)
    settings = [f"training.seed={seed}", "training.threads=1"]
    if part == "question-time":
        settings.append("towers.question_time=on")
    config, _ = resolve(task.config.with_settings(settings), task.dataset)
    with patch("twotower.towers.build.Transformer", PARTS[part][1]):
        trainer = Trainer(task.dataset, task.sides, config)
    if part == "no-since":
        cast("Any", trainer.model.query_tower).since = None
    started = time.process_time()
    progress = trainer.fit(watcher=UpTo(seconds))
    taken = time.process_time() - started
    found = evaluate(
        trainer.scorer(),
        trainer.objectives[0].valid,
        (10,),
        num_item_rows=task.dataset.items.ids.num_rows,
        remove_seen=not task.dataset.repeats,
    )
    return {
        "epochs": progress.epoch,
        "best_epoch": progress.best_epoch,
        "seconds": taken,
        "values": found.values[METRIC].round(6).tolist(),
    }


def lines(results: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Return a line of the table for each part."""
    rows = []
    whole = results[WHOLE]
    for part, seeds in results.items():
        count = min(len(seeds), len(whole))

        def mean(runs: Sequence[Mapping[str, Any]], count: int = count) -> Any:
            return np.mean([run["values"] for run in runs[:count]], axis=0)

        row = {
            "": PARTS[part][0],
            "seeds": count,
            METRIC: f"{mean(seeds).mean():.4f}",
            "against the whole": "",
            "epochs": " ".join(str(run["epochs"]) for run in seeds),
            "s": f"{np.mean([run['seconds'] for run in seeds]):.0f}",
        }
        if part != WHOLE:
            found = difference_intervals({METRIC: mean(seeds)}, {METRIC: mean(whole)})[METRIC]
            row["against the whole"] = f"{found.value:+.4f} ({found.low:+.4f}, {found.high:+.4f})"
        rows.append(row)
    return rows


def main() -> None:
    """Train what is missing, and print."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(SETS))
    parser.add_argument("--parts", nargs="*", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--show", action="store_true", help="print what is there, train nothing")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args()
    for name in given.names:
        results: dict[str, list[dict[str, Any]]] = {}
        for part in given.parts:
            for seed in range(given.seeds):
                key = f"history_ablation/{name}-{part}-{given.seconds:.0f}s-seed{seed}"
                if given.show and not is_kept(key):
                    continue
                found = cached(
                    key,
                    lambda name=name, part=part, seed=seed: run(name, part, seed, given.seconds),  # type: ignore[misc]
                    again=False,
                    folder=RESULTS,
                )
                results.setdefault(part, []).append(found)
        if results:
            report(name, lines(results), as_json=given.json, notes=[])


if __name__ == "__main__":
    main()
