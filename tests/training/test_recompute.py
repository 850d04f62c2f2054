"""Tests of encoding in pieces."""

import torch
from torch import Tensor, nn

from twotower.training.recompute import Recomputed

CPU = torch.device("cpu")


def test_gradients_are_those_of_one_pass() -> None:
    torch.manual_seed(0)
    layer, features = nn.Linear(3, 2), torch.randn(10, 3, requires_grad=True)
    layer(features).square().sum().backward()
    assert layer.weight.grad is not None
    assert features.grad is not None
    expected = layer.weight.grad.clone(), features.grad.clone()
    layer.zero_grad()
    features.grad = None
    pieces = Recomputed(lambda piece: layer(features[piece]), 10, 4, CPU)
    pieces.vectors.square().sum().backward()  # type: ignore[no-untyped-call]
    assert layer.weight.grad is None  # nothing has been passed on yet
    pieces.backward()
    torch.testing.assert_close((layer.weight.grad, features.grad), expected)


def test_the_second_pass_draws_what_the_first_drew() -> None:
    weight, drawn = torch.ones(6, requires_grad=True), []

    def dropped(piece: slice) -> Tensor:
        mask = (torch.rand(6) < 0.5)[piece].float()
        drawn.append(mask)
        return (weight[piece] * mask)[:, None]

    torch.manual_seed(3)
    pieces = Recomputed(dropped, 6, 2, CPU)
    after_first = torch.rand(1)
    torch.manual_seed(3)
    pieces = Recomputed(dropped, 6, 2, CPU)
    pieces.vectors.sum().backward()  # type: ignore[no-untyped-call]
    torch.rand(5)  # whatever the loss draws does not matter
    torch.manual_seed(4)
    expected = torch.rand(1)
    torch.manual_seed(4)
    pieces.backward()
    assert torch.rand(1) == expected  # and the second pass leaves the generator as it was
    assert after_first.isfinite()
    first, second = drawn[3:6], drawn[6:9]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert torch.equal(weight.grad, torch.cat(first))  # type: ignore[arg-type]


def test_only_one_piece_is_encoded_at_a_time() -> None:
    sizes = []
    layer = nn.Linear(2, 2)

    def encode(piece: slice) -> Tensor:
        sizes.append(piece.stop - piece.start)
        return layer(torch.ones(piece.stop - piece.start, 2))  # type: ignore[no-any-return]

    Recomputed(encode, 7, 3, CPU)
    assert sizes == [3, 3, 1]


def test_what_has_no_gradient_is_left_alone() -> None:
    layer = nn.Linear(2, 2)
    unused = Recomputed(lambda piece: layer(torch.ones(4, 2)[piece]), 4, 2, CPU)
    unused.backward()
    frozen = Recomputed(lambda piece: torch.ones(4, 2)[piece], 4, 2, CPU)
    frozen.vectors.sum().backward()  # type: ignore[no-untyped-call]
    frozen.backward()
    assert layer.weight.grad is None
