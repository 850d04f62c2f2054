import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twotower.caller import called_from
from twotower.shards import Shard


@given(st.integers(0, 10_000), st.integers(1, 300))
def test_all_shares_together_hold_each_row_once_and_in_order(num_rows: int, count: int) -> None:
    shares = [Shard(number, count).rows(num_rows) for number in range(1, count + 1)]
    assert [row for share in shares for row in share] == list(range(num_rows))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_the_third_of_sixteen() -> None:
    assert Shard.of("3/16").rows(32) == range(4, 6)
    assert str(Shard.of("3/16")) == "3/16"
    assert Shard.of(None).rows(32) == range(32)


@pytest.mark.parametrize(
    "text", ["0/3", "4/3", "x", "3", "", "-1/3", "1/0", "1.0/3", "1/3/3", "１/3"]
)
def test_what_names_no_share_is_told(text: str) -> None:
    said = f"shard must be I/N with I in 1..N, such as 3/16, got {text!r}"
    with pytest.raises(ValueError, match=f"^{re.escape(said)}"):
        Shard.of(text)
    with (
        called_from("command line"),
        pytest.raises(ValueError, match=f"^--{re.escape(said)}"),
    ):
        Shard.of(text)
