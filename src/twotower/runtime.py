"""The machine: device, threads, seeds."""

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


def torch_generator(*entropy: int, device: torch.device | None = None) -> torch.Generator:
    """Return a generator seeded by ``entropy``: equal numbers give equal draws on one device."""
    seed = np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]
    return torch.Generator(device or torch.device("cpu")).manual_seed(int(seed >> np.uint64(1)))
