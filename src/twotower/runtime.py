"""The machine: device, threads, seeds."""

from typing import Literal

import numpy as np
import torch

from twotower.errors import ConfigError

Device = Literal["auto", "cpu", "cuda", "mps"]


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


def torch_generator(*entropy: int) -> torch.Generator:
    """Return a CPU generator seeded by ``entropy``: equal numbers give equal draws."""
    seed = np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(seed >> np.uint64(1)))
