"""Helpers for arrays."""

import numpy as np
import pytest

from twotower.arrays import distinct


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint8])
@pytest.mark.parametrize("num", [0, 1, 2, 1000])
def test_distinct_values_are_those_of_numpy(dtype: type[np.integer], num: int) -> None:
    values = np.random.default_rng(num).integers(0, 200, num).astype(dtype)
    found = distinct(values)
    np.testing.assert_array_equal(found, np.unique(values))
    assert found.dtype == dtype
