"""What every history encoder must obey: ``(B, L, d)`` to ``(B, L, d)``, and no look into the future."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from twotower.towers.history import DecayedMean, HistoryEncoder
from twotower.towers.history_encoders import HISTORY_ENCODERS
from twotower.towers.transformer import Transformer

B, L, D = 4, 6, 3
every_encoder = pytest.mark.parametrize("kind", list(HISTORY_ENCODERS))


def encoder_of(kind: str, dropout: float = 0.0, dim: int = D) -> HistoryEncoder:
    """An encoder whose every weight, also one that starts at zero, says something."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        encoder = HISTORY_ENCODERS[kind].build(dim, dropout, 1000)
        with torch.no_grad():
            for parameter in encoder.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return encoder.double().eval()


def some(seed: int, *counts: int, length: int = L) -> tuple[Tensor, Tensor, Tensor]:
    """Histories of ``counts`` events, right-aligned; what stands at padded places is not zero."""
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(len(counts), length, D, generator=generator, dtype=torch.float64)
    mask = torch.arange(length) >= length - torch.tensor(counts)[:, None]
    gaps = torch.rand(len(counts), length, generator=generator, dtype=torch.float64) * 1e6
    return vectors, mask, torch.where(mask, 1.6e9 + gaps.cumsum(1), 0.0)


@every_encoder
@given(seed=st.integers(0, 2**31), now=st.integers(0, L - 1), timed=st.booleans())
def test_changing_the_future_changes_no_output_before_it(
    kind: str, seed: int, now: int, timed: bool
) -> None:
    encoder = encoder_of(kind)
    vectors, mask, times = some(seed, L, L, 3, 1)
    other, _, later = some(seed + 1, L, L, 3, 1)
    changed = torch.where(torch.arange(L)[:, None] <= now, vectors, 100 * other)
    moved = torch.where(torch.arange(L) <= now, times, later + 1e7)
    before = encoder(vectors, mask, times if timed else None)
    after = encoder(changed, mask, moved if timed else None)
    assert torch.equal(before[:, : now + 1], after[:, : now + 1])
    if now < L - 1:
        assert not torch.allclose(before[:, now + 1 :], after[:, now + 1 :])


@every_encoder
def test_no_gradient_flows_back_from_the_past_into_the_future(kind: str) -> None:
    encoder = encoder_of(kind)
    vectors, mask, times = some(0, L)
    for now in range(L):
        leaf = vectors.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(encoder(leaf, mask, times)[0, now].sum(), leaf)
        touched = gradient[0].any(dim=1).tolist()
        assert not any(touched[now + 1 :])
        assert touched[now], "the event itself counts"


@every_encoder
@given(seed=st.integers(0, 2**31), counts=st.lists(st.integers(0, L), min_size=1, max_size=4))
def test_last_is_the_last_position_of_forward(kind: str, seed: int, counts: list[int]) -> None:
    encoder = encoder_of(kind)
    vectors, mask, times = some(seed, *counts)
    for moments in (None, times):
        together = encoder(vectors, mask, moments)
        assert together.shape == vectors.shape
        assert together.dtype == vectors.dtype
        torch.testing.assert_close(encoder.last(vectors, mask, moments), together[:, -1])


@every_encoder
@given(seed=st.integers(0, 2**31), more=st.integers(1, 40), count=st.integers(0, L))
def test_padding_on_the_left_changes_nothing(kind: str, seed: int, more: int, count: int) -> None:
    encoder = encoder_of(kind)
    vectors, mask, times = some(seed, count)
    junk, _, _ = some(seed + 1, 0, length=more)
    wide = torch.cat([1e3 * junk, vectors], dim=1)
    wide_mask = torch.cat([torch.zeros(1, more, dtype=torch.bool), mask], dim=1)
    wide_times = torch.cat([torch.zeros(1, more, dtype=torch.float64), times], dim=1)
    expected = encoder(vectors, mask, times)
    torch.testing.assert_close(encoder(wide, wide_mask, wide_times)[:, more:], expected)
    torch.testing.assert_close(
        encoder.last(wide, wide_mask, wide_times), encoder.last(vectors, mask, times)
    )


@every_encoder
def test_each_prefix_as_a_history_of_its_own_gives_its_position(kind: str) -> None:
    encoder = encoder_of(kind)
    vectors, mask, times = some(5, L, 4)
    together = encoder(vectors, mask, times)
    for now in range(L):
        here = slice(0, now + 1)
        prefix = encoder.last(vectors[:, here], mask[:, here], times[:, here])
        torch.testing.assert_close(prefix, together[:, now])


@every_encoder
@pytest.mark.parametrize("timed", [False, True])
def test_one_event_after_the_other_gives_each_position(kind: str, timed: bool) -> None:
    encoder = encoder_of(kind)
    length = 40  # farther than the buckets of a distance
    vectors, mask, times = some(8, length, length, length=length)
    together = encoder(vectors, mask, times if timed else None)
    state = None
    for now in range(length):
        moment = times[:, now] - times[:, 0] if timed else None
        output, state = encoder.step(vectors[:, now], moment, state)
        torch.testing.assert_close(output, together[:, now], atol=1e-6, rtol=1e-6)


