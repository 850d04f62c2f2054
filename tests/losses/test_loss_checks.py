import math

import pytest
import torch
from torch import Tensor

from twotower.losses.base import check_all_liked, check_shapes, check_temperature


@pytest.mark.parametrize("temperature", [0.05, 3, torch.tensor(0.1), torch.tensor([-1.0])])
def test_a_divisor_or_a_learnt_one_passes(temperature: float | Tensor) -> None:
    check_temperature(temperature)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
def test_a_number_that_cannot_divide_is_refused(temperature: float) -> None:
    message = f"temperature must be above 0 and finite, got {temperature}"
    with pytest.raises(ValueError, match=message):
        check_temperature(temperature)


def test_two_temperatures_are_refused() -> None:
    with pytest.raises(ValueError, match="temperature must be one value, got 2"):
        check_temperature(torch.ones(2))


def test_shapes_that_fit_pass() -> None:
    queries, items, positions = torch.ones(2, 3), torch.ones(5, 3), torch.tensor([0, 4])
    check_shapes(queries, items, positions)
    check_shapes(queries, items, positions, hidden=torch.zeros(2, 0).long(), weights=None)
    check_shapes(queries, items, positions, hidden=None, weights=torch.ones(2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query_vectors": torch.ones(0, 3)}, "at least 1 query, got 0; skip empty batches"),
        ({"item_vectors": torch.ones(5, 4)}, "equally wide, got 3 and 4"),
        ({"positions": torch.tensor([0])}, r"positions must be \(2,\), got \(1,\)"),
        ({"weights": torch.ones(2, 1)}, r"weights must be \(2,\), got \(2, 1\)"),
        ({"hidden": torch.tensor([0, 1])}, r"hidden must be \(2, H\) int64 .*, got \(2,\) torch"),
        ({"hidden": torch.zeros(3, 1).long()}, r"hidden must be \(2, H\) int64 .*, got \(3, 1\)"),
        ({"hidden": torch.zeros(2, 5)}, r"hidden must be .*, got \(2, 5\) torch.float32"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(change: dict[str, Tensor], message: str) -> None:
    fitting = {
        "query_vectors": torch.ones(2, 3),
        "item_vectors": torch.ones(5, 3),
        "positions": torch.tensor([0, 4]),
    }
    with pytest.raises(ValueError, match=message):
        check_shapes(**(fitting | change))


@pytest.mark.parametrize("labels", [None, torch.ones(3), torch.tensor([1, 1])])
def test_all_that_is_liked_passes(labels: Tensor | None) -> None:
    check_all_liked(labels, "some")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([1.0, 0.0, 0.0], "labels must all be 1 for the some loss, got 2 of 0; .*BCELoss"),
        ([1.0, 0.5, 1.0], r"labels must all be 1 for the some loss, got 1 of 0\.5"),
    ],
)
def test_what_is_not_liked_is_refused(labels: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_all_liked(torch.tensor(labels), "some")
