import os
from pathlib import Path

import pytest
import torch

from twotower import runtime
from twotower.errors import ConfigError
from twotower.runtime import choose_device, choose_precision, choose_threads, torch_generator


class TestThreads:
    def test_what_is_stated_wins(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OMP_NUM_THREADS", "3")
        assert choose_threads(7) == 7
        assert choose_threads() == 3

    @pytest.mark.parametrize(("cores", "threads"), [(1, 1), (2, 1), (8, 7)])
    def test_one_core_is_left_alone(
        self, monkeypatch: pytest.MonkeyPatch, cores: int, threads: int
    ) -> None:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
        assert choose_threads() == threads


class TestDevice:
    def test_cpu(self) -> None:
        assert choose_device("cpu") == torch.device("cpu")

    def test_unknown(self) -> None:
        with pytest.raises(ConfigError, match="device must be auto, cpu, cuda or mps, got 'tpu'"):
            choose_device("tpu")


class TestPrecision:
    def test_what_is_stated_is_not_measured(self) -> None:
        assert choose_precision("float32", torch.device("cpu")) == torch.float32
        assert choose_precision("bfloat16", torch.device("cpu")) == torch.bfloat16

    def test_auto_does_not_take_bfloat16_where_there_are_no_units_for_it(self) -> None:
        info = Path("/proc/cpuinfo")
        if not info.exists() or "bf16" in info.read_text():
            pytest.skip("only on processors that are known to have none")
        assert choose_precision("auto", torch.device("cpu")) == torch.float32

    def test_auto_measures_once(self) -> None:
        first = choose_precision("auto", torch.device("cpu"))
        measured = runtime._bfloat16_gain.cache_info().misses
        assert choose_precision("auto", torch.device("cpu")) == first
        assert runtime._bfloat16_gain.cache_info().misses == measured
        assert runtime._bfloat16_gain(torch.device("cpu")) > 0

    def test_unknown(self) -> None:
        with pytest.raises(ConfigError, match=r"precision must be auto, float32 or .* got 'fp8'"):
            choose_precision("fp8", torch.device("cpu"))


class TestGenerator:
    def test_equal_numbers_give_equal_draws(self) -> None:
        first, again, other = (
            torch.rand(4, generator=torch_generator(*entropy))
            for entropy in ((1, 2), (1, 2), (2, 1))
        )
        assert torch.equal(first, again)
        assert not torch.equal(first, other)
