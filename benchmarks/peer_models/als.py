"""``implicit``'s AlternatingLeastSquares: 64 factors, else its defaults; it ends before the time does.

An example is one event in one sweep over both sides.
"""

from contextlib import suppress

import numpy as np
from implicit.als import AlternatingLeastSquares  # type: ignore[import-untyped]
from peer import DIM, TimeIsOverError, begin
from scipy.sparse import csr_matrix

run = begin()
data, clock = run.data, run.clock
events = csr_matrix(
    (np.ones(len(data.item), np.float32), (data.query, data.item)),
    shape=(data.num_queries, data.num_items),
)
model = AlternatingLeastSquares(factors=DIM, num_threads=1, random_state=0)
clock.start()


def on_sweep(sweep: int, seconds: float, loss: float | None) -> None:  # noqa: ARG001
    """Count the events of a sweep."""
    if clock.step(events.nnz):
        raise TimeIsOverError


with suppress(TimeIsOverError):
    model.fit(events, show_progress=False, callback=on_sweep)
clock.stop()
run.answer_by_vectors(model.user_factors[data.test_queries], model.item_factors)
