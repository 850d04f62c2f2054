import pytest
import torch

from twotower.towers.layers import Dropout, dropout


@pytest.mark.parametrize("probability", [0.05, 0.2, 0.5, 0.9])
def test_the_share_that_is_dropped_and_the_mean_that_is_kept(probability: float) -> None:
    torch.manual_seed(0)
    ones = torch.ones(1001, 333)  # not a multiple of eight
    dropped = dropout(ones, probability, training=True)
    share = (dropped == 0).double().mean().item()
    assert share == pytest.approx(round(probability * 256) / 256, abs=2e-3)
    kept = dropped[dropped != 0]
    assert (kept == kept[0]).all()
    assert dropped.double().mean().item() == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("cut", [1, 51, 127, 128, 129, 200, 255])
def test_a_number_is_kept_where_its_byte_is_at_least_the_cut(cut: int) -> None:
    torch.manual_seed(0)
    vectors = torch.randn(37, 11)
    torch.manual_seed(1)
    drawn = torch.empty(-(-vectors.numel() // 8), dtype=torch.int64).random_(-(2**63), None)
    drawn_bytes = drawn.view(torch.uint8)[: vectors.numel()].view(vectors.shape)
    torch.manual_seed(1)
    found = dropout(vectors, cut / 256, training=True)
    assert torch.equal(found, torch.where(drawn_bytes >= cut, vectors * (256 / (256 - cut)), 0.0))


def test_the_gradient_flows_through_what_was_kept() -> None:
    torch.manual_seed(1)
    vectors = torch.randn(5, 7, 3, dtype=torch.float64, requires_grad=True)
    dropped = dropout(vectors, 0.3, training=True)
    weights = torch.randn(5, 7, 3, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((dropped * weights).sum(), vectors)
    torch.testing.assert_close(gradient * vectors, dropped * weights)


def test_a_seed_decides_and_draws_are_independent() -> None:
    ones = torch.ones(200, 400)

    def drawn(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return dropout(ones, 0.5, training=True) != 0

    assert torch.equal(drawn(3), drawn(3))
    first, second = drawn(3), drawn(4)
    assert (first & second).double().mean().item() == pytest.approx(0.25, abs=0.01)
    # Neither along a line nor between lines does one say anything of the next.
    for a, b in ((first[:, 1:], first[:, :-1]), (first[1:], first[:-1])):
        assert (a & b).double().mean().item() == pytest.approx(0.25, abs=0.01)


def test_nothing_is_dropped_in_evaluation_or_at_0() -> None:
    vectors = torch.randn(4, 4)
    assert dropout(vectors, 0.5, training=False) is vectors
    assert dropout(vectors, 0.0, training=True) is vectors
    assert Dropout(0.9).eval()(vectors) is vectors
    assert (Dropout(0.9).train()(torch.ones(100)) == 0).any()


@pytest.mark.parametrize("probability", [0.001, 0.999])
def test_a_probability_next_to_0_or_1_is_not_rounded(probability: float) -> None:
    torch.manual_seed(0)
    found = dropout(torch.ones(1_000_000), probability, training=True)
    dropped = int((found == 0).sum())
    assert dropped == pytest.approx(1e6 * probability, abs=150)  # five standard deviations
    (kept,) = set(found[found != 0].tolist())
    assert kept == pytest.approx(1 / (1 - probability))


def test_bfloat16_and_an_empty_batch() -> None:
    half = dropout(torch.ones(64, dtype=torch.bfloat16), 0.5, training=True)
    assert half.dtype == torch.bfloat16
    assert set(half.float().tolist()) <= {0.0, 2.0}
    assert dropout(torch.ones(0, 5), 0.5, training=True).shape == (0, 5)
