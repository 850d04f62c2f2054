import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from twotower.losses.candidates import Candidates
from twotower.losses.softmax import SoftmaxLoss, softmax_loss


def naive_softmax_loss(
    query_vectors: Tensor,
    item_vectors: Tensor,
    positions: Tensor,
    *,
    temperature: float,
    log_q: Tensor,
    never: Tensor,
    hidden: Tensor,
    weights: Tensor,
    label_smoothing: float,
) -> float:
    """Return the loss by loops over floats."""
    total = 0.0
    for b, query in enumerate(query_vectors.tolist()):
        own = int(positions[b])
        corrections = log_q.expand(len(query_vectors), -1)[b].tolist()
        logits = {}
        for j, item in enumerate(item_vectors.tolist()):
            if j == own or not (never[j] or j in hidden[b].tolist()):
                dot = sum(x * y for x, y in zip(query, item, strict=True))
                logits[j] = dot / temperature - corrections[j]
        greatest = max(logits.values())
        log_sum = greatest + math.log(sum(math.exp(x - greatest) for x in logits.values()))
        stand_for = {j: math.exp(-corrections[j]) for j in logits if j != own}
        spread = label_smoothing if stand_for else 0.0
        targets = {j: spread * share / sum(stand_for.values()) for j, share in stand_for.items()}
        targets[own] = 1 - spread
        loss = sum(target * (log_sum - logits[j]) for j, target in targets.items())
        total += float(weights[b]) * loss
    return total / float(weights.sum())


def dense_softmax_loss(
    query_vectors: Tensor,
    item_vectors: Tensor,
    positions: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    log_q: Tensor | None = None,
    never: Tensor | None = None,
    hidden: Tensor | None = None,
    weights: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Return the loss with all logits at once, for autograd."""
    logits = query_vectors @ item_vectors.T / temperature
    if log_q is not None:
        logits = logits - log_q
    is_own = torch.zeros(logits.shape, dtype=torch.bool).scatter(1, positions[:, None], True)
    is_negative = ~is_own
    if never is not None:
        is_negative &= ~never
    if hidden is not None:
        is_negative.scatter_(1, hidden, False)
    log_probs = logits.masked_fill(~is_own & ~is_negative, -1e200).log_softmax(1)
    stand_for = torch.ones_like(logits) if log_q is None else (-log_q).exp().expand_as(logits)
    stand_for = torch.where(is_negative, stand_for, 0)
    spread = label_smoothing * stand_for / stand_for.sum(1, keepdim=True).clamp_min(1e-200)
    own = is_own.double() * (1 - spread.sum(1, keepdim=True))
    losses = -(log_probs * (own + spread)).sum(1)
    return losses.mean() if weights is None else (losses * weights).sum() / weights.sum()


def problem(batch: int, num: int, dim: int, seed: int, dtype: torch.dtype) -> dict[str, Any]:
    """Return arguments that use everything there is."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "query_vectors": torch.randn(batch, dim, generator=generator, dtype=dtype),
        "item_vectors": torch.randn(num, dim, generator=generator, dtype=dtype),
        "positions": torch.randint(num, (batch,), generator=generator),
        "log_q": torch.randn(num, generator=generator, dtype=dtype),
        "never": torch.rand(num, generator=generator) < 0.3,
        "hidden": torch.randint(num, (batch, 3), generator=generator),
        "weights": torch.rand(batch, generator=generator, dtype=dtype) + 0.1,
        "label_smoothing": 0.2,
    }


def exact(inputs: dict[str, Any]) -> dict[str, Any]:
    """Return the same in float64."""
    return {
        name: value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in inputs.items()
    }


def test_worked_number() -> None:
    # Dots 1 and 0, T = 1/2, q = 1/2 and 1/4: the corrected logits are 2 + log 2 and 0 + log 4, so
    # the loss is log(1 + 4 / (2 e^2)) = log(1 + 2 e^-2) = 0.2395. Without the correction it is
    # log(1 + e^-2) = 0.1269, with its sign turned log(1 + e^-2 / 2) = 0.0655.
    queries, items = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    log_q = torch.tensor([0.5, 0.25]).log()
    loss = softmax_loss(queries, items, torch.tensor([0]), temperature=0.5, log_q=log_q)
    assert loss.item() == pytest.approx(0.2395, abs=5e-5)


