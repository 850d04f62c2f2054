"""What every loss that a trainer can hold must obey, whatever it minimises.

A loss that a law does not fit is declared beside it, and shown to break it.
"""

import math
from dataclasses import dataclass, field, replace

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd.gradcheck import GradcheckError
from torch.nn.functional import normalize

from twotower.losses.candidates import Candidates
from twotower.losses.dense import BCELoss, BPRLoss, GBCELoss
from twotower.losses.loss_kinds import Loss
from twotower.losses.softmax import SoftmaxLoss, SymmetricSoftmaxLoss


@dataclass(frozen=True)
class Declared:
    """A loss, and the laws that do not fit it with the reason."""

    loss: Loss
    excepted: dict[str, str] = field(default_factory=dict)


LIKED_ONLY = "it has no place for what a query does not like"
ALL_LIKERS = "a hidden item hides its queries from each other, too"
OTHER_QUERIES = "a query is a negative of the others' items"
LOSSES = {
    "softmax": Declared(SoftmaxLoss(), {"dislike": LIKED_ONLY}),
    "softmax, smoothed": Declared(
        SoftmaxLoss(label_smoothing=0.2),
        {
            "dislike": LIKED_ONLY,
            "perfect": "a perfect model is too sure of itself",
            "repeats": "part of its target is on each negative",
        },
    ),
    "symmetric": Declared(
        SymmetricSoftmaxLoss(),
        {
            "dislike": LIKED_ONLY,
            "masks": ALL_LIKERS,
            "lists": ALL_LIKERS,
            "copies": OTHER_QUERIES,
            "absence": OTHER_QUERIES,
        },
    ),
    "bpr": Declared(BPRLoss(), {"dislike": LIKED_ONLY}),
    "bce": Declared(BCELoss()),
    "gbce": Declared(
        GBCELoss(calibration=0.75, num_items=20),
        {"dislike": LIKED_ONLY, "repeats": "how many negatives there are is part of it"},
    ),
}


def law(name: str) -> pytest.MarkDecorator:
    """Run a test for every loss; those that are declared as excepted must fail it."""
    parameters = []
    for loss_name, declared in LOSSES.items():
        reason = declared.excepted.get(name)
        failures = (AssertionError, pytest.fail.Exception, ValueError, GradcheckError)
        breaks = [pytest.mark.xfail(reason=reason, strict=True, raises=failures)] if reason else []
        parameters.append(pytest.param(declared.loss, id=loss_name, marks=breaks))
    return pytest.mark.parametrize("loss", parameters)


every_loss = law("obeyed by all")
seeds = st.integers(0, 2**31)
# A seed has nothing that could be made smaller.
few = settings(phases=[Phase.explicit, Phase.reuse, Phase.generate])

B, N, D = 5, 8, 3


def some(seed: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Candidates]:
    generator = torch.Generator().manual_seed(seed)
    queries = torch.randn(B, D, generator=generator, dtype=dtype)
    items = torch.randn(N, D, generator=generator, dtype=dtype)
    positions = torch.randint(N, (B,), generator=generator)
    log_q = torch.randn(N, generator=generator, dtype=dtype)
    return queries, items, Candidates(torch.arange(2, N + 2), positions, log_q)


def some_hidden(seed: int, positions: Tensor) -> Tensor:
    mask = torch.rand(B, N, generator=torch.Generator().manual_seed(seed + 1)) < 0.4
    return places_of(mask, positions)


def places_of(mask: Tensor, positions: Tensor) -> Tensor:
    """Return where each row of ``mask``, ``(B, N)`` bool, is True: ``(B, H)``; own ones fill."""
    places = torch.arange(mask.shape[1]).expand_as(mask)
    return torch.where(mask, places, positions[:, None])


def nobodys(candidates: Candidates) -> int:
    """Return the first candidate that is no query's own item."""
    return next(j for j in range(N) if j not in candidates.positions.tolist())


