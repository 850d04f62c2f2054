import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from twotower.losses.negatives import Candidates
from twotower.losses.softmax import SoftmaxLoss, softmax_loss


def naive_softmax_loss(
    queries: Tensor,
    items: Tensor,
    positions: Tensor,
    temperature: float,
    log_q: Tensor,
    hidden: Tensor,
    weights: Tensor,
) -> float:
    total = 0.0
    for b, query in enumerate(queries.tolist()):
        own = int(positions[b])
        logits = {}
        for j, item in enumerate(items.tolist()):
            if j == own or not hidden[b, j]:
                dot = sum(x * y for x, y in zip(query, item, strict=True))
                logits[j] = dot / temperature - float(log_q[j])
        greatest = max(logits.values())
        denominator = sum(math.exp(logit - greatest) for logit in logits.values())
        total += float(weights[b]) * (greatest + math.log(denominator) - logits[own])
    return total / float(weights.sum())


def dense_softmax_loss(
    queries: Tensor,
    items: Tensor,
    positions: Tensor,
    temperature: Tensor,
    log_q: Tensor,
    hidden: Tensor,
    weights: Tensor,
) -> Tensor:
    logits = queries @ items.T / temperature - log_q
    logits = logits.masked_fill(hidden.scatter(1, positions[:, None], False), -math.inf)
    own = logits.log_softmax(1).gather(1, positions[:, None]).squeeze(1)
    return -(own * weights).sum() / weights.sum()


def problem(batch: int, num: int, dim: int, seed: int, dtype: torch.dtype) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "queries": torch.randn(batch, dim, generator=generator, dtype=dtype),
        "items": torch.randn(num, dim, generator=generator, dtype=dtype),
        "positions": torch.randint(num, (batch,), generator=generator),
        "log_q": torch.randn(num, generator=generator, dtype=dtype),
        "hidden": torch.rand(batch, num, generator=generator) < 0.3,
        "weights": torch.rand(batch, generator=generator, dtype=dtype) + 0.1,
    }


def ours(queries: Tensor, items: Tensor, positions: Tensor, **others: Any) -> Tensor:
    return softmax_loss(queries, items, positions, **others)


def test_worked_number() -> None:
    # Dots 1 and 0, T = 1/2, q = 1/2 and 1/4: the corrected logits are 2 + log 2 and 0 + log 4, so
    # the loss is log(1 + 4 / (2 e^2)) = log(1 + 2 e^-2) = 0.2395. Without the correction it is
    # log(1 + e^-2) = 0.1269, with its sign turned log(1 + e^-2 / 2) = 0.0655.
    queries, items = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    log_q = torch.tensor([0.5, 0.25]).log()
    loss = softmax_loss(queries, items, torch.tensor([0]), temperature=0.5, log_q=log_q)
    assert loss.item() == pytest.approx(0.2395, abs=5e-5)


@given(
    batch=st.integers(1, 6),
    num=st.integers(1, 6),
    temperature=st.floats(0.05, 5),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=40, deadline=None)
def test_equals_loops_over_floats(batch: int, num: int, temperature: float, seed: int) -> None:
    inputs = problem(batch, num, 3, seed, torch.float64)
    expected = naive_softmax_loss(**inputs, temperature=temperature)
    assert ours(**inputs, temperature=temperature).item() == pytest.approx(expected, rel=1e-9)


# At 150,000 candidates a chunk is 6 queries, so that 13 make three chunks, the last one short.
@pytest.mark.parametrize(("batch", "num"), [(700, 300), (13, 150_000), (1, 1)])
@pytest.mark.parametrize("log_q_of_query", [False, True])
def test_value_and_gradients_equal_the_dense_form_in_float32(
    batch: int, num: int, log_q_of_query: bool
) -> None:
    inputs = problem(batch, num, 8, 0, torch.float32)
    if log_q_of_query:
        inputs["log_q"] = inputs["log_q"] + torch.linspace(0, 1, batch)[:, None] * inputs["log_q"]
    temperature = torch.tensor(0.5)
    leaves = [x.requires_grad_() for x in (inputs["queries"], inputs["items"], temperature)]
    loss = ours(**inputs, temperature=temperature)
    exact = {k: v.double() if v.is_floating_point() else v for k, v in inputs.items()}
    expected = dense_softmax_loss(**exact, temperature=temperature.double())
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    for gradient, exact_gradient in zip(
        torch.autograd.grad(loss, leaves), torch.autograd.grad(expected, leaves), strict=True
    ):
        torch.testing.assert_close(gradient, exact_gradient, atol=1e-5, rtol=1e-4)


