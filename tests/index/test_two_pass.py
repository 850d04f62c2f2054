"""Search in two passes: exact whatever the vectors are. All else is in ``contracts/test_indexes``."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from twotower.histories import Histories
from twotower.index import two_pass
from twotower.index.base import Found
from twotower.index.exact import ExactIndex
from twotower.index.two_pass import TwoPassIndex, exact_index

NUM_ROWS, DIM, K = 700, 12, 20


def normal(seed: int, lines: int = NUM_ROWS) -> Tensor:
    return torch.randn((lines, DIM), generator=torch.Generator().manual_seed(seed))


def clustered() -> Tensor:
    centres = normal(3, 9)
    return centres[torch.arange(NUM_ROWS) % 9] + normal(4) * 0.01


SPREADS: dict[str, Callable[[], Tensor]] = {
    "normal": lambda: normal(0),
    "clusters of near copies": clustered,
    "uneven lengths": lambda: normal(0) * torch.exp(2 * normal(1)[:, :1]),
    "a few very long ones": lambda: (
        torch.where(torch.arange(NUM_ROWS)[:, None] % 100 == 0, 1e4, 1.0) * normal(0)
    ),
    "one column rules": lambda: normal(0) * torch.tensor([1e3] + [1e-3] * (DIM - 1)),
    "mostly nothing": lambda: normal(0) * (torch.arange(NUM_ROWS)[:, None] % 50 == 0),
    "tiny": lambda: normal(0) * 1e-30,
    "next to nothing": lambda: normal(0) * 1e-42,
    "large": lambda: normal(0) * 1e15,
    "all alike": lambda: torch.ones(NUM_ROWS, DIM),
    "all below zero": lambda: -normal(0).abs(),
}


def is_right(found: Found, queries: Tensor, items: Tensor, allowed: npt.NDArray[np.bool_]) -> None:
    """Scores are those of the rows, and no allowed row that is left out has a larger one."""
    exact = (queries.double() @ items.double().T).numpy()
    sizes = (queries.double().norm(dim=1)[:, None] * items.double().norm(dim=1)).numpy()
    for line, (rows, scores) in enumerate(zip(found.item_rows, found.scores, strict=True)):
        assert len(set(rows.tolist())) == len(rows)
        assert allowed[rows].all()
        near = 1e-5 * sizes[line]
        assert (np.abs(scores - exact[line, rows]) <= near[rows] + 1e-43).all()
        others = allowed.copy()
        others[rows] = False
        assert (exact[line, others] <= scores.min() + near[others] + near[rows].max() + 1e-43).all()


@pytest.mark.parametrize("spread", SPREADS)
def test_no_better_item_is_left_out(spread: str) -> None:
    items, queries = SPREADS[spread](), normal(9, 30)
    queries[0] = 0.0
    allowed = np.ones(NUM_ROWS, bool)
    allowed[:2] = False
    index = TwoPassIndex(items, reserved_rows=2)
    is_right(index.search(queries, K), queries, items, allowed)
    allowed[torch.randperm(NUM_ROWS)[:300].numpy()] = False
    is_right(index.search(queries, K, allowed=allowed), queries, items, allowed)


def test_few_items_are_scored_a_second_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound is not so wide that all are in doubt: the way of many would be taken."""
    items, queries = normal(0, 20_000), normal(9, 8)
    expected = ExactIndex(items, reserved_rows=2).search(queries, 10)
    monkeypatch.setattr(two_pass, "_MOST_DOUBTS", 0)
    monkeypatch.setattr(ExactIndex, "_search_all", None)
    found = TwoPassIndex(items, reserved_rows=2).search(queries, 10)
    assert np.array_equal(found.item_rows, expected.item_rows)
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-5)


def test_where_all_are_in_doubt_all_are_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(two_pass, "_MOST_DOUBTS", 100)
    items = torch.ones(NUM_ROWS, DIM)
    exclude = Histories.of([np.array([2, 5], np.int32)])
    found = TwoPassIndex(items, reserved_rows=2).search(torch.ones(1, DIM), 4, exclude=exclude)
    assert found.item_rows.tolist() == [[3, 4, 6, 7]]


@pytest.mark.parametrize("at_once", [1, NUM_ROWS, 3 * NUM_ROWS, 10**6])
def test_where_a_chunk_ends_does_not_matter(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    items, queries = normal(0), normal(9, 7)
    exclude = Histories.of([np.arange(2, 2 + 3 * n, dtype=np.int32) for n in range(7)])
    index = TwoPassIndex(items, reserved_rows=2)
    expected = index.search(queries, 6, exclude=exclude)
    monkeypatch.setattr(two_pass, "_CHUNK_PRODUCTS", at_once)
    found = index.search(queries, 6, exclude=exclude)
    assert np.array_equal(found.item_rows, expected.item_rows)
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-6)