def without(candidates: Candidates, place: int) -> tuple[Tensor, Candidates]:
    """Return which candidates stay where one is absent, and these candidates."""
    kept = torch.tensor([j for j in range(N) if j != place])
    positions = candidates.positions - (candidates.positions > place).long()
    assert candidates.log_q is not None
    return kept, Candidates(candidates.item_rows[kept], positions, candidates.log_q[kept])


@law("perfect")
@given(seed=seeds)
@few
def test_a_perfect_model_has_the_least_loss(loss: Loss, seed: int) -> None:
    # Of vectors of length 1 none are closer than equal ones, none further apart than opposite ones.
    generator = torch.Generator().manual_seed(seed)
    candidates = Candidates(torch.tensor([2, 3]), torch.tensor([1, 0]))
    items = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    perfect = loss(items[candidates.positions], items, candidates, temperature=0.2)
    queries = normalize(torch.randn(2, 2, generator=generator), dim=1)
    others = normalize(torch.randn(2, 2, generator=generator), dim=1)
    assert perfect <= loss(queries, items, candidates, temperature=0.2)
    assert perfect <= loss(queries, others, candidates, temperature=0.2)
    assert perfect < loss(items, items, candidates, temperature=0.2)  # as bad as can be


@every_loss
@given(seed=seeds)
@few
def test_the_order_of_candidates_does_not_matter(loss: Loss, seed: int) -> None:
    queries, items, candidates = some(seed)
    hidden = some_hidden(seed, candidates.positions)
    order = torch.randperm(N, generator=torch.Generator().manual_seed(seed))
    assert candidates.log_q is not None
    moved = Candidates(
        candidates.item_rows[order], order.argsort()[candidates.positions], candidates.log_q[order]
    )
    before = loss(queries, items, candidates, temperature=0.5, hidden=hidden)
    after = loss(queries, items[order], moved, temperature=0.5, hidden=order.argsort()[hidden])
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


@law("proposals")
def test_who_is_proposed_more_often_counts_less(loss: Loss) -> None:
    queries, items, candidates = some(0)
    assert candidates.log_q is not None
    often = nobodys(candidates)
    log_q = candidates.log_q.clone()
    log_q[often] += 50
    proposed = loss(queries, items, replace(candidates, log_q=log_q))
    assert not torch.isclose(proposed, loss(queries, items, candidates))


@law("repeats")
@given(seed=seeds)
@few
def test_a_negative_listed_twice_at_twice_the_probability_is_one(loss: Loss, seed: int) -> None:
    queries, items, candidates = some(seed)
    assert candidates.log_q is not None
    twice = nobodys(candidates)
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
    absent = nobodys(candidates)
    kept, others = without(candidates, absent)
    items.requires_grad_()
    hidden = torch.full((B, 1), absent)
    value = loss(queries, items, candidates, temperature=0.5, hidden=hidden)
    (gradient,) = torch.autograd.grad(value, items)
    expected = loss(queries, items[kept], others, temperature=0.5)
    torch.testing.assert_close(value.detach(), expected.detach())
    assert not gradient[absent].any()
    assert gradient[candidates.positions].any()


@every_loss
@given(seed=seeds)
@few
def test_a_candidate_that_is_nobodys_negative_is_as_good_as_absent(loss: Loss, seed: int) -> None:
    queries, items, candidates = some(seed)
    absent = nobodys(candidates)
    kept, others = without(candidates, absent)
    never = torch.arange(N) == absent
    items.requires_grad_()
    value = loss(queries, items, replace(candidates, never=never), temperature=0.5)
    (gradient,) = torch.autograd.grad(value, items)
    expected = loss(queries, items[kept], others, temperature=0.5)
    torch.testing.assert_close(value.detach(), expected.detach())
    assert not gradient[absent].any()


@law("masks")
def test_the_own_item_of_a_query_may_be_nobody_elses_negative(loss: Loss) -> None:
    queries, items, candidates = some(2)
    own = int(candidates.positions[0])
    never = torch.arange(N) == own
    others = (candidates.positions != own).nonzero()
    hidden = candidates.positions[:, None].clone()
    hidden[others] = own
    value = loss(queries, items, replace(candidates, never=never))
    torch.testing.assert_close(value, loss(queries, items, candidates, hidden=hidden))
    assert not torch.isclose(value, loss(queries, items, candidates))


