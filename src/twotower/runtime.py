"""The machine: device, threads, seeds, and where things are kept."""

import ctypes
import math
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from twotower.errors import ConfigError
from twotower.processes.started import is_started_by_torchrun

BFLOAT16_FEATURE = "avx512_bf16"
"""The instruction set with which a CPU multiplies bfloat16; processors with AMX units have it, too."""


_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Names of settings of glibc's ``mallopt``."""
_LARGEST_KEPT, _MOST_KEPT = 2**25, 2**30
"""Bytes that are kept when they are freed: of a block, the most that glibc takes; and of all blocks."""


def choose_device(device: str = "auto") -> torch.device:
    """Return the device to compute on; ``auto`` takes CUDA, then MPS, then the CPU.

    Raises:
        ConfigError: The device is not one of ours, or this machine does not have it.
    """
    is_here = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if device == "auto":
        device = next(kind for kind, here in is_here.items() if here)
    kind = device.split(":")[0]
    if kind not in is_here:
        raise ConfigError(f"device must be auto, cpu, cuda or mps, got {device!r}.")
    if not is_here[kind]:
        raise ConfigError(f"device must be on this machine, got {device!r}; use 'auto' or 'cpu'.")
    if device == "cuda" and is_started_by_torchrun():  # one GPU each
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    return torch.device(device)


def choose_threads(threads: int | None = None, *, of_operations: bool = False) -> int:
    """Return the number of CPU threads to train with.

    Not stated, it is what ``OMP_NUM_THREADS`` says, else as many as there are cores.

    Args:
        threads: What is stated.
        of_operations: Whether they compute each operation together, and not parts of a step side by side.
            Not stated, they are one fewer than there are cores, and at least one: they wait for each
            other many times a step, so one that must share its core with another program slows all of
            them down, tenfold and more (docs/decisions/0008).
    """
    if threads is not None:
        return threads
    if os.environ.get("OMP_NUM_THREADS", "").isdigit():
        return int(os.environ["OMP_NUM_THREADS"])
    # The cores that a container was given, on systems that tell.
    own = getattr(os, "sched_getaffinity", None)
    cores = len(own(0)) if own is not None else os.cpu_count() or 1
    return max(1, cores - of_operations)


def choose_precision(precision: str, device: torch.device) -> torch.dtype:
    """Return the type of the factors of a loss's products: float32 or bfloat16.

    ``auto`` is bfloat16 where the hardware has units that multiply it: one machine always gets the same
    answer, whatever else it does, so one seed always gives the same weights. Elsewhere bfloat16 is
    slower than float32.

    Raises:
        ConfigError: The precision is not auto, float32 or bfloat16.
    """
    if precision not in ("auto", "float32", "bfloat16"):
        raise ConfigError(f"precision must be auto, float32 or bfloat16, got {precision!r}.")
    if precision == "auto":
        precision = "bfloat16" if _multiplies_bfloat16(device) else "float32"
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


def _multiplies_bfloat16(device: torch.device) -> bool:
    """Return whether bfloat16 is much faster than float32 on a device (docs/decisions/0031)."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # Without oneDNN, PyTorch multiplies bfloat16 number by number.
    return (
        device.type == "cpu"
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and BFLOAT16_FEATURE in cpu_features()
    )


@cache
def cpu_features(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Return the instruction sets of this machine's processor, such as ``avx512_bf16``.

    A virtual machine may hide some that the processor has. On systems other than Linux the only name is
    the instruction set that PyTorch's own kernels use, such as ``avx2``.

    Args:
        cpuinfo: The file in which Linux lists them.
    """
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):  # of x86, of ARM
            return frozenset(value.split())
    return frozenset({torch.backends.cpu.get_cpu_capability().lower()})


