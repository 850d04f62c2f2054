"""What each part of the transformer gives: it is left out, or changed, and trained again.

    python benchmarks/history_ablation.py [movielens-100k beauty ...] [--parts no-gate two-heads ...]
        [--seeds 1] [--seconds 300] [--show] [--json]

``towers.history = "transformer"`` and everything else ``auto``, in each cell a training of at most
``--seconds`` of CPU time on one thread. The figures are NDCG@10 on **validation**, since parts are chosen by
them, and the difference to the whole block, paired by query, of the mean over the seeds, with its 95 %
interval. Beauty and the Last.fm sequences have an order but no times, so the bias by time is measured on
MovieLens alone.

A finished training is kept under ``benchmarks/results/history_ablation``, a value for each query.
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
from common import RESULTS, cached, report
from twotower import Config
from twotower.evaluation.evaluate import evaluate
from twotower.evaluation.intervals import difference_intervals
from twotower.towers import transformer as module
from twotower.towers.dropout import dropout
from twotower.towers.history import PooledHistory
from twotower.towers.transformer import Transformer
from twotower.training.choices import resolve
from twotower.training.task import Task
from twotower.training.trainer import Trainer

SETS = ("movielens-100k", "beauty", "lastfm-sequences")
METRIC = "ndcg@10"
WHOLE = "whole"


class NoGap(Transformer):
    """No bias by time."""

    def forward(self, item_vectors: Tensor, mask: Tensor, times: Tensor | None = None) -> Tensor:
        return super().forward(item_vectors, mask, None)

    def last(self, item_vectors: Tensor, mask: Tensor, times: Tensor | None = None) -> Tensor:
        return super().last(item_vectors, mask, None)


def no_place(encoder: Transformer) -> None:
    """No bias by how many events lie between."""
    for block in encoder.blocks:
        cast("Any", block).by_place.requires_grad_(False)


def layer_norms(encoder: Transformer) -> None:
    """Norms with a mean and a bias."""
    dim = encoder.start.shape[0]
    encoder.norm = nn.LayerNorm(dim)  # type: ignore[assignment]
    for block in encoder.blocks:
        cast("Any", block).norm_attention = nn.LayerNorm(dim)
        cast("Any", block).norm_gated = nn.LayerNorm(dim)


def usual_start(encoder: Transformer) -> None:
    """What a layer adds starts as in torch, not at zero."""
    for block in encoder.blocks:
        cast("Any", block).out.reset_parameters()
        cast("Any", block).down.reset_parameters()


class PlainLayer(nn.Module):
    """Gives ``gate, up`` whose ``silu(gate) * up`` is ``relu`` of one map: as many weights as the gate's."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.map = nn.Linear(dim, 3 * dim)

    def forward(self, vectors: Tensor) -> Tensor:
        hidden = F.relu(self.map(vectors))
        # silu(gate) * up with a gate so large that silu passes it on: gate = 30, up = hidden / 30.
        return torch.cat([torch.full_like(hidden, 30.0), hidden / 30.0], dim=-1)


def plain_layer(encoder: Transformer) -> None:
    """ReLU in place of the gate, with as many weights."""
    dim = encoder.start.shape[0]
    for block in encoder.blocks:
        cast("Any", block).gate_up = PlainLayer(dim)
        down = nn.Linear(3 * dim, dim, bias=False)
        nn.init.zeros_(down.weight)
        cast("Any", block).down = down


def no_layer(encoder: Transformer) -> None:
    """Attention alone."""
    for block in encoder.blocks:
        for part in (cast("Any", block).gate_up, cast("Any", block).down):
            part.weight.requires_grad_(False)


class WithFilter(Transformer):
    """A causal kin of BSARec's filter: each position's slow part against its fast one, learnt by channel.

    The published filter (Shin et al., AAAI 2024, section 4) takes the discrete Fourier transform of the
    whole window, so a position sees later ones. Here the slow part is a decayed mean of what came before.
    """

    def __init__(
        self, dim: int, dropout: float, *, num_blocks: int = 2, num_heads: int = 1
    ) -> None:
        super().__init__(dim, dropout, num_blocks=num_blocks, num_heads=num_heads)
        self.pool = module_pool(5.0)
        self.beta = nn.Parameter(torch.zeros(dim))

    def _read(
        self, item_vectors: Tensor, mask: Tensor, times: Tensor | None, *, last_only: bool
    ) -> Tensor:
        slow = self.pool(item_vectors, mask, times)
        return super()._read(
            item_vectors + self.beta * (item_vectors - slow), mask, times, last_only=last_only
        )