@law("masks")
def test_hidden_candidates_add_to_those_that_are_nobodys_negative(loss: Loss) -> None:
    queries, items, candidates = some(1)
    never, hidden = torch.arange(N) < 3, some_hidden(2, candidates.positions)
    together = loss(queries, items, replace(candidates, never=never), hidden=hidden)
    all_places = torch.cat([hidden, torch.arange(3).expand(B, 3)], dim=1)
    torch.testing.assert_close(together, loss(queries, items, candidates, hidden=all_places))
    assert not torch.isclose(together, loss(queries, items, candidates, hidden=hidden))


@every_loss
def test_the_own_item_is_never_hidden(loss: Loss) -> None:
    queries, items, candidates = some(3)
    hidden = some_hidden(3, candidates.positions)
    repeated = torch.cat([candidates.positions[:, None], hidden, hidden], dim=1)
    expected = loss(queries, items, candidates, hidden=hidden)
    torch.testing.assert_close(loss(queries, items, candidates, hidden=repeated), expected)
    only_own = loss(queries, items, candidates, hidden=candidates.positions[:, None])
    torch.testing.assert_close(only_own, loss(queries, items, candidates))
    nothing = loss(queries, items, candidates, hidden=hidden[:, :0])
    torch.testing.assert_close(nothing, loss(queries, items, candidates))


@every_loss
def test_a_query_without_negatives_has_a_finite_loss(loss: Loss) -> None:
    queries, items, candidates = some(4)
    queries.requires_grad_()
    for changed, hidden in (
        (candidates, torch.arange(N).expand(B, N)),
        (replace(candidates, never=torch.ones(N, dtype=torch.bool)), None),
    ):
        value = loss(queries, items, changed, hidden=hidden)
        (gradient,) = torch.autograd.grad(value, queries, allow_unused=True)
        assert value.isfinite()
        assert gradient is None or gradient.isfinite().all()


@every_loss
def test_a_batch_of_one_query_has_a_finite_loss(loss: Loss) -> None:
    queries, items, candidates = some(4)
    alone = replace(candidates, positions=candidates.positions[:1])
    queries = queries[:1].requires_grad_()
    value = loss(queries, items, alone)
    (gradient,) = torch.autograd.grad(value, queries)
    assert value.isfinite()
    assert gradient.isfinite().all()
    assert gradient.any()


@every_loss
@given(seed=seeds, log_q_of_query=st.booleans())
@few
def test_candidates_of_each_query_are_as_good_as_shared_ones(
    loss: Loss, seed: int, log_q_of_query: bool
) -> None:
    queries, items, candidates = some(seed)
    positions = candidates.positions
    hidden = some_hidden(seed, positions)
    never = torch.rand(N, generator=torch.Generator().manual_seed(seed + 2)) < 0.2
    shared = replace(candidates, never=never)
    # The own item first, then all others in the order of their places.
    is_own = torch.arange(N) == positions[:, None]
    columns = (~is_own).long().argsort(dim=1, stable=True)
    per_query = replace(shared, columns=columns)
    if log_q_of_query:
        assert candidates.log_q is not None
        per_query = replace(per_query, log_q=candidates.log_q[columns])
    inputs = (queries.requires_grad_(), items.requires_grad_())
    for places in (None, hidden):
        expected = loss(queries, items, shared, temperature=0.5, hidden=places)
        value = loss(queries, items, per_query, temperature=0.5, hidden=places)
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(
            torch.autograd.grad(value, inputs), torch.autograd.grad(expected, inputs)
        )


