import math

import pytest
import torch
from torch import Tensor

from twotower.losses.candidates import Pairs
from twotower.losses.frequencies import StreamFrequency, log_frequency
from twotower.losses.negatives import InBatch, Mixed


def batches_of(shares: list[float], size: int, steps: int, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weights = torch.tensor(shares)
    return [
        torch.multinomial(weights, size, replacement=True, generator=generator)
        for _ in range(steps)
    ]


def test_log_frequency_worked() -> None:
    shares = log_frequency(torch.tensor([2, 3, 2, 2]), 5).exp()
    torch.testing.assert_close(shares, torch.tensor([0.0, 0.0, 0.75, 0.25, 0.0]))
    weights = torch.tensor([1.0, 6.0, 0.5, 0.5])
    weighted = log_frequency(torch.tensor([2, 3, 2, 2]), 5, weights).exp()
    torch.testing.assert_close(weighted, torch.tensor([0.0, 0.0, 0.25, 0.75, 0.0]))
    assert weighted.dtype == torch.float32


def test_log_frequency_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 training event, got 0"):
        log_frequency(torch.zeros(0, dtype=torch.int64), 5)


def test_the_first_steps_worked() -> None:
    stream = StreamFrequency(8, rate=0.4)
    rows = torch.tensor([2, 3, 5])
    assert stream[rows].tolist() == [-math.inf] * 3
    # After 4 draws: item 2 came 3 times, a gap of 4 / 3; item 3 once, a gap of 4.
    stream.update(torch.tensor([2, 2, 3, 2]))
    assert stream[rows].exp().tolist() == pytest.approx([3 / 4, 1 / 4, 0])
    # Item 3 again after 4 more: two gaps of 4 are averaged (1 / 2 is more than the rate). Item 5 first
    # comes after 8. Item 2 has been away for 4: as if it came now, 4 gaps, the rate of .4 is more than
    # 1 / 4, so the mean is .6 * 4 / 3 + .4 * 4 = 2.4.
    stream.update(torch.tensor([3, 5, 6, 6]))
    assert stream[rows].exp().tolist() == pytest.approx([1 / 2.4, 1 / 4, 1 / 8])
    # Item 2 twice in the next 4 draws: its two gaps are (12 - 4) / 2 = 4 long, and weigh
    # 1 - .6^2 = .64 (more than 2 / 5): .36 * 4 / 3 + .64 * 4 = 3.04.
    stream.update(torch.tensor([2, 2, 6, 6]))
    assert stream[torch.tensor(2)].exp().item() == pytest.approx(1 / 3.04)


def test_until_it_forgets_a_share_is_a_count() -> None:
    stream = StreamFrequency(10, rate=1e-6)
    batches = batches_of([0.0, 0.5, 0.3, 0.15, 0.05], 8, 40, seed=0)
    for batch in batches:
        stream.update(batch)
    last = {row: max(i for i, b in enumerate(batches) if row in b) for row in range(1, 5)}
    for row, batch_number in last.items():
        count = sum(int((b == row).sum()) for b in batches)
        assert stream[torch.tensor(row)].exp().item() == pytest.approx(
            count / 8 / (batch_number + 1)
        )


def naive(batches: list[Tensor], row: int, rate: float) -> float:
    """Return the share of ``row`` after ``batches``, one hit after another in plain Python."""
    draws, last, gap, hits = 0, 0, 0.0, 0
    for batch in batches:
        draws += len(batch)
        copies = batch.tolist().count(row)
        if copies:
            length, kept = (draws - last) / copies, 1.0
            for _ in range(copies):
                kept *= 1 - rate
            weight = max(copies / (hits + copies), 1 - kept)
            gap += weight * (length - gap)
            last, hits = draws, hits + copies
    if not hits:
        return 0.0
    weight = max(1 / (hits + 1), rate)
    return 1 / max(gap, gap + weight * (draws - last - gap))


@pytest.mark.parametrize("rate", [0.02, 0.5, 1.0])
def test_an_estimate_equals_plain_loops(rate: float) -> None:
    batches = batches_of([0.0, 0.6, 0.25, 0.1, 0.04, 0.01], 6, 50, seed=1)
    stream = StreamFrequency(6, rate=rate)
    for batch in batches:
        stream.update(batch)
    expected = [naive(batches, row, rate) for row in range(6)]
    assert stream[torch.arange(6)].exp().tolist() == pytest.approx(expected, rel=1e-4)


def test_it_finds_the_shares_and_follows_their_drift() -> None:
    before, after = [0.0, 0.5, 0.3, 0.19, 0.01], [0.0, 0.05, 0.3, 0.05, 0.6]
    stream = StreamFrequency(5, rate=0.01)
    found = []
    for step, batch in enumerate(
        [*batches_of(before, 64, 400, seed=2), *batches_of(after, 64, 400, seed=3)]
    ):
        stream.update(batch)
        if 300 <= step < 400 or step >= 700:
            found.append(stream[torch.arange(1, 5)].exp())
    for shares, truth in ((found[:100], before), (found[100:], after)):
        torch.testing.assert_close(
            torch.stack(shares).mean(0), torch.tensor(truth[1:]), rtol=0.1, atol=0
        )


def test_an_item_that_is_gone_fades() -> None:
    stream = StreamFrequency(4, rate=0.1)
    for batch in batches_of([0.0, 0.5, 0.5], 16, 50, seed=4):
        stream.update(batch)
    there = stream[torch.tensor(1)].exp().item()
    for _ in range(50):
        stream.update(torch.full((16,), 2))
    # Away for 800 draws, of which one gap weighs a tenth.
    assert there > 0.4
    assert stream[torch.tensor(1)].exp().item() == pytest.approx(1 / 80, rel=0.05)


def test_rows_beyond_the_buckets_share_them() -> None:
    stream = StreamFrequency(4)
    stream.update(torch.tensor([1, 5, 2, 5]))
    shares = stream[torch.tensor([1, 5, 9, 2])].exp().tolist()
    assert shares == pytest.approx([0.75, 0.75, 0.75, 0.25])


def test_it_goes_on_from_its_state() -> None:
    batches = batches_of([0.0, 0.5, 0.3, 0.2], 8, 20, seed=6)
    whole, first, second = (StreamFrequency(4) for _ in range(3))
    for batch in batches:
        whole.update(batch)
    for batch in batches[:10]:
        first.update(batch)
    state = first.state_dict()
    for batch in batches[:10]:
        first.update(batch)  # the state is a copy
    second.load_state_dict(state)
    for batch in batches[10:]:
        second.update(batch)
    assert second[torch.arange(4)].tolist() == whole[torch.arange(4)].tolist()
    assert second.state_dict().keys() == whole.state_dict().keys()


def test_a_state_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="must be of 4 buckets, got 5"):
        StreamFrequency(4).load_state_dict(StreamFrequency(5).state_dict())


def test_a_stream_refuses() -> None:
    with pytest.raises(ValueError, match="num_buckets must be at least 1, got 0"):
        StreamFrequency(0)
    for rate in (0.0, 1.5):
        with pytest.raises(ValueError, match=rf"rate must be in \(0, 1\], got {rate}"):
            StreamFrequency(4, rate=rate)


def test_samplers_read_a_stream_as_they_read_a_table() -> None:
    stream, own = StreamFrequency(6), torch.tensor([2, 3, 2, 5])
    stream.update(own)
    table = log_frequency(own, 6)
    pairs, catalogue = Pairs(own), torch.arange(2, 6)
    for make in (InBatch, lambda log_p: Mixed(log_p, catalogue, 3, distinct=True)):
        found, expected = (
            make(log_p)(pairs, torch.Generator().manual_seed(0)) for log_p in (stream, table)
        )
        assert found.log_q is not None
        torch.testing.assert_close(found.log_q, expected.log_q)
