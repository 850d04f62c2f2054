"""The stand-in refuses what CUDA refuses, and computes what it allows."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stand_in_device import DEVICE, stand_in

REFUSED: dict[str, Callable[[Tensor], object]] = {
    "a product": lambda there: there @ torch.ones(2, 3),
    "a sum": lambda there: there + torch.ones(3, 2),
    "a sum in place": lambda there: torch.ones(3, 2).add_(there),
    "a sum in place of one number": lambda there: torch.tensor(1.0).add_(there.sum()),
    "a list": lambda there: torch.cat([there, torch.ones(3, 2)]),
    "a result": lambda there: torch.mm(there, there.T, out=torch.empty(3, 3)),
    "rows there of what is here": lambda there: torch.arange(9)[there.long()],
    "rows here, selected": lambda there: there.index_select(0, torch.tensor([1])),
    "a mask": lambda there: there.masked_fill(torch.ones(3, 2, dtype=torch.bool), 0.0),
    "a layer": lambda there: nn.Linear(2, 2)(there),
    "another generator": lambda there: there.uniform_(generator=torch.Generator()),
    "its generator": lambda there: torch.rand(3, generator=torch.Generator(there.device)),
    "numpy": lambda there: there.numpy(),
    "an array": lambda there: np.asarray(there),
}
ALLOWED: dict[str, Callable[[Tensor], Tensor]] = {
    "a number of the CPU": lambda there: there * torch.tensor(2.0),
    "rows of the CPU": lambda there: there[torch.tensor([2, 0])],
    "a mask of the CPU": lambda there: there[torch.tensor([True, False, True])],
    "what it was told": lambda there: there + torch.ones(3, 2).to(DEVICE),
    "its own layer": lambda there: nn.Linear(2, 2).to(DEVICE)(there),
    "a copy": lambda there: torch.zeros(3, 2, device=there.device).copy_(torch.ones(3, 2)),
    "a list of numbers": lambda there: torch.tensor([1, 2], device=there.device),
}


@pytest.fixture
def there() -> Iterator[Tensor]:
    with stand_in():
        yield torch.arange(6.0, device=DEVICE).view(3, 2)


@pytest.mark.parametrize("way", REFUSED)
def test_refuses(there: Tensor, way: str) -> None:
    with pytest.raises((RuntimeError, TypeError), match=r"device|a tensor on cuda"):
        REFUSED[way](there)


@pytest.mark.parametrize("way", ALLOWED)
def test_computes(there: Tensor, way: str) -> None:
    found = ALLOWED[way](there)
    assert found.device == DEVICE
    assert found.cpu().device.type == "cpu"


def test_numbers_are_those_of_the_cpu(there: Tensor) -> None:
    here = torch.arange(6.0).view(3, 2).requires_grad_()
    (here**2).T.sum().backward()  # type: ignore[no-untyped-call]
    leaf = there.clone().requires_grad_()
    (leaf**2).T.sum().backward()  # type: ignore[no-untyped-call]
    assert leaf.grad is not None
    assert here.grad is not None
    assert leaf.grad.tolist() == here.grad.tolist() == [[0, 2], [4, 6], [8, 10]]


def test_is_gone_afterwards() -> None:
    with stand_in():
        assert torch.cuda.is_available()
    assert not torch.ones(2).is_cuda
    assert torch.Generator().device.type == "cpu"