@law("lists")
@given(seed=seeds)
@few
def test_what_a_query_does_not_list_is_as_good_as_hidden(loss: Loss, seed: int) -> None:
    queries, items, candidates = some(seed)
    generator = torch.Generator().manual_seed(seed)
    order = torch.stack([torch.randperm(N, generator=generator) for _ in range(B)])
    others = order[order != candidates.positions[:, None]].view(B, N - 1)
    columns = torch.cat([candidates.positions[:, None], others[:, :3]], dim=1)
    listed = loss(queries, items, replace(candidates, columns=columns), temperature=0.5)
    expected = loss(queries, items, candidates, temperature=0.5, hidden=others[:, 3:])
    torch.testing.assert_close(listed, expected)


@law("slopes")
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("listed", [False, True], ids=["shared", "per-query"])
def test_gradients_match_finite_differences(loss: Loss, seed: int, listed: bool) -> None:
    queries, items, candidates = some(seed)
    if listed:
        columns = (candidates.positions[:, None] + torch.arange(4)) % N
        candidates = replace(candidates, columns=columns)
    hidden = some_hidden(seed, candidates.positions)
    weights = torch.tensor([1.0, 0.5, 2.0, 3.0, 0.1], dtype=torch.float64)
    temperature = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)

    def value(queries: Tensor, items: Tensor, temperature: Tensor) -> Tensor:
        # Some losses have no temperature; it must reach the output to be checked at all.
        result = loss(
            queries, items, candidates, temperature=temperature, hidden=hidden, weights=weights
        )
        return result + 0 * temperature

    inputs = (queries.requires_grad_(), items.requires_grad_(), temperature)
    assert torch.autograd.gradcheck(value, inputs)


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@given(seed=seeds, scale=st.sampled_from([0.0, 1e-6, 1.0, 1e4]), listed=st.booleans())
@few
def test_loss_and_gradients_are_finite_at_extreme_logits(
    loss: Loss, dtype: torch.dtype, seed: int, scale: float, listed: bool
) -> None:
    queries, items, candidates = some(seed, torch.float32)
    queries = (queries * scale).to(dtype).requires_grad_()
    items = (items * scale).to(dtype).requires_grad_()
    if listed:
        columns = (candidates.positions[:, None] + torch.arange(4)) % N
        candidates = replace(candidates, columns=columns)
    temperature = torch.tensor(0.01, requires_grad=True)
    hidden = some_hidden(seed, candidates.positions)
    value = loss(queries, items, candidates, temperature=temperature, hidden=hidden)
    gradients = torch.autograd.grad(value, (queries, items, temperature), allow_unused=True)
    assert value.isfinite()
    assert all(gradient is None or gradient.isfinite().all() for gradient in gradients)


@every_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
@pytest.mark.parametrize("listed", [False, True], ids=["shared", "per-query"])
def test_half_precision_vectors_are_computed_in_float32(
    loss: Loss, dtype: torch.dtype, listed: bool
) -> None:
    queries, items, candidates = some(8, torch.float32)
    if listed:
        columns = (candidates.positions[:, None] + torch.arange(4)) % N
        candidates = replace(candidates, columns=columns)
    low = (queries.to(dtype).requires_grad_(), items.to(dtype).requires_grad_())
    high = tuple(vectors.detach().float().requires_grad_() for vectors in low)
    value = loss(low[0], low[1], candidates, temperature=0.5)
    expected = loss(high[0], high[1], candidates, temperature=0.5)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, expected)
    gradients = torch.autograd.grad(value, low)
    for gradient, exact in zip(gradients, torch.autograd.grad(expected, high), strict=True):
        assert gradient.dtype == dtype
        torch.testing.assert_close(gradient, exact.to(dtype))


@law("copies")
@given(seed=seeds)
@few
def test_a_weight_is_a_number_of_copies(loss: Loss, seed: int) -> None:
    queries, items, candidates = some(seed)
    hidden = some_hidden(seed, candidates.positions)
    copies = torch.tensor([2, 0, 1, 3, 1])
    rows = torch.arange(B).repeat_interleave(copies)
    weighted = loss(queries, items, candidates, hidden=hidden, weights=copies.double())
    repeated = replace(candidates, positions=candidates.positions[rows])
    torch.testing.assert_close(loss(queries[rows], items, repeated, hidden=hidden[rows]), weighted)


