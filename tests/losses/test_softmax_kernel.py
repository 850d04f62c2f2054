"""What the chunked kernel must keep to beside its value: memory, extremes, precision."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils._python_dispatch import TorchDispatchMode

from twotower.losses.softmax import softmax_loss
from twotower.losses.softmax_kernel import padded_width


def vectors(batch: int, num: int, dim: int = 8, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(batch, dim, generator=generator) * scale
    items = torch.randn(num, dim, generator=generator) * scale
    return queries.requires_grad_(), items.requires_grad_()


class Largest(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes how many numbers the largest tensor holds that an operation returns."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.numel = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        outcome = func(*args, **(kwargs or {}))
        for tensor in outcome if isinstance(outcome, (tuple, list)) else [outcome]:
            if isinstance(tensor, Tensor):
                self.numel = max(self.numel, tensor.untyped_storage().nbytes() // 4)
        return outcome


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("precision", [None, torch.bfloat16])
def test_nothing_of_size_batch_by_candidates_is_allocated(
    label_smoothing: float, precision: torch.dtype | None
) -> None:
    queries, items = vectors(6_000, 2_000)
    with Largest() as largest:
        loss = softmax_loss(
            queries,
            items,
            torch.arange(6_000) % 1_900,
            log_q=torch.zeros(2_000),
            never=torch.arange(2_000) < 10,
            hidden=torch.arange(6_000)[:, None] % 1_900 + torch.arange(5),
            label_smoothing=label_smoothing,
            precision=precision,
        )
        torch.autograd.grad(loss, (queries, items))
    assert 0 < largest.numel < 6_000 * 2_000 / 10
    assert largest.numel <= 512 * padded_width(2_000)  # a chunk, however large the batch


class Shapes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the shapes of the factors of each product of matrices."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: set[tuple[torch.Size, ...]] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if "mm" in str(func):
            self.seen.add(tuple(x.shape for x in args if isinstance(x, Tensor)))
        return func(*args, **(kwargs or {}))


def test_batches_of_many_numbers_of_candidates_have_few_shapes() -> None:
    with Shapes() as shapes:
        for num in range(801, 865):
            queries, items = vectors(16, num)
            loss = softmax_loss(queries, items, torch.arange(16), precision=torch.bfloat16)
            torch.autograd.grad(loss, (queries, items))
    assert len(shapes.seen) == 2 * 3  # widths of 832 and 864, each of three products


@pytest.mark.parametrize("place", [-1, 40, 63, 64, 1_000])  # 40 candidates have a width of 64
@pytest.mark.parametrize("as_function", [False, True])
def test_a_hidden_place_beyond_the_candidates_is_refused(place: int, as_function: bool) -> None:
    queries, items = vectors(4, 40)
    hidden = torch.tensor([[0], [1], [place], [3]])
    given = hidden.__getitem__ if as_function else hidden
    message = rf"^hidden must hold places among the 40 candidates, 0 to 39, got {place}; let"
    with pytest.raises(ValueError, match=message):
        softmax_loss(queries, items, torch.arange(4), hidden=given)


def test_widths_waste_little() -> None:
    widths = [padded_width(num) for num in (1, 32, 33, 1_000, 1_024, 1_030, 3_000, 65_000)]
    assert widths == [32, 32, 64, 1_024, 1_024, 1_088, 3_072, 65_536]
    for num in range(512, 20_000, 7):
        assert num <= padded_width(num) < num + max(32, num / 16)


def test_nothing_of_size_batch_by_candidates_is_kept() -> None:
    queries, items = vectors(300, 200)
    kept: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = softmax_loss(queries, items, torch.arange(300) % 200)
    torch.autograd.grad(loss, queries)
    assert sum(kept) < 10 * (300 + 200)


def test_a_second_call_leaves_the_first_ones_gradients_alone() -> None:
    queries, items = vectors(5, 7)
    first = softmax_loss(queries, items, torch.arange(5))
    expected = torch.autograd.grad(first, (queries, items), retain_graph=True)
    second = softmax_loss(queries, items, torch.arange(5) + 2, temperature=0.1)
    for gradient, before in zip(
        torch.autograd.grad(first, (queries, items)), expected, strict=True
    ):
        assert torch.equal(gradient, before)
    assert second > 0


@pytest.mark.parametrize("scale", [0.0, 1e-20, 1.0, 1e4, 1e9])
@pytest.mark.parametrize("precision", [None, torch.bfloat16])
def test_extreme_logits_are_finite(scale: float, precision: torch.dtype | None) -> None:
    queries, items = vectors(6, 9, scale=scale)
    temperature = torch.tensor(0.01, requires_grad=True)
    loss = softmax_loss(
        queries,
        items,
        torch.arange(6),
        temperature=temperature,
        log_q=torch.linspace(-30, 0, 9),
        hidden=torch.tensor([[8]] * 6),
        label_smoothing=0.1,
        precision=precision,
    )
    gradients = torch.autograd.grad(loss, (queries, items, temperature))
    assert all(x.isfinite().all() for x in (loss, *gradients))


def test_a_shift_that_all_share_does_not_matter() -> None:
    # Every dot product is 1,000 more, beyond what an exponential can hold.
    queries, items = (x.detach().double() for x in vectors(6, 9))
    shift = torch.full((6, 1), math.sqrt(1000), dtype=torch.float64)
    shifted_items = torch.cat([items, shift[0].expand(9, 1)], dim=1)
    value = softmax_loss(torch.cat([queries, shift], dim=1), shifted_items, torch.arange(6))
    torch.testing.assert_close(value, softmax_loss(queries, items, torch.arange(6)))


@pytest.mark.parametrize("temperature", [1.0, 0.005])
def test_what_cannot_be_a_negative_gets_no_gradient_at_all(temperature: float) -> None:
    queries, items = vectors(3, 6)
    never = torch.tensor([False, False, False, True, False, False])
    hidden = torch.tensor([[4], [4], [4]])
    loss = softmax_loss(
        queries, items, torch.arange(3), temperature=temperature, never=never, hidden=hidden
    )
    (gradient,) = torch.autograd.grad(loss, items)
    assert not gradient[3:5].any()
    assert gradient[:3].any(dim=1).all()
    assert gradient[5].any()


def test_a_small_loss_has_all_its_digits() -> None:
    # Logits 30 and 0: p = 1 - 9.36e-14, whose distance from 1 float32 cannot tell by a subtraction.
    queries = torch.tensor([[30.0, 0.0]], requires_grad=True)
    loss = softmax_loss(queries, torch.eye(2), torch.tensor([0]))
    (gradient,) = torch.autograd.grad(loss, queries)
    torch.testing.assert_close(
        gradient, torch.tensor([[-9.3576e-14, 9.3576e-14]]), rtol=1e-3, atol=0
    )
    assert loss.item() == pytest.approx(9.3576e-14, rel=1e-3)


@pytest.mark.parametrize(
    ("items", "expected"),
    [([[0.0, 1.0], [0.0, 1.0], [-90.0, 1.0]], math.log(2)), ([[0.0, 1.0], [-90.0, 1.0]], 0.0)],
)
def test_what_is_far_below_the_greatest_makes_no_subnormal_numbers(
    items: list[list[float]], expected: float
) -> None:
    # e^-90 is subnormal in float32, and a product of such numbers takes a hundred times as long.
    queries, vectors = torch.tensor([[1.0, 0.0]]), torch.tensor(items, requires_grad=True)
    loss = softmax_loss(queries, vectors, torch.tensor([0]))
    (gradient,) = torch.autograd.grad(loss, vectors)
    assert loss.item() == pytest.approx(expected)
    assert 1e-37 < gradient[-1, 0].item() < 1e-20


def test_corrections_far_apart_are_exact() -> None:
    # Corrected logits 200, 190 and 0: log(1 + e^-10) where the first is the own item.
    log_q = torch.tensor([-200.0, -190.0, 0.0])
    loss = softmax_loss(torch.zeros(1, 2), torch.zeros(3, 2), torch.tensor([0]), log_q=log_q)
    assert loss.item() == pytest.approx(4.53989e-5, rel=1e-3)


def test_bfloat16_is_near_float32_and_the_own_item_is_exact() -> None:
    queries, items = (normalize(x, dim=1) for x in vectors(300, 500, dim=64))
    log_q = torch.linspace(-12, -4, 500)
    arguments: dict[str, Any] = {
        "temperature": 0.05,
        "log_q": log_q,
        "hidden": torch.full((300, 1), 7),
    }
    outcomes = []
    for precision in (None, torch.bfloat16):
        loss = softmax_loss(queries, items, torch.arange(300), precision=precision, **arguments)
        outcomes.append((loss, *torch.autograd.grad(loss, (queries, items))))
    (loss, *gradients), (low, *low_gradients) = outcomes
    assert low.dtype == torch.float32
    assert low.item() != loss.item()
    assert low.item() == pytest.approx(loss.item(), rel=0.005)
    for gradient, low_gradient in zip(gradients, low_gradients, strict=True):
        assert low_gradient.dtype == torch.float32
        assert (low_gradient - gradient).norm() < 0.02 * gradient.norm()
    # A model that is right is sure of it, however few digits a logit of 20 has.
    sure = softmax_loss(items, items, torch.arange(500), temperature=0.01, precision=torch.bfloat16)
    exact = softmax_loss(items, items, torch.arange(500), temperature=0.01)
    assert sure.item() == pytest.approx(exact.item(), abs=1e-4)
