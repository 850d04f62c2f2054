"""What every loss that a trainer can hold must obey, whatever it minimises."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

from twotower.losses.geometry import ContrastiveLoss
from twotower.losses.negatives import Candidates
from twotower.losses.pointwise import BCELoss
from twotower.losses.softmax import SoftmaxLoss

Loss = SoftmaxLoss | BCELoss | ContrastiveLoss
LOSSES: dict[str, Loss] = {
    "softmax": SoftmaxLoss(),
    "bce": BCELoss(),
    "contrastive": ContrastiveLoss(margin=1.5),
}
every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=list(LOSSES))
seeds = st.integers(0, 2**31)
few = settings(max_examples=25, deadline=None)

B, N, D = 5, 8, 3


def some(seed: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Candidates]:
    generator = torch.Generator().manual_seed(seed)
    queries = torch.randn(B, D, generator=generator, dtype=dtype)
    items = torch.randn(N, D, generator=generator, dtype=dtype)
    positions = torch.randint(N, (B,), generator=generator)
    log_q = torch.randn(N, generator=generator, dtype=dtype)
    return queries, items, Candidates(torch.arange(2, N + 2), positions, log_q)


def some_hidden(seed: int) -> Tensor:
    return torch.rand(B, N, generator=torch.Generator().manual_seed(seed + 1)) < 0.4


@every_loss
@given(seed=seeds)
@few
def test_a_perfect_model_has_the_least_loss(loss: Loss, seed: int) -> None:
    # Of vectors of length 1 none are closer than equal ones, none further apart than opposite ones.
    generator = torch.Generator().manual_seed(seed)
    candidates = Candidates(torch.tensor([2, 3]), torch.tensor([1, 0, 0]))
    items = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    perfect = loss(items[candidates.positions], items, candidates, temperature=0.2)
    queries = normalize(torch.randn(3, 2, generator=generator), dim=1)
    others = normalize(torch.randn(2, 2, generator=generator), dim=1)
    assert perfect < loss(queries, items, candidates, temperature=0.2)
    assert perfect < loss(queries, others, candidates, temperature=0.2)


@every_loss
@given(seed=seeds)
@few
def test_the_order_of_candidates_does_not_matter(loss: Loss, seed: int) -> None:
    queries, items, candidates = some(seed)
    hidden = some_hidden(seed)
    order = torch.randperm(N, generator=torch.Generator().manual_seed(seed))
    assert candidates.log_q is not None
    moved = Candidates(
        candidates.item_rows[order], order.argsort()[candidates.positions], candidates.log_q[order]
    )
    before = loss(queries, items, candidates, temperature=0.5, hidden=hidden)
    after = loss(queries, items[order], moved, temperature=0.5, hidden=hidden[:, order])
    torch.testing.assert_close(after, before)


@every_loss
@given(seed=seeds)
@few
def test_log_q_counts_up_to_a_constant_and_may_be_one_for_all_queries(
    loss: Loss, seed: int
) -> None:
    queries, items, candidates = some(seed)
    assert candidates.log_q is not None
    expected = loss(queries, items, candidates)
    shifted = loss(queries, items, replace(candidates, log_q=candidates.log_q + 3.5))
    broadcast = loss(queries, items, replace(candidates, log_q=candidates.log_q.repeat(B, 1)))
    constant = loss(queries, items, replace(candidates, log_q=torch.full((N,), 0.7)))
    torch.testing.assert_close(shifted, expected)
    torch.testing.assert_close(broadcast, expected)
    torch.testing.assert_close(constant, loss(queries, items, replace(candidates, log_q=None)))
    assert not torch.isclose(constant, expected)


@every_loss
@given(seed=seeds)
@few
def test_a_negative_listed_twice_at_twice_the_probability_is_one(loss: Loss, seed: int) -> None:
    queries, items, candidates = some(seed)
    assert candidates.log_q is not None
    twice = next(j for j in range(N) if j not in candidates.positions.tolist())
    log_q = candidates.log_q.clone()
    log_q[twice] += math.log(2)
    doubled = Candidates(
        torch.cat([candidates.item_rows, candidates.item_rows[[twice]]]),
        candidates.positions,
        torch.cat([log_q, log_q[[twice]]]),
    )
    both = loss(queries, torch.cat([items, items[[twice]]]), doubled, temperature=0.5)
    torch.testing.assert_close(both, loss(queries, items, candidates, temperature=0.5))


@every_loss
@given(seed=seeds)
@few
def test_a_hidden_candidate_is_as_good_as_absent(loss: Loss, seed: int) -> None:
    queries, items, candidates = some(seed)
    assert candidates.log_q is not None
    absent = next(j for j in range(N) if j not in candidates.positions.tolist())
    kept = torch.tensor([j for j in range(N) if j != absent])
    hidden = torch.zeros(B, N, dtype=torch.bool)
    hidden[:, absent] = True
    without = Candidates(
        candidates.item_rows[kept],
        candidates.positions - (candidates.positions > absent).long(),
        candidates.log_q[kept],
    )
    items.requires_grad_()
    value = loss(queries, items, candidates, temperature=0.5, hidden=hidden)
    (gradient,) = torch.autograd.grad(value, items)
    torch.testing.assert_close(
        value.detach(), loss(queries, items[kept], without, temperature=0.5).detach()
    )
    assert not gradient[absent].any()
    assert gradient[candidates.positions].any()
    from_candidates = loss(queries, items, replace(candidates, hidden=hidden), temperature=0.5)
    torch.testing.assert_close(from_candidates, value)


@every_loss
def test_hidden_candidates_add_to_those_that_the_sampler_hid(loss: Loss) -> None:
    queries, items, candidates = some(1)
    first, second = some_hidden(1), some_hidden(2)
    together = loss(queries, items, replace(candidates, hidden=first), hidden=second)
    torch.testing.assert_close(together, loss(queries, items, candidates, hidden=first | second))
    assert not torch.isclose(together, loss(queries, items, candidates, hidden=second))


@every_loss
def test_the_own_item_is_never_hidden(loss: Loss) -> None:
    queries, items, candidates = some(3)
    hidden = some_hidden(3)
    own = hidden.scatter(1, candidates.positions[:, None], True)
    not_own = hidden.scatter(1, candidates.positions[:, None], False)
    torch.testing.assert_close(
        loss(queries, items, candidates, hidden=own),
        loss(queries, items, candidates, hidden=not_own),
    )


@every_loss
def test_a_query_without_negatives_has_a_finite_loss(loss: Loss) -> None:
    queries, items, candidates = some(4)
    queries.requires_grad_()
    value = loss(queries, items, candidates, hidden=torch.ones(B, N, dtype=torch.bool))
    (gradient,) = torch.autograd.grad(value, queries)
    assert value.isfinite()
    assert gradient.isfinite().all()


@every_loss
@pytest.mark.parametrize("seed", range(3))
def test_gradients_match_finite_differences(loss: Loss, seed: int) -> None:
    queries, items, candidates = some(seed)
    hidden = some_hidden(seed)
    weights = torch.tensor([1.0, 0.5, 2.0, 3.0, 0.1], dtype=torch.float64)
    temperature = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)

    def value(queries: Tensor, items: Tensor, temperature: Tensor) -> Tensor:
        # The contrastive loss has no temperature; it must reach the output to be checked at all.
        result = loss(
            queries, items, candidates, temperature=temperature, hidden=hidden, weights=weights
        )
        return result + 0 * temperature

    inputs = (queries.requires_grad_(), items.requires_grad_(), temperature)
    assert torch.autograd.gradcheck(value, inputs)


@every_loss
@given(seed=seeds, scale=st.sampled_from([0.0, 1e-6, 1e4]))
@few
def test_loss_and_gradients_are_finite_at_extreme_logits(
    loss: Loss, seed: int, scale: float
) -> None:
    queries, items, candidates = some(seed, torch.float32)
    queries, items = (queries * scale).requires_grad_(), (items * scale).requires_grad_()
    temperature = torch.tensor(0.01, requires_grad=True)
    value = loss(queries, items, candidates, temperature=temperature, hidden=some_hidden(seed))
    gradients = torch.autograd.grad(value, (queries, items, temperature), allow_unused=True)
    assert value.isfinite()
    assert all(gradient is None or gradient.isfinite().all() for gradient in gradients)


@every_loss
@given(seed=seeds)
@few
def test_a_weight_is_a_number_of_copies(loss: Loss, seed: int) -> None:
    queries, items, candidates = some(seed)
    hidden = some_hidden(seed)
    copies = torch.tensor([2, 0, 1, 3, 1])
    rows = torch.arange(B).repeat_interleave(copies)
    weighted = loss(queries, items, candidates, hidden=hidden, weights=copies.double())
    repeated = replace(candidates, positions=candidates.positions[rows])
    torch.testing.assert_close(loss(queries[rows], items, repeated, hidden=hidden[rows]), weighted)


@every_loss
def test_labels_of_one_are_no_labels(loss: Loss) -> None:
    queries, items, candidates = some(5)
    labelled = loss(queries, items, candidates, labels=torch.ones(B))
    torch.testing.assert_close(labelled, loss(queries, items, candidates))


@pytest.mark.parametrize("loss", [BCELoss(), ContrastiveLoss()], ids=["bce", "contrastive"])
def test_a_label_of_zero_pushes_its_own_pair_apart_and_no_other(loss: Loss) -> None:
    queries = torch.tensor([[1.0, 0.2]], requires_grad=True)
    items = torch.tensor([[1.0, 0.0], [0.0, 1.0]], requires_grad=True)
    candidates = Candidates(torch.tensor([2, 3]), torch.tensor([0]))
    value = loss(queries, items, candidates, labels=torch.zeros(1))
    query_gradient, item_gradient = torch.autograd.grad(value, (queries, items))
    stepped = queries - 0.1 * query_gradient
    cosine = torch.cosine_similarity
    assert cosine(stepped, items[[0]]) < cosine(queries, items[[0]])
    assert not item_gradient[1].any()


@every_loss
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query_vectors": torch.ones(0, D)}, "at least 1 query, got 0"),
        ({"query_vectors": torch.ones(B, D + 1)}, r"equally wide, got 4 and 3"),
        ({"query_vectors": torch.ones(B + 1, D)}, r"positions must be \(6,\), got \(5,\)"),
        ({"hidden": torch.ones(B, 1) > 0}, r"hidden must be \(5, 8\), got \(5, 1\)"),
        ({"weights": torch.ones(B, 1)}, r"weights must be \(5,\), got \(5, 1\)"),
        ({"labels": torch.ones(1)}, r"labels must be \(5,\), got \(1,\)"),
    ],
)
def test_what_does_not_fit_is_refused(loss: Loss, change: dict[str, Tensor], message: str) -> None:
    queries, items, candidates = some(6)
    given_arguments = {"query_vectors": queries, "item_vectors": items} | change
    with pytest.raises(ValueError, match=message):
        loss(candidates=candidates, **given_arguments)


@pytest.mark.parametrize("loss", [SoftmaxLoss(), BCELoss()], ids=["softmax", "bce"])
@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
def test_a_temperature_that_cannot_divide_is_refused(loss: Loss, temperature: float) -> None:
    queries, items, candidates = some(7)
    with pytest.raises(ValueError, match=f"temperature must be .* got {temperature}"):
        loss(queries, items, candidates, temperature=temperature)
    with pytest.raises(ValueError, match="temperature must be one value, got 2"):
        loss(queries, items, candidates, temperature=torch.ones(2))