def test_it_is_chosen_for_large_catalogues_where_bytes_are_multiplied_fast(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(two_pass, "_FASTER_FROM", NUM_ROWS * DIM)
    for is_fast in (True, False):
        monkeypatch.setattr(two_pass, "multiplies_bytes", lambda is_fast=is_fast: is_fast)
        assert isinstance(exact_index(normal(0), reserved_rows=2), TwoPassIndex) == is_fast
    monkeypatch.setattr(two_pass, "multiplies_bytes", lambda: True)
    assert type(exact_index(normal(0)[:-1], reserved_rows=2)) is ExactIndex


def test_products_that_are_no_numbers_leave_it_to_one_pass() -> None:
    items = normal(0) * 1e-25
    queries = normal(9, 4) * 1e-25
    exclude = Histories.of([np.array([2, 3], np.int32)] * 4)
    found = TwoPassIndex(items, reserved_rows=2).search(queries, 5, exclude=exclude)
    expected = ExactIndex(items, reserved_rows=2).search(queries, 5, exclude=exclude)
    assert np.array_equal(found.item_rows, expected.item_rows)
    assert not np.isin(found.item_rows, [0, 1, 2, 3]).any()


@pytest.fixture
def asked_anew() -> Iterator[None]:
    """What is found out once a process is found out again, before and after."""
    two_pass.multiplies_bytes.cache_clear()
    yield
    two_pass.multiplies_bytes.cache_clear()


@pytest.mark.usefixtures("asked_anew")
@pytest.mark.parametrize("features", [set(), {"avx2", "fma"}, {"avx512f", "avx512bw"}, {"asimd"}])
def test_a_processor_without_such_instructions_is_not_tried(
    monkeypatch: pytest.MonkeyPatch, features: set[str]
) -> None:
    monkeypatch.setattr(two_pass, "cpu_features", lambda: frozenset(features))
    monkeypatch.setattr(two_pass, "byte_products", None)
    assert not two_pass.multiplies_bytes()


@pytest.mark.usefixtures("asked_anew")
def test_no_clock_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products that are slow today, as on a busy machine, are taken all the same."""

    def slow(left: Tensor, right: Tensor) -> Tensor:
        time.sleep(0.01)
        return left.int() @ right.int().T

    monkeypatch.setattr(two_pass, "cpu_features", lambda: frozenset({"avx512_vnni"}))
    monkeypatch.setattr(two_pass, "byte_products", slow)
    assert two_pass.multiplies_bytes()


@pytest.mark.usefixtures("asked_anew")
@pytest.mark.parametrize("wrong", ["absent", "another form", "of other arguments"])
def test_a_torch_whose_private_product_has_changed_takes_one_pass(
    monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    monkeypatch.setattr(two_pass, "cpu_features", lambda: frozenset({"avx512_vnni"}))
    if wrong == "absent":
        monkeypatch.delattr(torch, "_int_mm")
    elif wrong == "another form":
        monkeypatch.setattr(torch, "_int_mm", lambda *_: None)
    else:
        monkeypatch.setattr(torch, "_int_mm", lambda _: None)
    with pytest.warns(UserWarning, match="Exact search takes one pass over the items"):
        assert not two_pass.multiplies_bytes()
    assert not two_pass.multiplies_bytes()  # without a second warning
    monkeypatch.setattr(two_pass, "_FASTER_FROM", 1)
    assert type(exact_index(normal(0), reserved_rows=2)) is ExactIndex


@pytest.mark.usefixtures("asked_anew")
def test_products_of_another_type_are_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(two_pass, "cpu_features", lambda: frozenset({"avx512_vnni"}))
    monkeypatch.setattr(two_pass, "byte_products", lambda a, b: a.long() @ b.long().T)
    assert not two_pass.multiplies_bytes()


ASK = "from twotower.index.two_pass import multiplies_bytes; print(multiplies_bytes())"


@pytest.mark.parametrize("cores", ["AVX512_CORE", "AVX2"])
def test_a_processor_that_multiplies_bytes_wrongly_is_found_out(cores: str) -> None:
    """Without VNNI oneDNN adds pairs in 16 bits, and cuts them; elsewhere the setting changes nothing."""
    code = (
        "import torch; b = torch.full((1, 64), 127, dtype=torch.int8); "
        "print(int(torch._int_mm(b, b.T)) == 64 * 127 * 127); " + ASK
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "ONEDNN_MAX_CPU_ISA": cores},
        capture_output=True,
        text=True,
        timeout=3_000,
        check=True,
    )
    is_right, is_chosen = done.stdout.split()
    assert (is_right, is_chosen) != ("False", "True")