def memory_of(device: torch.device) -> int | None:
    """Return the bytes of memory that a device has, or that a container may use; None where unknown."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not on Windows
        return None
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
    except OSError:
        return total
    return min(total, int(limit)) if limit.isdigit() else total


def available_bytes() -> float:
    """Return the memory that is still available, on the machine and within the limit of a container.

    On systems other than Linux it is all the memory of the machine.
    """
    found = math.inf
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        told = re.search(r"^MemAvailable: *(\d+)", meminfo.read_text("ascii"), re.MULTILINE)
        found = 1024.0 * int(told[1]) if told else found
    elif hasattr(os, "sysconf"):
        found = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return min(found, left_in_container(Path("/sys/fs/cgroup")))


def left_in_container(folder: Path) -> float:
    """Return the bytes that a control group may still allocate; infinity if it has no limit.

    Args:
        folder: The group's folder, with ``memory.max`` and ``memory.current`` (cgroup version 2).
    """
    limit, used = folder / "memory.max", folder / "memory.current"
    if not limit.exists() or not used.exists():
        return math.inf
    most = limit.read_text("ascii").strip()
    return math.inf if most == "max" else float(int(most) - int(used.read_text("ascii")))


@contextmanager
def keeping_memory() -> Iterator[None]:
    """Let this process keep the memory that it frees, for the length of a ``with`` block.

    A step frees some tens of megabytes. The C library gives them back to the system, which fills each page
    with zeros when the next step wants it: a seventh of the time of a training with pooled histories
    (docs/decisions/0061). Nothing happens where the C library is not glibc.
    """
    library: Any = ctypes.CDLL(None) if sys.platform == "linux" else None
    if not hasattr(library, "mallopt"):
        yield
        return
    # What is set stays fixed, so both are: glibc's own, which follow what is freed, end at these two.
    library.mallopt(_MMAP_THRESHOLD, _LARGEST_KEPT)
    library.mallopt(_TRIM_THRESHOLD, _MOST_KEPT)
    try:
        yield
    finally:
        library.mallopt(_TRIM_THRESHOLD, 2 * _LARGEST_KEPT)
        library.malloc_trim(0)


@contextmanager
def out_of_memory_told() -> Iterator[None]:
    """Turn an allocation that fails into an error that says which settings ask for less.

    Raises:
        ConfigError: There is too little memory.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        # PyTorch has a type for CUDA only.
        is_allocation = isinstance(error, (MemoryError, torch.OutOfMemoryError))
        if not is_allocation and "you tried to allocate" not in str(error):
            raise
        raise ConfigError(
            "training must fit into memory, got an allocation that failed; lower training.batch_size, "
            "loss.num_negatives, towers.history_length or towers.dim, or set training.encode_size."
        ) from error


def torch_generator(*entropy: int, device: torch.device | None = None) -> torch.Generator:
    """Return a generator seeded by ``entropy``: equal numbers give equal draws on one device."""
    seed = np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]
    return torch.Generator(device or torch.device("cpu")).manual_seed(int(seed >> np.uint64(1)))


@contextmanager
def own_draws(device: torch.device) -> Iterator[None]:
    """Put the global generators back afterwards: the processor's, and that of a CUDA device.

    Those of other CUDA devices are not: PyTorch would initialize each of them for that.
    """
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


def cache_folder(environ: Mapping[str, str] = os.environ, platform: str = sys.platform) -> Path:
    """Return the folder where fetched data is kept; it may not exist yet.

    Args:
        environ: ``TWOTOWER_CACHE`` names the folder; otherwise it is ``twotower`` in the place
            that the system keeps for caches (``XDG_CACHE_HOME`` on Linux, ``LOCALAPPDATA`` on
            Windows).
        platform: As ``sys.platform``.
    """
    if environ.get("TWOTOWER_CACHE"):
        return Path(environ["TWOTOWER_CACHE"]).expanduser()
    if platform == "win32":
        local = environ.get("LOCALAPPDATA")
        return (Path(local) if local else Path.home() / "AppData" / "Local") / "twotower" / "Cache"
    if platform == "darwin":
        return Path.home() / "Library" / "Caches" / "twotower"
    given = Path(environ.get("XDG_CACHE_HOME", ""))
    # The XDG specification says to ignore a relative path.
    return (given if given.is_absolute() else Path.home() / ".cache") / "twotower"