@every_loss
@given(seed=seeds)
@few
def test_weights_count_relative_to_each_other(loss: Loss, seed: int) -> None:
    queries, items, candidates = some(seed)
    weights = torch.rand(B, generator=torch.Generator().manual_seed(seed)).double() + 0.1
    expected = loss(queries, items, candidates, weights=weights)
    torch.testing.assert_close(loss(queries, items, candidates, weights=7 * weights), expected)
    alike = loss(queries, items, candidates, weights=torch.full((B,), 0.3).double())
    torch.testing.assert_close(alike, loss(queries, items, candidates))
    assert not torch.isclose(alike, expected)


@law("absence")
@given(seed=seeds)
@few
def test_a_query_of_weight_0_is_as_good_as_absent(loss: Loss, seed: int) -> None:
    queries, items, candidates = some(seed)
    weights = torch.rand(B, generator=torch.Generator().manual_seed(seed)).double() + 0.1
    fewer = replace(candidates, positions=candidates.positions[1:])
    absent = loss(queries, items, candidates, weights=weights * (torch.arange(B) > 0))
    present = loss(queries[1:], items, fewer, weights=weights[1:])
    torch.testing.assert_close(absent, present)


@every_loss
def test_labels_of_one_are_no_labels(loss: Loss) -> None:
    queries, items, candidates = some(5)
    labelled = loss(queries, items, candidates, labels=torch.ones(B))
    torch.testing.assert_close(labelled, loss(queries, items, candidates))


@law("dislike")
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


@pytest.mark.parametrize("name", [n for n, d in LOSSES.items() if "dislike" in d.excepted])
def test_a_label_of_zero_is_refused_where_it_has_no_place(name: str) -> None:
    queries, items, candidates = some(5)
    labels = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0])
    message = r"labels must all be 1 for the .* loss, got 2 of 0; .* BCELoss"
    with pytest.raises(ValueError, match=message):
        LOSSES[name].loss(queries, items, candidates, labels=labels)


@every_loss
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query_vectors": torch.ones(0, D)}, "at least 1 query, got 0"),
        ({"query_vectors": torch.ones(B, D + 1)}, r"equally wide, got 4 and 3"),
        ({"query_vectors": torch.ones(B + 1, D)}, r"positions must be \(6,\), got \(5,\)"),
        ({"hidden": torch.zeros(1, 2).long()}, r"hidden must be \(5, H\) int64 .* got \(1, 2\)"),
        ({"hidden": torch.ones(B, 2) > 0}, r"mask as hidden must be \(5, \d+\), got \(5, 2\)"),
        ({"hidden": torch.ones(B, 2)}, r"hidden must be \(5, H\) int64 .* got .* torch.float32"),
        ({"weights": torch.ones(B, 1)}, r"weights must be \(5,\), got \(5, 1\)"),
        ({"labels": torch.ones(1)}, r"labels must be \(5,\), got \(1,\)"),
    ],
)
def test_what_does_not_fit_is_refused(loss: Loss, change: dict[str, Tensor], message: str) -> None:
    queries, items, candidates = some(6)
    given_arguments = {"query_vectors": queries, "item_vectors": items} | change
    with pytest.raises(ValueError, match=message):
        loss(candidates=candidates, **given_arguments)


@every_loss
@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
def test_a_temperature_that_cannot_divide_is_refused(loss: Loss, temperature: float) -> None:
    queries, items, candidates = some(7)
    with pytest.raises(ValueError, match=f"temperature must be .* got {temperature}"):
        loss(queries, items, candidates, temperature=temperature)
    with pytest.raises(ValueError, match="temperature must be one value, got 2"):
        loss(queries, items, candidates, temperature=torch.ones(2))


@law("scale")
def test_a_temperature_divides_the_dot_products(loss: Loss) -> None:
    queries, items, candidates = some(9)
    cold = loss(queries, items, candidates, temperature=0.25)
    torch.testing.assert_close(cold, loss(4 * queries, items, candidates))
    assert not torch.isclose(cold, loss(queries, items, candidates))
