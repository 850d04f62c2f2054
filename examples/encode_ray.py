"""The shards of a table of items on a Ray cluster, whose machines share the folders.

Run it with `pip install ray` and `python examples/encode_ray.py model items vectors`. If a machine fails,
Ray starts its task elsewhere, and the task goes on after the last complete file. CI does not run this.
"""

import sys

import ray

from twotower.exports import encode_table

SHARDS = 16


def encode(number: int, model: str, items: str, out: str) -> int:
    """Encode one shard; return its number of items."""
    return encode_table(model, out, items=items, shard=f"{number}/{SHARDS}").num_items


if __name__ == "__main__":
    task = ray.remote(num_cpus=1)(encode)
    shards = [task.remote(number, *sys.argv[1:4]) for number in range(1, SHARDS + 1)]
    print(f"{sum(ray.get(shards)):,} items")
