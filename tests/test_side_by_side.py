"""Functions that are called side by side."""

import threading

import pytest

from twotower.workers import beside, workers


@pytest.mark.parametrize("num", [1, 2])
def test_what_each_function_returns_is_in_its_place(num: int) -> None:
    with workers(num):
        assert beside(lambda: 1, lambda: "two") == (1, "two")


def test_two_workers_call_both_at_once() -> None:
    both_run = threading.Barrier(2, timeout=60)  # one after the other would never meet
    with workers(2):
        assert sorted(beside(both_run.wait, both_run.wait)) == [0, 1]


def test_an_error_of_either_is_raised() -> None:
    def fail() -> None:
        raise KeyError("x")

    with workers(2):
        for calls in ((fail, lambda: 1), (lambda: 1, fail)):
            with pytest.raises(KeyError):
                beside(*calls)
