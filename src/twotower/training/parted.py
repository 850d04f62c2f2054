"""Encoding the queries of a batch in parts that threads compute side by side."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from twotower.workers import drawing_from, of_each, seeded

MOST_PARTS = 4


class Parted:
    """Vectors of queries that are computed in parts, each by one thread, with their gradients.

    Each part draws from a generator of its own, and gradients are added in the order of the parts, so that
    they are the same however many threads there are.

    Args:
        function: Computes the vectors of a slice of the queries from the inputs: ``(n, d)``.
        inputs: ``(m, d)`` that the function reads.
        parts: Slices of the queries, in order.
        parameters: All that the function may read beside the inputs and that is trained.
    """

    def __init__(
        self,
        function: Callable[[Tensor, slice], Tensor],
        inputs: Tensor,
        parts: Sequence[slice],
        parameters: Sequence[nn.Parameter],
    ) -> None:
        self._inputs, self._parameters = inputs, parameters
        draws = seeded(torch.randint(2**62, (len(parts),)).tolist())  # as the step's other draws

        def encode(place: int) -> tuple[Tensor, Tensor]:
            own = inputs.detach().requires_grad_(inputs.requires_grad)
            with drawing_from(draws[place]):
                return own, function(own, parts[place])

        self._encoded = of_each(encode, range(len(parts)))
        found = [vectors.detach() for _, vectors in self._encoded]
        self._lengths = [len(vectors) for vectors in found]
        self.vectors = torch.cat(found).requires_grad_()
        """All of them, ``(n, d)``: a leaf, whose gradient ``backward`` passes on."""

    def backward(self) -> None:
        """Add the gradients of the inputs and of the parameters, given ``vectors.grad``."""
        gradient = self.vectors.grad
        if gradient is None:
            return
        of_parts = torch.split(gradient, self._lengths)

        def gradients(place: int) -> Sequence[Tensor | None]:
            own, vectors = self._encoded[place]
            read = [x for x in (own, *self._parameters) if x.requires_grad]
            if not vectors.requires_grad:
                return [None] * len(read)
            return torch.autograd.grad(vectors, read, of_parts[place], allow_unused=True)

        found = of_each(gradients, range(len(of_parts)))
        targets = [x for x in (self._inputs, *self._parameters) if x.requires_grad]
        for target, parts in zip(targets, zip(*found, strict=True), strict=True):
            for part in parts:
                if part is not None:
                    target.grad = part if target.grad is None else target.grad + part