@every_encoder
def test_what_stands_at_a_padded_place_does_not_matter(kind: str) -> None:
    encoder = encoder_of(kind)
    vectors, mask, times = some(1, 4, 1, 0)
    other = torch.where(mask[:, :, None], vectors, 1e6)
    torch.testing.assert_close(encoder(other, mask, times), encoder(vectors, mask, times))
    torch.testing.assert_close(encoder.last(other, mask, times), encoder.last(vectors, mask, times))


@every_encoder
def test_an_empty_history_is_finite_and_equal_for_all(kind: str) -> None:
    encoder = encoder_of(kind).float()
    vectors, mask, times = some(2, 0, 0, 0)
    leaf = vectors.float().requires_grad_()
    output, last = encoder(leaf, mask, times), encoder.last(leaf, mask, times)
    assert output.isfinite().all()
    torch.testing.assert_close(last, output[:, -1])
    assert (last == last[0]).all()
    (gradient,) = torch.autograd.grad(output.sum() + last.sum(), leaf)
    assert gradient.isfinite().all()


@every_encoder
def test_one_event_and_a_thousand_are_finite(kind: str) -> None:
    encoder = encoder_of(kind).float()
    for length, count in ((1, 1), (1, 0), (1000, 1000), (1000, 1)):
        vectors, mask, times = some(3, count, length=length)
        together = encoder(vectors.float(), mask, times)
        last = encoder.last(vectors.float(), mask, times)
        assert together.isfinite().all()
        torch.testing.assert_close(last, together[:, -1], atol=1e-5, rtol=1e-4)


@every_encoder
def test_each_history_is_read_by_itself(kind: str) -> None:
    encoder = encoder_of(kind)
    vectors, mask, times = some(4, 6, 3, 1, 0)
    together = encoder(vectors, mask, times)
    for line in range(4):
        one = slice(line, line + 1)
        alone = encoder(vectors[one], mask[one], times[one])
        torch.testing.assert_close(alone, together[one])
    assert encoder(vectors[:0], mask[:0], times[:0]).shape == (0, L, D)
    assert encoder.last(vectors[:0], mask[:0], times[:0]).shape == (0, D)


@every_encoder
def test_nothing_is_dropped_in_eval(kind: str) -> None:
    vectors, mask, times = some(6, 6, 3)
    strict, loose = encoder_of(kind, dropout=0.0), encoder_of(kind, dropout=0.9)
    loose.load_state_dict(strict.state_dict())
    assert torch.equal(loose(vectors, mask, times), strict(vectors, mask, times))
    assert torch.equal(loose.last(vectors, mask, times), strict.last(vectors, mask, times))


@every_encoder
def test_every_weight_is_trained(kind: str) -> None:
    encoder = encoder_of(kind)
    vectors, mask, times = some(7, 6, 3)
    mask[0] = False  # a history without events teaches what only that reads
    vectors.requires_grad_()
    encoder.last(vectors, mask, times).square().sum().backward()  # type: ignore[no-untyped-call]
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


def test_heads_share_the_width() -> None:
    with pytest.raises(ValueError, match="num_heads must divide dim, got 2 and 3"):
        Transformer(3, 0.0, num_heads=2)


class TestDecayedMean:
    def test_worked_by_hand(self) -> None:
        # Half-life 1: the weights of three events are 1/4, 1/2, 1, over 7/4.
        encoder = DecayedMean(1.0)
        vectors = torch.tensor([[[100.0], [7.0], [14.0], [28.0]]])
        mask = torch.tensor([[False, True, True, True]])
        output = encoder(vectors, mask)[0, :, 0].tolist()
        second = (7 * 0.5 + 14) / 1.5
        third = (7 * 0.25 + 14 * 0.5 + 28) / 1.75  # 21
        assert output == pytest.approx([0, 7, second, third])
        assert encoder.last(vectors, mask).item() == pytest.approx(21)

    def test_without_decay_it_is_the_mean(self) -> None:
        vectors, mask, _ = some(0, L)
        torch.testing.assert_close(DecayedMean().last(vectors, mask), vectors.mean(dim=1))

    @given(seed=st.integers(0, 2**31), half_life=st.floats(0.3, 50), count=st.integers(0, L))
    def test_equals_loops(self, seed: int, half_life: float, count: int) -> None:
        vectors, mask, _ = some(seed, count)
        output = DecayedMean(half_life)(vectors, mask)
        for now in range(L):
            for d in range(D):
                total = weights = 0.0
                for event in range(L - count, now + 1):
                    weight = 0.5 ** ((now - event) / half_life)
                    total += weight * vectors[0, event, d].item()
                    weights += weight
                expected = total / weights if weights else 0.0
                assert output[0, now, d].item() == pytest.approx(expected, rel=1e-5, abs=1e-6)

    @pytest.mark.parametrize("half_life", [0.0, -1.0, float("nan")])
    def test_a_half_life_that_is_not_above_0_is_refused(self, half_life: float) -> None:
        with pytest.raises(ValueError, match=f"half_life must be above 0, got {half_life}"):
            DecayedMean(half_life)
