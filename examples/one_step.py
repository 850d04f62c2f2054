"""One training step by hand: from a table to the first gradient, with the shapes of a real batch.

Run it with `python examples/one_step.py`. It prints the table of docs/one-training-step.md.
"""

from collections.abc import Iterator

import torch

from twotower import Config
from twotower.data.batches import PairBatch
from twotower.data.preparation import prepare
from twotower.data.sources.synthetic import World, WorldConfig
from twotower.data.splits import split
from twotower.training.choices import resolve
from twotower.training.task import Task
from twotower.training.trainer import Trainer

CONFIG = Config.from_dict(
    {
        "training": {"batch_size": 128, "precision": "float32"},
        "towers": {"dim": 32, "dropout": 0.0, "id_dropout": 0.0},
    }
)
WORLD = WorldConfig(
    num_items=60, num_clusters=6, num_personas=3, num_queries=80, events_per_query=12, seed=2
)


def walk() -> Iterator[tuple[str, str, dict[str, object]]]:
    """Yield for each file that the data passes through its call, and what comes out of it."""
    tables = World(WORLD).generate()
    yield "the table", "", {"interactions": tables.interactions, "items": tables.items}

    prepared = prepare(tables.interactions, items=tables.items, queries=tables.queries)
    events = prepared.dataset.interactions
    yield (
        "data/preparation.py",
        "prepare",
        {"query_rows": events.query_rows, "item_rows": events.item_rows, "offsets": events.offsets},
    )

    yield "data/splits.py", "split", {"parts": split(prepared.dataset, CONFIG.split).parts}

    # The same once more, and the features, fitted on the training part.
    task = Task.of(tables.interactions, items=tables.items, queries=tables.queries, config=CONFIG)
    sides = {"query features": task.sides.query, "item features": task.sides.item}
    kinds = {name: [t.feature.name for t in side.transforms] for name, side in sides.items()}
    yield "training/task.py", "Task.of", {**kinds}

    config, _ = resolve(task.config, task.dataset)  # every `auto`
    trainer = Trainer(task.dataset, task.sides, config)
    arrays: dict[str, object] = {
        f"query {name}": values for name, values in trainer.query_arrays.items()
    }
    arrays |= {f"item {name}": values for name, values in trainer.item_features.items()}
    yield "training/trainer.py", "Trainer", arrays

    objective = trainer.objectives[0]  # there is one a view
    batch = next(objective.batches.epoch(0))
    assert isinstance(batch, PairBatch)
    yield (
        "data/batches.py",
        "PairBatches.epoch",
        {
            "query_rows": batch.query_rows,
            "item_rows": batch.item_rows,
            "history_rows": batch.history_rows,
        },
    )

    reading = objective.reader.read(batch, torch.Generator().manual_seed(0))
    yield (
        "training/reading.py",
        "Reader.read",
        {
            "candidates.item_rows": reading.candidates.item_rows,
            "places": reading.places,
            "known": reading.known,
        },
    )

    everything = slice(None)
    inputs = reading.inputs(everything)
    items = reading.items(inputs, everything)
    queries = reading.queries(inputs, everything)
    yield (
        "towers/model.py",
        "TwoTower",
        {"item inputs": inputs, "item vectors": items, "query vectors": queries},
    )

    loss = objective.loss_of(batch, reading, queries, items)
    loss.backward()  # type: ignore[no-untyped-call]
    name, ids = next(n for n in trainer.model.named_parameters() if "item_tower" in n[0])
    yield "losses/softmax.py", "SoftmaxLoss", {"loss": loss, f"gradient of {name}": ids.grad}


def said(value: object) -> str:
    """Return type and shape of an array, a tensor or a table; a list as it is."""
    shape = getattr(value, "shape", None)
    if shape is None:
        return ", ".join(value) if isinstance(value, list) else "none"
    sizes = ", ".join(f"{size:,}" for size in shape) + ("," if len(shape) == 1 else "")
    kind = str(getattr(value, "dtype", "rows and columns")).removeprefix("torch.")
    return f"{kind} ({sizes})" if len(shape) else f"{kind} scalar"


def main() -> None:
    """Print the table."""
    print("| | file | call | what comes out |\n|---|---|---|---|")
    for place, (file, call, found) in enumerate(walk()):
        out = "<br>".join(f"{name}: {said(value)}" for name, value in found.items())
        code = f"[`{file}`](../src/twotower/{file}) | `{call}`" if place else f"{file} | "
        print(f"| {place or ''} | {code} | {out} |")


if __name__ == "__main__":
    main()
