"""The k best columns of a matrix of scores, equal scores ordered by column."""

import torch
from torch import Tensor


def top_columns(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the ``k`` largest scores of each line and their columns, equal ones by column.

    ``torch.topk`` leaves open which of several equal scores it takes, and in which order; so that
    one model has one ranking, the lower column comes first here.

    Args:
        scores: ``(Q, N)`` float without NaN.
        k: At least 1, at most ``N``.

    Returns:
        ``(Q, k)`` values, largest first, and ``(Q, k)`` int64 columns.
    """
    values, columns = scores.topk(min(k + 1, scores.shape[1]), dim=1)
    last = values[:, k - 1]
    columns = columns[:, :k]
    if values.shape[1] > k:
        # Equal scores inside and outside of the top: which of them are in is decided by column.
        tied = (values[:, k] == last) & (last > -torch.inf)
        if tied.any():
            columns = columns.clone()
            columns[tied] = _first_of_the_tied(scores[tied], last[tied, None], k)
    columns = columns.sort(dim=1).values
    values, order = scores.gather(1, columns).sort(dim=1, descending=True, stable=True)
    return values, columns.gather(1, order)


def _first_of_the_tied(scores: Tensor, last: Tensor, k: int) -> Tensor:
    """Return the columns above ``last`` and the first of those equal to it, ``k`` in all."""
    above, equal = scores > last, scores == last
    wanted = k - above.sum(dim=1, keepdim=True)
    taken = above | (equal & (equal.cumsum(dim=1, dtype=torch.int32) <= wanted))
    return taken.nonzero()[:, 1].view(len(scores), k)
