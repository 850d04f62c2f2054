"""A gated recurrent unit over the history."""

import torch
from torch import Tensor, nn

from twotower.towers.dropout import dropout
from twotower.towers.history import HistoryEncoder, State


class Recurrent(HistoryEncoder):
    """A GRU that reads the events one after the other; its state after each is the output there.

    The state before the first event is learnt, and is what a history without any event is read as.

    Args:
        dim: ``d``.
        dropout: Of the inputs, in training.

    Source: Hidasi et al., ICLR 2016 (GRU4Rec). Differs: reads whole histories instead of keeping states
        between parallel batches of sessions.
    """

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.start = nn.Parameter(torch.zeros(dim))
        self.cell = nn.GRU(dim, dim, batch_first=True)

    def forward(self, item_vectors: Tensor, mask: Tensor, times: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """Map ``(B, L, d)`` to ``(B, L, d)``."""
        if not mask.shape[0]:
            return torch.zeros_like(item_vectors)
        vectors = dropout(item_vectors, self.dropout, self.training)
        # Histories are shifted to begin at the left, so that nothing is read before them.
        length = mask.shape[1]
        place = torch.arange(length, device=mask.device)
        padded = length - mask.sum(dim=1, keepdim=True)
        begin = (place + padded).clamp(max=length - 1)  # (B, L) where each event stands
        shifted = vectors.gather(1, begin[:, :, None].expand_as(vectors))
        start = self.start.to(vectors.dtype).expand(1, vectors.shape[0], -1).contiguous()
        states, _ = self.cell(shifted, start)
        states = torch.cat([start.transpose(0, 1), states], dim=1)  # (B, 1 + L, d)
        after = (place + 1 - padded).clamp(min=0)
        return states.gather(1, after[:, :, None].expand_as(vectors))

    def step(
        self,
        item_vectors: Tensor,
        times: Tensor | None = None,  # noqa: ARG002
        state: State | None = None,
    ) -> tuple[Tensor, State]:
        """Move the unit's state by one event."""
        before = self.start.expand_as(item_vectors) if state is None else state[0]
        output, _ = self.cell(item_vectors[:, None], before[None].contiguous())
        return output[:, 0], (output[:, 0],)
