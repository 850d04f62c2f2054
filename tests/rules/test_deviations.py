"""A standard deviation without the scores is that of the scores."""

import numpy as np
import torch

from twotower.rules.search import Moments


def test_items_that_come_and_go() -> None:
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn((60, 8), generator=generator) * 3 + 5
    queries = torch.randn((4, 8), generator=generator)
    moments, rng = Moments(8), np.random.default_rng(0)
    for num, all_there in ((40, True), (50, False), (60, False), (60, True)):
        offered = None if all_there else rng.random(num) < 0.6
        moments.count(vectors[:num], offered)
        scores = (queries.double() @ vectors[:num].double().T).numpy()
        is_item = np.ones(num, np.bool_) if offered is None else offered.copy()
        is_item[:2] = False
        np.testing.assert_allclose(
            moments.deviations(queries), scores[:, is_item].std(axis=1), rtol=1e-6
        )


def test_of_nothing() -> None:
    moments = Moments(3)
    moments.count(torch.ones(2, 3), None)
    assert moments.deviations(torch.ones(1, 3)).tolist() == [0.0]