def test_worked_number_of_label_smoothing() -> None:
    # Of equal q: probabilities 3/5, 1/5, 1/5. Of the target 0.2 is spread, half on each negative:
    # 0.8 log(5/3) + 0.2 log 5 = 0.7305. (Spread over the own item, too, it would be 0.6573.)
    # With q = 1/2, 1/8, 3/8 the first negative stands for three times as many items as the other, so
    # it gets 0.15 and the other 0.05; the dots are such that the probabilities are 1/2, 1/6, 1/3:
    # 0.8 log 2 + 0.15 log 6 + 0.05 log 3 = 0.8782. (Spread evenly it would be 0.8436.)
    even = torch.tensor([[math.log(3), 0.0, 0.0]])
    loss = softmax_loss(even, torch.eye(3), torch.tensor([0]), label_smoothing=0.2)
    assert loss.item() == pytest.approx(0.7305, abs=5e-5)
    log_q = torch.tensor([1 / 2, 1 / 8, 3 / 8]).log()
    uneven = torch.tensor([[math.log(3), 0.0, math.log(2)]]) + log_q
    loss = softmax_loss(uneven, torch.eye(3), torch.tensor([0]), log_q=log_q, label_smoothing=0.2)
    assert loss.item() == pytest.approx(0.8782, abs=5e-5)


# At a temperature of 0.01 logits are too far apart for exponentials without a shift.
@given(
    batch=st.integers(1, 6),
    num=st.integers(1, 6),
    temperature=st.sampled_from([5.0, 0.5, 0.01]),
    log_q_of_query=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_equals_loops_over_floats(
    batch: int, num: int, temperature: float, log_q_of_query: bool, seed: int
) -> None:
    inputs = problem(batch, num, 3, seed, torch.float64)
    if log_q_of_query:
        inputs["log_q"] = torch.randn(batch, num, dtype=torch.float64)
    expected = naive_softmax_loss(**inputs, temperature=temperature)
    assert softmax_loss(**inputs, temperature=temperature).item() == pytest.approx(expected)


def everything(inputs: dict[str, Any]) -> dict[str, Any]:
    return inputs


def log_q_of_each_query(inputs: dict[str, Any]) -> dict[str, Any]:
    batch = len(inputs["query_vectors"])
    return inputs | {"log_q": inputs["log_q"] * torch.linspace(1, 2, batch)[:, None]}


def nothing_else(inputs: dict[str, Any]) -> dict[str, Any]:
    return dict(list(inputs.items())[:3])


def correction_and_masks(inputs: dict[str, Any]) -> dict[str, Any]:
    return dict(list(inputs.items())[:6])


# Of 300 queries the last chunk is a short one.
@pytest.mark.parametrize(("batch", "num"), [(300, 200), (1, 1)])
@pytest.mark.parametrize("temperature", [0.5, 0.02])
@pytest.mark.parametrize(
    "chosen", [everything, log_q_of_each_query, nothing_else, correction_and_masks]
)
def test_value_and_gradients_equal_the_dense_form_in_float32(
    batch: int,
    num: int,
    temperature: float,
    chosen: Callable[[dict[str, Any]], dict[str, Any]],
) -> None:
    assert_equals_the_dense_form(chosen(problem(batch, num, 8, 0, torch.float32)), temperature)


def test_many_candidates_make_chunks_of_fewer_queries() -> None:
    # 2^22 logits are a chunk: 123 queries.
    assert_equals_the_dense_form(problem(130, 34_000, 8, 0, torch.float32), 0.5)


def assert_equals_the_dense_form(inputs: dict[str, Any], temperature: float) -> None:
    learnt = torch.tensor(temperature)
    leaves = [x.requires_grad_() for x in (inputs["query_vectors"], inputs["item_vectors"], learnt)]
    loss = softmax_loss(**inputs, temperature=learnt)
    expected = dense_softmax_loss(**exact(inputs), temperature=learnt.double())
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6, abs=1e-5)
    for gradient, exact_gradient in zip(
        torch.autograd.grad(loss, leaves), torch.autograd.grad(expected, leaves), strict=True
    ):
        # A gradient is 1 / temperature as great as the vectors, and so is its error.
        torch.testing.assert_close(
            gradient * temperature, exact_gradient * temperature, atol=1e-5, rtol=1e-4
        )


