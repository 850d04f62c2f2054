import torch
from torch.nn import functional as F

from twotower.towers.layers import unit_length


def test_it_is_normalize_in_training_and_outside() -> None:
    vectors = torch.randn(9, 5, requires_grad=True)
    assert torch.equal(unit_length(vectors, training=True), F.normalize(vectors, dim=1))
    assert torch.equal(unit_length(vectors, training=False), F.normalize(vectors, dim=1))


def test_the_gradient_is_that_of_normalize() -> None:
    torch.manual_seed(0)
    vectors = torch.randn(9, 5, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(9, 5, dtype=torch.float64)
    (found,) = torch.autograd.grad((unit_length(vectors, training=True) * weights).sum(), vectors)
    (expected,) = torch.autograd.grad((F.normalize(vectors, dim=1) * weights).sum(), vectors)
    torch.testing.assert_close(found, expected)


def test_a_gradient_worked_by_hand() -> None:
    vectors = torch.tensor([[3.0, 4.0]], requires_grad=True)
    (found,) = torch.autograd.grad(unit_length(vectors, training=True)[0, 0], vectors)
    # y = (0.6, 0.8), g = (1, 0): (g - y (y . g)) / 5 = (1 - 0.36, -0.48) / 5.
    torch.testing.assert_close(found, torch.tensor([[0.128, -0.096]]))


def test_the_zero_vector_stays() -> None:
    vectors = torch.zeros(2, 3, requires_grad=True)
    units = unit_length(vectors, training=True)
    assert torch.equal(units, torch.zeros(2, 3))
    (found,) = torch.autograd.grad(units.sum(), vectors)
    assert torch.isfinite(found).all()