def test_nothing_of_size_batch_by_candidates_is_kept() -> None:
    inputs = problem(300, 200, 4, 0, torch.float32)
    inputs["queries"].requires_grad_()
    kept: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = ours(**inputs, temperature=0.5)
    torch.autograd.grad(loss, inputs["queries"])
    assert sum(kept) < 10 * (300 + 200)


@pytest.mark.parametrize("wanted", ["queries", "items"])
def test_one_side_alone_gets_its_gradient(wanted: str) -> None:
    inputs = problem(6, 9, 4, 0, torch.float64)
    inputs[wanted].requires_grad_()
    (gradient,) = torch.autograd.grad(ours(**inputs, temperature=0.5), inputs[wanted])
    expected = dense_softmax_loss(**inputs, temperature=torch.tensor(0.5))
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, inputs[wanted])[0])


@pytest.mark.parametrize("shape", [(), (1,)])
def test_a_learnt_temperature_gets_a_gradient_of_its_shape(shape: tuple[int, ...]) -> None:
    inputs = problem(6, 9, 4, 0, torch.float64)
    temperature = torch.full(shape, 0.3, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(ours(**inputs, temperature=temperature), temperature)
    expected = dense_softmax_loss(**inputs, temperature=temperature)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, temperature)[0])


def test_the_gradient_is_scaled_by_what_follows_and_kept_for_a_second_pass() -> None:
    inputs = problem(6, 9, 4, 0, torch.float64)
    queries = inputs["queries"].requires_grad_()
    loss = ours(**inputs, temperature=0.5)
    (once,) = torch.autograd.grad(loss, queries, retain_graph=True)
    (thrice,) = torch.autograd.grad(3 * loss, queries)
    torch.testing.assert_close(thrice, 3 * once)


def test_there_is_no_second_derivative() -> None:
    inputs = problem(6, 9, 4, 0, torch.float64)
    queries = inputs["queries"].requires_grad_()
    loss = ours(**inputs, temperature=0.5)
    (gradient,) = torch.autograd.grad(loss.square(), queries, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_without_gradients_the_value_is_the_same() -> None:
    inputs = problem(6, 9, 4, 0, torch.float64)
    inputs["queries"].requires_grad_()
    with torch.no_grad():
        value = ours(**inputs, temperature=0.5)
    assert not value.requires_grad
    torch.testing.assert_close(value, ours(**inputs, temperature=0.5).detach())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_vectors_are_computed_in_float32(dtype: torch.dtype) -> None:
    inputs = problem(6, 9, 4, 0, torch.float32)
    inputs["queries"] = inputs["queries"].to(dtype).requires_grad_()
    inputs["items"] = inputs["items"].to(dtype)
    loss = ours(**inputs, temperature=0.5)
    (gradient,) = torch.autograd.grad(loss, inputs["queries"])
    rounded = {k: v.double() if v.is_floating_point() else v for k, v in inputs.items()}
    expected = dense_softmax_loss(**rounded, temperature=torch.tensor(0.5))
    assert loss.dtype == torch.float32
    assert gradient.dtype == dtype
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)


def test_autocast_does_not_lower_the_precision() -> None:
    inputs = problem(6, 9, 4, 0, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        value = ours(**inputs, temperature=0.5)
    torch.testing.assert_close(value, ours(**inputs, temperature=0.5))


def test_log_q_of_another_shape_is_refused() -> None:
    inputs = problem(6, 9, 4, 0, torch.float32) | {"log_q": torch.zeros(6, 1)}
    with pytest.raises(ValueError, match=r"log_q must be \(9,\) or \(6, 9\), got \(6, 1\)"):
        ours(**inputs)


def test_a_label_of_zero_is_refused() -> None:
    candidates = Candidates(torch.tensor([2, 3, 4]), torch.arange(3))
    labels = torch.tensor([1.0, 0.0, 0.0])
    with pytest.raises(ValueError, match=r"labels must all be 1 .* got 2 of 0"):
        SoftmaxLoss()(torch.eye(3), torch.eye(3), candidates, labels=labels)