class WithPools(Transformer):
    """Adds the pooled history's means to what the blocks make of it."""

    def __init__(
        self, dim: int, dropout: float, *, num_blocks: int = 2, num_heads: int = 1
    ) -> None:
        super().__init__(dim, dropout, num_blocks=num_blocks, num_heads=num_heads)
        self.pooled = PooledHistory(dim, dropout)

    def _read(
        self, item_vectors: Tensor, mask: Tensor, times: Tensor | None, *, last_only: bool
    ) -> Tensor:
        read = super()._read(item_vectors, mask, times, last_only=last_only)
        if last_only:
            return read + self.pooled.last(item_vectors, mask, times)[:, None]
        return read + cast("Tensor", self.pooled(item_vectors, mask, times))


class WithGaps(Transformer):
    """Adds to each event a vector for the time since the one before."""

    def __init__(
        self, dim: int, dropout: float, *, num_blocks: int = 2, num_heads: int = 1
    ) -> None:
        super().__init__(dim, dropout, num_blocks=num_blocks, num_heads=num_heads)
        self.by_gap = nn.Embedding(module.NUM_GAPS, dim)
        nn.init.zeros_(self.by_gap.weight)

    def _read(
        self, item_vectors: Tensor, mask: Tensor, times: Tensor | None, *, last_only: bool
    ) -> Tensor:
        if times is not None:
            gaps = F.pad(times[:, 1:] - times[:, :-1], (1, 0)).clamp(min=0)
            rows = torch.log2(1 + gaps).long().clamp(max=module.NUM_GAPS - 1)
            item_vectors = item_vectors + self.by_gap(rows)
        return super()._read(item_vectors, mask, times, last_only=last_only)


class WithPositions(Transformer):
    """Learnt positions, counted from the last event of the window, in place of the bias by place."""

    def __init__(
        self, dim: int, dropout: float, *, num_blocks: int = 2, num_heads: int = 1
    ) -> None:
        super().__init__(dim, dropout, num_blocks=num_blocks, num_heads=num_heads)
        self.positions = nn.Embedding(512, dim)
        nn.init.normal_(self.positions.weight, std=0.02)
        no_place(self)

    def _read(
        self, item_vectors: Tensor, mask: Tensor, times: Tensor | None, *, last_only: bool
    ) -> Tensor:
        place = mask.cumsum(dim=1).clamp(max=511)
        vectors = item_vectors + self.positions(place)
        return super()._read(vectors, mask, times, last_only=last_only)


def module_pool(half_life: float) -> nn.Module:
    """Return a causal decayed mean."""
    from twotower.towers.history import DecayedMean  # noqa: PLC0415

    return DecayedMean(half_life)


def changed(change: Callable[[Transformer], None]) -> Callable[..., Transformer]:
    """Return a constructor of a transformer that is changed."""

    def make(dim: int, dropout: float, **given: Any) -> Transformer:
        encoder = Transformer(dim, dropout, **given)
        change(encoder)
        return encoder

    return make


PARTS: dict[str, tuple[str, Callable[..., Transformer]]] = {
    WHOLE: ("", Transformer),
    "no-gap": ("no bias by time", NoGap),
    "no-place": ("no bias by place", changed(no_place)),
    "no-layer": ("no gated layer", changed(no_layer)),
    "plain-layer": ("ReLU for the gate", changed(plain_layer)),
    "layer-norm": ("LayerNorm for RMSNorm", changed(layer_norms)),
    "usual-start": ("blocks do not start at zero", changed(usual_start)),
    "one-block": ("one block", lambda d, p: Transformer(d, p, num_blocks=1)),
    "three-blocks": ("three blocks", lambda d, p: Transformer(d, p, num_blocks=3)),
    "two-heads": ("two heads", lambda d, p: Transformer(d, p, num_heads=2)),
    "positions": ("learnt positions for the bias by place", WithPositions),
    "filter": ("and a causal filter", WithFilter),
    "pools": ("and the pooled history's means", WithPools),
    "gaps": ("and a vector for the time since the event before", WithGaps),
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


class UpTo:
    """Ends a training after the epoch in which it has taken its seconds."""

    def __init__(self, seconds: float) -> None:
        self.end = time.process_time() + seconds

    def on_start(self, steps_per_epoch: int, progress: Any) -> None: ...

    def on_step(self, step: int, loss: Callable[[], float], examples: int) -> None: ...

    def on_epoch(self, record: Mapping[str, Any]) -> None:
        if time.process_time() > self.end:
            raise KeyboardInterrupt

    def on_end(self) -> None: ...


def run(name: str, part: str, seed: int, seconds: float) -> dict[str, Any]:
    """Return the validation figures of one training."""
    task = task_of(name)
    settings = [f"training.seed={seed}", "training.threads=1"]
    config, _ = resolve(task.config.with_settings(settings), task.dataset)
    with patch("twotower.towers.build.Transformer", PARTS[part][1]):
        trainer = Trainer(task.dataset, task.sides, config)
    started = time.process_time()
    progress = trainer.fit(watcher=UpTo(seconds))
    taken = time.process_time() - started
    found = evaluate(
        trainer.scorer(),
        trainer.valid,
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
            "": PARTS[part][0] or "the whole block",
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
                if given.show and not (RESULTS / f"{key}.json.gz").exists():
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
