"""The machine: device, threads, seeds."""

import os

import numpy as np
import torch

from twotower.errors import ConfigError


def choose_device(device: str = "auto") -> torch.device:
    """Return the device to compute on; ``auto`` takes CUDA, then MPS, then the CPU.

    Raises:
        ConfigError: The device is not one of ours, or this machine does not have it.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    kind = device.split(":")[0]
    if kind not in ("cpu", "cuda", "mps"):
        raise ConfigError(f"device must be auto, cpu, cuda or mps, got {device!r}.")
    has_it = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }[kind]
    if not has_it:
        raise ConfigError(f"device must be on this machine, got {device!r}; use 'auto' or 'cpu'.")
    return torch.device(device)


def choose_threads(threads: int | None = None) -> int:
    """Return the number of CPU threads to train with.

    Not stated, it is what ``OMP_NUM_THREADS`` says, else one fewer than there are cores, and at least
    one: threads wait for each other many times a step, so one that must share its core with another
    program slows all of them down, tenfold and more (docs/decisions/0008).
    """
    if threads is not None:
        return threads
    if os.environ.get("OMP_NUM_THREADS", "").isdigit():
        return int(os.environ["OMP_NUM_THREADS"])
    own = getattr(
        os, "sched_getaffinity", None
    )  # the cores that a container was given; not on all systems
    cores = len(own(0)) if own is not None else os.cpu_count() or 1
    return max(1, cores - 1)


def torch_generator(*entropy: int, device: torch.device | None = None) -> torch.Generator:
    """Return a generator seeded by ``entropy``: equal numbers give equal draws on one device."""
    seed = np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]
    return torch.Generator(device or torch.device("cpu")).manual_seed(int(seed >> np.uint64(1)))