@pytest.mark.parametrize("temperature", [0.7, 0.05])
@pytest.mark.parametrize("chosen", [everything, log_q_of_each_query, nothing_else])
def test_gradients_match_finite_differences(
    temperature: float, chosen: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    inputs = chosen(problem(4, 6, 3, 0, torch.float64))
    learnt = torch.tensor(temperature, dtype=torch.float64, requires_grad=True)

    def value(queries: Tensor, items: Tensor, learnt: Tensor) -> Tensor:
        given_vectors = {"query_vectors": queries, "item_vectors": items}
        return softmax_loss(**inputs | given_vectors, temperature=learnt)

    queries, items = inputs["query_vectors"], inputs["item_vectors"]
    assert torch.autograd.gradcheck(
        value, (queries.requires_grad_(), items.requires_grad_(), learnt)
    )


@pytest.mark.parametrize("wanted", ["query_vectors", "item_vectors"])
def test_one_side_alone_gets_its_gradient(wanted: str) -> None:
    inputs = problem(6, 9, 4, 0, torch.float64)
    inputs[wanted].requires_grad_()
    (gradient,) = torch.autograd.grad(softmax_loss(**inputs), inputs[wanted])
    expected = dense_softmax_loss(**inputs)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, inputs[wanted])[0])


@pytest.mark.parametrize("shape", [(), (1,)])
def test_a_learnt_temperature_gets_a_gradient_of_its_shape(shape: tuple[int, ...]) -> None:
    inputs = problem(6, 9, 4, 0, torch.float64)
    temperature = torch.full(shape, 0.3, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(softmax_loss(**inputs, temperature=temperature), temperature)
    expected = dense_softmax_loss(**inputs, temperature=temperature)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, temperature)[0])


def test_the_gradient_is_scaled_by_what_follows_and_kept_for_a_second_pass() -> None:
    inputs = problem(6, 9, 4, 0, torch.float64)
    queries = inputs["query_vectors"].requires_grad_()
    loss = softmax_loss(**inputs)
    (once,) = torch.autograd.grad(loss, queries, retain_graph=True)
    (thrice,) = torch.autograd.grad(3 * loss, queries)
    torch.testing.assert_close(thrice, 3 * once)


@pytest.mark.parametrize("kept", [True, False])
def test_item_factors_multiply_what_an_item_gets_as_a_negative(kept: bool) -> None:
    generator = torch.Generator().manual_seed(8)
    queries = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    items = torch.randn(7, 3, generator=generator, dtype=torch.float64).requires_grad_()
    positions, factors = torch.tensor([0, 1, 1, 4, 6]), torch.rand(7, generator=generator).double()
    never = None if kept else torch.arange(7) == 2
    softmax_loss(queries, items, positions, never=never, item_factors=factors).backward()  # type: ignore[no-untyped-call]
    # The same by a copy of each item for its role as own item, and one for that as a negative.
    own, negative = items.detach().clone(), items.detach().clone()
    own.requires_grad_(), negative.requires_grad_()
    is_own = torch.arange(7) == positions[:, None]
    logits = torch.where(is_own, queries @ own.T, queries @ negative.T)
    if never is not None:
        logits = logits.masked_fill(never & ~is_own, -torch.inf)
    loss = (logits.logsumexp(1) - logits.gather(1, positions[:, None])[:, 0]).mean()
    loss.backward()  # type: ignore[no-untyped-call]
    assert own.grad is not None
    assert negative.grad is not None
    torch.testing.assert_close(items.grad, own.grad + factors[:, None] * negative.grad)


