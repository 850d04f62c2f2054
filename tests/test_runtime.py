import math
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from twotower.errors import ConfigError
from twotower.runtime import (
    available_bytes,
    choose_device,
    choose_precision,
    choose_threads,
    cpu_features,
    left_in_container,
    torch_generator,
)


class TestThreads:
    def test_what_is_stated_wins(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OMP_NUM_THREADS", "3")
        assert choose_threads(7) == 7
        assert choose_threads() == 3

    @pytest.mark.parametrize(
        ("cores", "of_parts", "of_operations"), [(1, 1, 1), (2, 2, 1), (8, 8, 7)]
    )
    def test_all_cores_compute_parts_and_one_fewer_an_operation(
        self, monkeypatch: pytest.MonkeyPatch, cores: int, of_parts: int, of_operations: int
    ) -> None:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
        assert choose_threads() == of_parts
        assert choose_threads(of_operations=True) == of_operations


PAGES = """
import resource, sys, torch
from twotower.runtime import keeping_memory

def pages() -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        held = [torch.ones(6_000_000) for _ in range(4)]  # 96 MB
        del held
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

free = pages()
with keeping_memory():
    pages()
    kept = pages()
after = pages()
print(free, kept, after)
"""


class TestKeepingMemory:
    @pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
    def test_pages_are_fetched_once(self) -> None:
        told = subprocess.run(
            [sys.executable, "-c", PAGES], capture_output=True, text=True, check=True
        )
        free, kept, after = map(int, told.stdout.split())
        assert kept < free / 100
        assert after > free / 2  # as before


class TestDevice:
    def test_cpu(self) -> None:
        assert choose_device("cpu") == torch.device("cpu")

    def test_unknown(self) -> None:
        with pytest.raises(ConfigError, match="device must be auto, cpu, cuda or mps, got 'tpu'"):
            choose_device("tpu")


class TestPrecision:
    def test_what_is_stated_wins(self) -> None:
        assert choose_precision("float32", torch.device("cpu")) == torch.float32
        assert choose_precision("bfloat16", torch.device("cpu")) == torch.bfloat16

    def test_auto_follows_the_processor(self) -> None:
        info = Path("/proc/cpuinfo")
        if not info.exists() or "USE_MKLDNN=ON" not in torch.__config__.show():
            pytest.skip("needs Linux and a PyTorch with oneDNN")
        expected = torch.bfloat16 if "avx512_bf16" in info.read_text() else torch.float32
        assert choose_precision("auto", torch.device("cpu")) == expected

    def test_auto_reads_no_clock(self, monkeypatch: pytest.MonkeyPatch) -> None:
        # A busy machine makes any product look slow; the precision, and so the weights, must not move.
        def refuse() -> float:
            raise AssertionError("the precision depends on a clock")

        for clock in ("perf_counter", "monotonic", "time", "process_time"):
            monkeypatch.setattr(time, clock, refuse)
        first = choose_precision("auto", torch.device("cpu"))
        assert choose_precision("auto", torch.device("cpu")) == first

    def test_unknown(self) -> None:
        with pytest.raises(ConfigError, match=r"precision must be auto, float32 or .* got 'fp8'"):
            choose_precision("fp8", torch.device("cpu"))


class TestCpuFeatures:
    @pytest.mark.parametrize(
        ("text", "found"),
        [
            ("processor\t: 0\nflags\t\t: fpu avx2 avx512_bf16\n\nflags\t: fpu\n", "avx512_bf16"),
            ("processor\t: 0\nFeatures\t: fp asimd bf16\n", "bf16"),
        ],
        ids=["x86", "arm"],
    )
    def test_of_linux(self, tmp_path: Path, text: str, found: str) -> None:
        info = tmp_path / "cpuinfo"
        info.write_text(text)
        assert found in cpu_features(info)
        assert len(cpu_features(info)) == 3

    def test_elsewhere(self, tmp_path: Path) -> None:
        expected = torch.backends.cpu.get_cpu_capability().lower()
        assert cpu_features(tmp_path / "none") == {expected}


class TestGenerator:
    def test_equal_numbers_give_equal_draws(self) -> None:
        first, again, other = (
            torch.rand(4, generator=torch_generator(*entropy))
            for entropy in ((1, 2), (1, 2), (2, 1))
        )
        assert torch.equal(first, again)
        assert not torch.equal(first, other)


def test_available_memory_is_plausible() -> None:
    assert 2**26 < available_bytes() < 2**50


def test_a_container_may_have_less_than_the_machine(tmp_path: Path) -> None:
    assert left_in_container(tmp_path) == math.inf
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("1000\n")
    assert left_in_container(tmp_path) == math.inf
    (tmp_path / "memory.max").write_text("5000\n")
    assert left_in_container(tmp_path) == 4000