def test_there_is_no_second_derivative() -> None:
    inputs = problem(6, 9, 4, 0, torch.float64)
    queries = inputs["query_vectors"].requires_grad_()
    loss = softmax_loss(**inputs)
    (gradient,) = torch.autograd.grad(loss.square(), queries, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_without_gradients_the_value_is_the_same() -> None:
    inputs = problem(6, 9, 4, 0, torch.float64)
    inputs["query_vectors"].requires_grad_()
    with torch.no_grad():
        value = softmax_loss(**inputs)
    assert not value.requires_grad
    torch.testing.assert_close(value, softmax_loss(**inputs).detach())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_vectors_are_computed_in_float32(dtype: torch.dtype) -> None:
    inputs = problem(6, 9, 4, 0, torch.float32)
    inputs["query_vectors"] = inputs["query_vectors"].to(dtype).requires_grad_()
    inputs["item_vectors"] = inputs["item_vectors"].to(dtype)
    loss = softmax_loss(**inputs)
    (gradient,) = torch.autograd.grad(loss, inputs["query_vectors"])
    assert loss.dtype == torch.float32
    assert gradient.dtype == dtype
    assert loss.item() == pytest.approx(dense_softmax_loss(**exact(inputs)).item(), abs=1e-5)


def test_autocast_does_not_lower_the_precision() -> None:
    inputs = problem(6, 9, 4, 0, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        value = softmax_loss(**inputs)
    torch.testing.assert_close(value, softmax_loss(**inputs))


def test_the_class_passes_everything_on() -> None:
    inputs = problem(6, 9, 4, 0, torch.float64)
    queries, items, weights = (
        inputs[name] for name in ("query_vectors", "item_vectors", "weights")
    )
    candidates = Candidates(
        torch.arange(2, 11), inputs["positions"], inputs["log_q"], inputs["never"]
    )
    loss = SoftmaxLoss(label_smoothing=0.2)(
        queries, items, candidates, temperature=0.5, hidden=inputs["hidden"], weights=weights
    )
    torch.testing.assert_close(loss, dense_softmax_loss(**inputs, temperature=0.5))


def test_places_may_be_told_a_slice_at_a_time() -> None:
    inputs = problem(300, 40, 4, 0, torch.float64)
    places: Tensor = inputs.pop("hidden")
    asked = []

    def hidden(part: slice) -> Tensor:
        asked.append(part)
        return places[part]

    value = softmax_loss(**inputs, hidden=hidden)
    torch.testing.assert_close(value, softmax_loss(**inputs, hidden=places))
    assert torch.cat([torch.arange(300)[part] for part in asked]).tolist() == list(range(300))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"log_q": torch.zeros(6, 1)}, r"log_q must be \(9,\) or \(6, 9\), got \(6, 1\)"),
        ({"label_smoothing": 1.0}, r"label_smoothing must be in \[0, 1\), got 1.0"),
        ({"label_smoothing": -0.1}, r"label_smoothing must be in \[0, 1\), got -0.1"),
        ({"item_factors": torch.ones(6)}, r"item_factors must be \(9,\), got \(6,\)"),
        ({"precision": torch.float16}, r"precision must be torch.bfloat16 or None, got torch.fl"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        softmax_loss(**problem(6, 9, 4, 0, torch.float32) | change)


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"label_smoothing must be in \[0, 1\), got nan"):
        SoftmaxLoss(label_smoothing=math.nan)
    with pytest.raises(ValueError, match=r"precision must be .* got torch.int8"):
        SoftmaxLoss(precision=torch.int8)


def test_a_label_of_zero_is_refused() -> None:
    candidates = Candidates(torch.tensor([2, 3, 4]), torch.arange(3))
    labels = torch.tensor([1.0, 0.0, 0.0])
    with pytest.raises(ValueError, match=r"labels must all be 1 .* got 2 of 0"):
        SoftmaxLoss()(torch.eye(3), torch.eye(3), candidates, labels=labels)
